"""Scores at a large vocabulary are the plain ones within a bound that holds and is not vacuous."""

import pytest
import torch

from acelib.attribution import normaliser, scores
from acelib.attribution.reader import Reader
from acelib.attribution.scores import (
    bounded_scores,
    first_tokens,
    layer_scores,
    query_scores,
    value_scores,
)
from acelib.bench.tiny import FAMILIES, make_tiny
from acelib.model.lm import LM

TEXTS = ("Tim Duncan plays the sport of", "The capital of France is")
ANSWERS = ("basketball", "Paris")
WIDE = 9000  #: tokens of a large vocabulary


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    """Sizes that suit a vocabulary of 360."""
    monkeypatch.setattr(normaliser, "SIZES", (8, 32, 128))


def batch(lm, n=2):
    return *lm.encode(TEXTS[:n]), first_tokens(lm, ANSWERS[:n])


def wide(family, dtype=torch.float64):
    """A tiny model with a large vocabulary, all rows of its head as different as the first."""
    lm = make_tiny(family)
    lm.model.resize_token_embeddings(WIDE, mean_resizing=False)
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(WIDE, lm.d_model, generator=draw, dtype=torch.float64)
    lm.head.weight.data = rows * torch.linspace(0.3, 1.5, lm.d_model)
    return LM(lm.model.to(dtype), lm.tokenizer, f"wide-{family}")


@pytest.mark.parametrize("of", ("ffn", "attn", "heads"))
@pytest.mark.parametrize("norm", ("frozen", "exact"))
@pytest.mark.parametrize("tolerance", (1e-2, 1e-4, 1e-7))
def test_every_score_is_within_its_bound_and_the_tolerance(any_lm, of, norm, tolerance):
    args = batch(any_lm)
    plain = value_scores(any_lm, *args, of, norm)
    found = bounded_scores(any_lm, *args, of, norm, tolerance)
    off = (found.scores - plain).abs()
    assert bool((off <= found.errors + 1e-12).all()) and float(found.errors.max()) <= tolerance
    if of == "heads":
        assert torch.equal(found.scores, plain)


@pytest.mark.parametrize("norm", ("frozen", "exact"))
def test_most_neurons_need_no_whole_vocabulary(tiny, norm):
    lm = tiny("llama")
    found = [bounded_scores(lm, *batch(lm), norm=norm, tolerance=t) for t in (1e-1, 1e-3, 1e-9)]
    left = [float((bound.errors == 0).double().mean()) for bound in found]
    assert left[0] < 0.5 and left[0] <= left[1] <= left[2] > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_a_large_vocabulary_is_done_within_bounds(family):
    lm = wide(family)
    args = batch(lm)
    for norm in ("frozen", "exact"):
        plain = value_scores(lm, *args, norm=norm, tolerance=0)
        found, bound = value_scores(lm, *args, norm=norm), bounded_scores(lm, *args, norm=norm)
        assert torch.equal(found, bound.scores) and not torch.equal(found, plain)
        assert bool(((found - plain).abs() <= bound.errors + 1e-12).all())
        summed = layer_scores(lm, *args, norm=norm)
        torch.testing.assert_close(summed, found.sum(-1))
        assert bool(((summed - plain.sum(-1)).abs() <= bound.errors.sum(-1) + 1e-11).all())


def test_a_small_vocabulary_is_exact_to_the_bit(any_lm):
    args = batch(any_lm)
    for norm in ("frozen", "exact"):
        exact = bounded_scores(any_lm, *args, norm=norm, tolerance=0)
        assert torch.equal(value_scores(any_lm, *args, norm=norm), exact.scores)
        assert float(exact.errors.abs().max()) == 0
    assert len(any_lm.head.weight) < scores.PLAIN


def test_the_guess_is_far_nearer_than_the_bound():
    """What is taken for the rest is its second order, so that sums over neurons are good too."""
    lm = wide("llama")
    args = batch(lm)
    off = value_scores(lm, *args) - value_scores(lm, *args, tolerance=0)
    bound = bounded_scores(lm, *args)
    assert float(off.abs().sum()) < 0.3 * float(bound.errors.sum())


@pytest.mark.parametrize("norm", ("frozen", "exact"))
def test_pushes_that_overflow_are_done_exactly(any_lm, norm):
    any_lm.norm.weight.data.mul_(1e5)
    args = batch(any_lm)
    found = bounded_scores(any_lm, *args, norm=norm)
    torch.testing.assert_close(
        found.scores, value_scores(any_lm, *args, norm=norm), rtol=1e-8, atol=1e-5
    )


