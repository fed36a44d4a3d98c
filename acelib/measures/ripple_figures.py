"""Figure of ``ripple``: right answers by category, and damaged facts, after an edit."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ..study.drawing import INK, SCALE, figure, heatmap, hue, pale, whiskers
from ..study.stats import interval
from .ripple_analysis import damage_counts, share


@figure
def ripple_map(rows: pd.DataFrame, seed: int = 0) -> Figure:
    """Share of right answers after an edit, editors x categories, means over edits in percent;
    beside it the facts that one edit damages, with 95 % intervals; one row of panels per model.

    Left of the white line answers must change, right of it they must stay. In brackets: edits;
    questions.   rows: ``ripple_analysis.numbered``.
    """
    models = dict(list(rows.groupby("model", sort=False)))
    editors = list(rows.editor.unique())
    size = (9, 0.3 + (1.9 + 0.28 * len(editors)) * len(models))
    fig, axes = plt.subplots(len(models), 2, figsize=size, width_ratios=(3, 1), squeeze=False)
    for (model, part), (left, right) in zip(models.items(), axes, strict=True):
        _shares(left, part, editors)
        left.set(title=f"{model}: right answers (%)", xlabel="", ylabel="")
        _damage(right, part, editors, seed)
    most = max(ax.get_xlim()[1] for ax in axes[:, 1])
    plt.setp(axes[:, 1], xlim=(0, most), xlabel="facts per edit")
    return fig


def _shares(ax, part: pd.DataFrame, editors: list[str]) -> None:
    """The map of one model."""
    means = share(part, ["editor", "edit", "category"])
    means = means.groupby(["editor", "category"], observed=False).mean().unstack().reindex(editors)
    text = means.map(lambda value: "" if pd.isna(value) else f"{value:.1f}".removesuffix(".0"))
    heatmap(ax, means, text, editors, vmin=0, vmax=100, cmap=SCALE)
    ax.axvline(part.category[~part.change].cat.codes.min(), color="white", lw=6)
    # The same questions are asked after every editor: those of the first one are counted.
    of_one = part[part.editor == editors[0]].groupby("category", observed=False)
    n_edits, n_asked = of_one.edit.nunique(), of_one.asked.sum()
    labels = [f"{name} ({n_edits[name]}; {n_asked[name]})" for name in means.columns]
    places = np.arange(len(labels)) + 0.5
    ax.set_xticks(places, labels, rotation=38, ha="right", rotation_mode="anchor")
    for i, name in enumerate(means.columns):
        if n_edits[name] < 2:
            pale(ax, i)


def _damage(ax, part: pd.DataFrame, editors: list[str], seed: int) -> None:
    """The bars of one model."""
    counts = damage_counts(part, ["editor", "edit"])
    for y, name in enumerate(editors):
        mean = interval(counts[name], seed)
        ax.barh(y, mean.mean, color=hue(name), zorder=2)
        error = whiskers([mean])
        ax.errorbar(mean.mean, y, xerr=error, fmt="none", ecolor=INK, elinewidth=1, zorder=3)
    ax.set(ylim=(len(editors) - 0.5, -0.5), yticks=[], title="damaged facts")
    ax.grid(visible=False, axis="y")
