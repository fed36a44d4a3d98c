"""AlphaEdit: the paper's dense formula, layer by layer and batch by batch; what edits keep."""

from dataclasses import replace

import pytest
import torch
from test_keys import EDITS, plain
from test_update import bits, same_bits
from test_write import PREFIXES, goals

from acelib.editing.keys import keys_at
from acelib.editing.moments import Moments
from acelib.editing.request import requests
from acelib.editing.search import Objective
from acelib.editing.write import write
from acelib.editors import MEMIT, AlphaEdit, preset
from acelib.model.update import Update, applied

QUICK = Objective(steps=4, lr=0.1, floor=None)
EDITOR = AlphaEdit(layers=(0, 1, 2), weight=0.5, threshold=2e-2, objective=QUICK, n_prefixes=0)


def spectrum(lm):
    """Moments with eigenvalues from 1e-4 to 10 in every layer, and three neurons that are dead."""
    draw, alive = torch.Generator().manual_seed(7), torch.ones(lm.d_mlp, dtype=torch.float64)
    alive[:3] = 0
    matrices = {}
    for layer in range(lm.n_layers):
        basis = torch.linalg.qr(
            torch.randn(lm.d_mlp, lm.d_mlp, dtype=torch.float64, generator=draw)
        )[0]
        matrices[layer] = (
            alive[:, None]
            * ((basis * torch.logspace(-4, 1, lm.d_mlp, dtype=torch.float64)) @ basis.T)
            * alive
        )
    return Moments(matrices, 100)


def null_projector(C, threshold):
    vectors, values, _ = torch.linalg.svd(C)
    return vectors[:, values < threshold] @ vectors[:, values < threshold].T


def test_batches_equal_the_published_order(any_lm):
    """P from an SVD; layer by layer whole forwards and a dense solve with S.

    After a batch, keys of the edited model go to S.
    """
    lm, moments, layers, L2, before = (
        any_lm,
        spectrum(any_lm),
        EDITOR.layers,
        EDITOR.weight,
        bits(any_lm),
    )
    tol = 1e-4 if lm.family.parallel else 1e-8

    def mean_keys(given, layer):
        return torch.stack(
            [
                sum(
                    w * plain(lm, p + r.prompt, len(p) + r.end, layer)["key"]
                    for p, w in zip(PREFIXES, (0.5, 0.25, 0.25), strict=True)
                )
                for r in given
            ],
            1,
        )

    state, S = (
        Update(),
        {layer: torch.zeros(lm.d_mlp, lm.d_mlp, dtype=torch.float64) for layer in layers},
    )
    for batch in (EDITS[:2], EDITS[2:]):
        given = requests(batch)
        Z = goals(lm, len(given))
        with applied(lm, state):
            (new,) = write(lm, given, EDITOR.stage, moments, Z, PREFIXES, history=state.keys)
        assert same_bits(lm, before)
        so_far = state
        for j, layer in enumerate(layers):
            with applied(lm, so_far):
                K, now = (
                    mean_keys(given, layer),
                    torch.stack([plain(lm, r.prompt, r.end, 2)["out"] for r in given], 1),
                )
            R, P = (Z.T - now) / (len(layers) - j), null_projector(moments[layer], EDITOR.threshold)
            expected = torch.linalg.solve(
                P @ (K @ K.T + S[layer]) + L2 * torch.eye(len(P)).double(), P @ K @ R.T
            ).T
            scale = expected.abs().max().item()
            torch.testing.assert_close(new.delta(layer), expected, rtol=tol, atol=tol * scale)
            so_far += Update({layer: new.factors[layer]})
        state += new
        with applied(lm, so_far):
            for layer in layers:
                K, P = mean_keys(given, layer), null_projector(moments[layer], EDITOR.threshold)
                torch.testing.assert_close(
                    new.keys[layer], P @ K, rtol=tol, atol=tol
                )  # what the released code reads again
                S[layer] += K @ K.T


def test_a_write_stays_in_the_null_space(any_lm):
    lm, moments = any_lm, spectrum(any_lm)
    update = EDITOR(lm, EDITS, moments)
    assert (
        update.editor == "AlphaEdit"
        and list(update.keys) == [0, 1, 2]
        and update.keys[0].shape == (lm.d_mlp, 3)
    )
    for layer in update.layers:
        values, vectors = torch.linalg.eigh(moments[layer])
        kept = vectors[:, values >= EDITOR.threshold]
        assert (
            0 < kept.shape[1] < lm.d_mlp
            and (update.delta(layer) @ kept).norm() < 1e-10 * update.delta(layer).norm()
        )


