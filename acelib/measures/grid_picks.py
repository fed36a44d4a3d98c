"""The grid of chapter 07 to pick from: every write, width, measure, and every single case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from ..records import Case
from ..study.picks import AXIS, Pick, heat_map, lines, menus, numbers, restyling, showing
from ..study.ranks import resampled_means
from ..study.stats import SHARE, Mean, unanimous_interval
from .grid import METRICS, ROLES
from .grid_analysis import PAPER, TIMES, WORDS, Array, Grid, Scores, Setting, of_windows, ranking

TITLE = "Pick a model, a write, a width, a measure or one case"
ALT = (
    "Map of query layers by value layers, with two menus: model, write and width; measure or case. "
    "What rests on a cell tells its pair, its mean, its interval and the number of cases."
)
CELL = "query %{y}<br>value %{x}<br>"  #: what every cell tells first


class Map(NamedTuple):
    """One map of one setting: packed values and intervals, and what cells tell."""

    z: dict[str, str]
    bounds: dict[str, str] | None
    hover: str


def pairs(
    found: Mapping[Setting, Grid],
    predictors: Scores,
    cases: Mapping[str, Sequence[Case]],
    measure: str,
    by: str = PAPER,
    seed: int = 0,
) -> Pick:
    """Success of every pair of windows, by setting and by measure or case, with 95 % intervals.

    cases: that were edited, by model, in the order of the grids.   measure: shown first, and what
    single cases show.
    A frame: the pair that the predictor ``by`` ranks first; its ranks stand after the layers.
    """
    shown = {
        setting: [
            *(_mean(grid, metric, seed) for metric in METRICS),
            *(_case(grid, i, measure, case) for i, case in enumerate(cases[setting.model])),
        ]
        for setting, grid in found.items()
    }
    labels = [*WORDS.values(), *(f"one case: number {i + 1}" for i in range(_most(cases)))]
    first, start = next(iter(shown)), METRICS.index(measure)
    least = min(float(np.nanmin(grid.mean("log_p"))) for grid in found.values())
    # 1. A trace for every measure and case; the first setting is shown.
    figure = go.Figure(
        [
            heat_map(visible=i == start, **_scale(_unit(i, measure), least))
            for i in range(len(labels))
        ]
    )
    # 2. The first menu gives all of them another setting's data, the second shows one of them.
    entries = []
    for setting, maps in shown.items():
        data, layout = _content(found[setting], predictors[setting.model, by], maps, len(labels))
        entries.append(restyling(_called(setting), data, layout))
        if setting == first:
            for i, trace in enumerate(figure.data):
                each = {name: values[i % len(values)] for name, values in data.items()}
                trace.update(each)
            figure.update_layout(layout)
    figure.update_layout(
        height=460,
        **menus(
            entries,
            [showing(label, i, len(labels)) for i, label in enumerate(labels)],
            active=[0, start],
        ),
        xaxis={**AXIS, "title": f"value layer, rank by {by}"},
        yaxis={**AXIS, "title": f"query layer, rank by {by}", "autorange": "reversed"},
    )
    return Pick(figure, TITLE, ALT)


def _most(cases: Mapping[str, Sequence[Case]]) -> int:
    return max(map(len, cases.values()))


def _scale(metric: str, least: float) -> dict[str, Any]:
    """Ends and numbers of a map: shares in percent, or log-probabilities from ``least`` to 0."""
    if metric == "log_p":
        return dict(zmin=least, zmax=0, texttemplate="%{z:.1f}")
    return dict(texttemplate="%{z:.1~f}")


def _unit(trace: int, measure: str) -> str:
    """What a trace measures: the last ones, single cases, show ``measure``."""
    return METRICS[trace] if trace < len(METRICS) else measure


def _called(setting: Setting) -> str:
    layers = "one layer" if setting.width == 1 else f"{setting.width} layers"
    return f"{setting.model}, {setting.write} write, {layers}, λ {setting.weight:g}"


def _content(
    grid: Grid, scores: Mapping[str, Array], maps: Sequence[Map], n: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data of all ``n`` traces under a setting, and its frame."""
    ranks = [ranking(of_windows(scores[role], grid.windows)) for role in ROLES]
    query, value = (["none", *_names(grid, some)] for some in ranks)
    empty = Map(numbers(np.full((len(query), len(value)), np.nan)), None, "")
    maps = [*maps, *[empty] * (n - len(maps))]
    y, x = (some.index(1) + 1 for some in ranks)
    frame = {
        "type": "rect",
        "x0": x - 0.5,
        "x1": x + 0.5,
        "y0": y - 0.5,
        "y1": y + 0.5,
        "line": {"color": "#D55E00", "width": 2},
    }
    data = {
        "x": [value],
        "y": [query],
        "z": [one.z for one in maps],
        "customdata": [one.bounds for one in maps],
        "hovertemplate": [one.hover for one in maps],
    }
    return data, {"shapes": [frame]}


def _names(grid: Grid, ranks: Sequence[int]) -> list[str]:
    """Windows with their ranks: "5 #1", "5–6 #1"."""
    return [
        f"{layers[0]}{f'–{layers[-1]}' if len(layers) > 1 else ''} #{rank}"
        for layers, rank in zip(grid.windows, ranks, strict=True)
    ]


def _mean(grid: Grid, metric: str, seed: int) -> Map:
    """The mean over cases of every pair, with its interval."""
    values = grid.values[metric]
    values = values[~np.isnan(values).all((1, 2))]
    share, n = metric != "log_p", len(values)
    places, unit = (0, " %") if share else (2, " nats a token")
    bounds = numbers(intervals(values, seed, SHARE if share else None), places)
    low, high = (f"%{{customdata[{i}]:.{places}f}}" for i in (0, 1))
    mean = f"{WORDS[metric]}<br>%{{z:.{places or 1}f}}{unit} [{low}, {high}]"
    hover = f"{CELL}{mean}<br>{n} cases<extra></extra>"
    return Map(numbers(values.mean(0), places or 1), bounds, hover)


def intervals(values: Array, seed: int = 0, bounds: tuple[float, float] | None = None) -> Array:
    """95 % intervals of the means over cases: (..., 2) of values (cases, ...), cases drawn anew.

    bounds: as in ``stats.interval``.
    """
    drawn = resampled_means(values, TIMES, seed)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    ends = np.stack([low, high], -1)
    if bounds is None:
        return ends
    for place in np.ndindex(low.shape):
        column = values[(slice(None), *place)]
        if (column == column[0]).all():
            same = Mean(float(column[0]), float(column[0]), float(column[0]), len(column))
            exact = unanimous_interval(same, bounds)
            ends[place] = exact.low, exact.high
    return ends


def _case(grid: Grid, i: int, measure: str, case: Case) -> Map:
    """What every pair does to one case."""
    values = grid.values[measure][i]
    places, unit = (2, " nats a token") if measure == "log_p" else (0, " %")
    edits = (f"{edit.text} {edit.target_new}" for edit in case.edits)
    about = lines(*edits, f"{case.questions[0]} {case.new_answer}")
    said = f"{WORDS[measure]}<br>%{{z:.{places}f}}{unit}"
    return Map(numbers(values, places), None, f"{about}<br><br>{CELL}{said}<extra></extra>")
