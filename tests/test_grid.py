"""The grid: a pair is two writes, each its stage's own; what is judged, and that it resumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_experiments import world as world  # a fixture
from test_keys import EDITS
from test_write import identity

from acelib.bench.tiny import FAMILIES, make_tiny
from acelib.editing.search import Objective, target_vectors
from acelib.editors import ACE, PMET
from acelib.measures import grid
from acelib.measures.grid import Host, pair_rows, single_updates
from acelib.model.answers import recall
from acelib.model.states import Site, read, replaced
from acelib.model.update import Update, overlaid
from acelib.study.experiments import Corpus
from acelib.study.judge import Protocol, judge
from acelib.study.rows import Experiment, Folders, table
from acelib.world.cases import make_cases
from acelib.world.wording import few_shot

PROTOCOL = Protocol(n_shots=0, n_unrelated=6, max_new_tokens=3)
SEARCH = Objective(kind="pmet", steps=4, lr=0.3, decay=0.0, clamp=None, kl=0.1, floor=None)


class Known(Corpus):
    """Second moments without texts."""

    @property
    def moments(self):
        return identity(self.lm)


def ace_of(lm, weight=0.1):
    some = dict(layers=tuple(range(lm.n_layers)), weight=weight, objective=SEARCH, n_prefixes=1)
    value = PMET(position="last", prefix_length=4, **some)
    return ACE(value=value, query=PMET(prefix_length=4, **some), value_prompts=("single",))


def host_of(lm, world):
    return Host(lm, world, ace_of(lm), Known(lm, (), range(lm.n_layers)))


@pytest.fixture
def case(world):
    return next(c for c in make_cases(world, "evaluation", 8, 0, (2,), (2,)) if c.n_edits == 2)


# ---------------------------------------------------------------- writes


def test_windows_are_neighbours_and_wide_ones_are_refused():
    assert grid.windows(4, 2) == [(0, 1), (1, 2), (2, 3)] and grid.windows(4, 4) == [(0, 1, 2, 3)]
    for width in (0, 5):
        with pytest.raises(ValueError, match=f"window of {width} layers: it must have 1 to 4"):
            grid.windows(4, width)


def test_the_whole_write_gives_the_blocks_output_of_the_search(any_lm):
    """The pushes added to attention's and to the FFN's output, or the FFN's output replaced."""
    lm, layer = any_lm, 1
    requests = ace_of(lm).requests(EDITS[:1], "query")
    targets = target_vectors(lm, requests, layer, SEARCH)
    whole, (attention, ffn) = targets.whole, targets.delta
    text = requests[0].prompt
    ids, _ = lm.encode([text])
    at = lm.token_at(text, requests[0].end)

    def plus(push):
        def patch(state):
            state = state.clone()
            state[:, at] += push
            return state

        return patch

    def put(state):
        state = state.clone()
        state[:, at] = whole[0]
        return state

    out, outputs = Site("out", layer), []
    pushed = {Site("attn", layer): plus(attention[0]), Site("mlp", layer): plus(ffn[0])}
    for patches in (pushed, {Site("mlp", layer): put}):
        with replaced(lm, patches), read(lm, [out]) as states, torch.no_grad():
            lm.stack(ids, use_cache=False)
        outputs.append(states[out][0, at])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(whole, targets.value)


def test_in_a_parallel_block_whole_is_twice_half(tiny, world, case):
    host = host_of(tiny("gptj"), world)
    for role in grid.ROLES:
        half, whole = (single_updates(host, case, role, w, 1, 0.1) for w in grid.WRITES)
        for layer, (one, other) in enumerate(zip(half[1:], whole[1:], strict=True)):
            expected = 2 * one.delta(layer)
            if role == "query" and layer == host.lm.n_layers - 1:  # no answer sees it: rounding
                assert one.norm() < 1e-12 and other.norm() < 1e-12
                continue
            assert one.norm() > 1e-3
            tolerance = dict(rtol=1e-6, atol=1e-9 * float(expected.abs().max()))
            torch.testing.assert_close(other.delta(layer), expected, **tolerance)


def test_in_a_sequential_block_it_is_not(tiny, world, case):
    host = host_of(tiny("llama"), world)
    half, whole = (single_updates(host, case, "query", w, 1, 0.1)[2].delta(1) for w in grid.WRITES)
    assert (whole - 2 * half).norm() > 0.01 * half.norm()


def test_a_pair_with_value_above_query_is_aces_own_edit(any_lm, world, case):
    """Half writes; the windows do not meet. Where the value layers are not above, ACE's second
    stage sees what the first has written, and only the value stage is the same.
    """
    host, lm = host_of(any_lm, world), any_lm

    def parts(width):
        return (single_updates(host, case, role, "half", width, 0.1) for role in grid.ROLES)

    def same(found, wanted):
        assert found.layers == wanted.layers
        for layer in found.layers:
            expected = wanted.delta(layer)
            tolerance = dict(rtol=1e-5, atol=1e-7 * float(expected.abs().max()))
            torch.testing.assert_close(found.delta(layer), expected, **tolerance)

    query, value = parts(1)
    assert query[0].factors == value[0].factors == {}
    same(query[2] + value[4], host.ace.at([1], [3])(lm, case.edits, host.corpus.moments))
    wide, deep = parts(2)
    same(wide[1] + deep[3], host.ace.at([0, 1], [2, 3])(lm, case.edits, host.corpus.moments))
    swapped = host.ace.at([2], [1])(lm, case.edits, host.corpus.moments)
    torch.testing.assert_close(swapped.delta(1), value[2].delta(1), rtol=1e-5, atol=1e-9)
    assert (swapped.delta(2) - query[3].delta(2)).norm() > 1e-4 * query[3].delta(2).norm()


