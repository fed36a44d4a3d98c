"""Chapter 05: editors on other numbers of layers, and what is read off the rows."""

from math import nan
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from acelib.editors import ACE, MEMIT, PMET, ROME
from acelib.measures import depth, depth_figures
from acelib.paper.published import published
from acelib.study.rows import Series
from acelib.study.sentences import Text

pytestmark = pytest.mark.filterwarnings("error")
RANKING = {"query": (0, 4, 3, 2, 1, 5, 6, 7), "value": tuple(range(8))}
MODELS = ("gptj-mini", "qwen3-mini")


def settings(query: tuple[int, ...], value: tuple[int, ...]) -> dict:
    """Of every editor on a model: one block from layer 0 on, and ACE's two."""
    ace = ACE(value=PMET(layers=value, position="last"), query=PMET(layers=query))
    blocks = {"MEMIT": MEMIT(layers=(0, 1)), "PMET": PMET(layers=(0, 1))}
    return {"ROME": ROME(layer=1), "ACE": ace, **blocks}


PRESETS = dict(zip(MODELS, (settings((1, 2, 3), (5, 6, 7)), settings((1, 2), (5, 6))), strict=True))


@pytest.fixture(autouse=True)
def presets(monkeypatch):
    monkeypatch.setattr(depth, "preset", lambda name, model: PRESETS[model][name])


@pytest.fixture
def editors():
    return {model: depth.with_layers(model, 8, [-2, -1, 0, 1], RANKING) for model in MODELS}


@pytest.fixture
def rows() -> pd.DataFrame:
    """Eight cases per model; the more layers, the more are right, of ACE one more. Read hard, the
    even cases are half right.
    """
    layers = {"PMET": (2, 3, 4, 5, 6, 7), "MEMIT": (4, 6), "ACE": (2, 3, 4, 5, 6, 7), "ROME": (1,)}
    return pd.DataFrame(
        [
            dict(
                model=model,
                editor=name,
                n_layers=n,
                case_id=case,
                multi_hop=float(case < n + (name == "ACE")),
                efficacy=1.0,
                paraphrase=1.0,
                specificity=1.0,
                specificity_token=1.0,
                hard=nan if case % 2 else float(case < n + (name == "ACE")) / 2,
            )
            for model in MODELS
            for name, counts in layers.items()
            for n in counts
            for case in range(8)
        ]
    )


# ---------------------------------------------------------------- settings


def test_ranges_are_as_long_as_asked_and_end_at_the_last_layer(editors):
    of = editors["gptj-mini"]
    assert of["PMET", 4].layers == (0, 1, 2, 3) and of["ROME", 1] == PRESETS["gptj-mini"]["ROME"]
    shifted = depth.with_layers("gptj-mini", 5, [-2], RANKING)
    assert shifted["MEMIT", 4].layers == (0, 1, 2, 3)


def test_ace_loses_its_least_important_query_layers_and_gains_the_next_ones(editors):
    of = editors["gptj-mini"]  # query 1, 2, 3; value 5, 6, 7
    assert of["ACE", 4].query_layers == (3,) and of["ACE", 5].query_layers == (2, 3)
    assert of["ACE", 6].layers == PRESETS["gptj-mini"]["ACE"].layers
    assert of["ACE", 7].query_layers == (0, 1, 2, 3)
    assert depth.query_order(PRESETS["gptj-mini"]["ACE"], RANKING["query"]) == [3, 2, 1, 0, 4]


def test_without_query_layers_there_is_no_query_edit(editors):
    assert depth.sizes_without_query(editors["qwen3-mini"]) == [2]
    assert depth.sizes_with_query(editors["qwen3-mini"]) == [3, 4, 5]
    assert depth.sizes_without_query(editors["gptj-mini"]) == []
    table = depth.layers(editors)
    assert table.loc[("qwen3-mini", "ACE, 2 (no query edit)"), "layers"] == "5, 6"


def test_a_number_at_the_end_of_a_name_is_a_column():
    names = {"model": "m", "editor": "PMET at last 3"}
    series = Series(names, {}, (), {"a": 1}, lambda items: [[{}] for _ in items])
    assert depth._numbered(series, "first").names == {
        "model": "m",
        "editor": "PMET at last",
        "first": "3",
    }


def test_windows_move_up_at_both_positions(monkeypatch):
    calls = []
    monkeypatch.setattr(depth, "cases_by_model", lambda *_: {})
    monkeypatch.setattr(depth, "comparisons", lambda *given: calls.append(given[2]) or ())
    some = dict(cases="", n_cases=8, n_unrelated=20, seed=0)
    hosts = {"gptj-mini": SimpleNamespace(n_layers=8)}
    depth.windows(hosts, None, starts=[0, 3, 7], window=2, **some)
    editors = calls[0]["gptj-mini"]
    assert list(editors) == [f"PMET at {p} {n}" for p in ("subject", "last") for n in (0, 3)]
    assert editors["PMET at last 3"].layers == (3, 4)
    assert editors["PMET at last 3"].position == "last"


# ---------------------------------------------------------------- what the rows say


