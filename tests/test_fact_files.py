"""Facts of published files, each with a prompt that ends right before its object."""

import json
import shutil
from pathlib import Path

import pytest

from acelib.records import Fact
from acelib.world.fact_files import read_facts
from acelib.world.world import load_world

FILES = Path(__file__).parent / "benchmarks"
WORLD = load_world()


def test_facts_of_lama():
    assert read_facts(FILES / "TREx" / "P36.jsonl", WORLD) == [
        (Fact("France", "P36", "Paris"), "The capital of France is"),
        (Fact("Germany", "P36", "Berlin"), "The capital of Germany is"),
    ]


def test_facts_of_pararel(tmp_path):
    lines = {
        "graphs_json": [
            {"pattern": "The capital of [X] is [Y]."},
            {"pattern": "[X]'s capital is [Y]."},
        ],
        "trex_lms_vocab": [{"sub_label": "France", "obj_label": "Paris", "uuid": "1"}],
    }
    for folder, some in lines.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "P36.jsonl").write_text("\n".join(map(json.dumps, some)))
    assert read_facts(tmp_path, WORLD) == [
        (Fact("France", "P36", "Paris"), "The capital of France is")
    ]


def test_facts_before_edits():
    found = read_facts(FILES / "counterfact.json", WORLD)
    assert found[1] == (Fact("Tim Duncan", "sport", "basketball"), "Tim Duncan plays the sport of")
    with pytest.raises(ValueError, match="zsre_mend_eval.json holds no fact with its object"):
        read_facts(FILES / "zsre_mend_eval.json", WORLD)


@pytest.mark.parametrize(
    "facts, templates, said",
    [
        (
            {"predicate_id": "P9"},
            {},
            "line 1: field 'predicate_id' must be a relation of relations.",
        ),
        ({"obj_label": ""}, {}, "line 1: field 'obj_label' must be a non-empty text, got ''"),
        ({}, {"template": "[X] is"}, r"relations.jsonl, line 1: field 'template' must hold \[X\]"),
        (
            {},
            {"template": "[Y] is of [X] ."},
            r"line 1: the template of P36, '\[Y\] is of \[X\]', do",
        ),
    ],
)
def test_a_wrong_line_is_one_sentence(tmp_path, facts, templates, said):
    fact = {"sub_label": "France", "obj_label": "Paris", "predicate_id": "P36"} | facts
    known = {"relation": "P36", "template": "The capital of [X] is [Y] ."} | templates
    (tmp_path / "P36.jsonl").write_text(json.dumps(fact))
    (tmp_path / "relations.jsonl").write_text(json.dumps(known))
    with pytest.raises(ValueError, match=said):
        read_facts(tmp_path / "P36.jsonl", WORLD)


def test_templates_must_be_there(tmp_path):
    shutil.copy(FILES / "TREx" / "P36.jsonl", tmp_path)
    with pytest.raises(ValueError, match="in relations.jsonl: it must lie beside the file"):
        read_facts(tmp_path / "P36.jsonl", WORLD)
