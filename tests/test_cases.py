"""Cases are sound counterfactuals, a function of their seed, and survive MQuAKE's file format; the
published format is read as it is.
"""

import json
from collections import Counter
from copy import deepcopy

import pytest

from acelib.provenance import ROOT
from acelib.records import Chain, Edit, Fact
from acelib.world.cases import conflicts, make_cases, single_edits
from acelib.world.mquake import cases_to_json, read_cases
from acelib.world.world import World, load_world, split_of

# Shaped like a record of MQuAKE-CF-3k-v2, with its oddities: a typo in a template, an empty
# alias list, keys we do not know.
PUBLISHED = {
    "case_id": 7,
    "comment": "unknown key",
    "requested_rewrite": [
        {
            "prompt": "The univeristy where {} was educated is",
            "relation_id": "P69",
            "target_new": {"str": "Harvard University", "id": "Q13371"},
            "target_true": {"str": "Reed College", "id": "Q7"},
            "subject": "Steve Jobs",
            "question": "Which university was Steve Jobs educated at?",
        },
        {
            "prompt": "The origianl broadcaster of {} is",
            "relation_id": "P449",
            "target_new": {"str": "BBC", "id": "Q9531"},
            "target_true": {"str": "NBC", "id": "Q13974"},
            "subject": "Friends",
            "question": "Who is the original broadcaster of Friends?",
        },
    ],
    "questions": ["q one?", "q two?", "q three?"],
    "answer": "Portland",
    "answer_alias": [],
    "new_answer": "Cambridge",
    "new_answer_alias": None,
    "answer_extended": ["Portland"],
    "single_hops": [
        {
            "question": "Who founded Apple?",
            "cloze": "Apple was founded by",
            "answer": "Steve Jobs",
            "answer_alias": ["Jobs", " "],
        },
        {
            "question": "Which?",
            "cloze": "The univeristy where Steve Jobs was educated is",
            "answer": "Reed College",
        },
    ],
    "new_single_hops": [
        {
            "question": "Who founded Apple?",
            "cloze": "Apple was founded by",
            "answer": "Steve Jobs",
            "answer_alias": [],
        },
        {
            "question": "Which?",
            "cloze": "The univeristy where Steve Jobs was educated is",
            "answer": "Harvard University",
        },
    ],
    "orig": {
        "triples": [["Q312", "P112", "Q19837"], ["Q19837", "P69", "Q7"]],
        "triples_labeled": [
            ["Apple", "founded by", "Steve Jobs"],
            ["Steve Jobs", "educated at", "Reed College"],
        ],
        "new_triples": [["Q312", "P112", "Q19837"], ["Q19837", "P69", "Q13371"]],
        "new_triples_labeled": [
            ["Apple", "founded by", "Steve Jobs"],
            ["Steve Jobs", "educated at", "Harvard University"],
        ],
        "edit_triples": [["Q19837", "P69", "Q13371"]],
    },
}


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


@pytest.fixture(scope="module")
def cases(world):
    return make_cases(world, "evaluation", 180, seed=0)


@pytest.fixture
def file(tmp_path):
    def write(content) -> str:
        path = tmp_path / "cases.json"
        path.write_text(
            content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
        )
        return path

    return write


# -------------------------------------------------------------------------------------------------
# making


def test_cases_are_a_function_of_the_seed(world, cases):
    assert (
        cases
        == make_cases(world, "evaluation", 180, seed=0)
        != make_cases(world, "evaluation", 180, seed=1)
    )


def test_cases_are_balanced_over_hops_and_edits(cases):
    assert Counter((case.n_hops, case.n_edits) for case in cases) == {
        (h, e): 20 for h in (2, 3, 4) for e in range(1, h + 1)
    }
    assert [case.case_id for case in cases] == list(range(180))
    assert len({(case.chain[0][0], case.relations) for case in cases}) == 180


def test_the_old_chain_is_true_and_of_the_split(world, cases):
    for case in cases:
        facts = tuple(
            Fact(s, key, o) for (s, _, o), key in zip(case.chain, case.relations, strict=True)
        )
        assert split_of(Chain(facts)) == "evaluation" and all(
            world.lookup(f.subject, f.relation) == f.object for f in facts
        )
        assert len({facts[0].subject, *(f.object for f in facts)}) == len(facts) + 1
        assert case.answer == facts[-1].object == case.hops[-1].answer


