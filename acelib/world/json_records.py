"""Records of a file: a JSON list of objects, or a JSON object a line (JSONL)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..records import quoted


class Record(NamedTuple):
    """One object of a file."""

    place: str  #: "counterfact.json, record 3" (from 0), or "cases.jsonl, line 4" (from 1)
    values: dict[str, Any]


def records_of(path: str | Path) -> list[Record]:
    """The objects of a file, in order.

    Raises ValueError for a file that cannot be read or holds none, and, naming the line or the
    record, for what is no JSON object, or has a field twice.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # no UTF-8
        raise ValueError(f"{path} cannot be read: {error}") from None
    read = _listed if text.lstrip().startswith("[") else _lines
    found = list(read(path.name, text))
    if not found:
        raise ValueError(f"{path.name} holds no record")
    return found


def _listed(name: str, text: str) -> Iterator[Record]:
    """The objects of a JSON list."""
    for i, values in enumerate(_parsed(name, text)):
        yield Record(f"{name}, record {i}", _object(f"{name}, record {i}", values))


def _lines(name: str, text: str) -> Iterator[Record]:
    """The objects of lines; empty lines are none."""
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and lines[0][1].strip() == "{":
        raise ValueError(
            f"{name} must hold a list of JSON objects, or one object a line; it begins with an "
            "object of several lines"
        )
    for n, line in lines:
        place = f"{name}, line {n}"
        yield Record(place, _object(place, _parsed(place, line)))


def _object(place: str, values: object) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{place}: must be a JSON object, got {quoted(values)}")
    return values


def _parsed(place: str, text: str) -> Any:
    """What JSON says. Raises ValueError that names the place."""
    try:
        return json.loads(text, object_pairs_hook=fields_once)
    except RecursionError:
        raise ValueError(f"{place}: is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{place}: is no JSON: {error}") from None


def fields_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The fields of an object. Raises ValueError for one that is there twice."""
    name, n = next(iter(Counter(name for name, _ in pairs).most_common(1)), ("", 0))
    if n > 1:
        raise ValueError(f"one object has {n} fields {quoted(name)}")
    return dict(pairs)
