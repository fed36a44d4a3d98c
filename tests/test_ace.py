"""ACE: two stages on any backbone, each with its own prompts, positions and layers."""

from dataclasses import replace

import pytest
import torch
from test_alphaedit import spectrum
from test_editors import BLOCK, EDITORS, HOPS, JOINT
from test_keys import EDITS, plain
from test_write import identity

from acelib.editing.search import target_vectors
from acelib.editing.write import edit as one_stage
from acelib.editors import ACE, PMET, ROME, AlphaEdit, preset
from acelib.model.update import applied


def test_ace_is_two_stages(any_lm):
    """Value stage at the last token of all prompts, then, on the model so edited, query stage.

    The query stage writes at the subject of the single-hop prompt.
    """
    lm, moments, editor = any_lm, identity(any_lm), EDITORS["ace"].with_both(weight=1e-7)
    value, query = (editor.requests(HOPS, stage) for stage in ("value", "query"))
    assert [r.prompt for r in value] == [e.prompt.replace("{}", e.subject) for e in HOPS] + [
        e.hops[0] for e in HOPS
    ]
    assert (
        all(r.end == len(r.prompt) for r in value)
        and [r.prompt[: r.end].endswith(r.subject) for r in query] == [True] * 3
    )
    editor = editor.with_both(n_prefixes=0)
    first = replace(editor, stages=("value",))(lm, HOPS, moments)
    assert first.layers == (2, 3)
    Z = target_vectors(lm, value, 3, JOINT).value
    with applied(
        lm, first
    ):  # weak regularisation: the FFN's output at every prompt's last token is the target
        for r, z in zip(value, Z, strict=True):
            torch.testing.assert_close(
                plain(lm, r.prompt, r.end, 3)["mlp"], z, rtol=1e-3, atol=1e-3
            )
    both = editor(lm, HOPS, moments)
    assert both.layers == (0, 1, 2, 3)
    with applied(lm, first):
        (second,) = one_stage(lm, query, editor.plan["query"], moments)
        Z = target_vectors(lm, query, 1, JOINT).value
    for layer in range(4):
        expected = (first + second).delta(layer)
        torch.testing.assert_close(
            both.delta(layer), expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item()
        )
    with applied(lm, both):
        for r, z in zip(query, Z, strict=True):
            torch.testing.assert_close(
                plain(lm, r.prompt, r.end, 1)["mlp"], z, rtol=1e-3, atol=1e-3
            )


def test_ace_switches(tiny):
    lm, moments = tiny("qwen3"), identity(tiny("qwen3"))
    base = EDITORS["ace"].with_both(n_prefixes=0)
    assert base.plan["value"].share == "root"
    assert EDITORS["ace-memit"].plan["value"].share == "even"
    heavy = replace(base, value=replace(base.value, weight=9.0)).plan
    assert heavy["value"].weight == 9.0 and heavy["query"].weight == 2.0
    value, query = (replace(base, stages=(s,))(lm, HOPS, moments) for s in ("value", "query"))
    apart = replace(base, chained=False)(lm, HOPS, moments)
    for layer in range(4):
        torch.testing.assert_close(apart.delta(layer), (value + query).delta(layer))
    assert len(replace(base, value_prompts=("single",)).requests(HOPS, "value")) == 3
    assert replace(base, value_prompts=("hops",))(lm, EDITS, moments).layers == (
        0,
        1,
    )  # nothing to ask in the value stage
    with pytest.raises(ValueError, match="no multi-hop prompts"):
        replace(base, value_prompts=("hops",), stages=("value",))(lm, EDITS, moments)
    twice = [replace(HOPS[0], hops=HOPS[0].hops * 2), HOPS[0]]
    assert len(base.requests(twice, "value")) == 2
    for bad, match in (
        (dict(stages=()), "stages"),
        (dict(stages=("x",)), "stages"),
        (dict(value=ROME(layer=1)), "value ROME.* instance of MEMIT"),
        (dict(value_prompts=("single", "single")), "value_prompts"),
        (dict(backbone="memit"), "ACE has no 'backbone'; it has: value, query, stages"),
    ):
        with pytest.raises(ValueError, match=match):
            replace(base, **bad).requests(HOPS, "value")


def test_on_alphaedit_both_stages_stay_in_the_null_space(any_lm):
    """Each stage is AlphaEdit on its own layers; a layer that both write has the keys of both."""
    lm, moments = any_lm, spectrum(any_lm)
    settings = dict(weight=0.1, threshold=0.5, objective=BLOCK, position="last", n_prefixes=0)
    editor = ACE(
        value=AlphaEdit(layers=(1, 2), **settings),
        query=AlphaEdit(layers=(0, 1), **settings),
        value_prompts=("single",),
    )
    assert editor.layers == (0, 1, 2)
    update = editor(lm, HOPS, moments)
    first = editor.value(lm, HOPS, moments)
    (second,) = one_stage(
        lm,
        editor.requests(HOPS, "query"),
        editor.plan["query"],
        moments,
        updates=[first],
        targets=editor.plan["query"].search(lm, editor.requests(HOPS, "query")),
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


def test_other_layers_another_write_other_texts():
    ace = EDITORS["ace"]
    assert ace.at() == ace and ace.at(query_layers=[1]).query_layers == (1,)
    other = ace.at(query_layers=(1,), value_layers=(3,))
    assert other.layers == (1, 3) and other.at((0, 1), (2, 3)) == ace
    alpha = AlphaEdit(layers=(5,), weight=0.5)
    mixed = ace.on(alpha)
    for stage in ("query", "value"):
        own, written = ace.writer(stage), mixed.writer(stage)
        assert written.layers == own.layers and written.position == own.position
        assert written.n_prefixes == own.n_prefixes == 2
        assert type(written) is AlphaEdit and written.weight == 0.5
        assert mixed.plan[stage] == replace(alpha, layers=own.layers).stage
    assert ace.with_texts(["So. "]).texts == ("So. ",) and ace.texts is None


@pytest.mark.parametrize(
    "changes", [dict(n_prefixes=3), dict(prefix_length=7), dict(seed=1), dict(texts=("So. ",))]
)
def test_both_stages_read_prompts_after_the_same_texts(changes):
    ace, ((name, value),) = EDITORS["ace"], changes.items()
    with pytest.raises(ValueError, match=f"same texts: {name} is .* in value and .* in query"):
        replace(ace, value=replace(ace.value, **changes))
    assert getattr(ace.with_both(**changes).query, name) == value


def test_presets():
    gptj, qwen = preset("ACE", "gpt-j-6b"), preset("ACE", "qwen3-8b")
    assert gptj.value == PMET(layers=(25, 26, 27), position="last")
    assert gptj.query == preset("PMET", "gpt-j-6b") and gptj.query.weight == 6000
    assert [layer + 1 for layer in qwen.layers] == [25, 26, 27, 28, 29, 30, 31, 32]  # as printed
