"""Figures of chapter 00: how the reference models were trained, and where they keep a fact."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ..study.drawing import INK, SCALE, figure, heatmap, legend

BARS = {  #: what a training log's measurements ask for, without their number of hops
    "cloze": "statement",
    "qa": "question",
    "implicit": "statement",
    "direct": "question",
    "cot": "chain of thought",
    "robust": "in another context",
}


@figure
def causal_trace_map(states: pd.DataFrame, prompts: pd.DataFrame) -> Figure:
    """Probability of the answer with one clean state put back, tokens by role x layers, one panel
    per model: means over prompts.

    states: ``known_analysis.traced_states``.   prompts: ``known_analysis.prompts``, for the panels'
    titles.
    """
    models, roles = states.kind.unique(), list(states.role.unique())
    fig, axes = plt.subplots(
        1, len(models), figsize=(2.4 + 3.8 * len(models), 2.9), sharey=True, squeeze=False
    )
    for ax, model in zip(axes[0], models, strict=True):
        by = states[states.kind == model].groupby(["role", "layer"])
        wide = 100 * by["probability"].mean().unstack().reindex(roles)
        text = wide.map(lambda p: "" if pd.isna(p) else f"{p:.0f}")
        names = [f"{role} token" for role in roles]
        heatmap(ax, wide, text, names, vmin=0, vmax=100, cmap=SCALE)
        n, clean, corrupted = prompts.loc[model, ["n", "clean", "corrupted"]]
        title = f"{model}, {n:.0f} prompts\nclean {100 * clean:.0f} %"
        title += f", corrupted {100 * corrupted:.0f} %"
        ax.set(title=title, xlabel="layer of the state put back", ylabel="")
    fig.colorbar(ax.collections[0], ax=axes, label="probability of the answer (%)", pad=0.02)
    return fig


@figure
def training_curves(log: pd.DataFrame, bars: Mapping[str, float]) -> Figure:
    """Loss, and shares of right answers, over tokens seen; one row per model.

    log: rows of ``train_log.jsonl``: model, tokens, loss (nats per token), shares between 0 and 1
    by name (nan where not measured).   bars: which of the shares to show, and what each must reach
    (dotted).
    """
    logs = dict(list(log.groupby("model", sort=False)))
    fig, axes = plt.subplots(
        len(logs),
        2,
        figsize=(8.6, 0.5 + 2.9 * len(logs)),
        width_ratios=(2, 3),
        sharex=True,
        sharey="col",
        squeeze=False,
    )
    for (model, rows), (left, right) in zip(logs.items(), axes, strict=True):
        left.semilogy(rows.tokens / 1e6, rows.loss, color=INK, lw=1.6)
        left.yaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)),
            minor_locator=NullLocator(),
            major_formatter="{x:g}",
        )
        left.set(title=model, ylabel="training loss (nats per token)")
        right.set(ylabel="right answers (%)", ylim=(-2, 102))
        _shares(right, rows, bars)
    for ax in axes[-1]:
        ax.set_xlabel("tokens seen (millions)")
    return legend(fig, axes[0, 1], "outside right center", 1)


def _shares(ax, rows: pd.DataFrame, bars: Mapping[str, float]) -> None:
    shades = sns.color_palette("colorblind", len(bars))
    for i, ((name, least), shade) in enumerate(zip(bars.items(), shades, strict=True)):
        known, (kind, _, hops) = rows[rows[name].notna()], name.partition("_")
        detail = f"{hops} hops" if hops.isdigit() else hops
        label = ", ".join(filter(None, [BARS.get(kind, kind), detail]))
        x, y = known.tokens / 1e6, 100 * known[name]
        ax.plot(x, y, color=shade, lw=1.6, marker="os^DvP"[i % 6], ms=3.5, label=label)
        last = "to be reached" if i + 1 == len(bars) else None
        ax.axhline(100 * least, color=shade, ls=":", lw=1.4, label=last)
