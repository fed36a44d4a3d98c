"""What the chapters of ablations build on: curves over a number of layers, and ACE without some of its layers or on another backbone."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from acelib.editors import EDITORS, preset
from acelib.editors.presets import path_of, presets
from acelib.paper import published
from acelib.study import figures

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def rows() -> pd.DataFrame:
    """Two editors at two or three numbers of layers, one at one number only, on eight cases of each of two models."""
    layers = {"PMET": (2, 4, 6), "ACE": (2, 4), "ROME": (1,)}
    return pd.DataFrame(
        [
            dict(
                model=model,
                editor=name,
                n_layers=n,
                case_id=case,
                multi_hop=float(case < n + (name == "ACE")),
            )
            for model in ("gptj-mini", "qwen3-mini")
            for name, counts in layers.items()
            for n in counts
            for case in range(8)
        ]
    )


def test_curves_go_through_the_means_and_the_published_ones_stand_below(rows):
    quoted = published.published(6)
    fig = figures.accuracy_curves(
        rows, "n_layers", "layers written", quoted, {"gptj-mini": "GPT-J", "qwen3-mini": "Qwen3-8B"}
    )
    assert isinstance(fig, Figure) and [ax.get_title(loc="left") for ax in fig.axes] == [
        "gptj-mini",
        "qwen3-mini",
        "GPT-J, published",
        "Qwen3-8B, published",
    ]
    measured, theirs = fig.axes[0], fig.axes[2]
    lines = {bar.get_label(): bar.lines[0].get_ydata() for bar in measured.containers}
    assert {name: list(y) for name, y in lines.items()} == {
        "PMET": [25, 50, 75],
        "ACE": [37.5, 62.5],
        "ROME": [12.5],
    }
    pmet = quoted[(quoted.model == "GPT-J") & (quoted.editor == "PMET")].sort_values("n_layers")
    assert any(np.array_equal(line.get_ydata(), pmet["value"]) for line in theirs.get_lines())


def test_curves_need_neither_models_nor_published_values(rows):
    fig = figures.accuracy_curves(
        rows[rows.model == "gptj-mini"].drop(columns="model"), "n_layers", "layers written"
    )
    assert len(fig.axes) == 1 and fig.axes[0].get_xlabel() == "layers written"


@pytest.mark.parametrize("model", ["gpt-j-6b", "qwen3-8b", "gptj-mini"])
def test_ace_can_lose_layers_and_change_its_backbone(model):
    """The settings that the chapters make from the presets, without a model."""
    ace, alpha = preset("ACE", model), preset("AlphaEdit", model)
    assert replace(ace, stages=("value",)).layers == tuple(sorted(ace.value_layers))
    assert ace.at(value_layers=ace.value_layers[:1]).layers == tuple(
        sorted({*ace.query_layers, ace.value_layers[0]})
    )
    other = ace.on(alpha)
    for stage, layers in (("query", ace.query_layers), ("value", ace.value_layers)):
        assert other.plan[stage] == replace(alpha, layers=layers).stage
    assert set(presets(path_of(model))) == set(EDITORS)
