"""Editors: frozen settings; calling one returns an ``Update`` and leaves the model as it was."""

from .ace import ACE, IFMET, ReleasedACE
from .ft import FT
from .kn import KN
from .memit import MEMIT, PMET, AlphaEdit
from .neurons import NeuronACE
from .presets import EDITORS, preset
from .rome import ROME

__all__ = [
    "ACE",
    "EDITORS",
    "FT",
    "IFMET",
    "KN",
    "MEMIT",
    "PMET",
    "ROME",
    "AlphaEdit",
    "NeuronACE",
    "ReleasedACE",
    "preset",
]
