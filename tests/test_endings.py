"""Facts about subjects whose names end alike: neither the edited subject's nor consequences."""

from random import Random

import pytest
from test_experiments import relation

from acelib.records import Edit, Fact
from acelib.study.endings import endings, same_ending_facts
from acelib.world.wording import single_hop_cloze
from acelib.world.world import Entity, World


@pytest.fixture
def people():
    """Names that end alike, some of them married."""
    names = ("Ann Lee", "Bob Lee", "Cid Lee", "Dan Fox", "Eve Lee")
    facts = [Fact(name, "home", "X") for name in names]
    facts += [
        Fact(one, "spouse", other)
        for one, other in (("Ann Lee", "Bob Lee"), ("Bob Lee", "Ann Lee"), ("Cid Lee", "Eve Lee"))
    ]
    relations = {key: relation(key, key, "person", "city") for key in ("home", "spouse")}
    entities = {name: Entity(name, "person") for name in (*names, "X")}
    return World(entities, relations, tuple(facts))


def edit_of(world, subject, key, new, old):
    return Edit(subject, world.relations[key].cloze[0], new, old, relation=key)


def test_facts_of_like_names_are_neither_the_subjects_nor_consequences(tiny, people):
    """Ann marries Cid instead of Bob: whom Bob, Cid and Ann are married to is open or changed."""
    lm, edit = tiny("gptj"), edit_of(people, "Ann Lee", "spouse", "Cid Lee", "Bob Lee")
    found = same_ending_facts(lm, people, [edit], 9, Random(0))
    assert {(fact.subject, fact.relation) for fact in found} == {
        ("Bob Lee", "home"),
        ("Cid Lee", "home"),
        ("Eve Lee", "home"),
    }
    assert len(same_ending_facts(lm, people, [edit], 2, Random(0))) == 2
    both = [edit, edit_of(people, "Eve Lee", "home", "Y", "X")]
    assert "Eve Lee" not in {f.subject for f in same_ending_facts(lm, people, both, 9, Random(0))}


def test_without_like_names_there_is_none(tiny, people):
    alone = edit_of(people, "Dan Fox", "home", "Y", "X")
    assert same_ending_facts(tiny("gptj"), people, [alone], 9, Random(0)) == []


def test_endings_are_the_last_tokens_of_names(tiny, people):
    lm = tiny("qwen3")
    for fact, token in endings(lm, people).items():
        text = single_hop_cloze(people, fact)
        start = text[: text.index(fact.subject) + len(fact.subject)]
        assert lm.tokenizer(start)["input_ids"][-1] == token
