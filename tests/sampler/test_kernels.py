"""The compiled loops, each beside a plain one."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from sampler import kernels

from .slow_twin import clamped

SIZES = [1, 2, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 70_000]


def tree(priorities):
    leaves, sums = kernels.allocate(len(priorities))
    leaves[: len(priorities)] = priorities
    kernels.rebuild(leaves, sums)
    return leaves, sums


def find(priorities, positions, floor=0.0):
    """The samples under the masses ``positions``, and their own masses."""
    masses = np.array(positions, float)
    index = np.empty(masses.size, np.int64)
    kernels.find(*tree(priorities), len(priorities), floor, 1.0, masses, index)
    return index, masses


def test_the_example_in_the_first_docstring():
    assert doctest.testmod(kernels) == (0, 4)
    index, mass = find([3, 1, 4, 6, 2, 0, 9, 2, 5, 3, 0], [20.0, 0.0, 34.999, 14.0])
    assert index.tolist() == [6, 0, 9, 4]
    assert mass.tolist() == [9.0, 3.0, 3.0, 2.0]


# --- the tree


@pytest.mark.parametrize("size", SIZES)
def test_a_tree_has_room_for_all_and_begins_on_a_cache_line(size):
    leaves, sums = kernels.allocate(size)
    assert leaves.dtype == np.float32
    assert sums.dtype == np.float64
    assert leaves.size % 16 == 0
    assert size <= leaves.size < size + 16
    assert leaves.ctypes.data % 64 == sums.ctypes.data % 64 == 0
    nodes, lines = leaves.size // 16, [1]
    while nodes > 1:  # every level but the root is whole lines of eight
        lines.append(-(-nodes // 8) * 8)
        nodes = -(-nodes // 8)
    assert sums.size == sum(lines)
    assert not leaves.any()
    assert not sums.any()


@pytest.mark.parametrize("size", SIZES)
def test_the_root_holds_the_sum(size):
    priorities = np.random.default_rng(size).pareto(0.5, size).astype(np.float32)
    _, sums = tree(priorities)
    assert sums[-1] == pytest.approx(math.fsum(priorities), rel=1e-14)


@pytest.mark.parametrize("size", SIZES)
def test_refreshed_sums_are_rebuilt_sums_to_the_bit(size):
    generator = np.random.default_rng(size)
    leaves, sums = tree(np.ones(size))
    for count in [7] * 40 + [1, 3, 20, 300, 5000]:  # few or many beside the nodes of a level
        index = generator.integers(0, size, count)
        leaves[index] = 10.0 ** generator.uniform(-30, 30, count)
        kernels.refresh(leaves, sums, index)
    again = np.zeros_like(sums)
    kernels.rebuild(leaves, again)
    assert np.array_equal(sums, again)


@pytest.mark.parametrize("size", [*range(1, 10), 64, 65, 513, 70_000])
def test_a_tree_of_sums_alone(size):
    """Its lowest level holds any numbers; it is as one of leaves."""
    generator, sums, numbers = np.random.default_rng(size), kernels.allocate_sums(size), np.zeros(size)
    for count in (1, 3, 20, 300, 5000):
        index = generator.permutation(size)[:count]
        numbers[index] = generator.integers(-1000, 1000, index.size)  # every sum is exact
        kernels.put(sums, size, index, numbers[index])
        assert np.array_equal(sums[:size], numbers)
        assert sums[-1] == numbers.sum()


def test_sums_do_not_drift():
    leaves, sums = tree(np.full(1000, 0.1, np.float32))
    before = sums.copy()
    everything = np.arange(1000)
    for scale in (1e30, 1e-30, 3.3):
        leaves[:1000] = scale
        kernels.refresh(leaves, sums, everything)
    leaves[:1000] = 0.1
    kernels.refresh(leaves, sums, everything)
    assert np.array_equal(sums, before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_find_agrees_with_a_cumulative_sum(size, floor):
    generator = np.random.default_rng(size)
    # Whole numbers and a floor of quarters: every sum is exact, so the answer is beyond doubt.
    floor = math.floor(floor * 4) / 4
    priorities = generator.integers(0, 5, size)
    priorities[generator.integers(size)] = 1
    ends = np.cumsum(priorities + floor)
    positions = np.concatenate([generator.uniform(0, ends[-1], 200), [0.0], ends[:200], [ends[-1] + 1]])
    index, mass = find(priorities, positions, floor)
    last = np.flatnonzero(priorities + floor)[-1]  # under every position from the total on
    assert np.array_equal(index, np.minimum(np.searchsorted(ends, positions, side="right"), last))
    assert np.array_equal(mass, priorities[index] + floor)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 100, 256, 257, 4097])
def test_a_sample_without_mass_is_never_found_not_even_past_the_end(size):
    generator = np.random.default_rng(size)
    for _ in range(30):
        priorities = np.where(generator.random(size) < 0.9, 0, 10.0 ** generator.uniform(-20, 20, size))
        priorities[generator.integers(size)] = 0.1
        total = tree(priorities)[1][-1]
        edges = np.cumsum(priorities.astype(np.float32), dtype=np.float64)
        positions = np.concatenate(
            [[0.0, total, np.nextafter(total, 0), total * (1 + 1e-12)], edges, np.nextafter(edges, 0)]
        )
        index, mass = find(priorities, positions)
        assert index.min() >= 0
        assert index.max() < size
        assert (priorities[index] > 0).all()
        assert (mass > 0).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("floor", [0.0, 0.7])
def test_what_rounding_carries_past_the_end_is_the_last_sample(size, floor):
    """Not one that is merely in the last line, or under the last node."""
    priorities = np.random.default_rng(size).random(size) + 0.1
    total = tree(priorities)[1][-1] + floor * size
    for count in (1, 3):
        index, _ = find(priorities, [total, total * (1 + 1e-15), 2 * total][:count], floor)
        assert index.tolist() == [size - 1] * count


@pytest.mark.parametrize("size", [1, 17, 257, 4097, 70_000])
@pytest.mark.parametrize("count", [1, 8, 5000])
def test_find_takes_shares_of_a_total_and_gives_shares(size, count):
    """The same samples as for masses, in any order of the positions, whether many or few of them are asked for.

    Whole numbers whose total is a power of two, so that every share is exact.
    """
    generator = np.random.default_rng([size, count])
    priorities = generator.integers(0, 3, size)
    total = float(2 ** int(priorities.sum() + size).bit_length())
    priorities[0] += total - priorities.sum() - size
    ends = np.cumsum(priorities + 1.0)
    positions = generator.integers(0, int(total) * 4, count) / (4.0 * total)
    expected = np.searchsorted(ends, positions * total, side="right")
    for order in (np.arange(count), np.argsort(positions), np.argsort(-positions)):
        index, share = np.empty(count, np.int64), positions[order]
        kernels.find(*tree(priorities), size, 1.0, total, share, index)
        assert np.array_equal(index, expected[order])
        assert np.array_equal(share, (priorities[index] + 1.0) / total)


@pytest.mark.parametrize("size", [1, 16, 17, 257, 4097])
def test_mass_before_is_the_cumulative_sum(size):
    priorities = np.random.default_rng(size).random(size).astype(np.float32)
    before = np.empty(size)
    kernels.mass_before(*tree(priorities), 0.25, np.arange(size), before)
    expected = np.cumsum(np.concatenate([[0.0], priorities[:-1].astype(np.float64) + 0.25]))
    np.testing.assert_allclose(before, expected, rtol=1e-13)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("floor", [0.0, 0.5, 3.0])
def test_heavy_finds_all_that_reach_the_threshold(size, floor):
    generator = np.random.default_rng(size)
    priorities = generator.pareto(1.0, size).astype(np.float32)
    for threshold in [*np.quantile(priorities, [0.0, 0.5, 0.99, 1.0]), 1e9]:
        room = np.empty(size, np.int64), np.empty(size, np.int64)
        found = kernels.heavy(*tree(priorities), size, floor, threshold, *room)
        expected = np.flatnonzero(priorities.astype(np.float64) + floor >= threshold)
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("chosen", "certain", "expected"),
    [
        ([0, 3, 7], [2, 5], [0, 3, 7]),
        ([0, 0, 0], [], [0, 1, 3]),  # sample 2 has no mass
        ([1, 2, 5], [5, 6], [1, 3, 7]),
        ([3, 3, 4], [3, 4], [5, 6, 7]),
        ([7, 7, 7], [], [5, 6, 7]),
        ([4, 5, 7], [6, 7], [3, 4, 5]),
        ([7, 7, 7], [6, 7], [3, 4, 5]),
        ([6, 7, 7, 7], [0, 4, 6], [1, 3, 5, 7]),
    ],
)
def test_what_rounding_threw_together_is_parted(chosen, certain, expected):
    leaves, _ = tree([1, 1, 0, 1, 1, 1, 1, 1])
    chosen = np.array(chosen)
    kernels._part(leaves, 8, 0.0, np.array(certain, np.int64), chosen)
    assert chosen.tolist() == expected


# --- the leaves


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-320, 1e-45, 1e-38, 1.0, 1e38, 1e39, 1e308, np.inf])
def test_written_priorities_are_clamped(value):
    leaves, sums = kernels.allocate(3)
    kernels.write(leaves, sums, np.array([1]), np.array([value]))
    assert leaves[1] == np.float32(clamped(value))
    assert leaves[1] == 0 or kernels.SMALLEST <= leaves[1] <= kernels.LARGEST
    assert not leaves[[0, 2]].any()
    assert sums[-1] == leaves[1]


def test_of_a_sample_written_twice_the_last_counts():
    leaves, sums = kernels.allocate(40)
    kernels.write(leaves, sums, np.array([33, 2, 33]), np.array([1.0, 2.0, 5.0]))
    assert (leaves[33], leaves[2], sums[-1]) == (5.0, 2.0, 7.0)


def test_record_lets_a_first_priority_count_whole():
    leaves, sums = tree([8.0, 8.0])
    newest = np.array([-1, 4], np.int32)
    new = kernels.record(leaves, sums, newest, np.array([0, 1]), np.array([6, 7]), np.array([2.0, 2.0]), 0.75)
    assert new == 1
    assert leaves[:2].tolist() == [2.0, 0.75 * 8 + 0.25 * 2]
    assert sums[-1] == leaves.sum()
    assert newest.tolist() == [6, 7]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fill_writes_all_and_clamps(dtype):
    priorities = np.array([0.0, 1e-45, 3.0, 1e38, np.inf], dtype)
    leaves, _ = kernels.allocate(5)
    kernels.fill(leaves, priorities)
    assert leaves[:5].tolist() == [clamped(value) for value in priorities.tolist()]
    assert not leaves[5:].any()


def test_shares_are_those_of_the_formula():
    leaves, sums = tree([3.0, 0.0, 5.0])
    share = np.empty(3)
    kernels.shares(leaves, 2.0, sums[-1] + 6.0, share)
    np.testing.assert_allclose(share, [5 / 14, 2 / 14, 7 / 14], rtol=1e-15)


def test_fade_moves_the_stale_ones_among_those_given_a_share_of_the_way():
    leaves, sums = tree([8.0, 8.0, 0.0, 2.0, 8.0])
    newest = np.array([1, 5, -1, 4, 1], np.int32)
    kernels.fade(leaves, sums, newest, np.arange(4), 5, 0.25, 4.0)
    assert leaves[:5].tolist() == [7.0, 8.0, 1.0, 2.5, 8.0]  # the second is as new as 5, the last was not given
    assert sums[-1] == leaves.sum()
    kernels.fade(leaves, sums, newest, np.array([2]), 5, 0.5, 0.0)
    assert leaves[2] == 0.5


def test_what_fades_stays_above_zero_and_in_range():
    leaves, sums = tree([2.0 * kernels.SMALLEST, kernels.LARGEST])
    newest = np.zeros(2, np.int32)
    kernels.fade(leaves, sums, newest, np.array([0]), 5, 0.99, 0.0)
    kernels.fade(leaves, sums, newest, np.array([1]), 5, 0.99, 2.0 * kernels.LARGEST)
    assert leaves[:2].tolist() == [np.float32(kernels.SMALLEST), np.float32(kernels.LARGEST)]
