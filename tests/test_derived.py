"""Without a preset settings lie at the published share of the depth; presets follow the model."""

import warnings
from dataclasses import replace

import pytest
import torch

from acelib.bench.tiny import make_tiny
from acelib.editors import ACE, EDITORS, MEMIT, preset, presets
from acelib.editors.derived import derived, line
from acelib.editors.presets import KNOWN, file_of, moved, preset_of, save
from acelib.model.loading import load
from acelib.model.update import Update, save_pretrained
from acelib.study.experiments import corpus
from acelib.world.prose import paragraphs
from acelib.world.world import load_world


def deep(n_layers: int):
    return make_tiny("llama", torch.float32, n_layers=n_layers)


def test_layers_lie_where_they_work_on_a_model_of_thirty_layers():
    lm = deep(30)
    assert derived("MEMIT", lm).layers == (4, 5, 6, 7) and derived("ROME", lm).layer == 5
    ace = derived("ACE", lm)
    assert (ace.query_layers, ace.value_layers) == ((4, 5, 6, 7), (24, 25, 26))
    assert ace.value.position == "last" and ace.query.position == "subject_last"
    assert derived("MEMIT", lm).weight == 15_000 * 48 / 16_384


@pytest.mark.parametrize("n_layers", [1, 2, 4, 12, 36])
def test_there_are_settings_for_every_depth(n_layers):
    lm = deep(n_layers)
    for name in {*KNOWN} - {"LocatedACE"}:
        editor = derived(name, lm)
        assert set(getattr(editor, "layers", ())) <= set(range(n_layers)), name
        assert "\n" not in line(name, editor, lm)
    for name in ("NeuronACE", "LocatedACE"):
        with pytest.raises(ValueError, match=f"no rule gives settings of '{name}'"):
            derived(name, lm)


def test_the_line_says_where_the_rules_come_from():
    lm = deep(4)
    said = line("MEMIT", derived("MEMIT", lm), lm)
    assert "from its 4 layers and 48 neurons a layer, layers 0-1" in said
    assert "models of 28 to 48 layers and 1,536 to 16,384 neurons, which this model is" in said
    with pytest.warns(UserWarning, match="MEMIT has no settings for 'tiny-llama'"):
        assert preset("memit", lm) == derived("MEMIT", lm)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository without presets."""
    monkeypatch.setattr("acelib.provenance.ROOT", tmp_path)
    return tmp_path


def test_a_preset_follows_the_model_and_not_its_folders_name(root):
    lm, other = deep(4), replace(make_tiny("llama", torch.float32, seed=1), name="any/mine")
    path, found = presets.path_of("any/mine"), MEMIT(layers=(3,), weight=2.0)
    save({"MEMIT": found}, path, lm.fingerprint)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert preset("memit", replace(lm, name="renamed")) == found
        assert preset("memit", other) == found  # a hub id is an identity
    (root / "mine").mkdir()
    assert file_of(replace(other, name=str(root / "mine"))) is None  # a folder's name is none
    save({"MEMIT": found}, path, other.fingerprint)
    assert presets.presets(path) == {"MEMIT": found}
    assert file_of(lm) == file_of(replace(other, name="renamed")) == path


def test_an_edited_model_that_was_saved_inherits_the_settings(root):
    lm, found = deep(4), MEMIT(layers=(3,), weight=2.0)
    save({"MEMIT": found}, presets.path_of("mine"), lm.fingerprint)
    save_pretrained(lm, Update(), root / "once")
    once = load(str(root / "once"), "cpu")
    save_pretrained(once, Update(), root / "twice")
    twice = load(str(root / "twice"), "cpu")
    assert once.ancestors == ((lm.name, lm.fingerprint),)
    assert twice.ancestors == ((once.name, once.fingerprint), *once.ancestors)
    assert preset_of("MEMIT", replace(twice, name="elsewhere")) == (found, "")
    assert not twice.natural  # as the model that it was


@pytest.mark.parametrize(
    "text, said",
    [
        ("[model]\nfingerprint = 'x'\n", "it holds fingerprints, a list of texts"),
        ("[ROME]\nlayer = 1\n", r"own.toml has no table \[MEMIT\]; it has: ROME"),
        ("[MEMIT]\nlayers = 'all'\n", r"own.toml, \[MEMIT\]: MEMIT: layers 'all'"),
        ("[MEMIT", "own.toml is not TOML"),
    ],
)
def test_a_file_of_settings_that_is_wrong_is_named(tmp_path, text, said):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        preset_of("memit", deep(4), tmp_path / "own.toml")


def test_layers_are_moved():
    lm = deep(30)
    ace = derived("ACE", lm)
    assert isinstance(ace, ACE) and moved(ace, None, (1, 2), None).query_layers == (1, 2)
    assert moved(ace, None, (1, 2), None).value_layers == ace.value_layers
    assert moved(derived("ROME", lm), (9,)).layer == 9
    for name in EDITORS:
        assert moved(derived(name, lm)) == derived(name, lm)


def test_moments_of_a_natural_model_are_over_natural_text():
    world, lm, prose = load_world(), deep(4), paragraphs()
    assert 250_000 < sum(map(len, prose)) < 500_000 and len(set(prose)) == len(prose)
    assert list(corpus(replace(lm, natural=True), world, []).texts) == prose
    ours = corpus(lm, world, []).texts
    assert len(ours) == 2000 and not set(ours) & set(prose)
    assert list(corpus(lm, world, [], texts=["mine"]).texts) == ["mine"]


def test_paragraphs_of_a_file(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("\n\nOne\ntwo.\n  \n\nThree.\n", "utf-8")
    assert paragraphs(path) == ["One two.", "Three."]
    path.write_text("\n \n")
    with pytest.raises(ValueError, match=r"some\.txt holds no text"):
        paragraphs(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"some\.txt is no text in UTF-8"):
        paragraphs(path)
