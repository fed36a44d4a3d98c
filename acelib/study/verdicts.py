"""The claims of one chapter: what a question is answered with, and a table of claims with the
verdict first, with a mark and a colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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


def answer(verdicts: Iterable[str]) -> str:
    """The first word of a chapter: "Yes", "No", "Partly" or "Cannot tell".

    verdicts: of all that the answer rests on, by claim and model or of both models. Yes: all hold.
    No: some fail and none holds. Partly: some hold, not all. Otherwise, or of none, one cannot
    tell. Raises ValueError for another word.
    """
    found = set(verdicts)
    if unknown := found - set(MARKS):
        raise ValueError(f"verdict {min(unknown)!r} is none of {', '.join(MARKS)}")
    if found == {"holds"}:
        return "Yes"
    if found & {"holds", "holds in part", "disagree"}:
        return "Partly"
    return "No" if found & {"fails", "fails in part"} else "Cannot tell"


def answer_of(values: Mapping[tuple[str, str], Mean], among: Iterable[str]) -> str:
    """``answer`` of the verdicts of some claims of a chapter, on all its models.

    values: by (claim, model), as the chapter hands them over.   among: ids of claims.
    Raises ValueError for an unknown claim.
    """
    among = set(among)
    said = claims.verdicts(values)
    return answer(word for (claim, _), word in said.items() if claim in among)


def seen(gap: Mean, rule: str = "> 0") -> str:
    """The verdict of a mean on a rule, for an answer that rests on no claim of the list."""
    return claims.verdict(rule, gap) if gap.n else "cannot tell"


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
        row[model, "measured"] = value if coarse else f"{value:.2f}"
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


def styled(table: pd.DataFrame, caption: str) -> Table:
    """``tables.style`` of a table of claims: verdicts with their marks, on their colours.

    Every column is marked whose last label is "verdict" or begins with it.
    """
    shown = style(table, caption)
    last = [column[-1] if isinstance(column, tuple) else column for column in table.columns]
    for column, name in zip(table.columns, last, strict=True):
        if str(name).startswith("verdict"):
            shown.format(marked, subset=[column]).map(_colours, subset=[column])
    return shown


def marked(verdict: str) -> str:
    """ "✓ holds": a verdict behind its mark; any other word as it is."""
    return f"{MARKS[verdict]} {verdict}" if verdict in MARKS else verdict


def _colours(verdict: str) -> str:
    """A pale ground, on which text is readable in light and in dark."""
    if verdict not in VERDICTS:
        return ""
    return f"background-color: {VERDICTS[verdict]}44; white-space: nowrap"


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
