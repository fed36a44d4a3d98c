"""Section 4.1: where kinds of knowledge are stored, and what zeroing the neurons of one kind does to the others (Table 1, Figure 2)."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from random import Random
from typing import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..attribution.interventions import ablate
from ..attribution.scores import first_tokens, layer_mass, top_neurons, value_scores
from ..model.answers import known_items, recall
from ..model.lm import LM
from ..records import Fact
from ..study.stats import Mean
from ..world.wording import single_hop, single_hop_cloze
from ..world.world import World

Progress = Callable[[int, int], object]
#: Categories whose knowledge the paper calls similar (Section 4.1); authors, sports teams and founders it calls dissimilar.
SIMILAR = ("NN", "CT", "LG", "CP", "LS")


def known_facts(lm: LM, world: World, n: int, seed: int = 0) -> dict[str, list[Fact]]:
    """Up to ``n`` facts of each of the eight categories that the model recalls in canonical wording, drawn with ``seed``.

    The paper keeps the single-hop questions that the model answers (App. C.1).
    """
    known = {}
    for category in world.categories():
        facts = list(world.facts_of(category))
        Random(f"{seed}/{category}").shuffle(facts)
        known[category] = known_items(lm, facts, partial(single_hop, world))[:n]
    return known


def category_scores(
    lm: LM,
    world: World,
    facts: Mapping[str, Sequence[Fact]],
    norm: str = "frozen",
    batch_size: int = 16,
    progress: Progress | None = None,
    prompt: Callable[[Fact], str] | None = None,
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Importance of every layer and every FFN neuron for each category: Eq. 9 at the last token of the single-hop prompts.

    prompt: the prompt of a fact; None: the canonical one.
    Returns: one row a question and layer with columns category, block ("attn", "ffn"), layer, importance (nats, sum over the layer's
    neurons); and by category the FFN neurons' scores summed over its questions, (l, m).   Source: ACE, Table 1.
    """
    rows, neurons, done, total = [], {}, 0, sum(map(len, facts.values()))
    for category, asked in facts.items():
        neurons[category] = torch.zeros(lm.n_layers, lm.d_mlp)
        for start in range(0, len(asked), batch_size):
            part = asked[start : start + batch_size]
            ids, mask = lm.encode(
                [prompt(fact) if prompt else single_hop_cloze(world, fact) for fact in part]
            )
            targets = first_tokens(lm, [fact.object for fact in part])
            for block in ("attn", "ffn"):
                scores = value_scores(lm, ids, mask, targets, of=block, norm=norm)
                rows += [
                    dict(category=category, block=block, layer=layer, importance=value)
                    for by_layer in layer_mass(scores).tolist()
                    for layer, value in enumerate(by_layer)
                ]
            neurons[category] += scores.sum(0).float().cpu()
            done += len(part)
            if progress:
                progress(done, total)
    return pd.DataFrame(rows), neurons


def similarity(
    scores: pd.DataFrame, neurons: Mapping[str, Tensor], share: float = 0.01
) -> pd.DataFrame:
    """How alike two categories are, by layers and by neurons.

    scores, neurons: from ``category_scores``.   share: of all FFN neurons, those of greatest score.
    Returns: one row a pair: a, b; attn, ffn: rank correlation of the layers' importances; shared: share of top neurons in common, from 0
    to 1 (unrelated categories: ``share``).   Raises ValueError for a share outside (0, 1].
    """
    best = {
        name: {neuron[:2] for neuron in top_neurons(score, _count(share, score.numel()))}
        for name, score in neurons.items()
    }
    layers = scores.groupby(["block", "category", "layer"])["importance"].sum().unstack()
    by = {block: layers.loc[block].T.corr("spearman") for block in ("attn", "ffn")}
    return pd.DataFrame(
        [
            dict(
                a=a,
                b=b,
                attn=by["attn"].at[a, b],
                ffn=by["ffn"].at[a, b],
                shared=len(best[a] & best[b]) / len(best[a]),
            )
            for a, b in combinations(neurons, 2)
        ]
    )


def kinship(
    pairs: pd.DataFrame, measure: str, similar: Sequence[str] = SIMILAR
) -> tuple[float, float]:
    """Whether categories ``similar`` are more alike: mean of ``measure`` over their pairs minus that over pairs of one of them and another.

    pairs: ``similarity``.   Returns the difference, and p, one-sided: the share of all choices of as many categories whose difference is
    as great (exact permutation test).   Raises ValueError unless two to all but one of the categories are similar.
    """
    names, kin = _kin(pairs, similar)

    def lead(some: Sequence[str]) -> float:
        inside = pairs.a.isin(some).astype(int) + pairs.b.isin(some)
        return pairs[measure][inside == 2].mean() - pairs[measure][inside == 1].mean()

    found = lead(kin)
    choices = [lead(some) for some in combinations(names, len(kin))]
    return found, sum(other >= found - 1e-12 for other in choices) / len(choices)


