"""Presets as data: files read into editors, written back without loss, and clear about mistakes."""

from pathlib import Path

import pytest

from acelib.editing.search import Objective
from acelib.editors import ACE, MEMIT, PMET, ROME, preset
from acelib.editors.presets import KNOWN, from_table, path_of, presets, save, to_table
from acelib.provenance import ROOT

MODELS = {"gpt-j-6b": 28, "qwen3-8b": 36, "gptj-mini": 8, "qwen3-mini": 8}


def write(folder: Path, text: str) -> Path:
    path = folder / "mini.toml"
    path.write_text(text)
    return path


def test_every_model_has_every_editor_within_its_layers():
    assert {path.stem for path in (ROOT / "data" / "presets").glob("*.toml")} == set(MODELS)
    for model, n_layers in MODELS.items():
        editors = presets(path_of(model))
        assert set(editors) == set(KNOWN)
        for name, editor in editors.items():
            assert type(editor) is KNOWN[name]
            assert set(getattr(editor, "layers", ())) <= set(range(n_layers)), (model, name)


def test_published_objectives():
    assert preset("memit", "EleutherAI/GPT-J-6B").objective == Objective(
        steps=25, lr=0.5, decay=0.5, clamp=0.75, kl=0.0625
    )
    assert preset("PMET", "gpt-j-6b").objective == Objective(
        kind="pmet", steps=30, lr=0.2, decay=0.5, clamp=0.75, kl=1.0
    )


@pytest.mark.parametrize("model", MODELS)
def test_what_is_written_is_what_was_read_and_comments_stay(model, tmp_path):
    editors, path = presets(path_of(model)), tmp_path / "mini.toml"
    path.write_text(path_of(model).read_text())
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    save(editors, path)
    assert presets(path) == editors
    assert [line for line in path.read_text().splitlines() if line.startswith("#")] == comments
    for editor in editors.values():
        assert from_table(type(editor).__name__, to_table(editor)) == editor


def test_common_settings_go_to_who_has_such_a_field(tmp_path):
    path = write(
        tmp_path,
        """
        [common]
        n_prefixes = 2
        objective = { steps = 7, clamp = "none" }
        [FT]
        layers = [1]
        [MEMIT]
        layers = [1]
        objective = { lr = 0.1 }
        [ACE]
        value = { editor = "PMET", layers = [3], position = "last" }
        query = { editor = "PMET", layers = [1] }
        """,
    )
    editors = presets(path)
    memit, value = editors["MEMIT"], editors["ACE"].value
    assert (memit.n_prefixes, value.n_prefixes) == (2, 2)
    assert memit.objective == Objective(steps=7, clamp=None, lr=0.1)
    assert value.objective == Objective(kind="pmet", steps=7, clamp=None, lr=0.2, kl=1.0)
    editors |= {"MEMIT": MEMIT(layers=(2,)), "ROME": ROME(layer=1, n_prefixes=2)}
    save(editors, path)
    assert presets(path) == editors


@pytest.mark.parametrize(
    "text, said",
    [
        ("[MEMIT]\nlayers = [1]\nwait = 1.0", r"mini.toml, \[MEMIT\]: MEMIT has no 'wait'; it has"),
        ("[FT]\nlayers = [1]\nlr = -1.0", r"mini.toml, \[FT\]: FT: lr -1.0 must be greater than 0"),
        ("[PMET]\nweight = 1.0", r"mini.toml, \[PMET\]: PMET needs layers"),
        (
            "[PMET]\nlayers = [1]\nobjective = { stops = 3 }",
            r"mini.toml, \[PMET\]: Objective has no 'stops'; it has: kind, steps",
        ),
        (
            '[ACE.value]\neditor = "GRACE"\n[ACE.query]\neditor = "PMET"\nlayers = [1]',
            r"mini.toml, \[ACE\]: unknown editor 'GRACE'; known: FT, KN",
        ),
        ("[GRACE]\nlayers = [1]", "mini.toml: 'GRACE' is no editor; known: FT, KN"),
        ("[common]\nlayer_count = 3\n", r"mini.toml, \[common\]: no editor has 'layer_count'"),
        ("[MEMIT\n", "mini.toml is not TOML: "),
    ],
)
def test_a_wrong_setting_names_file_table_and_field(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        presets(write(tmp_path, text))


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match="unknown editor 'grace'; known: FT, KN, ROME"):
        preset("grace", "gptj-mini")
    with pytest.raises(
        ValueError, match="has no settings for model 'gpt2'; it has for: gpt-j-6b, "
    ):
        preset("memit", "gpt2")


def test_stages_are_tables_that_name_their_editor():
    ace = ACE(value=MEMIT(layers=(3,), position="last"), query=PMET(layers=(1,)))
    assert to_table(ace) == {
        "value": {"editor": "MEMIT", "layers": [3], "position": "last"},
        "query": {"editor": "PMET", "layers": [1]},
    }
