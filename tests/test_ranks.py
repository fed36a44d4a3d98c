"""Rank correlations against scipy and textbook formulas; permutations by counting them all."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import spearmanr

from acelib.study import ranks
from acelib.study.ranks import permutation_p, rank_correlation, relabellings, resampled_means

RNG = np.random.default_rng(0)
X, Y, Z = (RNG.integers(0, 9, 12).astype(float) for _ in range(3))  # with ties


def test_the_correlation_is_scipys_with_ties_too():
    assert rank_correlation(X, Y) == pytest.approx(spearmanr(X, Y).statistic, abs=1e-12)
    many = rank_correlation(np.stack([X, Z]), np.stack([Y, Y]))
    assert many == pytest.approx([spearmanr(X, Y).statistic, spearmanr(Z, Y).statistic])


def test_the_partial_correlation_is_the_textbooks():
    xy, xz, yz = (spearmanr(*pair).statistic for pair in ((X, Y), (X, Z), (Y, Z)))
    wanted = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert rank_correlation(X, Y, [Z]) == pytest.approx(wanted, abs=1e-12)


def test_where_nothing_is_left_there_is_no_correlation():
    assert np.isnan(rank_correlation(np.ones(12), Y))
    assert np.isnan(rank_correlation(2 * Z + 1, Y, [Z]))
    assert np.isnan(permutation_p(np.ones(4), np.arange(4.0)))


def test_labels_of_rows_and_columns_are_permuted_for_themselves():
    index, exact = relabellings((2, 3))
    assert exact and len(index) == 2 * 6 == len({tuple(row) for row in index})
    square = np.arange(6).reshape(2, 3)
    wanted = {
        tuple(square[np.ix_(rows, columns)].ravel())
        for rows, columns in product(permutations(range(2)), permutations(range(3)))
    }
    assert {tuple(row) for row in index} == wanted


def test_p_is_the_share_of_all_permutations_on_four_layers():
    x, y = RNG.normal(size=(2, 4, 4))
    found = abs(spearmanr(x.ravel(), y.ravel()).statistic)
    orders = list(permutations(range(4)))
    as_far = [
        abs(spearmanr(x[np.ix_(rows, columns)].ravel(), y.ravel()).statistic) >= found - 1e-9
        for rows, columns in product(orders, orders)
    ]
    assert len(as_far) == 576
    assert permutation_p(x, y) == pytest.approx(np.mean(as_far))
    # One axis: of 24 orders only the same and the reverse are as far.
    assert permutation_p(np.arange(4.0), np.arange(4.0)) == pytest.approx(2 / 24)


def test_what_is_given_stays_with_success():
    x, y, z = RNG.normal(size=(3, 4))
    found = abs(rank_correlation(x, y, [z]))
    as_far = [
        abs(rank_correlation(x[list(order)], y, [z])) >= found - 1e-9
        for order in permutations(range(4))
    ]
    assert permutation_p(x, y, [z]) == pytest.approx(np.mean(as_far))


def test_drawn_permutations_come_near_all_of_them(monkeypatch):
    x, y = RNG.normal(size=(2, 4, 4))
    exact = permutation_p(x, y)
    monkeypatch.setattr(ranks, "EXACT", 100)
    drawn = permutation_p(x, y, seed=1)
    assert drawn == permutation_p(x, y, seed=1) and drawn == pytest.approx(exact, abs=0.03)
    assert permutation_p(np.arange(12.0), np.arange(12.0)) == 1e-4  # never zero


def test_resampled_means_leave_nan_out():
    values = np.stack([[1.0, np.nan], [3.0, 5.0], [5.0, 5.0]])
    means = resampled_means(values, 2000, 0)
    assert means.shape == (2000, 2) and means[:, 0].mean() == pytest.approx(3, abs=0.1)
    assert np.nanstd(means[:, 1]) == 0 and np.nanmax(means[:, 1]) == 5
    assert means[:, 0].std() == pytest.approx(np.std([1, 3, 5]) / np.sqrt(3), rel=0.1)
