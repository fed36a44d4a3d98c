"""robustness: sampled passes, examples before prompts, edits passed on, mismatched cases."""

import pandas as pd
import pytest
import torch

from acelib.attribution.scores import first_tokens, layer_scores
from acelib.bench.tiny import make_tiny
from acelib.measures.robustness import demonstrated, mismatched, passed_on, passes
from acelib.model.update import Factors, Update
from acelib.world.cases import make_cases, single_edits
from acelib.world.world import load_world

PROMPTS, ANSWERS = (
    ("Tim Duncan plays the sport of", "The capital of France is", "The author of Hamlet is"),
    ("golf", "Paris", "Steve Jobs"),
)


def test_passes_score_what_was_drawn_whatever_the_batch():
    lm = make_tiny("gptj")
    rows = passes(lm, PROMPTS, ANSWERS, k=4, temperature=1e-6, batch_size=3)  # next to greedy
    assert (
        len(rows) == 3 * 4 * 2 * lm.n_layers
        and rows.groupby(["prompt", "block", "layer"]).importance.nunique().eq(1).all()
    )
    ids, mask = lm.encode(PROMPTS)
    greedy = (
        lm.model(input_ids=ids, attention_mask=mask).logits[range(3), mask.sum(1) - 1].argmax(-1)
    )
    plain = layer_scores(lm, ids, mask, greedy, "ffn")
    mine = rows[(rows.block == "ffn") & (rows.trial == 2)].pivot(
        index="prompt", columns="layer", values="importance"
    )
    torch.testing.assert_close(torch.tensor(mine.to_numpy()), plain)
    assert mine.index.tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(
        passes(lm, PROMPTS, ANSWERS, 2, seed=1), passes(lm, PROMPTS, ANSWERS, 2, seed=1)
    )
    for wrong in (dict(k=0), dict(temperature=0.0)):
        with pytest.raises(ValueError, match="at least 1"):
            passes(lm, PROMPTS, ANSWERS, **wrong)


def test_examples_are_other_facts_of_the_relation():
    world = load_world()
    fact = next(fact for fact in world.about("Tim Duncan") if fact.relation == "sport")
    assert demonstrated(world, fact, 0) == "Tim Duncan plays the sport of"
    two = demonstrated(world, fact, 2)
    assert (
        two.endswith(". Tim Duncan plays the sport of")
        and two.count(" plays the sport of ") == 2
        and fact.object not in two
    )
    with pytest.raises(ValueError, match="asked for"):
        demonstrated(world, fact, 10**6)


def test_passed_on_reads_the_edited_model_and_leaves_it():
    lm, world = make_tiny("qwen3"), load_world()
    edits, before = (
        [edit for edit in single_edits(world, 40) if world.about(edit.target_new)][:2],
        lm.fingerprint,
    )
    update = Update(
        {1: Factors(torch.randn(lm.d_model, 1).to(lm.dtype), torch.randn(lm.d_mlp, 1).to(lm.dtype))}
    )
    rows = (
        passed_on(lm, world, edits, {"none": [Update()] * 2, "edited": [update] * 2})
        .set_index(["model", "place", "block", "edit"])
        .importance
    )
    assert (
        lm.fingerprint == before
        and len(rows) == 2 * 2 * 2 * 2
        and not rows["none"].equals(rows["edited"])
    )
    plain = layer_scores(
        lm, *lm.encode([edits[1].text]), first_tokens(lm, [edits[1].target_new]), "ffn", "whole"
    ).sum()
    assert rows["none", "implicit subject", "ffn", 1] == pytest.approx(float(plain))


def test_mismatched_edits_have_an_object_of_another_kind():
    world = load_world()
    made = mismatched(world, make_cases(world, "identification", 60, 0, n_hops=(2,), n_edits=(1,)))
    assert made
    for case in made:
        (edit,) = case.edits
        assert (
            edit.target_new == case.new_answer == case.new_hops[-1].answer == case.new_chain[-1][2]
        )
        assert world.kind(case.new_answer) != world.kind(case.answer) and any(
            fact.object == case.new_answer for fact in world.about(edit.subject)
        )
