"""power: how many cases would tell a mean from a bound, against numbers worked by hand."""

from math import inf, isnan, nan, sqrt

import numpy as np
import pytest
from scipy.stats import norm

from acelib.study import power
from acelib.study.stats import POINTS, SHARE, Mean, unanimous_interval


@pytest.mark.parametrize(
    "value, bound, expected",
    [
        (Mean(5, -9, 19, 10), 0, 160),  # s = 28 / 3.92; (2.8 s / 5)^2 = (20 / 5)^2 = 16
        (Mean(-5, -19, 9, 10), 0, 160),
        (Mean(15, 1, 29, 10), 10, 160),
        (Mean(10, -9, 19, 10), 0, 40),  # (20 / 10)^2
        (Mean(0.05, -0.07, 0.21, 56), 0, 896),  # (0.2 / 0.05)^2
    ],
)
def test_cases_needed(value, bound, expected):
    assert power.cases_needed(value, bound) == pytest.approx(expected, abs=1)


def test_at_the_bound_no_number_is_enough_and_without_an_interval_none_is_known():
    assert power.cases_needed(Mean(0, -1, 1, 10), 0) == inf
    assert isnan(power.cases_needed(Mean(1, nan, nan, 1), 0))
    assert isnan(power.cases_needed(Mean(nan, nan, nan, 0), 0))


def test_so_many_cases_see_the_distance_in_four_of_five_tries():
    assert norm.ppf(0.975) + norm.ppf(0.8) == pytest.approx(power.SEEN, abs=0.005)
    n, mean, sd = 50, 0.3, 1.6
    half = power.ERRORS * sd / sqrt(n)
    needed = power.cases_needed(Mean(mean, mean - half, mean + half, n), 0)
    draws = np.random.default_rng(0).normal(mean, sd, (4000, int(needed)))
    seen = draws.mean(1) > 1.96 * draws.std(1) / sqrt(needed)
    assert seen.mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    "mean, scale, bound, expected",
    [
        (0, POINTS, 10, 36),  # 0.025^(1/36) = 0.9026, 0.025^(1/35) = 0.8999
        (100, SHARE, 90, 36),
        (0, SHARE, 10, 36),
        (0, POINTS, 5, 72),
        (50, POINTS, 0, 10),  # a share of a third: 0.025^(1/10) = 0.691, 0.025^(1/9) = 0.664
    ],
)
def test_cases_that_go_on_agreeing(mean, scale, bound, expected):
    value = unanimous_interval(Mean(mean, mean, mean, 8), scale)
    assert power.agreed(value) is not None
    assert power.cases_needed(value, bound) == expected
    sign = 1 if bound > mean else -1
    for n, decides in ((expected, True), (expected - 1, False)):
        exact = unanimous_interval(Mean(mean, mean, mean, n), scale)
        end = exact.high if sign > 0 else exact.low
        assert (sign * (bound - end) > 0) == decides


def test_cases_that_agree_on_the_bound_never_decide():
    assert isnan(power.cases_needed(unanimous_interval(Mean(0, 0, 0, 8), POINTS), 0))


def test_only_the_exact_interval_is_that_of_cases_that_agree():
    exact = unanimous_interval(Mean(0, 0, 0, 8), POINTS)
    assert power.agreed(exact) == POINTS
    assert power.agreed(Mean(0, round(exact.low, 8), round(exact.high, 8), 8)) == POINTS
    assert power.agreed(Mean(0, exact.low, exact.high, 9)) is None
    assert power.agreed(Mean(5, 5, 5, 3)) is None


@pytest.mark.parametrize(
    "n, said",
    [
        (7, "about 7"),
        (36, "about 36"),
        (100, "about 100"),
        (151, "about 160"),
        (2001, "about 2,100"),
        (99_000, "about 99,000"),
        (100_001, "more than 100,000"),
        (inf, "more than 100,000"),
    ],
)
def test_words(n, said):
    assert power.words(n) == said
