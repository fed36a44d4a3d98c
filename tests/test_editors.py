from dataclasses import replace

import pytest
import torch
from test_keys import EDITS
from test_update import bits, same_bits
from test_write import identity

from acelib.editing.moments import Moments
from acelib.editing.search import Objective
from acelib.editors import ACE, IFMET, MEMIT, PMET, AlphaEdit
from acelib.editors.base import Editor, Staged
from acelib.model.update import Update, applied, overlaid
from acelib.records import Edit

BLOCK = Objective(steps=5, lr=0.1, floor=None)
JOINT = Objective(kind="pmet", steps=5, lr=0.1, floor=None)


def stages(editor, query, value, **settings):
    """The two stages of ACE: the value stage at the last token."""
    return dict(
        value=editor(layers=value, position="last", weight=2.0, **settings),
        query=editor(layers=query, weight=2.0, **settings),
    )


SHORT = dict(n_prefixes=2, prefix_length=6)
TURNED = dict(stages=("query", "value"), chained=True)
EDITORS = {
    "memit": MEMIT(layers=(1, 2), objective=BLOCK, weight=2.0, **SHORT),
    "pmet": PMET(layers=(1, 2), objective=JOINT, weight=2.0, **SHORT),
    "ace": ACE(**stages(PMET, (0, 1), (2, 3), objective=JOINT, **SHORT), chained=True),
    "ace-memit": ACE(**stages(MEMIT, (0, 1), (3,), objective=BLOCK, n_prefixes=0), **TURNED),
    "alphaedit": AlphaEdit(layers=(1, 2), objective=BLOCK, weight=2.0, null_share=0.7, **SHORT),
    "ace-alphaedit": ACE(
        **stages(AlphaEdit, (0, 1), (2, 3), objective=BLOCK, null_share=0.7, n_prefixes=0), **TURNED
    ),
    "ifmet": IFMET(**stages(PMET, (0, 1), (2, 3), objective=JOINT, **SHORT)),
}
HOPS = [replace(e, hops=(f"The sport of the friend of {e.subject} is",)) for e in EDITS]


@pytest.fixture(params=EDITORS)
def editor(request):
    return EDITORS[request.param]


def test_an_edit_moves_the_model_towards_the_target_and_leaves_it_untouched(any_lm, editor):
    lm, before = any_lm, bits(any_lm)
    own = editor.value if isinstance(editor, ACE) else editor
    objective = replace(own.objective, steps=20, lr=0.3, clamp=None, decay=0.0, kl=0.0)
    settings = dict(objective=objective, n_prefixes=0, weight=1e-3)
    if isinstance(editor, ACE):
        strong = editor.with_both(**settings)
    else:  # in a random model a write at the subject leaks into every later token
        strong = replace(editor, position="last", **settings)
    update = strong(lm, HOPS, identity(lm))
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
    for got, edits in zip(together, groups, strict=True):
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

    def at(layers):
        return editor.at(layers) if isinstance(editor, ACE) else replace(editor, layers=layers)

    with pytest.raises(ValueError, match="layer 4 does not exist"):
        at((1, 4))(lm, HOPS, identity(lm))
    with pytest.raises(ValueError, match="no layer given"):
        at(())(lm, HOPS, identity(lm))
    with pytest.raises(ValueError, match="needs second moments"):
        editor(lm, HOPS)
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


def test_the_bases_of_editors_are_abstract():
    with pytest.raises(TypeError, match="abstract method '?each'?"):
        Editor()
    with pytest.raises(TypeError, match="abstract methods '?plan'?, '?prefixes'?, '?requests'?"):
        Staged()


@pytest.mark.parametrize(
    "wrong, match",
    [
        (
            lambda: PMET(layers=(1,), position="nowhere"),
            "position 'nowhere' is unknown; allowed: 'subject_last', 'last'",
        ),
        (lambda: MEMIT(layers=(1,), position=""), "MEMIT: position '' is unknown"),
        (lambda: PMET(layers=(1,), n_prefixes=-3), "PMET: n_prefixes -3 must be at least 0"),
        (lambda: MEMIT(layers=(1,), prefix_length=0), "prefix_length 0 must be greater than 0"),
        (
            lambda: MEMIT(layers=(1,), weight=float("nan")),
            "weight nan: it should be a finite number",
        ),
        (
            lambda: MEMIT(layers=(1,), share="all"),
            "share 'all' is unknown; allowed: 'even', 'root'",
        ),
        (lambda: MEMIT(layers=(1, "2")), "MEMIT: layers '2': it should be a valid integer"),
        (lambda: MEMIT(layers=(1,), share="long " * 4000), "^MEMIT: share .{100,200}$"),
        (lambda: MEMIT(), "MEMIT needs layers"),
        (lambda: MEMIT(layers=(1,), wait=2.0), "MEMIT has no 'wait'; it has: layers, weight, "),
        (lambda: AlphaEdit(layers=(1,), null_share=1.5), "null_share 1.5 must be at most 1"),
    ],
)
def test_settings_are_checked_when_they_are_made(wrong, match):
    with pytest.raises(ValueError, match=match):
        wrong()


def test_second_moments_of_another_width_are_refused(tiny):
    lm, before = tiny("llama"), bits(tiny("llama"))
    with pytest.raises(
        ValueError, match="the second moment of layer 1 is of 40 neurons; 'tiny-llama' has 48"
    ):
        MEMIT(layers=(1,), n_prefixes=0)(lm, HOPS[:1], Moments({1: torch.eye(40).double()}, 9))
    assert same_bits(lm, before)
