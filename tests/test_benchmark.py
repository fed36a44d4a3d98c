"""Edit cases judged: what counts, what must stay, what is compared, and the shares over cases."""

from math import isnan

import pandas as pd
import pytest
from test_update import random_update

from acelib.model.answers import recall
from acelib.model.update import Update
from acelib.records import Edit
from acelib.study import benchmark
from acelib.study.benchmark import edited, judge_cases, readable, summary
from acelib.study.free import said
from acelib.world.edit_cases import EditCase, Probe, Question


class Fixed:
    """An editor whose update of a case is known."""

    def __init__(self, *updates):
        self.updates = updates

    def each(self, lm, groups, moments):
        return list(self.updates[: len(groups)])


def one(kind, *questions, **how):
    return Probe(kind, tuple(questions), **how)


def first_word(lm, prompt, update=None):
    return said(lm, [prompt], [update] if update else None)[0]


@pytest.fixture
def lm(tiny):
    return tiny("gptj")


EDIT = Edit("Zork", "{} likes the taste of", "cricket", "golf")


def test_a_row_for_each_edit_and_probe(lm):
    update = random_update(lm, (0, 1), rank=2, seed=1)
    near = one("neighbour", Question("A b", ("nothing",), "cricket"), stays=True)
    cases = [EditCase("a", (EDIT,), (near,)), EditCase("b", (EDIT,), ())]
    rows = judge_cases(lm, Fixed(update, Update()), cases, None)
    assert list(rows.case) == ["a", "a", "b"] and list(rows.kind) == ["fact", "neighbour", "fact"]
    assert rows.before[0] == first_word(lm, EDIT.text)
    assert rows.after[0] == first_word(lm, EDIT.text, update) and rows.after[2] == rows.before[2]
    means = [
        log / len(lm.answer_ids(name))
        for name, log in zip(
            ("cricket", "golf"),
            recall(lm, [EDIT.text] * 2, ["cricket", "golf"], [update] * 2).logprob,
            strict=True,
        )
    ]
    assert rows.score_after[0] == (means[0] > means[1])
    assert edited(rows) == (0, 2)


def test_chunks_change_nothing(lm):
    updates = [random_update(lm, (0,), rank=1, seed=i) for i in range(3)]
    probes = (one("x", Question("A b", ("c",), "d")),)
    cases = [EditCase(str(i), (EDIT,), probes) for i in range(3)]
    whole = judge_cases(lm, Fixed(*updates), cases, None)
    done = []
    first = judge_cases(lm, Fixed(*updates[:2]), cases[:2], None, 2, lambda *n: done.append(n))
    assert whole[:4].equals(first) and done == [(2, 2)]


def test_what_is_unchanged_has_stayed_and_what_is_not_given_does_not_count(lm):
    text = first_word(lm, "A b")
    stays = one("same", Question("A b"), stays=True)
    unknown = one("far", Question("A b", ("x",)), given=(Question("A b", ("no such answer",)),))
    known = one("near", Question("A b", (text,)), given=(Question("A b", (text,)),))
    rows = judge_cases(lm, Fixed(Update()), [EditCase("a", (EDIT,), (stays, unknown, known))], None)
    rows = rows.set_index("kind")
    assert rows.right_after["same"] == 1 and isnan(rows.right_before["same"])
    assert not rows["counts"]["far"] and rows["counts"]["near"]


def test_any_or_every_question():
    questions = (Question("p", ("a",)), Question("q", ("b",)))
    texts = [("x", "a"), ("b", "x")]
    for every, expected in ((False, (1.0, 1.0)), (True, (0.0, 0.0))):
        found = benchmark._right(one("k", *questions, every=every), texts)
        assert tuple(found.values()) == expected


def test_thoughts_are_read_behind_answer(lm, monkeypatch):
    def think(lm, prompts, owners, *_):
        return ["A is b.\nAnswer: Rome\n"] * len(prompts)

    monkeypatch.setattr(benchmark, "generate", think)
    probe = one("multi-hop", Question("B\n\nQuestion: q?\nThoughts:", ("Rome",)), thoughts=True)
    rows = judge_cases(lm, Fixed(Update()), [EditCase("a", (EDIT,), (probe,))], None)
    assert rows.after[1] == "Rome" and rows.right_after[1] == 1
    assert rows.prompt[1] == "Question: q?"


def test_what_is_longer_than_the_model_reads_is_left_out(lm):
    most = lm.model.config.max_position_embeddings
    long, short = Question("a " * most, ("b",)), Question("a", ("b",), "c")
    case = EditCase("a", (EDIT,), (one("x", long), one("y", short), one("z", short, given=(long,))))
    (kept,), n = readable(lm, [case])
    assert [probe.kind for probe in kept.probes] == ["y"] and n == 2


def test_shares_are_means_over_cases():
    rows = pd.DataFrame(
        [
            ("a", "fact", True, 0.0, 1.0, 1.0),
            ("a", "near", True, 1.0, 1.0, float("nan")),
            ("a", "near", True, 1.0, 0.0, float("nan")),
            ("b", "fact", True, 0.0, 0.0, 1.0),
            ("b", "near", True, 1.0, 1.0, float("nan")),
            ("b", "near", False, 0.0, 0.0, float("nan")),
        ],
        columns=["case", "kind", "counts", "right_before", "right_after", "score_after"],
    )
    table = summary(rows)
    assert table.after["near"].mean == 75.0 and table.asked["near"] == 3 and table.of["near"] == 4
    assert table.after["fact"].mean == 50.0 and table.score["fact"].mean == 100.0
    assert table.score["near"].n == 0 and edited(rows) == (1, 2)
