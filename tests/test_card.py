"""An edited model's folder: a model, its card, its update, and the way back."""

import re

import pytest
import torch
from test_update import random_update
from transformers import AutoModelForCausalLM

from acelib.editors import MEMIT
from acelib.editors.presets import from_table
from acelib.model.loading import load
from acelib.model.update import Update, applied
from acelib.records import Edit
from acelib.study.card import UPDATE, card, save_edited

EDITOR = MEMIT(layers=(0, 1), weight=7.0)


@pytest.fixture
def kept(tiny, tmp_path):
    lm = tiny("gptj")
    made = random_update(lm, (0, 1), rank=1, seed=0)
    edits = (Edit("A|B", "{} plays", "golf", "chess"), Edit("C", "{} plays", "go"))
    update = Update(made.factors, "MEMIT", edits, lm.fingerprint)
    text = card(lm, update, EDITOR, "edited: x", {"fact": "1 of 1"}, ["MEMIT on layers 0,1"])
    save_edited(lm, update, tmp_path / "models" / "edited", text)
    return lm, update, tmp_path / "models" / "edited"


def test_the_card_says_what_by_what_and_how_to_undo(kept):
    lm, update, folder = kept
    text = (folder / "README.md").read_text()
    for part in (
        'base_model: "tiny-gptj"',
        "edited: x",
        r"| A\|B plays | chess | golf |",
        "| C plays | not known | go |",
        "| fact | 1 of 1 |",
        "- MEMIT on layers 0,1",
        f"mlp of layer 0: {update.norms()[0]:.3g}",
        lm.fingerprint,
        'Update.load("edit/update.safetensors", lm)',
    ):
        assert part in text, part
    settings = re.search(r"```toml\n(.*?)```", text, re.S)[1]
    assert "weight = 7.0" in settings
    import tomllib

    assert from_table("MEMIT", tomllib.loads(settings)["MEMIT"]) == EDITOR


def test_the_folder_is_a_model_that_anybody_may_read(kept):
    lm, update, folder = kept
    with applied(lm, update):
        there = AutoModelForCausalLM.from_pretrained(folder, dtype=lm.dtype).state_dict()
        here = lm.model.state_dict()
        assert all(torch.equal(there[name], here[name]) for name in here)
    assert load(str(folder), "cpu", lm.dtype).ancestors[0] == (lm.name, lm.fingerprint)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.rglob("*"))


def test_the_update_is_there_and_fits_the_model_before(kept):
    lm, update, folder = kept
    again = Update.load(folder / UPDATE, lm)
    assert again.edits == update.edits and again.norms() == update.norms()


def test_all_or_nothing(kept, tmp_path, monkeypatch):
    lm, update, folder = kept
    with pytest.raises(ValueError, match="exists; give the edited model a new folder"):
        save_edited(lm, update, folder, "x")
    monkeypatch.setattr(Update, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_edited(lm, update, tmp_path / "models" / "other", "x")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["edited"]
