"""Figures of chapter 07: the grid of layer pairs, rankings of layers, and how both agree."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..study.drawing import INK, SCALE, figure, heatmap, hue, legend, means
from .grid_analysis import (
    PAPER,
    RANKINGS,
    ROLES,
    WORDS,
    Grid,
    Scores,
    Setting,
    of_model,
    of_windows,
    ranking,
)


@figure
def maps(found: Mapping[Setting, Grid], predictors: Scores, metric: str, by: str = PAPER) -> Figure:
    """Success of every pair, query windows x value windows, one panel per setting.

    At the margins, after the layers, their rank by the predictor ``by``. A frame: the pair that it
    ranks first. Shares in percent; log_p in nats.
    """
    wide = min(2, len(found))
    tall = -(-len(found) // wide)
    size = (0.9 + 3.6 * wide, 0.5 + 3.3 * tall)
    fig, axes = plt.subplots(tall, wide, figsize=size, squeeze=False)
    share = metric != "log_p"
    most = 100.0 if share else 0.0
    least = 0.0 if share else min(float(grid.mean(metric).min()) for grid in found.values())
    for ax, (setting, grid) in zip(axes.flat, found.items(), strict=False):
        scores, values = predictors[setting.model, by], grid.mean(metric)
        ranks = [ranking(of_windows(scores[role], grid.windows)) for role in ROLES]
        names = [["none", *_names(grid, some)] for some in ranks]
        table = pd.DataFrame(values)
        text = table.map(lambda v: "" if np.isnan(v) else f"{v:z.0f}" if share else f"{v:z.1f}")
        heatmap(ax, table, text, names[0], vmin=least, vmax=most, cmap=SCALE)
        ax.set_xticks(np.arange(len(names[1])) + 0.5, names[1])
        first = [some.index(1) + 1 for some in ranks]
        ax.add_patch(plt.Rectangle((first[1], first[0]), 1, 1, fill=False, ec=hue("ACE"), lw=2))
        for line in (ax.axhline, ax.axvline):
            line(1, color="white", lw=3)
        ax.set(
            title=f"{setting.model}, {setting.write} write, λ {setting.weight:g}",
            xlabel=f"value layer, rank by {by}",
            ylabel=f"query layer, rank by {by}",
        )
    for ax in axes.flat[len(found) :]:
        ax.set_axis_off()
    label = f"{WORDS[metric]} ({'%' if share else 'nats a token'})"
    fig.colorbar(axes[0, 0].collections[0], ax=axes, label=label, pad=0.02)
    return fig


def _names(grid: Grid, ranks: list[int]) -> list[str]:
    """Windows with their ranks: "5 #1", "5–6 #1"."""
    return [
        f"{layers[0]}{f'–{layers[-1]}' if len(layers) > 1 else ''}\n#{rank}"
        for layers, rank in zip(grid.windows, ranks, strict=True)
    ]


@figure
def rankings(predictors: Scores) -> Figure:
    """Rank of every layer by every predictor, 1 for the greatest score: a panel per model and role,
    predictors x layers.
    """
    models = list(dict.fromkeys(model for model, _ in predictors))
    rows = {model: of_model(predictors, model) for model in models}
    size = (2.2 + 3.2 * len(ROLES), 0.9 + sum(0.5 + 0.26 * len(of) for of in rows.values()))
    fig, axes = plt.subplots(
        len(models), len(ROLES), figsize=size, squeeze=False, sharey="row", sharex="row"
    )
    for line, (model, of) in zip(axes, rows.items(), strict=True):
        for ax, role in zip(line, ROLES, strict=True):
            table = pd.DataFrame({name: ranking(one[role]) for name, one in of.items()}).T
            heatmap(ax, table, table, list(of), vmin=1, vmax=table.shape[1], cmap="mako")
            ax.set(title=f"{model}, {role}", xlabel="layer", ylabel="")
    return fig


@figure
def agreement(correlations: pd.DataFrame) -> Figure:
    """Rank correlation with success, alone (full) and given depth (hollow), with 95 % intervals: a
    row of panels per model, a column per ranking.

    correlations: of one write, width, weight and set of layers.
    """
    models, names = (list(correlations[column].unique()) for column in ("model", "predictor"))
    size = (2.2 + 2.3 * len(RANKINGS), 0.9 + (0.4 + 0.3 * len(names)) * len(models))
    fig, axes = plt.subplots(len(models), len(RANKINGS), figsize=size, squeeze=False, sharey=True)
    for line, model in zip(axes, models, strict=True):
        for ax, ranked in zip(line, RANKINGS, strict=True):
            part = correlations[
                (correlations.model == model) & (correlations.ranked == ranked)
            ].set_index("predictor")
            y = np.arange(len(names))
            for column, shift, face in (("rho", -0.15, hue("ACE")), ("given", 0.15, "white")):
                label = {"rho": "alone", "given": "given depth"}[column]
                look: dict = dict(fmt="o", ms=5, lw=1.4, color=hue("ACE"), mfc=face, label=label)
                means(ax, y + shift, [part[column][name] for name in names], "x", **look)
            ax.axvline(0, color=INK, lw=0.8, zorder=1)
            ax.set_yticks(y, names)
            ax.set(title=f"{model}, {ranked}", xlim=(-1.05, 1.05), ylim=(len(names) - 0.5, -0.5))
            ax.grid(visible=False, axis="y")
    fig.supxlabel("rank correlation with success", fontsize=10, color=INK)
    return legend(fig, axes[0, 0])
