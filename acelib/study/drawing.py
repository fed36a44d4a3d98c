"""What figures are drawn with: one look, one colour for every editor, bars, maps and legends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .stats import Mean, interval
from .tables import BASELINE, BLOCKS

#: Colours of Okabe and Ito and of Tol, which colour-blind readers can tell apart.
EDITORS = {
    BASELINE: "#8C8C8C",
    "FT": "#999933",
    "KN": "#AA4499",
    "ROME": "#56B4E9",
    "MEMIT": "#0072B2",
    "PMET": "#009E73",
    "AlphaEdit": "#E69F00",
    "IFMET": "#CC79A7",
    "ACE": "#D55E00",
    "ACE (AlphaEdit)": "#882255",
    "ACE (located)": "#332288",
}
HUES = EDITORS | {
    "attn": "#E69F00",
    "ffn": "#0072B2",
    "top": "#D55E00",
    "random": "#9A9A9A",
    "plain": "#7A7A7A",
    "acelib": "#0072B2",
    "implicit": "#CC79A7",
    "answer": "#0072B2",
}
HOPS = ("#D9D9D9", "#440154", "#31688E", "#35B779", "#FDE725")  #: no hop, then from dark to bright
VERDICTS = {
    "holds": "#009E73",
    "holds in part": "#56B4E9",
    "disagree": "#CC79A7",
    "cannot tell": "#F0E442",
    "fails in part": "#E69F00",
    "fails": "#D55E00",
    "cannot be tested here": "#8C8C8C",
    "not tested yet": "#C8C8C8",
}  #: of ``claims.verdict`` and ``claims.overall``
OTHER = "#444444"  #: what has no colour of its own
INK = "#333333"  #: text, lines, published values
SCALE = "mako_r"  #: maps
LOOK = (
    sns.axes_style("whitegrid")
    | sns.plotting_context("notebook", font_scale=0.85)
    | {
        "figure.dpi": 144,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "figure.constrained_layout.use": True,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "axes.edgecolor": "#BBBBBB",
        "axes.linewidth": 0.8,
        "grid.color": "#E6E6E6",
        "grid.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "legend.fontsize": 9,
        "patch.linewidth": 0,
        "errorbar.capsize": 2.5,
    }
)


LEGEND: dict = dict(ncols=6, columnspacing=1.4, handlelength=1.6, handletextpad=0.5)
#: Published values: a white diamond over the bar.
DIAMOND: dict = dict(ls="", marker="D", ms=4.5, mfc="white", mec=INK, mew=1.1, zorder=4)


def figure(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws under ``LOOK``, whatever the notebook has set, and leaves pyplot as it was."""

    @wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with plt.rc_context(LOOK):
            fig = draw(*args, **kwargs)
            fig.canvas.draw()
            plt.close(fig)
        return fig

    return drawn


def hue(name: str) -> str:
    """The colour of a name or of its first word: "top 2 %" is as "top 1 %"."""
    return HUES.get(name) or HUES.get(name.split(" ")[0], OTHER)


def bars(ax, means: Sequence[Mean], i: int, of: int, name: str) -> np.ndarray:
    """The i-th of ``of`` bars in each group, with whiskers; returns where they stand."""
    x = np.arange(len(means)) + (i - (of - 1) / 2) * 0.82 / of
    heights = [mean.mean for mean in means]
    ax.bar(x, heights, 0.74 / of, color=hue(name), label=BLOCKS.get(name, name), zorder=2)
    ax.errorbar(x, heights, yerr=whiskers(means), fmt="none", ecolor=INK, elinewidth=1, zorder=3)
    ax.grid(visible=False, axis="x")
    return x


def whiskers(means: Sequence[Mean]) -> np.ndarray:
    """Lengths below and above, (2, n); nan, which draws nothing, where there is no interval."""
    return np.array(
        [
            [max(mean.mean - mean.low, 0), max(mean.high - mean.mean, 0)]
            if mean.n > 1
            else [np.nan] * 2
            for mean in means
        ]
    ).T


