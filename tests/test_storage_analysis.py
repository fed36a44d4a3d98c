"""storage_analysis: comparisons of categories and claims, on rows that are made up."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from acelib.measures import storage_analysis as analysis
from acelib.measures.storage import Parts, Question
from acelib.measures.storage_analysis import kinship, over_categories, similarity
from acelib.study import sentences
from acelib.world.world import CATEGORIES, load_world

LAYERS, NAMES = range(4), tuple(CATEGORIES)


@pytest.fixture(scope="module")
def made():
    """Rows of two models: importances, neurons and what zeroing them lost."""
    rng, scores, neurons, lost = np.random.default_rng(0), [], [], []
    for model in ("one", "two"):
        for name in NAMES:
            for block in ("attn", "ffn"):
                scores += [
                    dict(model=model, category=name, block=block, layer=i, importance=rng.random())
                    for i in LAYERS
                    for _ in range(2)
                ]
            neurons += [
                dict(model=model, category=name, layer=i, neurons=rng.permutation(6)[:2].tolist())
                for i in LAYERS
            ]
            for zeroed, questions, i in (
                (zeroed, questions, i)
                for zeroed in ("top 5 %", "random 5 %", "random 5 %")
                for questions in ("related", "unrelated")
                for i in range(4)
            ):
                drop = int(zeroed == "top 5 %" and questions == "related" and i < 3)
                labels = dict(model=model, category=name, zeroed=zeroed, questions=questions)
                lost.append(labels | dict(prompt=f"{name} {i}", drop=drop))
    return pd.DataFrame(scores), pd.DataFrame(neurons), pd.DataFrame(lost)


def test_similarity_is_shared_neurons_and_rank_correlation(made):
    scores, neurons, _ = made
    pairs = similarity(scores, neurons)
    assert len(pairs) == 2 * 28 and list(pairs.columns) == [
        "a",
        "b",
        "attn",
        "ffn",
        "shared",
        "model",
    ]
    pair = pairs[pairs.model == "two"].set_index(["a", "b"]).loc["NN", "ST"]
    mine = neurons[neurons.model == "two"].set_index(["category", "layer"]).neurons
    common = sum(len({*mine["NN", i]} & {*mine["ST", i]}) for i in LAYERS)
    assert pair.shared == common / 8
    sums = scores[scores.model == "two"].groupby(["block", "category", "layer"]).importance.sum()
    assert pair.attn == pytest.approx(spearmanr(sums["attn", "NN"], sums["attn", "ST"]).statistic)


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
    names = combinations("ABCDE", 2)
    pairs = pd.DataFrame(
        [dict(a=a, b=b, x=x) for (a, b), x in zip(names, rng.normal(size=10), strict=True)]
    )
    mean, value = over_categories(pairs, "x"), pairs.set_index(["a", "b"]).x
    assert mean.mean == pytest.approx(pairs.x.mean())
    assert mean.low < mean.mean < mean.high and mean.n == 5
    draws = [["ABCDE"[i] for i in rng.integers(5, size=5)] for _ in range(4000)]
    plain = [
        np.mean(
            [value[tuple(sorted(pair))] for pair in combinations(drawn, 2) if len(set(pair)) == 2]
            or [np.nan]
        )
        for drawn in draws
    ]
    assert np.nanquantile(plain, [0.025, 0.975]) == pytest.approx([mean.low, mean.high], abs=0.1)
    lead = over_categories(pairs, "x", "ABC")
    assert lead.mean == pytest.approx(kinship(pairs, "x", "ABC")[0])
    assert lead.low < lead.mean < lead.high
    constant = pairs.assign(x=2.0)
    assert over_categories(constant, "x") == over_categories(constant, "x", seed=5)
    with pytest.raises(ValueError, match="allowed: 2 to 4"):
        over_categories(pairs, "x", "A")


def test_doubtful_published_lists_are_marked(made):
    table = analysis.marked_layers(made[0])["published GPT-J"].astype(str)
    for (category, block), layers in table.iterrows():
        plain = [layer.rstrip("*†") for layer in layers]
        named = [layer for layer in plain if layer != "<NA>"]
        for layer, bare in zip(layers, plain, strict=True):
            assert ("*" in layer) == (bare != "<NA>" and named.count(bare) > 1)
        attention = [layer.rstrip("*") for layer in table.loc[(category, "attention")]]
        assert ("†" in layers.iloc[0]) == (block == "FFN" and plain == attention)
    assert (table.map(lambda layer: "†" in layer)).any(axis=None)


def test_points_are_means_over_draws_and_claims_compare_them(made):
    scores, neurons, lost = made
    points = analysis.points_lost(lost)
    assert len(points) == 2 * 8 * 2 * 2 * 4 and set(points["drop"]) == {0.0, 100.0}
    drops = analysis.drops_table(points)
    assert drops.loc[("related", "top 5 %"), "one"].mean == 75
    assert drops.loc[("related, the four of Figure 2", "top 5 %"), "two"].n == 16
    values = analysis.claim_values(points, similarity(scores, neurons), 0.05, seed=0)
    assert values["zeroing_related", "one"].mean == 75
    assert values["zeroing_random", "one"].mean == 0
    assert values["zeroing_specific", "two"].mean == 75 and values["zeroing_specific", "two"].n == 8
    assert len(values) == 10


def test_every_sentence_has_its_numbers(made):
    scores, neurons, lost = made
    pairs, points = similarity(scores, neurons), analysis.points_lost(lost)
    values = analysis.claim_values(points, pairs, 0.05, seed=0)
    numbers = analysis.verdict_numbers(values, analysis.drops_table(points), 0.05)
    text = sentences.Text("01_storage")
    verdict = text.render("verdict", **numbers)
    assert verdict.startswith("**Partly.**\nOn one, zeroing the top 5 % of the neurons of a cat")
    assert "loses 75 [" in verdict and "points of its own questions" in text.render(
        "drops_found", **numbers
    )
    assert "of the 5 claims tested here, " in verdict
    assert "(the paper" not in text.render("random", **numbers)  # nothing is published of "one"
    layers = text.render("layers", **analysis.layer_numbers(scores))
    assert layers.count("the FFN layers that come first are") == 2
    assert "(FFN layers, p = " in text.render("alike", **analysis.kinship_numbers(pairs))
    zeroed = text.render("zeroed", **analysis.category_numbers(points, load_world(), 0.05))
    assert f"in {', '.join(CATEGORIES.values())}, and at most one in ten in no category" in zeroed


def test_published_drops_stand_for_the_models_of_the_same_architecture():
    drops = analysis.published_drops(0.01)
    assert list(drops) == ["gptj-mini", "qwen3-mini"]
    assert drops["gptj-mini"] == {"top 1 %": 90, "random 1 %": 9.47}


def test_questions_are_counted_by_category():
    some = [Question("NN", str(i), "x") for i in range(3)]
    table = analysis.question_counts({"one": Parts({"NN": some}, {"NN": some[:1]})})
    assert table.loc[("one", "located with"), "nationality"] == 3
    assert table.loc[("one", "judged on"), "nationality"] == 1


def test_nothing_lost_is_not_less_than_nothing(made):
    """The whole model answers all questions: an interval of a loss ends at zero."""
    none = analysis.points_lost(made[2].assign(drop=0.0))
    cells = analysis.drops_table(none).stack()
    assert all(cell.low == 0 < cell.high for cell in cells if cell.n > 1)
