"""The figure of the page that puts the paper beside its code."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..paper.audit import DEPTH
from ..study.drawing import INK, LEGEND, figure

COLOURS = {"query": "#0072B2", "value": "#D55E00", "important": "#009E73"}  #: by role
ASIDE = {"query": -0.13, "value": 0.13, "important": 0.0}
WORDS = {"important": "important (Table 1, the darker the more lists)"}


@figure
def named_layers(layers: pd.DataFrame) -> Figure:
    """Which layers each source names: one panel per model, a line per source, a colour per role.

    layers: as ``paper.code.layers``.   Layers right of the dashed line are in no model that counts
    from 0; right of the dotted one, in none that counts from 1.
    """
    models = list(DEPTH)
    heights = [layers[layers.model == model].source.nunique() for model in models]
    size = (7.6, 1.2 + 0.42 * sum(heights))
    fig, axes = plt.subplots(len(models), 1, figsize=size, height_ratios=heights)
    for ax, model in zip(axes, models, strict=True):
        part = layers[layers.model == model]
        sources = list(part.source.unique())
        # 1. A square for each layer; two roles of one source lie a little apart.
        for row in part.itertuples():
            look = dict(ls="", marker="s", ms=7, color=COLOURS[row.role], alpha=row.share)
            ax.plot(row.layer, sources.index(row.source) + ASIDE[row.role], **look)
        # 2. Where the model ends.
        ax.axvline(DEPTH[model] - 0.5, color=INK, ls="--", lw=0.8)
        ax.axvline(DEPTH[model] + 0.5, color=INK, ls=":", lw=0.8)
        ax.set_yticks(range(len(sources)), sources)
        ax.set(title=model, xlim=(-0.5, max(DEPTH.values()) + 1), ylim=(len(sources) - 0.5, -0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("layer, as the source counts")
    handles = [
        Line2D([], [], ls="", marker="s", ms=8, color=colour, label=WORDS.get(role, role))
        for role, colour in COLOURS.items()
    ]
    fig.legend(handles=handles, loc="outside upper center", **LEGEND)
    return fig
