"""Runs: one row a case, the same whether batched, alone, or interrupted and continued; results are
named by all they depend on.
"""

import json
from dataclasses import dataclass, field, replace
from random import Random
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from test_update import bits, random_update, same_bits

from acelib.editing.moments import Moments
from acelib.editors import preset
from acelib.model import answers
from acelib.model.answers import Recall
from acelib.records import Case, Edit, Fact, Hop
from acelib.study import experiments
from acelib.study import judge as judging
from acelib.study.experiments import Corpus, balanced, comparison, known_cases
from acelib.study.judge import Protocol, judge, lost_hop
from acelib.world.cases import make_cases
from acelib.world.world import Entity, Relation, World, load_world, unrelated_facts

PROTOCOL = Protocol(n_shots=0, n_unrelated=6, max_new_tokens=3)


def run(lm, world, editors, cases, moments, folder, progress=None, **options) -> pd.DataFrame:
    """The rows of editors on cases, in a folder of their own."""
    series = comparison(lm.name, lm, world, editors, cases, moments, **options)
    return experiments.run(series, folder, progress)


def relation(key, noun, subject, object_):
    cloze = (
        f"The {noun} of {{}} is",
        f"{{}} has the {noun}",
        f"{{}}, {noun}:",
        f"Of {{}} the {noun} is",
        f"{{}} {noun}",
    )
    return Relation(
        key,
        "P" + key,
        key,
        None,
        (subject,),
        object_,
        cloze,
        (f"What is the {noun} of {{}}?", f"Which {noun} has {{}}?"),
        (f"the {noun} of {{}}", f"{{}}'s {noun}"),
    )


@pytest.fixture(scope="module")
def world() -> World:
    people, cities, countries = (
        [f"{kind}{i}" for i in range(n)] for kind, n in (("P", 60), ("C", 8), ("L", 4))
    )
    kinds = {
        name: kind
        for kind, names in (("person", people), ("city", cities), ("land", countries))
        for name in names
    }
    facts = [Fact(name, "home", cities[i % 8]) for i, name in enumerate(people)]
    facts += [Fact(name, "land", countries[i % 4]) for i, name in enumerate(cities)]
    return World(
        {name: Entity(name, kind) for name, kind in kinds.items()},
        {
            "home": relation("home", "home", "person", "city"),
            "land": relation("land", "land", "city", "land"),
        },
        tuple(facts),
    )


@pytest.fixture(scope="module")
def cases(world):
    return make_cases(world, "evaluation", 6, seed=0, n_hops=(2,), n_edits=(1, 2))


@dataclass(frozen=True)
class Fake:
    """An editor whose updates are noise, each a function of its edits; from call ``fail`` on it
    breaks.
    """

    strength: float = 0.1
    fail: int = field(default=99, repr=False)
    calls: list = field(default_factory=list, repr=False)

    def each(self, lm, groups, moments):
        self.calls.append(len(groups))
        if len(self.calls) >= self.fail:
            raise KeyboardInterrupt
        return [
            random_update(
                lm, (1,), rank=1, seed=sum(map(ord, edits[0].subject + edits[0].target_new))
            )
            for edits in groups
        ]


def test_a_row_for_each_editor_and_case(tiny, world, cases, tmp_path):
    lm, fake, told = tiny("qwen3"), Fake(), []
    before = bits(lm)
    frame = run(
        lm,
        world,
        {"base": None, "fake": fake},
        cases,
        None,
        tmp_path,
        protocol=PROTOCOL,
        chunk=4,
        progress=lambda *state: told.append(state),
    )
    assert same_bits(lm, before) and fake.calls == [4, 2]
    assert [done for done, total, _ in told] == [0, 4, 6, 6, 10, 12] and told[0][1] == 12
    assert (
        frame.editor.tolist() == ["base"] * 6 + ["fake"] * 6
        and frame.case_id.tolist() == [case.case_id for case in cases] * 2
    )
    assert frame.n_edits.tolist() == [case.n_edits for case in cases] * 2 and all(
        len(answers) == 3 for answers in frame.answers
    )
    for column in (
        "multi_hop",
        "multi_hop_each",
        "multi_hop_substring",
        "efficacy",
        "paraphrase",
        "specificity",
        "specificity_token",
    ):
        assert frame[column].between(0, 1).all()
    alone = [
        judge(lm, world, [case], fake.each(lm, [case.edits], None), PROTOCOL)[0] for case in cases
    ]
    edited = frame[6:].reset_index(drop=True)
    assert_frame_equal(edited.drop(columns=["editor", "written"]), pd.DataFrame(alone))
    sizes = [*fake.each(lm, [case.edits for case in cases], None)]
    assert edited.written.tolist() == pytest.approx([update.norms()[1] for update in sizes])
    assert frame.written[:6].eq(0).all()


