"""A line at once, beside the same thing one number after the other."""

from __future__ import annotations

import math

import numba
import numpy as np
import pytest

from sampler.lines import LEAVES, SUMS, line_search, line_sum

LINES = {"leaves": (np.float32, LEAVES), "sums": (np.float64, SUMS)}


@numba.njit
def total(values, first):
    return line_sum(values, first)


@numba.njit
def search(values, first, floor, position):
    return line_search(values, first, floor, position)


@pytest.mark.parametrize("kind", LINES)
def test_a_line_fills_a_line_of_the_cache(kind):
    dtype, count = LINES[kind]
    assert count * np.dtype(dtype).itemsize == 64


@pytest.mark.parametrize("kind", LINES)
def test_the_sum_is_that_of_the_line_alone(kind):
    dtype, count = LINES[kind]
    generator = np.random.default_rng(0)
    for spread in (0, 3, 30):
        values = (10.0 ** generator.uniform(-spread, spread, 5 * count)).astype(dtype)
        for line in range(5):
            expected = math.fsum(values[line * count : (line + 1) * count])
            assert total(values, line * count) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_a_line_need_not_begin_on_a_line_of_the_cache(offset):
    values = np.arange(100.0)[offset:]
    assert total(values, 8) == values[8:16].sum()


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_the_search_agrees_with_a_cumulative_sum(kind, floor):
    """Whole numbers and quarters: every sum is exact, so the answer is beyond doubt."""
    dtype, count = LINES[kind]
    generator = np.random.default_rng(1)
    for _ in range(50):
        values = generator.integers(0, 4, 3 * count).astype(dtype)
        ends = np.cumsum(values[count : 2 * count] + floor)
        for position in [0.0, *ends, *(ends - 0.125), *generator.uniform(0, ends[-1] + 1, 20)]:
            child, left = search(values, count, floor, max(position, 0.0))
            expected = min(int(np.searchsorted(ends, max(position, 0.0), side="right")), count - 1)
            assert child == expected
            assert left == max(position, 0.0) - (ends[expected - 1] if expected else 0.0)


@pytest.mark.parametrize("kind", LINES)
def test_past_everything_lies_the_last(kind):
    dtype, count = LINES[kind]
    assert search(np.ones(count, dtype), 0, 0.0, np.inf) == (count - 1, np.inf)
    assert search(np.zeros(count, dtype), 0, 0.0, 0.0) == (count - 1, 0.0)


def test_the_example_in_the_docstring():
    values = np.zeros(16, np.float32)
    values[:4] = [3, 1, 4, 6]
    assert search(values, 0, 0.5, 9.0) == (2, 4.0)
