"""Does the ACE paper agree with itself? Each check looks at published tables, and gives one
``Result`` for everything that it looked at.

Nothing is measured. A fault is an inconsistency of printed numbers, or of a sentence with them;
which side is wrong, no check can tell.
Its kind says how much it weighs: a "contradiction"; "suspect", unlikely unless something is not
said; "unit or rounding"; an "omission". ``findings`` names the tables and sentences that each check
is put to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import linprog


class Result(NamedTuple):
    """What one check says of one place."""

    where: str
    numbers: str
    fault: bool
    kind: str = "contradiction"  #: of the fault, if it is one


def layers_exist(named: Mapping[str, Sequence[int]], depth: int) -> list[Result]:
    """Layers that a model of ``depth`` layers has in neither numbering, from 0 or from 1."""
    return [
        Result(where, f"{_name(tuple(layers))}; the model has {depth} layers", max(layers) > depth)
        for where, layers in named.items()
    ]


def lists_without_repeat(ranked: pd.DataFrame) -> list[Result]:
    """Ranked lists (columns category, block, rank, layer) that name a layer twice."""
    lists = ranked.sort_values("rank").groupby(["block", "category"], sort=False)["layer"].agg(list)
    return [
        Result(f"{category} {block}", _name(tuple(some)), len(set(some)) < len(some))
        for (block, category), some in lists.items()
    ]


def lists_of_their_own(ranked: pd.DataFrame) -> list[Result]:
    """Categories whose FFN list is the attention list: index by index, or in another order."""
    lists = (
        ranked.sort_values("rank")
        .groupby(["category", "block"], sort=False)["layer"]
        .agg(list)
        .unstack()
    )

    def said(a: list, f: list) -> str:
        if a == f:
            return "the same list"
        return "the same layers in another order" if set(a) == set(f) else "different layers"

    return [
        Result(name, said(a, f), set(a) == set(f))
        for name, a, f in lists[["attn", "ffn"]].itertuples()
    ]


def lists_name(
    ranked: pd.DataFrame,
    block: str,
    layers: Iterable[int],
    categories: Iterable[str],
    top: int,
    wanted=True,
) -> list[Result]:
    """Layers that are not (or, not ``wanted``, are) among the ``top`` of some categories, as a
    sentence says.
    """
    ranks = (
        ranked[ranked.block == block]
        .drop_duplicates(["category", "layer"])
        .set_index(["category", "layer"])["rank"]
    )
    found = {
        (category, layer): ranks.get((category, layer))
        for category in categories
        for layer in layers
    }
    return [
        Result(
            f"{block} {layer}, {category}",
            f"rank {rank}" if rank else "not in the list",
            bool(rank and rank <= top) != wanted,
        )
        for (category, layer), rank in found.items()
    ]


def marks_follow(ranked: pd.DataFrame, before: pd.DataFrame) -> list[Result]:
    """Layers underlined as changed (column changed) although they stand where they stood in
    ``before``, or the other way round.
    """
    both = ranked.merge(before, on=["category", "block", "rank"], suffixes=("", "_before"))
    return [
        Result(
            f"{row.category} {row.block} rank {row.rank}",
            f"layer {row.layer_before}, then {row.layer}, "
            f"{'' if row.changed else 'not '}underlined",
            bool(row.changed) != (row.layer != row.layer_before),
        )
        for row in both.itertuples()
    ]


def changes_are_low(ranked: pd.DataFrame, before: pd.DataFrame) -> list[Result]:
    """Whether most changes of a ranked list are in its lower half, as stated; the middle rank
    counts for neither half.
    """
    both = ranked.merge(before, on=["category", "block", "rank"], suffixes=("", "_before"))
    ranks, middle = (
        sorted(both["rank"][both.layer != both.layer_before]),
        (both["rank"].max() + 1) / 2,
    )
    return [
        Result(
            "all changes",
            f"ranks {_name(tuple(ranks)) or 'none'}",
            2 * sum(rank > middle for rank in ranks) <= len(ranks) > 0,
        )
    ]


def averages_within(wide: pd.DataFrame, total: str) -> list[Result]:
    """Averages below the least or above the greatest of their columns: no weights give them."""
    parts = wide.drop(columns=total)
    return [
        Result(
            _name(row),
            f"{total} {wide[total][row]:g} of {parts.loc[row].min():g} to {parts.loc[row].max():g}",
            not parts.loc[row].min() <= wide[total][row] <= parts.loc[row].max(),
        )
        for row in wide.index
    ]


def averages_share_weights(wide: pd.DataFrame, total: str, rounding: float = 0.01) -> list[Result]:
    """Whether one set of weights (not negative, sum 1) gives all averages; by how much the best set
    misses at worst (a linear program).
    """
    parts = wide.drop(columns=total).to_numpy(float)
    one, miss = np.ones((len(wide), 1)), np.r_[np.zeros(parts.shape[1]), 1]
    best = linprog(
        miss,
        np.block([[parts, -one], [-parts, -one]]),
        np.r_[wide[total], -wide[total]],
        1 - miss[None],
        [1],
    )
    *weights, worst = best.x
    shares = ", ".join(f"{weight:.2f}" for weight in weights)
    said = f"weights {shares} miss one by {worst:.2f}; rounding explains {rounding}"
    return [Result(f"all {len(wide)} averages", said, bool(worst > rounding))]


def within(values: Mapping[str, float], low: float, high: float) -> list[Result]:
    """Values below or above what they can be, such as percentages, or what the text says that they
    are.
    """
    return [
        Result(where, f"{value:g}, allowed {low:g} to {high:g}", not low <= value <= high)
        for where, value in values.items()
    ]


def values_agree(a: pd.Series, b: pd.Series) -> list[Result]:
    """The same quantity in two places, by the labels that they share."""
    return [
        Result(_name(key), f"{a[key]} and {b[key]}", bool(a[key] != b[key]))
        for key in a.index.intersection(b.index)
    ]


def change_follows(stated: Mapping[str, tuple[str, float, float]]) -> list[Result]:
    """Changes stated in percent that the two values they are taken from do not give, rounded to as
    many digits; and what they do give.

    Of kind "unit or rounding" if the stated number is the change in points, or less than one in its
    last digit away.
    """
    rows = [
        (where, text, a, b, abs(b - a), 100 * abs(b - a) / a, len(text.partition(".")[2]))
        for where, (text, a, b) in stated.items()
    ]
    return [
        Result(
            where,
            f"stated {text} %; {a:g} to {b:g} is {percent:.{n + 1}f} %, {points:.{n}f} points",
            abs(percent - float(text)) > 0.5 * 10**-n + 1e-9,
            "unit or rounding"
            if min(abs(percent - float(text)), abs(points - float(text))) < 10**-n - 1e-9
            else "contradiction",
        )
        for where, text, a, b, points, percent, n in rows
    ]


def leads(wide: pd.DataFrame, name: str) -> list[Result]:
    """Columns in which the method called superior is not the highest."""
    return [
        Result(
            _name(column),
            f"{name} {of[name]:g}, {of.idxmax()} {of.max():g}",
            bool(of.max() > of[name]),
        )
        for column, of in wide.items()
    ]


def falls(before: pd.Series, after: pd.Series) -> list[Result]:
    """Values said to fall that do not, by the labels of ``after``."""
    return [
        Result(_name(key), f"{before[key]:g} to {after[key]:g}", bool(after[key] >= before[key]))
        for key in after.index
    ]


def stays(before: pd.Series, after: pd.Series, percent: float) -> list[Result]:
    """Values said to stay that change by at least ``percent``, by the labels of ``after``."""
    return [
        Result(
            _name(key),
            f"{before[key]:g} to {value:g}",
            bool(abs(value / before[key] - 1) >= percent / 100),
        )
        for key, value in after.items()
    ]


def has_entry(entries: Mapping[str, Sequence[str]], name: str) -> list[Result]:
    """Tables without the row, or sections without the statement, that a sentence refers to."""
    return [
        Result(where, f"there are {', '.join(some)}", name not in some)
        for where, some in entries.items()
    ]


def places_meet(named: Mapping[str, Sequence[int]]) -> list[Result]:
    """Pairs of lists of the same layers, from two sections, that have no layer in common."""
    return [
        Result(
            f"{a}; {b}",
            f"{_name(tuple(named[a]))}; {_name(tuple(named[b]))}",
            not set(named[a]) & set(named[b]),
        )
        for a, b in combinations(named, 2)
    ]


def _name(key) -> str:
    return ", ".join(map(str, key)) if isinstance(key, tuple) else str(key)
