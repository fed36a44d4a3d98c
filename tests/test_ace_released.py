"""ACE as released, and PMET with attention, against a plain re-statement of what that code does,
written here from its description: dense matrices, whole forwards, one edit, float64.
"""

import math
from dataclasses import replace

import pytest
import torch
from test_update import bits, same_bits

from acelib.bench import released
from acelib.bench.released_check import CONTEXTS, EDITS, JOINT, difference, in_float64, search
from acelib.editing.moments import Moments
from acelib.editing.write import Stage, write
from acelib.editors import ACE, MEMIT, PMET, ReleasedACE

SAME = 1e-8  #: relative difference allowed
NAMES = {"attn": "attn", "mlp": "fc2"}  #: of the matrices, in ``released.MODULES``
OBJECTIVE = replace(JOINT, steps=4)
OWN = PMET(layers=(0, 1), objective=OBJECTIVE, weight=2.0, texts=CONTEXTS[1:3], writes="both")
EDITOR = ReleasedACE(query=OWN, value=replace(OWN, layers=(2,)))


@pytest.fixture(autouse=True)
def float64():
    with in_float64():
        yield


def moments(lm):
    """Random second moments of both parts, positive."""
    g = torch.Generator().manual_seed(5)

    def of(part):
        d = lm.width(part)
        X = [torch.randn(d, 20, dtype=torch.float64, generator=g) for _ in range(lm.n_layers)]
        return {i: x @ x.T / 20 + 0.1 * torch.eye(d).double() for i, x in enumerate(X)}

    return Moments(of("mlp"), 20, attn=Moments(of("attn"), 20))


def weight(lm, part, layer):
    """The matrix as (out, in), sharing memory."""
    W = released.module(lm, NAMES[part], layer).weight
    return W.T if lm.model.config.model_type == "gpt2" else W


def mean_key(lm, ask, part, layer, contexts):
    """What goes into a matrix at the lookup token: half the bare prompt's, half the others'."""
    which, keys = released.module(lm, NAMES[part], layer), []
    for context in contexts:
        ids, at = ask.row(lm, context)
        keys.append(released.run(lm, ids, read=[which])[1][which][0][at])
    return (keys[0] + sum(keys[1:]) / len(keys[1:])) / 2


def searched(lm, edit, layer, contexts, objective=OBJECTIVE):
    """What attention's output and the FFN's should be at ``layer``: one search for both."""
    modules = [released.module(lm, NAMES[part], layer) for part in NAMES]
    ask = released.at_subject(edit)
    h_0, path, _ = released.target_vector(lm, ask, modules, contexts, **search(objective))
    return {part: h + delta for part, h, delta in zip(NAMES, h_0, path[-1], strict=True)}


@torch.no_grad()
def restated(lm, edit, groups, lam, C, contexts, Z):
    """Write Z, group by group from the shallowest, layer by layer, both matrices of a layer: what
    is missing at the last layer of all groups, times 1 / sqrt(layers left in the group).

    Returns {(part, layer): dW} and the shares; the weights stay written.
    """
    ask, last = released.at_subject(edit), max(layer for group in groups for layer in group)
    written, shares = {}, []
    for group in groups:
        for j, layer in enumerate(group):
            shares.append(1 / math.sqrt(len(group) - j))
            for part in NAMES:  # both are solved before either is written
                k = mean_key(lm, ask, part, layer, contexts)
                missing = (
                    Z[part] - released.now(lm, [ask], released.module(lm, NAMES[part], last))[:, 0]
                )
                left = lam * C.of(part)[layer] + torch.outer(k, k)
                written[part, layer] = torch.outer(
                    shares[-1] * missing, torch.linalg.solve(left, k)
                )
            for part in NAMES:
                weight(lm, part, layer).add_(written[part, layer])
    return written, shares


def plain(lm, edit, groups):
    """``restated`` with a search of its own, and the weights put back."""
    Z = searched(lm, edit, max(max(groups)), CONTEXTS[:3])
    with released.restored(lm):
        return restated(lm, edit, groups, 2.0, moments(lm), CONTEXTS[:3], Z)


def matrices(update):
    return {(part, layer): update.delta(layer, part) for part in NAMES for layer in update.layers}


def in_order(written):
    return {key: written[key] for key in sorted(written, key=lambda key: (key[0] == "mlp", key[1]))}


@pytest.mark.parametrize("edit", EDITS[:2], ids=["begins", "inside"])
def test_ace_as_released_is_the_described_procedure(any_lm, edit):
    lm, before = any_lm, bits(any_lm)
    expected, shares = plain(lm, edit, [(0, 1), (2,)])
    update = EDITOR(lm, [edit], moments(lm))
    assert shares == pytest.approx([0.5**0.5, 1, 1])
    assert difference(matrices(update), in_order(expected)) <= SAME
    assert same_bits(lm, before) and update.editor == "ReleasedACE"


