"""The claims of one chapter as a table: what is claimed, published, measured, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from . import claims
from .stats import Mean

#: units of values that are shown to one decimal place; others have two
COARSE = ("points", "%", "neurons")


def claims_table(
    values: Mapping[tuple[str, str], Mean], first: int = 1, published: bool = False
) -> pd.DataFrame:
    """One row per claim, numbered from ``first``: claim, quantity, rule, then value and verdict by
    model.

    values: by (claim, model), as the chapter hands them over; ``claims.with_exact_intervals`` is
    taken here.   published: whether the paper's values stand beside.
    Raises ValueError for an unknown claim.
    """
    known, values = claims.claims_list(), claims.with_exact_intervals(values)
    verdicts = claims.verdicts(values)
    rows: dict[str, dict] = {}
    for (claim, model), value in values.items():
        row = rows.setdefault(claim, _about(known.loc[claim], published))
        coarse = known.unit[claim] in COARSE
        row[model, "measured"] = value if coarse else f"{value:z.2f}"
        row[model, "verdict"] = verdicts[claim, model]
    return pd.DataFrame(dict(enumerate(rows.values(), first))).T


def _about(claim: pd.Series, published: bool) -> dict:
    """What the list of claims says of one."""
    row = {
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
