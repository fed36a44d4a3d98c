import math

import pytest
import torch
from test_keys import EDITS, plain
from test_moments import TEXTS
from test_update import bits, random_update, same_bits

from acelib.editing.keys import values_at
from acelib.editing.moments import Moments, second_moments
from acelib.editing.request import request, requests
from acelib.editing.search import Objective
from acelib.editing.write import Stage, edit, write
from acelib.model.update import Update, applied

PREFIXES = ("", "The. ", "Because golf. ")


def identity(lm):
    """Well-conditioned moments, so that a comparison does not measure rounding."""
    return Moments(
        {layer: torch.eye(lm.d_mlp, dtype=torch.float64) for layer in range(lm.n_layers)}, 1
    )


def goals(lm, n):
    return torch.randn(n, lm.d_model, dtype=lm.dtype, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("share, kind", [("even", "block"), ("root", "pmet")])
def test_write_equals_the_published_order(any_lm, share, kind):
    """Layer by layer: write into the weights, run whole forwards, measure again."""
    lm, layers, weight, Z, given = any_lm, (0, 1, 3), 0.5, goals(any_lm, 3), requests(EDITS)
    stage, before = Stage(layers, weight, Objective(kind=kind), share), bits(any_lm)
    (update,) = write(lm, given, stage, identity(lm), Z, PREFIXES)
    assert same_bits(lm, before)
    so_far = Update()
    for j, layer in enumerate(layers):
        with applied(lm, so_far):
            K = torch.stack(
                [
                    sum(
                        w * plain(lm, p + r.prompt, len(p) + r.end, layer)["key"]
                        for p, w in zip(PREFIXES, (0.5, 0.25, 0.25), strict=True)
                    )
                    for r in given
                ],
                1,
            )
            now = torch.stack(
                [plain(lm, r.prompt, r.end, 3)[stage.objective.site] for r in given], 1
            )
        left = len(layers) - j
        R = (Z.T - now) / (left if share == "even" else math.sqrt(left))
        expected = (
            R @ K.T @ torch.linalg.inv(weight * torch.eye(lm.d_mlp, dtype=lm.dtype) + K @ K.T)
        )
        torch.testing.assert_close(
            update.delta(layer), expected, rtol=1e-4, atol=1e-5 if lm.family.parallel else 1e-9
        )
        so_far += Update({layer: update.factors[layer]})


@pytest.mark.parametrize("kind, share", [("block", "even"), ("pmet", "root")])
@pytest.mark.parametrize("position", ["subject_last", "last"])
def test_the_value_arrives(any_lm, kind, share, position):
    lm, given, Z = any_lm, requests(EDITS, position), goals(any_lm, 3)
    stage = Stage((0, 2, 3), 1e-9, Objective(kind=kind), share)
    (update,) = write(lm, given, stage, identity(lm), Z)
    with applied(lm, update):
        for i, r in enumerate(given):
            torch.testing.assert_close(
                plain(lm, r.prompt, r.end, 3)[stage.objective.site], Z[i], rtol=1e-4, atol=1e-4
            )
    torch.testing.assert_close(
        values_at(lm, given, 3, stage.objective.site, [update]), Z.T, rtol=1e-4, atol=1e-4
    )


def test_groups_in_one_batch_equal_one_by_one(any_lm, tmp_path):
    lm, moments = any_lm, second_moments(any_lm, TEXTS, (1, 2), tmp_path)
    split = [EDITS[:2], EDITS[2:], EDITS[1:]]
    base = [random_update(lm, seed=g) for g in range(3)]
    stage = Stage((1, 2), 10.0, Objective(steps=4, lr=0.1))
    for updates in (None, base):
        together = edit(
            lm,
            [r for g, e in enumerate(split) for r in requests(e, group=g)],
            stage,
            moments,
            PREFIXES,
            updates,
        )
        for g, edits in enumerate(split):
            (alone,) = edit(lm, requests(edits), stage, moments, PREFIXES, updates and [updates[g]])
            for layer in (1, 2):
                scale = alone.delta(layer).abs().max().item()
                tol = 1e-3 if lm.family.parallel else 1e-6
                torch.testing.assert_close(
                    together[g].delta(layer), alone.delta(layer), rtol=tol, atol=tol * scale
                )


def test_rank_is_the_number_of_requests(tiny):
    lm = tiny("gpt2", torch.float32)
    (update,) = write(
        lm, requests(EDITS), Stage((2,), 1.0, Objective()), identity(lm), goals(lm, 3)
    )
    assert (
        update.factors[2].left.shape == (lm.d_model, 3)
        and update.factors[2].left.dtype == torch.float32
    )


def test_refusals(tiny):
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match="share 'all'"):
        Stage((1,), 1.0, Objective(), "all")
    with pytest.raises(ValueError, match="weight -1"):
        Stage((1,), -1, Objective())
    with pytest.raises(ValueError, match="no second moment of layer 2"):
        edit(lm, [request(EDITS[0])], Stage((2,), 1.0, Objective()), Moments({}, 1))
    with pytest.raises(ValueError, match="do not fit 1 requests"):
        write(lm, [request(EDITS[0])], Stage((2,), 1.0, Objective()), identity(lm), goals(lm, 2))
