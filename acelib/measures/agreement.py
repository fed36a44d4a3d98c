"""How far annotators agree on categories.

Percent agreement, Cohen's kappa of two, Krippendorff's alpha of all (nominal).
For labels of one's own, as the ACE paper compares people with GPT-4o (Appendix K, Table 11).
"""

from __future__ import annotations

from itertools import combinations
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
from krippendorff import alpha
from sklearn.metrics import cohen_kappa_score

from ..study.stats import interval

COLUMNS = ("item", "annotator", "label")


def read_labels(path: str | Path) -> pd.DataFrame:
    """Items x annotators from a .csv with the columns item, annotator, label.

    None where an annotator has no label for an item. Blanks around a cell do not count, capitals
    do.
    Raises ValueError naming what is wrong, and the line, for a file that cannot be read, a missing
    column, an empty cell, a second label of an annotator for an item, fewer than two annotators, or
    no item that two have labelled.
    """
    try:
        rows = pd.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a .csv file: {error}") from None
    if not isinstance(rows.index, pd.RangeIndex):
        raise ValueError(f"{path} has lines of more cells than its header, {', '.join(rows)}")
    if missing := [name for name in COLUMNS if name not in rows]:
        raise ValueError(
            f"{path} has no column {missing[0]!r}; it has {', '.join(rows)}, "
            f"and needs {', '.join(COLUMNS)}"
        )
    rows = rows[list(COLUMNS)].apply(lambda column: column.astype(str).str.strip())
    for name in COLUMNS:
        if (empty := rows[name].isin(["", "nan"])).any():
            raise ValueError(f"{path}, line {empty.idxmax() + 2}: {name!r} is empty")
    if (again := rows.duplicated(["item", "annotator"])).any():
        of = rows.loc[again.idxmax()]
        raise ValueError(
            f"{path}, line {again.idxmax() + 2}: a second label by {of.annotator!r} "
            f"for item {of['item']!r}; one is allowed"
        )
    labels = rows.pivot(index="item", columns="annotator", values="label")
    labels = labels.reindex(index=rows["item"].unique(), columns=rows.annotator.unique())
    if labels.shape[1] < 2 or not (labels.notna().sum(axis=1) > 1).any():
        raise ValueError(
            f"{path}: {labels.shape[1]} annotators and no item that two of them have labelled; "
            "agreement needs at least one"
        )
    return labels.astype(object).where(labels.notna(), None)


def cohen_kappa(a: pd.Series, b: pd.Series) -> float:
    """(p_o - p_e) / (1 - p_e) of two annotators' labels of the same items.

    nan if chance alone would make them agree. Source: Cohen (1960); ``sklearn.metrics``.
    """
    if len({*a, *b}) < 2:
        return nan
    return float(cohen_kappa_score(a.astype(str), b.astype(str)))


def krippendorff_alpha(labels: pd.DataFrame) -> float:
    """1 - D_o / D_e over all pairs of labels of one item, (items, annotators) with gaps.

    nan if only one label occurs. Items with fewer than two labels do not count.
    Source: Krippendorff (2004), nominal data; the ``krippendorff`` package.
    """
    counts = labels.apply(lambda row: row.value_counts(), axis=1).fillna(0).astype(int)
    counts = counts[counts.sum(axis=1) > 1]  # items x labels
    counts = counts.loc[:, counts.any()]
    if counts.shape[1] < 2:
        return nan
    table = counts.to_numpy()
    return float(alpha(value_counts=table, level_of_measurement="nominal"))


def agreement(labels: pd.DataFrame) -> pd.DataFrame:
    """Pairs of annotators, then all: items labelled by both, percent agreement, kappa or alpha.

    labels: ``read_labels``. Percent agreement is a ``Mean`` over items; of all annotators, over the
    share of agreeing pairs of each item. Pairs without a common item are left out.
    """
    lines = {}
    for a, b in combinations(labels.columns, 2):
        both = labels[[a, b]].dropna()
        if len(both):
            lines[f"{a}, {b}"] = {
                "items": len(both),
                "agreement (%)": interval(100.0 * (both[a] == both[b])),
                "kappa": cohen_kappa(both[a], both[b]),
            }
    pairs = [[x == y for x, y in combinations(row.dropna(), 2)] for _, row in labels.iterrows()]
    shares = [100 * np.mean(same) for same in pairs if same]
    lines["all"] = {
        "items": len(shares),
        "agreement (%)": interval(shares),
        "kappa": nan,
        "alpha": krippendorff_alpha(labels),
    }
    return pd.DataFrame.from_dict(lines, orient="index")
