from dataclasses import replace

import pytest
import torch
from test_keys import EDITS, plain
from test_update import bits, same_bits
from test_write import identity

from acelib.bench import released
from acelib.bench.released_check import POSITIONS, search
from acelib.editing.keys import Walk, values_at
from acelib.editing.moments import Moments
from acelib.editing.request import request, requests
from acelib.editing.search import Objective, target_vectors
from acelib.editing.solve import ridge
from acelib.editors import ROME, preset
from acelib.model.update import Update, applied

SEARCH = Objective(kind="mlp", steps=4, lr=0.1, clamp=4.0, floor=None)
SHORT = ROME(layer=1, objective=SEARCH, n_prefixes=1, prefix_lengths=(5, 8))
AGAIN = replace(EDITS[0], prompt="{} is a player of")  # the subject of another edit of the batch


def moments_of(lm, seed=0):
    """A well-conditioned second moment that is not the identity."""
    A = torch.randn(
        lm.d_mlp, lm.d_mlp, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return Moments(
        {
            layer: torch.eye(lm.d_mlp, dtype=torch.float64) + A @ A.T / lm.d_mlp
            for layer in range(lm.n_layers)
        },
        1,
    )


def published(lm, e, editor, moments):
    """One fact by the published procedure, from whole forwards of single texts: dW (d, m)."""
    r, prefixes = request(e, editor.position), editor.prefixes(lm)
    keys = [plain(lm, p + r.prompt, len(p) + r.end, editor.layer)["key"] for p in prefixes]
    mean = sum(keys) / len(keys)
    u = torch.linalg.inv(moments[editor.layer]) @ mean if editor.second_moment else mean
    u = u / u.norm()
    ask, mlp = POSITIONS[editor.position](e), lm.mlp(editor.layer)
    (h_0,), path, _ = released.target_vector(lm, ask, [mlp], prefixes, **search(editor.objective))
    v_star = h_0 + path[-1][0]
    key = keys[0] if editor.constraint == "bare" else mean
    return torch.outer(v_star - plain(lm, r.prompt, r.end, editor.layer)["mlp"], u) / (key @ u)


@pytest.mark.parametrize(
    "settings",
    [{}, {"second_moment": False, "position": "last"}, {"constraint": "mean"}],
    ids=["C", "no-C", "mean"],
)
def test_equals_the_published_formula(any_lm, settings):
    lm, editor, before = any_lm, replace(SHORT, **settings), bits(any_lm)
    update = editor(lm, EDITS[:1], moments_of(lm))
    assert (
        same_bits(lm, before)
        and update.layers == (1,)
        and update.factors[1].left.shape == (lm.d_model, 1)
    )
    assert (
        update.editor == "ROME"
        and update.edits == tuple(EDITS[:1])
        and update.model == lm.fingerprint
    )
    expected = published(lm, EDITS[0], editor, moments_of(lm))
    tol = (
        1e-3 if lm.family.parallel else 1e-6
    )  # this architecture computes attention in float32 whatever the model's precision
    torch.testing.assert_close(
        update.delta(1), expected, rtol=tol, atol=tol * expected.abs().max().item()
    )


def test_edits_of_a_batch_follow_one_another(any_lm, monkeypatch):
    lm, edits, so_far = any_lm, [*EDITS[:2], AGAIN], Update()
    update, prefixes = SHORT(lm, edits, moments_of(lm)), SHORT.prefixes(lm)
    monkeypatch.setattr(
        ROME, "prefixes", lambda *_: prefixes
    )  # the texts are those of the unedited model throughout
    for e in edits:
        with applied(lm, so_far):
            so_far += SHORT(lm, [e], moments_of(lm))
    tol = 1e-3 if lm.family.parallel else 1e-6
    torch.testing.assert_close(
        update.delta(1), so_far.delta(1), rtol=tol, atol=tol * so_far.delta(1).abs().max().item()
    )
    assert update.factors[1].left.shape == (lm.d_model, 3)


@pytest.mark.parametrize("constraint", ["bare", "mean"])
@pytest.mark.parametrize("layer", [0, 2])
def test_the_value_arrives(any_lm, layer, constraint):
    """dW k = v* - v to rounding, and the edited FFN puts out v* at the bare prompt's token."""
    lm, editor = any_lm, replace(SHORT, layer=layer, constraint=constraint)
    update, given, prefixes = (
        editor(lm, EDITS[:1], moments_of(lm)),
        requests(EDITS[:1]),
        editor.prefixes(lm),
    )
    keys = Walk(lm, given, prefixes).climb(layer)
    targets = target_vectors(lm, given, layer, SEARCH, prefixes)
    got = update.delta(layer) @ (keys[0] if constraint == "bare" else keys.mean(0))
    assert ((got - targets.delta[0, 0]).norm() / targets.delta[0, 0].norm()).item() < 1e-10
    if constraint == "bare":
        tol = 1e-5 if lm.family.parallel else 1e-10
        torch.testing.assert_close(
            values_at(lm, given, layer, "mlp", [update])[:, 0], targets.value[0], rtol=tol, atol=tol
        )


def test_the_limit_of_the_ridge(any_lm):
    """MEMIT's write of one fact at one layer, its regularisation going to zero."""
    lm, editor, given = any_lm, replace(SHORT, n_prefixes=0), requests(EDITS[:1])
    update, K = editor(lm, EDITS[:1], moments_of(lm)), Walk(lm, given).climb(1).T
    R = target_vectors(lm, given, 1, SEARCH).delta[0].T
    left, right = ridge(K, R, moments_of(lm).solver(1, 1e-6)(K))
    torch.testing.assert_close(update.delta(1), left @ right.T, rtol=1e-3, atol=1e-7)


def test_groups_equal_one_by_one(any_lm):
    groups = [EDITS[:1], EDITS[1:], [*EDITS, AGAIN]]
    together = SHORT.each(any_lm, groups, moments_of(any_lm))
    for got, edits in zip(together, groups, strict=True):
        alone = SHORT(any_lm, edits, moments_of(any_lm))
        assert got.edits == alone.edits == tuple(edits) and got.factors[1].left.shape[1] == len(
            edits
        )
        tol = 1e-3 if any_lm.family.parallel else 1e-6
        torch.testing.assert_close(
            got.delta(1), alone.delta(1), rtol=tol, atol=tol * alone.delta(1).abs().max().item()
        )
    assert SHORT.each(any_lm, [], moments_of(any_lm)) == []


def test_prefixes_float32_and_inference_mode(tiny):
    lm = tiny("llama", torch.float32)
    texts = ROME(layer=0, n_prefixes=2).prefixes(lm)
    assert (
        len(texts) == len(set(texts)) == 5
        and texts[0] == ""
        and ROME(layer=0, texts=("So. ",)).prefixes(lm) == ("", "So. ")
    )
    lm64, edits, moments = tiny("llama"), EDITS[:2], identity(lm)
    with torch.inference_mode():
        update = SHORT(lm, edits, moments)
    double = SHORT(lm64, edits, moments)
    assert not update.factors[1].left.is_inference()
    assert update.factors[1].left.dtype == torch.float32
    torch.testing.assert_close(
        update.delta(1).double(),
        double.delta(1),
        rtol=1e-2,
        atol=1e-2 * double.delta(1).abs().max().item(),
    )


def test_refusals_leave_the_model(tiny):
    lm = tiny("gpt2")
    before = bits(lm)
    with pytest.raises(ValueError, match="constraint 'both'.*allowed"):
        ROME(layer=1, constraint="both")
    with pytest.raises(ValueError, match="position 'middle'"):
        replace(SHORT, position="middle")
    for editor, edits, moments, match in (
        (SHORT, [], identity(lm), "no edit"),
        (replace(SHORT, layer=4), EDITS, identity(lm), "layer 4 does not exist"),
        (SHORT, EDITS, Moments({}, 1), "no second moment of layer 1"),
        (SHORT, EDITS, None, "no second moments are given"),
        (SHORT, [EDITS[0], replace(EDITS[0], target_new="golf")], identity(lm), "conflicting"),
    ):
        with pytest.raises(ValueError, match=match):
            editor(lm, edits, moments)
    lm.embed.weight.data[lm.tokenizer("Tim")["input_ids"][0]] = float("nan")
    before = bits(lm)
    with pytest.raises(ValueError, match="Tim Duncan plays.*not finite"):
        replace(SHORT, n_prefixes=0, second_moment=False)(lm, EDITS)
    assert all(
        torch.equal(v.nan_to_num(), before[k].nan_to_num())
        for k, v in lm.model.state_dict().items()
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_presets():
    gptj, qwen3 = preset("ROME", "gpt-j-6b"), preset("ROME", "qwen3-8b")
    assert (
        gptj.objective == Objective(kind="mlp", steps=20, lr=0.5, decay=0.5, clamp=4.0, kl=0.0625)
        and gptj.second_moment
    )
    assert gptj.layers == qwen3.layers == (5,) and not qwen3.second_moment
