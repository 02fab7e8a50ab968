"""Means and tests against closed forms, and their error rates by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.statistics import holm, paired_p_value, t_interval


def test_the_interval_is_students():
    # Two values: t(.975, 1) = tan(.475 π); s/√2 is half their distance.
    mean, half = t_interval([1.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, math.tan(0.475 * math.pi)))
    # Three values: with t = sqrt(2) x / sqrt(1 - x²), x = .95, for two degrees of freedom.
    mean, half = t_interval([0.0, 0.0, 3.0])
    quantile = math.sqrt(2) * 0.95 / math.sqrt(1 - 0.95**2)
    assert (mean, half) == pytest.approx((1.0, quantile * math.sqrt(3) / math.sqrt(3)))


def test_one_value_has_no_interval_and_none_no_mean():
    mean, half = t_interval([2.0])
    assert mean == 2.0
    assert math.isnan(half)
    assert all(map(math.isnan, t_interval([])))


def test_the_p_value_belongs_to_the_interval():
    """Zero is at the edge of the interval exactly where p is one less the confidence."""
    values = np.array([0.3, 0.1, 0.5, 0.4, 0.2])
    for confidence in (0.5, 0.95, 0.999):
        mean, half = t_interval(values, confidence)
        assert paired_p_value(values - mean + half) == pytest.approx(1 - confidence)
        assert paired_p_value(values - mean - half) == pytest.approx(1 - confidence)


def test_differences_without_spread_leave_no_doubt():
    assert paired_p_value([0.0, 0.0, 0.0]) == 1.0
    assert paired_p_value([0.5, 0.5, 0.5]) == 0.0
    assert math.isnan(paired_p_value([0.5]))


def test_without_a_difference_p_is_uniform():
    """20,000 tests of five: below .05 are 1,000 ± 6 deviations of 31 (a false alarm in 5e8)."""
    values = np.random.default_rng(0).normal(size=(20_000, 5))
    found = sum(paired_p_value(row) < 0.05 for row in values)
    assert abs(found - 1000) < 6 * 30.9
    # A normal quantile in the place of Student's would have found 2,400 and more.
    normal = (np.abs(values.mean(axis=1)) * math.sqrt(5) / values.std(axis=1, ddof=1) > 1.96).sum()
    assert abs(normal - 1000) > 6 * 30.9


def test_holm_multiplies_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    adjusted = holm([math.nan, 0.02])
    assert math.isnan(adjusted[0])
    assert adjusted[1] == 0.02
