"""Cases by shape and by the kind of their facts, and how far labels of kinds agree: Appendices C
and K, Table 11.

The kind of a fact is the category of its relation, one of the paper's eight, or "other".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from scipy.stats import binomtest

from ..paper import published
from ..records import Case
from ..study.rows import Experiment
from ..study.stats import SHARE, interval
from ..world.world import CATEGORIES, World


def cases_of(experiment: Experiment) -> list[Case]:
    """The cases that every model of ``dataset.experiment`` is asked about."""
    return list(experiment.series[0].items.values())


def kind_of(world: World, relation: str) -> str:
    """The category of a relation in words; "other" if it has none."""
    return CATEGORIES.get(world.relations[relation].category or "", "other")


def cases_table(world: World, cases: Sequence[Case], rows: pd.DataFrame) -> pd.DataFrame:
    """One row per case: case_id, shape, kinds of the first and last fact, list of kinds of the
    edited facts, and for each model whether it knows the case.

    rows: of ``dataset.experiment``.
    """
    known = rows.pivot(index="item", columns="model", values="known")[list(rows.model.unique())]
    described = [
        dict(
            case_id=case.case_id,
            shape=f"{case.n_hops} hops, {case.n_edits} edit{'s' * (case.n_edits > 1)}",
            first=kind_of(world, case.relations[0]),
            last=kind_of(world, case.relations[-1]),
            edited=[kind_of(world, edit.relation) for edit in case.edits],
        )
        for case in cases
    ]
    facts = known.loc[[str(case.case_id) for case in cases]].reset_index(drop=True)
    return pd.concat([pd.DataFrame(described), facts], axis=1)


def known_numbers(cases: pd.DataFrame, models: Sequence[str], seed: int = 0) -> dict:
    """How many cases each model knows, their share, and the share of answers of no category."""

    def share(right: pd.Series):
        return interval(100 * right, seed, bounds=SHARE)

    return {
        "n": len(cases),
        "known": {m: {"cases": int(cases[m].sum()), "share": share(cases[m])} for m in models},
        "other": share(cases["last"] == "other"),
    }


def example(cases: Sequence[Case], n_hops: int = 3, n_edits: int = 2) -> Case:
    """The first case of so many hops and edits. Raises ValueError if there is none."""
    for case in cases:
        if (case.n_hops, case.n_edits) == (n_hops, n_edits):
            return case
    raise ValueError(f"none of {len(cases)} cases has {n_hops} hops and {n_edits} edits")


def case_table(case: Case) -> pd.DataFrame:
    """A case in words: its chains, edits, question and answers."""
    edits = [f"{edit.text} {edit.target_new} (was {edit.target_true})" for edit in case.edits]
    lines = {
        "chain": _chain(case.chain),
        "new chain": _chain(case.new_chain),
        "edits": "; ".join(edits),
        "question": case.questions[0],
        "answer": case.answer,
        "new answer": case.new_answer,
    }
    return pd.DataFrame({"": lines})


def _chain(triples: Sequence[tuple[str, str, str]]) -> str:
    steps = [f"({label}) {target}" for _, label, target in triples]
    return " → ".join([triples[0][0], *steps])


def stages(cases: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """The rows of ``cases_table`` once as "made", and once more for each model that knows them;
    column kept.
    """
    known = [cases[cases[model]].assign(kept=f"known to {model}") for model in models]
    return pd.concat([cases.assign(kept="made"), *known], ignore_index=True)


def counts_table(stages: pd.DataFrame) -> pd.DataFrame:
    """How many cases there are of each shape and kind of answer, and edits of each kind of fact, by
    ``kept``.
    """

    def count(column: str, rows: pd.DataFrame) -> pd.DataFrame:
        sizes = rows.groupby([column, "kept"], sort=False).size().unstack(fill_value=0)
        return sizes[list(stages.kept.unique())]

    tables = {
        "hops and edits": count("shape", stages).sort_index(),
        "kind of the answer": count("last", stages),
        "kind of an edited fact": count("edited", stages.explode("edited")),
    }
    return pd.concat(tables)


def categories_table(world: World) -> pd.DataFrame:
    """Relations, facts and different answers of the world by category, the rest last."""
    rows: dict[str, dict[str, int]] = {}
    for key, name in [*CATEGORIES.items(), (None, "other")]:
        facts = [f for f in world.facts if world.relations[f.relation].category == key]
        rows[name] = {
            "relations": sum(r.category == key for r in world.relations.values()),
            "facts": len(facts),
            "different answers": len({fact.object for fact in facts}),
        }
    return pd.DataFrame(rows).T


# ------------------------------------------------------------------------------------- Table 11


def overlap_intervals(overlap: Mapping[str, float], n: int) -> dict[str, tuple[float, float]]:
    """95 % intervals of published overlaps (percent) with ``n`` questions each: exact binomial."""
    bounds = {
        name: binomtest(round(value * n / 100), n).proportion_ci()
        for name, value in overlap.items()
    }
    return {name: (100 * low, 100 * high) for name, (low, high) in bounds.items()}


def overlap_table() -> pd.DataFrame:
    """Table 11 as published, with the interval of each overlap beside it."""
    n, overlap = n_labelled(), _overlap()
    bounds = overlap_intervals(overlap, n)
    said = {name: f"{low:.1f} to {high:.1f}" for name, (low, high) in bounds.items()}
    return pd.DataFrame(
        {
            ("published GPT-4o", "overlap (%)"): overlap,
            ("published GPT-4o", "questions"): (overlap * n / 100).round().astype(int),
            ("computed", "95 % interval (%)"): said,
        }
    )


def overlap_numbers() -> dict:
    """The range of the published overlaps, and where their intervals lie."""
    overlap = _overlap()
    lows, highs = zip(*overlap_intervals(overlap, n_labelled()).values(), strict=True)
    return {
        "least": f"{overlap.min():g}",
        "most": f"{overlap.max():g}",
        "n": n_labelled(),
        "meet": max(lows) <= min(highs),
        "low": min(lows),
        "high": max(highs),
    }


def n_labelled() -> int:
    """How many questions each person labelled, as published."""
    return int(published.quote("ace_69"))


def _overlap() -> pd.Series:
    return published.published(11).set_index("participant")["value"]


def rule_labels(cases: pd.DataFrame) -> pd.DataFrame:
    """Labels by two mechanical rules: the kind of a case's first fact, and that of its answer."""
    names = {"first": "kind of the first fact", "last": "kind of the answer"}
    return cases.set_index("case_id")[list(names)].rename(columns=names)
