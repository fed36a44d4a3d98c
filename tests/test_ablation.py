"""The ablation trains what it says, keeps what it measured, and goes on where it was cut."""

from dataclasses import asdict, replace

import pandas as pd
import pytest

from acelib.bench.tiny import tiny_tokenizer
from acelib.measures import known_analysis
from acelib.training import ablation, bars, train
from acelib.training.ablation import IDEAS, SHORT, ablate, keep, variants
from acelib.world.world import load_world

TINY = replace(
    SHORT,
    n_layers=2,
    d_model=16,
    n_heads=2,
    vocab_size=360,
    n_positions=256,
    steps=2,
    batch=1,
    length=16,
    warmup=1,
)


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture
def measured(monkeypatch):
    """How often a model was measured; the tiny tokenizer, and nothing asked."""
    calls = []
    monkeypatch.setattr(train, "make_tokenizer", lambda *_: tiny_tokenizer())
    monkeypatch.setattr(
        bars, "measure", lambda lm, world, **sizes: calls.append(sizes) or dict(cloze=0.5)
    )
    monkeypatch.setattr(ablation.known, "early_site", lambda lm, world: (0, 1))
    monkeypatch.setattr(
        ablation, "questions", lambda world, n, seed: [("Tim Duncan plays", "tennis")]
    )
    return calls


def test_variants_leave_out_one_kind_each():
    chosen = variants(SHORT, n_seeds=2)
    assert [recipe.seed for recipe in chosen.values()] == [0, 1] + [0] * len(SHORT.mixture | IDEAS)
    for idea, parts in IDEAS.items():
        assert {**asdict(chosen[idea]), **parts} == asdict(chosen[idea]) != asdict(SHORT)
    for kind, share in SHORT.mixture.items():
        mixture = chosen[f"without {kind}"].mixture
        assert kind not in mixture and mixture | {kind: share} == SHORT.mixture


def test_ablate_trains_measures_and_resumes(world, measured, tmp_path):
    chosen = {
        name: recipe
        for name, recipe in variants(TINY, 1).items()
        if name in ("all", "without dense")
    }
    told = []
    rows = ablate(
        world, tmp_path, chosen, progress=lambda *state: told.append(state), sizes=dict(n_facts=3)
    )
    assert (
        list(rows.variant) == list(chosen)
        and (rows.cloze == 0.5).all()
        and rows.early_site.eq("0 1").all()
    )
    assert told[-1] == (4, 4, "without dense") and measured == [dict(n_facts=3)] * 2
    pd.testing.assert_frame_equal(ablate(world, tmp_path, chosen, sizes=dict(n_facts=3)), rows)
    assert len(measured) == 2  # nothing was measured again
    ablate(world, tmp_path, chosen, sizes=dict(n_facts=4))
    assert len(measured) == 4  # another measurement, the same models
    keep(rows, tmp_path / "kept.csv")
    assert list(pd.read_csv(tmp_path / "kept.csv").variant) == list(chosen)


def test_ideas_beside_the_whole_recipe_in_percent():
    kept = pd.DataFrame({bar: [0.5, 0.4, 0.3, 0.2] for bar in known_analysis.SITED})
    kept.index = ["all", "all, seed 1", "weight decay 0.05", "without dense"]
    table = known_analysis.ideas_table(kept, IDEAS)
    assert list(table.index) == ["all", "all, seed 1", "weight decay 0.05"]
    assert list(table["FFN 0"]) == [50, 40, 30]
    _, change = known_analysis.effects(kept, ["cloze"])
    assert list(change.index) == ["all", "all, seed 1", "without dense"]
