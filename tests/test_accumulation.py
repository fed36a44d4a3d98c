"""accumulation: each quantity equals its plain computation, one question, one neuron at a time."""

from math import exp

import numpy as np
import pandas as pd
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
from acelib.bench.tiny import make_tiny
from acelib.measures import accumulation
from acelib.measures.accumulation import (
    Question,
    Silencing,
    answered_questions,
    by_layer,
    by_token,
    cached_scores,
    head_scores,
    meanings,
    paper_case,
    parts,
    readable,
    score,
    silence,
    without_readable,
    zeroed_neurons,
)
from acelib.model.answers import recall
from acelib.model.states import Site, last, trace
from acelib.study import rows
from acelib.world.world import load_world

ASKED = [
    Question("Tim Duncan plays the sport of", "basketball", "France", "ST"),
    Question("The capital of France is", "Paris", "Hamlet", "CP"),
    Question("The author of Hamlet is", "William Shakespeare", "chess", "AT"),
]
SETTINGS = dict(n_drawn=3, n_located=2, n_judged=1, n_top=20, norm="frozen", seed=0)


def table_of(scores, n_top):
    """The rows of all layers and questions of ``ASKED``."""
    lists = by_layer(scores, ASKED, n_top)
    return pd.concat([pd.DataFrame(some).assign(question=i) for i, some in enumerate(lists)])


@pytest.fixture
def tabled(monkeypatch, tmp_path):
    """Tables of experiments on a tiny model that "answers" all of ``ASKED``, in their own store."""
    monkeypatch.setattr(accumulation, "answered_questions", lambda lm, world, n, seed=0: ASKED[:n])
    lm, folders = make_tiny("qwen3"), rows.Folders(tmp_path / "results", tmp_path / "runs")

    def table(experiment, **settings):
        built = experiment({"tiny": lm}, load_world(), **SETTINGS, **settings)
        return lm, rows.table(built, folders=folders)

    return table


def test_scores_are_those_of_each_question_alone(any_lm):
    scores = score(any_lm, ASKED, n_top=7, batch_size=2)
    for i, question in enumerate(ASKED):
        ids, mask = any_lm.encode([question.prompt])
        target, between = (
            first_tokens(any_lm, [getattr(question, name)]) for name in ("answer", "implicit")
        )
        value = value_scores(any_lm, ids, mask, target)
        whole = [
            torch.stack(
                [layer_scores(any_lm, ids, mask, w, of, "whole")[0] for of in ("attn", "ffn")]
            )
            for w in (target, between)
        ]
        plain = (value[0], query_scores(any_lm, ids, mask, value, 7)[0], *whole)
        for got, wanted in zip(scores, plain, strict=True):
            torch.testing.assert_close(got[i], wanted.float(), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="no questions"):
        score(any_lm, [])


def test_rows_of_layers_are_sums_over_their_neurons(tiny):
    scores = score(tiny("gptj"), ASKED, 7)
    table = table_of(scores, 7)
    assert len(table) == 3 * 4 and (table.groupby("question").n_value.sum() == 7).all()
    assert table.category.tolist()[::4] == ["ST", "CP", "AT"]
    np.testing.assert_allclose(table["query"], scores.query.sum(-1).flatten(), rtol=1e-5)
    np.testing.assert_allclose(table.value, scores.value.sum(-1).flatten(), rtol=1e-5)
    np.testing.assert_allclose(table.increase, scores.answer[:, 1].flatten(), rtol=1e-5)
    np.testing.assert_allclose(table.implicit_attn, scores.implicit[:, 0].flatten(), rtol=1e-5)
    for i in range(3):
        value, query = (
            {neuron[:2] for neuron in top_neurons(of[i], 7)} for of in (scores.value, scores.query)
        )
        mine = table[table.question == i]
        assert mine.shared.sum() == len(value & query)
        kept = [sum(float(scores.value[i][n]) for n in value if n[0] == at) for at in range(4)]
        np.testing.assert_allclose(mine.top_value, kept, rtol=1e-5, atol=1e-8)


