"""Figures of the companion on Query Localization."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..study.classes import of_one_normal
from ..study.drawing import INK, facets, figure, legend, means
from ..study.stats import Mean
from .localization_analysis import EXAMPLE, NAMES, ONE, TWO, at, one_class
from .localization_attention import CONDITIONS

COLOURS = {ONE: "#0072B2", TWO: "#D55E00"}
SHADES = {"Dai et al.": "#0072B2", "Enguehard": "#009E73", "Chen et al.": "#D55E00"}
LINES = {"0.1": "-", "0.3": "--", "Otsu": ":"}


@figure
def violins(rows: pd.DataFrame, groups: Mapping[str, str]) -> Figure:
    """CS_2 of the facts of each group, one row of panels per method, one column per model; the line
    is the paper's example threshold.

    rows: of ``localization.experiment``.   groups: of each fact by its name in the rows.
    """
    some = at(rows).assign(
        group=lambda part: part.item.map(groups), method=lambda part: part.method.map(NAMES)
    )
    some = some.sort_values("group", kind="stable")
    grid = facets(sns.FacetGrid, some, row="method", col="model", sharey=True)
    n = some.group.nunique()
    grid.figure.set_size_inches(0.9 + max(3.5, 0.42 * n) * some.model.nunique(), 6.4)
    for (method, model), ax in grid.axes_dict.items():
        part = some[(some.method == method) & (some.model == model)]
        look: dict = dict(inner=None, cut=0, linewidth=0.6, density_norm="width")
        sns.violinplot(part, x="group", y="relaxed", ax=ax, color=SHADES[method], **look)
        sns.stripplot(part, x="group", y="relaxed", ax=ax, color=INK, size=1.6, alpha=0.6)
        ax.axhline(EXAMPLE, color=INK, lw=0.8, ls="--")
        first = ax in grid.axes[:, 0]
        ax.set(xlabel="", ylabel=f"CS$_2$, {method}" if first else "", ylim=(-0.03, 1.03))
        ax.set_title(model if ax in grid.axes[0] else "")
        ax.tick_params(axis="x", rotation=60 if n > 9 else 0)
    return grid.figure


@figure
def split_violins(
    rows: pd.DataFrame, x: str, values: Mapping[str, str], bounds: tuple[float, float]
) -> Figure:
    """Values of K_I and K_II side by side, by ``x``; one row of panels per quantity, one column per
    model.   values: label of the vertical axis by column.
    """
    models = list(dict.fromkeys(rows.model))
    size = (0.9 + 4.2 * len(models), 0.6 + 2.5 * len(values))
    fig, axes = plt.subplots(
        len(values), len(models), figsize=size, sharey="row", sharex=True, squeeze=False
    )
    for i, (column, label) in enumerate(values.items()):
        for j, model in enumerate(models):
            ax = axes[i, j]
            part = rows[rows.model == model]
            look: dict = dict(hue="knowledge", hue_order=[ONE, TWO], palette=COLOURS, cut=0)
            look |= dict(inner="quart", linewidth=0.7, density_norm="width")
            sns.violinplot(part, x=x, y=column, ax=ax, **look)
            ax.set(xlabel="", ylabel=label if j == 0 else "", ylim=bounds)
            ax.set_title("" if i else model)
            if ax.get_legend():
                ax.get_legend().remove()
    return legend(fig, axes[0, 0])


@figure
def choices(shares: pd.DataFrame, wordings: pd.DataFrame) -> Figure:
    """Share of facts in K_II against the threshold of attribution (left) and the number of wordings
    (right), for three thresholds on CS_2; one row per model.

    shares, wordings: of ``localization_analysis.choices`` and ``by_wordings``.
    """
    models = list(dict.fromkeys(shares.model))
    size = (8.6, 0.8 + 2.6 * len(models))
    fig, axes = plt.subplots(len(models), 2, figsize=size, sharey=True, squeeze=False)
    for line, model in zip(axes, models, strict=True):
        _lines(line[0], shares[shares.model == model], "share")
        _lines(line[1], wordings[wordings.model == model], "wordings")
        line[0].set(ylabel="facts in K$_{II}$ (%)", title=model, ylim=(-4, 104))
    axes[-1, 0].set_xlabel("threshold of attribution, of the largest")
    axes[-1, 1].set_xlabel("wordings")
    axes[-1, 1].set_xticks(sorted(wordings.wordings.unique()))
    return legend(fig, axes[0, 0], ncols=3)


def _lines(ax: Axes, rows: pd.DataFrame, x: str) -> None:
    for (method, threshold), part in rows.groupby(["method", "threshold"], sort=False):
        name = NAMES[str(method)]
        label = f"{name}, CS$_2$ below {threshold}"
        look: dict = dict(color=SHADES[name], ls=LINES[str(threshold)], lw=1.5, marker="o", ms=3)
        ax.plot(part[x], part.two, label=label, **look)


@figure
def one_normal(rows: pd.DataFrame, seed: int = 0) -> Figure:
    """Welch's t of one normal distribution, split where Otsu splits it, for growing numbers of
    facts (line, and 95 % of samples); the points are the t of the measured splits.
    """
    fig, ax = plt.subplots(figsize=(6.6, 3.4))
    sizes = {model: part.item.nunique() for model, part in rows.groupby("model", sort=False)}
    most = max(max(sizes.values()), 60)
    places = np.unique(np.geomspace(10, most * 1.3, 8).astype(int))
    drawn = [of_one_normal(int(n), 60, seed) for n in places]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=1)
    ax.fill_between(places, low, high, color="#DDDDDD", lw=0)
    ax.plot(places, np.mean(drawn, axis=1), color=INK, lw=1.2, label="one normal distribution")
    found = one_class(rows, seed)
    for i, ((model, method), line) in enumerate(found.iterrows()):
        x = float(line["n"]) * (0.97 + 0.02 * (i % 4))
        marker = "osD^"[list(sizes).index(model) % 4]
        label = f"{method}, {model}"
        ax.plot([x], [float(line["t"])], marker, ms=6, color=SHADES[method], label=label)
    ax.set(xlabel="facts", ylabel="Welch's t of the two classes")
    return legend(fig, ax, ncols=2)


@figure
def coefficients(table: pd.DataFrame) -> Figure:
    """What CS_2 goes with, in standard deviations, with 95 % intervals; one colour per model.

    table: of ``localization_analysis.confounds``.
    """
    names = [name for name, row in table.iterrows() if any(isinstance(x, Mean) for x in row)]
    fig, ax = plt.subplots(figsize=(6.6, 0.9 + 0.42 * max(len(names), 1)))
    for i, column in enumerate(table):
        some = [(y, table.at[name, column]) for y, name in enumerate(names)]
        some = [(y, value) for y, value in some if isinstance(value, Mean)]
        places = [y + 0.18 * (i - (table.shape[1] - 1) / 2) for y, _ in some]
        look: dict = dict(fmt="osD"[i % 3], ms=5, color=list(COLOURS.values())[i % 2])
        means(ax, places, [value for _, value in some], "x", label=column.split(" ")[-1], **look)
    ax.axvline(0, color=INK, lw=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel("change of CS$_2$ (standard deviations per standard deviation)")
    return legend(fig, ax) if names else fig


@figure
def maps(rows: pd.DataFrame, scores: pd.DataFrame) -> Figure:
    """Sizes of the knowledge neurons' activations for two wordings of the most and of the least
    consistent fact (columns), as they are, with synapses suppressed, and enhanced (rows).

    rows: of ``localization_attention.maps`` of one model.   scores: of its facts, item and relaxed.
    """
    ranked = scores[scores.item.isin(rows.item)].sort_values("relaxed", kind="stable")
    chosen = [(ranked.item.iloc[-1], "most"), (ranked.item.iloc[0], "least")]
    fig, axes = plt.subplots(
        len(CONDITIONS), 4, figsize=(11, 6.2), sharex="col", sharey=True, squeeze=False
    )
    largest = max(max(values) for values in rows[rows.item.isin(ranked.item)].sizes)
    for i, (line, condition) in enumerate(zip(axes, CONDITIONS, strict=True)):
        for j, (item, word) in enumerate(chosen):
            for wording in range(2):
                ax = line[2 * j + wording]
                one = rows[(rows.item == item) & (rows.condition == condition)]
                one = one[one.wording == wording].iloc[0]
                look: dict = dict(cmap="rocket_r", vmin=0, vmax=largest, s=16, linewidths=0)
                ax.scatter(one.neuron, one.layer, c=one.sizes, **look)
                subject = shorten(str(item).partition(" | ")[0], 24, placeholder="…")
                title = f"{word} consistent, wording {wording + 1}\n{subject}"
                ax.set_title("" if i else title, fontsize=8)
                ax.grid(visible=False)
        line[0].set_ylabel(f"{condition}\nlayer")
    for ax in axes[-1]:
        ax.set_xlabel("neuron")
    points = axes[0, 0].collections[0]
    fig.colorbar(points, ax=axes, label="size of the activation", shrink=0.6)
    return fig
