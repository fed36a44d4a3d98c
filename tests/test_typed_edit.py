"""An edit that somebody types: its prompts, what is asked around it, what happened, in a line."""

from dataclasses import replace

import pandas as pd
import pytest
from test_update import random_update

from acelib.editors import ACE, IFMET, MEMIT, ROME
from acelib.measures import typed_edit
from acelib.measures.typed_edit import (
    STAY,
    TOLD,
    Answers,
    ask,
    candidates,
    check_new,
    edit_of_prompt,
    method_line,
    outcome,
    questions,
    takes_hops,
    unknown_names,
    with_hops,
)
from acelib.model.answers import Recall
from acelib.model.update import Update
from acelib.records import Edit
from acelib.world.world import load_world

WORLD = load_world()
ROM = edit_of_prompt(WORLD, "France", "The capital of {} is", "Rome")
ZORK = edit_of_prompt(WORLD, "Zork", "{} likes the taste of", "cricket")


@pytest.fixture
def lm(tiny):
    return tiny("qwen3")


def test_a_typed_edit_has_the_relation_and_the_old_answer_of_the_world():
    edit = edit_of_prompt(WORLD, "Tim Duncan", "{} plays the sport of ", "cricket")
    assert (edit.relation, edit.target_true) == ("sport", "basketball")
    assert (ZORK.relation, ZORK.target_true, ZORK.hops) == ("", "", ())
    told = edit_of_prompt(WORLD, "Zork", "{} likes", "golf", ["What the friend of Zork likes is"])
    assert told.hops == ("What the friend of Zork likes is",) and with_hops(WORLD, told) == told
    with pytest.raises(ValueError, match="a multi-hop prompt is empty"):
        edit_of_prompt(WORLD, "Zork", "{} likes", "golf", [" "])


def test_what_a_model_says_already_is_no_edit(lm, monkeypatch):
    check_new(lm, ZORK)
    monkeypatch.setattr(typed_edit, "recall", lambda *_: Recall([True], [0.0]))
    with pytest.raises(ValueError, match="tiny-qwen3 answers 'cricket' to 'Zork likes"):
        check_new(lm, ZORK)


def test_multi_hop_prompts_are_half_of_those_that_lead_there():
    made, before = with_hops(WORLD, ROM), WORLD.into("France")
    assert len(before) > 8 and len(made.hops) == 4
    assert all("capital" in hop and hop.endswith(" is") for hop in made.hops)
    few = with_hops(WORLD, ROM, [fact.subject for fact in before[2:]])
    assert len(few.hops) == 1 and before[1].subject in few.hops[0]
    assert with_hops(WORLD, ROM, [fact.subject for fact in before]) == ROM
    assert with_hops(WORLD, ZORK) == ZORK


def test_told_consequences_are_asked_apart():
    made = with_hops(WORLD, ROM)
    rows = questions(WORLD, made)
    assert list(rows.kind.unique()) == ["fact", "paraphrase", "multi-hop", TOLD]
    assert list(rows.prompt[rows.kind == TOLD]) == list(made.hops)
    assert not set(rows.prompt[rows.kind == "multi-hop"]) & set(made.hops)
    assert (rows.ideal[rows.kind == TOLD] == "Rome").all()


def test_what_must_stay_is_near_the_edit(lm):
    found = candidates(lm, WORLD, ROM, 6)
    assert tuple(found) == STAY and len(found["same relation"]) == 6
    assert {fact.relation for fact in found["same relation"]} == {"capital"}
    assert "capital" not in {fact.relation for fact in found["other relations"]}
    every = [fact for some in found.values() for fact in some]
    assert len(set(every)) == len(every) >= 12
    assert not any("France" in (fact.subject, fact.object) for fact in every)
    assert candidates(lm, WORLD, ZORK, 3)["same relation"] == []


def test_only_known_facts_must_stay(lm, monkeypatch):
    """The model "knows" every second fact, and an update makes it say nothing but Rome."""
    known = {}

    def answers(lm, prompts, updates=None):
        for prompt in prompts:
            known.setdefault(prompt, len(known) % 2 == 0)
        true = {text: fact.object for fact in WORLD.facts for text in _prompts(fact)}
        return ["Rome" if updates or not known[p] else true.get(p, "Paris") for p in prompts]

    monkeypatch.setattr(typed_edit, "_answers", answers)
    found = ask(lm, WORLD, ROM, Update(), 3)
    kinds = found.table.kind.value_counts()
    assert kinds["same relation"] == kinds["other relations"] == 3
    assert found.known["same relation"][1] == 12 and 3 <= found.known["same relation"][0] <= 9
    near = found.table[found.table.kind == "same relation"]
    assert (near.before == near.ideal).all() and not near.ok.any()
    assert found.share("fact") == "1 of 1" and found.share("nothing") == ""
    assert found.share("same relation", "other relations") == "0 of 6"


def _prompts(fact):
    return [text.replace("{}", fact.subject) for text in WORLD.relations[fact.relation].cloze]


def test_aliases_and_what_follows_a_name_count():
    said = ["The United States of America, a country", "Romeo"]
    assert typed_edit._good(WORLD, said, ["United States", "Rome"]) == [
        "United States of America" in WORLD.aliases("United States"),
        False,
    ]


