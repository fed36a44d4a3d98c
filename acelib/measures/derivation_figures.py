"""The figure of Appendix M: errors over the size of what causes them."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..study.drawing import figure, whiskers
from ..study.stats import Mean, interval


@figure
def error_curves(
    rows: pd.DataFrame,
    exponents: Mapping[tuple[str, str], Mean] | None = None,
    xlabel: str = "size of the push",
    ylabel: str = "error (nats)",
) -> Figure:
    """Mean error over size, both logarithmic, one panel per model and one line per quantity, with
    95 % intervals.

    rows: columns model, what, size, error; one row per prompt.   exponents: slope by (model, what),
    written into the legend of the panel.
    """
    models, whats = list(rows.model.unique()), list(rows.what.unique())
    fig, axes = plt.subplots(
        1, len(models), figsize=(1 + 3.7 * len(models), 3.8), sharey=True, squeeze=False
    )
    shades = sns.color_palette("colorblind", len(whats))
    for ax, model in zip(axes[0], models, strict=True):
        for i, (what, shade) in enumerate(zip(whats, shades, strict=True)):
            some = rows[(rows.model == model) & (rows.what == what)]
            means = some.groupby("size")["error"].apply(interval)
            slope = f": slope {exponents[model, what]:z.2f}" if exponents else ""
            ax.errorbar(
                means.index,
                [mean.mean for mean in means],
                whiskers(list(means)),
                marker="osD^"[i % 4],
                ms=4.5,
                lw=1.6,
                color=shade,
                label=f"{what}{slope}",
            )
        ax.set(title=model, xscale="log", yscale="log", xlabel=f"{xlabel} (log scale)")
        ax.set_xticks(means.index, [_size(size) for size in means.index])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17))
    axes[0, 0].set_ylabel(ylabel)
    return fig


def _size(size: float) -> str:
    return f"{size:g}" if size >= 1 else f"1/{1 / size:g}"
