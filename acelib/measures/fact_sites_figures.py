"""Figures of where a model keeps single facts."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..study.drawing import INK, figure, legend, means
from ..study.stats import Mean, interval
from .fact_sites import EVERYWHERE, OTHER, SUBJECT

LOOKS = {  #: tokens or what is severed -> how it is drawn
    EVERYWHERE: {"color": INK, "marker": "s"},
    SUBJECT: {"color": "#D55E00", "marker": "o"},
    OTHER: {"color": "#9A9A9A", "marker": "v"},
    "nothing": {"color": "#7A7A7A", "marker": "s"},
    "FFN": {"color": "#0072B2", "marker": "o"},
    "attention": {"color": "#D55E00", "marker": "^"},
}


@figure
def kept_by_layer(kept: Mapping[tuple[str, str, str], Mean]) -> Figure:
    """Known facts still answered once FFN outputs are averaged away, with 95 % intervals: of every
    layer alone, and of groups of layers at the right. One panel per model.

    kept: of ``fact_sites_analysis.kept``.
    """
    models = list(dict.fromkeys(model for model, *_ in kept))
    size = (0.9 + 4.0 * len(models), 3.2)
    fig, axes = plt.subplots(1, len(models), figsize=size, sharey=True, squeeze=False)
    for ax, model in zip(axes[0], models, strict=True):
        layers = list(dict.fromkeys(of for m, of, _ in kept if m == model and of.isdigit()))
        names = [*layers, "lower middle", "all but 0"]
        for i, tokens in enumerate((EVERYWHERE, SUBJECT, OTHER)):
            at = [name for name in names if (model, name, tokens) in kept]
            x = [names.index(name) + (0.5 if name not in layers else 0) for name in at]
            values = [kept[model, name, tokens] for name in at]
            places = [place + 0.12 * (i - 1) for place in x]
            means(ax, places, values, ls="", ms=5, label=tokens, **LOOKS[tokens])
        ends = len(layers) - 1
        ax.axvline(len(layers) - 0.25, color="#BBBBBB", lw=0.8)
        ticks = [*range(len(layers)), ends + 1.5, ends + 2.5]
        ax.set_xticks(ticks, [*layers, f"1–{len(layers) // 2}", f"1–{ends}"])
        ax.set(title=model, xlabel="layers whose FFN outputs are averaged", ylim=(-4, 104))
    axes[0, 0].set_ylabel("known facts still answered (%)")
    return legend(fig, axes[0, 0])


@figure
def severed_traces(shares: pd.DataFrame, seed: int = 0) -> Figure:
    """What the clean state at the subject's last token brings back, by layer, as it is and with
    FFNs or attention severed in the layers above; 95 % intervals over facts. One panel per model.

    shares: of ``fact_sites_analysis.restored``.
    """
    models = list(shares.model.unique())
    size = (0.9 + 4.0 * len(models), 3.2)
    fig, axes = plt.subplots(1, len(models), figsize=size, sharey=True, squeeze=False)
    for ax, model in zip(axes[0], models, strict=True):
        _curves(ax, shares[shares.model == model], seed)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(title=model, xlabel="layer after which the state is put back")
    axes[0, 0].set_ylabel("brought back (% of what the noise takes)")
    return legend(fig, axes[0, 0])


def _curves(ax: Axes, part: pd.DataFrame, seed: int) -> None:
    for i, (name, of) in enumerate(part.groupby("severed", sort=False)):
        by = of.groupby("layer")["share"]
        values = [interval(shares.to_numpy(), seed) for _, shares in by]
        places = [int(str(layer)) + 0.08 * (i - 1) for layer, _ in by]
        label = f"{name} severed"
        means(ax, places, values, lw=1.6, ms=4.5, label=label, **LOOKS[str(name)])
