"""Facts about subjects whose names end alike: neither the edited subject's nor consequences."""

from random import Random

import pytest
from test_experiments import relation

from acelib.measures import endings
from acelib.measures.endings import Endings
from acelib.records import Edit, Fact
from acelib.world.wording import single_hop
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


def test_facts_of_like_names_are_neither_the_subjects_nor_consequences(tiny, people, monkeypatch):
    """Ann marries Cid instead of Bob: whom Bob, Cid and Ann are married to is open or changed."""
    monkeypatch.setattr(endings, "known_items", lambda lm, items, ask: items)
    found_in = Endings(tiny("gptj"), people)
    edit = edit_of(people, "Ann Lee", "spouse", "Cid Lee", "Bob Lee")
    found = found_in.facts([edit], 9, Random(0))
    assert {(fact.subject, fact.relation) for fact in found} == {
        ("Bob Lee", "home"),
        ("Cid Lee", "home"),
        ("Eve Lee", "home"),
    }
    assert len(found_in.facts([edit], 2, Random(0))) == 2
    both = [edit, edit_of(people, "Eve Lee", "home", "Y", "X")]
    assert "Eve Lee" not in {fact.subject for fact in found_in.facts(both, 9, Random(0))}


def test_without_like_names_or_known_facts_there_is_none(tiny, people, monkeypatch):
    found_in = Endings(tiny("gptj"), people)
    alone = edit_of(people, "Dan Fox", "home", "Y", "X")
    assert found_in.facts([alone], 9, Random(0)) == []
    monkeypatch.setattr(endings, "known_items", lambda lm, items, ask: [])
    edit = edit_of(people, "Ann Lee", "home", "Y", "X")
    assert found_in.facts([edit], 9, Random(0)) == []


def test_endings_are_the_last_tokens_of_names(tiny, people):
    lm = tiny("qwen3")
    for fact, token in Endings(lm, people).by_fact.items():
        text, _ = single_hop(people, fact)
        start = text[: text.index(fact.subject) + len(fact.subject)]
        assert lm.tokenizer(start)["input_ids"][-1] == token