def whisker(
    seed: int = 0, bounds: tuple[float, float] | None = None
) -> Callable[[Sequence[float]], tuple[float, float]]:
    """The interval of ``stats.interval`` as seaborn's ``errorbar``."""

    def ends(values: Sequence[float]) -> tuple[float, float]:
        mean = interval(values, seed, bounds=bounds)
        return mean.low, mean.high

    return ends


def facets(plot: Callable[..., sns.FacetGrid], data: pd.DataFrame, **settings) -> sns.FacetGrid:
    """A figure of seaborn's with panels, ``sns.catplot(data, **settings)``, in this layout.

    Panels have no titles yet and no legend.
    """
    with plt.rc_context({"figure.constrained_layout.use": False}):
        grid = plot(data, **settings)
    grid.figure.set_layout_engine("constrained")
    return grid.set_titles("", "", "")


def grouped_bars(data: pd.DataFrame, by: str, errorbar: Callable, **settings) -> sns.FacetGrid:
    """Bars side by side in every panel, one colour for each ``by``, with whiskers."""
    names = list(data[by].unique())
    grid = facets(
        sns.catplot,
        data.reset_index(drop=True),
        kind="bar",
        hue=by,
        hue_order=names,
        palette=[hue(name) for name in names],
        saturation=1,
        errorbar=errorbar,
        err_kws={"color": INK, "linewidth": 1, "zorder": 3},
        capsize=min(0.06 * len(names), 0.3),
        width=0.82,
        gap=0.1,
        zorder=2,
        legend=False,
        **settings,
    )
    for ax in grid.axes.flat:
        ax.grid(visible=False, axis="x")
    return grid


def means(
    ax, places: Sequence[float] | np.ndarray, values: Sequence[Mean], axis: str = "y", **look
) -> None:
    """Points with whiskers along an axis.   look: of ``errorbar``."""
    middle = [value.mean for value in values]
    if axis == "y":
        ax.errorbar(places, middle, yerr=whiskers(values), **look)
    else:
        ax.errorbar(middle, places, xerr=whiskers(values), **look)


def heatmap(ax, values: pd.DataFrame, text: pd.DataFrame, names: Sequence[str], **scale) -> None:
    """A map with ``text`` in its cells and ``names`` for its rows.   scale: vmin, vmax, cmap."""
    sns.heatmap(
        values,
        ax=ax,
        annot=text,
        fmt="",
        cbar=False,
        linewidths=0.6,
        linecolor="white",
        annot_kws={"size": 8},
        xticklabels=True,
        yticklabels=names,
        **scale,
    )
    ax.tick_params(length=0, rotation=0)
    ax.grid(visible=False)


def pale(ax, column: int) -> None:
    """Makes a column of a map pale and hatched: it rests on too few cases to be read."""
    ax.axvspan(column, column + 1, facecolor="#FFFFFFB0", edgecolor="#BBBBBB", hatch="///", lw=0)
    plt.setp([text for text in ax.texts if column < text.get_position()[0] < column + 1], color=INK)


def legend(fig: Figure, ax, loc: str = "outside upper center", ncols: int = 6) -> Figure:
    """One legend for the whole figure, of what ``ax`` shows, published values last."""
    shown = zip(*ax.get_legend_handles_labels(), strict=True)
    ordered = sorted(shown, key=lambda entry: "published" in entry[1])
    handles, labels = zip(*ordered, strict=True)
    look: dict = LEGEND | {"loc": loc, "ncols": ncols}
    fig.legend(handles=handles, labels=labels, **look)
    return fig


def legend_of(fig: Figure, names: Sequence[str], published: Sequence[str] = ()) -> Figure:
    """One legend for the whole figure: a patch for each name, a diamond for what is published."""
    handles: list = [Patch(color=hue(name), label=BLOCKS.get(name, name)) for name in names]
    handles += [Line2D([], [], label=label, **DIAMOND) for label in published]
    fig.legend(handles=handles, loc="outside upper center", **LEGEND)
    return fig
