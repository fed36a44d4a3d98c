"""What the grid of layer pairs says: where editing works, and who could have told.

A predictor ranks layers; its rank correlation with success is taken over query layers (success:
mean over value layers), over value layers (mean over query layers) and over pairs (sum of the two
ranks). Layers that are not written ("none") are left out of correlations. p: by permuting the
labels of layers. Intervals: cases and the predictor's questions are drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..records import quoted
from ..study.ranks import permutation_p, rank_correlation, resampled_means
from ..study.stats import POINTS, SHARE, Mean, interval
from .grid import METRICS, ROLES, WRITES

Array = NDArray[np.float64]

DEPTH = "depth"  #: the predictor that every other is compared with
PAPER = "attribution"  #: that of the paper
RANKINGS = (*ROLES, "pair")
ALL, DEEPER = "all layers", "without layer 0"
TIMES = 1999  #: samples of an interval
#: Of the choices: the pair that is best on the other cases, and any pair.
SEARCH, ANY = "search on the other cases", "any pair (mean)"


#: Measures in words.
WORDS = {
    "multi_hop": "multi-hop accuracy",
    "efficacy": "efficacy",
    "paraphrase": "paraphrase",
    "same_relation": "specificity, same relation",
    "other_relations": "specificity, other relations",
    "same_token": "specificity, same last token",
    "log_p": "log-probability of the right thoughts",
}
#: What templates call them.
NAMES = dict(paper=PAPER, all=ALL, deeper=DEEPER, search=SEARCH, any=ANY)


class Setting(NamedTuple):
    """Under which pairs were written."""

    model: str
    write: str
    width: int
    weight: float


@dataclass(frozen=True, eq=False)
class Grid:
    """Success of every pair on every case.

    values: by metric, (cases, 1 + w, 1 + w): query windows x value windows, none first; shares in
    percent.
    """

    windows: tuple[tuple[int, ...], ...]
    values: Mapping[str, Array]

    def mean(self, metric: str) -> Array:
        """Mean over cases of every pair, none first."""
        with np.errstate(invalid="ignore"):
            values = self.values[metric]
            return np.nansum(values, 0) / (~np.isnan(values)).sum(0)

    @property
    def deeper(self) -> Grid:
        """The same without windows that hold layer 0."""
        kept = [i for i, layers in enumerate(self.windows) if 0 not in layers]
        cells = [0, *(i + 1 for i in kept)]
        values = {name: of[:, cells][:, :, cells] for name, of in self.values.items()}
        return Grid(tuple(self.windows[i] for i in kept), values)


#: {(model, predictor): {role: (chains, layers)}}
Scores = Mapping[tuple[str, str], Mapping[str, Array]]


def grids(rows: pd.DataFrame) -> dict[Setting, Grid]:
    """By setting.   rows: of ``grid.experiment``."""
    found = {}
    for names, part in rows.groupby(["model", "write", "width", "weight"], sort=False):
        model, write, width, weight = names
        cases = [case.sort_values("query") for _, case in part.groupby("item", sort=False)]
        values = {
            name: np.array([case[name].tolist() for case in cases], dtype=float)
            * (1 if name == "log_p" else 100)
            for name in METRICS
        }
        n = values["log_p"].shape[1] - 1
        windows = tuple(tuple(range(first, first + int(width))) for first in range(n))
        found[Setting(model, write, int(width), float(weight))] = Grid(windows, values)
    return found


def of_width(found: Mapping[Setting, Grid], width: int) -> dict[Setting, Grid]:
    """The grids whose windows have ``width`` layers."""
    return {setting: grid for setting, grid in found.items() if setting.width == width}


def shown(found: Mapping[Setting, Grid]) -> dict[Setting, Grid]:
    """One grid per model, that predictors are compared on: the smallest windows, the first weight,
    the whole write if there is one.
    """
    chosen: dict[str, Setting] = {}
    for setting in sorted(found, key=lambda one: (one.width, one.write != "whole")):
        chosen.setdefault(setting.model, setting)
    return {setting: grid for setting, grid in found.items() if setting in chosen.values()}


def scores(rows: pd.DataFrame) -> dict[tuple[str, str], dict[str, Array]]:
    """Scores of chains by model and predictor, and depth: the layer's number.

    rows: of ``grid_predictors.experiment``.
    """
    found: dict[tuple[str, str], dict[str, Array]] = {}
    for (model, name), part in rows.groupby(["model", "predictor"], sort=False):
        found[model, name] = {role: np.array(part[role].tolist(), dtype=float) for role in ROLES}
        n = found[model, name]["query"].shape[1]
        found[model, DEPTH] = dict.fromkeys(ROLES, np.arange(n, dtype=float)[None])
    return found


def of_windows(values: Array, windows: Sequence[Sequence[int]]) -> Array:
    """Scores of windows (chains, w): the sum over their layers.   values: (chains, layers)."""
    return np.stack([values[:, list(layers)].sum(1) for layers in windows], 1)


def ranking(values: Array) -> list[int]:
    """The rank of every layer by mean score, 1 for the greatest; equal ones in ascending order.

    values: (chains, layers).
    """
    order = np.argsort(-np.nanmean(values, 0), kind="stable")
    return [int(place) + 1 for place in np.argsort(order)]


# ---------------------------------------------------------------- correlations


def success(values: Array, ranked: str) -> Array:
    """What a ranking is compared with: the mean over the other role's windows, or all pairs.

    values: (..., w, w), without none.   ranked: of ``RANKINGS``.
    """
    if ranked == "pair":
        return values
    return values.mean(-1 if ranked == "query" else -2)


def pair_ranks(query: Array, value: Array) -> Array:
    """Sum of the ranks of every pair, (..., w, w), of scores (..., w)."""
    one, other = (rankdata(side, axis=-1) for side in (query, value))
    return one[..., :, None] + other[..., None, :]


def pair_depths(w: int) -> list[Array]:
    """What is given of every pair of w windows, (w w,) each: both depths, and their ranking as a
    predictor (ranks of sums are not linear in their parts).
    """
    depth = np.arange(w, dtype=float)
    return [np.repeat(depth, w), np.tile(depth, w), pair_ranks(depth, depth).ravel()]


class Correlation(NamedTuple):
    """One rank correlation with its interval and its p, alone and given depth (nan of depth)."""

    rho: Mean
    p: float
    given: Mean
    given_p: float


def correlation(
    grid: Grid,
    predictor: Mapping[str, Array],
    metric: str,
    ranked: str,
    seed: int = 0,
    times: int = TIMES,
) -> Correlation:
    """How a predictor's ranking agrees with success, alone and given depth.

    predictor: scores by role (chains, layers).   ranked: of ``RANKINGS``.   times: resamples.
    Of pairs, ``pair_depths`` are given.
    """
    w = len(grid.windows)
    by_case = grid.values[metric][:, 1:, 1:]
    chains = {role: of_windows(of, grid.windows) for role, of in predictor.items()}
    # 1. As measured, and of cases and chains drawn anew.
    means = {role: np.nanmean(of, 0) for role, of in chains.items()}
    drawn = {role: resampled_means(of, times, seed + 1) for role, of in chains.items()}
    y, y_drawn = grid.mean(metric)[1:, 1:], resampled_means(by_case, times, seed)
    # 2. Both sides, and what is given, in the shape of the ranking.
    if ranked == "pair":
        x, x_drawn = (pair_ranks(*(of[role] for role in ROLES)) for of in (means, drawn))
        given = pair_depths(w)
    else:
        x, x_drawn, given = means[ranked], drawn[ranked], [np.arange(w, dtype=float)]
    y, y_drawn = success(y, ranked), success(y_drawn, ranked)

    # 3. Correlations and permutations.
    def found(others: Sequence[Array]) -> tuple[Mean, float]:
        rho = float(rank_correlation(np.ravel(x), np.ravel(y), others))
        if np.isnan(rho):
            return Mean(nan, nan, nan, 0), nan
        many = rank_correlation(x_drawn.reshape(times, -1), y_drawn.reshape(times, -1), others)
        low, high = map(float, np.nanpercentile(many, [2.5, 97.5]))
        return Mean(rho, low, high, len(by_case)), permutation_p(x, y, others, seed)

    return Correlation(*found([]), *found(given))


def correlations(
    found: Mapping[Setting, Grid],
    predictors: Scores,
    metric: str,
    seed: int = 0,
    times: int = TIMES,
) -> pd.DataFrame:
    """One row per setting, predictor, ranking and set of layers (all, without layer 0): columns of
    ``Setting``, predictor, ranked, layers, and those of ``Correlation``.

    Grids of fewer than three windows are left out: two ranks always agree or disagree.
    """
    lines = []
    for setting, grid in found.items():
        for layers, part in ((ALL, grid), (DEEPER, grid.deeper)):
            if len(part.windows) < 3:
                continue
            for name, of in of_model(predictors, setting.model).items():
                for ranked in RANKINGS:
                    one = correlation(part, of, metric, ranked, seed, times)
                    about = dict(predictor=name, ranked=ranked, layers=layers)
                    lines.append(setting._asdict() | about | one._asdict())
    return pd.DataFrame(lines)


def of_model(predictors: Scores, model: str) -> dict[str, Mapping[str, Array]]:
    """The scores of one model by predictor, depth last."""
    named = {name: of for (of_, name), of in predictors.items() if of_ == model}
    return {name: named[name] for name in sorted(named, key=lambda name: name == DEPTH)}


def ranking_table(correlations: pd.DataFrame) -> pd.DataFrame:
    """Predictors x (layers, ranking): rho with its interval and p, as text; of one setting."""
    parts: dict[str, dict] = {}
    for row in correlations.itertuples():
        line = parts.setdefault(row.predictor, {})
        line[row.layers, row.ranked] = _told(row.rho, row.p)
        if row.ranked == "pair":
            line[row.layers, "pair, given depth"] = _told(row.given, row.given_p)
    return pd.DataFrame(parts).T


def measures_table(grid: Grid, predictors: Mapping[str, Mapping[str, Array]]) -> pd.DataFrame:
    """Predictors x (metric, "alone" or "given depth"): rho of pairs, nan where it is undefined."""
    given_depth = pair_depths(len(grid.windows))
    lines: dict[str, dict] = {}
    for name, of in predictors.items():
        sides = (np.nanmean(of_windows(of[role], grid.windows), 0) for role in ROLES)
        x, line = pair_ranks(*sides).ravel(), lines.setdefault(name, {})
        for metric in METRICS:
            y, title = grid.mean(metric)[1:, 1:].ravel(), WORDS[metric]
            for note, given in (("alone", []), ("given depth", given_depth)):
                line[title, note] = float(rank_correlation(x, y, given).round(2))
    return pd.DataFrame(lines).T


def _told(rho: Mean, p: float) -> str:
    return f"{rho:z.2f}" + ("" if not rho.n else f", p {p:.2f}" if p >= 0.01 else f", p {p:.1g}")


# ---------------------------------------------------------------- which pair one would edit


@dataclass(frozen=True)
class Choice:
    """The pair that somebody would have edited."""

    query: str  #: the layers, as text
    value: str
    share: Mean  #: its success
    place: int  #: its place among all pairs, 1 for the best; 0 if there is none
    lead: Mean  #: its success minus that of the search, on the same cases


def choices(
    grid: Grid, predictors: Mapping[str, Mapping[str, Array]], metric: str, seed: int = 0
) -> dict[str, Choice]:
    """By name: the pair that every predictor ranks first, with and without layer 0, the pair that
    a search over the other cases finds, and the mean over pairs.

    predictors: scores by predictor and role.
    The search is judged on the case that it has not seen, so that its luck does not count.
    """
    by_case, means = grid.values[metric][:, 1:, 1:], grid.mean(metric)[1:, 1:]
    searched, found = _left_out(by_case), dict[str, Choice]()

    def choice(query: str, value: str, values: Array, place: int) -> Choice:
        lead = _interval(values - searched, metric, seed, POINTS)
        return Choice(query, value, _interval(values, metric, seed), place, lead)

    for name, of in predictors.items():
        for note, first in (("", 0), (f", {DEEPER}", 1)):
            kept = [i for i, layers in enumerate(grid.windows) if layers[0] >= first]
            ranked = [np.nanmean(of_windows(of[role], grid.windows), 0) for role in ROLES]
            q, v = (kept[int(np.argmax(side[kept]))] for side in ranked)
            place = 1 + int((means > means[q, v]).sum())
            labels = _label(grid.windows[q]), _label(grid.windows[v])
            if first == 0 or found[name].query != labels[0] or found[name].value != labels[1]:
                found[name + note] = choice(*labels, by_case[:, q, v], place)
    found[SEARCH] = choice("–", "–", searched, 0)
    found[ANY] = choice("–", "–", by_case.mean((1, 2)), 0)
    return found


def _left_out(by_case: Array) -> Array:
    """Success on each case of the pair that is best on all others; of equal ones the lowest."""
    n = len(by_case)
    flat = np.nan_to_num(by_case.reshape(n, -1))
    others = flat.sum(0) - flat if n > 1 else flat
    return by_case.reshape(n, -1)[np.arange(n), others.argmax(1)]


def _label(layers: Sequence[int]) -> str:
    return f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}–{layers[-1]}"


def choices_table(found: Mapping[str, Choice], places: int = 0) -> pd.DataFrame:
    """Who chooses x layers, success, place, lead over the search.

    places: decimals of the measure; two or more are written out, tables show means with one.
    """

    def cell(mean: Mean) -> Mean | str:
        return mean if places < 2 else f"{mean:z.{places}f}"

    return pd.DataFrame(
        {
            name: {
                "query layers": one.query,
                "value layers": one.value,
                "success": cell(one.share),
                "place": f"{one.place}" if one.place else "–",
                "minus search": cell(one.lead),
            }
            for name, one in found.items()
        }
    ).T


def best(grid: Grid, metric: str, seed: int = 0) -> Choice:
    """The pair of the highest mean on all cases; of equal ones the lowest layers."""
    by_case, means = grid.values[metric][:, 1:, 1:], grid.mean(metric)[1:, 1:]
    q, v = np.unravel_index(int(means.argmax()), means.shape)
    values = by_case[:, q, v]
    lead = _interval(values - _left_out(by_case), metric, seed, POINTS)
    labels = _label(grid.windows[q]), _label(grid.windows[v])
    return Choice(*labels, _interval(values, metric, seed), 1, lead)


def _interval(values: Array, metric: str, seed: int, bounds: tuple[float, float] = SHARE) -> Mean:
    """The mean over cases with its interval; log_p has no bounds."""
    return interval(values.tolist(), seed, bounds=None if metric == "log_p" else bounds)


# ---------------------------------------------------------------- other seeds of one recipe


def seeds_table(
    found: Mapping[Setting, Grid], predictors: Scores, metric: str, seed: int = 0, top: int = 3
) -> pd.DataFrame:
    """Models of one recipe x what a seed changes: the ``top`` layers that attribution names, the
    best pair, the success of it, of attribution's pair and of any, and how the ranking of pairs by
    attribution, by depth and by success on the first model agrees with success.

    found: one grid per model, all of the same windows, the first model first.
    """
    lines, first = {}, next(iter(found.values()))
    for setting, grid in found.items():
        of = of_model(predictors, setting.model)
        chosen, one = choices(grid, of, metric, seed), best(grid, metric, seed)
        said = grid.mean(metric)[1:, 1:].ravel()
        first_said = first.mean(metric)[1:, 1:].ravel()
        lines[setting.model] = {
            **{f"{role} layers": _leaders(of[PAPER][role], top) for role in ROLES},
            "best pair": f"{one.query}, {one.value}",
            "its success": one.share,
            "attribution's pair": chosen[PAPER].share,
            "any pair": chosen[ANY].share,
            "rho of attribution": _of_pairs(of[PAPER], grid, said),
            "rho of depth": _of_pairs(of[DEPTH], grid, said),
            "rho with the first": f"{float(rank_correlation(said, first_said)):z.2f}",
        }
    return pd.DataFrame(lines).T


def _leaders(scores: Array, top: int) -> str:
    """The first layers of a ranking.   scores: (chains, layers)."""
    ranks = ranking(scores)
    return ", ".join(str(ranks.index(place)) for place in range(1, top + 1))


def _of_pairs(of: Mapping[str, Array], grid: Grid, said: Array) -> str:
    """Rank correlation of a predictor's pairs with success ``said`` of all pairs, as text."""
    sides = (np.nanmean(of_windows(of[role], grid.windows), 0) for role in ROLES)
    return f"{float(rank_correlation(pair_ranks(*sides).ravel(), said)):z.2f}"


