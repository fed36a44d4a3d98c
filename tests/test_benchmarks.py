"""Files of published benchmarks, in the form in which they are published, become edit cases."""

import json
from pathlib import Path

import pytest
from mutations import Judge, damaged, is_text, mutated, random

from acelib.records import Edit
from acelib.world.benchmarks import NAMES, form_of, read_edit_cases
from acelib.world.cases import make_cases
from acelib.world.edit_cases import EditCase, Probe, Question, fact_probes
from acelib.world.mquake import cases_to_json, read_cases
from acelib.world.world import load_world

FILES = Path(__file__).parent / "benchmarks"
WORLD = load_world()


def read(name, form=""):
    return read_edit_cases(FILES / name, WORLD, form)


def asked(case, kind):
    return [probe for probe in case.probes if probe.kind == kind]


def test_counterfact_as_rome_publishes_it():
    one, two = read("counterfact.json")
    assert one.name == "0"
    assert one.edits == (
        Edit(
            "Danielle Darrieux",
            "The mother tongue of {} is",
            "English",
            "French",
            relation="native_language",
        ),
    )
    first, second = asked(one, "paraphrase")
    assert first.questions[0].prompt.endswith("Danielle Darrieux, a native")
    assert second.questions[0] == Question(
        "An album was recorded for Capitol Nashville. Danielle Darrieux spoke the language",
        ("English",),
        "French",
    )
    near = asked(one, "neighbour")[0]
    assert near == Probe(
        "neighbour",
        (Question("The mother tongue of Léon Blum is", ("French",), "English"),),
        stays=True,
    )
    assert two.edits[0].relation == "sport"  # the world's name of P641
    assert fact_probes(two) == (
        Probe("fact", (Question("Tim Duncan plays the sport of", ("cricket",), "basketball"),)),
    )


def test_counterfact_as_easyedit_publishes_it():
    (case,) = read("counterfact_easyedit.json")
    assert case.edits == (Edit("Toko Yasuda", "{}, the", "piano", "guitar"),)
    assert [(p.kind, p.stays, p.questions[0].answers) for p in case.probes] == [
        ("paraphrase", False, ("piano",)),
        ("neighbour", True, ("guitar",)),
    ]


def test_zsre_in_both_readings():
    one, two = read("zsre_mend_eval.json")
    assert one.edits == (
        Edit(
            "Watts Humphrey", "What university did {} attend?", "Illinois Institute of Technology"
        ),
    )
    assert [(p.kind, p.questions[0].prompt, p.questions[0].answers) for p in one.probes] == [
        (
            "paraphrase",
            "What university did Watts Humphrey take part in?",
            ("Illinois Institute of Technology",),
        ),
        (
            "unrelated",
            "nq question: who played desmond doss father in hacksaw ridge?",
            ("Hugo Weaving",),
        ),
    ]
    assert two.probes[0].questions[0].answers == ("Lecanorales", "Lecanorales Nannf.")
    (alone,) = read("zsre_mend_eval.json", "zsre-alt")  # of the other, alt is empty
    assert alone.edits[0].target_new == "University of Michigan"
    assert alone.edits[0].target_true == "Illinois Institute of Technology"
    (further,) = read("zsre_portability.json", "zsre-alt")
    assert asked(further, "multi-hop")[0].questions[0].answers == ("Ann Arbor",)
    assert not asked(read("zsre_portability.json")[0], "multi-hop")


def test_knowedit():
    (case,) = read("knowedit_zsre.json")
    assert case.edits[0].prompt == "Which family does {} belong to?"
    assert [probe.kind for probe in case.probes] == [
        "paraphrase",
        "multi-hop",
        "same subject",
        "same subject",
    ]
    assert asked(case, "multi-hop")[0].questions[0].answers == ("Owlet moths",)
    (recent,) = read("knowedit_wiki_recent.json")
    assert asked(recent, "logic")[0].questions[0].answers == ("no", "incorrect", "false")
    assert asked(recent, "alias")[0].questions[0].answers == ("Berlin", "Berlin, Germany")
    assert recent.edits[0].target_true == ""


def test_knowedit_with_prompts_in_lists(tmp_path):
    values = json.loads((FILES / "knowedit_zsre.json").read_text())
    values[0]["locality"] = {
        "neighborhood": {"prompt": ["A is", "B is"], "ground_truth": ["a", "b"]}
    }
    path = tmp_path / "listed.json"
    path.write_text(json.dumps(values))
    (case,) = read_edit_cases(path, WORLD)
    near = asked(case, "neighbour")
    assert [probe.questions[0].answers for probe in near] == [("a",), ("b",)] and near[0].stays


