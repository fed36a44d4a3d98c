"""A figure of Appendix F: the score of every attention head."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from ..study.drawing import figure


@figure
def head_map(scores: Mapping[str, np.ndarray]) -> Figure:
    """Figure 6: score of every attention head, layers x heads, one panel per model, each on its own
    scale.   scores: (l, n_heads), nats."""
    fig, axes = plt.subplots(1, len(scores), figsize=(0.6 + 3.6 * len(scores), 3.3), squeeze=False)
    for ax, (model, of) in zip(axes[0], scores.items(), strict=True):
        most = max(float(np.abs(of).max()), 1e-9)
        sns.heatmap(
            of,
            ax=ax,
            vmin=-most,
            vmax=most,
            cmap="vlag",
            linewidths=0.6,
            linecolor="white",
            cbar_kws={"label": "value score (nats)"},
        )
        ax.set(title=model, xlabel="head", ylabel="layer")
        ax.tick_params(length=0, rotation=0)
        ax.invert_yaxis()
    return fig