def test_a_weight_changes_the_write_and_not_the_search(tiny, world, case, monkeypatch):
    searches = []
    monkeypatch.setattr(
        grid, "target_vectors", lambda *given: searches.append(given) or target_vectors(*given)
    )
    host = host_of(tiny("gptj"), world)
    light, heavy = (single_updates(host, case, "query", "half", 1, w)[1] for w in (0.1, 10.0))
    assert sum(heavy.norms().values()) < 0.9 * sum(light.norms().values())
    single_updates(host, case, "value", "whole", 2, 1.0)
    assert len(searches) == 2 * 4  # layers, of both roles: once each


def test_a_stage_without_prompts_writes_nothing(tiny, world, case):
    host = host_of(tiny("gptj"), world)
    hops = replace(host, ace=replace(host.ace, value_prompts=("hops",)))
    bare = replace(case, edits=tuple(replace(edit, hops=()) for edit in case.edits))
    assert all(not u.factors for u in single_updates(hops, bare, "value", "half", 1, 1.0))


# ---------------------------------------------------------------- judging


def test_no_edit_is_the_unedited_model_and_a_pair_its_sum(tiny, world, case):
    host = host_of(tiny("gptj"), world)
    rows = pair_rows(host, case, PROTOCOL, "whole", 1, 0.1)
    assert [row["query"] for row in rows] == [-1, 0, 1, 2, 3]
    assert all(len(row[name]) == 5 for row in rows for name in (*grid.METRICS, "written"))
    # 1. None of both: what the unedited model says, judged by the new answers.
    (bare,) = judge(host.lm, world, [case], [Update()], PROTOCOL)
    assert rows[0]["written"][0] == 0 and rows[0]["efficacy"][0] == bare["efficacy"]
    assert rows[0]["same_relation"][0] == pytest.approx(bare["specificity_near"], abs=1e-4)
    chain, question = grid.canonical_chain(case), few_shot(world, case.questions[0], n_shots=0)
    size = len(host.lm.answer_ids(chain))
    said = recall(host.lm, [question], [chain]).logprob[0] / size
    assert rows[0]["log_p"][0] == pytest.approx(said, abs=1e-4)
    # 2. A pair: both writes at once.
    query, value = (single_updates(host, case, r, "whole", 1, 0.1) for r in grid.ROLES)
    both = query[3] + value[2]
    said = recall(host.lm, [question], [chain], [both]).logprob[0] / size
    assert rows[3]["log_p"][2] == pytest.approx(said, abs=1e-4)
    assert rows[3]["written"][2] == pytest.approx(np.hypot(*both.norms().values()), rel=1e-3)
    with overlaid(host.lm, [both]):
        (alone,) = judge(host.lm, world, [case], None, PROTOCOL)
    assert rows[3]["same_relation"][2] == pytest.approx(alone["specificity_near"], abs=1e-4)


def test_the_canonical_chain_is_a_demonstrations(world, case):
    text = grid.canonical_chain(case)
    assert text.endswith(f"\nAnswer: {case.new_answer}")
    assert text.startswith(f"{case.new_hops[0].cloze} {case.new_hops[0].answer}. ")


# ---------------------------------------------------------------- the experiment


@pytest.fixture
def small(world, monkeypatch):
    """The experiment on two tiny models, without searches and judging; what was computed."""
    done, cases = [], make_cases(world, "evaluation", 3, 0, (2,), (1,))
    hosts = {family: make_tiny(family) for family in FAMILIES[1:3]}
    monkeypatch.setattr(grid, "cases_by_model", lambda hosts, *_: dict.fromkeys(hosts, cases))
    monkeypatch.setattr(grid, "settings", lambda model, *_: ace_of(hosts[model]))
    monkeypatch.setattr(grid, "corpus", lambda lm, *_: Known(lm, (), ()))

    def pair_rows(host, case, protocol, *setting):
        done.append((host.lm.name, case.case_id, *setting))
        return [{"query": -1, "log_p": [-1.0, float("nan")]}]

    monkeypatch.setattr(grid, "pair_rows", pair_rows)

    def build(**changes) -> Experiment:
        some = dict(widths=[1, 2], writes=["half"], weights=[1.0], value_prompts=["single"])
        more = dict(cases="", n_cases=3, n_unrelated=4, seed=0)
        return grid.experiment(hosts, world, **(some | more | changes))

    return build, done


def test_rows_are_kept_and_resumed(small, tmp_path):
    build, done = small
    folders = Folders(None, tmp_path)
    rows = table(build(widths=[1]), folders=folders)
    assert len(rows) == len(done) == 2 * 3
    assert {*rows.columns} == {"model", "write", "width", "weight", "item", "query", "log_p"}
    again = table(build(weights=[1.0, 10.0]), folders=folders)
    assert len(again) == 2 * 3 * 4 and len(done) == 24  # what was there is not computed again
    assert done[6:][0][2:] == ("half", 2, 1.0) and set(again.weight) == {"1", "10"}


def test_what_does_not_exist_is_refused(small):
    build, _ = small
    with pytest.raises(ValueError, match="write 'double' is unknown; allowed: half, whole"):
        build(writes=["double"])
    with pytest.raises(ValueError, match="a window of 9 layers"):
        build(widths=[9])


def test_settings_are_those_of_pmet_on_all_layers():
    ace = grid.settings("gptj-mini", 8, ["single", "hops"])
    assert ace.layers == tuple(range(8)) and ace.value_prompts == ("single", "hops")
    assert ace.value.position == "last" and ace.query.position == "subject_last"
    assert ace.value.objective == ace.query.objective and ace.plan["query"].share == "root"
    with pytest.raises(ValueError, match="'both' is unknown; allowed: 'single', 'hops'"):
        grid.settings("gptj-mini", 8, ["both"])
