"""robustness: sampled answers, examples before prompts, edits passed on, mismatched cases."""

import pytest
import torch

from acelib.attribution.scores import first_tokens, layer_scores
from acelib.bench.tiny import make_tiny
from acelib.editors import preset
from acelib.measures import robustness
from acelib.measures.robustness import (
    draw_rows,
    draws,
    importance_by_place,
    mismatched_cases,
    prompt_with_examples,
)
from acelib.model.update import Factors, Update, applied
from acelib.study import experiments
from acelib.world.cases import make_cases
from acelib.world.world import load_world

PROMPTS, ANSWERS = (
    ("Tim Duncan plays the sport of", "The capital of France is", "The author of Hamlet is"),
    ("golf", "Paris", "Steve Jobs"),
)


def test_samples_are_scored_whatever_the_batch():
    lm = make_tiny("gptj")
    pairs = list(zip(PROMPTS, ANSWERS, strict=True))
    drawn = draws(lm, pairs, k=4, temperature=1e-6, seed=0)  # next to greedy
    ids, mask = lm.encode(PROMPTS)
    logits = lm.model(input_ids=ids, attention_mask=mask).logits
    greedy = logits[range(3), mask.sum(1) - 1].argmax(-1)
    assert [draw.tokens for draw in drawn] == [(token,) * 4 for token in greedy.tolist()]
    plain = layer_scores(lm, ids, mask, greedy, "ffn")
    rows = draw_rows(lm, drawn)
    for of_one, expected in zip(rows, plain, strict=True):
        assert [(row["block"], row["trial"]) for row in of_one] == [
            (block, trial) for block in ("attn", "ffn") for trial in (1, 2, 3, 4)
        ]
        for row in of_one[4:]:
            assert row["importance"] == pytest.approx(expected.tolist())
    for one, whole in zip(drawn, rows, strict=True):
        (alone,) = draw_rows(lm, [one])
        for row, other in zip(alone, whole, strict=True):
            assert row["importance"] == pytest.approx(other["importance"])
            assert row["right"] == other["right"]


def test_samples_are_a_function_of_the_seed_and_of_those_before():
    lm, pairs = make_tiny("gptj"), list(zip(PROMPTS, ANSWERS, strict=True))
    assert draws(lm, pairs, 2, 1.0, seed=1) == draws(lm, pairs, 2, 1.0, seed=1)
    assert draws(lm, pairs, 2, 1.0, seed=1) != draws(lm, pairs, 2, 1.0, seed=2)
    for wrong in ({"k": 0, "temperature": 1.0}, {"k": 1, "temperature": 0.0}):
        with pytest.raises(ValueError, match="at least 1"):
            draws(lm, pairs, **wrong, seed=0)


def test_examples_are_other_facts_of_the_relation():
    world = load_world()
    fact = next(fact for fact in world.about("Tim Duncan") if fact.relation == "sport")
    assert prompt_with_examples(world, fact, 0) == "Tim Duncan plays the sport of"
    two = prompt_with_examples(world, fact, 2)
    assert (
        two.endswith(". Tim Duncan plays the sport of")
        and two.count(" plays the sport of ") == 2
        and fact.object not in two
    )
    with pytest.raises(ValueError, match="asked for"):
        prompt_with_examples(world, fact, 10**6)


def test_passed_on_reads_the_edited_model():
    lm, world = make_tiny("qwen3"), load_world()
    edit = robustness.edits_passed_on(world, 2, 0)[1]
    pair = (torch.randn(size, 1).to(lm.dtype) for size in (lm.d_model, lm.d_mlp))
    with applied(lm, Update({1: Factors(*pair)})):
        edited = importance_by_place(lm, world, edit)
    rows = importance_by_place(lm, world, edit)
    assert [(row["place"], row["block"]) for row in rows] == [
        (place, block) for block in ("attn", "ffn") for place in ("implicit subject", "answer")
    ]
    assert rows != edited and rows == importance_by_place(lm, world, edit)
    target = first_tokens(lm, [edit.target_new])
    plain = layer_scores(lm, *lm.encode([edit.text]), target, "ffn", "whole").sum()
    assert rows[2]["importance"] == pytest.approx(float(plain))


def test_states_are_ace_with_and_without_its_value_stage():
    editors = robustness.state_editors("gptj-mini")
    assert tuple(editors) == robustness.STATES and editors["unedited"] is None
    assert editors["edited"] == preset("ACE", "gptj-mini")
    assert editors["value edit masked"].stages == ("query",)


def test_masked_states_leave_the_model_as_it_was():
    lm, world = make_tiny("gptj", dtype=torch.float32), load_world()
    before = lm.fingerprint
    of = robustness.masked({"gptj-mini": lm}, world, n_edits=2, seed=0)
    unedited = of.series[0]
    assert [series.names["state"] for series in of.series] == list(robustness.STATES)
    edits = list(unedited.items.values())
    assert unedited.compute(edits) == [importance_by_place(lm, world, edit) for edit in edits]
    lm.__dict__.pop("fingerprint")
    assert lm.fingerprint == before


def test_prompts_of_all_settings_ask_for_the_same_facts(monkeypatch):
    lm, world = make_tiny("gptj"), load_world()
    facts = {"ST": [fact for fact in world.about("Tim Duncan") if fact.relation == "sport"]}
    monkeypatch.setattr(robustness, "known_facts", lambda *_: facts)
    of = robustness.with_examples({"m": lm}, world, n_located=1, seed=0)
    assert [series.names["setting"] for series in of.series] == list(robustness.SHOTS)
    assert len({tuple(series.items) for series in of.series}) == 1
    (shown,) = of.series[2].items.values()
    (rows,) = of.series[2].compute([shown])
    ids = lm.encode(["Tim Duncan plays the sport of"])
    plain = layer_scores(lm, *ids, first_tokens(lm, [facts["ST"][0].object]), "attn")[0]
    assert rows[0]["importance"] == pytest.approx(plain.tolist()) and rows[0]["category"] == "ST"


def test_ordinary_cases_are_those_that_were_mismatched(monkeypatch):
    lm, world = make_tiny("gptj"), load_world()
    monkeypatch.setattr(experiments, "known_cases", lambda lm, cases: cases)
    pairs = robustness.case_pairs(lm, world, 3, 0)
    assert len(pairs["mismatched"]) == 3
    for wrong, case in zip(pairs["mismatched"], pairs["ordinary"], strict=True):
        assert wrong.case_id == case.case_id and wrong.questions == case.questions
        assert wrong.new_answer != case.new_answer
    sizes = {"n_cases": 3, "seed": 0}
    hosts, names = {"gptj-mini": lm}, ["ROME", "ACE"]
    of = robustness.on_ordinary(hosts, world, editors=names, **sizes)
    assert [series.names["editor"] for series in of.series] == ["ACE"]
    assert robustness.on_ordinary(hosts, world, editors=["ROME"], **sizes).series == ()
    of = robustness.on_mismatched(hosts, world, editors=names, **sizes)
    assert [series.names["editor"] for series in of.series] == names


def test_mismatched_edits_have_an_object_of_another_kind():
    world = load_world()
    made = mismatched_cases(
        world, make_cases(world, "identification", 60, 0, n_hops=(2,), n_edits=(1,))
    )
    assert made
    for case in made:
        (edit,) = case.edits
        assert (
            edit.target_new == case.new_answer == case.new_hops[-1].answer == case.new_chain[-1][2]
        )
        assert world.kind(case.new_answer) != world.kind(case.answer) and any(
            fact.object == case.new_answer for fact in world.about(edit.subject)
        )
