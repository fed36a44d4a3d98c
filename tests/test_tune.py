"""Tuning: as many trials for each editor, best first, kept without losing another editor's."""

from dataclasses import replace
from math import nan
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from acelib.bench.tiny import make_tiny
from acelib.editors import ACE, MEMIT, PMET, ROME, preset, presets
from acelib.study import tune as tuning
from acelib.study.tune import (
    SCORE,
    draw,
    keep,
    keep_presets,
    parse,
    rounds,
    score,
    searches,
    spaces,
    tune,
    words,
)
from acelib.world.world import load_world

SPACES = {
    "MEMIT": [MEMIT(layers=(1,), weight=w) for w in (3.0, 2.0)],
    "PMET": [PMET(layers=(1,), weight=1.0)],
    "ACE": [],
}


def fake_comparison(name, lm, world, editors, cases, moments, protocol):
    """What ``fake_run`` is to judge."""
    return editors, cases


def fake_run(compared, folder, progress=None):
    """Rows whose measures are a tenth of the editor's weight."""
    editors, cases = compared
    ((name, editor),) = editors.items()
    if progress:
        progress(len(cases), len(cases), name)
    return pd.DataFrame(
        [dict.fromkeys(SCORE, getattr(editor, "weight", 1) / 10) | dict(editor=name) for _ in cases]
    )


@pytest.fixture
def trials(monkeypatch):
    monkeypatch.setattr(tuning, "run", fake_run)
    monkeypatch.setattr(tuning, "comparison", fake_comparison)

    def trials(n=2, candidates=SPACES, seed=0, **options):
        drawn = draw(candidates, n, seed)
        return tune(SimpleNamespace(name="mini"), None, [None] * 3, None, drawn, None, **options)

    return trials


def test_trials_best_first_and_reported(trials):
    told = []
    found = trials(progress=lambda *state: told.append(state))
    assert (
        list(found.editor) == ["MEMIT", "MEMIT", "PMET"]
        and list(found.score) == [0.3, 0.2, 0.1]
        and set(found.n_cases) == {3}
    )
    assert told == [(3, 9, "MEMIT"), (6, 9, "MEMIT"), (9, 9, "PMET")]
    assert len(trials(1)) == 2


def test_trials_are_drawn_with_a_seed(trials):
    many = {"MEMIT": [MEMIT(layers=(1,), weight=float(w)) for w in range(1, 40)]}
    assert trials(5, many).equals(trials(5, many)) and not trials(5, many).equals(
        trials(5, many, seed=1)
    )


def test_kept_trials_of_other_editors_stay(trials, tmp_path):
    path = tmp_path / "presets" / "mini.csv"
    keep(trials(), path)
    again = keep(trials(1, {"MEMIT": [MEMIT(layers=(2,), weight=5.0)]}), path)
    assert (
        list(pd.read_csv(path).editor) == list(again.editor) == ["MEMIT", "PMET"]
        and again.score[0] == 0.5
    )
    assert [item.name for item in path.parent.iterdir()] == ["mini.csv"]


TUNED = (
    MEMIT(layers=(1, 2)),
    PMET(layers=(3,), objective=replace(PMET.objective, steps=7, clamp=None)),
    ACE(
        value=PMET(layers=(5, 6), weight=30.0, position="last", n_prefixes=2),
        query=PMET(layers=(1,), objective=replace(PMET.objective, lr=0.1), n_prefixes=2),
    ),
)


def test_settings_of_a_trial_are_read_back_and_shown(trials):
    for editor in TUNED:
        (row,) = trials(1, {type(editor).__name__: [editor]}).itertuples()
        assert parse(row.editor, row.settings) == editor
    assert words(TUNED[1]) == "layers=(3,), steps=7, clamp=None"
    assert words(TUNED[2]) == (
        "query.layers=(1,), query.lr=0.1, value.layers=(5, 6), value.weight=30.0, "
        "value.position='last', n_prefixes=2"
    )


def test_a_score_has_specificity_once_over_its_three_kinds():
    means = dict(zip(SCORE, (1.0, 0.8, 0.6, 0.9, 0.3), strict=True))
    assert score(means) == pytest.approx((1 + 0.8 + 0.6 + (0.9 + 0.9 + 0.3) / 3) / 4)
    means["specificity_token"] = nan  # no subject ends in the same token
    assert score(means) == pytest.approx((1 + 0.8 + 0.6 + 0.9) / 4)


