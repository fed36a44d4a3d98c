"""Benchmarks compare equal results at tiny sizes, their ratios are numbers, and a difference is an
error.
"""

import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import linregress
from test_update import bits, same_bits

from acelib.bench import latency, plain, speed
from acelib.bench.speed import ALGEBRA, BENCHMARKS, GROUPS, Timing
from acelib.editing.keys import values_at
from acelib.editing.moments import Moments
from acelib.editing.request import Request, requests
from acelib.editing.search import Objective
from acelib.editors import ACE, MEMIT, PMET
from acelib.world.cases import single_edits
from acelib.world.world import load_world

SMALL = dict(
    targets=dict(n=4, sample=3, layer=1, n_prefixes=2, steps=4),
    savings=dict(n=3, layer=1, n_prefixes=1, steps=3),
    update=dict(m=40, d=6, n=3),
    history=dict(m=40, d=6, n=2, stored=9),
    keys=dict(n=3, n_prefixes=2),
    covariance=dict(n=8, layers=(0, 2)),
    attribution=dict(n=2, sample=20),
    each=dict(n=3, layers=(1, 2), steps=4),
    vocabulary=dict(sizes=(400, 9000), layers=1, n=1),
)


WORLD = load_world()


@pytest.fixture(autouse=True)
def one_world(monkeypatch):
    monkeypatch.setattr(speed, "load_world", lambda: WORLD)


def check(rows: list[Timing]):
    for row in rows:
        assert list(asdict(row)) == ["name", "baseline_s", "ours_s", "ratio", "off", "note"]
        assert row.off < 0.01 and row.baseline_s > 0 and row.ours_s > 0
        assert math.isfinite(row.ratio) and row.ratio == row.baseline_s / row.ours_s
        assert "agree to" in row.note


@pytest.mark.parametrize("name", BENCHMARKS)
def test_plain_and_library_agree(tiny, name):
    told, lm = [], tiny("qwen3")
    before = bits(lm)
    rows = BENCHMARKS[name](
        *[] if name in ALGEBRA else [lm], **SMALL[name], progress=lambda *state: told.append(state)
    )
    check(rows)
    assert same_bits(lm, before) and not any(
        m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules()
    )
    assert [done for done, *_ in told] == list(range(1, told[0][1] + 1)) and {
        what for *_, what in told
    } == {name}


