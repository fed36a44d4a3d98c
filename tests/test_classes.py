"""Cuts and tests of two classes, against a search over all cuts and formulas of the textbook."""

import math
from itertools import pairwise

import numpy as np
import pytest

from acelib.study.classes import beyond_one_normal, of_one_normal, otsu, two_beyond_one, welch


def best_cut(values):
    """Every cut between neighbouring values, by w0 w1 (mean0 - mean1)^2."""
    x = np.sort(np.asarray(values, dtype=float))
    gains = {}
    for a, b in pairwise(x):
        if a < b:
            low, high = x[x <= a], x[x >= b]
            gains[(a + b) / 2] = len(low) * len(high) * (low.mean() - high.mean()) ** 2
    return max(gains, key=gains.get)


@pytest.mark.parametrize("seed", range(12))
def test_otsu_is_the_best_of_all_cuts(seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 30, 40) / 30 if seed % 2 else rng.random(41) ** 2
    assert otsu(values) == pytest.approx(best_cut(values))


def test_otsu_by_hand():
    assert otsu([0, 0, 0, 1]) == 0.5 and otsu([1.0, 2.0]) == 1.5
    assert otsu([0.1, 0.12, 0.14, 0.8, 0.9]) == pytest.approx(0.47)
    with pytest.raises(ValueError, match="1 different value: a cut needs at least two"):
        otsu([3, 3, 3])


def test_welch_is_the_textbooks():
    x, upper = np.array([1.0, 2.0, 3.0, 7.0, 9.0]), np.array([0, 0, 0, 1, 1], dtype=bool)
    t, p = welch(x, upper)
    expected = (8 - 2) / math.sqrt(2 / 2 + 1 / 3)
    assert t == pytest.approx(expected) and 0 < p < 0.1
    assert math.isnan(welch(x, x > 8)[0])


def test_classes_of_equal_values_are_told_apart_without_a_warning(recwarn):
    x = np.array([0.1, 0.1, 0.7, 0.7])
    assert welch(x, x > 0.4)[0] == math.inf and not recwarn.list


def test_one_normal_distribution_in_two_gives_a_large_t():
    found = of_one_normal(400, 40)
    assert found.mean() == pytest.approx(1.3236 * math.sqrt(400), rel=0.05)
    assert (found == of_one_normal(400, 40)).all()


def test_two_classes_are_told_from_one():
    rng = np.random.default_rng(1)
    one, two = rng.normal(0, 1, 300), np.r_[rng.normal(-4, 1, 150), rng.normal(4, 1, 150)]
    assert beyond_one_normal(two, 60).low > 0 and two_beyond_one(two) > 0
    gap = beyond_one_normal(one, 60)
    assert gap.low < 3 and gap.high > -3 and gap.n == 300 and two_beyond_one(one) < 0
    assert not np.isnan(of_one_normal(8, 100)).any()  # splits that leave one alone have no t
