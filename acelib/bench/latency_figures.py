"""The figure of Appendix I: how the time of a target search grows."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..study.drawing import HUES, OTHER, figure

KEY = dict(
    loc="upper center",
    bbox_to_anchor=(0.46, -0.42),
    fontsize=8,
    handlelength=1.4,
    handletextpad=0.4,
    borderpad=0,
)


@figure
def growth_curves(rows: pd.DataFrame, exponents: pd.DataFrame) -> Figure:
    """Seconds over size, both logarithmic, one panel per quantity that grows and one line per
    procedure ("plain", "acelib").

    rows: columns what, size, procedure, seconds.   exponents: (what, procedure) x exponent, low,
    high, for the panels' legends.
    """
    whats, names = list(rows.what.unique()), list(rows.procedure.unique())
    fig, axes = plt.subplots(
        1, len(whats), figsize=(1 + 2.2 * len(whats), 3.6), sharey=True, squeeze=False
    )
    for ax, what in zip(axes[0], whats, strict=True):
        part = rows[rows.what == what]
        for name, marker in zip(names, "os", strict=False):  # at most two
            of = part[part.procedure == name].sort_values("size")
            label = f"{name}: {_power(exponents.loc[(what, name)])}"
            look = dict(marker=marker, ms=4.5, lw=1.6, color=HUES.get(name, OTHER))
            ax.loglog(of["size"], of.seconds, label=label, **look)
        sizes = sorted(part["size"].unique())
        names_of = [f"{size:,}" for size in sizes]
        ax.set_xticks(sizes, names_of, rotation=30, ha="right", rotation_mode="anchor")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(title=what, xlabel=f"{what} (log scale)")
        ax.legend(**KEY)
    axes[0, 0].set_ylabel("time (s)")
    return fig


def _power(row: pd.Series) -> str:
    interval = "" if np.isnan(row.low) else f" [{row.low:.2f}, {row.high:.2f}]"
    return f"{row.exponent:.2f}{interval}"
