"""The compiled loops, each beside a plain one."""

from __future__ import annotations

import doctest
import math
from collections import Counter

import numpy as np
import pytest

from sampler import kernels, weights

from .chance import chi_square_limit, chi_square_rejects
from .slow_twin import clamped, merged

SIZES = [1, 2, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 70_000]


def tree(priorities):
    leaves, sums, starts = kernels.allocate(len(priorities))
    leaves[: len(priorities)] = priorities
    kernels.rebuild(leaves, sums, starts)
    return leaves, sums, starts


def find(priorities, positions, floor=0.0):
    positions = np.asarray(positions, float)
    index, mass = np.empty(positions.size, np.int64), np.empty(positions.size)
    kernels.find(*tree(priorities), len(priorities), floor, positions, index, mass)
    return index, mass


def test_the_example_in_the_first_docstring():
    assert doctest.testmod(kernels) == (0, 4)
    index, mass = find([3, 1, 4, 6, 2, 0, 9, 2, 5, 3, 0], [20.0, 0.0, 34.999, 14.0])
    assert index.tolist() == [6, 0, 9, 4]
    assert mass.tolist() == [9.0, 3.0, 3.0, 2.0]


# --- the tree


@pytest.mark.parametrize("size", SIZES)
def test_a_tree_has_room_for_all_and_begins_on_a_cache_line(size):
    leaves, sums, starts = kernels.allocate(size)
    assert leaves.dtype == np.float32
    assert sums.dtype == np.float64
    assert leaves.size % 16 == 0
    assert size <= leaves.size < size + 16
    assert leaves.ctypes.data % 64 == sums.ctypes.data % 64 == 0
    assert sums.size == starts[-1] + 1
    assert not leaves.any()
    assert not sums.any()


@pytest.mark.parametrize("size", SIZES)
def test_the_root_holds_the_sum(size):
    priorities = np.random.default_rng(size).pareto(0.5, size).astype(np.float32)
    _, sums, _ = tree(priorities)
    assert sums[-1] == pytest.approx(math.fsum(priorities), rel=1e-14)


@pytest.mark.parametrize("size", SIZES)
def test_refreshed_sums_are_rebuilt_sums_to_the_bit(size):
    generator = np.random.default_rng(size)
    leaves, sums, starts = tree(np.ones(size))
    for _ in range(50):
        index = generator.integers(0, size, 7)
        leaves[index] = 10.0 ** generator.uniform(-30, 30, 7)
        kernels.refresh(leaves, sums, starts, index)
    again = np.zeros_like(sums)
    kernels.rebuild(leaves, again, starts)
    assert np.array_equal(sums, again)


def test_sums_do_not_drift():
    leaves, sums, starts = tree(np.full(1000, 0.1, np.float32))
    before = sums.copy()
    everything = np.arange(1000)
    for scale in (1e30, 1e-30, 3.3):
        leaves[:1000] = scale
        kernels.refresh(leaves, sums, starts, everything)
    leaves[:1000] = 0.1
    kernels.refresh(leaves, sums, starts, everything)
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


@pytest.mark.parametrize("size", [1, 16, 17, 257, 4097])
def test_mass_before_is_the_cumulative_sum(size):
    priorities = np.random.default_rng(size).random(size).astype(np.float32)
    before = kernels.mass_before(*tree(priorities), size, 0.25, np.arange(size))
    expected = np.cumsum(np.concatenate([[0.0], priorities[:-1].astype(np.float64) + 0.25]))
    np.testing.assert_allclose(before, expected, rtol=1e-13)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("floor", [0.0, 0.5, 3.0])
def test_heavy_finds_all_that_reach_the_threshold(size, floor):
    generator = np.random.default_rng(size)
    priorities = generator.pareto(1.0, size).astype(np.float32)
    for threshold in [*np.quantile(priorities, [0.0, 0.5, 0.99, 1.0]), 1e9]:
        found = kernels.heavy(*tree(priorities), size, floor, threshold)
        expected = np.flatnonzero(priorities.astype(np.float64) + floor >= threshold)
        assert found.tolist() == expected.tolist()


# --- what comes back


def test_stranger_is_the_first_index_outside():
    assert kernels.stranger(np.array([0, 4, 5, -1]), 5) == 2
    assert kernels.stranger(np.array([0, -1, 5]), 5) == 1
    assert kernels.stranger(np.array([0, 4]), 5) == -1
    assert kernels.stranger(np.empty(0, np.int64), 5) == -1


