"""Figures in which a reader picks what is shown: plotly's, with the look of the others.

A pick comes below the static figure or the table that says the same in print. Its output is data,
plotly's JSON: JupyterLab draws it by itself, the book folds it away and draws it when it is opened
(``acelib.book.picks``). Menus and what the pointer rests on are plotly's own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from textwrap import shorten, wrap
from typing import Any

import numpy as np
import plotly.graph_objects as go
import seaborn as sns
from matplotlib.colors import to_hex
from numpy.typing import ArrayLike

from .drawing import INK, SCALE

MIME = "application/vnd.plotly.v1+json"  #: of the output, as JupyterLab knows it
COLOURS = [
    [i / 10, to_hex(colour)] for i, colour in enumerate(sns.color_palette(SCALE, 11))
]  #: ``SCALE`` for plotly
FROM_WHITE = [[0, "#FFFFFF"], [1e-6, COLOURS[0][1]], *COLOURS[1:]]  #: white is nothing at all
WIDE = 48  #: characters of a line, for a phone
MENU = 34  #: pixels of one menu above the plot
#: Ticks and menus are small enough for a phone; nothing is dragged, so that a finger scrolls.
LOOK: dict[str, Any] = {
    "template": "none",
    "font": {"family": "sans-serif", "size": 11, "color": INK},
    "paper_bgcolor": "white",
    "plot_bgcolor": "white",
    "margin": {"l": 8, "r": 8, "b": 8},
    "dragmode": False,
    "hoverlabel": {"align": "left", "bgcolor": "white", "bordercolor": INK, "font": {"size": 12}},
}
AXIS: dict[str, Any] = {
    "automargin": True,
    "fixedrange": True,
    "showgrid": False,
    "zeroline": False,
    "type": "category",
}


class Pick:
    """A figure with menus, in the book below ``title``; ``alt`` says what it shows to those who do
    not see it.
    """

    def __init__(self, figure: go.Figure, title: str, alt: str):
        self.title = title
        figure.update_layout(LOOK, overwrite=False).update_layout(meta={"title": title, "alt": alt})
        self.figure = figure

    def __repr__(self) -> str:
        return f"Pick: {self.title}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        content = json.loads(self.figure.to_json())
        config = {"displayModeBar": False, "responsive": True}
        return {MIME: {**content, "config": config}, "text/plain": repr(self)}


def heat_map(**changes: Any) -> go.Heatmap:
    """A map of shares in percent, white between its cells.   changes: of the trace."""
    usual = dict(colorscale=COLOURS, showscale=False, xgap=1, ygap=1, hoverongaps=False)
    return go.Heatmap({**usual, "zmin": 0, "zmax": 100, **changes})


def map_with_menu(
    entries: Sequence[Mapping[str, Any]], labels: int, yaxis: Mapping[str, Any], **changes: Any
) -> go.Figure:
    """A ``heat_map`` with one menu of ``restyling`` entries, the first of them shown.

    labels: pixels that the names above its columns take.   yaxis: besides ``AXIS``, from the top
    down.   changes: of the trace.
    """
    data, layout = entries[0]["args"]
    shown = {name: values[0] for name, values in data.items()}
    figure = go.Figure(heat_map(**changes, **shown), layout)
    return figure.update_layout(
        **menus(entries, labels=labels),
        xaxis={**AXIS, "side": "top", "tickangle": -60},
        yaxis={**AXIS, "autorange": "reversed", **yaxis},
    )


def numbers(values: ArrayLike, places: int = 1) -> dict[str, str]:
    """Rounded values as plotly.js unpacks them: a few characters each, one line in a notebook.

    nan where nothing is; counts take as few bytes as they need. Formats say how many places are
    shown.
    """
    rounded = np.round(np.asarray(values, dtype=float), places) + 0.0
    counts = not places and not np.isnan(rounded).any() and rounded.min() >= 0
    packed = rounded.astype(np.min_scalar_type(int(rounded.max())) if counts else np.float32)
    return {
        "dtype": packed.dtype.str[1:],
        "bdata": base64.b64encode(packed.tobytes()).decode(),
        "shape": ", ".join(map(str, packed.shape)),
    }


def lines(*texts: str) -> str:
    """Texts below each other, none wider than a phone."""
    return "<br>".join(line for text in texts for line in wrap(text, WIDE))


def restyling(label: str, data: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of a menu that changes data (by attribute, a list over traces) and layout."""
    label = shorten(label, WIDE, placeholder=" …")
    return {"label": label, "method": "update", "args": [dict(data), dict(layout)]}


def showing(label: str, trace: int, of: int) -> dict[str, Any]:
    """An entry of a menu that shows one of the traces."""
    visible = [i == trace for i in range(of)]
    return {"label": label, "method": "restyle", "args": [{"visible": visible}]}


def menus(
    *entries: Sequence[Mapping[str, Any]], active: Sequence[int] = (), labels: int = 0
) -> dict[str, Any]:
    """Of a layout: menus one below the other above the plot, and the room that they take.

    active: of each menu, the entry that is shown first.   labels: pixels that the labels of an axis
    take between menus and plot.
    """
    first = [*active, *[0] * len(entries)]
    return {
        "margin": {"l": 8, "r": 8, "b": 8, "t": labels + MENU * len(entries) + 8},
        "updatemenus": [
            {
                "buttons": list(buttons),
                "active": first[i],
                "type": "dropdown",
                "x": 1,  # from the right edge a wide one reaches over the labels of the rows
                "xanchor": "right",
                "y": 1,
                "yanchor": "bottom",
                "pad": {"b": labels + 4 + MENU * (len(entries) - 1 - i)},
                "bgcolor": "white",
                "showactive": True,
            }
            for i, buttons in enumerate(entries)
        ],
    }
