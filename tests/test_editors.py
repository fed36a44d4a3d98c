from dataclasses import replace

import pytest
import torch
from test_keys import EDITS
from test_spread import identity
from test_update import bits, same_bits

from acelib.editing.moments import Moments
from acelib.editing.search import Objective
from acelib.editors import ACE, IFMET, MEMIT, PMET, AlphaEdit, ace, alphaedit, ifmet, memit, pmet
from acelib.editors.base import Staged
from acelib.model.update import Update, applied, overlaid
from acelib.records import Edit

BLOCK = Objective(steps=5, lr=0.1, floor=None)
JOINT = Objective(kind="pmet", steps=5, lr=0.1, floor=None)
EDITORS = {
    "memit": MEMIT(layers=(1, 2), objective=BLOCK, weight=2.0, n_prefixes=2, prefix_length=6),
    "pmet": PMET(layers=(1, 2), objective=JOINT, weight=2.0, n_prefixes=2, prefix_length=6),
    "ace": ACE(
        query_layers=(0, 1),
        value_layers=(2, 3),
        objective=JOINT,
        weight=2.0,
        n_prefixes=2,
        prefix_length=6,
        chained=True,
    ),
    "ace-memit": ACE(
        query_layers=(0, 1),
        value_layers=(3,),
        backbone="memit",
        objective=BLOCK,
        weight=2.0,
        n_prefixes=0,
        stages=("query", "value"),
        chained=True,
    ),
    "alphaedit": AlphaEdit(
        layers=(1, 2), objective=BLOCK, weight=2.0, null_share=0.7, n_prefixes=2, prefix_length=6
    ),
    "ace-alphaedit": ACE(
        query_layers=(0, 1),
        value_layers=(2, 3),
        backbone="alphaedit",
        objective=BLOCK,
        weight=2.0,
        null_share=0.7,
        n_prefixes=0,
        stages=("query", "value"),
        chained=True,
    ),
    "ifmet": IFMET(
        query_layers=(0, 1),
        value_layers=(2, 3),
        objective=JOINT,
        weight=2.0,
        n_prefixes=2,
        prefix_length=6,
    ),
}
HOPS = [replace(e, hops=(f"The sport of the friend of {e.subject} is",)) for e in EDITS]


@pytest.fixture(params=EDITORS)
def editor(request):
    return EDITORS[request.param]


def test_an_edit_moves_the_model_towards_the_target_and_leaves_it_untouched(any_lm, editor):
    lm, before = any_lm, bits(any_lm)
    objective = replace(editor.objective, steps=20, lr=0.3, clamp=None, decay=0.0, kl=0.0)
    last = (
        {} if isinstance(editor, ACE) else {"position": "last"}
    )  # in a random model a write at the subject leaks into every later token
    update = replace(editor, objective=objective, n_prefixes=0, weight=1e-3, **last)(
        lm, HOPS, identity(lm)
    )
    assert same_bits(lm, before)
    assert (
        update.editor == type(editor).__name__
        and update.edits == tuple(HOPS)
        and update.model == lm.fingerprint
    )

    def nll(e):
        prompt, answer = (
            lm.tokenizer(e.prompt.replace("{}", e.subject))["input_ids"],
            lm.answer_ids(e.target_new),
        )
        with torch.no_grad():
            logp = lm.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return -logp[len(prompt) - 1 : -1][range(len(answer)), answer].mean().item()

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
            torch.testing.assert_close(
                got.delta(layer),
                alone.delta(layer),
                rtol=tol,
                atol=tol * alone.delta(layer).abs().max().item(),
            )
    assert editor.each(lm, [], identity(lm)) == []


def test_save_load_of_a_real_update(tiny, tmp_path):
    lm = tiny("gpt2")
    edit = Edit(
        "France", "The capital of {} is", "Hamlet", hops=("The capital of the country of Paris is",)
    )
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
    update, (ids, mask) = (
        editor(lm, HOPS, identity(lm)),
        lm.encode(["Tim Duncan plays the sport of", "Apple"]),
    )
    with torch.no_grad():
        with overlaid(lm, [update]):
            seen = lm.model(ids, attention_mask=mask).logits
        with applied(lm, update):
            torch.testing.assert_close(
                seen[mask.bool()], lm.model(ids, attention_mask=mask).logits[mask.bool()]
            )


@pytest.mark.parametrize(
    "edits, match",
    [
        ([], "no edit"),
        ([EDITS[0], replace(EDITS[0], target_new="golf")], "conflicting"),
    ],
)
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
        editor(
            lm,
            HOPS,
            replace(identity(lm), matrices={i: torch.eye(lm.d_mlp).double() for i in (0, 2, 3)}),
        )
    monkeypatch.setattr(
        "acelib.editing.write.ridge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    with pytest.raises(KeyboardInterrupt):
        editor(lm, HOPS, identity(lm))
    assert same_bits(lm, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_the_base_of_staged_editors_is_abstract():
    with pytest.raises(TypeError, match="abstract methods? '?asked'?, '?plan'?"):
        Staged()


def test_presets():
    assert memit.PRESETS["gpt-j-6b"].objective == Objective(
        steps=25, lr=0.5, decay=0.5, clamp=0.75, kl=0.0625
    )
    assert pmet.PRESETS["gpt-j-6b"].objective == Objective(
        kind="pmet", steps=30, lr=0.2, decay=0.5, clamp=0.75, kl=1.0
    )
    for module in (memit, pmet, alphaedit, ace, ifmet):
        for name, n_layers in (("gpt-j-6b", 28), ("qwen3-8b", 36)):
            assert set(module.PRESETS[name].layers) <= set(range(n_layers))


@pytest.mark.parametrize(
    "wrong, match",
    [
        (
            lambda: ACE(query_layers=(1,), value_layers=(2,), value_position="nowhere"),
            "position 'nowhere' is unknown; allowed: 'subject_last', 'last'",
        ),
        (lambda: MEMIT(layers=(1,), position=""), "position '' is unknown"),
        (lambda: PMET(layers=(1,), n_prefixes=-3), "n_prefixes -3 must not be negative"),
        (
            lambda: ACE(query_layers=(1,), value_layers=(2,), prefix_length=0),
            "prefix_length 0 at least 1",
        ),
    ],
)
def test_how_prompts_are_read_is_checked_when_it_is_said(wrong, match):
    with pytest.raises(ValueError, match=match):
        wrong()


def test_second_moments_of_another_width_are_refused(tiny):
    lm, before = tiny("llama"), bits(tiny("llama"))
    with pytest.raises(
        ValueError, match="the second moment of layer 1 is of 40 neurons; 'tiny-llama' has 48"
    ):
        MEMIT(layers=(1,), n_prefixes=0)(lm, HOPS[:1], Moments({1: torch.eye(40).double()}, 9))
    assert same_bits(lm, before)