def test_the_new_chain_follows_the_edits_through_the_world(world, cases):
    for case in cases:
        wanted = {(edit.subject, edit.relation): edit.target_new for edit in case.edits}
        name, seen = case.chain[0][0], {case.chain[0][0]}
        for (s, label, o), key in zip(case.new_chain, case.relations, strict=True):
            assert s == name and label == world.relations[key].label
            assert o == wanted.pop((s, key), world.lookup(s, key)) and o not in seen
            name = o
            seen.add(o)
        assert not wanted, "every edit lies on the new chain"
        assert name == case.new_answer != case.answer and case.new_answer not in case.answer_alias


def test_edits_are_counterfactual_and_well_typed(world, cases):
    for edit in (edit for case in cases for edit in case.edits):
        relation = world.relations[edit.relation]
        assert edit.target_true == world.lookup(edit.subject, edit.relation) != edit.target_new
        assert world.kind(edit.target_new) == world.kind(
            edit.target_true
        ) and edit.target_new in world.objects(edit.relation)
        assert (edit.prompt, *edit.paraphrases) == relation.cloze
    assert all(conflicts(case.edits) == [] for case in cases)


def test_multi_hop_prompts_of_an_edit_start_outside_the_case(world, cases):
    hops = [(case, edit, hop) for case in cases for edit in case.edits for hop in edit.hops]
    assert len(hops) > len(cases)
    for case, edit, hop in hops:
        start = [
            f.subject
            for f in world.into(edit.subject)
            if hop.endswith(f"{world.relations[f.relation].nouns[0].replace('{}', f.subject)} is")
        ]
        assert any(s not in case.entities and s != edit.target_true for s in start)
        assert hop.startswith("The ") and edit.target_new not in hop.split(" of ")


def test_three_different_questions_none_naming_a_bridge_by_itself(cases):
    for case in cases:
        assert len(set(case.questions)) == 3 and all(
            case.chain[0][0] in question and question.endswith("?") for question in case.questions
        )


def test_impossible_requests_are_refused(world):
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        make_cases(world, "evaluation", 1, 0, n_hops=(2,), n_edits=(3,))
    with pytest.raises(ValueError, match="'test'"):
        make_cases(world, "test", 1, 0)
    with pytest.raises(ValueError, match="no more than 0 chains"):
        make_cases(World({}, world.relations, world.facts[:1]), "evaluation", 1, 0)
    assert make_cases(world, "evaluation", 0, 0) == []


def test_a_dangling_object_is_no_obstacle(world):
    assert make_cases(World({}, world.relations, world.facts), "evaluation", 9, seed=0)


# -------------------------------------------------------------------------------------------------
# conflicts


def test_conflicts_are_different_targets_of_one_fact():
    one, twin = (
        Edit("Ulm", "{} is located in the country of", "France", relation="country")
        for _ in range(2)
    )
    other = Edit("Ulm", "The country of {} is", "Italy", relation="country")
    elsewhere = Edit("Ulm", "{} lies in", "Spain")
    assert conflicts([one, twin, elsewhere]) == [] and conflicts([one, other, twin]) == [
        (one, other)
    ]
    assert conflicts([elsewhere, Edit("Ulm", "{} lies in", "Peru")]) != []


# -------------------------------------------------------------------------------------------------
# files


def test_our_file_survives_the_round_trip_and_has_the_published_fields(world, cases, file):
    text = cases_to_json(cases, world)
    assert read_cases(file(text)) == cases
    for record in json.loads(text):
        assert set(record) == set(PUBLISHED) - {"comment", "answer_extended"}
        assert set(record["orig"]) == set(PUBLISHED["orig"])
        assert all(
            set(rewrite) == {*PUBLISHED["requested_rewrite"][0], "paraphrases", "hops"}
            for rewrite in record["requested_rewrite"]
        )
        assert all(rewrite["question"].endswith("?") for rewrite in record["requested_rewrite"])
        assert len(record["questions"]) == 3 and len(record["orig"]["edit_triples"]) == len(
            record["requested_rewrite"]
        )
        assert all(
            set(hop) == {"question", "cloze", "answer", "answer_alias"}
            for hop in record["single_hops"] + record["new_single_hops"]
        )


def test_a_published_record_is_read_with_its_oddities(file):
    (case,) = read_cases(file([PUBLISHED]))
    assert (case.case_id, case.n_hops, case.n_edits) == (7, 2, 2) and case.relations == (
        "founder",
        "education",
    )
    first, second = case.edits
    assert first == Edit(
        "Steve Jobs",
        "The univeristy where {} was educated is",
        "Harvard University",
        "Reed College",
        relation="education",
    )
    assert second.relation == "P449", "a Wikidata id that the world does not know stays as it is"
    assert case.new_answer_alias == case.answer_alias == () and case.hops[0].answer_alias == (
        "Jobs",
    )
    assert case.new_chain[-1] == ("Steve Jobs", "educated at", "Harvard University")


