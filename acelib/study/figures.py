"""Figures that several chapters share: DataFrame in, matplotlib Figure out.

A figure is the last line of its cell, ``multi_hop_bars(rows)``; pyplot has closed it, so it is
shown once. Number, caption and alt text are metadata of that cell, which papermill keeps and
myst-nb, also with execution off, renders as a figure for ``{numref}`fig-hops` ``:

    "mystnb": {
        "figure": {"name": "fig-hops", "caption": "Accuracy by *number of edits*."},
        "image": {"alt": "Bars: ACE is the highest."}
    }

The caption is MyST. All that the cell shows goes into the figure, so such a cell shows nothing
else.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .drawing import (
    DIAMOND,
    EDITORS,
    HUES,
    INK,
    SCALE,
    facets,
    figure,
    grouped_bars,
    heatmap,
    hue,
    legend,
    legend_of,
    means,
    pale,
    whisker,
)
from .drawing import HOPS as HOPS  # chapters colour by them
from .drawing import VERDICTS as VERDICTS
from .stats import SHARE, Mean, interval
from .tables import NAMES

NOTHING = Mean(np.nan, np.nan, np.nan, 0)  #: where nothing was measured


@figure
def multi_hop_bars(
    rows: pd.DataFrame,
    quoted: pd.DataFrame | None = None,
    quoted_model: Mapping[str, str | None] | str = "GPT-J",
    metric: str = "multi_hop",
    seed: int = 0,
) -> Figure:
    """Accuracy by number of edits and over all cases: one bar per editor, one panel per model.

    With 95 % intervals; diamonds: ``quoted``.
    rows: of editors on cases, with a column ``model`` if there are several.
    quoted: as ``published(2)``.   quoted_model: whose published values; by measured model where
    they differ.
    """
    rows = rows if "model" in rows else rows.assign(model="")
    percent = rows.assign(**{metric: 100 * rows[metric]}, edits=rows.n_edits.astype(str))
    names = [*map(str, sorted(rows.n_edits.unique())), "all"]
    editors = list(rows.editor.unique())
    grid = grouped_bars(
        pd.concat([percent, percent.assign(edits="all")]),
        "editor",
        whisker(seed, SHARE),
        x="edits",
        y=metric,
        order=names,
        row="model",
        sharex=False,
    )
    grid.figure.set_size_inches(7.6, 0.7 + 3 * rows.model.nunique())
    for (model, part), ax in zip(percent.groupby("model", sort=False), grid.axes.flat, strict=True):
        whose = quoted_model if isinstance(quoted_model, str) else quoted_model.get(model)
        if quoted is not None:
            of_model = quoted[quoted.model == whose]
            values = of_model.pivot(index="editor", columns="n_edits", values="value")
            _diamonds(ax, values.reindex(index=editors, columns=names))
        ax.axvline(len(names) - 1.5, color="#BBBBBB", lw=0.8, ls=":")
        cases = part.groupby("edits").case_id.nunique().to_dict() | {"all": part.case_id.nunique()}
        ax.set_xticks(range(len(names)), [f"{n}\n{cases.get(n, 0)} cases" for n in names])
        titles = [model, f"diamonds: {whose}" if quoted is not None and whose else ""]
        ax.set(
            xlabel="",
            ylabel="multi-hop accuracy (%)",
            ylim=(0, 104),
            title=", ".join(filter(None, titles)),
        )
    ax.set_xlabel("edits in the case")
    return legend_of(grid.figure, editors, ["published"] if quoted is not None else [])


def _diamonds(ax, values: pd.DataFrame) -> None:
    """Published values over the bars.   values: editors x groups of bars."""
    n, groups = values.shape
    for i, of_editor in enumerate(values.to_numpy(dtype=float)):
        ax.plot(np.arange(groups) + (i - (n - 1) / 2) * 0.82 / n, of_editor, **DIAMOND)


@figure
def layer_bars(scores: pd.DataFrame, units: Mapping[str, str] | None = None) -> Figure:
    """Importance by layer: one row of panels per role, one column per model, one colour per block.

    With 95 % intervals where there are several rows.
    scores: columns role ("query", "value"), block ("attn", "ffn"), layer, importance, perhaps
    model; one row per question, or their mean.
    units: label of the vertical axis by role, if not the mean scores of Eq. 9 and Eq. 10.
    """
    units = {"value": "value score (nats)", "query": "query score (arb. units)"} | dict(units or {})
    scores = scores if "model" in scores else scores.assign(model="")
    grid = grouped_bars(
        scores,
        "block",
        whisker(),
        x="layer",
        y="importance",
        row="role",
        col="model",
        native_scale=True,
        sharex="col",
        sharey=False,
    )
    grid.figure.set_size_inches(7.6, 0.6 + 2.3 * scores.role.nunique())
    for (role, model), ax in grid.axes_dict.items():
        layers = sorted(scores[scores.model == model].layer.unique())
        ax.axhline(0, color=INK, lw=0.8)
        ax.set(
            ylabel=units.get(role, f"{role} importance") if ax in grid.axes[:, 0] else "",
            title=model if ax in grid.axes[0] else "",
            xticks=layers,
            xlim=(min(layers) - 0.6, max(layers) + 0.6),
        )
    return legend_of(grid.figure, list(scores.block.unique()))


@figure
def paired_differences(table: pd.DataFrame | Mapping[str, pd.DataFrame]) -> Figure:
    """Differences of one editor to others on the same cases, with 95 % intervals.

    One panel per metric; right of zero, the first is better. The last name of a row gives its
    colour.
    table: ``tables.paired_table``, in percentage points, "ACE − PMET" x metrics; by model, one row
    of panels for each, if there are several.
    """
    by_model = table if isinstance(table, Mapping) else {"": table}
    metrics = list(next(iter(by_model.values())).columns)
    long = pd.DataFrame(
        [(model, metric) for model in by_model for metric in metrics], columns=["model", "metric"]
    )
    tall = [0.8 + 0.33 * len(part) for part in by_model.values()]
    grid = facets(
        sns.FacetGrid,
        long,
        row="model",
        col="metric",
        sharey="row",
        gridspec_kws={"height_ratios": tall},
    )
    grid.figure.set_size_inches(1.6 + 1.9 * len(metrics), 0.5 + sum(tall))
    for (model, metric), ax in grid.axes_dict.items():
        part = by_model[model][metric]
        for y, (name, cell) in enumerate(part.items()):
            means(ax, [y], [cell], "x", fmt="o", ms=6, lw=2, color=hue(name.rpartition(" − ")[2]))
        ax.axvline(0, color=INK, lw=1, zorder=1)
        above = f"{model}\n" if model and ax in grid.axes[:, 0] else ""
        title = NAMES.get(metric, metric).replace(", ", ",\n")
        ax.set(title=above + title, ylim=(len(part) - 0.5, -0.5))
        ax.set_yticks(range(len(part)), part.index)
        ax.grid(visible=False, axis="y")
    grid.figure.supxlabel("difference (percentage points)", fontsize=10, color=INK)
    return grid.figure


@figure
def failure_map(
    rows: pd.DataFrame,
    by: str,
    metric: str = "multi_hop",
    most: float | None = 100,
    few: int = 0,
    seed: int | None = 0,
) -> Figure:
    """Where each editor fails: mean of ``metric`` by editor and a property of the case, in percent.

    One panel per model.
    rows: columns editor, ``by`` (its labels), perhaps model, the metric between 0 and 1; one row
    per editor and case (or edit).
    most: end of the colour scale in percent; None: the greatest of the means.
    few: columns of fewer cases than this are pale and hatched.
    seed: of the 95 % intervals below the means; None, where rows are not independent: no intervals.
    """
    rows = rows if "model" in rows else rows.assign(model="")
    percent = rows.assign(**{metric: 100 * rows[metric]})
    top = most or percent.groupby(["model", "editor", by])[metric].mean().max() or 1
    editors, labels = list(rows.editor.unique()), sorted(rows[by].unique())
    # 1. One map per model, side by side where there is room.
    across, down = (0.42, 0.3) if seed is None else (0.62, 0.46)
    wide = 1 if across * len(labels) > 4 else rows.model.nunique()
    grid = facets(sns.FacetGrid, percent, col="model", col_wrap=wide, sharex=False)
    lines = -(-rows.model.nunique() // wide)
    width = 1.6 + (0.9 + across * len(labels)) * wide
    grid.figure.set_size_inches(width, (1.6 + down * len(editors)) * lines)
    for model, ax in grid.axes_dict.items():
        part = percent[percent.model == model]
        shares = part.pivot_table(index="editor", columns=by, values=metric)
        shares = shares.reindex(index=editors, columns=labels)
        text = shares.map(lambda share: "" if pd.isna(share) else f"{share:.0f}")
        heatmap(ax, shares, text, editors, vmin=0, vmax=top, cmap=SCALE)
        # 2. The interval of each mean below it.
        if seed is not None:
            cells = part.groupby(["editor", by])[metric]
            _intervals(ax, {key: interval(of, seed, bounds=SHARE) for key, of in cells}, shares)
        # 3. How many cases each column has; columns of few cases are pale.
        counts = part[part.editor == editors[0]][by].value_counts()
        for i, label in enumerate(labels):
            if counts.get(label, 0) < few:
                pale(ax, i)
        ax.set_xticks(
            np.arange(len(labels)) + 0.5,
            [f"{label} ({counts.get(label, 0)})" for label in labels],
            rotation=38,
            ha="right",
            rotation_mode="anchor",
        )
        ax.set(title=model, xlabel=by, ylabel="")
    unit = f"{metric.replace('_', '-')} (%)"
    axes = list(grid.axes.flat)
    grid.figure.colorbar(ax.collections[0], ax=axes, label=unit, pad=0.02, aspect=20 * lines)
    return grid.figure


def _intervals(ax, cells: Mapping[tuple, Mean], shares: pd.DataFrame) -> None:
    """Writes the interval of every mean below it, in a smaller type."""
    for text in [text for text in ax.texts if text.get_text()]:
        x, y = text.get_position()
        mean = cells[shares.index[int(y)], shares.columns[int(x)]]
        bounds = "" if np.isnan(mean.low) else f"[{mean.low:.0f}, {mean.high:.0f}]"
        text.set_y(y - 0.16)
        ax.text(x, y + 0.2, bounds, ha="center", va="center", size=6, color=text.get_color())


@figure
def counts(
    rows: pd.DataFrame,
    by: str,
    xlabel: str,
    of: str | None = None,
    multiple: str = "stack",
    colours: Mapping[str, str] | None = None,
    width: float = 7.6,
) -> Figure:
    """How many rows there are of each ``by``, in order of appearance.

    Coloured by ``of``, stacked ("stack") or side by side ("dodge").
    """
    colours = colours or {}
    names = list(rows[of].unique()) if of else []
    names = [name for name in colours if name in names] or names
    shades = zip(names, sns.color_palette("colorblind", len(names)), strict=True)
    each = len(names) if multiple == "dodge" else 1
    fig, ax = plt.subplots(figsize=(width, 0.9 + (0.14 + 0.16 * each) * rows[by].nunique()))
    sns.histplot(
        rows,
        y=by,
        hue=of,
        hue_order=names or None,
        palette={name: colours.get(name, shade) for name, shade in shades} or None,
        multiple=multiple,
        discrete=True,
        shrink=0.8,
        alpha=1,
        ax=ax,
        color=EDITORS["MEMIT"],
        linewidth=0,
    )
    if names:
        sns.move_legend(ax, "center left", bbox_to_anchor=(1, 0.5), title=None)
    ax.set(xlabel=xlabel, ylabel="")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(visible=False, axis="y")
    return fig


@figure
def dots(
    rows: pd.DataFrame,
    x: str,
    of: str,
    values: Mapping[str, str],
    log: bool = False,
    seed: int = 0,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Means by ``x`` with 95 % intervals, one colour for each ``of``.

    One row of panels for each of ``values``, one column per model.
    rows: columns model, ``x``, ``of`` and those of ``values``, nan where there is none.
    values: label of the vertical axis by column.   log: whether that axis is logarithmic.
    bounds: of ``stats.interval``, by column.
    """
    names, long = list(rows[of].unique()), rows.melt(["model", x, of], list(values), "quantity")
    shades = dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
    grid = facets(sns.FacetGrid, long, row="quantity", col="model", sharex="col", sharey="row")
    grid.figure.set_size_inches(0.9 + 3.7 * rows.model.nunique(), 0.9 + 2.3 * len(values))
    for (quantity, model), ax in grid.axes_dict.items():
        part = long[(long.quantity == quantity) & (long.model == model)]
        levels = list(part[x].unique())
        levels = sorted(levels) if part[x].dtype.kind in "iuf" else levels
        # 1. The means, side by side around their level.
        for i, name in enumerate(names):
            of_name = part[part[of] == name].groupby(x)["value"]
            found = {
                level: interval(some, seed, bounds=(bounds or {}).get(quantity))
                for level, some in of_name
            }
            places = np.arange(len(levels)) + (i - (len(names) - 1) / 2) * 0.7 / len(names)
            look: dict = dict(
                fmt="osD^v"[i % 5], ms=4.5, lw=1.5, color=HUES.get(name, shades[name])
            )
            means(ax, places, [found.get(level, NOTHING) for level in levels], label=name, **look)
        # 2. Levels are set apart by lines between them.
        if not log:
            ax.axhline(0, color=INK, lw=0.8, zorder=1)
        ax.set_xticks(np.arange(len(levels) - 1) + 0.5, minor=True)
        ax.set_xticks(range(len(levels)), levels)
        ax.grid(visible=False, axis="x")
        ax.grid(visible=True, axis="x", which="minor")
        ax.tick_params(which="minor", length=0)
        ax.set(
            yscale="log" if log else "linear",
            ylabel=values[quantity] if ax in grid.axes[:, 0] else "",
            xlabel=x if ax in grid.axes[-1] else "",
            title=model if ax in grid.axes[0] else "",
            xlim=(-0.5, len(levels) - 0.5),
        )
    return legend(grid.figure, grid.axes[0, 0])
