"""The faults of the released run, each shown on two or three edits of tiny models."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_ace_released import OBJECTIVE, OWN, float64, moments  # noqa: F401 - a fixture
from test_keys import EDITS
from test_update import bits, same_bits

from acelib.bench.tiny import make_tiny
from acelib.editing import write
from acelib.editors import ReleasedACE
from acelib.editors.base import edit_in_turn
from acelib.model.states import Site, trace
from acelib.model.update import Update, applied
from acelib.study.as_it_ran import Faults, Run, one_group, series, states
from acelib.study.experiments import Corpus
from acelib.study.judge import Protocol
from acelib.world.cases import make_cases
from acelib.world.world import load_world

EDITOR = ReleasedACE(query=replace(OWN, layers=(1, 2, 3)), value=replace(OWN, layers=(5, 6)))
CASES = [SimpleNamespace(edits=tuple(EDITS[:2])), SimpleNamespace(edits=(EDITS[2],))]
SAME = dict(rtol=1e-5, atol=1e-8)


@pytest.fixture(params=["gptj", "qwen3"])
def lm(request):
    return make_tiny(request.param, n_layers=8)


def run(lm, cases=CASES, editor=EDITOR, **faults):
    """The states of the cases, and that the model is as it was."""
    before = bits(lm)
    found = list(states(lm, editor, cases, moments(lm), Faults(**faults)))
    assert same_bits(lm, before)
    return found


def same(one, other):
    assert one.layers == other.layers
    for layer in one.layers:
        for part in ("mlp", "attn"):
            torch.testing.assert_close(one.delta(layer, part), other.delta(layer, part), **SAME)


def less(state, before):
    """``state`` without ``before``: the changes, dense, by part and layer."""
    known = {(p, i): state.delta(i, p) for p in ("mlp", "attn") for i in state.layers}
    return {
        key: dW - (before.delta(key[1], key[0]) if key[1] in before.layers else 0)
        for key, dW in known.items()
    }


def test_without_a_fault_each_case_is_edited_one_by_one_and_undone(lm):
    for state, case in zip(run(lm), CASES, strict=True):
        *_, last = edit_in_turn(lm, EDITOR, [[edit] for edit in case.edits], moments(lm))
        same(state, last)


def test_f1_shares_are_those_of_one_group_from_the_second_edit_on(lm, monkeypatch):
    lefts = []
    monkeypatch.setitem(write.SHARES, "root", lambda left: lefts.append(left) or left**-0.5)
    run(lm, groups_forgotten=True)
    assert lefts[::2] == lefts[1::2], "attention and FFN alike"
    assert [lefts[2 * i : 2 * i + 10 : 2] for i in (0, 5, 10)] == [
        [3, 2, 1, 2, 1],
        [5, 4, 3, 2, 1],
        [5, 4, 3, 2, 1],
    ]


def test_f1_the_second_edit_is_pmets_on_all_layers(lm):
    both, other = run(lm, groups_forgotten=True)
    with_texts = EDITOR.with_texts(EDITOR.prefixes(lm)[1:])
    first = with_texts(lm, [EDITS[0]], moments(lm))
    with applied(lm, first):
        second = one_group(with_texts)(lm, [EDITS[1]], moments(lm))
    same(both, first + second)
    same(other, one_group(with_texts)(lm, [EDITS[2]], moments(lm)))
    assert one_group(EDITOR).layers == (1, 2, 3, 5, 6) and one_group(EDITOR).writes == "both"


def test_f2_the_second_edit_is_asked_for_the_vector_of_the_first(lm):
    """Written without resistance, the target layer's attention gives at the second edit's subject
    the very vector that was searched for the first edit's.
    """
    free = dict(weight=1e-9, texts=())
    editor = ReleasedACE(
        query=replace(OWN, layers=(1,), **free), value=replace(OWN, layers=(5,), **free)
    )
    (wrong,), (right,) = (run(lm, CASES[:1], editor, vectors_kept=kept) for kept in (True, False))
    searched = editor.search(lm, [[EDITS[0]]]).attn[0]

    def gives(state, edit):
        ids, mask = lm.encode([edit.text])
        at = lm.token_at(edit.text, edit.prompt.index("{}") + len(edit.subject))
        with applied(lm, state):
            return trace(lm, ids, mask, [Site("attn", 5)])["attn", 5][0, at]

    torch.testing.assert_close(gives(wrong, EDITS[1]), searched, rtol=1e-3, atol=1e-3)
    assert (gives(right, EDITS[1]) - searched).norm() > 0.05 * searched.norm()


def test_f2_one_search_serves_a_case(lm, monkeypatch):
    asked, real = [], write.Stage.search

    def counted(stage, lm, requests, *rest):
        asked.append(requests[0].subject)
        return real(stage, lm, requests, *rest)

    monkeypatch.setattr(write.Stage, "search", counted)
    run(lm, vectors_kept=True)
    assert asked == [EDITS[0].subject, EDITS[2].subject]


def test_f3_all_edits_of_a_case_but_the_last_stay(lm):
    """After a case of two edits a weight differs by what the first one wrote."""
    (clean, _), (both, later) = run(lm), run(lm, edits_stay=True)
    same(both, clean)
    first = EDITOR(lm, [EDITS[0]], moments(lm))
    with applied(lm, first):
        own = EDITOR.with_texts(OWN.texts)(lm, [EDITS[2]], moments(lm))
    for (part, layer), dW in less(later, own).items():
        torch.testing.assert_close(dW, first.delta(layer, part), **SAME)
        assert dW.norm() > 0
    # A case of one edit leaves nothing behind.
    alone = run(lm, [CASES[1], CASES[1]], edits_stay=True)
    same(*alone)


def test_states_are_computed_once_whatever_is_asked_first():
    made = []

    def some():
        for i in range(3):
            made.append(i)
            yield Update(editor=str(i))

    by_place = Run(some)
    assert not made
    assert [by_place[i].editor for i in (1, 0, 2, 1)] == ["1", "0", "2", "1"]
    assert made == [0, 1, 2]


def test_rows_of_a_run_depend_on_the_cases_before(tiny, monkeypatch):
    """Series of all runs: other faults, another order, another case before: other rows."""
    lm, world = tiny("gptj"), load_world()
    cases = make_cases(world, "identification", 4, 0)
    editor = ReleasedACE(query=replace(OWN, layers=(0,)), value=replace(OWN, layers=(2,)))
    given = (lm, world, editor, {"a": Faults(), "b": Faults(edits_stay=True)})
    texts, protocol = Corpus(lm, ["a text"], [0, 2], [0, 2]), Protocol()
    one, other = series("m", *given, cases, texts, protocol)
    assert one.manifest["depends"] != other.manifest["depends"] and one.keys == other.keys
    assert list(one.items) == [str(case.case_id) for case in cases]
    turned, _ = series("m", *given, [cases[1], cases[0], *cases[2:]], texts, protocol)
    assert not set(turned.keys.values()) & set(one.keys.values())
    shorter, _ = series("m", *given, cases[:2], texts, protocol)
    assert list(shorter.keys.values()) == list(one.keys.values())[:2]


def test_rows_are_judged_with_what_earlier_cases_left(tiny, monkeypatch):
    """Two cases of two edits: what is written at the second holds the first edit of the first."""
    lm, world = make_tiny("gptj", n_layers=6), load_world()
    cases = [case for case in make_cases(world, "identification", 30, 0) if case.n_edits == 2][:2]
    editor = ReleasedACE(query=replace(OWN, layers=(1,)), value=replace(OWN, layers=(3,)))
    monkeypatch.setattr(Corpus, "moments", property(lambda self: moments(lm)))
    texts = Corpus(lm, ["a text"], [1, 3], [1, 3])
    runs = {"put back": Faults(), "stay": Faults(edits_stay=True)}
    protocol = Protocol(n_shots=0, n_unrelated=2, max_new_tokens=2)
    clean, stay = (
        one.rows([*one.items])
        for one in series("m", lm, world, editor, runs, cases, texts, protocol)
    )
    written = [[line.rows[0]["written"] for line in lines] for lines in (clean, stay)]
    assert written[0][0] == pytest.approx(written[1][0], rel=1e-5)
    assert written[0][1] != pytest.approx(written[1][1], rel=1e-3)
    assert [line.rows[0]["case_id"] for line in stay] == [case.case_id for case in cases]
