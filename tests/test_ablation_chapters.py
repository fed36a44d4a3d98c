"""ACE without some of its layers, or on another backbone: what chapters make of presets."""

from dataclasses import replace

import pytest

from acelib.editors import preset
from acelib.editors.presets import KNOWN, path_of, presets


@pytest.mark.parametrize("model", ["gpt-j-6b", "qwen3-8b", "gptj-mini"])
def test_ace_can_lose_layers_and_change_its_backbone(model):
    """The settings that the chapters make from the presets, without a model."""
    ace, alpha = preset("ACE", model), preset("AlphaEdit", model)
    assert replace(ace, stages=("value",)).layers == tuple(sorted(ace.value_layers))
    assert ace.at(value_layers=ace.value_layers[:1]).layers == tuple(
        sorted({*ace.query_layers, ace.value_layers[0]})
    )
    other = ace.on(alpha)
    for stage, layers in (("query", ace.query_layers), ("value", ace.value_layers)):
        assert other.plan[stage] == replace(alpha, layers=layers).stage
    assert set(presets(path_of(model))) == set(KNOWN)