def test_extended_answers_are_accepted_before_the_edit(file):
    extended = PUBLISHED | {"answer_alias": ["PDX"], "answer_extended": ["Portland", "PDX", "Ore."]}
    (case,) = read_cases(file([extended]))
    assert case.answer_alias == ("PDX", "Ore.") and case.new_answer_alias == ()


def test_a_case_that_is_there_twice_is_refused(file):
    other = PUBLISHED | {"case_id": 8}
    assert len(read_cases(file([PUBLISHED, other]))) == 2
    with pytest.raises(ValueError, match="cases.json: 2 cases have the case_id 7"):
        read_cases(file([PUBLISHED, other, PUBLISHED]))


def test_conflicts_across_published_cases_are_reported_not_fatal(file):
    other = deepcopy(PUBLISHED)
    other["case_id"], other["requested_rewrite"][0]["target_new"]["str"] = 8, "MIT"
    found = read_cases(file([PUBLISHED, other]))
    assert [len(group) for group in conflicts(edit for case in found for edit in case.edits)] == [2]


def test_the_twelve_published_cases_are_read_as_they_are():
    """Every rewrite, question and answer of the file; relations by their Wikidata ids."""
    path, world = ROOT / "data" / "mquake" / "mquake_cf_sample_12.json", load_world()
    cases, records = read_cases(path, world.relations), json.loads(path.read_text("utf-8"))
    assert [case.case_id for case in cases] == [1, 12, 13, 20, 21, 28, 32, 35, 38, 45, 49, 54]
    assert Counter(case.n_edits for case in cases) == {1: 5, 2: 7}
    assert {case.n_hops for case in cases} == {2}
    for case, record in zip(cases, records, strict=True):
        rewrites = record["requested_rewrite"]
        assert [edit.target_new for edit in case.edits] == [
            r["target_new"]["str"] for r in rewrites
        ]
        assert [edit.text for edit in case.edits] == [
            r["prompt"].format(r["subject"]) for r in rewrites
        ]
        assert list(case.questions) == record["questions"] and len(case.questions) == 3
        assert (case.answer, case.new_answer) == (record["answer"], record["new_answer"])
        # The chain after the edits ends in the new answer, and asks for what is edited.
        assert case.new_hops[-1].answer == case.new_answer
        clozes = {hop.cloze for hop in case.new_hops}
        assert all(edit.text in clozes for edit in case.edits)
    first = cases[0].edits[0]
    assert (first.subject, first.relation) == ("Fernando Santos", "citizenship")
    edits = [edit for case in cases for edit in case.edits]
    assert not conflicts(edits), "all twelve can be edited together"


def _without(*path):
    def spoil(record):
        for step in path[:-1]:
            record = record[step]
        del record[path[-1]]

    return spoil


def _with(value, *path):
    def spoil(record):
        for step in path[:-1]:
            record = record[step]
        record[path[-1]] = value

    return spoil


