"""The registry builds every experiment at the parameters of its chapter, which stand there only."""

import inspect
import json
import sys
from types import ModuleType

import pytest

from acelib.study import registry
from acelib.study.parameters import chapter_of, defaults
from acelib.study.rows import Experiment, Series


@pytest.fixture
def fake(monkeypatch):
    """An experiment of chapter 03_ace that keeps what it was built with."""
    built = []

    def build(hosts, world, *, n_cases, seed):
        built.append((hosts, world, n_cases, seed))
        series = Series({"model": "m"}, {}, (), {"a": 1}, lambda items: [[{}] for _ in items])
        return Experiment("03_ace_fake", (series,))

    module = ModuleType("fake_measures")
    module.build = build
    monkeypatch.setitem(sys.modules, "fake_measures", module)
    monkeypatch.setattr(registry, "EXPERIMENTS", {"03_ace_fake": "fake_measures:build"})
    monkeypatch.setattr(registry, "_host", lambda model: f"host {model}")
    monkeypatch.setattr(registry, "_world", lambda: "world")
    return built


def test_an_experiment_has_the_parameters_of_its_chapter(fake):
    kept = defaults("03_ace")
    experiment = registry.experiment("03_ace_fake")
    assert experiment.name == "03_ace_fake" and registry.names() == ("03_ace_fake",)
    hosts = {model: f"host {model}" for model in kept["models"]}
    assert fake == [(hosts, "world", kept["n_cases"], kept["seed"])]
    registry.experiment("03_ace_fake", n_cases=2, models=["x"])
    assert fake[1] == ({"x": "host x"}, "world", 2, kept["seed"])


def test_refusals(fake, monkeypatch):
    with pytest.raises(ValueError, match="unknown experiment 'x'; known: 03_ace_fake"):
        registry.experiment("x")
    with pytest.raises(ValueError, match="no parameter 'n'; known: n_cases, seed, models"):
        registry.experiment("03_ace_fake", n=1)
    monkeypatch.setattr(registry, "EXPERIMENTS", {"03_ace": "fake_measures:build"})
    with pytest.raises(ValueError, match="'03_ace' calls itself '03_ace_fake'"):
        registry.experiment("03_ace")


def test_files_that_nobody_reads(fake, tmp_path):
    experiments = {"03_ace_fake": registry.experiment("03_ace_fake")}
    for name in ("03_ace_fake/m.jsonl", "03_ace_fake/n.jsonl", "other/m.jsonl", "checks/x.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({}))
    left = [
        path.relative_to(tmp_path).as_posix() for path in registry.unread(tmp_path, experiments)
    ]
    assert left == ["03_ace_fake/n.jsonl", "other/m.jsonl"]


@pytest.mark.parametrize("name", registry.names())
def test_what_an_experiment_takes_stands_in_its_notebook(name):
    parameters = list(inspect.signature(registry.builder(name)).parameters.values())
    assert chapter_of(name), f"{name} begins with the name of no notebook"
    assert {part.name for part in parameters[2:]} <= defaults(chapter_of(name)).keys()
    assert all(part.default is part.empty for part in parameters), "defaults stand in the notebook"
