"""Scores of layers: each predictor by its definition, on a tiny model."""

import numpy as np
import pytest
import torch
from test_experiments import world as world  # a fixture
from test_write import identity

from acelib.attribution.interventions import causal_trace
from acelib.attribution.scores import first_tokens, query_scores, value_scores
from acelib.bench.tiny import make_tiny
from acelib.editing.keys import keys_at
from acelib.editing.request import Request
from acelib.editors import PMET
from acelib.measures import grid_predictors as predictors
from acelib.measures.grid_predictors import PREDICTORS, Reader
from acelib.model.states import Site, replaced
from acelib.records import Chain
from acelib.study.experiments import Corpus
from acelib.world.wording import multi_hop_cloze, single_hop
from acelib.world.world import chains

FAMILY = "qwen3"


class Known(Corpus):
    """Second moments without texts."""

    @property
    def moments(self):
        return identity(self.lm)


@pytest.fixture
def reader(world, monkeypatch):
    """A reader without demonstrations, whose mean outputs are over two texts."""
    lm = make_tiny(FAMILY)
    texts = ["Tim Duncan plays the sport of", "Paris"]
    monkeypatch.setattr(predictors, "documents", lambda *_: texts)
    monkeypatch.setattr(predictors, "demonstrations", lambda *_: ())
    monkeypatch.setattr(predictors, "few_shot", lambda world, question: f"{question}\nThoughts:")
    editor = PMET(layers=tuple(range(lm.n_layers)), texts=("Apple. ",))
    return Reader(lm, world, editor, Known(lm, (), range(lm.n_layers)), 0)


@pytest.fixture
def asked(world) -> list[Chain]:
    """Three chains of two facts."""
    return [chain for _, chain in zip(range(3), chains(world, 2), strict=False)]


def test_every_predictor_scores_every_layer_of_every_chain(reader, asked):
    for name, predict in PREDICTORS.items():
        scores = predict(reader, asked)
        assert [sorted(one) for one in scores] == [["query", "value"]] * 3, name
        assert all(len(values) == 4 for one in scores for values in one.values()), name
        alone = predict(reader, asked[1:2])[0]
        for role, values in alone.items():
            assert np.allclose(values, scores[1][role], rtol=1e-5, equal_nan=True), name


def test_attribution_is_the_sum_of_eq_9_and_of_eq_10(reader, asked, world):
    lm, chain = reader.lm, asked[0]
    ids, mask = lm.encode([multi_hop_cloze(world, chain)])
    values = value_scores(lm, ids, mask, first_tokens(lm, [chain.answer]))
    query = query_scores(lm, ids, mask, values)
    for predict in (predictors.zero_shot_attribution, predictors.few_shot_attribution):
        (found,) = predict(reader, [chain])
        assert found["value"] == pytest.approx(values.sum(-1)[0].tolist())
        assert found["query"] == pytest.approx(query.sum(-1)[0].tolist())


def test_few_shot_is_after_other_statements(reader, asked, world, monkeypatch):
    others = (asked[1], asked[2])
    monkeypatch.setattr(predictors, "demonstrations", lambda *_: others)
    text = predictors.statement_after_others(world, asked[0])
    told = [f"{multi_hop_cloze(world, other)} {other.answer}." for other in others]
    assert text == " ".join([*told, multi_hop_cloze(world, asked[0])])


def test_everywhere_is_the_sum_over_beginnings_of_the_prompt(reader, asked, world):
    lm, chain = reader.lm, asked[0]
    whole = lm.tokenizer(multi_hop_cloze(world, chain))["input_ids"]
    total = {role: torch.zeros(lm.n_layers, dtype=lm.dtype) for role in predictors.ROLES}
    for end in range(1, len(whole) + 1):
        ids, mask = lm.pad([whole[:end]])
        values = value_scores(lm, ids, mask, first_tokens(lm, [chain.answer]))
        total["value"] += values.sum(-1)[0]
        total["query"] += query_scores(lm, ids, mask, values).sum(-1)[0]
    (found,) = predictors.attribution_everywhere(reader, [chain])
    for role, values in total.items():
        assert found[role] == pytest.approx(values.tolist(), rel=1e-6)


def test_tracing_is_what_each_state_restores(reader, asked, world):
    fact = asked[0].facts[-1]
    prompt, answer = single_hop(world, fact)
    for predict, kind in ((predictors.causal_tracing, "out"), (predictors.ffn_tracing, "mlp")):
        (found,) = predict(reader, asked[:1])
        trace = causal_trace(reader.lm, prompt, fact.subject, answer, kind, n_noise=4, window=1)
        assert found["query"] == pytest.approx(trace.restored[2].tolist())
        assert found["value"] == pytest.approx(trace.restored[4].tolist())


