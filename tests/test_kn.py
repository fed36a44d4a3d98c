from dataclasses import replace

import pytest
import torch
from test_keys import EDITS
from test_update import bits, same_bits

from acelib.attribution.consistency import consistency_aware
from acelib.attribution.integrated import (
    Attribution,
    integrated_gradients,
    knowledge_neurons,
    localize,
)
from acelib.editors.kn import KN
from acelib.model.update import applied

ASKED = [
    replace(e, target_true=old) for e, old in zip(EDITS, ("golf", "Paris", "France"), strict=True)
]


def rows_of(lm, e):
    prompt, answer = (
        lm.tokenizer(e.prompt.replace("{}", e.subject))["input_ids"],
        lm.answer_ids(e.target_true),
    )
    return [(prompt + answer[:t], token) for t, token in enumerate(answer)]


def plain_attribution(lm, ids, token, steps, activation):
    """As published: layer by layer, whole model, one scaled copy at a time."""
    scores = []
    for layer in range(lm.n_layers):
        module = lm.fc2(layer) if activation == "post" else getattr(lm.mlp(layer), lm.family.fc1[0])
        state = {}

        def swap(value, state=state):
            state.setdefault("a", value[0, -1].detach())
            state["x"] = (state["a"] * state["s"]).requires_grad_()
            return torch.cat([value[:, :-1], state["x"][None, None]], 1)

        if activation == "post":
            hook = module.register_forward_pre_hook(lambda _, args: (swap(args[0]),))
        else:
            hook = module.register_forward_hook(lambda _, args, out: swap(out))
        total = 0
        for k in range(1, steps + 1):
            state["s"] = k / steps
            p = lm.model(torch.tensor([ids])).logits[0, -1].softmax(-1)[token]
            total = total + torch.autograd.grad(p, state["x"])[0]
        hook.remove()
        scores.append(state["a"] / steps * total)
    return torch.stack(scores)


@pytest.mark.parametrize("activation", ["post", "pre"])
def test_attributions_are_those_of_whole_forwards(any_lm, activation):
    rows = [row for e in ASKED for row in rows_of(any_lm, e)] + [([5], 7)]
    got = integrated_gradients(any_lm, rows, 2, activation, budget=7)
    for score, (ids, token) in [*list(zip(got, rows, strict=True))[1::4], (got[-1], rows[-1])]:
        expected = plain_attribution(any_lm, ids, token, 2, activation)
        tol = (
            1e-4 if any_lm.family.parallel else 1e-7
        )  # this architecture computes attention in float32 whatever the model's precision
        torch.testing.assert_close(
            score, expected, rtol=tol, atol=tol * expected.abs().max().item()
        )
    with torch.inference_mode():
        torch.testing.assert_close(
            integrated_gradients(any_lm, rows[:2], 2, activation), got[:2], rtol=1e-4, atol=1e-9
        )


def test_attributions_of_a_layer_add_up_to_its_effect(any_lm):
    """Completeness: sum_i Attr(l, i) -> p with the activations of layer l, less p without them."""
    (ids, token), *_ = rows_of(any_lm, ASKED[0])
    (got,) = integrated_gradients(any_lm, [(ids, token)], 200)

    def p(silent=None):
        hook = (
            None
            if silent is None
            else any_lm.fc2(silent).register_forward_pre_hook(
                lambda _, args: (torch.cat([args[0][:, :-1], 0 * args[0][:, -1:]], 1),)
            )
        )
        with torch.no_grad():
            out = any_lm.model(torch.tensor([ids])).logits[0, -1].softmax(-1)[token].item()
        if hook:
            hook.remove()
        return out

    for layer in range(any_lm.n_layers):
        assert got[layer].sum().item() == pytest.approx(p() - p(layer), rel=4e-2, abs=1e-6)


def neurons(lm, e, threshold=0.2):
    score = integrated_gradients(lm, rows_of(lm, e), 2).mean(0)
    return score > threshold * score.max()


@pytest.mark.parametrize("old", [None, 0.5])
def test_update_moves_the_value_vectors_of_the_neurons_and_nothing_else(any_lm, old):
    lm, before, E = any_lm, bits(any_lm), any_lm.embed.weight
    update = KN(steps=2, old=old, new=3.0)(lm, ASKED, None)
    assert (
        same_bits(lm, before)
        and update.editor == "KN"
        and update.edits == tuple(ASKED)
        and update.model == lm.fingerprint
    )
    expected = torch.zeros(lm.n_layers, lm.d_model, lm.d_mlp, dtype=lm.dtype)
    for e in ASKED:
        tokens, new = lm.answer_ids(e.target_true), lm.answer_ids(e.target_new)
        weight = old or (2 if len(tokens) == 1 else 1)
        v = 3 * sum(E[t] for t in new) - weight * sum(E[t] for t in tokens)
        expected += neurons(lm, e)[:, None, :] * v[None, :, None]
    for layer in range(lm.n_layers):
        got = update.delta(layer) if layer in update.layers else torch.zeros_like(expected[layer])
        torch.testing.assert_close(got, expected[layer], rtol=1e-12, atol=1e-12)


