"""Judging of models that speak freely: what is asked, under which edit, and what it counts for."""

from dataclasses import replace
from math import isnan

import pytest
import torch

from acelib.bench.tiny import make_tiny
from acelib.editing.moments import Moments
from acelib.editors import FT
from acelib.study import free
from acelib.study.endings import last_token
from acelib.study.free import FreeProtocol, edit_and_judge, judge, kept_facts
from acelib.world.cases import all_cases
from acelib.world.world import load_world, untouched

WORLD = load_world()
KNOWN = replace(WORLD, facts=WORLD.facts[::3])
CASES = all_cases(KNOWN, ("training", "evaluation"), 6, 0)
PROTOCOL = FreeProtocol(n_kept=3, n_shots=1, thought_tokens=6)
LM = make_tiny("llama", torch.float32)


def test_facts_that_must_stay_are_known_and_of_three_kinds():
    for case in CASES:
        kept = kept_facts(LM, KNOWN, case, PROTOCOL)
        stays, subjects = untouched(KNOWN, case.edits), {e.subject for e in case.edits}
        relations = {edit.relation for edit in case.edits}
        every = [fact for some in kept.values() for fact in some]
        assert set(kept) == set(free.KINDS) and len(set(every)) == len(every)
        assert set(every) <= set(KNOWN.facts) and all(map(stays, every))
        assert subjects.isdisjoint(fact.subject for fact in every)
        assert {fact.relation for fact in kept["near"]} <= relations
        assert relations.isdisjoint(fact.relation for fact in kept["far"])
        ends = {last_token(LM, e.text, e.subject) for e in case.edits}
        for fact in kept["token"]:
            text = KNOWN.relations[fact.relation].cloze[0].replace("{}", fact.subject)
            assert last_token(LM, text, fact.subject) in ends


@pytest.fixture
def oracle(monkeypatch):
    """A model that knows the world, with the edits of those that are asked after edits."""

    def answers(updates, prompts, i):
        return f" the {SAID[prompts[i], updates is not None and updates[i] is not None]}, so"

    def generate(lm, prompts, updates=None, n=0, until=None):
        return [answers(updates, prompts, i) for i in range(len(prompts))]

    class Said(dict):
        def __missing__(self, key):
            prompt, edited = key
            for fact in KNOWN.facts:
                clozes = KNOWN.relations[fact.relation].cloze
                if any(prompt == cloze.replace("{}", fact.subject) for cloze in clozes):
                    told = fact.object
                    for case in CASES[:1] if edited else ():
                        for edit in case.edits:
                            if (edit.subject, edit.relation) == (fact.subject, fact.relation):
                                told = edit.target_new
                    return told
            for case in CASES:
                for question in case.questions:
                    if f"Question: {question}\n" in prompt:
                        told = case.new_answer if edited else case.answer
                        return f"x\nAnswer: {told}\n" if prompt.endswith("Thoughts:") else told
            return "nothing"

    SAID = Said()
    monkeypatch.setattr(free, "generate", generate)


def test_a_model_that_knows_all_scores_everywhere(oracle):
    one = CASES[:1]
    for updates in (None, [object()]):
        (row,) = judge(LM, KNOWN, one, updates, PROTOCOL)
        assert row["efficacy"] == 1 and row["efficacy_bare"] == 0  # "the ..." is not bare
        assert row["thoughts"] == row["direct"] == row["thoughts_each"] == 1
        assert row["paraphrase"] == 1
        assert all(row[kind] == 1 or isnan(row[kind]) for kind in free.KINDS)
        assert row["direct_old"] == (updates is None)


def test_rows_do_not_depend_on_company_and_updates_are_undone():
    editor = FT(layers=(1,), steps=2, lr=0.1)
    before = LM.fingerprint
    moments = Moments({}, 0, before)
    together = edit_and_judge(LM, KNOWN, editor, CASES[:3], moments, PROTOCOL)
    alone = [edit_and_judge(LM, KNOWN, editor, [c], moments, PROTOCOL)[0] for c in CASES[:3]]
    for one, other in zip(together, alone, strict=True):
        assert set(one) == set(other) and one["written"] == pytest.approx(other["written"], 1e-4)
        assert {k: str(one[k]) for k in one if k != "written"} == {
            k: str(other[k]) for k in other if k != "written"
        }
    base = edit_and_judge(LM, KNOWN, None, CASES[:1], None, PROTOCOL)
    assert base[0]["written"] == 0 and LM.fingerprint == before
