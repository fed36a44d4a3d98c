"""Means with intervals, and paired differences: the statistics of every table and figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap

SHARE = (0.0, 100.0)  #: bounds of a share in percent
POINTS = (-100.0, 100.0)  #: bounds of a difference of two shares


@dataclass(frozen=True)
class Mean:
    """A mean with its interval, in the unit of the values; prints as ``56.2 [48.1, 64.0]``."""

    mean: float
    low: float
    high: float
    n: int  #: values behind it; of a difference of two samples, in the smaller

    def __format__(self, spec: str) -> str:
        mean, low, high = (
            format(value, spec or "z.1f") for value in (self.mean, self.low, self.high)
        )
        return "–" if not self.n else mean if isnan(self.low) else f"{mean} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self)

    __repr__ = __str__


def interval(
    values: Sequence[float],
    seed: int = 0,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Mean:
    """Mean of ``values`` (n,), nan left out, with its percentile bootstrap interval.

    9999 resamples. Percentiles, because of all bootstrap intervals they depend least on rounding,
    so that another machine finds the same.
    bounds: between which every value must lie (``SHARE``, ``POINTS``); with them, values that all
    agree get the interval of ``unanimous_interval``, without, one of width zero.
    Fewer than two values have no interval (nan). Source: Efron (1979); ``scipy.stats.bootstrap``.
    """
    x = np.asarray(values, dtype=float)
    x = x[~np.isnan(x)]
    if len(x) < 2:
        return Mean(float(x[0]) if len(x) else nan, nan, nan, len(x))
    low, high = _bootstrap((x,), np.mean, seed, level)
    mean = Mean(float(x.mean()), low, high, len(x))
    return unanimous_interval(mean, bounds, level) if bounds else mean


def unanimous_interval(value: Mean, bounds: tuple[float, float], level: float = 0.95) -> Mean:
    """A mean of n >= 2 values that all agree, with the interval that n allows.

    Any other mean is returned as it is. With confidence ``level``, less than a share p of all cases
    differs from what n cases agree on, each by no more than the distance to a bound:
    [x - p (x - a), x + p (b - x)], p = 1 - ((1 - level) / 2)^(1 / n).
    Source: Clopper and Pearson (1934), for n successes of n.
    """
    if value.n < 2 or value.low != value.high:
        return value
    p = 1 - binomtest(value.n, value.n).proportion_ci(level, method="exact").low
    below, above = max(value.mean - bounds[0], 0.0), max(bounds[1] - value.mean, 0.0)
    return Mean(value.mean, value.mean - p * below, value.mean + p * above, value.n)


def paired(
    rows: pd.DataFrame,
    a: str,
    b: str,
    metric: str = "multi_hop",
    seed: int = 0,
    level: float = 0.95,
) -> Mean:
    """Mean over cases of ``metric`` of editor a minus that of editor b on the same case.

    rows: of editors on cases, the metric in percent; the difference is in percentage points.
    Raises ValueError for an unknown editor, or if the two were judged on different cases.
    """
    of = {name: rows[rows.editor == name].set_index("case_id")[metric] for name in (a, b)}
    if missing := [name for name in of if of[name].empty]:
        raise ValueError(
            f"no rows of editor {missing[0]!r}; there are {', '.join(rows.editor.unique())}"
        )
    if odd := set(of[a].index) ^ set(of[b].index):
        raise ValueError(
            f"{a} and {b} were judged on different cases: {len(odd)} belong to only one of them, "
            f"such as case {min(odd)}"
        )
    return interval((of[a] - of[b]).sort_index(), seed, level, POINTS)


def difference(a: Sequence[float], b: Sequence[float], seed: int = 0, level: float = 0.95) -> Mean:
    """Mean of ``a`` minus mean of ``b``, two independent samples without nan, as ``interval``.

    Its n is that of the smaller sample: as many cases as the difference can be known by.
    Raises ValueError for a sample of fewer than two values.
    """
    x, y = (np.asarray(values, dtype=float) for values in (a, b))
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"samples of {len(x)} and {len(y)} values; a difference needs at least two of each"
        )

    def gap(x, y, axis):
        return x.mean(axis) - y.mean(axis)

    low, high = _bootstrap((x, y), gap, seed, level)
    return Mean(float(x.mean() - y.mean()), low, high, min(len(x), len(y)))


def _bootstrap(samples, statistic, seed: int, level: float) -> tuple[float, float]:
    """The percentile interval of a statistic of samples."""
    low, high = bootstrap(
        samples,
        statistic,
        batch=max(1, 2_000_000 // sum(map(len, samples))),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(low), float(high)