def test_erase_silences_every_neuron_once(any_lm):
    lm, edits = any_lm, [ASKED[0], ASKED[1], replace(ASKED[0], prompt="{} plays the game of")]
    update = KN(steps=2, mode="erase")(lm, edits)
    chosen = torch.stack([neurons(lm, e) for e in edits])
    assert (chosen.sum(0) > 1).any(), "the test needs a neuron of two facts"
    W = [lm.weight(layer).clone() for layer in range(lm.n_layers)]
    with applied(lm, update):
        for layer, silent in enumerate(chosen.any(0)):
            torch.testing.assert_close(lm.weight(layer), W[layer] * ~silent, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["update", "erase"])
def test_groups_equal_one_by_one(any_lm, mode):
    editor, groups = KN(steps=2, mode=mode), [ASKED[:1], ASKED[1:], ASKED]
    for got, edits in zip(editor.each(any_lm, groups, None), groups, strict=True):
        alone = editor(any_lm, edits)
        assert got.layers == alone.layers and got.edits == tuple(edits)
        for layer in alone.layers:
            torch.testing.assert_close(got.delta(layer), alone.delta(layer), rtol=0, atol=1e-12)
    assert editor.each(any_lm, []) == []


def test_float32_inference_mode_and_presets(tiny):
    lm32 = tiny("qwen3", torch.float32)
    with torch.inference_mode():
        update = KN(steps=2)(lm32, ASKED)
    double = KN(steps=2)(tiny("qwen3"), ASKED)
    assert update.layers == double.layers and not any(
        f.left.is_inference() for f in update.factors.values()
    )
    assert all(f.left.dtype == f.right.dtype == torch.float32 for f in update.factors.values())
    for layer in double.layers:
        torch.testing.assert_close(
            update.delta(layer).double(), double.delta(layer), rtol=1e-4, atol=1e-5
        )
    assert KN(steps=2)(tiny("llama", torch.bfloat16), ASKED).factors


def test_refusals_leave_the_model(tiny):
    lm = tiny("gpt2")
    before = bits(lm)
    for bad, match in (
        ({"activation": "both"}, "activation 'both'.*allowed"),
        ({"mode": "x"}, "mode 'x'"),
        ({"threshold": 1}, "threshold 1"),
        ({"steps": 0}, "steps 0"),
    ):
        with pytest.raises(ValueError, match=match):
            KN(**bad)
    for edits, match in (
        ([], "no edit"),
        (EDITS, "Tim Duncan.*needs the old answer"),
        ([ASKED[0], replace(ASKED[0], target_new="tennis")], "conflicting"),
        (
            [ASKED[0], replace(ASKED[0], target_true="chess")],
            "Tim Duncan plays.*two old answers: 'golf' and 'chess'",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            KN()(lm, edits)
    assert same_bits(lm, before)
    lm.embed.weight.data[lm.tokenizer("Tim")["input_ids"][0]] = float("nan")
    with pytest.raises(ValueError, match="'golf'.*Tim Duncan plays.*not finite"):
        KN()(lm, ASKED)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


REWORDED = [replace(e, paraphrases=(f"Indeed {e.prompt}", f"We say {e.prompt}")) for e in ASKED[:2]]


def located(lm, e, method="IG"):
    texts = [e.text, *(p.replace("{}", e.subject) for p in e.paraphrases)]
    how = Attribution(method=method, steps=2, tokens="mean")
    return localize(lm, texts, [e.target_true] * len(texts), how)


@pytest.mark.parametrize("method", ["IG", "SIG", "AMIG"])
@pytest.mark.parametrize("chosen", ["own", "union", "consistent"])
def test_neurons_of_one_wording_of_any_or_of_consistent_ones(tiny, method, chosen):
    lm, options = tiny("gpt2"), dict(steps=2, mode="erase", method=method, neurons=chosen)
    for update, e in zip(KN(**options).each(lm, [[e] for e in REWORDED]), REWORDED, strict=True):
        scores = located(lm, e, method)
        expected = {
            "own": knowledge_neurons(scores)[0],
            "union": knowledge_neurons(scores).any(0),
            "consistent": consistency_aware(scores),
        }[chosen]
        silent = torch.zeros_like(expected)
        for layer in update.layers:
            silent[layer] = update.delta(layer).ne(0).any(0)
        assert silent.equal(expected)


def test_settings_of_the_consistency_aware_score(tiny):
    lm, e = tiny("llama"), REWORDED[0]
    editor = KN(steps=2, neurons="consistent", beta=[1.0, 0.5], cut=0.6, old=2.0, new=2.0)
    update, expected = editor(lm, [e]), consistency_aware(located(lm, e), (1.0, 0.5), 0.6)
    change = 2 * sum(lm.embed.weight[t] for t in lm.answer_ids(e.target_new))
    change = change - 2 * sum(lm.embed.weight[t] for t in lm.answer_ids(e.target_true))
    for layer in update.layers:
        torch.testing.assert_close(
            update.delta(layer), change[:, None] * expected[layer], rtol=1e-12, atol=1e-12
        )
    with pytest.raises(ValueError, match="edit of 'Tim Duncan' has one wording; .* paraphrases"):
        editor(lm, ASKED[:1])
    for bad, match in (
        ({"neurons": "both"}, "neurons 'both' is unknown; allowed: 'own', 'union', 'consistent'"),
        ({"method": "LRP"}, "method 'LRP'"),
        ({"cut": 0.0}, "cut 0.0"),
    ):
        with pytest.raises(ValueError, match=match):
            KN(**bad)
