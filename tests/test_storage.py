"""storage: counts of what zeroing forgets, and comparisons of categories, against the plain computation."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from acelib.attribution.interventions import ablate
from acelib.attribution.scores import first_tokens, value_scores
from acelib.bench.tiny import make_tiny
from acelib.measures.storage import (
    category_scores,
    kinship,
    known_facts,
    over_categories,
    similarity,
    zeroing,
)
from acelib.model.answers import recall
from acelib.world.wording import single_hop_cloze
from acelib.world.world import CATEGORIES, load_world


@pytest.fixture(scope="module")
def scored():
    lm, world = make_tiny("qwen3"), load_world()
    facts = {category: list(world.facts_of(category))[:3] for category in ("NN", "CP", "ST")}
    return lm, world, facts, *category_scores(lm, world, facts, batch_size=2)


def test_scores_are_sums_over_questions_whatever_the_batch(scored):
    lm, world, facts, scores, neurons = scored
    ids, mask = lm.encode([single_hop_cloze(world, fact) for fact in facts["CP"]])
    plain = value_scores(lm, ids, mask, first_tokens(lm, [fact.object for fact in facts["CP"]]))
    torch.testing.assert_close(neurons["CP"], plain.sum(0).float())
    mine = (
        scores[(scores.category == "CP") & (scores.block == "ffn")]
        .groupby("layer")
        .importance.sum()
    )
    assert mine.to_numpy() == pytest.approx(plain.sum((0, 2)).numpy())


def test_a_model_that_knows_nothing_has_no_known_facts():
    assert set(known_facts(make_tiny("gpt2"), load_world(), 2).keys()) == set(CATEGORIES)


def test_similarity_is_shared_neurons_and_rank_correlation(scored):
    lm, _, _, scores, neurons = scored
    pairs = similarity(scores, neurons, 0.1).set_index(["a", "b"])
    assert list(pairs.index) == list(combinations(("NN", "CP", "ST"), 2))
    top = {
        name: set(score.flatten().topk(round(0.1 * score.numel())).indices.tolist())
        for name, score in neurons.items()
    }
    assert pairs.loc[("NN", "ST"), "shared"] == len(top["NN"] & top["ST"]) / len(top["NN"])
    sums = scores.groupby(["block", "category", "layer"])["importance"].sum()
    assert pairs.loc[("NN", "CP"), "attn"] == pytest.approx(
        spearmanr(sums["attn", "NN"], sums["attn", "CP"]).statistic
    )


def test_kinship_counts_choices_that_do_as_well():
    alike = {frozenset(pair): 1.0 for pair in combinations("ABC", 2)}
    pairs = pd.DataFrame(
        [dict(a=a, b=b, x=alike.get(frozenset((a, b)), 0.0)) for a, b in combinations("ABCDE", 2)]
    )
    assert kinship(pairs, "x", "ABC") == (1.0, 1 / 10)
    assert kinship(pairs, "x", "DE") == (0.0, 4 / 10)  # AB, AC, BC and DE itself
    for wrong in ("A", "ABCDE", ""):
        with pytest.raises(ValueError, match="allowed: 2 to 4"):
            kinship(pairs, "x", wrong)


def test_categories_are_resampled_not_pairs():
    rng = np.random.default_rng(3)
    pairs = pd.DataFrame(
        [dict(a=a, b=b, x=x) for (a, b), x in zip(combinations("ABCDE", 2), rng.normal(size=10))]
    )
    found, value = over_categories(pairs, "x"), pairs.set_index(["a", "b"]).x
    assert (
        found.mean == pytest.approx(pairs.x.mean())
        and found.low < found.mean < found.high
        and found.n == 5
    )
    draws = [["ABCDE"[i] for i in rng.integers(5, size=5)] for _ in range(4000)]
    plain = [
        np.mean(
            [value[tuple(sorted(pair))] for pair in combinations(drawn, 2) if len(set(pair)) == 2]
            or [np.nan]
        )
        for drawn in draws
    ]
    assert np.nanquantile(plain, [0.025, 0.975]) == pytest.approx([found.low, found.high], abs=0.1)
    lead = over_categories(pairs, "x", "ABC")
    assert (
        lead.mean == pytest.approx(kinship(pairs, "x", "ABC")[0])
        and lead.low < lead.mean < lead.high
    )
    assert over_categories(pairs.assign(x=2.0), "x") == over_categories(
        pairs.assign(x=2.0), "x", seed=5
    )
    with pytest.raises(ValueError, match="allowed: 2 to 4"):
        over_categories(pairs, "x", "A")


def test_zeroing_counts_lost_answers_and_restores(scored):
    lm, world, facts, _, neurons = scored
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    rows = zeroing(lm, world, neurons, facts, share=0.05, n_random=2, n_unrelated=4)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert rows.groupby(["category", "zeroed", "questions"]).size().to_dict() == {
        (category, kind, group): (3 if group == "related" else 4) * (1 if kind == "top 5 %" else 2)
        for category in facts
        for kind in ("random 5 %", "top 5 %")
        for group in ("related", "unrelated")
    }
    top = neurons["ST"].flatten().topk(round(0.05 * neurons["ST"].numel())).indices
    with ablate(lm, [divmod(int(i), lm.d_mlp) for i in top]):
        kept = recall(
            lm,
            [single_hop_cloze(world, fact) for fact in facts["ST"]],
            [fact.object for fact in facts["ST"]],
        ).correct
    mine = rows[
        (rows.category == "ST") & (rows.zeroed == "top 5 %") & (rows.questions == "related")
    ]
    assert mine["drop"].tolist() == [float(not ok) for ok in kept]
    with pytest.raises(ValueError, match=r"share 0 of the neurons is outside \(0, 1\]"):
        zeroing(lm, world, neurons, facts, share=0)
