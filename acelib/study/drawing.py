"""What figures are drawn with: one look, one colour for every editor, bars, maps and legends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from .stats import Mean
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
    "undecided": "#E69F00",
    "does not hold": "#D55E00",
    "cannot be tested here": "#8C8C8C",
    "not tested yet": "#C8C8C8",
}  #: of ``claims.verdict`` and ``claims.overall``
OTHER, INK, SCALE = (
    "#444444",
    "#333333",
    "mako_r",
)  #: what has no colour of its own; text, lines, published values; maps
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
    x, heights = (
        np.arange(len(means)) + (i - (of - 1) / 2) * 0.82 / of,
        [mean.mean for mean in means],
    )
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


def legend(fig: Figure, ax, loc: str = "outside upper center", ncols: int = 6) -> Figure:
    """One legend for the whole figure, of what ``ax`` shows, published values last."""
    handles, labels = zip(
        *sorted(zip(*ax.get_legend_handles_labels()), key=lambda entry: "published" in entry[1])
    )
    fig.legend(
        handles,
        labels,
        loc=loc,
        ncols=ncols,
        columnspacing=1.4,
        handlelength=1.6,
        handletextpad=0.5,
    )
    return fig
