from dataclasses import replace

import pytest
import torch
from test_keys import EDITS, plain
from test_spread import identity
from test_update import bits, same_bits

from acelib.editors import ACE, MEMIT, PMET, ace, memit, pmet
from acelib.facts import Edit
from acelib.spread import edit as one_stage
from acelib.targets import Objective, target_vectors
from acelib.update import Update, applied, overlaid

BLOCK = Objective(steps=5, lr=0.1, floor=None)
JOINT = Objective(kind="pmet", steps=5, lr=0.1, floor=None)
EDITORS = {
    "memit": MEMIT(layers=(1, 2), objective=BLOCK, weight=2.0, n_prefixes=2, prefix_length=6),
    "pmet": PMET(layers=(1, 2), objective=JOINT, weight=2.0, n_prefixes=2, prefix_length=6),
    "ace": ACE(query_layers=(0, 1), value_layers=(2, 3), objective=JOINT, weight=2.0, n_prefixes=2, prefix_length=6, chained=True),
    "ace-memit": ACE(query_layers=(0, 1), value_layers=(3,), backbone="memit", objective=BLOCK, weight=2.0, n_prefixes=0,
                     stages=("query", "value"), chained=True),
}
HOPS = [replace(e, hops=(f"The sport of the friend of {e.subject} is",)) for e in EDITS]


@pytest.fixture(params=EDITORS)
def editor(request):
    return EDITORS[request.param]


def test_an_edit_moves_the_model_towards_the_target_and_leaves_it_untouched(any_lm, editor):
    lm, before = any_lm, bits(any_lm)
    objective = replace(editor.objective, steps=20, lr=0.3, clamp=None, decay=0.0, kl=0.0)
    last = {} if isinstance(editor, ACE) else {"position": "last"}  # in a random model a write at the subject leaks into every later token
    update = replace(editor, objective=objective, n_prefixes=0, weight=1e-3, **last)(lm, HOPS, identity(lm))
    assert same_bits(lm, before)
    assert update.editor == type(editor).__name__ and update.edits == tuple(HOPS) and update.model == lm.fingerprint

    def nll(e):
        prompt, answer = lm.tokenizer(e.prompt.replace("{}", e.subject))["input_ids"], lm.answer_ids(e.target_new)
        with torch.no_grad():
            logp = lm.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return -logp[len(prompt) - 1:-1][range(len(answer)), answer].mean().item()

    old = [nll(e) for e in EDITS]
    with applied(lm, update):
        assert sum(nll(e) for e in EDITS) < sum(old)
    assert same_bits(lm, before)


def test_groups_equal_one_by_one(any_lm, editor):
    lm, groups = any_lm, [HOPS[:1], HOPS[1:], HOPS]
    together = editor.each(lm, groups, identity(lm))
    for got, edits in zip(together, groups):
        alone = editor(lm, edits, identity(lm))
        assert got.edits == alone.edits == tuple(edits)
        for layer in alone.layers:
            tol = 1e-3 if lm.family.parallel else 1e-6
            torch.testing.assert_close(got.delta(layer), alone.delta(layer), rtol=tol, atol=tol * alone.delta(layer).abs().max().item())
    assert editor.each(lm, [], identity(lm)) == []


def test_ace_is_two_stages(any_lm):
    """Value stage at the last token of all prompts; query stage at the subject of the single-hop prompt, on the model so edited."""
    lm, moments, editor = any_lm, identity(any_lm), replace(EDITORS["ace"], weight=1e-7)
    value, query = (editor.asked(HOPS, stage) for stage in ("value", "query"))
    assert [r.prompt for r in value] == [e.prompt.replace("{}", e.subject) for e in HOPS] + [e.hops[0] for e in HOPS]
    assert all(r.end == len(r.prompt) for r in value) and [r.prompt[:r.end].endswith(r.subject) for r in query] == [True] * 3
    first = replace(editor, stages=("value",), n_prefixes=0)(lm, HOPS, moments)
    assert first.layers == (2, 3)
    Z = target_vectors(lm, value, 3, JOINT).value
    with applied(lm, first):  # weak regularisation: the FFN's output at every prompt's last token is the target
        for r, z in zip(value, Z):
            torch.testing.assert_close(plain(lm, r.prompt, r.end, 3)["mlp"], z, rtol=1e-3, atol=1e-3)
    both = replace(editor, n_prefixes=0)(lm, HOPS, moments)
    assert both.layers == (0, 1, 2, 3)
    with applied(lm, first):
        (second,) = one_stage(lm, query, editor.writer("query").stage, moments)
        Z = target_vectors(lm, query, 1, JOINT).value
    for layer in range(4):
        expected = (first + second).delta(layer)
        torch.testing.assert_close(both.delta(layer), expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())
    with applied(lm, both):
        for r, z in zip(query, Z):
            torch.testing.assert_close(plain(lm, r.prompt, r.end, 1)["mlp"], z, rtol=1e-3, atol=1e-3)


