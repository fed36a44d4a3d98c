"""Wordings of facts: of the world, and read from files in ParaRel's form."""

import json

import pytest

from acelib.records import Fact
from acelib.world.paraphrases import Reworded, answers_of, of_pararel, of_world
from acelib.world.world import load_world

PATTERNS = [
    {"pattern": "The capital of [X] is [Y].", "lemma": "capital", "tense": "present"},
    {"pattern": "[Y] is the capital of [X].", "lemma": "capital", "tense": "present"},
    {"pattern": "[X], which has the capital [Y].", "lemma": "have", "tense": "present"},
    {"pattern": "The capital of [X] is [Y]", "lemma": "capital", "tense": "present"},
    {"pattern": "[X]'s capital is [Y] .", "lemma": "capital", "tense": "present"},
]
FACTS = [
    {"uuid": "1", "sub_label": "France", "obj_label": "Paris", "predicate_id": "P36"},
    {"uuid": "2", "sub_label": "Łódź Land", "obj_label": "Łódź", "predicate_id": "P36"},
    {"uuid": "3", "sub_label": "France", "obj_label": "Paris", "predicate_id": "P36"},
]


@pytest.fixture
def pararel(tmp_path):
    def write(patterns=PATTERNS, facts=FACTS, name="P36"):
        for folder, lines in (("graphs_json", patterns), ("trex_lms_vocab", facts)):
            (tmp_path / folder).mkdir(exist_ok=True)
            text = "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines)
            (tmp_path / folder / f"{name}.jsonl").write_text(text + "\n\n", "utf-8")
        return tmp_path

    return write


def test_pararel_gives_what_ends_in_the_object(pararel):
    france, land = of_pararel(pararel(), 3)
    assert france.fact == Fact("France", "P36", "Paris") and france.group == "P36"
    assert france.prompts == (
        "The capital of France is",
        "France, which has the capital",
        "France's capital is",
    )
    assert land.prompts[2] == "Łódź Land's capital is" and land.name == "Łódź Land | P36"
    assert next(one.prompts for one in of_pararel(pararel(), 2)) == france.prompts[:2]
    assert answers_of([france, land], "P36") == ["Paris", "Łódź"]


@pytest.mark.parametrize(
    "patterns, facts, match",
    [
        (PATTERNS[:2], FACTS, "no relation has facts in trex_lms_vocab/ and 2 wordings"),
        (PATTERNS, ["{"], r"P36.jsonl, line 1: no JSON: '\{'"),
        (PATTERNS, ["[1]"], r"P36.jsonl, line 1: must be an object, got \[1\]"),
        (PATTERNS, [{"sub_label": "x"}], "line 1: field 'obj_label' must be a text, got None"),
        ([*PATTERNS, {"pattern": "[X] is"}], FACTS, "line 6: field 'pattern' must hold"),
        ([{"pattern": 3}], FACTS, "line 1: field 'pattern' must be a text, got 3"),
    ],
)
def test_lines_that_are_none_of_pararels_are_named(pararel, patterns, facts, match):
    with pytest.raises(ValueError, match=match):
        of_pararel(pararel(patterns, facts), 2)


def test_the_world_has_five_wordings_of_every_fact():
    world = load_world()
    pool = of_world(world, 5)
    assert len(pool) == len(world.facts) and {len(one.prompts) for one in pool} == {5}
    first = pool[0]
    relation = world.relations[first.fact.relation]
    assert first.prompts[4] == relation.cloze[4].replace("{}", first.fact.subject)
    assert {one.group for one in pool} <= {*world.categories(), "other"}


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="1 wordings of a fact are asked for; allowed: 2 to"):
        of_world(load_world(), 1)
    with pytest.raises(ValueError, match="1 wordings of a fact are asked for; at least two"):
        of_pararel(tmp_path, 1)
    with pytest.raises(ValueError, match="no relation has facts"):
        of_pararel(tmp_path, 2)
    with pytest.raises(ValueError, match="object of Fact.*is empty; a fact has an answer"):
        Reworded(Fact("France", "capital", " "), ("a", "b"), "CP")
    for prompts in (("a",), ("a", "a")):
        with pytest.raises(ValueError, match="'France', capital: 1 different wordings of"):
            Reworded(Fact("France", "capital", "Paris"), prompts, "CP")
