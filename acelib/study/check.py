"""Check cells: a table just measured against the one kept in the repository, ``tests/reference/<name>.json``, a line a row.

A check prints one stable line, which nbval compares; the tolerance lives here, not in luck.
"""

from __future__ import annotations

import json
import os
from dataclasses import astuple, is_dataclass
from math import inf, isnan
from pathlib import Path
from typing import Sequence

import pandas as pd

from ..files import replacing
from ..provenance import ROOT

UPDATE = "ACELIB_UPDATE_REFERENCES"  #: environment variable; set to 1, references that are missing or differ are written anew


def assert_table(
    df: pd.DataFrame,
    reference: str | Path,
    rtol: float = 1e-6,
    atol: float | Sequence[float] = 0.0,
    update: bool = False,
) -> None:
    """Print "OK: name, N values" if every cell of ``df`` agrees with the reference: |found - expected| <= atol + rtol |expected|.

    Numbers, also those in a ``Mean`` or a list, are compared so (to ten digits at most), nan equals nan; text, labels and order exactly.
    reference: a name or a path to a .json file.   atol: one for all cells, or one a row.
    update: write a reference that is missing or differs, as ``UPDATE`` does.
    Raises AssertionError naming the worst cell; FileNotFoundError without a reference; ValueError for a cell neither number nor text.
    """
    path = (
        ROOT / "tests" / "reference" / f"{reference}.json"
        if not str(reference).endswith(".json")
        else Path(reference)
    )
    update = update or os.environ.get(UPDATE) == "1"
    if not path.exists() and not update:
        raise FileNotFoundError(
            f"no reference {path.stem!r} to compare with; run with {UPDATE}=1 to write it ({path})"
        )
    rows = [
        [_plain(label), _plain(values)]
        for label, values in zip(df.index, df.itertuples(index=False, name=None))
    ]
    found = {"columns": _plain(list(df.columns)), "rows": rows}
    within = (
        (1e-9, 0.0) if update else (rtol, atol)
    )  # a reference that is written is written whenever it differs at all
    fault = (
        _fault(found, json.loads(path.read_text("utf-8")), *within) if path.exists() else "missing"
    )
    if fault and not update:
        raise AssertionError(f"{path.stem}: {fault}")
    if fault:
        columns, *lines = [
            json.dumps(part, ensure_ascii=False) for part in (found["columns"], *rows)
        ]
        with replacing(path) as part:
            part.write_text(
                f'{{"columns": {columns},\n "rows": [\n  ' + ",\n  ".join(lines) + "\n]}\n",
                "utf-8",
                newline="\n",
            )
    print(f"OK: {path.stem}, {df.size} values")


def _plain(value):
    """As JSON has it: nan and None are null, floats have ten digits."""
    value = astuple(value) if is_dataclass(value) else value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    if value is None or value is pd.NA or isinstance(value, float) and isnan(value):
        return None
    if not isinstance(value, (str, bool, int, float)):
        raise ValueError(
            f"a reference cannot hold {value!r}; allowed: text, numbers, and lists of them"
        )
    return float(f"{value:.10g}") if isinstance(value, float) else value


def _fault(found: dict, expected: dict, rtol: float, atol: float | Sequence[float]) -> str:
    """What is wrong, in one sentence, or ""."""
    for kind, labels in dict(
        columns=lambda table: table["columns"], rows=lambda table: [row[0] for row in table["rows"]]
    ).items():
        if labels(found) != labels(expected):
            return f"the {kind} are {labels(found)}, expected {labels(expected)}"
    slack = [atol] * len(found["rows"]) if isinstance(atol, (int, float)) else list(atol)
    rows = zip(found["rows"], expected["rows"], slack, strict=True)
    cells = [
        (row, column, value, wanted, more)
        for (row, values), (_, wants), more in rows
        for column, value, wanted in zip(found["columns"], values, wants)
    ]
    excess = [_distance(value, wanted, rtol, more) for *_, value, wanted, more in cells]
    if not (wrong := sum(distance > 1 for distance in excess)):
        return ""
    row, column, value, wanted, more = cells[excess.index(max(excess))]
    return (
        f"{wrong} of {len(cells)} values differ; worst in row {row!r}, column {column!r}: expected {wanted!r}, found {value!r}, "
        f"tolerance {more:g} + {rtol:g} |expected|"
    )


def _distance(found, expected, rtol: float, atol: float) -> float:
    """The difference, in tolerances."""
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return max((_distance(*pair, rtol, atol) for pair in zip(found, expected)), default=0.0)
    if found == expected and isinstance(found, bool) == isinstance(expected, bool):
        return 0.0
    numbers = all(
        isinstance(value, (int, float)) and not isinstance(value, bool)
        for value in (found, expected)
    )
    tolerance = atol + rtol * abs(expected) if numbers else 0.0
    return abs(found - expected) / tolerance if tolerance else inf
