"""IFMET: PMET at the subject of the single-hop prompt, then multi-hop prompts at the end."""

from dataclasses import replace

import pytest
import torch
from test_editors import EDITORS, HOPS, JOINT
from test_keys import EDITS
from test_write import identity

from acelib.editing.request import request
from acelib.editing.write import edit
from acelib.editors import PMET, preset
from acelib.model.update import applied

EDITOR = EDITORS["ifmet"].with_both(n_prefixes=0)


def test_a_first_and_a_further_edit(any_lm):
    lm, moments = any_lm, identity(any_lm)
    update = EDITOR(lm, HOPS, moments)
    first = PMET(layers=(0, 1), objective=JOINT, weight=2.0, n_prefixes=0)(lm, HOPS, moments)
    with applied(lm, first):
        (further,) = edit(
            lm,
            [request(e, "last", prompt=hop) for e in HOPS for hop in e.hops],
            EDITOR.plan["value"],
            moments,
        )
    assert update.layers == EDITOR.layers == (0, 1, 2, 3)
    for layer in update.layers:
        expected = (first + further).delta(layer)
        tol = 1e-3 if lm.family.parallel else 1e-6
        torch.testing.assert_close(
            update.delta(layer), expected, rtol=tol, atol=tol * expected.abs().max().item()
        )


def test_without_multi_hop_prompts_the_first_edit_stays_alone(tiny):
    lm, moments = tiny("qwen3"), identity(tiny("qwen3"))
    alone, mixed = EDITOR.each(lm, [EDITS, HOPS], moments)
    assert alone.layers == (0, 1) and mixed.layers == (0, 1, 2, 3)
    with pytest.raises(ValueError, match="no multi-hop prompts"):
        replace(EDITOR, stages=("value",))(lm, EDITS, moments)


def test_presets():
    gptj = preset("IFMET", "gpt-j-6b")
    assert gptj.query.position == "subject_last" and gptj.query.weight == 6000
    assert gptj.value_prompts == ("hops",) and gptj.chained
    assert max(gptj.query_layers) < min(gptj.value_layers)
