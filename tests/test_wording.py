"""Wordings compose, demonstrations avoid the asked case, answers are found and compared."""

from random import Random

import pytest

from acelib.records import Chain, Fact
from acelib.world.cases import make_cases
from acelib.world.wording import (
    demonstrations,
    few_shot,
    few_shot_demo,
    held_out,
    matches,
    multi_hop_cloze,
    multi_hop_question,
    normalise,
    parse_answer,
    single_hop_cloze,
    single_hop_question,
    statement,
)
from acelib.world.world import (
    WORLD,
    Entity,
    World,
    load_relations,
    load_world,
    sample_chains,
    split_of,
)

CHAIN = Chain(
    (
        Fact("iPhone", "manufacturer", "Apple"),
        Fact("Apple", "founder", "Steve Jobs"),
        Fact("Steve Jobs", "citizenship", "United States"),
    )
)


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


@pytest.fixture(scope="module")
def words() -> World:
    """A world of relations only: wording needs nothing else."""
    return World({"Apple": Entity("Apple", "company")}, load_relations(WORLD), ())


def test_single_hop_wordings(words):
    fact = CHAIN.facts[0]
    assert single_hop_cloze(words, fact) == "iPhone is produced by"
    assert single_hop_question(words, fact) == "Which company produced iPhone?"
    assert statement(words, fact) == "iPhone is produced by Apple."
    unseen = held_out(words, fact)
    assert {statement(words, fact, Random(i)) for i in range(50)} == {
        f"{cloze.replace('{}', 'iPhone')} Apple."
        for cloze in words.relations["manufacturer"].cloze
        if cloze != unseen[0]
    }
    assert {single_hop_question(words, fact, Random(i)) for i in range(50)} == {
        question.replace("{}", "iPhone")
        for question in words.relations["manufacturer"].questions
        if question != unseen[1]
    }


def test_held_out_wordings_are_functions_of_the_fact_and_never_canonical(words):
    manufacturer = words.relations["manufacturer"]
    drawn = [held_out(words, Fact(f"phone {i}", "manufacturer", "Apple")) for i in range(200)]
    assert drawn == [
        held_out(words, Fact(f"phone {i}", "manufacturer", "Apple")) for i in range(200)
    ]
    assert {cloze for cloze, _ in drawn} == set(
        manufacturer.cloze[1:]
    )  # so that every wording is told of other facts
    assert {question for _, question in drawn} == set(manufacturer.questions[1:])


def test_multi_hop_wordings_compose(words):
    assert (
        multi_hop_question(words, CHAIN)
        == "What is the country of citizenship of the founder of the manufacturer of iPhone?"
    )
    assert (
        multi_hop_cloze(words, CHAIN)
        == "The country of citizenship of the founder of the manufacturer of iPhone is"
    )
    assert len({multi_hop_question(words, CHAIN, Random(i)) for i in range(200)}) == 3 * 2 * 2
    assert multi_hop_question(words, CHAIN, Random(5)) == multi_hop_question(
        words, CHAIN, Random(5)
    )


def test_a_demonstration_is_worded_as_in_appendix_h(words):
    assert few_shot_demo(words, CHAIN) == (
        "Question: What is the country of citizenship of the founder of the "
        "manufacturer of iPhone?\n"
        "Thoughts: iPhone is produced by Apple. Apple was founded by Steve Jobs. "
        "Steve Jobs is a citizen of United States.\n"
        "Answer: United States"
    )
    varied = few_shot_demo(words, CHAIN, Random(1))
    assert varied.split("\n")[1:] == few_shot_demo(words, CHAIN).split("\n")[1:], (
        "the thoughts are canonical"
    )


def test_names_with_braces_stay_whole(words):
    assert statement(words, Fact("{x} Ltd", "founder", "{y}")) == "{x} Ltd was founded by {y}."


def test_the_few_shot_prompt_holds_its_demonstrations_and_the_question(world):
    prompt = few_shot(world, "Who?")
    *demos, asked = prompt.split("\n\n")
    assert asked == "Question: Who?\nThoughts:" and len(demos) == 4
    assert demos == [few_shot_demo(world, chain) for chain in demonstrations(world)]
    assert (
        few_shot(world, "Who?", n_shots=0) == "Question: Who?\nThoughts:"
        and few_shot(world, "Who?", n_shots=6).count("Answer:") == 6
    )
    with pytest.raises(ValueError, match="-1"):
        few_shot(world, "Who?", n_shots=-1)