def test_questions_are_scored_once_whatever_they_are_asked_for(tiny, monkeypatch):
    lm, calls = tiny("gptj"), []
    plain = accumulation.score

    def counted(lm, questions, *rest):
        calls.extend(questions)
        return plain(lm, questions, *rest)

    monkeypatch.setattr(accumulation, "score", counted)
    accumulation._scorer.cache_clear()
    one, two = (
        cached_scores(lm, ASKED[:2], 7, "frozen"),
        cached_scores(lm, ASKED[::-1], 7, "frozen"),
    )
    accumulation._scorer.cache_clear()
    assert calls == ASKED and torch.equal(one.value[0], two.value[2])


def test_what_is_gained_over_all_layers_is_the_model_s_own_log_probability(any_lm):
    """The increases of attention and FFN lead from the embedding to the answer."""
    lm, scores = any_lm, score(any_lm, ASKED)
    ids, mask = lm.encode([ASKED[0].prompt])
    states = trace(lm, ids, mask, [Site("in", 0), Site("out", 3)], at=last(mask))
    start, end = states["in", 0][0], states["out", 3][0]
    shift = end.mean() if isinstance(lm.norm, torch.nn.LayerNorm) else 0.0
    eps = lm.norm.eps if hasattr(lm.norm, "eps") else lm.norm.variance_epsilon
    scale = ((end - shift).square().mean() + eps).sqrt()
    bias = getattr(lm.norm, "bias", torch.zeros(1).double())

    def read(h):
        return lm.head((h - shift) / scale * lm.norm.weight + bias).log_softmax(-1)

    token = first_tokens(lm, ["basketball"])[0]
    torch.testing.assert_close(read(end), lm.head(lm.norm(end)).log_softmax(-1))
    gained = float((read(end) - read(start))[token])
    assert float(scores.answer[0].sum()) == pytest.approx(gained, abs=1e-4)


def test_silence_counts_value_neurons_that_stay_above_the_intact_threshold(any_lm):
    lm, found = any_lm, score(any_lm, ASKED, 6)
    query = found.query.sum(0)
    table = silence(lm, ASKED, found, query, [1], Silencing(n_zeroed=5, n_top=6))
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
    again = score(lm, ASKED, 6)
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))


@pytest.mark.parametrize(
    "layer, n_zeroed, named", ((1, 49, "49"), (1, 0, "n_zeroed is 0"), (9, 3, "9"))
)
def test_silence_names_what_does_not_exist(tiny, layer, n_zeroed, named):
    lm = tiny("gptj")
    found = score(lm, ASKED[:1])
    with pytest.raises(ValueError, match=named):
        silence(lm, ASKED[:1], found, found.query.sum(0), [layer], Silencing(n_zeroed))


def test_meanings_are_the_tokens_a_neuron_raises(any_lm):
    lm, neurons = any_lm, [(0, 3), (2, 40), (2, 1)]
    ids, mask = lm.encode([ASKED[0].prompt])
    states = trace(lm, ids, mask, [Site("key", layer) for layer in range(4)], at=last(mask))
    tokens = meanings(lm, ASKED[0].prompt, neurons, 4).tolist()
    for (layer, index), best in zip(neurons, tokens, strict=True):
        output = states["key", layer][0, index] * lm.weight(layer)[:, index]
        raised = lm.head.weight @ (lm.norm.weight * output)
        assert best == raised.sort(descending=True).indices[:4].tolist()


def test_interpretable_neurons_are_zeroed_against_as_many_others(tiny):
    lm, seen = tiny("qwen3"), 0
    scores = score(lm, ASKED)
    for question, value in zip(ASKED, scores.value, strict=True):
        some = list(without_readable(lm, question, value, n_most=3, n_top=60, k=40, n_random=2))
        if not some:
            continue
        seen += 1
        kinds = ["nothing", "interpretable", "uninterpretable", "random", "random"]
        assert [row["zeroed"] for row in some] == kinds
        n = some[1]["n"]
        assert 1 <= n <= 3 and [row["n"] for row in some] == [0, n, n, n, n]
        pool, target = top_neurons(value, 60), int(first_tokens(lm, [question.answer]))
        read = readable(lm, question, pool, 40)
        words = meanings(lm, question.prompt, pool, 40).tolist()
        assert read == [target in tokens for tokens in words]
        for row, kind in ((some[1], True), (some[2], False)):
            silent = [neuron for neuron, ok in zip(pool, read, strict=True) if ok == kind][:n]
            total = sum(neuron.score for neuron in silent)
            assert row["importance"] == pytest.approx(total, rel=1e-5)
            with ablate(lm, silent):
                logprob = recall(lm, [question.prompt], [question.answer]).logprob[0]
            assert row["logprob"] == pytest.approx(logprob)
            assert row["probability"] == pytest.approx(exp(logprob))
    assert seen