def test_count_finite():
    assert kernels.count_finite(np.array([1.0, np.nan, np.inf, -np.inf, 1e308, 0.0])) == 3


def merge(index, losses, steps, newest):
    index, steps = np.asarray(index, np.int64), np.asarray(steps, np.int64)
    size = index.size
    newest = np.asarray(newest, np.int32)
    before = newest.copy()
    samples, means, stamps = np.empty(size, np.int64), np.empty(size), np.empty(size, np.int64)
    count, late, _ = kernels.merge(index, np.asarray(losses, float), steps, newest, samples, means, stamps)
    assert np.array_equal(newest, before)
    return samples[:count], means[:count], stamps[:count], late


@pytest.mark.parametrize("size", [1, 2, 3, 17, 256])
@pytest.mark.parametrize("stride", [1, 128, 2**20])
def test_merge_agrees_with_a_dictionary(size, stride):
    generator = np.random.default_rng(size + stride)
    newest = np.full(20 * stride + 1, -1, np.int32)
    newest[::stride] = generator.integers(-1, 5, 21)
    for _ in range(20):
        index = generator.integers(0, 21, size) * stride
        losses = np.where(generator.random(size) < 0.2, np.nan, generator.normal(size=size))
        steps = generator.integers(0, 8, size)
        samples, means, stamps, late = merge(index, losses, steps, newest)
        expected, expected_late = merged(index, losses, steps, newest)
        assert samples.tolist() == list(expected)  # in order of first appearance
        np.testing.assert_allclose(means, [mean for mean, _ in expected.values()], rtol=1e-13, atol=1e-15)
        assert stamps.tolist() == [stamp for _, stamp in expected.values()]
        assert late == expected_late


def test_merge_takes_the_mean_of_enormous_losses():
    _, means, _, _ = merge([3, 3, 3, 5, 5], [1.7e308, 1.7e308, 1.7e308, 1e308, -1e308], [0] * 5, [-1] * 9)
    np.testing.assert_allclose(means, [1.7e308, 0.0])


def test_merge_gives_two_equal_losses_back_unchanged_and_more_to_the_last_bit():
    _, means, _, _ = merge([0] * 2 + [1] * 7, [0.1] * 9, [0] * 9, [-1] * 2)
    assert means[0] == 0.1
    np.testing.assert_array_max_ulp(means, np.array([0.1, 0.1]), maxulp=1)


def test_merge_does_not_depend_on_the_order_of_two_losses():
    generator = np.random.default_rng(0)
    for _ in range(200):
        losses = generator.exponential(size=2)
        one, other = (merge([0, 0], pair, [0, 0], [-1])[1] for pair in (losses, losses[::-1]))
        assert one == other


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-320, 1e-45, 1e-38, 1.0, 1e38, 1e39, 1e308, np.inf])
def test_written_priorities_are_clamped(value):
    leaves, _, _ = kernels.allocate(3)
    kernels.assign(leaves, np.array([1]), np.array([value]))
    assert leaves[1] == np.float32(clamped(value))
    assert leaves[1] == 0 or kernels.SMALLEST <= leaves[1] <= kernels.LARGEST
    assert not leaves[[0, 2]].any()


def test_record_lets_a_first_priority_count_whole():
    leaves, newest = np.array([8.0, 8.0], np.float32), np.array([-1, 4], np.int32)
    new = kernels.record(leaves, newest, np.array([0, 1]), np.array([6, 7]), np.array([2.0, 2.0]), 0.75)
    assert new == 1
    assert leaves.tolist() == [2.0, 0.75 * 8 + 0.25 * 2]
    assert newest.tolist() == [6, 7]


# --- order and weight


def test_shuffle_keeps_pairs_together():
    generator = np.random.default_rng(0)
    index = np.arange(100)
    probability = index / 1000
    kernels.shuffle(generator.random(100), index, probability)
    assert sorted(index) == list(range(100))
    assert np.array_equal(probability, index / 1000)
    assert index.tolist() != list(range(100))


def test_shuffle_gives_every_order_alike():
    """Chi-square over the 24 orders of four, 48,000 independent shuffles."""
    generator = np.random.default_rng(1)
    seen = Counter()
    for _ in range(48_000):
        index = np.arange(4)
        kernels.shuffle(generator.random(4), index, np.empty(4))
        seen[tuple(index)] += 1
    assert len(seen) == 24
    assert not chi_square_rejects(list(seen.values()), np.full(24, 2000.0), 23)


