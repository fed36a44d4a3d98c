"""How many cases would decide a claim that its interval leaves open."""

from __future__ import annotations

from math import ceil, floor, inf, isclose, isnan, log, log1p, log10, nan

from .stats import POINTS, SHARE, Mean, unanimous_interval

ERRORS = 1.96  #: standard errors in half of a 95 % interval
#: standard errors between a mean and a bound that are seen with 80 % power by a two-sided test at
#: 5 %: 1.96 + 0.84
SEEN = 2.8
COUNTED = 100_000  #: cases; of more it is not said how many


def cases_needed(value: Mean, bound: float) -> float:
    """How many cases would tell a mean from ``bound``, were it where it was measured.

    n (2.8 s / d)^2, rounded up, s = (high - low) / (2 x 1.96): standard error of the mean of n
    cases; d: its distance from the bound; inf where it lies at the bound. For 80 % power at
    two-sided 5 %.
    Where all cases agree (``agreed``) there is no s. It is then the number of cases, all agreeing,
    whose exact interval ends before the bound; nan at the bound, where no number does.
    nan without an interval.
    """
    distance = abs(value.mean - bound)
    if isnan(value.low) or isnan(distance):
        return nan
    if scale := agreed(value):
        side = value.mean - scale[0] if bound < value.mean else scale[1] - value.mean
        if not 0 < distance < side:
            return nan
        return floor(log(0.025) / log1p(-distance / side)) + 1
    if not distance:
        return inf
    error = (value.high - value.low) / (2 * ERRORS)
    return ceil(value.n * (SEEN * error / distance) ** 2)


def agreed(value: Mean) -> tuple[float, float] | None:
    """The scale of cases that all agree, whose interval is ``unanimous_interval``; else None."""
    if not value.low < value.high:
        return None
    point = Mean(value.mean, value.mean, value.mean, value.n)
    for scale in (SHARE, POINTS):
        exact = unanimous_interval(point, scale)
        ends = ((exact.low, value.low), (exact.high, value.high))
        if all(isclose(*pair, rel_tol=1e-6, abs_tol=1e-6) for pair in ends):
            return scale
    return None


def words(n: float) -> str:
    """A number of cases, rounded up to two digits: "about 160", "more than 100,000"."""
    if n > COUNTED:
        return f"more than {COUNTED:,}"
    unit = 10 ** max(floor(log10(max(n, 1))) - 1, 0)
    return f"about {ceil(n / unit) * unit:,}"