# ---------------------------------------------------------------- what the sentences say


def unit(metric: str) -> dict:
    """How a measure is told: "measure" in words, "unit", "places". Raises ValueError for others."""
    if metric not in METRICS:
        raise ValueError(f"measure {quoted(metric)} is unknown; allowed: {', '.join(METRICS)}")
    if metric == "log_p":
        return {"measure": WORDS[metric], "unit": " nats a token", "places": 2}
    return {"measure": WORDS[metric], "unit": " %", "places": 0}


def sentence_numbers(
    found: Mapping[Setting, Grid], predictors: Scores, metric: str, seed: int = 0
) -> dict[str, dict]:
    """By model, of the grid that is ``shown``: "choices", "best", "n" pairs and cases, "none", the
    unedited model; "halves", where there are both writes (``halves``).
    """
    told: dict[str, dict] = {}
    for setting, grid in shown(found).items():
        values = grid.values[metric]
        told[setting.model] = {
            "choices": choices(grid, of_model(predictors, setting.model), metric, seed),
            "best": best(grid, metric, seed),
            "pairs": len(grid.windows) ** 2,
            "cases": len(values),
            "none": float(grid.mean(metric)[0, 0]),
            "halves": halves(found, setting, metric, seed),
        }
    return told


def halves(
    found: Mapping[Setting, Grid], setting: Setting, metric: str, seed: int = 0
) -> dict[str, Mean]:
    """Of a setting with either write: "whole" and "half", the mean over pairs, and "gap", their
    difference on the same cases; "best_whole" and "best_half", of the best pair of each. Empty
    without both writes.
    """
    both = {write: found.get(setting._replace(write=write)) for write in WRITES}
    half, whole = both["half"], both["whole"]
    if half is None or whole is None:
        return {}
    by_case = [grid.values[metric][:, 1:, 1:].mean((1, 2)) for grid in (whole, half)]
    return {
        "whole": _interval(by_case[0], metric, seed),
        "half": _interval(by_case[1], metric, seed),
        "gap": _interval(by_case[0] - by_case[1], metric, seed, POINTS),
        "best_whole": best(whole, metric, seed).share,
        "best_half": best(half, metric, seed).share,
    }