def test_rippleedits():
    one, two = read("rippleedits.json")
    assert one.edits == (
        Edit(
            "Leonardo DiCaprio",
            "The name of the country of citizenship of {} is",
            "Syria",
            "United States of America",
        ),
    )
    mother = Question(
        "The name of the mother of Leonardo DiCaprio is",
        ("Irmelin DiCaprio", "Irmelin Indenbirken"),
    )
    assert asked(one, "same subject") == [Probe("same subject", (mother,), given=(mother,))]
    composed = asked(one, "composition I")[0]
    assert composed.questions[0].answers == ("Syrian pound", "SYP")
    assert composed.given[0].prompt == "The name of the currency in Syria is"
    assert asked(one, "forgetfulness")[0].every and not composed.every
    assert two.edits[0].subject == "Is This It"
    assert two.edits[0].target_new == "United States of America"


@pytest.mark.parametrize(
    "relation, sentence, subject, new",
    [
        ("CAPITAL", "The name of the capital city of Chad is Rome.", "Chad", "Rome"),
        ("FOLLOWS", "Help! follows This Is It.", "Help!", "This Is It"),
        ("PLACE_OF_BIRTH", "The place of birth of A of B is C of D.", "A of B", "C of D"),
        ("IS_ALIVE", "Is Leo Arons still alive? no.", "Leo Arons", "no"),
    ],
)
def test_a_sentence_of_rippleedits_is_cut_at_its_names(tmp_path, relation, sentence, subject, new):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{"edit": {"prompt": sentence, "relation": relation}}]))
    (case,) = read_edit_cases(path, WORLD)
    assert (case.edits[0].subject, case.edits[0].target_new) == (subject, new)
    assert f"{case.edits[0].text} {new}." == sentence


def test_the_old_fact_says_where_a_name_ends(tmp_path):
    new, old = (
        f"The name of the author of This is Art is {name}." for name in ("God is Love", "Ann")
    )
    edit = {
        "prompt": new,
        "relation": "AUTHOR",
        "original_fact": {"prompt": old, "relation": "AUTHOR"},
    }
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{"edit": edit}]))
    (case,) = read_edit_cases(path, WORLD)
    found = case.edits[0]
    assert (found.subject, found.target_new, found.target_true) == (
        "This is Art",
        "God is Love",
        "Ann",
    )


def test_mquake_a_case_a_line():
    cases = read("mquake.jsonl")
    assert [case.name for case in cases] == ["1", "12"]
    known = read_cases(FILES.parents[1] / "data" / "mquake" / "mquake_cf_sample_12.json")
    assert [case.edits for case in cases] == [case.edits for case in known[:2]]
    (multi_hop,) = asked(cases[0], "multi-hop")
    assert multi_hop.thoughts and not multi_hop.every and len(multi_hop.questions) == 3
    assert multi_hop.questions[0].answers[0] == "Emmerson Mnangagwa"
    assert multi_hop.questions[0].prompt.endswith(f"Question: {known[0].questions[0]}\nThoughts:")
    # What no edit changes must be known: the old chain, not the new.
    assert {q.prompt: q.answers[0] for q in multi_hop.given} == {
        hop.cloze: hop.answer for hop in known[0].hops
    }


def test_our_own_cases_have_their_wordings(tmp_path):

    made = make_cases(WORLD, "evaluation", 2, 0)
    (tmp_path / "own.json").write_text(cases_to_json(made, WORLD), "utf-8")
    one, _ = read_edit_cases(tmp_path / "own.json", WORLD)
    assert one.edits == made[0].edits
    assert len(asked(one, "paraphrase")) == sum(len(edit.paraphrases) for edit in one.edits)


CF, ZSRE = "counterfact.json", "zsre_mend_eval.json"


