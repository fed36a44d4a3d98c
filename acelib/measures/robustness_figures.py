"""Figure of ``robustness``: the best layers by category, under several settings of the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..study.drawing import figure, heatmap

SHADES = ("#ECECEC", "#F0C27B", "#D55E00")


@figure
def rank_map(ranks: Mapping[str, pd.DataFrame], against: str = "few-shot") -> Figure:
    """Tables 14, 15: the best layers by category, best first, coloured where ``against`` has
    another layer at this rank.

    ranks: ``tables.layers_table`` by setting of the prompt. One row of panels per source, one
    column per setting and block.
    """
    base = ranks[against]
    settings = [name for name in ranks if name != against]
    rows, columns = base.columns.unique(0), list(product(settings, base.index.unique(1)))
    size = (1.7 + 1.9 * len(columns), 0.9 + 2.2 * len(rows))
    fig, axes = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False)
    for line, source in zip(axes, rows, strict=True):
        for ax, (setting, block) in zip(line, columns, strict=True):
            old = base[source].xs(block, level=1)
            new = ranks[setting][source].xs(block, level=1)
            names = list(new.index) if ax is line[0] else []
            text = new.astype("string").fillna("")
            heatmap(ax, kinds(new, old), text, names, vmin=0, vmax=2, cmap=ListedColormap(SHADES))
            ax.set(
                title=f"{setting}: {block}",
                xlabel="rank" if line is axes[-1] else "",
                ylabel=source if ax is line[0] else "",
            )
    labels = [f"as {against}", f"another of the {against} layers", f"none of the {against} layers"]
    handles = [Patch(color=shade, label=label) for shade, label in zip(SHADES, labels, strict=True)]
    fig.legend(handles=handles, loc="outside upper center", ncols=3)
    return fig


def kinds(new: pd.DataFrame, old: pd.DataFrame) -> pd.DataFrame:
    """0 where a rank holds the same layer, 1 where it holds another of the row's old layers, 2
    where it holds a new one; nan for an empty rank.

    new, old: layers, categories x ranks.
    """
    known = [
        [1 if layer in set(old.loc[name]) else 2 for layer in layers]
        for name, layers in new.iterrows()
    ]
    changed = (new != old).fillna(False).astype(bool)
    return pd.DataFrame(known, new.index, new.columns).where(changed, 0).where(new.notna())