def test_the_best_trials_become_presets(trials, tmp_path):
    path = tmp_path / "presets" / "mini.toml"
    found = trials()
    assert keep_presets(found, path) == presets.presets(path)
    assert presets.presets(path) == {"MEMIT": SPACES["MEMIT"][0], "PMET": SPACES["PMET"][0]}
    keep_presets(trials(1, {"MEMIT": [MEMIT(layers=(2,), weight=5.0)]}), path)
    assert presets.presets(path)["MEMIT"].layers == (2,)
    assert presets.presets(path)["PMET"] == SPACES["PMET"][0]


def test_the_best_third_goes_on_to_three_times_the_cases(trials):
    """Of nine trials on 1 case, three go on to all 3; a trial that is out keeps its row."""
    assert rounds(81, 36) == [(81, 2), (27, 4), (9, 12), (3, 36)] and rounds(1, 5) == [(1, 5)]
    assert rounds(4, 10) == [(4, 4), (2, 10)] and rounds(16, 72) == [(16, 8), (6, 24), (2, 72)]
    told = []
    nine = {"MEMIT": [MEMIT(layers=(1,), weight=float(w)) for w in range(1, 10)]}
    found = trials(9, nine, progress=lambda *state: told.append(state))
    assert list(found.score) == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert list(found.n_cases) == [3] * 3 + [1] * 6 and told[-1] == (18, 18, "MEMIT")


@pytest.mark.parametrize("n_layers", [4, 8, 28])
def test_every_layer_is_a_candidate_for_every_editor(n_layers):
    found = spaces(n_layers, (1, 2, 3), (3, 2, 1))
    assert set(found) == set(presets.KNOWN)
    every = set(range(n_layers))
    for name in ("FT", "ROME", "MEMIT", "PMET", "AlphaEdit"):
        assert {layer for editor in found[name] for layer in editor.layers} == every
    for name in ("IFMET", "ACE", "ReleasedACE"):
        assert {layer for editor in found[name] for layer in editor.query_layers} == every
        assert {layer for editor in found[name] for layer in editor.value_layers} == every
    written = {(editor.query_layers, editor.value_layers) for editor in found["LocatedACE"]}
    assert len(written) == 9 and ((1,), (2, 3)) in written and ((1, 2, 3), (3,)) in written


def test_a_parallel_block_may_be_asked_for_the_whole_of_what_was_searched():
    writes = {editor.query.writes for editor in spaces(4, (1, 2, 3), (3, 2, 1), True)["ACE"]}
    assert writes == {"ffn", "whole"}
    assert {editor.writes for editor in spaces(4, (1, 2, 3), (3, 2, 1))["PMET"]} == {"ffn"}


@pytest.mark.parametrize("model", ["gptj-mini", "qwen3-mini"])
def test_the_shipped_presets_are_the_best_trials(model):
    kept = pd.read_csv(presets.path_of(model).with_suffix(".csv"))
    assert set(kept.editor) == set(presets.KNOWN)
    sizes = spaces(8, (1, 2, 3), (3, 2, 1), model == "gptj-mini")
    for name, rows in kept.groupby("editor"):
        assert len(rows) == min(81, len(sizes[name])), "as many trials for each editor"
        assert rows.n_cases.iloc[0] == rows.n_cases.max() == 36
        last = rows[rows.n_cases == 36]
        assert preset(name, model) == parse(name, last.settings[last.score.idxmax()])
    assert len(tuning.trials(model)) == len(kept)


def test_cases_are_checked_first_and_those_of_a_natural_model_are_of_what_it_knows(monkeypatch):
    world, lm = load_world(), make_tiny("llama", torch.float32)
    with pytest.raises(ValueError, match="tiny-llama recalls all facts of no identification case"):
        tuning.identification(lm, world, 2)
    natural = replace(lm, natural=True)
    monkeypatch.setattr(tuning, "known_items", lambda lm, facts, ask: list(facts)[::3])
    cases = tuning.identification(natural, world, 4)
    said = {(fact.subject, fact.object) for fact in world.facts[::3]}
    assert len(cases) == 4 and all((s, o) in said for c in cases for s, _, o in c.chain)


def test_a_search_is_as_published_or_freer_and_one_for_both_stages():
    def held(editor):
        return editor.objective.decay, editor.objective.clamp

    assert [held(e) for e in searches(MEMIT(layers=(1,)))] == [(0.5, 0.75), (0.0, 0.75), (0.0, 4.0)]
    assert [held(e) for e in searches(ROME(layer=1))] == [(0.5, 4.0), (0.0, 4.0)]
    both = spaces(4, (1, 2, 3), (3, 2, 1))
    for name in ("ACE", "IFMET", "ReleasedACE", "LocatedACE"):
        assert {held(editor.query) for editor in both[name]} == {held(e) for e in both["PMET"]}
        assert all(editor.query.objective == editor.value.objective for editor in both[name])
