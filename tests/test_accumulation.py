"""accumulation: each quantity equals its plain computation, one question and one neuron at a time."""

import numpy as np
import pytest
import torch

from acelib.attribution.interventions import ablate
from acelib.attribution.scores import (
    first_tokens,
    layer_scores,
    query_scores,
    top_neurons,
    value_scores,
)
from acelib.measures.accumulation import (
    Question,
    Scores,
    answered,
    by_layer,
    by_question,
    by_token,
    centre,
    meanings,
    readable,
    score,
    silence,
    without_readable,
)
from acelib.model.answers import recall
from acelib.model.states import Site, last, trace
from acelib.world.world import load_world

ASKED = [
    Question("Tim Duncan plays the sport of", "basketball", "France"),
    Question("The capital of France is", "Paris", "Hamlet"),
    Question("The author of Hamlet is", "William Shakespeare", "chess"),
]


def test_scores_are_those_of_each_question_alone(any_lm):
    found = score(any_lm, ASKED, n_top=7, batch_size=2)
    for i, question in enumerate(ASKED):
        ids, mask = any_lm.encode([question.prompt])
        target, between = (
            first_tokens(any_lm, [question.answer]),
            first_tokens(any_lm, [question.implicit]),
        )
        value = value_scores(any_lm, ids, mask, target)
        whole = [
            torch.stack(
                [layer_scores(any_lm, ids, mask, w, of, "whole")[0] for of in ("attn", "ffn")]
            )
            for w in (target, between)
        ]
        for got, wanted in zip(
            found, (value[0], query_scores(any_lm, ids, mask, value, 7)[0], *whole)
        ):
            torch.testing.assert_close(got[i], wanted.float(), rtol=1e-4, atol=1e-6)
    table = by_layer(found, 7)
    assert len(table) == 3 * 4 and (table.groupby("question").neurons.sum() == 7).all()
    np.testing.assert_allclose(table["query"], found.query.sum(-1).flatten(), rtol=1e-5)
    final = table[table.layer == 3]
    np.testing.assert_allclose(final.answer, found.answer.sum((1, 2)), rtol=1e-4)
    with pytest.raises(ValueError, match="no questions"):
        score(any_lm, [])


def test_what_is_gained_over_all_layers_is_the_model_s_own_log_probability(any_lm):
    """The increases of attention and FFN, layer after layer, lead from the embedding to the answer."""
    lm, found = any_lm, by_layer(score(any_lm, ASKED), 7)
    ids, mask = lm.encode([ASKED[0].prompt])
    states = trace(lm, ids, mask, [Site("in", 0), Site("out", 3)], at=last(mask))
    start, end = states["in", 0][0], states["out", 3][0]
    shift = end.mean() if isinstance(lm.norm, torch.nn.LayerNorm) else 0.0
    scale = (
        (end - shift).square().mean()
        + (lm.norm.eps if hasattr(lm.norm, "eps") else lm.norm.variance_epsilon)
    ).sqrt()
    read = lambda h: lm.head(
        (h - shift) / scale * lm.norm.weight + getattr(lm.norm, "bias", torch.zeros(1).double())
    ).log_softmax(-1)
    token = first_tokens(lm, ["basketball"])[0]
    torch.testing.assert_close(read(end), lm.head(lm.norm(end)).log_softmax(-1))
    assert found.answer[3] == pytest.approx(float((read(end) - read(start))[token]), abs=1e-4)


def made(
    value,
    query,
    answer=((0.0, 2, 0, 0), (0.0, 0, 1, 3)),
    implicit=((0.0, 0, 0, 0), (0.0, 1, -5, 0)),
):
    """Scores of one question from (layer, index) -> score and from (attention, FFN) x layers."""
    tensors = torch.zeros(2, 1, 4, 5)
    for tensor, entries in zip(tensors, (value, query)):
        for place, amount in entries.items():
            tensor[0][place] = amount
    return Scores(*tensors, torch.tensor([answer]), torch.tensor([implicit]))


def test_a_question_by_hand():
    found = by_question(
        made({(3, 0): 3.0, (2, 1): 1.0, (0, 0): -2.0}, {(0, 0): 1.5, (2, 1): 0.5}), 2
    ).iloc[0]
    assert (
        found.value == pytest.approx((3 * 3 + 2) / 4)
        and found["query"] == pytest.approx(0.5)
        and found.lag == pytest.approx(2.25)
    )
    assert found.even == pytest.approx(2.75 - (3 * 1 + 1 * 0.5) / 4) and found.peak == 3
    assert (found.answer, found.implicit) == (2, 1)  # gains 0, 2, 3, 6 and 0, 1, -4, -4
    assert found.ffn_after_attn == 2 and found.last_share == 50 and found.last_increase == 100
    assert (found.shared, found.chance, found.chance_by_layer) == pytest.approx(
        (1, 2 * 2 / 20, 1 / 5)
    )
    assert found.tracks == pytest.approx(np.corrcoef([4, 1.5, 3, 1.5], [2.5, 4, 1, 2.5])[0, 1])


def test_what_never_rises_has_no_half_way():
    found = by_question(
        made({(3, 0): 3.0}, {(0, 0): 1.0}, implicit=((0.0, 0, 0, 0), (-1.0, 0, 0, 0))), 1
    ).iloc[0]
    assert np.isnan(found.implicit) and torch.isnan(centre(torch.zeros(4)))


