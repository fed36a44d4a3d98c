"""ACE at neuron level: the textbook's restricted least squares; all neurons are ACE."""

from dataclasses import replace

import pytest
import torch
from test_editors import EDITORS, HOPS
from test_update import bits, same_bits
from test_write import goals, identity

from acelib.attribution.scores import first_tokens, query_scores, value_scores
from acelib.editing.keys import keys_at, values_at
from acelib.editing.moments import Moments
from acelib.editing.request import requests
from acelib.editing.search import Objective
from acelib.editing.write import Stage, write
from acelib.editors.neurons import NeuronACE, NeuronStage

EDITS = [replace(edit, target_true="golf") for edit in HOPS]
ACES = ["ace", "ace-memit", "ace-alphaedit"]


def of(ace, n, **more):
    """NeuronACE with the settings of an ACE."""
    return NeuronACE(**vars(ace), n_neurons=n, **more)


def moments(lm):
    """Random positive second moments."""
    g = torch.Generator().manual_seed(5)
    X = [torch.randn(lm.d_mlp, 20, dtype=torch.float64, generator=g) for _ in range(lm.n_layers)]
    return Moments(
        {
            layer: x @ x.T / 20 + 0.1 * torch.eye(lm.d_mlp, dtype=torch.float64)
            for layer, x in enumerate(X)
        },
        20,
    )


def test_the_write_is_least_squares_on_the_chosen_columns(any_lm):
    """dW_S = R K_S^T (weight C_SS + K_S K_S^T)^{-1} for each group by itself, in one batch."""
    lm, weight, layer, Z, C = any_lm, 0.5, 2, goals(any_lm, 3), moments(any_lm)
    given = requests(EDITS[:2], group=0) + requests(EDITS[2:], group=1)
    S = torch.stack([torch.arange(0, 20, 2), torch.arange(30, 40)])
    stage = NeuronStage(
        layers=(layer,),
        weight=weight,
        objective=Objective(),
        neurons={layer: S},
        groups=torch.tensor([0, 0, 1]),
    )
    updates = write(lm, given, stage, C, Z)
    K, R = keys_at(lm, given, layer).double(), Z.T - values_at(lm, given, layer)
    for update, s, mine in zip(updates, S, ([0, 1], [2]), strict=True):
        k = K[s][:, mine]
        expected = torch.zeros(lm.d_model, lm.d_mlp, dtype=torch.float64)
        expected[:, s] = R[:, mine] @ k.T @ torch.linalg.inv(weight * C[layer][s][:, s] + k @ k.T)
        torch.testing.assert_close(update.delta(layer), expected, rtol=1e-6, atol=1e-7)


def test_all_columns_are_the_layer(tiny):
    lm, Z, C, given = (
        tiny("llama"),
        goals(tiny("llama"), 3),
        moments(tiny("llama")),
        requests(EDITS),
    )
    whole = dict(
        neurons={layer: torch.arange(lm.d_mlp)[None] for layer in (0, 2)},
        groups=torch.tensor([0, 0, 0]),
    )
    for null_space in (None, (None, 0.5)):
        stage = Stage((0, 2), 2.0, Objective(), null_space=null_space)
        (one,), (other,) = (
            write(lm, given, stage, C, Z),
            write(lm, given, NeuronStage(**vars(stage), **whole), C, Z),
        )
        for layer in (0, 2):
            torch.testing.assert_close(one.delta(layer), other.delta(layer), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ACES)
def test_all_neurons_are_ace(tiny, name):
    lm, ace = tiny("qwen3"), EDITORS[name].with_both(n_prefixes=0)
    for one, other in zip(
        ace.each(lm, [EDITS[:1], EDITS], moments(lm)),
        of(ace, lm.d_mlp).each(lm, [EDITS[:1], EDITS], moments(lm)),
        strict=True,
    ):
        assert (
            one.layers == other.layers and other.editor == "NeuronACE" and other.edits == one.edits
        )
        for layer in one.layers:
            torch.testing.assert_close(
                other.delta(layer),
                one.delta(layer),
                rtol=1e-6,
                atol=1e-6 * one.delta(layer).abs().max().item(),
            )


@pytest.mark.parametrize("name", ACES)
@pytest.mark.parametrize("choice", ["attribution", "random"])
def test_only_the_chosen_columns_change_and_groups_are_alone(tiny, name, choice):
    lm, groups, before = tiny("qwen3"), [EDITS[:1], EDITS[1:]], None
    editor, before = of(EDITORS[name].with_both(n_prefixes=0), 5, choice=choice), bits(lm)
    updates = editor.each(lm, groups, identity(lm))
    assert same_bits(lm, before) and editor.each(lm, [], identity(lm)) == []
    for stage in editor.stages:
        for group, update, S in zip(
            groups, updates, editor.neurons(lm, groups, stage), strict=True
        ):
            alone = editor(lm, group, identity(lm))
            assert torch.equal(editor.neurons(lm, [group], stage)[0], S) and S.shape == (
                lm.n_layers,
                5,
            )
            for layer in editor.writer(stage).layers:
                changed = update.delta(layer).abs().sum(0)
                assert changed.any() and set(changed.nonzero()[:, 0].tolist()) <= set(
                    S[layer].tolist()
                )
                torch.testing.assert_close(
                    update.delta(layer),
                    alone.delta(layer),
                    rtol=1e-5,
                    atol=1e-6 * changed.max().item(),
                )


def test_neurons_are_those_of_greatest_score(any_lm):
    """Value scores of the old answer at the last token, query scores at the subject's last token.

    Both are summed over the edits of a group.
    """
    lm, editor = any_lm, of(EDITORS["ace"], 4)
    prompts = [edit.prompt.replace("{}", edit.subject) for edit in EDITS]
    ids, mask = lm.encode(prompts)
    value = value_scores(lm, ids, mask, first_tokens(lm, ["golf"] * 3))
    ends = [
        lm.token_at(text, edit.prompt.index("{}") + len(edit.subject)) + 1
        for text, edit in zip(prompts, EDITS, strict=True)
    ]
    rows = [lm.tokenizer(text)["input_ids"][:end] for text, end in zip(prompts, ends, strict=True)]
    for stage, scores in (("value", value), ("query", query_scores(lm, *lm.pad(rows), value))):
        expected = scores.sum(0).topk(4).indices.sort(-1).values
        assert torch.equal(
            editor.neurons(lm, [EDITS], stage)[0, :-1], expected[:-1]
        )  # nothing is above the last: all equal


def test_bad_settings_leave_the_model(tiny):
    lm = tiny("gpt2")
    ace, before = EDITORS["ace"], bits(lm)
    with pytest.raises(ValueError, match="n_neurons 0 must be greater than 0"):
        of(ace, 0)
    with pytest.raises(ValueError, match="'best' is unknown; allowed: 'attribution', 'random'"):
        of(ace, 4, choice="best")
    with pytest.raises(ValueError, match="n_neurons 49: a layer of 'tiny-gpt2' has 48"):
        of(ace, 49)(lm, EDITS, identity(lm))
    with pytest.raises(ValueError, match="layer 4 does not exist"):
        of(ace.at(value_layers=(4,)), 5)(lm, EDITS, identity(lm))
    with pytest.raises(ValueError, match="no edit"):
        of(ace, 5)(lm, [], identity(lm))
    history = {layer: torch.zeros(lm.d_mlp, 1, dtype=torch.float64) for layer in range(4)}
    with pytest.raises(ValueError, match="other edits have other neurons"):
        of(EDITORS["ace-alphaedit"], 5)(lm, EDITS, identity(lm), history)
    assert same_bits(lm, before)