@pytest.mark.parametrize(
    "spoil, message",
    [
        (_without("case_id"), "record 0: field 'case_id'"),
        (_with("7", "case_id"), "record 0: field 'case_id'"),
        (_without("requested_rewrite"), "case 7: field 'requested_rewrite'"),
        (_with([], "requested_rewrite"), "case 7: field 'requested_rewrite'"),
        (_with(["text"], "requested_rewrite"), "case 7: field 'requested_rewrite' must hold JSON"),
        (_without("requested_rewrite", 0, "subject"), "case 7: field 'requested_rewrite.subject'"),
        (
            _with("Reed College", "requested_rewrite", 0, "target_new"),
            "case 7: field 'requested_rewrite.target_new'",
        ),
        (
            _without("requested_rewrite", 1, "target_true", "str"),
            "case 7: field 'requested_rewrite.target_true.str'",
        ),
        (
            _with("no slot", "requested_rewrite", 0, "prompt"),
            "case 7: field 'requested_rewrite': .*no slot",
        ),
        (
            _with("Reed College", "requested_rewrite", 0, "target_new", "str"),
            "case 7: field 'requested_rewrite': .*already",
        ),
        (_with("one?", "questions"), "case 7: field 'questions'"),
        (_with([], "questions"), "case 7: field 'questions'"),
        (_with([1], "questions"), "case 7: field 'questions'"),
        (_without("answer"), "case 7: field 'answer'"),
        (_with("", "new_answer"), "case 7: field 'new_answer'"),
        (_with("Portland, OR", "answer_alias"), "case 7: field 'answer_alias'"),
        (_without("single_hops", 0, "cloze"), "case 7: field 'single_hops.cloze'"),
        (_without("new_single_hops"), "case 7: field 'new_single_hops'"),
        (_without("orig"), "case 7: field 'orig'"),
        (_with([["a", "b"]], "orig", "triples"), "case 7: field 'orig.triples'"),
        (_with([["a", 1, "b"]], "orig", "triples"), "case 7: field 'orig.triples'"),
        (_with({}, "orig", "new_triples_labeled"), "case 7: field 'orig.new_triples_labeled'"),
        (_with(True, "case_id"), "record 0: field 'case_id' must be a whole number, got True"),
        (_with(" ", "answer"), "case 7: field 'answer' must be a non-empty text, got ' '"),
        (_with("\ud800", "answer"), "case 7: field 'answer' must be a non-empty text"),
        (_with(["\ud800"], "questions"), "case 7: field 'questions' must be a list of texts"),
        (_with([" "], "questions"), "case 7: field 'questions'"),
        (_with(0, "answer_alias"), "case 7: field 'answer_alias' must be a list of texts, got 0"),
        (_with("Ore.", "answer_extended"), "case 7: field 'answer_extended'"),
        (_with([7], "single_hops", 0, "answer_alias"), "case 7: field 'single_hops.answer_alias'"),
        (_with(None, "single_hops", 0), "case 7: field 'single_hops' .* got None"),
        (_without("single_hops", 0), "case 7: field 'single_hops' must be .* 2, one for each fact"),
        (_without("new_single_hops", 1), "case 7: field 'new_single_hops' must be .* 2, one for"),
        (_without("orig", "triples_labeled", 0), "case 7: field 'orig.triples_labeled' .* 2 tri"),
        (_without("orig", "triples", 0), "case 7: field 'single_hops' must be .* 1, one for"),
        (_with("long " * 4000, "answer_alias"), "^.{80,250}$"),
        (_with("long " * 4000, "requested_rewrite", 0, "prompt"), "^.{80,250}$"),
        (_with({"long " * 4000: "long " * 4000}, "questions"), "^.{80,400}$"),
    ],
)
def test_malformed_records_are_refused_by_case_and_field(file, spoil, message):
    record = deepcopy(PUBLISHED)
    spoil(record)
    with pytest.raises(ValueError, match=message):
        read_cases(file([record]))


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cases.json cannot be read as a JSON file"),
        ("", "cases.json cannot be read as a JSON file"),
        ("[" * 5000, "cases.json cannot be read as a JSON file: it is nested too deep"),
        ({"case_id": 1}, "cases.json must hold a list of cases, got dict"),
        (["text"], "cases.json, record 0: it must hold JSON objects, got 'text'"),
        ([[]], r"cases.json, record 0: it must hold JSON objects, got \[\]"),
    ],
)
def test_files_that_are_no_case_lists_are_refused(file, content, message):
    with pytest.raises(ValueError, match=message):
        read_cases(file(content))


def test_a_file_that_is_no_utf8_is_refused(file):
    path = file([PUBLISHED])
    path.write_bytes(path.read_bytes().replace(b"Jobs", b"J\xffbs"))
    with pytest.raises(ValueError, match="cases.json cannot be read as a JSON file: 'utf-8'"):
        read_cases(path)


def _places(value, path=()):
    """The paths to everything in a JSON value."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(part, (dict, list)):
            yield from _places(part, (*path, key))
        else:
            yield (*path, key)


def test_another_kind_of_value_anywhere_is_read_or_one_sentence(file):
    """Nothing but a ValueError that names the case, whatever stands wherever."""
    for path in list(_places(PUBLISHED))[1:]:
        for value in (None, True, 0, -1.5, "", "text", [], ["text"], {}, {"str": []}, [[1, 2, 3]]):
            record = deepcopy(PUBLISHED)
            _with(value, *path)(record)
            try:
                read_cases(file([record]))
            except ValueError as error:
                said = str(error)
                assert said.startswith(("case ", "cases.json, record 0")) and len(said) < 400, path


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none.json"):
        read_cases(tmp_path / "none.json")


def test_single_edits_change_one_fact_each(world):
    edits = single_edits(world, 50, seed=3)
    assert edits == single_edits(world, 50, seed=3) != single_edits(world, 50, seed=4)
    assert len({(edit.subject, edit.relation) for edit in edits}) == 50
    for edit in edits:
        assert world.lookup(edit.subject, edit.relation) == edit.target_true != edit.target_new
        assert world.kind(edit.target_new) == world.kind(
            edit.target_true
        ) and edit.target_new in world.objects(edit.relation)
        assert edit.paraphrases == tuple(world.relations[edit.relation].cloze[1:])
    with pytest.raises(ValueError, match="100000 single edits asked for; this world has"):
        single_edits(world, 100_000)