def test_ablation_costs_what_a_mean_output_takes_from_the_answer(reader, asked, world):
    lm, fact = reader.lm, asked[0].facts[-1]
    text, answer = single_hop(world, fact)
    ids, mask = lm.encode([text])
    subject = lm.token_at(text, text.index(fact.subject) + len(fact.subject))
    (found,) = predictors.ablation_cost(reader, asked[:1])

    def log_p(patches):
        with replaced(lm, patches), torch.no_grad():
            hidden = lm.stack(ids, attention_mask=mask, use_cache=False).last_hidden_state[0, -1]
        return lm.head(hidden).log_softmax(-1)[first_tokens(lm, [answer])].item()

    for role, at in (("query", subject), ("value", ids.shape[1] - 1)):
        for layer, mean in enumerate(reader.mean_outputs):

            def put(state, at=at, mean=mean):
                state = state.clone()
                state[0, at] = mean
                return state

            cost = log_p({}) - log_p({Site("mlp", layer): put})
            assert found[role][layer] == pytest.approx(cost, abs=1e-6)


def test_mean_outputs_are_over_all_tokens(reader):
    lm, outputs = reader.lm, []
    for text in predictors.documents():
        with torch.no_grad():
            states = {}
            keep = {Site("mlp", 1): lambda state, states=states: states.update(all=state)}
            with replaced(lm, keep):
                lm.stack(lm.encode([text])[0], use_cache=False)
            outputs.append(states["all"][0])
    torch.testing.assert_close(reader.mean_outputs[1], torch.cat(outputs).mean(0))


def test_transfer_is_the_formula(reader, asked, world):
    """k'^T C^-1 k / k^T C^-1 k with C = 1, k half the bare prompt's, half that behind a text."""
    lm, (first, fact) = reader.lm, asked[0].facts
    text, _ = single_hop(world, fact)
    thought = " ".join([*single_hop(world, first)]) + ". " + text
    (found,) = predictors.key_transfer(reader, asked[:1])
    for role, place in (("query", text.index(fact.subject) + len(fact.subject)), ("value", None)):
        for layer in range(lm.n_layers):

            def key(whole, ends=place, layer=layer):
                end = len(whole) if ends is None else len(whole) - len(text) + ends
                return keys_at(lm, [Request(whole, end, "x")], layer)[:, 0]

            bare = (key(text) + key(f"Apple. {text}")) / 2
            asked_first = predictors.few_shot(world, _question(world, asked[0]))
            there = key(f"{asked_first} {thought}")
            share = (there @ bare / (bare @ bare)).item()
            assert found[role][layer] == pytest.approx(share, rel=1e-5)


def _question(world, chain):
    return predictors.multi_hop_question(world, chain)


def test_chains_are_those_that_the_model_answers(world, monkeypatch):
    drawn = [chain for _, chain in zip(range(6), chains(world, 2), strict=False)]
    monkeypatch.setattr(predictors, "sample_chains", lambda *given: drawn)
    known = {chain.answer for chain in drawn[:1]}

    def known_items(lm, items, ask):
        return [item for item in items if ask(item)[1] in known]

    monkeypatch.setattr(predictors, "known_items", known_items)
    lm = make_tiny(FAMILY)
    found = predictors.answered_chains(lm, world, 2, 0)
    assert found == [chain for chain in drawn if chain.answer in known][:2]
    known.clear()
    with pytest.raises(ValueError, match="tiny-qwen3 answers none of 6 questions"):
        predictors.answered_chains(lm, world, 2, 0)


def test_rows_are_of_a_chain_and_a_predictor(world, asked, monkeypatch):
    hosts = {"gptj-mini": make_tiny("gptj")}
    monkeypatch.setattr(predictors, "answered_chains", lambda *_: asked)
    monkeypatch.setattr(predictors, "corpus", lambda lm, *_: Known(lm, (), range(lm.n_layers)))
    experiment = predictors.experiment(hosts, world, n_located=3, seed=0)
    assert [one.names["predictor"] for one in experiment.series] == list(PREDICTORS)
    (random,) = (one for one in experiment.series if one.names["predictor"] == "random")
    ids = list(random.items)
    assert ids[0] == " | ".join([asked[0].subject, *asked[0].path])
    rows = [line.rows for line in random.rows(ids)]
    assert rows[0] == rows[1] and len(rows[0][0]["value"]) == 4
    transfer = next(one for one in experiment.series if one.names["predictor"] == "key transfer")
    assert "PMET" in transfer.depends["settings"] and random.depends["settings"] == "None"
