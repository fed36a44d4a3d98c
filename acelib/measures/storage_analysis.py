"""Section 4.1: what follows from the rows of ``storage``: which layers matter, how alike two kinds
of knowledge are, what zeroing neurons costs, and the five claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from ..paper import published
from ..study import claims, stats, tables
from ..study.stats import Mean
from ..study.verdicts import with_verdict
from ..world.world import CATEGORIES, World
from .storage import Parts

#: Categories whose knowledge the paper calls similar (Section 4.1); authors, sports teams and
#: founders it calls dissimilar.
SIMILAR = ("NN", "CT", "LG", "CP", "LS")
#: The categories that Figure 2 shows.
SHOWN = ("NN", "CT", "CP", "LG")
#: Ways in which two categories may be alike, and what they are called.
MEASURES = {"attn": "attention layers", "ffn": "FFN layers", "shared": "top neurons in common"}
#: Published accuracy lost in Figure 2, top and random neurons, by the model that stands for it.
QUOTED = {"gptj-mini": ("ace_11", "ace_13"), "qwen3-mini": ("ace_12", "ace_14")}
#: Resamples of categories behind an interval.
RESAMPLES = 9999


def question_counts(parts: Mapping[str, Parts]) -> pd.DataFrame:
    """Numbers of located and judged questions, (model, part) x category.   parts: by model."""
    rows = {
        (model, name): {CATEGORIES[category]: len(some) for category, some in questions.items()}
        for model, (located, judged) in parts.items()
        for name, questions in (("located with", located), ("judged on", judged))
    }
    return pd.DataFrame(rows).T


# ---------------------------------------------------------------- layers


def marked_layers(scores: pd.DataFrame) -> pd.DataFrame:
    """Table 1 (``tables.layers_table``) with doubtful published lists marked: "*" for a layer that
    is named twice, "†" in an FFN list that is the attention list index by index.

    scores: rows of ``storage.importances``.
    """
    table = tables.layers_table(scores).astype(object)
    lists = table["published GPT-J"].copy()
    for (category, block), layers in lists.iterrows():
        twice = layers.duplicated(keep=False) & layers.notna()
        copied = block == "FFN" and layers.equals(lists.loc[(category, "attention")])
        marks = twice.map({True: "*", False: ""}) + "†" * int(copied)
        marked = [
            layer if pd.isna(layer) else f"{layer}{mark}"
            for layer, mark in zip(layers, marks, strict=True)
        ]
        table.loc[[(category, block)], "published GPT-J"] = [marked]
    return table


def first_layers(scores: pd.DataFrame) -> pd.Series:
    """The layer of greatest summed importance by (model, block, category)."""
    sums = scores.groupby(["model", "block", "category", "layer"])["importance"].sum().unstack()
    return sums.idxmax(axis=1)


# ---------------------------------------------------------------- how alike two categories are


def similarity(scores: pd.DataFrame, neurons: pd.DataFrame) -> pd.DataFrame:
    """How alike two categories are, by layers and by neurons, one row per model and pair.

    scores, neurons: rows of ``storage.importances`` and ``storage.neurons``.
    Returns: model; a, b; attn, ffn: rank correlation of the layers' importances; shared: share of
    top neurons in common, from 0 to 1 (unrelated categories: the share of neurons that are taken).
    """
    rows = []
    for model, of_model in neurons.groupby("model", sort=False):
        best = {
            category: {(r.layer, index) for r in some.itertuples() for index in r.neurons}
            for category, some in of_model.groupby("category", sort=False)
        }
        mine = scores[scores.model == model]
        sums = mine.groupby(["block", "category", "layer"])["importance"].sum().unstack()
        alike = {block: sums.loc[block].T.corr("spearman") for block in ("attn", "ffn")}
        rows += [
            dict(
                a=a,
                b=b,
                attn=alike["attn"].at[a, b],
                ffn=alike["ffn"].at[a, b],
                shared=len(best[a] & best[b]) / len(best[a]),
                model=model,
            )
            for a, b in combinations(best, 2)
        ]
    return pd.DataFrame(rows)


def kinship(
    pairs: pd.DataFrame, measure: str, similar: Sequence[str] = SIMILAR
) -> tuple[float, float]:
    """Whether categories ``similar`` are more alike: mean of ``measure`` over their pairs minus
    that over pairs of one of them and another.

    pairs: ``similarity`` of one model.   Returns the difference, and p, one-sided: the share of all
    choices of as many categories whose difference is as great (exact permutation test).
    Raises ValueError unless two to all but one of the categories are similar.
    """
    names, kin = _kin(pairs, similar)

    def lead(some: Sequence[str]) -> float:
        inside = _inside(pairs, some)
        return pairs[measure][inside == 2].mean() - pairs[measure][inside == 1].mean()

    difference = lead(kin)
    choices = [lead(some) for some in combinations(names, len(kin))]
    return difference, sum(other >= difference - 1e-12 for other in choices) / len(choices)


def over_categories(
    pairs: pd.DataFrame,
    measure: str,
    similar: Sequence[str] | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Mean:
    """Mean of ``measure`` over pairs of categories, or the difference of ``kinship``, with the
    percentile interval of 9999 resamples of the *categories*, similar ones apart from the others:
    pairs share categories, so resampling pairs would give too narrow an interval.

    A category that is drawn k times counts k times in each of its pairs; a category is no pair with
    itself.   pairs: ``similarity`` of one model.   n: categories. Raises ValueError as ``kinship``.
    Source: Efron (1979).
    """
    # 1. Draw categories, in each stratum as many as it has; the first row is all of them, once.
    if similar is not None:
        names, kin = _kin(pairs, similar)
    else:
        names, kin = list(dict.fromkeys([*pairs.a, *pairs.b])), []
    strata = [part for part in (kin, [name for name in names if name not in kin]) if part]
    rng = np.random.default_rng(seed)
    draws = np.hstack(
        [
            rng.multinomial(len(part), np.full(len(part), 1 / len(part)), RESAMPLES)
            for part in strata
        ]
    )
    counts = pd.DataFrame(
        np.vstack([np.ones_like(draws[:1]), draws]),
        columns=[name for part in strata for name in part],
    )
    # 2. A pair counts as often as both of its categories were drawn.
    weights = counts[pairs.a].to_numpy() * counts[pairs.b].to_numpy()
    values, inside = pairs[measure].to_numpy(), _inside(pairs, kin).to_numpy()

    def mean(chosen: np.ndarray) -> np.ndarray:
        return weights[:, chosen] @ values[chosen] / weights[:, chosen].sum(1)

    # 3. A draw of one category only has no pair: it is nan and left out.
    with np.errstate(invalid="ignore"):
        means = mean(inside == 2) - mean(inside == 1) if kin else mean(inside == 0)
    low, high = np.nanquantile(means[1:], [(1 - level) / 2, (1 + level) / 2])
    return Mean(float(means[0]), float(low), float(high), len(names))


def kinships(pairs: pd.DataFrame) -> dict[tuple[str, str], tuple[float, float]]:
    """``kinship`` by (model, measure)."""
    return {
        (model, measure): kinship(mine, measure)
        for model, mine in pairs.groupby("model", sort=False)
        for measure in MEASURES
    }


def similarity_table(pairs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean similarity in percent, measure x (model, group of pairs), and p of ``kinship``."""
    kin, chance = _inside(pairs, SIMILAR), kinships(pairs)
    groups = {"all pairs": kin >= 0, "both similar": kin == 2, "similar and dissimilar": kin == 1}
    percent = pairs.assign(**{measure: 100 * pairs[measure] for measure in MEASURES})
    columns: dict[tuple[str, str], list] = {}
    for model in pairs.model.unique():
        for name, group in groups.items():
            some = percent[group & (pairs.model == model)]
            columns[model, name] = [over_categories(some, of, seed=seed) for of in MEASURES]
        columns[model, "p"] = [f"{chance[model, measure][1]:.3f}" for measure in MEASURES]
    return pd.DataFrame(columns, index=list(MEASURES.values()), dtype=object)


