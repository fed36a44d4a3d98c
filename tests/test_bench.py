"""Benchmarks compare equal results at tiny sizes, their ratios are numbers, and a difference is an error."""

import math
from dataclasses import asdict

import pytest
import torch
from test_update import bits, same_bits

from acelib import bench
from acelib.bench import BENCHMARKS, Timing, edits_of, plain_target
from acelib.facts import load_world
from acelib.keys import requests, values_at
from acelib.targets import Objective

SMALL = dict(targets=dict(n=4, sample=3, layer=1, n_prefixes=2, steps=4), update=dict(m=40, d=6, n=3),
             attribution=dict(n=2, sample=20), each=dict(n=3, layers=(1, 2), steps=4))


WORLD = load_world()


@pytest.fixture(autouse=True)
def one_world(monkeypatch):
    monkeypatch.setattr(bench, "load_world", lambda: WORLD)


def check(rows: list[Timing]):
    for row in rows:
        assert list(asdict(row)) == ["name", "baseline_s", "ours_s", "ratio", "note"]
        assert row.baseline_s > 0 and row.ours_s > 0 and math.isfinite(row.ratio) and row.ratio == row.baseline_s / row.ours_s
        assert "agree to" in row.note


@pytest.mark.parametrize("name", BENCHMARKS)
def test_plain_and_library_agree(tiny, name):
    told, lm = [], tiny("qwen3")
    before = bits(lm)
    rows = BENCHMARKS[name](*[] if name == "update" else [lm], **SMALL[name], progress=lambda *state: told.append(state))
    check(rows)
    assert same_bits(lm, before) and not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert [done for done, *_ in told] == list(range(1, told[0][1] + 1)) and {what for *_, what in told} == {name}


@pytest.mark.parametrize("name", ["targets", "attribution"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_other_families(tiny, family, name):
    check(BENCHMARKS[name](tiny(family), **SMALL[name]))


def test_a_difference_is_an_error(tiny, monkeypatch):
    monkeypatch.setattr(bench, "plain_target", lambda *given: plain_target(*given) + 0.1)
    with pytest.raises(AssertionError, match="targets: the plain procedure and the library differ by .* allowed: 0.01"):
        bench.targets(tiny("llama"), **SMALL["targets"])
    monkeypatch.setattr(bench, "plain_scores", lambda *given: torch.tensor(math.nan))
    with pytest.raises(AssertionError, match="attribution"):
        bench.attribution(tiny("llama"), **SMALL["attribution"])


def test_the_plain_target_does_what_it_is_for(tiny):
    """It starts at the block's output and moves within its ball."""
    lm, r = tiny("gpt2"), requests(edits_of(WORLD, 1))[0]
    still, near, far = (plain_target(lm, r, 1, Objective(steps=steps, lr=0.5, clamp=clamp, floor=None))
                        for steps, clamp in ((1, 1), (4, 0.1), (4, None)))
    torch.testing.assert_close(still, values_at(lm, [r], 1)[:, 0])
    assert (near - still).norm() <= 0.1 * still.norm() * (1 + 1e-9) and (far - still).norm() > 0.2 * still.norm()


def test_bench_runs_what_is_named(tiny, monkeypatch):
    lm = tiny("qwen3")
    monkeypatch.setattr(bench, "reference", lambda: lm)
    small = {name: lambda *model, run=run, name=name, **more: run(*model, **SMALL[name], **more) for name, run in BENCHMARKS.items()}
    monkeypatch.setattr(bench, "BENCHMARKS", small)
    assert [row.name for row in bench.bench(["update"])] == ["update, factor cached", "update, the first one"]
    assert {row.name.split(",")[0] for row in bench.bench()} == set(BENCHMARKS)


def test_refusals(tiny):
    with pytest.raises(ValueError, match="unknown benchmark 'speed'; known: targets, update, attribution, each"):
        bench.bench(["update", "speed"])
    for sample in (0, 5):
        with pytest.raises(ValueError, match=f"sample of {sample} is not possible; allowed: 1 to 4"):
            bench.targets(tiny("qwen3"), **SMALL["targets"] | dict(sample=sample))
    with pytest.raises(ValueError, match="m=0"):
        bench.update(m=0)
    for n in (0, 10**6):
        with pytest.raises(ValueError, match=f"{n} facts asked for"):
            edits_of(WORLD, n)


def test_edits_are_counterfactual_and_repeatable():
    edits = edits_of(WORLD, 30)
    assert edits == edits_of(WORLD, 30) != edits_of(WORLD, 30, seed=1)
    assert all(edit.target_new != edit.target_true and WORLD.lookup(edit.subject, f.relation) == edit.target_true
               for edit in edits for f in WORLD.about(edit.subject) if WORLD.relations[f.relation].cloze[0] == edit.prompt)
