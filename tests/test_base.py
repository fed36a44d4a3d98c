"""Editing in turn: the state is the sum of the Updates, as if each had been committed."""

import pytest
import torch
from test_alphaedit import spectrum
from test_editors import BLOCK, HOPS, JOINT, stages
from test_update import bits, random_update, same_bits

from acelib.editors import ACE, FT, IFMET, MEMIT, PMET, AlphaEdit
from acelib.editors.base import edit_in_turn
from acelib.model.update import Update, commit
from acelib.records import Edit

EDITORS = {
    "memit": MEMIT(layers=(1, 2), objective=BLOCK, weight=2.0, n_prefixes=1, prefix_length=6),
    "alphaedit": AlphaEdit(
        layers=(1, 2), objective=BLOCK, weight=0.1, n_prefixes=1, prefix_length=6
    ),
    "ace": ACE(**stages(AlphaEdit, (0, 1), (1, 2), objective=BLOCK, n_prefixes=0)).with_both(
        weight=0.1
    ),
    "ifmet": IFMET(**stages(PMET, (0, 1), (2,), objective=JOINT, n_prefixes=0)),
}
BATCHES = [HOPS[:1], HOPS[1:2], HOPS[2:]]


@pytest.fixture(params=EDITORS)
def editor(request):
    return EDITORS[request.param]


def close(found, expected, tol=1e-6):
    assert (
        found.layers == expected.layers
        and found.edits == expected.edits
        and found.model == expected.model
    )
    for layer in expected.layers:
        scale = expected.delta(layer).abs().max().item()
        torch.testing.assert_close(
            found.delta(layer), expected.delta(layer), rtol=tol, atol=tol * scale
        )
    assert list(found.keys) == list(expected.keys)
    for layer, K in expected.keys.items():
        torch.testing.assert_close(found.keys[layer], K, rtol=tol, atol=tol)


def test_one_batch_in_turn_is_a_batch(tiny, editor):
    lm = tiny("qwen3")
    (state,) = edit_in_turn(lm, editor, [HOPS], spectrum(lm))
    close(state, editor(lm, HOPS, spectrum(lm)))


@pytest.mark.parametrize("family", ["gptj", "qwen3"])
def test_batches_in_turn_equal_edits_of_the_committed_model(tiny, family, editor):
    lm, other = tiny(family), tiny(family)
    before, moments, expected = bits(lm), spectrum(lm), Update(model=lm.fingerprint)
    fixed = editor.with_texts(editor.prefixes(lm)[1:])
    states = edit_in_turn(lm, editor, BATCHES, moments)
    for edits, state in zip(BATCHES, states, strict=True):
        assert same_bits(lm, before)
        new = fixed(other, edits, moments, expected.keys)
        commit(other, new)
        expected += new
        close(state, expected, 1e-4)
    assert list(states) == [] and state.edits == tuple(HOPS)


def test_a_saved_state_goes_on(tiny, tmp_path, editor):
    lm = tiny("llama")
    moments = spectrum(lm)
    batches = [
        [Edit(e.subject, e.prompt, e.target_new, hops=e.hops) for e in edits] for edits in BATCHES
    ]
    *_, whole = edit_in_turn(lm, editor, batches, moments)
    *_, first = edit_in_turn(lm, editor, batches[:2], moments)
    first.save(tmp_path / "state")
    (state,) = edit_in_turn(lm, editor, batches[2:], moments, Update.load(tmp_path / "state", lm))
    close(state, whole)


def test_an_editor_without_history_or_texts(tiny):
    lm, seen = tiny("gpt2"), []

    def editor(lm, edits, moments):
        seen.append(bits(lm))
        return random_update(lm, seed=len(seen))

    *_, state = edit_in_turn(lm, editor, BATCHES, None)
    assert state.factors[1].left.shape[1] == 6 and not state.keys
    torch.testing.assert_close(
        seen[2]["transformer.h.1.mlp.c_proj.weight"].T,
        lm.weight(1) + sum(random_update(lm, seed=s).delta(1) for s in (1, 2)),
    )


def test_dense_changes_add_up_in_one_matrix(tiny):
    lm, other, editor = tiny("qwen3"), tiny("qwen3"), FT(layers=(2,), steps=3)
    *_, state = edit_in_turn(lm, editor, BATCHES, None)
    start = lm.weight(2).clone()
    for edits in BATCHES:
        commit(other, editor(other, edits))
    assert state.factors[2].left.shape == (lm.d_model, lm.d_model)
    torch.testing.assert_close(state.delta(2), other.weight(2) - start)


def test_what_goes_wrong_leaves_the_model(tiny, editor):
    lm = tiny("gpt2")
    before, moments, editor = bits(lm), spectrum(lm), editor.with_texts(())
    states = edit_in_turn(lm, editor, [HOPS[:1], []], moments)
    first = next(states)
    with pytest.raises(ValueError, match="no edit"):
        next(states)
    assert same_bits(lm, before)
    with pytest.raises(ValueError, match="the state was made for the model"):
        next(edit_in_turn(tiny("gpt2", seed=1), editor, BATCHES, moments, first))
    for call in (2, 9, 15):
        left = [call]

        def interrupt(*_, left=left):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        hooks = [lm.fc2(layer).register_forward_hook(interrupt) for layer in range(4)]
        with pytest.raises(KeyboardInterrupt):
            next(edit_in_turn(lm, editor, BATCHES[1:], moments, first))
        for hook in hooks:
            hook.remove()
        assert same_bits(lm, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
