"""The figure of the chapter on the number and the depth of the layers that are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas.api.typing import SeriesGroupBy

from ..study.drawing import figure, hue, legend, whiskers
from ..study.stats import SHARE, interval

MARKERS = "osD^v"


@figure
def curves(
    rows: pd.DataFrame,
    by: str,
    label: str,
    quoted: pd.DataFrame | None = None,
    quoted_model: Mapping[str, str | None] | None = None,
    metrics: Sequence[str] = ("multi_hop",),
    seed: int = 0,
) -> Figure:
    """Multi-hop accuracy over a number, such as that of layers written, with 95 % intervals.

    One line per editor, one column per model, one row per metric; published values below.
    rows: columns editor, ``by`` (whole numbers), model, and ``metrics`` between 0 and 1.
    label: of the horizontal axis.   quoted: columns editor, model, ``by``, value, in percent.
    quoted_model: whose published values, by measured model.
    """
    models = dict(list(rows.groupby("model", sort=False)))
    editors, levels = list(rows.editor.unique()), len(metrics) + (quoted is not None)
    size = (0.8 + 3.4 * len(models), 0.8 + 2.5 * levels)
    fig, axes = plt.subplots(levels, len(models), figsize=size, sharey=True, squeeze=False)
    for column, (model, part) in zip(axes.T, models.items(), strict=True):
        whose = (quoted_model or {}).get(model)
        measured = [model + ", hard" * (metric == "hard") for metric in metrics]
        titles = (*measured, f"{whose}, published" if whose else "")
        for i, editor in enumerate(editors):
            style = {"color": hue(editor), "marker": MARKERS[i % len(MARKERS)], "ms": 5, "lw": 1.6}
            shift = 0.07 * (i - (len(editors) - 1) / 2)
            of = part[part.editor == editor]
            for ax, metric in zip(column, metrics, strict=False):
                _measured(ax, of.groupby(by)[metric], shift, seed, editor, style)
            if quoted is not None:
                theirs = quoted[(quoted.editor == editor) & (quoted.model == whose)].sort_values(by)
                column[-1].plot(theirs[by], theirs["value"], mfc="white", ls=":", **style)
        for ax, title in zip(column, titles, strict=False):  # below, only with published values
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set(title=title, ylim=(-4, 104))
        column[-1].set_xlabel(label)
    plt.setp(axes[:, 0], ylabel="multi-hop (%)")
    return legend(fig, axes[0, 0])


def _measured(
    ax: Axes, groups: SeriesGroupBy, shift: float, seed: int, editor: str, style: Mapping
) -> None:
    """One editor's means with intervals over the groups' numbers, moved aside so that none hides
    another.
    """
    means = [interval(100 * hits, seed, bounds=SHARE) for _, hits in groups]
    x = np.array(list(groups.groups), dtype=float) + shift
    y, spread = [mean.mean for mean in means], whiskers(means).reshape(2, -1)
    ax.errorbar(x, y, yerr=spread, elinewidth=1, label=editor, **style)
