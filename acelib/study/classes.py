"""Are there two classes? A cut that separates values, a test of what it separates, and what the
same test says of values that are one class.

A split on the tested variable itself makes Welch's t large whatever the values are: of n values of
one normal distribution, cut at their mean, it is 2 phi(0) sqrt(n) / sqrt(1 - 2/pi), 1.32 sqrt(n).
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ttest_ind
from skimage.filters import threshold_otsu
from sklearn.mixture import GaussianMixture

from .stats import Mean

N_DRAWS = 200  #: samples of one normal distribution


def otsu(values: ArrayLike) -> float:
    """The cut that maximises the variance between the classes below it and from it on, exactly.

    It lies in the middle between two neighbouring values (not on the bins of a histogram).
    Raises ValueError for fewer than two different values. Source: Otsu (1979).
    """
    levels, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    if len(levels) < 2:
        raise ValueError(f"{len(levels)} different value: a cut needs at least two")
    below = int(np.searchsorted(levels, threshold_otsu(hist=(counts, levels))))
    below = min(below, len(levels) - 2)
    return float((levels[below] + levels[below + 1]) / 2)


def welch(values: ArrayLike, upper: ArrayLike) -> tuple[float, float]:
    """Welch's t of the upper class minus the lower one, and its p; nan with fewer than two in one.

    Source: Welch (1947); ``scipy.stats.ttest_ind``.
    """
    x, chosen = np.asarray(values, dtype=float), np.asarray(upper, dtype=bool)
    if min(chosen.sum(), (~chosen).sum()) < 2:
        return float("nan"), float("nan")
    with warnings.catch_warnings():
        # A class of equal values has no variance, and t is what it is: infinite, or nan.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        found = ttest_ind(x[chosen], x[~chosen], equal_var=False)
    return float(found.statistic), float(found.pvalue)


def of_one_normal(n: int, draws: int = N_DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """Welch's t of ``n`` values of one normal distribution, split by ``otsu``; of many samples,
    without those whose split leaves a value alone.

    Raises ValueError for fewer than four values, whose split has no t.
    """
    if n < 4:
        raise ValueError(f"{n} values cannot be two classes of two at least")
    rng, found = np.random.default_rng(seed), list[float]()
    while len(found) < draws:
        values = rng.standard_normal(n)
        t, _ = welch(values, values >= otsu(values))
        found += [t] if t == t else []
    return np.array(found)


def beyond_one_normal(values: ArrayLike, draws: int = N_DRAWS, seed: int = 0) -> Mean:
    """Welch's t of the Otsu split of ``values`` minus that of as many values of one normal
    distribution: mean, and the interval that 95 % of such samples leave; nan where the split of
    the values leaves one alone.
    """
    x = np.asarray(values, dtype=float)
    t = welch(x, x >= otsu(x))[0]
    gaps = t - of_one_normal(len(x), draws, seed)
    low, high = np.percentile(gaps, [2.5, 97.5])
    return Mean(float(gaps.mean()), float(low), float(high), len(x))


def two_beyond_one(values: ArrayLike, seed: int = 0) -> float:
    """BIC of one normal distribution minus that of a mixture of two: above 0, two fit better.

    Source: Schwarz (1978); ``sklearn.mixture.GaussianMixture``.
    """
    x = np.asarray(values, dtype=float)[:, None]
    one, two = (GaussianMixture(n, random_state=seed, n_init=3).fit(x).bic(x) for n in (1, 2))
    return float(one - two)
