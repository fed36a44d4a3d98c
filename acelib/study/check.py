"""Check cells: a table just measured against the one kept in ``results/checks/<name>.json``.

A check prints one stable line, which nbval compares; the tolerance lives here, not in luck. What
chapters hand over to the page of claims is kept in ``results/claims/<chapter>.json``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, is_dataclass
from math import inf, isnan
from pathlib import Path

import pandas as pd

from ..files import replacing
from ..provenance import ROOT
from .parameters import chapter_of, defaults, differing

#: Environment variable; at "1", references that are missing or differ are written anew.
UPDATE = "ACELIB_UPDATE_REFERENCES"


def assert_table(
    df: pd.DataFrame,
    reference: str | Path,
    rtol: float = 1e-6,
    atol: float | Sequence[float] = 0.0,
    update: bool = False,
) -> None:
    """Print "OK: name, N values" if all cells agree: |found - expected| <= atol + rtol |expected|.

    Numbers, also those in a ``Mean`` or a list, are compared so (to ten digits at most), nan equals
    nan; text, labels and order exactly. In a notebook whose parameters are not those that the
    reference was measured with, nothing is compared, and it prints "skipped: name, other ...".
    reference: "03_ace_metrics", a name that begins with the chapter's, or a path to a .json file;
    a name that ends in "_claims" is what a chapter hands over.   atol: one for all cells, or one
    per row.   update: write a reference that is missing or differs, as ``UPDATE`` does.
    Raises AssertionError naming the worst cell; FileNotFoundError without a reference; ValueError
    for a cell that is neither number nor text.
    """
    path, name = reference_file(reference), Path(reference).stem
    kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
    update = update or os.environ.get(UPDATE) == "1"
    # 1. Are these the parameters that the reference was, or will be, measured with?
    chapter = chapter_of(str(reference)) if path.is_relative_to(ROOT / "results") else ""
    now = defaults(chapter) if chapter else {}
    changed = differing(_notebook(now), now if update else kept.get("parameters", now))
    if changed:
        print(f"skipped: {name}, other {', '.join(changed)}")
        return
    if not kept and not update:
        raise FileNotFoundError(
            f"no reference {name!r} to compare with; run with {UPDATE}=1 to write it ({path})"
        )
    # 2. Compare.
    rows = [
        [_plain(label), _plain(values)]
        for label, values in zip(df.index, df.itertuples(index=False, name=None), strict=True)
    ]
    found = {"columns": _plain(list(df.columns)), "rows": rows}
    # a reference that is written is written whenever it differs at all
    within = (1e-9, 0.0) if update else (rtol, atol)
    fault = _fault(found, kept, *within) if kept else "missing"
    if fault and not update:
        raise AssertionError(f"{name}: {fault}")
    if fault or (update and kept.get("parameters", {}) != now):
        _write(path, now, found)
    print(f"OK: {name}, {df.size} values")


def reference_file(name: str | Path) -> Path:
    """The file of a reference: "03_ace_claims" is results/claims/03_ace.json, others are checks."""
    if str(name).endswith(".json"):
        return Path(name)
    if str(name).endswith("_claims"):
        return ROOT / "results" / "claims" / f"{str(name).removesuffix('_claims')}.json"
    return ROOT / "results" / "checks" / f"{name}.json"


def _notebook(otherwise: Mapping[str, object]) -> Mapping[str, object]:
    """The variables of the notebook that runs, whoever runs it; ``otherwise`` outside of one."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell.user_ns if shell else otherwise


def _write(path: Path, parameters: Mapping[str, object], found: Mapping) -> None:
    """A reference, one line per row, so that a difference can be read."""

    def text(value) -> str:
        return json.dumps(value, ensure_ascii=False)

    rows = ",\n  ".join(map(text, found["rows"]))
    head = f'"parameters": {text(parameters)},\n ' if parameters else ""
    with replacing(path) as part:
        part.write_text(
            f'{{{head}"columns": {text(found["columns"])},\n "rows": [\n  {rows}\n]}}\n',
            "utf-8",
            newline="\n",
        )


def _plain(value):
    """As JSON has it: nan and None are null, floats have ten digits."""
    value = astuple(value) if is_dataclass(value) and not isinstance(value, type) else value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    if value is None or value is pd.NA or (isinstance(value, float) and isnan(value)):
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
        for column, value, wanted in zip(found["columns"], values, wants, strict=True)
    ]
    excess = [_distance(value, wanted, rtol, more) for *_, value, wanted, more in cells]
    if not (wrong := sum(distance > 1 for distance in excess)):
        return ""
    row, column, value, wanted, more = cells[excess.index(max(excess))]
    return (
        f"{wrong} of {len(cells)} values differ; worst in row {row!r}, column {column!r}: "
        f"expected {wanted!r}, found {value!r}, "
        f"tolerance {more:g} + {rtol:g} |expected|"
    )


def _distance(found, expected, rtol: float, atol: float) -> float:
    """The difference, in tolerances."""
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = zip(found, expected, strict=True)
        return max((_distance(*pair, rtol, atol) for pair in pairs), default=0.0)
    if found == expected and isinstance(found, bool) == isinstance(expected, bool):
        return 0.0
    numbers = all(
        isinstance(value, (int, float)) and not isinstance(value, bool)
        for value in (found, expected)
    )
    tolerance = atol + rtol * abs(expected) if numbers else 0.0
    return abs(found - expected) / tolerance if tolerance else inf