def test_claims_compare_the_preset_with_two_layers_fewer_or_what_leaves_both_edits(rows, editors):
    assert depth.ends(editors["gptj-mini"], 6) == (4, 6)
    assert depth.ends(editors["qwen3-mini"], 4) == (3, 4)
    values = depth.claim_values(rows, editors)
    assert values["ace_gains_from_layers", "gptj-mini"].mean == 25  # 7 - 5 of 8
    assert values["baselines_saturate", "qwen3-mini"].mean == 12.5  # 4 - 3 of 8
    assert values["ace_leads_at_equal_layers", "gptj-mini"].mean == 12.5


def test_tables_hold_published_and_measured_shares(rows):
    table = depth.table_6(rows, 0)
    assert list(table.index) == ["ROME", "MEMIT", "PMET", "ACE"]
    assert table["measured gptj-mini"].loc["PMET", 4].mean == 50
    hard = table["measured gptj-mini"].loc["PMET", "hard, 4"]
    assert hard.mean == 25 and hard.n == 4
    assert table["published GPT-J"].loc["ACE"].notna().any()
    by_depth = depth.by_depth(rows.rename(columns={"n_layers": "first"}), 0)
    assert by_depth["measured qwen3-mini"].loc[("PMET", 4), "multi-hop"].mean == 50


def test_claims_are_read_hard_beside_the_published_reading(rows, editors):
    told = depth.hard_numbers(rows, editors)
    full = {name: value.mean for name, value in told["ceilings"]["gptj-mini"].items()}
    assert full == {"ACE 7": 50}
    gain = told["hard"]["ace_gains_from_layers"]["gptj-mini"]  # of 0, 2, 4, 6: one more, half right
    assert gain.mean == 12.5 and gain.n == 4


def test_the_best_window_is_the_lowest_of_equal_ones(rows):
    frame = rows.rename(columns={"n_layers": "first"})
    best = depth.best_windows(frame[frame["first"] < 6].assign(multi_hop=1.0))
    assert best["gptj-mini"]["PMET"] == {"share": 100.0, "first": 2}


def test_every_sentence_can_be_said(rows, editors):
    text = Text("05_knowledge_bottleneck")
    told = depth.sentence_numbers(depth.claim_values(rows, editors), rows, editors, 0)
    window = {"share": 50.0, "first": 3}
    best = {model: {"PMET at subject": window, "PMET at last": window} for model in MODELS}
    more = dict(best=best, n={"gptj-mini": 8}, large="GPT-J", model="gptj-mini", window=2, seed=0)
    more |= dict(depth.hard_numbers(rows, editors), prompt="Zero-Shot", long=[4])
    said = {b: " ".join(text.render(b, **told, **more).split()) for b in text.template.blocks}
    assert said["verdict"].startswith(
        "**Cannot tell.** On gptj-mini, from 4 to 6 layers, ACE gains"
    )
    assert "On qwen3-mini, ACE with 2 layers has no query edit" in said["equal"]
    assert "50 % with layers from 3" in said["depth"]
    assert "every case is answered by ACE 7 (number of layers). Read hard (Zero" in said["hard"]


# ---------------------------------------------------------------- figure


def test_curves_go_through_the_means_and_the_published_ones_stand_below(rows):
    quoted = published(6)
    whose = {"gptj-mini": "GPT-J", "qwen3-mini": "Qwen3-8B"}
    fig = depth_figures.curves(rows, "n_layers", "layers written", quoted, whose)
    assert isinstance(fig, Figure) and [ax.get_title(loc="left") for ax in fig.axes] == [
        "gptj-mini",
        "qwen3-mini",
        "GPT-J, published",
        "Qwen3-8B, published",
    ]
    measured, theirs = fig.axes[0], fig.axes[2]
    lines = {bar.get_label(): list(bar.lines[0].get_ydata()) for bar in measured.containers}
    assert lines["PMET"] == [25, 37.5, 50, 62.5, 75, 87.5] and lines["ROME"] == [12.5]
    pmet = quoted[(quoted.model == "GPT-J") & (quoted.editor == "PMET")].sort_values("n_layers")
    assert any(np.array_equal(line.get_ydata(), pmet["value"]) for line in theirs.get_lines())


def test_curves_of_the_hard_reading_stand_between(rows):
    whose, both = {"gptj-mini": "GPT-J"}, ("multi_hop", "hard")
    one = rows[rows.model == "gptj-mini"]
    fig = depth_figures.curves(one, "n_layers", "layers written", published(6), whose, both)
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert titles == ["gptj-mini", "gptj-mini, hard", "GPT-J, published"]
    lines = {bar.get_label(): list(bar.lines[0].get_ydata()) for bar in fig.axes[1].containers}
    assert lines["PMET"] == [12.5, 25, 25, 37.5, 37.5, 50]
    assert len(fig.axes[2].get_lines()) > 0


def test_curves_without_published_values_have_one_row(rows):
    one = rows[rows.model == "gptj-mini"]
    fig = depth_figures.curves(one, "n_layers", "layers written")
    assert len(fig.axes) == 1 and fig.axes[0].get_xlabel() == "layers written"


def test_ace_without_a_query_edit_is_a_line_of_its_own(rows, editors):
    lines = depth.curves(rows, editors)
    alone = lines[lines.editor == depth.ALONE]
    assert set(alone.model) == {"qwen3-mini"} and set(alone.n_layers) == {2}
