"""What is refused at once: the same names and sentences as in the library, without importing it."""

import json
import os
import resource
import subprocess
import sys

import pytest

from acelib.bench import speed
from acelib.book import early
from acelib.editors import presets
from acelib.model import fetch, lm, loading, shape
from acelib.provenance import ROOT
from acelib.study import registry
from acelib.study.tune import editors_named
from acelib.training import ablation, train
from acelib.world.text import MIXTURE


@pytest.mark.parametrize(
    "module, constant, there",
    [
        ("acelib.editors.presets", "KNOWN", presets.KNOWN),
        ("acelib.editors.presets", "EDITORS", presets.EDITORS),
        ("acelib.study.registry", "EXPERIMENTS", registry.EXPERIMENTS),
        ("acelib.study.registry", "ESTIMATES", registry.ESTIMATES),
        ("acelib.bench.speed", "BENCHMARKS", speed.BENCHMARKS),
        ("acelib.bench.speed", "GROUPS", speed.GROUPS),
        ("acelib.training.train", "RECIPES", train.RECIPES),
        ("acelib.training.ablation", "IDEAS", ablation.IDEAS),
        ("acelib.world.text", "MIXTURE", MIXTURE),
        ("acelib.model.loading", "DTYPES", loading.DTYPES),
        ("acelib.model.fetch", "FETCHED", fetch.FETCHED),
        ("acelib.model.lm", "FAMILIES", lm.FAMILIES),
        ("acelib.model.shape", "PUBLISHED", shape.PUBLISHED),
    ],
)
def test_names_are_those_of_the_library(module, constant, there):
    assert list(early.names_in(module, constant)) == list(there)


def test_a_list_that_is_not_there():
    with pytest.raises(ValueError, match="acelib.records has no list 'NO'"):
        early.names_in("acelib.records", "NO")


def test_variants_are_those_of_the_library():
    early.variants([*ablation.variants(n_seeds=3)])
    with pytest.raises(ValueError, match="unknown variant 'x'; known: all, names read"):
        early.variants(["x"])


def said(function, *given):
    try:
        function(*given)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", [*presets.KNOWN, "surgeon", "x" * 500])
def test_editors_are_named_alike(name):
    assert said(early.editor_named, name.lower()) == said(presets.editor_named, name.lower())
    assert said(early.editor_named, name) == said(editors_named, name)
    assert name not in presets.KNOWN or early.editor_named(name.upper()) == name


GROUPS = [(None, None, None), ((1,), None, None), ((1, 2), None, None), (None, (1,), None)]


@pytest.mark.parametrize("groups", [*GROUPS, (None, None, (2,)), ((1,), (1,), (1,))])
@pytest.mark.parametrize("name", presets.KNOWN)
def test_layers_of_editors_are_refused_alike(name, groups):
    made = presets.preset(name.removeprefix("Located"), "gptj-mini")
    assert said(early.groups, name, *groups) == said(presets.moved, made, *groups)
    hops = "hops" in getattr(made, "value_prompts", ())
    assert (name in early.HOPS) is hops


@pytest.mark.parametrize(
    "text, found", [("", None), (" ", None), ("4-6", (4, 5, 6)), ("3,1, 2-3", (1, 2, 3))]
)
def test_layers_are_read(text, found):
    assert early.layers("--layers", text) == found


def test_models_are_refused_before_they_are_loaded(tmp_path):
    early.model("gptj-mini")
    for text, words in (
        ("{", "cannot be read"),
        ("[]", "its architecture None is not supported; supported: gpt2"),
        (json.dumps({"model_type": "bert"}), "its architecture 'bert' is not supported"),
    ):
        (tmp_path / "config.json").write_text(text)
        assert words in said(early.model, str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    early.model(str(tmp_path))
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in said(early.model, str(tmp_path / "empty"))
    for name in ("no-such-model", "a/b/c", "x" * 5000, "\0", ""):
        words = said(early.model, name)
        assert "cannot be loaded: it is neither shipped (gptj-mini" in words and len(words) < 1000


def test_what_is_wrong_costs_no_second_and_imports_no_torch():
    """CPU seconds of the whole command, the interpreter's start included."""
    program = "import sys; from acelib.book.cli import app\n{}\nassert 'torch' not in sys.modules"
    wrong = (
        ["edit", "-s", "A", "--prompt", "x", "-t", "B"],
        ["locate", "-c", "XX"],
        ["run", "03_ace", "-p", "n_cases", "0"],
        ["certify", "nothing"],
        ["tune", "-e", "surgeon"],
    )
    calls = "\n".join(
        f"try: app({words!r})\nexcept SystemExit as error: assert error.code == 2"
        for words in wrong
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, "-c", program.format(calls)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert done.returncode == 0 and done.stderr.count("\n") == len(wrong), done.stderr
    assert seconds < 1.0
