"""Figures of chapter 00 show every layer, role and measurement that they are given."""

import numpy as np
import pandas as pd

from acelib.attribution.layers import ROLES
from acelib.measures import known_figures


def test_a_trace_has_one_panel_per_model_and_says_how_much_the_noise_took():
    states = pd.DataFrame(
        [
            dict(kind=model, role=role, layer=layer, probability=0.3 + 0.1 * layer)
            for model in ("one", "two")
            for role in ROLES
            for layer in range(4)
        ]
    )
    states.loc[states.role == "middle subject", "probability"] = np.nan
    prompts = pd.DataFrame({"n": 3, "clean": 0.9, "corrupted": 0.2}, index=["one", "two"])
    fig = known_figures.causal_trace_map(states, prompts)
    assert fig.axes[0].collections[0].get_clim() == (0, 100)
    assert fig.axes[0].get_yticklabels()[1].get_text() == "middle subject token"
    assert "one, 3 prompts\nclean 90 %, corrupted 20 %" in fig.axes[0].get_title("left")


def test_training_curves_have_a_line_per_measurement_and_one_per_bar():
    log = pd.DataFrame(
        dict(
            model="one",
            tokens=[1e6, 2e6, 3e6],
            loss=[3.0, 1.0, 0.6],
            cloze=[0.1, np.nan, 0.9],
            cot_2=[0.0, np.nan, 0.5],
            cloze_unseen=[0.0, np.nan, 0.1],
        )
    )
    bars = {"cloze": 0.99, "cot_2": 0.97, "cloze_unseen": 0.9}
    fig = known_figures.training_curves(log, bars)
    lines = fig.axes[1].get_lines()
    assert len(lines) == 6 and lines[0].get_ydata().tolist() == [10, 90]
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == [
        "statement",
        "chain of thought, 2 hops",
        "statement, unseen",
        "to be reached",
    ]
