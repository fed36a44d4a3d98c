"""Rank correlations: alone and given other rankings, with permutation tests and resamples.

A ranking of pairs of layers has few independent parts: its p-values permute the labels of the
layers, rows and columns of the square, and not its cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import permutations
from math import factorial, prod

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

EXACT = 50_000  #: permutations up to which all are tried
DRAWN = 9_999  #: permutations that are drawn where there are more

Array = NDArray[np.float64]


def rank_correlation(x: ArrayLike, y: ArrayLike, given: Sequence[ArrayLike] = ()) -> Array:
    """Spearman's rank correlation of x and y (..., n) along the last axis, or the partial one.

    Ranks, ties at their mean, are freed of what is linear in the ranks of ``given`` (n,) each, and
    correlated. With one z: (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2)).
    Returns (...); nan where nothing is left to correlate: x or y is constant, or follows from
    ``given``.
    """
    one, other = (_directions(rankdata(values, axis=-1), given) for values in (x, y))
    return (one * other).sum(-1)


def _directions(ranks: Array, given: Sequence[ArrayLike]) -> Array:
    """Ranks (..., n) without what is linear in those of ``given`` and without mean, of length 1."""
    n = ranks.shape[-1]
    others = np.stack([np.ones(n), *(rankdata(z) for z in given)])
    left = ranks - ranks @ (others.T @ np.linalg.pinv(others.T))
    norm = np.linalg.norm(left, axis=-1, keepdims=True)
    return np.divide(left, norm, out=np.full_like(left, np.nan), where=norm > 1e-9 * n)


@cache
def relabellings(shape: tuple[int, ...], seed: int = 0) -> tuple[NDArray[np.intp], bool]:
    """Indices (k, prod(shape)) of a flattened array whose axes' labels are permuted, each axis for
    itself, and whether these are all.

    All of them up to ``EXACT``, else ``DRAWN`` drawn ones.
    """
    flat = np.arange(prod(shape)).reshape(shape)
    if prod(map(factorial, shape)) <= EXACT:
        axes = [list(permutations(range(n))) for n in shape]
        index = [flat[np.ix_(*orders)].ravel() for orders in _product(axes)]
        return np.array(index), True
    rng = np.random.default_rng(seed)
    drawn = [flat[np.ix_(*(rng.permutation(n) for n in shape))].ravel() for _ in range(DRAWN)]
    return np.array(drawn), False


def _product(axes: Sequence[Sequence[tuple[int, ...]]]) -> list[list[tuple[int, ...]]]:
    """One order of every axis, in all combinations."""
    combined: list[list[tuple[int, ...]]] = [[]]
    for orders in axes:
        combined = [[*before, order] for before in combined for order in orders]
    return combined


def permutation_p(
    x: ArrayLike, y: ArrayLike, given: Sequence[ArrayLike] = (), seed: int = 0
) -> float:
    """Two-sided p of ``rank_correlation`` of two arrays of one shape, the labels of x permuted.

    Labels of different axes are permuted for themselves. ``given`` stays with y. Drawn
    permutations count the one at hand too; nan where there is no correlation.
    """
    ranks, others = rankdata(x).reshape(np.shape(x)), [np.ravel(z) for z in given]
    index, exact = relabellings(ranks.shape, seed)
    # The ranks of permuted values are the permuted ranks.
    side = _directions(rankdata(y), others)
    found = abs(_directions(ranks.ravel(), others) @ side)
    if np.isnan(found):
        return float("nan")
    drawn = abs(_directions(ranks.ravel()[index], others) @ side)
    as_far = int((np.nan_to_num(drawn) >= found - 1e-9).sum())
    return as_far / len(index) if exact else (as_far + 1) / (len(index) + 1)


def resampled_means(values: ArrayLike, times: int, seed: int = 0) -> Array:
    """Means over n cases of values (n, ...), of ``times`` samples drawn with replacement, nan left
    out: (times, ...).
    """
    values = np.asarray(values, dtype=float)
    n, rng = len(values), np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=times).astype(float)
    there, flat = ~np.isnan(values.reshape(n, -1)), np.nan_to_num(values.reshape(n, -1))
    sums, sizes = counts @ flat, counts @ there
    means = np.divide(sums, sizes, out=np.full_like(sums, np.nan), where=sizes > 0)
    return means.reshape(times, *values.shape[1:])