@pytest.mark.parametrize("name", ["targets", "savings", "keys", "attribution"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_other_families(tiny, family, name):
    check(BENCHMARKS[name](tiny(family), **SMALL[name]))


def test_a_difference_is_an_error(tiny, monkeypatch):
    monkeypatch.setattr(
        plain, "target_vectors", lambda *given, run=plain.target_vectors: run(*given) + 0.1
    )
    with pytest.raises(
        AssertionError,
        match="targets: the plain procedure and the library differ by .* allowed: 0.01",
    ):
        speed.targets(tiny("llama"), **SMALL["targets"])
    monkeypatch.setattr(plain, "scores", lambda *given: torch.tensor(math.nan))
    with pytest.raises(AssertionError, match="attribution"):
        speed.attribution(tiny("llama"), **SMALL["attribution"])


def test_the_plain_target_does_what_it_is_for(tiny):
    """It starts at the block's output and moves within its ball."""
    lm, r = tiny("gpt2"), requests(single_edits(WORLD, 1))[0]
    still, near, far = (
        plain.target_vectors(lm, [r], 1, Objective(steps=steps, lr=0.5, clamp=clamp, floor=None))[0]
        for steps, clamp in ((1, 1), (4, 0.1), (4, None))
    )
    torch.testing.assert_close(still, values_at(lm, [r], 1)[:, 0])
    assert (near - still).norm() <= 0.1 * still.norm() * (1 + 1e-9) and (
        far - still
    ).norm() > 0.2 * still.norm()


def test_bench_runs_what_is_named(tiny, monkeypatch):
    lm = tiny("qwen3")
    monkeypatch.setattr(speed, "reference", lambda: lm)
    small = {
        name: lambda *model, run=run, name=name, **more: run(*model, **SMALL[name], **more)
        for name, run in BENCHMARKS.items()
    }
    monkeypatch.setattr(speed, "BENCHMARKS", small)
    assert [row.name for row in speed.bench(["update"])] == [
        "update, factor cached",
        "update, the first one",
    ]
    assert len(speed.bench()) == 15 and len(speed.bench(["editors", "update"])) == 12
    assert set(GROUPS["editors"]) < set(BENCHMARKS)


def test_refusals(tiny):
    with pytest.raises(
        ValueError, match="unknown benchmark 'speed'; known: targets, savings, update, .*, editors"
    ):
        speed.bench(["update", "speed"])
    for sample in (0, 5):
        with pytest.raises(
            ValueError, match=f"sample of {sample} is not possible; allowed: 1 to 4"
        ):
            speed.targets(tiny("qwen3"), **SMALL["targets"] | dict(sample=sample))
    with pytest.raises(ValueError, match="m=0"):
        speed.update(m=0)


def test_cost_grows_with_what_is_said_to_grow(tiny, monkeypatch):
    monkeypatch.setattr(latency, "load_world", lambda: WORLD)
    tokenizer, told = tiny("gptj").tokenizer, []
    rows = latency.curves(
        tokenizer,
        dict(facts=(2, 4), depth=(3, 4)),
        dict(facts=2, width=32, depth=3, vocabulary=400),
        steps=2,
        repeats=1,
        progress=lambda *state: told.append(state),
    )
    assert (
        list(rows.columns) == ["what", "size", "procedure", "seconds"]
        and len(rows) == 8
        and (rows.seconds > 0).all()
    )
    assert told[-1] == (4, 4, "growth") and set(rows.procedure) == {"plain", "acelib"}
    with pytest.raises(ValueError, match="vocabulary 10 is smaller"):
        latency.random_lm(tokenizer, 32, 2, 10)
    check(latency.wide(tokenizer, n=2, width=64, depth=4, steps=2, n_prefixes=1))


def test_the_bound_counts_what_an_exact_step_must_multiply(tiny):
    lm, given = tiny("qwen3"), [Request("Tim Duncan plays", 10, "golf", subject="Tim Duncan")]
    p, answer, head = (
        len(lm.tokenizer("Tim Duncan plays")["input_ids"]),
        len(lm.answer_ids("golf")),
        lm.head.weight.numel(),
    )
    block = sum(w.numel() for w in lm.blocks[0].parameters() if w.ndim == 2)
    longest, at = (
        max(p + answer - 1, len(lm.tokenizer("Tim Duncan is a")["input_ids"])),
        lm.token_at("Tim Duncan plays", 10),
    )

    def whole(above):
        return 2 * longest * ((4 + above) * block + 4 * head)

    assert speed.bound(lm, given, 3) == pytest.approx(whole(0) / (2 * head * (answer + 1)))
    left = 2 * block * (1 + p + answer - 1 - at + answer) + 2 * head * (answer + 1)
    assert speed.bound(lm, given, 0) == pytest.approx(whole(3) / left)


def test_exponents_are_slopes():
    sizes = np.array([1, 2, 4, 8])
    rows = pd.DataFrame(
        [
            dict(
                what="facts",
                size=size,
                procedure=name,
                seconds=0.1 * size**power * (1 + noise * (-1) ** i),
            )
            for name, power, noise in (("plain", 2, 0), ("acelib", 1, 0.05))
            for i, size in enumerate(sizes)
        ]
    )
    found = latency.exponents(rows)
    assert found.loc[("facts", "plain")].tolist() == pytest.approx([2, 2, 2])
    exponent, low, high = found.loc[("facts", "acelib")]
    assert (
        low < exponent < high
        and low < 1 < high
        and exponent == pytest.approx(linregress(np.log(sizes), np.log(rows.seconds[4:])).slope)
    )
    assert latency.exponents(rows[rows["size"] < 4])[["low", "high"]].isna().all(axis=None)


def test_stages_of_an_edit_have_a_cost(tiny):
    lm, edits = tiny("llama"), single_edits(WORLD, 2)
    moments = Moments(
        {layer: torch.eye(lm.d_mlp, dtype=torch.float64) for layer in range(4)}, tokens=100
    )
    for editor in (
        MEMIT(layers=(1, 2), objective=Objective(steps=2), texts=()),
        ACE(
            value=PMET(layers=(2, 3), position="last", texts=()), query=PMET(layers=(1,), texts=())
        ),
    ):
        spent = latency.stages(lm, editor, edits, moments)
        assert set(spent) == {"vectors", "update"} and min(spent.values()) > 0