def test_a_case_is_edited_once_for_all_protocols(tiny, world, cases, tmp_path):
    lm, fake = tiny("qwen3"), Fake()
    asked = {"first": PROTOCOL, "other": replace(PROTOCOL, max_new_tokens=1, n_unrelated=0)}
    frame = run(lm, world, {"fake": fake}, cases, None, tmp_path, protocol=asked)
    assert fake.calls == [6] and frame.prompt.tolist() == ["first", "other"] * 6
    assert frame.specificity.isna().tolist() == [False, True] * 6
    shown = ["case_id", "answers", "multi_hop", "efficacy", "paraphrase", "written"]
    for name, protocol in asked.items():
        alone = run(lm, world, {"fake": fake}, cases, None, tmp_path / name, protocol=protocol)
        part = frame[frame.prompt == name].reset_index(drop=True)
        assert_frame_equal(part[shown], alone[shown])
    [one] = comparison("m", lm, world, {"fake": fake}, cases, None, PROTOCOL)
    [both] = comparison("m", lm, world, {"fake": fake}, cases, None, asked)
    assert json.loads(one.depends["protocol"])["n_shots"] == 0
    assert json.loads(both.depends["protocol"])["other"]["n_unrelated"] == 0


def test_what_an_answer_counts_for(tiny, world, cases, monkeypatch):
    """The judge on a made-up model that says the new answers in a sentence to one question, and
    knows one wording of each edit.
    """
    case, known = cases[1], {(edit.text, edit.target_new) for edit in cases[1].edits}
    assert case.n_edits == 2
    said, recall = (
        case.new_answer,
        lambda lm, prompts, answers, _: Recall(
            [pair in known for pair in zip(prompts, answers, strict=True)], []
        ),
    )
    first = f" So {case.new_hops[0].answer}. Answer: "
    monkeypatch.setattr(
        judging,
        "generate",
        lambda *_: [f"{first}The {said}!", f" Well.\nAnswer: it is {said} now", f"{first}{said}x"],
    )
    monkeypatch.setattr(judging, "recall", recall)
    (row,) = judge(tiny("gpt2"), world, [case], [None], PROTOCOL)
    assert (row["multi_hop"], row["multi_hop_each"], row["multi_hop_substring"]) == (1, 1 / 3, 1)
    assert (row["efficacy"], row["paraphrase"], row["specificity"]) == (1, 0, 0) and row[
        "lost_at"
    ] == [2, 1, 2]
    (row,) = judge(tiny("gpt2"), world, [case], None, PROTOCOL)
    assert (row["multi_hop"], row["efficacy"]) == (
        0,
        0,
    )  # the unedited model is asked for the old answers


def test_specificity_is_that_of_two_kinds_of_facts_and_the_third_stands_beside(
    tiny, world, cases, monkeypatch
):
    """One of two facts of an edited relation is kept, two of two others, one of four whose subject
    ends in the same token.
    """
    relations = {edit.relation for edit in cases[0].edits}
    near = [fact for fact in world.facts if fact.relation in relations][:2]
    far = [fact for fact in world.facts if fact.relation not in relations][:2]
    alike = list(world.facts[-4:])
    kept = {judging._asked(world, fact) for fact in (near[0], *far, alike[0])}

    def recall(lm, prompts, answers, _):
        return Recall([pair in kept for pair in zip(prompts, answers, strict=True)], [])

    monkeypatch.setattr(judging, "generate", lambda lm, prompts, *_: ["no"] * len(prompts))
    monkeypatch.setattr(judging, "recall", recall)
    monkeypatch.setattr(judging, "unrelated_facts", lambda *_: near + far)
    monkeypatch.setattr(judging, "same_ending_facts", lambda *_: alike)
    (row,) = judge(tiny("gpt2"), world, cases[:1], [None], PROTOCOL)
    assert (row["specificity_near"], row["specificity_far"]) == (1 / 2, 1)
    assert (row["specificity"], row["specificity_token"]) == (3 / 4, 1 / 4)


