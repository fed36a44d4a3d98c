"""Editors: frozen dataclasses of hyper-parameters; calling one returns an ``Update`` and leaves the model as it was."""

from pathlib import Path

from . import ace, alphaedit, ft, ifmet, kn, memit, pmet, rome
from .ace import ACE
from .alphaedit import AlphaEdit
from .ft import FT
from .ifmet import IFMET
from .kn import KN
from .memit import MEMIT
from .neurons import NeuronACE
from .pmet import PMET
from .rome import ROME

__all__ = [
    "ACE",
    "AlphaEdit",
    "EDITORS",
    "FT",
    "IFMET",
    "KN",
    "MEMIT",
    "NeuronACE",
    "PMET",
    "ROME",
    "preset",
]

#: name -> module, which holds the class and its ``PRESETS``
EDITORS = {
    "FT": ft,
    "KN": kn,
    "ROME": rome,
    "MEMIT": memit,
    "PMET": pmet,
    "AlphaEdit": alphaedit,
    "IFMET": ifmet,
    "ACE": ace,
}


def preset(editor: str, model: str):
    """The named editor with its settings for a model (a name, a folder or a hub id of one that has settings).

    Raises ValueError listing the known editors, or the models that the editor has settings for.
    """
    known = {name.lower(): module.PRESETS for name, module in EDITORS.items()}
    if editor.lower() not in known:
        raise ValueError(f"unknown editor {editor!r}; known: {', '.join(EDITORS)}")
    settings, name = known[editor.lower()], Path(model).name.lower()
    if name not in settings:
        raise ValueError(
            f"{editor} has no settings for model {model!r}; it has for: {', '.join(settings)}"
        )
    return settings[name]
