"""An edited model in a folder that says of itself what was edited, by what, and how to undo it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tomlkit

from ..editors.presets import to_table
from ..model.lm import LM
from ..model.update import Update, save_pretrained
from ..provenance import versions
from ..records import Edit

CARD = "README.md"
UPDATE = Path("edit") / "update.safetensors"  #: in a folder of its own: it is no weight


def save_edited(lm: LM, update: Update, folder: str | Path, text: str) -> None:
    """The edited model as ``save_pretrained`` writes it, with its card and its update.

    The folder is there as a whole or not at all.
    Raises ValueError if it exists, or if the update does not fit the model.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists; give the edited model a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
        part = Path(place) / "model"
        save_pretrained(lm, update, part)
        (part / UPDATE).parent.mkdir()
        update.save(part / UPDATE)
        (part / CARD).write_text(text, "utf-8")
        for path in part.rglob("*"):  # weights are written for their owner alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.replace(part, folder)


def card(
    lm: LM,
    update: Update,
    editor: Any,
    outcome: str,
    counts: Mapping[str, str],
    notes: Sequence[str] = (),
) -> str:
    """The card of an edited model, Markdown.

    outcome: one line.   counts: what was asked -> "4 of 5".   notes: further lines.
    """
    edits = "\n".join(_row(edit) for edit in update.edits)
    asked = "\n".join(f"| {kind} | {share} |" for kind, share in counts.items())
    sizes = ", ".join(
        f"{part} of layer {layer}: {norm:.3g}"
        for part in ("mlp", "attn")
        for layer, norm in update.norms(part).items()
    )
    settings = tomlkit.dumps({type(editor).__name__: to_table(editor)}).strip()
    before = "\n".join(f"- {note}" for note in notes)
    return f"""---
base_model: {json.dumps(lm.name)}
library_name: transformers
tags:
- knowledge-editing
---

# {lm.name}, edited

{outcome}

## What was edited

| prompt | before | after |
|---|---|---|
{edits}

| asked after the edit | ideal |
|---|---|
{asked}

What was not asked may have changed too.

## By what

{update.editor}, acelib {versions()["acelib"]}. Changed weights, Frobenius norms: {sizes or "none"}.
{before}

```toml
{settings}
```

## How to undo it

The model before is `{lm.name}` (fingerprint `{lm.fingerprint}`): load that. The change alone is
`{UPDATE.as_posix()}`; it is written and taken back, to the bit, by

```python
from acelib.model.loading import load
from acelib.model.update import Update, applied

lm = load({lm.name!r})
with applied(lm, Update.load("{UPDATE.as_posix()}", lm)):
    ...  # this model
# the model before
```
"""


def _row(edit: Edit) -> str:
    cells = (edit.text, edit.target_true or "not known", edit.target_new)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