def test_nothing_readable_leaves_no_rows(tiny):
    lm = tiny("gptj")
    value = score(lm, ASKED[:1]).value[0]
    # every neuron has every token among 360
    assert list(without_readable(lm, ASKED[0], value, k=360)) == []


def test_layers_are_rows_of_their_question(tabled):
    lm, table = tabled(accumulation.layers)
    assert list(table["item"].unique()) == [question.prompt for question in ASKED]
    plain = table_of(score(lm, ASKED, 20), 20)
    np.testing.assert_allclose(table["query"], plain["query"], rtol=1e-3, atol=1e-6)
    assert table.n_value.tolist() == plain.n_value.tolist()


def test_silencing_asks_the_held_questions_at_the_peaks_of_the_located(tabled):
    lm, table = tabled(accumulation.silencing, share=0.1, least_zeroed=2, n_random=1)
    assert list(table["item"].unique()) == [ASKED[2].prompt]
    query = score(lm, ASKED[:2], 20).query.sum((0, 2))
    best = query.sort(descending=True, stable=True).indices[:2].tolist()
    assert list(table.ablated.unique()) == best and list(table.peak.unique()) == ["first", "second"]
    assert len(table) == 2 * 3 * (lm.n_layers - 1)
    assert zeroed_neurons(lm, 0.1, 2) == round(0.1 * lm.d_mlp)
    assert zeroed_neurons(lm, 0.001, 2) == 2


def test_readability_is_the_share_of_neurons_that_say_it(tabled):
    lm, table = tabled(accumulation.readability, n_words=40)
    scores = score(lm, ASKED[2:], 20)
    for (role, what), part in table.groupby(["role", "what"]):
        of = scores.value[0] if role == "value neurons" else scores.query[0]
        read = readable(lm, ASKED[2], top_neurons(of, 20), 40, what)
        assert part["share"].tolist() == [pytest.approx(100 * np.mean(read))]
    assert len(table) == 4


def test_a_question_s_random_neurons_are_its_own(tabled):
    """Rows do not depend on which other questions are asked."""
    lm, table = tabled(accumulation.spoiling, n_words=60, n_random=2)
    questions = {question.prompt: question for question in (*ASKED, paper_case(load_world()))}
    prompt, some = list(table.groupby("item", sort=False))[-1]
    value = cached_scores(lm, [questions[prompt]], 20, "frozen").value[0]
    alone = list(without_readable(lm, questions[prompt], value, 27, 20, 60, 2, seed=0))
    assert some.importance.tolist() == pytest.approx([row["importance"] for row in alone])
    assert paper_case(load_world()).prompt == "Tim Duncan plays the sport of"


def test_questions_are_parted_in_proportion(monkeypatch, tiny):
    monkeypatch.setattr(accumulation, "answered_questions", lambda lm, world, n, seed=0: ASKED[:n])
    some = parts(tiny("gptj"), load_world(), 3, 4, 2, 0)
    assert (some.located, some.held, some.n_answered) == (ASKED[:2], ASKED[2:], 3)
    assert some.all == ASKED


def test_heads_add_up_to_scores_of_their_own(tiny):
    lm = tiny("gptj")
    ids, mask = lm.encode([ASKED[0].prompt])
    plain = value_scores(lm, ids, mask, first_tokens(lm, ["basketball"]), of="heads")[0]
    np.testing.assert_allclose(head_scores(lm, ASKED[0], "frozen"), plain.numpy())


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
    assert answered_questions(tiny("gptj"), load_world(), 5) == []