# ---------------------------------------------------------------- what zeroing costs


def published_drops(share: float) -> dict[str, dict[str, float]]:
    """Accuracy lost in the paper's Figure 2 (points), by the model that stands for it and by what
    is zeroed."""
    top, random = zeroed_names(share)
    return {
        model: {top: published.quote(hit), random: published.quote(miss)}
        for model, (hit, miss) in QUOTED.items()
    }


def zeroed_names(share: float) -> tuple[str, str]:
    """What rows of ``storage.zeroing`` call the top and the random neurons."""
    return f"top {100 * share:g} %", f"random {100 * share:g} %"


def points_lost(lost: pd.DataFrame) -> pd.DataFrame:
    """Accuracy lost on every question in percentage points, mean over random draws.

    lost: rows of ``storage.zeroing``.   Returns columns model, category, questions, zeroed, prompt,
    drop.
    """
    keys = ["model", "category", "questions", "zeroed", "prompt"]
    points = lost.assign(drop=100.0 * lost["drop"])
    return points.groupby(keys, sort=False)["drop"].mean().reset_index()


def drops_table(points: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy lost with intervals over questions, (questions, zeroed) x model; the last rows
    are of related questions of the four categories that the paper shows.

    points: ``points_lost``.
    """
    shown = points[points.category.isin(SHOWN) & (points.questions == "related")]
    groups = pd.concat([points, shown.assign(questions="related, the four of Figure 2")])
    means = groups.groupby(["questions", "zeroed", "model"], sort=False)["drop"].apply(_loss)
    return means.unstack()[list(points.model.unique())]


# ---------------------------------------------------------------- claims, and what the page says


def claim_values(
    points: pd.DataFrame, pairs: pd.DataFrame, share: float, seed: int
) -> dict[tuple[str, str], Mean]:
    """The values of takeaway 1 by (claim, model), from ``points_lost`` and ``similarity``."""
    top, random = zeroed_names(share)
    values: dict[tuple[str, str], Mean] = {}
    for model in points.model.unique():
        mine, alike = points[points.model == model], pairs[pairs.model == model]
        best = mine[mine.zeroed == top]
        by = best.groupby(["category", "questions"])["drop"].mean().unstack()
        lead = alike.assign(lead=alike.attn - alike.ffn)
        values |= {
            ("zeroing_related", model): _loss(best[best.questions == "related"]["drop"]),
            ("zeroing_random", model): _loss(mine[mine.zeroed == random]["drop"]),
            ("zeroing_specific", model): _points(by.related - by.unrelated),
            ("attention_is_shared", model): over_categories(lead, "lead", seed=seed),
            ("similar_is_near", model): over_categories(alike, "ffn", SIMILAR, seed),
        }
    return values


def verdict_numbers(values: Mapping[tuple[str, str], Mean], drops: pd.DataFrame, share: float):
    """Numbers of the sentences "verdict", "random" and "takeaway", by model.

    values: ``claim_values``; drops: ``drops_table``.
    """
    top, known, verdicts = zeroed_names(share)[0], claims.claims_list(), claims.verdicts(values)
    quoted, by_model = published_drops(share), {}
    for model in drops.columns:
        claimed = {
            word: [known.claim[claim] for claim in with_verdict(verdicts, model, word)]
            for word in claims.VERDICTS
        }
        by_model[model] = {
            "related": drops.loc[("related", top), model].mean,
            "unrelated": drops.loc[("unrelated", top), model].mean,
            "zeroing_random": values["zeroing_random", model],
            "zeroing_related": values["zeroing_related", model],
            "published": f"{quoted[model][top]:g}" if model in quoted else None,
            "claims": claimed,
            "n_claims": sum(map(len, claimed.values())),
        }
    return {"models": by_model, "percent": 100 * share}


def layer_numbers(scores: pd.DataFrame) -> dict:
    """Numbers of the sentence "layers", by model: the attention layer that comes first most often,
    in how many categories; the FFN layers that come first, and in which."""
    first, by_model = first_layers(scores), {}
    for model in scores.model.unique():
        attn, ffn = first[model, "attn"], first[model, "ffn"]
        layer = attn.mode()[0]
        by_model[model] = {
            "attn": layer,
            "n": int((attn == layer).sum()),
            "of": len(attn),
            "ffn": {at: _names(some.index) for at, some in ffn.groupby(ffn)},
        }
    return {"models": by_model}


def kinship_numbers(pairs: pd.DataFrame) -> dict:
    """Numbers of the sentence "alike", by model and measure: difference in points, and p."""
    chance = kinships(pairs)
    return {
        "models": {
            model: {
                title: {
                    "points": f"{100 * chance[model, measure][0]:+z.0f}",
                    "p": chance[model, measure][1],
                }
                for measure, title in MEASURES.items()
            }
            for model in pairs.model.unique()
        }
    }


def category_numbers(points: pd.DataFrame, world: World, share: float) -> dict:
    """Numbers of the sentence "zeroed", by model: categories that lose most and least, and the rank
    correlation of the loss with the number of different answers.

    points: ``points_lost``.
    """
    answers = pd.Series(
        {name: len({fact.object for fact in world.facts_of(name)}) for name in CATEGORIES}
    )
    mine = points[(points.zeroed == zeroed_names(share)[0]) & (points.questions == "related")]
    loss, by_model = mine.groupby(["model", "category"])["drop"].mean(), {}
    for model in points.model.unique():
        lost, sizes = loss[model], answers[loss[model].index]
        by_model[model] = {
            "most": _names(lost[lost > 50].index),
            "least": _names(lost[lost <= 10].index),
            "correlation": lost.corr(sizes, method="spearman"),
        }
    return {"models": by_model}


def _names(categories: Sequence[str]) -> str:
    """Categories in the paper's order, in words."""
    names = [name for category, name in CATEGORIES.items() if category in set(categories)]
    return ", ".join(names) or "no category"


def _loss(values: Sequence[float]) -> Mean:
    """Of questions that the whole model answers: none can be won, so no loss is below zero."""
    return stats.interval(values, bounds=stats.SHARE)


def _points(values: Sequence[float]) -> Mean:
    return stats.interval(values, bounds=stats.POINTS)


def _inside(pairs: pd.DataFrame, some: Sequence[str]) -> pd.Series:
    """How many categories of each pair are among ``some``."""
    return pairs.a.isin(some).astype(int) + pairs.b.isin(some)


def _kin(pairs: pd.DataFrame, similar: Sequence[str]) -> tuple[list[str], list[str]]:
    """All categories, and the similar ones among them."""
    names = list(dict.fromkeys([*pairs.a, *pairs.b]))
    kin = [name for name in names if name in set(similar)]
    if not 2 <= len(kin) < len(names):
        raise ValueError(
            f"{len(kin)} of the {len(names)} categories are called similar; "
            f"allowed: 2 to {len(names) - 1}"
        )
    return names, kin