def test_silence_counts_value_neurons_that_stay_above_the_intact_threshold(any_lm):
    lm, found = any_lm, score(any_lm, ASKED, 6)
    query = found.query.sum(0)
    table = silence(lm, ASKED, found, query, [1], n_zeroed=5, n_top=6, n_random=2, batch_size=2)
    assert sorted(table.layer.unique()) == [0, 2, 3] and len(table) == 3 * 4 * 3
    assert (table.zeroed == table.draw.map({0: "top", 1: "layer", 2: "random", 3: "random"})).all()
    intact = recall(lm, [q.prompt for q in ASKED], [q.answer for q in ASKED]).logprob
    chosen, weight = query[1].argsort(descending=True)[:5], lm.weight(1)
    kept = weight[:, chosen].clone()
    with torch.no_grad():
        weight[:, chosen] = (
            0  # a neuron without a value vector is a neuron whose coefficient is zero
        )
        for i, question in enumerate(ASKED):
            ids, mask = lm.encode([question.prompt])
            after = value_scores(lm, ids, mask, first_tokens(lm, [question.answer]))[0].float()
            least = found.value[i].flatten().sort(descending=True).values[5:7].mean()
            (right,), (logprob,) = recall(lm, [question.prompt], [question.answer])
            for layer in (0, 2, 3):
                row = table[
                    (table.question == i) & (table.zeroed == "top") & (table.layer == layer)
                ].iloc[0]
                assert (row.before, row.after) == (
                    (found.value[i, layer] > least).sum(),
                    (after[layer] > least).sum(),
                )
                assert row.lost == float(not right) and row.nats == pytest.approx(
                    intact[i] - logprob, abs=1e-6
                )
        weight[:, chosen] = kept
    counted = table[table.draw == 0].groupby("question").before.sum()
    assert (counted <= 6).all() and counted.sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(score(lm, ASKED, 6), found))


@pytest.mark.parametrize(
    "wrong, named", ((dict(n_zeroed=49), "49"), (dict(n_zeroed=0), "0"), (dict(layers=[9]), "9"))
)
def test_silence_names_what_does_not_exist(tiny, wrong, named):
    lm = tiny("gptj")
    found = score(lm, ASKED[:1])
    with pytest.raises(ValueError, match=named):
        silence(lm, ASKED[:1], found, found.query.sum(0), **dict(layers=[1], n_zeroed=3) | wrong)


def test_meanings_are_the_tokens_a_neuron_raises(any_lm):
    lm, neurons = any_lm, [(0, 3), (2, 40), (2, 1)]
    ids, mask = lm.encode([ASKED[0].prompt])
    states = trace(lm, ids, mask, [Site("key", layer) for layer in range(4)], at=last(mask))
    for (layer, index), found in zip(neurons, meanings(lm, ASKED[0].prompt, neurons, 4)):
        output = states["key", layer][0, index] * lm.weight(layer)[:, index]
        assert (
            found.tolist()
            == (lm.head.weight @ (lm.norm.weight * output))
            .sort(descending=True)
            .indices[:4]
            .tolist()
        )


def test_interpretable_neurons_are_zeroed_against_as_many_others(tiny):
    lm = tiny("qwen3")
    found = score(lm, ASKED)
    table = without_readable(lm, ASKED, found.value, n_most=3, n_top=60, k=40, n_random=2)
    assert list(table.zeroed[table.question == 0]) == [
        "nothing",
        "interpretable",
        "uninterpretable",
        "random",
        "random",
    ]
    for number, part in table.groupby("question"):
        question, n = ASKED[number], part.n.iloc[1]
        assert 1 <= n <= 3 and part.n.tolist() == [0, n, n, n, n]
        pool, target = (
            top_neurons(found.value[number], 60),
            int(first_tokens(lm, [question.answer])),
        )
        read = readable(lm, question, pool, 40)
        assert read == [
            target in tokens for tokens in meanings(lm, question.prompt, pool, 40).tolist()
        ]
        for kind, ok in (("interpretable", True), ("uninterpretable", False)):
            chosen, row = (
                [neuron for neuron, found_ok in zip(pool, read) if found_ok == ok][:n],
                part[part.zeroed == kind].iloc[0],
            )
            assert row.importance == pytest.approx(sum(neuron.score for neuron in chosen), rel=1e-5)
            with ablate(lm, chosen):
                assert row.logprob == pytest.approx(
                    recall(lm, [question.prompt], [question.answer]).logprob[0]
                )
            assert row.probability == pytest.approx(np.exp(row.logprob))


def test_nothing_readable_leaves_no_rows(tiny):
    lm = tiny("gptj")
    assert without_readable(
        lm, ASKED[:1], score(lm, ASKED[:1]).value, k=360
    ).empty  # every neuron has every token among 360


def test_a_token_is_scored_as_the_end_of_its_prefix(tiny):
    lm = tiny("gptj")
    table = by_token(lm, ASKED[0].prompt, "basketball", 3)
    ids, mask = lm.encode([ASKED[0].prompt])
    assert len(table) == ids.shape[1]
    for end in (1, 3, ids.shape[1]):
        for of in ("ffn", "attn"):
            alone = layer_scores(
                lm, ids[:, :end], mask[:, :end], first_tokens(lm, ["basketball"]), of, "whole"
            ).sum()
            assert table[of][end - 1] == pytest.approx(float(alone), rel=1e-6)


def test_a_random_model_answers_nothing(tiny):
    assert answered(tiny("gptj"), load_world(), 5) == []