def test_the_hop_at_which_a_chain_of_thought_is_lost():
    hops = [
        Hop("?", "P1 lives in", "Oslo"),
        Hop("?", "Oslo lies in", "the Kingdom of Norway", ("Norway",)),
        Hop("?", "It speaks", "Sami"),
    ]
    texts = {
        "P1 lives in Oslo. Oslo lies in Norway. It speaks Sami.\nAnswer: x": 0,
        "P1 lives in Oslo. Oslo lies in Norway.\nAnswer: Sami": 3,
        "Oslo and Sami": 2,
        "Oslow in Norway": 1,
        "": 1,
    }
    assert {text: lost_hop(text, hops) for text in texts} == texts and lost_hop("", []) == 0


def test_a_fact_that_an_edit_changes_through_its_inverse_is_not_unrelated():
    world = load_world()
    old = next(
        fact for fact in world.facts if fact.relation == "spouse" and fact.object != "Barack Obama"
    )
    case = Case(
        7,
        (Edit(old.subject, "{} is married to", "Barack Obama", old.object, relation="spouse"),),
        (),
        "",
        (),
        "",
        (),
        (),
        (),
        (),
        (),
        ("spouse",),
    )
    chosen = unrelated_facts(world, case.edits, 2 * len(world.facts), Random(0))
    about = {(fact.subject, fact.relation) for fact in chosen}
    assert len([fact for fact in chosen if fact.relation == "spouse"]) > 10
    assert about.isdisjoint(
        {(old.subject, "spouse"), (old.object, "spouse"), ("Barack Obama", "spouse")}
    )


