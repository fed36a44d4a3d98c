"""The claims of one chapter as a table, the verdict first, with a mark and a colour."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Mapping

import pandas as pd

from . import claims
from .drawing import VERDICTS
from .stats import Mean
from .tables import Table, style

#: units of values that are shown to one decimal place; others have two
COARSE = ("points", "%", "neurons")
#: Before the word of a verdict, so that colour never says it alone.
MARKS = {
    "holds": "✓",
    "holds in part": "(✓)",
    "disagree": "≠",
    "cannot tell": "?",
    "fails in part": "(✗)",
    "fails": "✗",
    "cannot be tested here": "–",
    "not tested yet": "–",
}


def claims_table(
    values: Mapping[tuple[str, str], Mean], first: int = 1, published: bool = False
) -> pd.DataFrame:
    """One row per claim, numbered from ``first``: the verdict of all models, claim, quantity, rule,
    then value and verdict by model.

    values: by (claim, model), as the chapter hands them over; ``claims.with_exact_intervals`` is
    taken here.   published: whether the paper's values stand beside.
    Raises ValueError for an unknown claim.
    """
    known, values = claims.claims_list(), claims.with_exact_intervals(values)
    verdicts = claims.verdicts(values)
    rows: dict[str, dict] = {}
    for (claim, model), value in values.items():
        row = rows.setdefault(claim, _about(claim, known.loc[claim], verdicts, published))
        coarse = known.unit[claim] in COARSE
        row[model, "measured"] = value if coarse else f"{value:z.2f}"
        row[model, "verdict"] = verdicts[claim, model]
    return pd.DataFrame(dict(enumerate(rows.values(), first))).T.fillna("–")


def _about(
    name: str, claim: pd.Series, verdicts: Mapping[tuple[str, str], str], published: bool
) -> dict:
    """The verdict of all models, and what the list of claims says of one."""
    row = {
        ("", "verdict"): claims.overall(
            {m: word for (c, m), word in verdicts.items() if c == name}
        ),
        ("", "claim"): claim.claim,
        ("", "quantity"): claim.quantity,
        ("", "rule"): f"{claim['rule']} {claim.unit}",
    }
    if published:
        row |= {
            ("published", name): claims.quoted(claim[column], name) or "–"
            for column, name in claims.PAPERS[claim.paper].items()
        }
    return row


def styled(table: pd.DataFrame, caption: str, columns: Collection | None = None) -> Table:
    """``tables.style`` of a table of claims: verdicts with their marks, on their colours.

    columns: of verdicts, alone or with what was measured ("fails: -3.0"); default: all whose last
    label begins with "verdict".
    """
    shown = style(table, caption)
    for column in table.columns:
        last = column[-1] if isinstance(column, tuple) else column
        if column in columns if columns else str(last).startswith("verdict"):
            shown.format(marked, subset=[column]).map(_ground, subset=[column])
    return shown


def marked(cell: str) -> str:
    """ "✓ holds": a verdict behind its mark, as HTML; any other text as it is."""
    mark = MARKS.get(cell.partition(":")[0])
    return html.escape(f"{mark} {cell}" if mark else cell)


def _ground(cell: str) -> str:
    """A pale ground in the verdict's colour: text is readable on it in light and in dark."""
    colour = VERDICTS.get(cell.partition(":")[0])
    return f"background-color: {colour}44; white-space: nowrap" if colour else ""


def with_verdict(
    verdicts: Mapping[tuple[str, str], str], model: str, verdict: str, among: Iterable[str] = ()
) -> list[str]:
    """Ids of the claims with this verdict on this model, perhaps only ``among`` some, in order."""
    among = set(among)
    return [
        claim
        for (claim, name), word in verdicts.items()
        if name == model and word == verdict and (not among or claim in among)
    ]