def permutation(keys, size, first=0, count=None):
    index = np.empty(size - first if count is None else count, np.int64)
    kernels.permuted(keys, size, first, index)
    return index


def new_keys(generator):
    return generator.integers(0, 2**64, 2 * kernels.MIXING_ROUNDS, dtype=np.uint64)


@pytest.mark.parametrize("sizes", [range(1, 301), [2**16 - 1, 2**16, 2**16 + 1, 99_991, 1_000_000]])
def test_permuted_is_a_bijection(sizes):
    generator = np.random.default_rng(2)
    for size in sizes:
        assert np.array_equal(np.sort(permutation(new_keys(generator), size)), np.arange(size)), size


def test_permuted_goes_on_where_it_stopped():
    keys = new_keys(np.random.default_rng(3))
    whole = permutation(keys, 1000)
    parts = [permutation(keys, 1000, first, count) for first, count in ((0, 1), (1, 700), (701, 299))]
    assert np.array_equal(np.concatenate(parts), whole)


def places_look_uniform(orders):
    """Chi-square over sample x place.

    Each row and column of the table has a fixed sum, so (N-1)² numbers are free, and the statistic of a table
    of permutations is N/(N-1) times a chi-square.
    """
    keys, size = orders.shape
    counts = np.array([np.bincount(place, minlength=size) for place in orders.T])
    statistic = (size - 1) / size * np.square(counts - keys / size).sum() / (keys / size)
    return statistic < chi_square_limit((size - 1) ** 2)


def orders_look_uniform(orders):
    """Chi-square over whole permutations."""
    keys, size = orders.shape
    counts = np.unique(orders @ size ** np.arange(size), return_counts=True)[1]
    kinds = math.factorial(size)
    counts = np.pad(counts, (0, kinds - counts.size))
    return not chi_square_rejects(counts, np.full(kinds, keys / kinds), kinds - 1)


def permutations(size, keys):
    generator = np.random.default_rng(size)
    return np.array([permutation(new_keys(generator), size) for _ in range(keys)])


@pytest.mark.parametrize("size", [2, 3, 5, 8, 13, 64, 100, 257])
def test_permuted_brings_every_sample_to_every_place_alike(size):
    assert places_look_uniform(permutations(size, 4000 if size > 50 else 20_000))


@pytest.mark.parametrize(("size", "keys"), [(3, 30_000), (4, 50_000), (5, 50_000), (6, 70_000), (7, 100_000)])
def test_permuted_gives_every_order_alike(size, keys):
    assert orders_look_uniform(permutations(size, keys))


def test_the_tests_of_permutations_reject_what_is_none():
    generator = np.random.default_rng(9)
    rotated = (np.arange(5) + generator.integers(0, 5, (50_000, 1))) % 5
    assert places_look_uniform(rotated)  # every sample in every place alike, and yet only 5 orders of 120
    assert not orders_look_uniform(rotated)
    lazy = np.where(generator.random((20_000, 1)) < 0.05, np.arange(13), permutations(13, 20_000))
    assert not places_look_uniform(lazy)


def test_permuted_has_no_pattern_between_neighbours():
    """Chi-square over the difference of the first two entries, (π(1) - π(0)) mod N, for N = 40."""
    orders = permutations(40, 40_000)
    counts = np.bincount((orders[:, 1] - orders[:, 0]) % 40, minlength=40)
    assert counts[0] == 0
    assert not chi_square_rejects(counts[1:], np.full(39, 40_000 / 39), 38)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_weigh_agrees_with_the_formula(beta):
    probability = np.random.default_rng(4).random(100) / 50
    weight = np.empty(100, np.float32)
    total, squares, largest = kernels.weigh(probability, 1000, beta, weight)
    np.testing.assert_allclose(weight, weights.importance_weight(probability, 1000, beta), rtol=2e-7)
    assert total == pytest.approx(weight.astype(float).sum(), rel=1e-12)
    assert squares == pytest.approx(np.square(weight.astype(float)).sum(), rel=1e-12)
    assert largest == weight.max()


def test_uniform_weights_add_up_to_their_number():
    for size in (3, 49, 1797, 50_000):  # 49 * (1 / 49) is not 1 in float64
        weight = np.empty(32, np.float32)
        assert kernels.weigh(np.full(32, 1 / size), size, 1.0, weight) == (32.0, 32.0, 1.0)
        assert (weight == 1).all()