def summary(found: Mapping[Setting, Grid]) -> pd.DataFrame:
    """Settings x measures: the mean over pairs and cases."""
    lines = {
        tuple(map(str, setting)): {
            name: float(np.nanmean(grid.mean(name)[1:, 1:])) for name in METRICS
        }
        for setting, grid in found.items()
    }
    return pd.DataFrame(lines).T


def rhos(correlations: pd.DataFrame) -> pd.DataFrame:
    """(model, layers, predictor) x ranking: rho, a number."""
    flat = correlations.assign(rho=[one.mean for one in correlations.rho])
    return flat.pivot_table(
        index=["model", "layers", "predictor"], columns="ranked", values="rho", sort=False
    )


def adds(given: Mean, p: float) -> str:
    """Whether a predictor adds to depth: "adds to", "adds nothing to" or "cannot be told from".

    given, p: its partial correlation given depth. It adds if the interval is above zero and p is
    below 0.05, and nothing if no part of the interval is above zero.
    """
    if not given.n:
        return "cannot be told from"
    if given.low > 0 and p < 0.05:
        return "adds to"
    return "adds nothing to" if given.high <= 0 else "cannot be told from"


def verdict(correlations: pd.DataFrame, name: str = PAPER) -> dict[str, dict[str, dict]]:
    """By model and set of layers, of pairs: "rho" and "p", "given" and "given_p" of a predictor,
    "word" (``adds``), "depth", rho of depth alone, and "leader", the predictor of greatest rho.

    correlations: of one write, width and weight.
    """
    told: dict[str, dict[str, dict]] = {}
    pairs = correlations[correlations.ranked == "pair"]
    for (model, layers), part in pairs.groupby(["model", "layers"], sort=False):
        rows = {row.predictor: row for row in part.itertuples()}
        one = rows[name]
        real = {k: row.rho.mean for k, row in rows.items() if row.rho.n and k != "random"}
        leader = max(real, key=real.__getitem__, default="nobody")
        told.setdefault(model, {})[layers] = {
            "rho": one.rho,
            "p": one.p,
            "given": one.given,
            "given_p": one.given_p,
            "word": adds(one.given, one.given_p),
            "depth": rows[DEPTH].rho,
            "leader": leader,
            "leads": rows[leader].rho if leader in rows else one.rho,
        }
    return told