def test_demonstrations_come_from_identification_chains_and_share_no_name_with_the_case(world):
    cases, shared = make_cases(world, "evaluation", 90, seed=0), 0
    for case in cases:
        demos = demonstrations(world, case.entities)
        assert demos == demonstrations(world, case.entities)
        assert [len(chain.facts) for chain in demos] == [2, 3, 4, 2] and len(set(demos)) == 4
        assert all(split_of(chain) == "identification" for chain in demos)
        names = [name for chain in demos for name in chain.entities]
        shared += bool(case.entities.intersection(names)) or len(set(names)) < len(names)
    assert shared == 0


def test_when_every_demonstration_shares_a_name_one_is_taken_all_the_same(world):
    everything = set(world.entities)
    assert (
        len(demonstrations(world, everything))
        == len(demonstrations(world, everything, relations=world.relations))
        == 4
    )


def test_out_of_domain_demonstrations_have_no_relation_of_the_case_and_hardly_a_name(world):
    shared = 0
    for case in make_cases(world, "evaluation", 90, seed=0):
        assert few_shot(world, "Who?", case) == few_shot(
            world, "Who?", case, 4, False
        )  # the default is what it was
        demos = demonstrations(world, case.entities, relations=case.relations)
        assert [len(chain.facts) for chain in demos] == [2, 3, 4, 2] and len(set(demos)) == 4
        assert not any(set(case.relations).intersection(chain.path) for chain in demos)
        shared += any(case.entities.intersection(chain.entities) for chain in demos)
        prompt = few_shot(world, "Who?", case, out_of_domain=True)
        named = case.entities | {edit.target_true for edit in case.edits}
        demos = demonstrations(world, named, relations=case.relations)
        assert prompt.split("\n\n")[:-1] == [few_shot_demo(world, chain) for chain in demos]
    assert shared <= 2
    assert few_shot(world, "Who?", out_of_domain=True) == few_shot(
        world, "Who?"
    )  # without a case there is no domain to leave


@pytest.mark.parametrize(
    "text, answer",
    [
        (" A is B. B is C.\nAnswer: C\n\nQuestion: next\nAnswer: D", "C"),
        (" A is B.\nAnswer: Washington, D.C.", "Washington, D.C."),
        (" A is B.\nAnswer:", ""),
        (" A is B and so on", ""),
        ("", ""),
        (" it is.\n\nQuestion: x\nAnswer: y", ""),
        ("Answer:\nC", "C"),
    ],
)
def test_answers_are_found(text, answer):
    assert parse_answer(text) == answer


def test_direct_answers_need_no_marker():
    assert (
        parse_answer(" Paris\nQ: next", marker="") == "Paris" and parse_answer(" ", marker="") == ""
    )


@pytest.mark.parametrize(
    "one, other",
    [
        ("Beyoncé", "beyonce"),
        ("Washington, D.C.", "Washington DC"),
        ("The Netherlands.", "Netherlands"),
        ("  New   York ", "new york"),
        ("rock-and-roll", "rock and roll"),
        ("O'Neill", "ONeill"),
        ("The The", "the"),
        ("The", "the"),
    ],
)
def test_normalisation(one, other):
    assert normalise(one) == normalise(other)


def test_matching_is_exact_or_by_whole_words():
    assert matches("the United States.", ("USA", "United States")) and not matches(
        "United States of America", ("United States",)
    )
    assert matches("It is the United States of America", ("United States",), substring=True)
    assert (
        not matches("Romania", ("Oman",), substring=True)
        and not matches("", ("",))
        and not matches("!", ("?",), substring=True)
    )
    assert not matches("anything", ())


def test_evaluation_questions_are_not_in_the_demonstrations(world):
    chain = sample_chains(world, "evaluation", 2, 1, Random(0))[0]
    assert multi_hop_question(world, chain) not in few_shot(world, "Who?")