@pytest.mark.parametrize(
    "name, change, said",
    [
        (
            CF,
            lambda r: r[1].pop("case_id"),
            "record 1: field 'case_id' must be a whole number, got None",
        ),
        (
            CF,
            lambda r: r[1]["requested_rewrite"]["target_new"].update(str=""),
            "record 1: field 'requested_rewrite.target_new.str' must be a non-empty text, got ''",
        ),
        (
            CF,
            lambda r: r[0].update(paraphrase_prompts="x"),
            "'paraphrase_prompts' must be a list of",
        ),
        (
            CF,
            lambda r: r[0].update(requested_rewrite=[1]),
            "case 0: field 'orig' must hold JSON",
        ),
        (
            CF,
            lambda r: r[1].update(requested_rewrite=1),
            "record 1: field 'requested_rewrite' must be a JSON object, got 1",
        ),
        (ZSRE, lambda r: r[1].pop("src"), "record 1: field 'src' must be a non-empty text"),
        (
            ZSRE,
            lambda r: r[0].update(answers=[]),
            "field 'answers' must be a text, or a list of one",
        ),
        (
            ZSRE,
            lambda r: r[0].update(subject="Nobody"),
            "record 0: the prompt must hold the subject 'Nobody', got 'What university",
        ),
        (ZSRE, lambda r: r.append(3), "record 2: must be a JSON object, got 3"),
        (ZSRE, lambda r: r.clear(), "holds no record"),
        (ZSRE, lambda r: r.insert(0, {"a": 1}), "record 0: its fields are ['a'], those of none of"),
        (
            "knowedit_zsre.json",
            lambda r: r[0].update(locality={"x": [{"prompt": 3}]}),
            "'locality.x.0.prompt' must be a text, or a list of texts",
        ),
        (
            "rippleedits.json",
            lambda r: r[0]["edit"].update(relation="MOTHER"),
            "field 'edit.prompt' must be a sentence about its relation ('The name of the mother of",
        ),
        (
            "rippleedits.json",
            lambda r: r[0]["Relation_Specificity"][0].update(test_queries=[]),
            "'Relation_Specificity.0.test_queries' must be a list of JSON objects, one or more",
        ),
    ],
)
def test_a_wrong_field_is_one_sentence(tmp_path, name, change, said):
    records = json.loads((FILES / name).read_text("utf-8"))
    change(records)
    path = tmp_path / name
    path.write_text(json.dumps(records), "utf-8")
    with pytest.raises(ValueError) as error:
        read_edit_cases(path, WORLD)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"src": 1}\n{', "x.jsonl, line 2: is no JSON: "),
        ("{\n 'a': 1}", "x.jsonl must hold a list of JSON objects, or one object a line"),
        ("", "x.jsonl holds no record"),
        ('{"a": 1, "a": 2}', "x.jsonl, line 1: is no JSON: one object has 2 fields 'a'"),
        ("[" * 5000, "x.jsonl: is nested too deep"),
        ('[{"sub_label": "x"}]', "x.jsonl, record 0: its fields are ['sub_label'], those of none"),
    ],
)
def test_a_torn_file_is_one_sentence(tmp_path, text, said):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_edit_cases(path, WORLD)
    assert str(error.value).startswith(said)


def test_lists_and_lines_are_the_same(tmp_path):
    for name in (CF, ZSRE, "rippleedits.json", "knowedit_wiki_recent.json"):
        records = json.loads((FILES / name).read_text("utf-8"))
        path = tmp_path / name
        path.write_text("".join(json.dumps(one) + "\n" for one in records), "utf-8")
        pairs = zip(read(name), read_edit_cases(path, WORLD), strict=True)
        assert all(a.edits == b.edits and a.probes == b.probes for a, b in pairs)


def test_forms():
    with pytest.raises(ValueError, match="form 'cf' is unknown; allowed: mquake, counterfact"):
        read(CF, "cf")
    assert form_of({"sub_label": "x"}) == "" and set(NAMES) > {form_of({"src": 1})}
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read("none.json")


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.glob("*.json")))
def test_malformed_files_are_cases_or_one_sentence(tmp_path, name):
    records, path = json.loads((FILES / name).read_text("utf-8")), tmp_path / name
    rng = random(f"files of {name}")

    def check(cases):
        for case in cases:
            assert isinstance(case, EditCase) and case.edits
            assert all(is_text(edit.text) for edit in case.edits)
            for probe in case.probes:
                assert probe.questions and all(is_text(q.prompt) for q in probe.questions)
                assert probe.stays or all(q.answers for q in probe.questions)

    with Judge(f"files of {name}") as judge:
        for number in range(60):
            text = json.dumps(mutated(rng, records)).encode()
            path.write_bytes(text if number % 4 else damaged(rng, text))
            judge(lambda: read_edit_cases(path, WORLD), [name, "case 0"], text, check)