def test_pmet_with_attention_is_the_same_with_one_group(any_lm):
    lm, edit = any_lm, EDITS[0]
    expected, shares = plain(lm, edit, [(0, 1, 2)])
    update = replace(OWN, layers=(0, 1, 2))(lm, [edit], moments(lm))
    assert shares == pytest.approx([3**-0.5, 0.5**0.5, 1])
    assert difference(matrices(update), in_order(expected)) <= SAME


def test_the_whole_is_both_vectors_through_the_ffn(any_lm):
    """One layer, no decay, no ball: in a parallel block the usual write is exactly half."""
    lm, C = any_lm, moments(any_lm)
    free = replace(OBJECTIVE, decay=0.0, clamp=None)
    usual = replace(OWN, layers=(1,), objective=free, writes="ffn")
    whole = replace(usual, writes="whole")
    half, all_of_it = usual(lm, EDITS, C), whole(lm, EDITS, C)
    assert not half.attn and not all_of_it.attn
    if lm.family.parallel:
        torch.testing.assert_close(all_of_it.delta(1), 2 * half.delta(1), rtol=1e-6, atol=1e-9)
    found = whole.search(lm, [EDITS])
    given = write(lm, whole.requests(EDITS), whole.stage, C, found.whole, whole.prefixes(lm))
    torch.testing.assert_close(all_of_it.delta(1), given[0].delta(1))


def test_one_search_serves_both_groups_and_is_at_their_last_layer(tiny, monkeypatch):
    lm, layers = tiny("gptj"), []
    real = Stage.search

    def counted(stage, *args):
        layers.append(stage.target_layer)
        return real(stage, *args)

    monkeypatch.setattr(Stage, "search", counted)
    whole = EDITOR(lm, EDITS, moments(lm))
    assert layers == [2]
    # Vectors that were searched before are written as they are: the same update.
    given = EDITOR.search(lm, [EDITS])
    again = EDITOR(lm, EDITS, moments(lm), targets=given)
    assert layers == [2, 2]
    assert all(torch.equal(again.delta(i), whole.delta(i)) for i in whole.layers)


def test_a_batch_of_edits_is_one_by_one(any_lm):
    lm = any_lm
    for update, edit in zip(EDITOR.each(lm, [[e] for e in EDITS], moments(lm)), EDITS, strict=True):
        alone = EDITOR(lm, [edit], moments(lm))
        assert difference(matrices(update), matrices(alone)) < 1e-6


def test_what_does_not_go_together_is_refused(tiny):
    with pytest.raises(ValueError, match="one search's vectors: position is 'last' in value"):
        replace(EDITOR, value=replace(EDITOR.value, position="last"))
    with pytest.raises(ValueError, match="one search's vectors: prompts"):
        replace(EDITOR, value_prompts=("hops",))
    with pytest.raises(ValueError, match="writes 'both' needs a target vector of attention"):
        PMET(layers=(1,), writes="both", objective=replace(OBJECTIVE, kind="block"))
    with pytest.raises(ValueError, match="targets at layer 1 lie below layer 3"):
        replace(OWN.stage, layers=(3,), at=1)
    with pytest.raises(ValueError, match="writes 'both' is not made for a null space"):
        replace(OWN.stage, null_space=(None, 0.5))
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match="no second moments of attention are given"):
        EDITOR(lm, EDITS, Moments(moments(lm).matrices, 20))
    small = Moments({i: torch.eye(3).double() for i in range(4)}, 1)
    with pytest.raises(ValueError, match="layer 0 is of 3 neurons; 'tiny-gpt2' has 32"):
        EDITOR(lm, EDITS, replace(moments(lm), attn=small))


def test_settings_say_what_they_write_only_where_it_is_unusual():
    """Rows are kept under the text of an editor's settings: PMET's is what it was."""
    usual = "PMET(layers=(1,), weight=6000.0, objective=Objective(kind='pmet', steps=30, lr=0.2, "
    usual += "decay=0.5, clamp=0.75, kl=1.0, floor=0.05), share='root', position='subject_last', "
    usual += "n_prefixes=5, prefix_length=10, seed=0, texts=None)"
    assert repr(PMET(layers=(1,))) == usual
    assert repr(PMET(layers=(1,), writes="whole")) == usual[:-1] + ", writes='whole')"
    assert EDITOR.attn_layers == (0, 1, 2) and MEMIT(layers=(1,)).attn_layers == ()
    assert ACE(query=OWN, value=replace(OWN, layers=(2,), writes="ffn")).attn_layers == (0, 1)
