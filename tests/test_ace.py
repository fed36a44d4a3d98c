"""ACE: two stages on any backbone, each with its own prompts, positions and layers."""

from dataclasses import replace

import pytest
import torch
from test_alphaedit import spectrum
from test_editors import EDITORS, HOPS, JOINT
from test_keys import EDITS, plain
from test_spread import identity

from acelib.editing.search import target_vectors
from acelib.editing.write import edit as one_stage
from acelib.editors import PMET, AlphaEdit, ace, pmet
from acelib.model.update import Update, applied


def test_ace_is_two_stages(any_lm):
    """Value stage at the last token of all prompts; query stage at the subject of the single-hop prompt, on the model so edited."""
    lm, moments, editor = any_lm, identity(any_lm), replace(EDITORS["ace"], weight=1e-7)
    value, query = (editor.asked(HOPS, stage) for stage in ("value", "query"))
    assert [r.prompt for r in value] == [e.prompt.replace("{}", e.subject) for e in HOPS] + [
        e.hops[0] for e in HOPS
    ]
    assert (
        all(r.end == len(r.prompt) for r in value)
        and [r.prompt[: r.end].endswith(r.subject) for r in query] == [True] * 3
    )
    first = replace(editor, stages=("value",), n_prefixes=0)(lm, HOPS, moments)
    assert first.layers == (2, 3)
    Z = target_vectors(lm, value, 3, JOINT).value
    with applied(
        lm, first
    ):  # weak regularisation: the FFN's output at every prompt's last token is the target
        for r, z in zip(value, Z):
            torch.testing.assert_close(
                plain(lm, r.prompt, r.end, 3)["mlp"], z, rtol=1e-3, atol=1e-3
            )
    both = replace(editor, n_prefixes=0)(lm, HOPS, moments)
    assert both.layers == (0, 1, 2, 3)
    with applied(lm, first):
        (second,) = one_stage(lm, query, editor.writer("query").stage, moments)
        Z = target_vectors(lm, query, 1, JOINT).value
    for layer in range(4):
        expected = (first + second).delta(layer)
        torch.testing.assert_close(
            both.delta(layer), expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item()
        )
    with applied(lm, both):
        for r, z in zip(query, Z):
            torch.testing.assert_close(
                plain(lm, r.prompt, r.end, 1)["mlp"], z, rtol=1e-3, atol=1e-3
            )


def test_ace_switches(tiny):
    lm, moments = tiny("qwen3"), identity(tiny("qwen3"))
    base = replace(EDITORS["ace"], n_prefixes=0)
    assert (
        base.writer("value").share == "root"
        and EDITORS["ace-memit"].writer("value").share == "even"
    )
    assert (
        replace(base, value_weight=9.0).writer("value").weight == 9.0
        and replace(base, value_weight=9.0).writer("query").weight == 2.0
    )
    value, query = (replace(base, stages=(s,))(lm, HOPS, moments) for s in ("value", "query"))
    apart = replace(base, chained=False)(lm, HOPS, moments)
    for layer in range(4):
        torch.testing.assert_close(apart.delta(layer), (value + query).delta(layer))
    assert len(replace(base, value_prompts=("single",)).asked(HOPS, "value")) == 3
    assert replace(base, value_prompts=("hops",))(lm, EDITS, moments).layers == (
        0,
        1,
    )  # nothing to ask in the value stage
    with pytest.raises(ValueError, match="no multi-hop prompts"):
        replace(base, value_prompts=("hops",), stages=("value",))(lm, EDITS, moments)
    twice = [replace(HOPS[0], hops=HOPS[0].hops * 2), HOPS[0]]
    assert len(base.asked(twice, "value")) == 2
    for bad, match in (
        (dict(stages=()), "stages"),
        (dict(stages=("x",)), "stages"),
        (dict(backbone="rome"), "'rome'"),
        (dict(null_share=0.5), "no null space"),
        (dict(value_prompts=("single", "single")), "value_prompts"),
        (dict(value_position="first"), "position 'first'"),
    ):
        with pytest.raises(ValueError, match=match):
            replace(base, **bad).asked(HOPS, "value")


def test_on_alphaedit_both_stages_stay_in_the_null_space(any_lm):
    """Each stage is AlphaEdit with its own layers and position; a layer that both write holds the keys of both."""
    lm, moments = any_lm, spectrum(any_lm)
    editor = replace(
        EDITORS["ace-alphaedit"],
        null_share=None,
        threshold=0.5,
        weight=0.1,
        value_layers=(1, 2),
        query_position="last",
        value_prompts=("single",),
        stages=("value", "query"),
        chained=False,
    )
    assert editor.layers == (0, 1, 2) and editor.writer("value") == AlphaEdit(
        layers=(1, 2), weight=0.1, threshold=0.5, objective=editor.objective, position="last"
    )
    update = editor(lm, HOPS, moments)
    first = replace(editor.writer("value"), n_prefixes=0)(lm, HOPS, moments)
    (second,) = one_stage(
        lm,
        editor.asked(HOPS, "query"),
        editor.writer("query").stage,
        moments,
        updates=[first],
        searched=[Update()],
    )
    for layer in editor.layers:
        expected = (first + second).delta(layer)
        torch.testing.assert_close(
            update.delta(layer), expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item()
        )
        values, vectors = torch.linalg.eigh(moments[layer])
        assert (update.delta(layer) @ vectors[:, values >= 0.5]).norm() < 1e-10 * expected.norm()
    assert {layer: keys.shape[1] for layer, keys in update.keys.items()} == {0: 3, 1: 6, 2: 3}
    later = editor(lm, HOPS[:1], moments, update.keys)
    assert later.layers == (0, 1, 2)


def test_presets():
    gptj, qwen = ace.PRESETS["gpt-j-6b"], ace.PRESETS["qwen3-8b"]
    assert gptj.writer("value") == PMET(layers=(25, 26, 27), position="last")
    assert (
        gptj.writer("query") == pmet.PRESETS["gpt-j-6b"] and pmet.PRESETS["gpt-j-6b"].weight == 6000
    )
    assert [layer + 1 for layer in qwen.layers] == [25, 26, 27, 28, 29, 30, 31, 32]  # as printed
