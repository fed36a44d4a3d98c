"""Where a model comes from: a record beside its weights, in ``acelib.json``.

It says which model an edited one was, so that settings found for that one are found again, and
whether a model learned from natural text or from the world of this project.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORD = "acelib.json"
RECIPE = "recipe.json"  #: of a model that was trained on the world
Ancestors = tuple[tuple[str, str], ...]  #: (name, fingerprint), the nearest first


def record_of(folder: Path) -> dict[str, Any]:
    """What the record of a folder says; nothing if there is none, or none that can be read."""
    try:
        found = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes the record of a folder."""
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def ancestors_of(folder: Path) -> Ancestors:
    """The models that an edited one was, before each edit."""
    found = record_of(folder).get("edited_from", [])
    pairs = found if isinstance(found, list) else []
    return tuple(
        (pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)
    )


def is_natural(folder: Path) -> bool:
    """Whether a model learned from natural text: no recipe of this project lies beside it."""
    return not (folder / RECIPE).exists() and record_of(folder).get("natural") is not False
