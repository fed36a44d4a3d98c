"""Neurons against layers: paired over cases, and who is ahead is what the interval says."""

import pandas as pd
import pytest

from acelib.measures import neurons
from acelib.measures import neurons_analysis as analysis
from acelib.world.world import load_world


def rows() -> pd.DataFrame:
    """On m, layers lead by 50 points in every case, attributed and random neurons are equal."""
    share = {"ACE": 1.0, "8 neurons": 0.5, "8 random": 0.5}
    return pd.DataFrame(
        {
            "model": "m",
            "editor": editor,
            "case_id": case,
            **dict.fromkeys(analysis.METRICS, value - 0.01 * case),
        }
        for editor, value in share.items()
        for case in range(12)
    )


def sizes() -> pd.DataFrame:
    norm = {"ACE": 1.0, "8 neurons": 2.0, "8 random": 4.0}
    return pd.DataFrame(
        {"model": "m", "editor": editor, "item": f"{i}", "norm": value, "weights": 1234567}
        for editor, value in norm.items()
        for i in range(2)
    )


def test_layers_against_neurons():
    of = analysis.layers_against_neurons(rows(), 8)["m"]
    kinds = ["specificity", "specificity, same last token"]
    assert list(of) == ["efficacy", "paraphrase", *kinds, "multi-hop"]
    assert of["multi-hop"]["ahead"] == "layers" and of["multi-hop"]["gap"].mean == pytest.approx(50)
    turned = rows().replace({"editor": {"ACE": "8 neurons", "8 neurons": "ACE"}})
    assert analysis.layers_against_neurons(turned, 8)["m"]["efficacy"]["ahead"] == "neurons"


def test_neurons_against_random_ones():
    of = analysis.neurons_against_random(rows(), sizes(), 8)["m"]
    assert of["metrics"]["efficacy"]["ahead"] == "" and of["metrics"]["efficacy"]["gap"].mean == 0
    assert (of["norms"]["attributed"].mean, of["norms"]["random"].mean) == (2, 4)


def test_table_and_gaps():
    table = analysis.metrics_table(rows(), sizes())
    assert table.loc[("m", "ACE"), "weights written (thousands)"] == "1,235"
    assert table.loc[("m", "8 random"), "norm of the change"].startswith("4.0")
    assert table.loc[("m", "ACE"), "multi-hop"].mean == pytest.approx(94.5)
    gaps = analysis.gaps(rows(), ["8 neurons", "8 random"])
    assert list(gaps) == ["m"] and list(gaps["m"].index) == ["ACE − 8 neurons", "ACE − 8 random"]


def test_experiments_have_a_series_for_every_variant(tiny, monkeypatch):
    hosts, world = {"gptj-mini": tiny("gptj")}, load_world()
    assert list(neurons.variants("gptj-mini", [8])) == ["ACE", "8 neurons", "8 random"]
    monkeypatch.setattr(neurons, "known_edits", lambda *_: [])
    of = neurons.norms(hosts, world, n_neurons=[8], n_edits=1, seed=0)
    assert [series.names["editor"] for series in of.series] == ["ACE", "8 neurons", "8 random"]
    assert "acelib.editors.neurons" in of.series[1].code