# ---------------------------------------------------------------------- what happened


def made(*rows):
    table = pd.DataFrame(rows, columns=["kind", "prompt", "ideal", "before", "after", "ok"])
    return Answers(table, {})


SAID = made(
    ("fact", "The capital of France is", "Rome", "Paris", "Rome", True),
    ("paraphrase", "p", "Rome", "Paris", "Rome", True),
    ("paraphrase", "q", "Rome", "Paris", "Paris", False),
    ("same relation", "r", "Berlin", "Berlin", "Berlin", True),
    ("other relations", "s", "golf", "golf", "Rome", False),
)


def learned(lm, natural=False):
    """The model, as if it had learned from the world, or from other texts."""
    return replace(lm, natural=natural)


def test_an_edit_that_works_is_one_line(lm):
    what = outcome(learned(lm), WORLD, ROM, random_update(lm, (0,), 1, 0), SAID)
    assert what.status == "edited"
    assert what.line == (
        "edited: tiny-qwen3 says 'Rome' where it said 'Paris'; ideal are 1 of 2 paraphrases, "
        "1 of 2 facts that must stay"
    )


def test_what_the_world_does_not_have_is_said(lm):
    edit = edit_of_prompt(WORLD, "Zqxj", "The favourite colour of {} is", "blue")
    table = made(("fact", edit.text, "blue", "golf", "blue", True))
    what = outcome(learned(lm), WORLD, edit, Update(), table)
    assert what.status == "outside" and what.line == (
        "edited: tiny-qwen3 says 'blue' where it said 'golf'; but the world that tiny-qwen3 "
        "learned has no 'Zqxj' and no 'blue' and no sentence like the prompt, what it said before "
        "was a guess"
    )
    assert outcome(learned(lm, natural=True), WORLD, edit, Update(), table).status == "edited"
    assert unknown_names(learned(lm), WORLD, ROM) == []


def test_why_an_edit_failed(lm):
    table = made(("fact", ROM.text, "Rome", "Paris", "Paris", False))
    nothing = replace(Update(), editor="KN")
    what = outcome(learned(lm), WORLD, ROM, nothing, table)
    assert what == typed_edit.Outcome("failed", "not edited: KN changed no weight")
    lm = learned(lm)
    update = random_update(lm, (0,), 1, 0)
    line = outcome(lm, WORLD, ROM, update, table).line
    assert line.startswith(
        "not edited: tiny-qwen3 still says 'Paris' to 'The capital of France is'"
    )
    assert "the probability of 'Rome' " in line and ", from " in line
    zork = made(("fact", ZORK.text, "cricket", "a", "b", False))
    line = outcome(lm, WORLD, ZORK, update, zork).line
    assert "tiny-qwen3 says 'b'" in line and line.endswith(
        "the world that tiny-qwen3 learned has no 'Zork' and no sentence like the prompt"
    )


def test_a_change_stands_beside_the_weight(lm):
    update = random_update(lm, (0, 1), 1, 0)
    for layer, (norm, times) in typed_edit.sizes(lm, update).items():
        assert norm == update.norms()[layer]
        assert times == pytest.approx(norm / lm.weight(layer).norm().item())


STAGE = MEMIT(layers=(1, 2))


def test_which_ace_runs_is_said():
    ace = ACE(value=replace(STAGE, layers=(5,), position="last"), query=STAGE)
    edit = replace(ZORK, hops=("a", "b"))
    assert method_line("ACE", ace, [edit], "settings of x.toml") == (
        "ACE writes value layers 5 at the prompt's last token by 1 single-hop and 2 multi-hop "
        "prompts, then query layers 1,2 at the subject's last token by 1 single-hop prompt; "
        "settings of x.toml"
    )
    assert method_line("ACE", ace, [ZORK], "x").endswith(
        "; without multi-hop prompts it is not the published method: give some with --hop"
    )
    assert method_line("ROME", ROME(layer=3), [edit], "x") == "ROME on layer 3; x"
    assert takes_hops(ace) and takes_hops(IFMET(value=STAGE, query=STAGE))
    assert not takes_hops(STAGE) and not takes_hops(replace(ace, value_prompts=("single",)))


def test_answers_end_with_their_sentence(lm, monkeypatch):
    texts = [" Rome. And so", "\n", " Washington D.C. is", "Paris.", "J. K. Rowling, or"]
    monkeypatch.setattr(typed_edit, "generate", lambda *_: texts)
    said = ["Rome", "", "Washington D.C. is", "Paris", "J. K. Rowling, or"]
    assert typed_edit._answers(lm, ["a"] * 5) == said
    assert typed_edit._has_ended(" Rome. ") and not typed_edit._has_ended(" Rome.")
    assert not typed_edit._has_ended(" Washington D.C. ") and not typed_edit._has_ended("\nRome")
    assert typed_edit._has_ended("Rome\n")


def test_names_of_an_edit_are_those_typed(lm):
    assert isinstance(ROM, Edit) and unknown_names(learned(lm), WORLD, ZORK) == [
        "no 'Zork'",
        "no sentence like the prompt",
    ]
