"""What the rows of ``ripple`` say: shares of right answers, damaged facts, and the numbers of the
page's sentences.

All functions take the rows of ``ripple.experiment`` as ``numbered`` returns them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..study.rows import Experiment
from ..study.stats import SHARE, Mean, interval
from .ripple import CATEGORIES

NEAR = ("same subject", "same answer", "same relation", "the objects")
OUTCOMES = {  #: (must change, has changed) -> what the table says
    (True, True): "must change: changed",
    (True, False): "must change: did not",
    (False, False): "must stay: did not",
    (False, True): "must stay: changed",
}


def numbered(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with further columns: edit, its number in order of appearance; change, whether answers
    of the category must change; wrong, the number of questions that are answered wrong.
    """
    number = rows.groupby("model")["item"].transform(lambda items: pd.factorize(items)[0])
    return rows.assign(
        edit=number,
        category=pd.Categorical(rows.category, list(CATEGORIES)),
        change=rows.category.map(CATEGORIES),
        wrong=rows.asked - rows.right,
    )


def edits_table(experiment: Experiment) -> pd.DataFrame:
    """The edits of ``ripple.experiment``, by model and number: fact, old and new object."""
    edits: dict[str, Any] = {
        series.names["model"]: series.items.values() for series in experiment.series
    }
    return pd.DataFrame(
        {
            "model": model,
            "edit": i,
            "fact": edit.text,
            "old": edit.target_true,
            "new": edit.target_new,
        }
        for model, of in edits.items()
        for i, edit in enumerate(of)
    ).set_index(["model", "edit"])


def share(rows: pd.DataFrame, by: Sequence[str], of: str = "right") -> pd.Series:
    """Share of right (or wrong) answers in percent, by columns ``by``; nan without a question."""
    sums = rows.groupby(list(by), observed=False)[[of, "asked"]].sum()
    return 100 * (sums[of] / sums.asked)


def damage_counts(rows: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """Number of facts that must stay and did not, by columns ``by``."""
    stay = rows[~rows.change]
    return stay.groupby(list(by)).wrong.sum()


def ripple_table(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Share of right answers in percent by category, and the facts damaged by one edit: means over
    edits with their intervals.

    Returns (model, editor) x categories.
    """
    table = {}
    for name, part in rows.groupby(["model", "editor"], sort=False):
        shares = share(part, ["edit", "category"]).unstack()
        table[name] = {
            category: interval(shares[category], seed, bounds=SHARE) for category in shares
        }
        table[name]["damaged facts"] = interval(damage_counts(part, ["edit"]), seed)
    return pd.DataFrame(table, dtype=object).T


def questions_per_edit(rows: pd.DataFrame) -> dict[str, float]:
    """Number of questions per edit, a mean over edits, by model."""
    counts = rows.groupby(["model", "editor", "edit"], sort=False).asked.sum()
    return counts.groupby(["model", "editor"], sort=False).mean().groupby("model").first().to_dict()


def outcomes(rows: pd.DataFrame) -> pd.DataFrame:
    """Number of questions by outcome, (model, editor) x ``OUTCOMES``, means over edits.

    "Changed" of what must change means to the right answer.
    """
    sides = []
    for (change, changed), name in OUTCOMES.items():
        part = rows[rows.change == change]
        counts = part.groupby(["model", "editor", "edit"], sort=False)
        sides.append(counts["right" if change == changed else "wrong"].sum().rename(name))
    table = pd.concat(sides, axis=1).fillna(0.0)
    return table.groupby(["model", "editor"], sort=False).mean()


def most_damaged(rows: pd.DataFrame, n: int = 10) -> pd.DataFrame:
    """The facts of the ``n`` relations that are damaged most often, over all editors and models.

    Returns one row per question: model, editor, edit, relation (in words), damaged (a truth value).
    """
    stay = rows[~rows.change].assign(relation=rows.relation.str.replace("_", " "))
    worst = share(stay, ["relation"], "wrong").nlargest(n).index
    stay = stay[stay.relation.isin(worst)].reset_index(drop=True)
    sides = [
        stay.loc[stay.index.repeat(times)].assign(damaged=value)
        for value, times in ((False, stay.right), (True, stay.wrong))
    ]
    return pd.concat(sides).sort_index(kind="stable")[
        ["model", "editor", "edit", "relation", "damaged"]
    ]


def reached(rows: pd.DataFrame, seed: int = 0) -> dict[str, dict]:
    """The page's sentences about reach and damage, by model.

    asked: questions per edit; reach, damage: by editor, % of an edit's consequences that are
    reached, and damaged facts; best: who reaches most; gentlest, roughest: who damages fewest and
    most facts, of the editors that write the edit itself in at least half of the cases; never:
    categories of consequences that no editor's edit reaches.
    """
    result, questions = {}, questions_per_edit(rows)
    for model, part in rows.groupby("model", sort=False):
        consequences = part[part.change & (part.category != "the edit")]
        reach = _means(share(consequences, ["editor", "edit"]), part, seed, SHARE)
        most = share(consequences, ["editor", "category"]).groupby("category", sort=False).max()
        damage = _means(damage_counts(part, ["editor", "edit"]), part, seed)
        written = share(part[part.category == "the edit"], ["editor"])
        takes = [name for name in reach if written[name] >= 50] or list(reach)
        result[model] = {
            "asked": questions[model],
            "reach": reach,
            "damage": damage,
            "best": max(reach, key=lambda name: reach[name].mean),
            "never": list(most[most == 0].index),
            "gentlest": min(takes, key=lambda name: damage[name].mean),
            "roughest": max(takes, key=lambda name: damage[name].mean),
        }
    return result


def nearness(rows: pd.DataFrame, seed: int = 0) -> dict[str, Mean]:
    """By model, how much more often facts near the edit are damaged than far ones, in percentage
    points: means over editors, with intervals over edits.
    """
    stay = rows[~rows.change]
    stay = stay.assign(near=stay.category.isin(NEAR))
    damage = share(stay, ["model", "editor", "edit", "near"], "wrong").unstack()
    gaps = damage[True] - damage[False]
    return {
        model: interval(gaps[model].groupby("edit").mean(), seed) for model in rows.model.unique()
    }


def lead(rows: pd.DataFrame, a: str = "ACE", b: str = "PMET", seed: int = 0) -> dict:
    """Values of the claims by (claim, model): editor ``a`` minus ``b``, in percentage points.

    specificity_all_facts: of the facts that must stay; edits_propagate: of the compositions. Empty
    if one of the editors was not judged.
    """
    if not {a, b} <= set(rows.editor):
        return {}
    composed = rows.category.astype(str).str.startswith("composition")
    parts = {
        "specificity_all_facts": rows[~rows.change],
        "edits_propagate": rows[rows.change & composed],
    }
    shares = {
        claim: share(part, ["model", "edit", "editor"]).unstack("editor")
        for claim, part in parts.items()
    }
    return {
        (claim, model): interval((of.loc[model][a] - of.loc[model][b]).dropna(), seed)
        for claim, of in shares.items()
        for model in rows.model.unique()
    }


def _means(
    values: pd.Series, rows: pd.DataFrame, seed: int, bounds: tuple[float, float] | None = None
) -> Mapping[str, Mean]:
    """Means over edits of values by (editor, edit), in the order in which ``rows`` names editors.

    Edits without a value are left out.
    """
    return {
        name: interval(values[name].dropna(), seed, bounds=bounds) for name in rows.editor.unique()
    }
