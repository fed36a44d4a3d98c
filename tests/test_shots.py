"""Few-shot prompts and cases of what a model knows."""

from dataclasses import replace

import pytest

from acelib.world.cases import all_cases
from acelib.world.shots import (
    SPLIT,
    direct,
    question_after,
    relatives,
    shown_chains,
    statements_before,
    with_thoughts,
)
from acelib.world.world import chains, load_world, split_of

WORLD = load_world()
KNOWN = replace(WORLD, facts=WORLD.facts[::3])  #: as if a model knew a third


def fact_of(subject: str, relation: str):
    return next(f for f in WORLD.facts if (f.subject, f.relation) == (subject, relation))


def test_a_fact_stands_behind_others_of_its_relation():
    fact = fact_of("France", "capital")
    shown = relatives(WORLD, fact, 4)
    assert len({other.object for other in shown} | {fact.object}) == 5
    assert {other.relation for other in shown} == {"capital"} and fact not in shown
    assert statements_before(WORLD, fact, 1).endswith(". The capital of France is")
    asked = question_after(WORLD, fact, 2)
    assert asked.count("Question: ") == 3 and asked.endswith("\nAnswer:")
    assert relatives(WORLD, fact_of("Germany", "capital"), 4)[:3]  # mostly the same ones
    one = replace(WORLD, facts=(fact,))
    assert relatives(one, fact, 4) == [] and statements_before(one, fact).startswith("The capital")


def test_demonstrations_are_two_known_facts_of_other_names():
    avoid = {"France", "Paris", "Europe"}
    shown = shown_chains(KNOWN, avoid, 4)
    names = [name for chain in shown for name in chain.entities]
    assert len(shown) == 4 and len(set(names)) == len(names) and avoid.isdisjoint(names)
    assert all(set(chain.facts) <= set(KNOWN.facts) and split_of(chain) == SPLIT for chain in shown)
    assert len({chain.path[-1] for chain in shown}) == 4  # of different last relations
    assert shown_chains(KNOWN, {f.subject for f in KNOWN.facts}) == []
    prompt = with_thoughts(KNOWN, shown, "Where?")
    assert prompt.endswith("Question: Where?\nThoughts:") and prompt.count("Thoughts:") == 5
    assert direct(KNOWN, shown[:1], "Where?").count("Answer:") == 2


def test_cases_are_made_of_known_facts_only():
    cases = all_cases(KNOWN, ("training", "evaluation"), 40, 0)
    said = {(f.subject, f.object) for f in KNOWN.facts}
    assert len(cases) == 40 and len({case.chain for case in cases}) == 40
    assert [case.case_id for case in cases] == list(range(40))
    shapes = [(case.n_hops, case.n_edits) for case in cases]
    assert {shapes.count(shape) for shape in ((2, 1), (2, 2), (3, 1), (3, 2))} == {10}
    for case in cases:
        edited = {(edit.subject, edit.target_new) for edit in case.edits}
        assert {(s, o) for s, _, o in case.chain} <= said
        assert {(s, o) for s, _, o in case.new_chain} - edited <= said
    held = {chain.subject for chain in chains(KNOWN, 2) if split_of(chain) == SPLIT}
    assert all_cases(KNOWN, (SPLIT,), 5, 0, (2,), (1,))[0].chain[0][0] in held


def test_cases_end_where_known_chains_do():
    few = replace(WORLD, facts=tuple(WORLD.facts[:60]))
    cases = all_cases(few, ("training", "evaluation", "identification"), 10_000, 0, (2,), (1,))
    assert len(cases) <= sum(1 for _ in chains(few, 2))
    assert all_cases(replace(WORLD, facts=()), ("training",), 5, 0) == []
    with pytest.raises(ValueError, match=r"no case has \(2,\) hops and \(3,\) edits"):
        all_cases(KNOWN, ("training",), 5, 0, (2,), (3,))