def test_earlier_edits_are_kept(tiny):
    """The less the change itself costs, the less it moves earlier keys.

    Without their history it moves them much more.
    """
    lm = tiny("qwen3")
    moments, first = spectrum(lm), EDITOR(lm, EDITS[:2], spectrum(lm))
    moved = []
    with applied(lm, first):
        for weight, history in ((1e-3, first.keys), (1e-8, first.keys), (1e-8, None)):
            new = replace(EDITOR, weight=weight)(lm, EDITS[2:], moments, history)
            pairs = [(new.delta(layer), H) for layer, H in first.keys.items()]
            moved.append(max((dW @ H).norm() / (dW.norm() * H.norm()) for dW, H in pairs).item())
    assert moved[1] < 1e-5 and moved[1] < moved[0] and moved[2] > 1e-2


def test_groups_share_a_history(any_lm):
    lm, moments = any_lm, spectrum(any_lm)
    first, groups = EDITOR(lm, EDITS[:1], moments), [EDITS[1:2], EDITS[1:]]
    together = EDITOR.each(lm, groups, moments, first.keys)
    for got, edits in zip(together, groups, strict=True):
        alone = EDITOR(lm, edits, moments, history=first.keys)
        for layer in alone.layers:
            scale, tol = alone.delta(layer).abs().max().item(), 1e-3 if lm.family.parallel else 1e-6
            torch.testing.assert_close(
                got.delta(layer), alone.delta(layer), rtol=tol, atol=tol * scale
            )
            assert got.keys[layer].shape == (lm.d_mlp, len(edits))


def test_keys_are_those_of_the_edited_model(any_lm):
    lm = any_lm
    given, stage = requests(EDITS), replace(EDITOR, null_share=1.0).stage
    (update,) = write(lm, given, stage, spectrum(lm), goals(lm, 3), PREFIXES)
    for layer, K in update.keys.items():
        torch.testing.assert_close(
            K, keys_at(lm, given, layer, PREFIXES, [update]), rtol=1e-5, atol=1e-6
        )


def test_a_share_means_the_same_at_every_scale(tiny):
    lm = tiny("gpt2")
    moments, editor = spectrum(lm), replace(EDITOR, null_share=0.6)
    scaled = Moments({layer: 1e6 * C for layer, C in moments.matrices.items()}, 100)
    one, other = editor(lm, EDITS, moments), editor(lm, EDITS, scaled)
    for layer in one.layers:
        torch.testing.assert_close(one.delta(layer), other.delta(layer), rtol=1e-6, atol=1e-9)


def test_refusals_leave_the_model(tiny):
    lm = tiny("gpt2")
    moments, before = spectrum(lm), bits(lm)
    history = EDITOR(lm, EDITS[:1], moments).keys
    for setting, given, match in (
        (dict(threshold=-1.0), None, "threshold -1"),
        (dict(threshold=1e9), None, "48 of the 48"),
        (dict(null_share=1e-3), None, "0 of the 48"),
        (dict(threshold=1e-3), history, "not in this null space"),
        (dict(weight=0.0), None, "weight 0"),
    ):
        with pytest.raises(ValueError, match=match):
            replace(EDITOR, **setting)(lm, EDITS, moments, given)
    with pytest.raises(ValueError, match="only a write inside a null space"):
        MEMIT(layers=(1,), objective=QUICK, n_prefixes=0)(lm, EDITS, moments, history)
    assert same_bits(lm, before)


def test_presets():
    gptj, qwen = preset("AlphaEdit", "gpt-j-6b"), preset("AlphaEdit", "qwen3-8b")
    assert (gptj.weight, gptj.threshold, gptj.objective) == (
        10,
        2e-2,
        Objective(steps=25, lr=0.5, decay=0.5, clamp=0.75, kl=0.0625),
    )
    assert (qwen.weight, qwen.layers, qwen.objective.decay, qwen.objective.clamp) == (
        1,
        (4, 5, 6, 7, 8),
        1e-3,
        4,
    )