def over_categories(
    pairs: pd.DataFrame,
    measure: str,
    similar: Sequence[str] | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Mean:
    """Mean of ``measure`` over pairs of categories, or the difference of ``kinship``, with the percentile interval of 9999 resamples of the
    *categories*, similar ones apart from the others: pairs share categories, so resampling pairs would give too narrow an interval.

    A category that is drawn k times counts k times in each of its pairs; a category is no pair with itself.   pairs: ``similarity``.
    n: categories. Raises ValueError as ``kinship``.   Source: Efron (1979).
    """
    names, kin = (
        _kin(pairs, similar)
        if similar is not None
        else (list(dict.fromkeys([*pairs.a, *pairs.b])), [])
    )
    strata, rng = (
        [part for part in (kin, [name for name in names if name not in kin]) if part],
        np.random.default_rng(seed),
    )
    draws = np.hstack(
        [rng.multinomial(len(part), np.full(len(part), 1 / len(part)), 9999) for part in strata]
    )
    counts = pd.DataFrame(
        np.vstack([np.ones_like(draws[:1]), draws]),
        columns=[name for part in strata for name in part],
    )
    weights, values = (
        counts[pairs.a].to_numpy() * counts[pairs.b].to_numpy(),
        pairs[measure].to_numpy(),
    )
    inside = (pairs.a.isin(kin).astype(int) + pairs.b.isin(kin)).to_numpy()
    mean = lambda chosen: weights[:, chosen] @ values[chosen] / weights[:, chosen].sum(1)
    with np.errstate(invalid="ignore"):  # a draw of one category only has no pair
        found = mean(inside == 2) - mean(inside == 1) if kin else mean(inside == 0)
    low, high = np.nanquantile(found[1:], [(1 - level) / 2, (1 + level) / 2])
    return Mean(float(found[0]), float(low), float(high), len(names))


def zeroing(
    lm: LM,
    world: World,
    neurons: Mapping[str, Tensor],
    facts: Mapping[str, Sequence[Fact]],
    share: float = 0.01,
    n_random: int = 3,
    n_unrelated: int = 60,
    seed: int = 0,
) -> pd.DataFrame:
    """What is forgotten when a ``share`` of all FFN neurons is zeroed: the category's highest scoring ones, or random ones.

    neurons: scores (l, m) by category.   facts: questions by category that the model answers and that gave no score.
    n_random: random draws.   n_unrelated: questions of the other categories, the same for both.
    Returns: one row a question and intervention: category, zeroed, questions ("related", "unrelated"), prompt, drop (1 if the answer is
    lost).   Raises ValueError for a share outside (0, 1].   Source: ACE, Figure 2.
    """
    n, rows, percent = _count(share, lm.n_layers * lm.d_mlp), [], f"{100 * share:g} %"
    for category, scores in neurons.items():
        rng = Random(f"{seed}/{category}")
        pool = [fact for other, some in facts.items() if other != category for fact in some]
        asked = {
            "related": list(facts[category]),
            "unrelated": rng.sample(pool, min(n_unrelated, len(pool))),
        }
        flat = [
            (group, single_hop_cloze(world, fact), fact.object)
            for group, some in asked.items()
            for fact in some
        ]
        every = [(layer, k) for layer in range(lm.n_layers) for k in range(lm.d_mlp)]
        draws = [(f"random {percent}", rng.sample(every, n)) for _ in range(n_random)]
        for zeroed, chosen in [(f"top {percent}", top_neurons(scores, n)), *draws]:
            with ablate(lm, chosen):
                kept = recall(
                    lm, [prompt for _, prompt, _ in flat], [answer for *_, answer in flat]
                ).correct
            rows += [
                dict(
                    category=category,
                    zeroed=zeroed,
                    questions=group,
                    prompt=prompt,
                    drop=float(not ok),
                )
                for (group, prompt, _), ok in zip(flat, kept)
            ]
    return pd.DataFrame(rows)


def _kin(pairs: pd.DataFrame, similar: Sequence[str]) -> tuple[list[str], list[str]]:
    """All categories, and the similar ones among them."""
    names = list(dict.fromkeys([*pairs.a, *pairs.b]))
    kin = [name for name in names if name in set(similar)]
    if not 2 <= len(kin) < len(names):
        raise ValueError(
            f"{len(kin)} of the {len(names)} categories are called similar; allowed: 2 to {len(names) - 1}"
        )
    return names, kin


def _count(share: float, n: int) -> int:
    if not 0 < share <= 1:
        raise ValueError(f"share {share} of the neurons is outside (0, 1]")
    return max(1, round(share * n))
