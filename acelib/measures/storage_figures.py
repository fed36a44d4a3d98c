"""Figures of Section 4.1: layers by category, what zeroing costs, and how alike categories are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..study.drawing import INK, SCALE, bars, figure, heatmap, legend
from ..study.stats import SHARE, interval
from ..study.tables import BLOCKS
from ..world.world import CATEGORIES


@figure
def layer_heatmap(scores: pd.DataFrame, top: int = 3) -> Figure:
    """Categories x layers, one panel per block, one row per model: summed importance as a share of
    the greatest of its category. The ``top`` ranks are written in. One colour scale for all panels.

    scores: as for ``tables.layers_table``.
    """
    models, blocks = _models(scores), [block for block in BLOCKS if block in set(scores.block)]
    panels = {
        (model, block): _shares(_of(scores[scores.block == block], model))
        for model, block in product(models, blocks)
    }
    negative = min(share.min().min() for share in panels.values()) < 0
    scale = dict(vmin=-1, vmax=1, cmap="vlag") if negative else dict(vmin=0, vmax=1, cmap=SCALE)
    size = (1.6 + 3.6 * len(blocks), 0.6 + 2.9 * len(models))
    fig, axes = plt.subplots(len(models), len(blocks), figsize=size, sharey="row", squeeze=False)
    for ax, ((model, block), share) in zip(axes.flat, panels.items(), strict=True):
        ranks = share.rank(axis=1, ascending=False, method="first")
        text = ranks.map(lambda rank: f"{rank:.0f}" if rank <= top else "")
        heatmap(ax, share, text, [CATEGORIES[name] for name in share.index], **scale)
        title = f"{model}: {BLOCKS[block]}" if model else BLOCKS[block]
        ax.set(title=title, xlabel="layer", ylabel="")
    label = "importance (share of the row's greatest)"
    fig.colorbar(axes[-1, -1].collections[0], ax=axes, label=label, pad=0.02)
    return fig


@figure
def ablation_bars(rows: pd.DataFrame, quoted: Mapping | None = None, seed: int = 0) -> Figure:
    """Figure 2: what zeroing neurons costs, by category, related and unrelated questions apart, one
    row per model, with 95 % intervals.

    rows: columns category, zeroed ("top 1 %", "random 1 %"), questions ("related", "unrelated"),
    drop: accuracy lost, between 0 and 1, perhaps model; one row per question.
    quoted: the published drop in percent by ``zeroed`` (by model, if there are several), a line in
    the panel of related questions.
    """
    models, groups = _models(rows), sorted(rows.questions.unique())
    names = [name for name in CATEGORIES if name in set(rows.category)]
    size = (1 + 3.6 * len(groups), 0.8 + 2.8 * len(models))
    fig, axes = plt.subplots(
        len(models), len(groups), figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for ax, (model, group) in zip(axes.flat, product(models, groups), strict=True):
        _drops(ax, _of(rows[rows.questions == group], model), names, seed)
        if group == "related":
            _published(ax, (quoted or {}).get(model, {}) if model else quoted or {})
        ax.axhline(0, color=INK, lw=0.8)
        label = "accuracy lost (percentage points)" if group == groups[0] else ""
        ax.set(title=f"{model}: {group} questions".removeprefix(": "), ylabel=label)
        words = [CATEGORIES[name] for name in names]
        ax.set_xticks(range(len(names)), words, rotation=38, ha="right", rotation_mode="anchor")
    return legend(fig, axes[0, 0])


@figure
def similarity_maps(pairs: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """How alike two categories are, in percent: category x category, one panel per measure, one row
    per model, one colour scale for all.

    pairs: columns a, b (categories), perhaps model, and the measures, each at most 1.
    columns: title of the panel by measure.
    """
    negative = pairs[list(columns)].min(axis=None) < 0
    low, colours = (-100, "vlag") if negative else (0, SCALE)
    models = _models(pairs)
    size = (1.8 + 2.5 * len(columns), 0.4 + 2.7 * len(models))
    fig, axes = plt.subplots(len(models), len(columns), figsize=size, squeeze=False)
    for ax, (model, measure) in zip(axes.flat, product(models, columns), strict=True):
        lower = 100 * _lower_triangle(_of(pairs, model), measure)
        text = lower.map(lambda value: "" if np.isnan(value) else f"{value:z.0f}".replace("-", "−"))
        heatmap(ax, lower, text, list(lower.index), vmin=low, vmax=100, cmap=colours)
        first = model and measure == next(iter(columns))
        title = f"{model}: {columns[measure]}" if first else columns[measure]
        ax.set(title=title, xlabel="", ylabel="")
        ax.tick_params(axis="x", rotation=0)
    fig.colorbar(axes[-1, -1].collections[0], ax=axes, label="similarity (%)", pad=0.02)
    return fig


def _models(rows: pd.DataFrame) -> list[str]:
    """The models in order of appearance; one without a name if there is no such column."""
    return list(rows.model.unique()) if "model" in rows else [""]


def _of(rows: pd.DataFrame, model: str) -> pd.DataFrame:
    return rows[rows.model == model] if model else rows


def _shares(scores: pd.DataFrame) -> pd.DataFrame:
    """Summed importance, category x layer, as a share of each category's greatest."""
    sums = scores.groupby(["category", "layer"])["importance"].sum().unstack()
    names = [name for name in CATEGORIES if name in sums.index]
    return sums.div(sums.abs().max(axis=1), axis=0).reindex(names)


def _drops(ax, rows: pd.DataFrame, names: Sequence[str], seed: int) -> None:
    kinds = list(rows.zeroed.unique())
    for i, kind in enumerate(kinds):
        drops = 100 * rows[rows.zeroed == kind].set_index("category")["drop"]
        means = [interval(drops[drops.index == name], seed, bounds=SHARE) for name in names]
        bars(ax, means, i, len(kinds), kind)


def _published(ax, lines: Mapping[str, float]) -> None:
    for kind, dashes in zip(lines, ("--", ":", "-."), strict=False):  # there are three at most
        label = f"{kind}, published"
        ax.axhline(lines[kind], color=INK, ls=dashes, lw=1.5, label=label, zorder=2.5)


def _lower_triangle(pairs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The measure of each pair once, category x category; the rest is nan."""
    names = [name for name in CATEGORIES if name in {*pairs.a, *pairs.b}]
    both = pd.concat([pairs, pairs.rename(columns={"a": "b", "b": "a"})])
    square = both.pivot(index="a", columns="b", values=measure).reindex(index=names, columns=names)
    return square.where(np.tri(len(names), k=-1, dtype=bool)).iloc[1:, :-1]