def test_ace_switches(tiny):
    lm, moments = tiny("qwen3"), identity(tiny("qwen3"))
    base = replace(EDITORS["ace"], n_prefixes=0)
    assert base.writer("value").share == "root" and EDITORS["ace-memit"].writer("value").share == "even"
    assert replace(base, value_weight=9.0).writer("value").weight == 9.0 and replace(base, value_weight=9.0).writer("query").weight == 2.0
    value, query = (replace(base, stages=(s,))(lm, HOPS, moments) for s in ("value", "query"))
    apart = replace(base, chained=False)(lm, HOPS, moments)
    for layer in range(4):
        torch.testing.assert_close(apart.delta(layer), (value + query).delta(layer))
    assert len(replace(base, value_prompts=("single",)).asked(HOPS, "value")) == 3
    with pytest.raises(ValueError, match="no multi-hop prompts"):
        replace(base, value_prompts=("hops",)).asked(EDITS, "value")
    twice = [replace(HOPS[0], hops=HOPS[0].hops * 2), HOPS[0]]
    assert len(base.asked(twice, "value")) == 2
    for bad, match in ((dict(stages=()), "stages"), (dict(stages=("x",)), "stages"), (dict(backbone="rome"), "'rome'"),
                       (dict(value_prompts=("single", "single")), "value_prompts"), (dict(value_position="first"), "position 'first'")):
        with pytest.raises(ValueError, match=match):
            replace(base, **bad).asked(HOPS, "value")


def test_save_load_of_a_real_update(tiny, tmp_path):
    lm = tiny("gpt2")
    edit = Edit("France", "The capital of {} is", "Hamlet", hops=("The capital of the country of Paris is",))
    update = EDITORS["pmet"](lm, [edit], identity(lm))
    update.save(tmp_path / "u")
    assert Update.load(tmp_path / "u", lm).edits == update.edits


def test_inference_mode_changes_nothing(tiny):
    lm, editor = tiny("qwen3"), EDITORS["ace"]
    outside = editor(lm, HOPS, identity(lm))
    with torch.inference_mode():
        inside = editor(lm, HOPS, identity(lm))
    for layer in range(4):
        torch.testing.assert_close(inside.delta(layer), outside.delta(layer))


def test_overlay_of_an_edit_equals_applied(tiny, editor):
    lm = tiny("llama")
    update, (ids, mask) = editor(lm, HOPS, identity(lm)), lm.encode(["Tim Duncan plays the sport of", "Apple"])
    with torch.no_grad():
        with overlaid(lm, [update]):
            seen = lm.model(ids, attention_mask=mask).logits
        with applied(lm, update):
            torch.testing.assert_close(seen[mask.bool()], lm.model(ids, attention_mask=mask).logits[mask.bool()])


@pytest.mark.parametrize("edits, match", [
    ([], "no edit"), ([EDITS[0], replace(EDITS[0], target_new="golf")], "conflicting"),
    ([replace(EDITS[0], target_true="football")], "answer already"), ([replace(EDITS[0], prompt="He plays")], "exactly once")])
def test_bad_edits_leave_the_model(tiny, editor, edits, match):
    lm = tiny("gpt2")
    before = bits(lm)
    with pytest.raises(ValueError, match=match):
        editor(lm, edits, identity(lm))
    assert same_bits(lm, before)


def test_bad_layers_and_interruptions_leave_the_model(tiny, editor, monkeypatch):
    lm = tiny("gpt2")
    before = bits(lm)
    name = "query_layers" if isinstance(editor, ACE) else "layers"
    with pytest.raises(ValueError, match="layer 4 does not exist"):
        replace(editor, **{name: (1, 4)})(lm, HOPS, identity(lm))
    with pytest.raises(ValueError, match="no layer given"):
        replace(editor, **{name: ()})(lm, HOPS, identity(lm))
    with pytest.raises(ValueError, match="no second moment of layer 1"):
        editor(lm, HOPS, replace(identity(lm), matrices={i: torch.eye(lm.d_mlp).double() for i in (0, 2, 3)}))
    monkeypatch.setattr("acelib.spread.ridge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        editor(lm, HOPS, identity(lm))
    assert same_bits(lm, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_presets():
    assert memit.PRESETS["gpt-j-6b"].objective == Objective(steps=25, lr=0.5, decay=0.5, clamp=0.75, kl=0.0625)
    assert pmet.PRESETS["gpt-j-6b"].objective == Objective(kind="pmet", steps=30, lr=0.2, decay=0.5, clamp=0.75, kl=1.0)
    assert ace.PRESETS["gpt-j-6b"].writer("value") == PMET(layers=(25, 26, 27), position="last")
    assert ace.PRESETS["gpt-j-6b"].writer("query") == pmet.PRESETS["gpt-j-6b"] and pmet.PRESETS["gpt-j-6b"].weight == 6000