@pytest.mark.parametrize("norm", ("frozen", "exact"))
@pytest.mark.parametrize("head", ("far", "offset", "equal", "near"))
def test_no_head_breaks_the_bound(any_lm, norm, head):
    """One row far from all others, a vector common to all, rows that are equal, or nearly."""
    rows = any_lm.head.weight.data
    if head == "far":
        rows[7] *= -300
    elif head == "offset":
        rows += 30
    elif head == "equal":
        rows[50:150] = rows[0]
    else:
        rows.mul_(1e-4).add_(rows[0].clone() * 1e4)
    any_lm.norm.weight.data.mul_(10)
    args = batch(any_lm)
    plain = value_scores(any_lm, *args, norm=norm)
    for tolerance in (1e9, 1e-1, 1e-5):
        found = bounded_scores(any_lm, *args, norm=norm, tolerance=tolerance)
        off = (found.scores - plain).abs()
        assert bool((off <= found.errors + 1e-9).all())
        assert float(found.errors.max()) <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("norm", ("frozen", "exact"))
def test_a_token_far_from_all_others_overflows_nothing(tiny, family, norm):
    """e^x of an unlikely token that is pushed far is no number in single precision."""
    lm = tiny(family, dtype=torch.float32)
    lm.head.weight.data[7] *= -1000
    lm.norm.weight.data.mul_(10)
    for layer in range(lm.n_layers):
        lm.weight(layer).data.mul_(10)
    args = batch(lm)
    found = bounded_scores(lm, *args, norm=norm, tolerance=0.1)
    off = (found.scores - value_scores(lm, *args, norm=norm)).abs()
    assert bool((off <= found.errors + 1e-2).all()) and float(found.errors.max()) <= 0.1


def test_sizes_beyond_the_vocabulary_are_left_out(tiny, monkeypatch):
    lm = tiny("llama")
    args = batch(lm)
    plain = value_scores(lm, *args)
    for sizes, exact in (((256, 1024), False), ((1024,), True)):
        monkeypatch.setattr(normaliser, "SIZES", sizes)
        found = bounded_scores(lm, *args)
        assert bool(((found.scores - plain).abs() <= found.errors + 1e-12).all())
        assert (float(found.errors.max()) == 0) == exact


def test_neither_budget_nor_batch_matters(tiny):
    lm = tiny("qwen3")
    ids, mask, targets = batch(lm)
    whole = bounded_scores(lm, ids, mask, targets, norm="exact")
    for other in (
        bounded_scores(lm, ids, mask, targets, norm="exact", budget=1),
        [bounded_scores(lm, *batch(lm, 1), norm="exact")[i] for i in range(2)],
    ):
        for mine, theirs in zip(other, whole, strict=True):
            torch.testing.assert_close(mine, theirs[: len(mine)], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype, near", ((torch.bfloat16, 0.1), (torch.float16, 0.01)))
def test_half_precision_rounds_the_model_and_nothing_else(dtype, near):
    """What is computed here is in float32, so it is nearer to the truth than the plain scores."""
    lm, truth = wide("llama", dtype), wide("llama", torch.float32)
    ids, mask, targets = batch(lm)
    found = value_scores(lm, ids, mask, targets)
    plain = value_scores(lm, ids, mask, targets, tolerance=0).float()
    true = value_scores(truth, ids, mask, targets, tolerance=0)
    assert found.dtype == torch.float32 and query_scores(lm, ids, mask, found).isfinite().all()
    off = float((found - true).abs().max())
    assert off < near and off < float((plain - true).abs().max())


def test_single_precision_adds_rounding_only():
    lm = wide("llama", torch.float32)
    found = bounded_scores(lm, *batch(lm))
    off = (found.scores - value_scores(lm, *batch(lm), tolerance=0)).abs()
    assert bool((off <= found.errors + 2e-6).all())


def test_the_second_moment_is_that_of_the_rows(tiny):
    head = normaliser.head_of(Reader(tiny("gptj"), None))
    rows = head.rows - head.rows.mean(0)
    torch.testing.assert_close(head.moment, rows.T @ rows)
    distance = rows.norm(dim=1)
    torch.testing.assert_close(head.distance, distance[head.order])
    assert bool((head.distance.diff() <= 0).all())


@pytest.mark.parametrize("b", (0.0, 1e-6, 0.01, 0.049, 0.051, 1.0, 9.0))
def test_phi_bounds_the_exponential(b):
    """e^x - 1 - x <= phi(b) x^2 / 2 for all x <= b, and phi is its least such factor."""
    phi = normaliser._phi(torch.tensor([b], dtype=torch.float64))
    x = torch.cat([torch.linspace(-30, b, 4001, dtype=torch.float64), phi.new_tensor([b])])
    assert bool((x.expm1() - x <= phi * x.square() / 2 * (1 + 1e-9) + 1e-15).all())
    assert b < 0.05 or float(phi) == pytest.approx(
        2 * float(x[-1:].expm1() - x[-1:]) / b**2, rel=1e-6
    )


def test_a_bad_tolerance_is_named(tiny):
    lm = tiny("gpt2")
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"tolerance is {bad}.*0 .exact. or positive"):
            bounded_scores(lm, *batch(lm), tolerance=bad)
