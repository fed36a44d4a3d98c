"""What every chapter begins with, on tiny models."""

import pytest
import torch

from acelib.bench.tiny import make_tiny
from acelib.editors import preset
from acelib.study import setup
from acelib.study.setup import Study
from acelib.world.world import load_world


@pytest.fixture(scope="module")
def study():
    hosts = {"gptj-mini": make_tiny("gptj"), "qwen3-mini": make_tiny("qwen3")}
    return Study(load_world(), hosts, 0)


def test_presets_are_by_model(study):
    presets = study.presets(["ROME", "ACE"])
    assert list(presets) == ["gptj-mini", "qwen3-mini"]
    assert presets["qwen3-mini"] == {n: preset(n, "qwen3-mini") for n in ("ROME", "ACE")}
    with pytest.raises(ValueError, match="unknown editor 'EMOR'"):
        study.presets(["EMOR"])


def test_counterparts(study):
    assert study.counterparts == {"gptj-mini": "GPT-J", "qwen3-mini": "Qwen3-8B"}


def test_moments_are_of_every_layer_or_of_those_by_model(study, tmp_path, monkeypatch):
    monkeypatch.setattr("acelib.editing.moments.user_cache_path", lambda name: tmp_path)
    moments = study.moments([1, 2], n=3)
    assert [sorted(of.matrices) for of in moments.values()] == [[1, 2]] * 2
    assert moments["gptj-mini"].model == study.hosts["gptj-mini"].fingerprint
    moments = study.moments({"gptj-mini": [0], "qwen3-mini": [1]}, n=3)
    assert [sorted(of.matrices) for of in moments.values()] == [[0], [1]]
    with pytest.raises(ValueError, match="no layers for model 'qwen3-mini'"):
        study.moments({"gptj-mini": [0]}, n=3)


def test_groups_of_questions_add_up(study):
    parts = study.located(5, n_groups=2)
    assert [[group.n_prompts for group in groups] for groups in parts.values()] == [[3, 2]] * 2
    whole = study.located(5, n_groups=1)
    for name, groups in parts.items():
        total, (one,) = sum(groups), whole[name]
        assert total.n_prompts == one.n_prompts == 5
        assert total.value_count_by_layer == one.value_count_by_layer
        torch.testing.assert_close(total.value, one.value)
        torch.testing.assert_close(total.query, one.query)
    assert [len(groups) for groups in study.located(2, n_groups=8).values()] == [2, 2]


def test_models_are_checked():
    with pytest.raises(ValueError, match="give at least one, and each once"):
        setup.study([])
    with pytest.raises(ValueError, match="give at least one, and each once"):
        setup.study(["gptj-mini", "gptj-mini"])


def test_layers_that_are_written():
    class Writes:
        layers = (3, 1)

    assert setup.written([Writes(), object(), None]) == [1, 3]