def test_second_moments_of_another_model_are_refused(tiny, world, cases, tmp_path):
    lm, moments = (
        tiny("qwen3"),
        Moments({0: torch.eye(48).double()}, 7, tiny("qwen3", seed=1).fingerprint),
    )
    with pytest.raises(
        ValueError, match="the second moments are of the model .*, not of 'tiny-qwen3'"
    ):
        run(lm, world, {"base": None}, cases, moments, tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_that_two_runs_have_written_count_once(tiny, world, cases, tmp_path):
    lm = tiny("qwen3")
    whole = run(lm, world, {"fake": Fake()}, cases, None, tmp_path, protocol=PROTOCOL)
    (path,) = tmp_path.rglob("*.jsonl")
    head, *rows = path.read_text().splitlines(keepends=True)
    path.write_text(head + "".join(rows + rows[:3]))
    assert_frame_equal(
        run(lm, world, {"fake": Fake()}, cases, None, tmp_path, protocol=PROTOCOL), whole
    )


def test_the_protocol_chooses_the_demonstrations(tiny, world, cases, monkeypatch):
    asked = []
    monkeypatch.setattr(judging, "few_shot", lambda *given: asked.append(given) or given[1])
    for protocol in (
        PROTOCOL,
        replace(PROTOCOL, n_shots=1),
        replace(PROTOCOL, n_shots=4, out_of_domain=True),
    ):
        judge(tiny("gpt2"), world, cases[:1], None, protocol)
    assert [given[3:] for given in asked[::3]] == [(0, False), (1, False), (4, True)]
    assert [given[:3] for given in asked[:3]] == [
        (world, question, cases[0]) for question in cases[0].questions
    ]


def test_an_interrupted_run_continues(tiny, world, cases, tmp_path):
    lm, go = tiny("qwen3"), dict(protocol=PROTOCOL, chunk=2)
    whole = run(lm, world, {"fake": Fake()}, cases, None, tmp_path / "whole", **go)
    with pytest.raises(KeyboardInterrupt):
        run(lm, world, {"fake": Fake(fail=2)}, cases, None, tmp_path / "cut", **go)
    fake, told = Fake(), []
    again = run(
        lm,
        world,
        {"fake": fake},
        cases,
        None,
        tmp_path / "cut",
        **go,
        progress=lambda *state: told.append(state),
    )
    assert_frame_equal(again, whole)
    assert fake.calls == [2, 2] and [state[:2] for state in told] == [(2, 6), (4, 6), (6, 6)]
    idle = Fake()
    assert_frame_equal(run(lm, world, {"fake": idle}, cases, None, tmp_path / "cut", **go), whole)
    assert idle.calls == [] and len(list((tmp_path / "cut").rglob("*.jsonl"))) == 1


@pytest.mark.parametrize(
    "damage, lost",
    [
        (lambda text: text[:-9], 1),
        (lambda text: text[:-1], 1),
        (lambda text: "", 6),
        (lambda text: text[:30], 6),
        (lambda text: "[]\n" + text[text.index("\n") :], 6),
        (lambda text: text.replace('"case_id"', '"case_id', 1), 1),
    ],
    ids=["torn", "no newline", "empty", "torn manifest", "no manifest", "garbage"],
)
def test_a_damaged_file_loses_what_is_damaged(tiny, world, cases, tmp_path, damage, lost):
    lm = tiny("qwen3")
    whole = run(lm, world, {"fake": Fake()}, cases, None, tmp_path, protocol=PROTOCOL)
    (path,) = tmp_path.rglob("*.jsonl")
    content = path.read_text()
    path.write_text(damage(content))
    fake = Fake()
    assert_frame_equal(
        run(lm, world, {"fake": fake}, cases, None, tmp_path, protocol=PROTOCOL), whole
    )
    assert fake.calls == [lost] and run_again_is_idle(lm, world, cases, tmp_path)
    manifest = json.loads(content.split("\n")[0])["manifest"]
    assert manifest["depends"]["model"] == f"{lm.fingerprint} torch.float64"
    assert manifest["depends"]["settings"] == "Fake(strength=0.1)"


def run_again_is_idle(lm, world, cases, folder) -> bool:
    fake = Fake()
    run(lm, world, {"fake": fake}, cases, None, folder, protocol=PROTOCOL)
    return not fake.calls


def test_what_rows_depend_on(tiny, world, cases):
    lm, moments = tiny("qwen3"), Moments({0: torch.eye(48).double()}, 7)
    base = dict(lm=lm, world=world, editor=Fake(), cases=cases, moments=moments, protocol=PROTOCOL)

    def manifest(editor, **given):
        (series,) = comparison("m", editors={"e": editor}, **given)
        return json.dumps([series.manifest, *series.keys.values()])

    changes = [
        dict(lm=tiny("qwen3", seed=1)),
        dict(lm=tiny("qwen3", dtype=torch.float32)),
        dict(world=replace(world, facts=world.facts[1:])),
        dict(editor=Fake(0.2)),
        dict(editor=None),
        dict(cases=cases[1:]),
        dict(cases=[replace(cases[0], new_answer="x"), *cases[1:]]),
        dict(moments=None),
        dict(moments=replace(moments, tokens=8)),
        dict(moments=replace(moments, matrices={0: 2 * torch.eye(48)})),
        dict(moments=Corpus(lm, ["a text"], [0])),
        dict(moments=Corpus(lm, ["another text"], [0])),
        dict(protocol=replace(PROTOCOL, seed=1)),
        dict(protocol=replace(PROTOCOL, out_of_domain=True)),
    ]
    assert manifest(**base) == manifest(**base | dict(editor=Fake(fail=3)))
    assert len({manifest(**base | change) for change in [{}, *changes]}) == len(changes) + 1


def test_second_moments_are_gathered_when_an_edit_needs_them(tiny, world, cases, monkeypatch):
    gathered = []
    monkeypatch.setattr(
        experiments,
        "second_moments",
        lambda *given, progress, attn: gathered.append((*given, attn)) or 7,
    )
    lm, given = tiny("qwen3"), []

    class Reader(Fake):
        def each(self, lm, groups, moments):
            given.append(moments)
            return super().each(lm, groups, moments)

    corpus = Corpus(lm, ["a text"], [0], [1])
    editors = {"Base": None, "reader": Reader()}
    base, reader = comparison("m", lm, world, editors, cases[:2], corpus, PROTOCOL)
    base.rows(list(base.items)[:1])
    assert not gathered
    reader.rows(list(reader.items)[:1]), reader.rows(list(reader.items)[1:])
    assert gathered == [(lm, ["a text"], [0], [1])] and given == [7, 7]


def test_moments_are_of_all_layers_that_an_editor_writes(tiny):
    both = SimpleNamespace(layers=(1, 2), attn_layers=(2,))
    editors = [SimpleNamespace(layers=(3, 1)), object(), None, both]
    lm, world = tiny("qwen3"), load_world()
    corpus = experiments.corpus(lm, world, editors)
    assert corpus.layers == [1, 2, 3] and corpus.attn_layers == [2]
    assert len(corpus.texts) == experiments.N_TEXTS
    assert not experiments.corpus(lm, world, [None]).moments.matrices


def test_rows_depend_on_the_code_of_an_editor_and_of_its_settings(tiny, world, cases):
    ace = preset("ACE", "gptj-mini")
    base, edited = comparison("m", tiny("gpt2"), world, {"Base": None, "ACE": ace}, cases, None)
    assert base.code == ("acelib.study.judge",)
    assert {"acelib.editors.ace", "acelib.editing.search"} < set(edited.code)


def test_known_cases_ask_for_every_fact_that_must_be_known(tiny, cases, monkeypatch):
    """Old and new chain, but not the edited facts' new objects; one unknown hop drops the case."""
    asked, unknown = [], cases[2].hops[1].cloze

    def recall(lm, prompts, answers):
        asked.extend(zip(prompts, answers, strict=True))
        return Recall([prompt != unknown for prompt in prompts], [])

    monkeypatch.setattr(answers, "recall", recall)
    kept = known_cases(tiny("gpt2"), cases)
    assert cases[2] not in kept and kept == [
        case for case in cases if unknown not in {hop.cloze for hop in case.hops + case.new_hops}
    ]
    assert not {(edit.text, edit.target_new) for case in cases for edit in case.edits} & set(asked)
    assert {(hop.cloze, hop.answer) for case in cases for hop in case.hops} <= set(asked)
    assert known_cases(tiny("gpt2"), []) == []


def test_unrelated_facts_leave_out_the_edited_ones(world, cases):
    for case in cases:
        edited, relations = (
            {(e.subject, e.relation) for e in case.edits},
            {e.relation for e in case.edits},
        )
        chosen = unrelated_facts(world, case.edits, 6, Random(0))
        assert chosen == unrelated_facts(world, case.edits, 6, Random(0))
        assert len(set(chosen)) == len(chosen)
        assert not {(f.subject, f.relation) for f in chosen} & edited and set(chosen) <= set(
            world.facts
        )
        assert sum(f.relation in relations for f in chosen) == 3
        assert len(chosen) == (
            6 if len(relations) == 1 else 3
        )  # two relations edited: this world has no other
    edits = cases[0].edits
    one, other = (unrelated_facts(world, edits, 6, Random(seed)) for seed in (0, 1))
    assert one != other
    assert len(unrelated_facts(world, edits, 10_000, Random(0))) == len(world.facts) - 1


def test_balanced_and_refusals(tiny, world, cases, tmp_path):
    assert [case.case_id for case in balanced(cases, 2)] == [0, 1, 2, 3]
    lm = tiny("gpt2")
    base = {"base": None}
    for editors, chosen, chunk, said in (
        (base, [], 4, "0 cases, 1 editors"),
        ({}, cases, 4, "6 cases, 0 editors"),
        (base, [*cases, cases[0]], 4, "7 cases have 6 different ids"),
        (base, cases, 0, "chunks of 0"),
    ):
        with pytest.raises(ValueError, match=said):
            run(lm, world, editors, chosen, None, tmp_path, chunk=chunk)
    assert not list(tmp_path.iterdir())


def test_what_rows_depend_on_is_said_for_series_of_other_kinds(tiny, world):
    lm, ace = tiny("gptj"), preset("ACE", "gptj-mini")
    corpus = Corpus(lm, ["a text"], [1])
    said = experiments.depends(lm, world, ace, corpus)
    assert said["settings"] == repr(ace) and said["moments"] == str(corpus)
    assert lm.fingerprint in said["model"] and said["world"] == world.digest
    assert experiments.depends(lm, world, None, corpus)["moments"] == ""
    assert experiments.modules(ace) == tuple(sorted(set(experiments.modules(ace))))
    assert "acelib.editors.ace" in experiments.modules(ace) and experiments.modules(None) == ()


def test_evaluation_cases_are_the_first_known_ones_of_each_number_of_edits(monkeypatch, world):
    pool = make_cases(world, "evaluation", 16, seed=0, n_hops=(2,), n_edits=(1, 2))
    asked = []

    def known(lm, cases):
        asked.append(len(cases))
        return [case for case in cases if case.case_id % 3]

    monkeypatch.setattr(experiments, "known_cases", known)
    monkeypatch.setattr(experiments, "make_cases", lambda *_: pool)
    cases = experiments.evaluation_cases(None, world, 8, 0)
    assert cases == balanced([case for case in pool if case.case_id % 3], 2) and len(cases) == 4
    assert asked == [4, 2]
    assert experiments.evaluation_cases(None, world, 400, 0) == known(None, pool)
    for n, by_edits in ((1, [1]), (2, [1, 1]), (5, [2, 1]), (6, [2, 2])):
        some = [case.n_edits for case in experiments.evaluation_cases(None, world, n, 0)]
        assert [some.count(n_edits) for n_edits in (1, 2)][: len(by_edits)] == by_edits
        assert len(some) == sum(by_edits)
    monkeypatch.setattr(experiments, "known_cases", lambda lm, cases: [])
    with pytest.raises(ValueError, match="all facts of none of the 16 cases"):
        experiments.evaluation_cases(SimpleNamespace(name="m"), world, 16, 0)
