"""What every chapter begins with, on tiny models."""

import pytest

from acelib.bench.tiny import make_tiny
from acelib.editors.derived import derived
from acelib.study import setup
from acelib.study.setup import Study
from acelib.world.world import load_world


@pytest.fixture(scope="module")
def study():
    hosts = {"gptj-mini": make_tiny("gptj"), "qwen3-mini": make_tiny("qwen3")}
    return Study(load_world(), hosts, 0)


def test_presets_are_by_model(study):
    with pytest.warns(UserWarning, match="has no settings for"):  # the hosts are tiny models
        presets = study.presets(["ROME", "ACE"])
    assert list(presets) == ["gptj-mini", "qwen3-mini"]
    assert presets["qwen3-mini"] == {
        name: derived(name, study.hosts["qwen3-mini"]) for name in ("ROME", "ACE")
    }
    with pytest.raises(ValueError, match="unknown editor 'EMOR'"):
        study.presets(["EMOR"])


def test_counterparts(study):
    assert study.counterparts == {"gptj-mini": "GPT-J", "qwen3-mini": "Qwen3-8B"}


def test_models_are_checked():
    with pytest.raises(ValueError, match="give at least one, and each once"):
        setup.study([])
    with pytest.raises(ValueError, match="give at least one, and each once"):
        setup.study(["gptj-mini", "gptj-mini"])
