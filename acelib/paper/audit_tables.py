"""What the audit found, as the tables and numbers of its page."""

from __future__ import annotations

import pandas as pd

WEIGHTS = ("contradiction", "suspect", "unit or rounding", "omission", "repeat")
HOW = "how checked (acelib.paper.checks)"
COLUMNS = ["source", "what", "weight", "found in", "numbers", "check"]


def verdict_numbers(results: pd.DataFrame) -> dict:
    """How many kinds of inconsistency were looked for and found, and in how many places by weight.

    results: of ``audit.results``.
    """
    faults = results[results.fault]
    places = faults.kind.value_counts()
    return {
        "kinds": results.what.nunique(),
        "found": faults.what.nunique(),
        "looked": len(results),
        "places": {weight: int(places.get(weight, 0)) for weight in WEIGHTS},
    }


def groups(results: pd.DataFrame) -> pd.DataFrame:
    """One line per kind of inconsistency and source: how many of its places have it ("found in"),
    their numbers, their weights, and the check.
    """
    lines = []
    for (what, source, check), part in results.groupby(["what", "source", "check"], sort=False):
        faults = part[part.fault]
        numbers = [f"{row.where}: {row.numbers}" for row in faults.itertuples()]
        lines.append(
            {
                "source": source,
                "what": what,
                "weight": ", ".join(faults.kind.unique()),
                "found in": f"{len(faults)} of {len(part)}",
                "numbers": "; ".join(numbers),
                "check": check,
            }
        )
    return pd.DataFrame(lines, columns=COLUMNS)


def faults_table(results: pd.DataFrame) -> pd.DataFrame:
    """The groups in which something was found."""
    found = groups(results)
    return found[found.numbers != ""].rename(columns={"check": HOW}).reset_index(drop=True)


def clean_table(results: pd.DataFrame) -> pd.DataFrame:
    """The groups of the kinds that were looked for and found nowhere."""
    table, faults = groups(results), results[results.fault]
    clean = table[~table.what.isin(faults.what)]
    return clean[["source", "what", "found in", "check"]].reset_index(drop=True)


def counts(results: pd.DataFrame) -> pd.DataFrame:
    """Places looked at and faults by kind and source, for the check."""
    return results.groupby(["what", "source"], sort=False).fault.agg(["size", "sum"])
