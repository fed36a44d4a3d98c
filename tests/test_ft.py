from dataclasses import replace

import pytest
import torch
from test_keys import EDITS
from test_update import bits, same_bits

from acelib.bench import released
from acelib.editors import FT, ft, preset
from acelib.model.update import applied, overlaid

MORE = [*EDITS, replace(EDITS[0], prompt="{} is a player of", target_new="golf")]
TUNERS = {
    "last": FT(layers=(1,), steps=4, lr=1e-2, floor=0),
    "target": FT(layers=(1,), steps=4, lr=1e-2, floor=0, loss="target", norm_constraint=2.5e-2),
    "layers": FT(layers=(0, 2, 3), steps=3, lr=1e-2, floor=0, loss="target"),
    "batches": FT(layers=(3,), steps=3, lr=3e-2, floor=5.0, batch_size=1),
}


@pytest.fixture(params=TUNERS)
def tuner(request):
    return TUNERS[request.param]


def published(lm, edits, o):
    """dW by layer, and the updates made in each pass."""
    return released.ft(
        lm,
        edits,
        o.layers,
        lr=o.lr,
        steps=o.steps,
        ball=o.norm_constraint,
        floor=o.floor,
        batch_size=o.batch_size,
        loss_at=o.loss,
    )


def test_equals_the_published_loop(any_lm, tuner):
    lm, before = any_lm, bits(any_lm)
    update = tuner(lm, MORE, None)
    assert same_bits(lm, before)
    assert (
        update.editor == "FT"
        and update.edits == tuple(MORE)
        and update.model == lm.fingerprint
        and update.layers == tuner.layers
    )
    expected, _ = published(lm, MORE, tuner)
    assert same_bits(lm, before)
    tol = (
        1e-3 if lm.family.parallel else 1e-7
    )  # this architecture computes attention in float32 whatever the model's precision
    for layer, dW in expected.items():
        assert (update.delta(layer) - dW).norm() <= tol * dW.norm()


def test_bounds_steps_and_stops(tiny):
    lm = tiny("qwen3")
    update = TUNERS["target"](lm, MORE)
    assert (
        update.delta(1).abs().max().item() == 2.5e-2 and (update.delta(1).abs() == 2.5e-2).sum() > 1
    )
    _, made = published(lm, MORE, TUNERS["batches"])
    assert len(made) > 1 and sum(made) < 4 * len(made), (
        "the test of batches needs a batch that makes no step"
    )


def test_groups_equal_one_by_one(any_lm, tuner):
    groups = [MORE[:1], MORE[1:], MORE]
    editor = replace(tuner, steps=6)
    together = editor.each(any_lm, groups, None)
    for got, edits in zip(together, groups, strict=True):
        alone = editor(any_lm, edits)
        assert got.edits == alone.edits == tuple(edits)
        for layer in editor.layers:
            tol = 1e-3 if any_lm.family.parallel else 1e-7
            assert (got.delta(layer) - alone.delta(layer)).norm() <= tol * alone.delta(layer).norm()
    assert editor.each(any_lm, [], None) == []


def test_groups_that_stop_early_stay_where_they_are(tiny, monkeypatch):
    lm, groups = tiny("llama"), [MORE[:1], MORE[1:2], MORE[2:]]
    editor = FT(layers=(2,), steps=30, lr=3e-2, floor=3.0, loss="target")
    passes = [len(published(lm, edits, editor)[1]) for edits in groups]
    assert len(set(passes)) > 1 and max(passes) == 30
    together = editor.each(lm, groups)
    monkeypatch.setattr(ft, "BUDGET", 1)  # a group at a time
    for got, apart, edits in zip(together, editor.each(lm, groups), groups, strict=True):
        expected = published(lm, edits, editor)[0][2]
        torch.testing.assert_close(got.delta(2), expected, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(apart.delta(2), expected, rtol=1e-6, atol=1e-8)


def test_the_loss_falls_and_the_overlay_equals_applied(any_lm):
    lm, editor = any_lm, FT(layers=(2,), steps=8, lr=1e-2, loss="target")
    update, (ids, mask) = (
        editor(lm, EDITS),
        lm.encode([e.prompt.replace("{}", e.subject) for e in EDITS]),
    )
    with torch.no_grad():
        with overlaid(lm, [update]):
            seen = lm.model(ids, attention_mask=mask).logits
        with applied(lm, update):
            torch.testing.assert_close(
                seen[mask.bool()],
                lm.model(ids, attention_mask=mask).logits[mask.bool()],
                rtol=1e-5,
                atol=1e-7,
            )
        old = lm.model(ids, attention_mask=mask).logits
    for row, e in enumerate(EDITS):
        first, at = lm.answer_ids(e.target_new)[0], mask[row].sum() - 1
        assert seen[row, at].log_softmax(-1)[first] > old[row, at].log_softmax(-1)[first]


def test_float32_bfloat16_and_inference_mode(tiny):
    editor = TUNERS["target"]
    double, lm32 = editor(tiny("qwen3"), EDITS), tiny("qwen3", torch.float32)
    with torch.inference_mode():
        single = editor(lm32, EDITS)
    assert single.factors[1].right.dtype == torch.float32
    torch.testing.assert_close(single.delta(1).double(), double.delta(1), rtol=0, atol=5e-3)
    assert editor(tiny("qwen3", torch.bfloat16), EDITS).delta(1).isfinite().all()


def test_refusals_leave_the_model(tiny):
    lm = tiny("gpt2")
    before = bits(lm)
    for bad, match in (
        ({"loss": "all"}, "loss 'all'.*allowed"),
        ({"steps": 0}, "steps 0"),
        ({"lr": 0}, "lr 0"),
        ({"norm_constraint": 0.0}, "norm_constraint 0"),
        ({"batch_size": 0}, "batch_size 0"),
    ):
        with pytest.raises(ValueError, match=match):
            FT(layers=(1,), **bad)
    for editor, edits, match in (
        (TUNERS["last"], [], "no edit"),
        (FT(layers=()), EDITS, "no layer given"),
        (FT(layers=(4,)), EDITS, "layer 4 does not exist"),
        (TUNERS["last"], [EDITS[0], replace(EDITS[0], target_new="golf")], "conflicting"),
    ):
        with pytest.raises(ValueError, match=match):
            editor(lm, edits)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.optim.Adam, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt())
        )
        TUNERS["layers"](lm, EDITS)
    assert same_bits(lm, before) and not any(p.requires_grad for p in lm.model.parameters())
    lm.embed.weight.data[lm.tokenizer("Tim")["input_ids"][0]] = float("nan")
    with pytest.raises(ValueError, match="Tim Duncan plays.*'football' is not finite"):
        TUNERS["layers"](lm, EDITS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_presets():
    assert preset("FT", "gpt-j-6b") == FT(
        layers=(21,), loss="last", steps=25, lr=5e-4, norm_constraint=None
    )
