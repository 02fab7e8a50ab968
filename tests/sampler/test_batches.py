"""The loops over one batch, each beside a plain one."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from sampler import batches, weights

from .chance import chi_square_limit, chi_square_rejects
from .slow_twin import merged

# --- what comes back


def test_stranger_is_the_first_index_outside():
    assert batches.stranger(np.array([0, 4, 5, -1]), 5) == 2
    assert batches.stranger(np.array([0, -1, 5]), 5) == 1
    assert batches.stranger(np.array([0, 4]), 5) == -1
    assert batches.stranger(np.empty(0, np.int64), 5) == -1


@pytest.mark.parametrize(
    ("values", "least"),
    [
        ([], np.inf),
        ([3.0, -2.0, 7.0], -2.0),
        ([3.0, np.inf], 3.0),
        ([np.inf, np.inf], np.inf),
        ([np.inf, -np.inf, 0.0], -np.inf),
        ([1.0, np.nan, -1.0], np.nan),
        ([-np.inf, np.nan], np.nan),
        ([np.nan, np.inf], np.nan),
    ],
)
@pytest.mark.parametrize("times", [1, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_least_is_nan_where_one_is(values, least, times, dtype):
    np.testing.assert_equal(batches.least(np.array(values * times, dtype)), least)


def test_count_finite():
    assert batches.count_finite(np.array([1.0, np.nan, np.inf, -np.inf, 1e308, 0.0])) == 3


def merge(index, losses, steps, newest):
    index, steps = np.asarray(index, np.int64), np.asarray(steps, np.int64)
    size = index.size
    newest = np.asarray(newest, np.int32)
    before = newest.copy()
    samples, means, stamps = np.empty(size, np.int64), np.empty(size), np.empty(size, np.int64)
    count, late = batches.merge(index, np.asarray(losses, float), steps, newest, samples, means, stamps)
    assert np.array_equal(newest, before)
    return samples[:count], means[:count], stamps[:count], late


@pytest.mark.parametrize("steps", [[3], None], ids=["one step", "many"])
def test_a_merged_mean_is_the_same_to_the_bit_in_every_order(steps):
    """Thirty reports of four samples, some late or not finite, whose sums would round otherwise in another order."""
    generator = np.random.default_rng(0)
    newest = [-1, 2, 4, 0]
    index, losses = generator.integers(0, 4, 30), 10.0 ** generator.uniform(-17, 3, 30)
    losses[::7] = np.nan
    given = np.array(steps) if steps else generator.integers(0, 6, 30)
    means = set()
    for _ in range(50):
        order = generator.permutation(30)
        samples, mean, stamps, late = merge(index[order], losses[order], given if steps else given[order], newest)
        means.add((late, *sorted(zip(samples.tolist(), mean.tolist(), stamps.tolist(), strict=True))))
    assert len(means) == 1
    expected, _ = merged(index, losses, np.broadcast_to(given, 30), newest)
    for sample, mean, _ in sorted(means.pop()[1:]):
        assert mean == pytest.approx(expected[sample][0], rel=1e-14)
    assert len({losses[np.isfinite(losses)][generator.permutation(25)].sum() for _ in range(50)}) > 1


@pytest.mark.parametrize("size", [1, 2, 3, 17, 256])
@pytest.mark.parametrize("stride", [1, 128, 2**20])
def test_merge_agrees_with_a_dictionary(size, stride):
    generator = np.random.default_rng(size + stride)
    newest = np.full(20 * stride + 1, -1, np.int32)
    newest[::stride] = generator.integers(-1, 5, 21)
    for _ in range(20 if stride < 2**20 else 4):
        index = generator.integers(0, 21, size) * stride
        losses = np.where(generator.random(size) < 0.2, np.nan, generator.normal(size=size))
        steps = generator.integers(0, 8, size)
        samples, means, stamps, late = merge(index, losses, steps, newest)
        expected, expected_late = merged(index, losses, steps, newest)
        assert samples.tolist() == list(expected)  # in order of first appearance
        np.testing.assert_allclose(means, [mean for mean, _ in expected.values()], rtol=1e-13, atol=1e-15)
        assert stamps.tolist() == [stamp for _, stamp in expected.values()]
        assert late == expected_late


@pytest.mark.parametrize("wrong", [-2, -3, -14, -1000, -(2**31)])
def test_merge_touches_no_memory_but_its_own_whatever_the_newest_steps_are(wrong):
    """Of twelve reports some have the entry that such a number names; the others are passed over."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        newest = np.where(generator.random(8) < 0.5, wrong, 3)
        index, steps = generator.integers(0, 8, 12), generator.integers(1, 6, 12)
        losses = np.where(generator.random(12) < 0.2, np.nan, generator.random(12))
        samples, means, stamps, late = merge(index, losses, steps, newest)
        if wrong < -13:
            known = newest[index] == 3
            expected, expected_late = merged(index[known], losses[known], steps[known], newest)
            assert late == expected_late
            assert samples.size == len(expected)
            for sample, mean, stamp in zip(samples.tolist(), means, stamps, strict=True):
                assert (mean, stamp) == (pytest.approx(expected[sample][0], rel=1e-14), expected[sample][1])


def test_merge_takes_one_step_for_all():
    newest = [-1, 3, 5, 4]
    index, losses = [1, 0, 2, 1, 3], [1.0, 2.0, 3.0, 5.0, np.nan]
    one, each = (merge(index, losses, steps, newest) for steps in ([4], [4] * 5))
    assert [part.tolist() for part in one[:3]] == [part.tolist() for part in each[:3]] == [[1, 0], [3, 2], [4, 4]]
    assert one[3] == each[3] == 1


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


# --- how often each was drawn


def test_tally_counts_up_to_the_bound_and_names_who_reaches_it():
    counts, reached = np.array([0, 1, 2, 3], np.uint8), np.empty(7, np.int64)
    found = batches.tally(counts, np.array([0, 1, 3, 1, 2, 1, 0]), 3, reached)
    assert counts.tolist() == [2, 3, 3, 3]  # the last one was there before
    assert reached[:found].tolist() == [1, 2]


def test_tally_does_not_overflow_a_byte():
    counts, reached = np.zeros(1, np.uint8), np.empty(600, np.int64)
    assert batches.tally(counts, np.zeros(600, np.int64), 255, reached) == 1
    assert counts[0] == 255


# --- order and weight


@pytest.mark.parametrize("count", [1, 7, 1000, 999_983])
@pytest.mark.parametrize("offset", [0.0, 0.3, np.nextafter(1.0, 0.0)])
def test_spaced_positions_ascend_in_the_unit_interval(count, offset):
    positions = batches.spaced(count, offset)
    np.testing.assert_allclose(positions, (np.arange(count) + offset) / count, rtol=1e-15)
    assert (np.diff(positions) > 0).all()
    assert positions[0] >= 0.0
    assert positions[-1] <= 1.0


def test_shuffle_keeps_pairs_together():
    generator = np.random.default_rng(0)
    index = np.arange(100)
    probability = index / 1000
    batches.shuffle(generator.random(), index, probability)
    assert sorted(index) == list(range(100))
    assert np.array_equal(probability, index / 1000)
    assert index.tolist() != list(range(100))


def test_shuffle_gives_every_order_alike():
    """Chi-square over the 24 orders of four, 48,000 independent keys."""
    generator = np.random.default_rng(1)
    seen = Counter()
    for _ in range(48_000):
        index = np.arange(4)
        batches.shuffle(generator.random(), index, np.empty(4))
        seen[tuple(index)] += 1
    assert len(seen) == 24
    assert not chi_square_rejects(list(seen.values()), np.full(24, 2000.0), 23)


@pytest.mark.parametrize("size", [2, 7, 33])
def test_shuffle_brings_every_entry_to_every_place_alike(size):
    """Chi-square over entry x place."""
    generator = np.random.default_rng(size)
    orders = np.tile(np.arange(size), (20_000, 1))
    for order in orders:
        batches.shuffle(generator.random(), order, np.empty(size))
    assert places_look_uniform(orders)


def test_shuffle_tells_neighbouring_keys_apart():
    """The ends of [0, 1), and keys that differ in their last bit, 2^-53."""
    keys = [0.0, 2.0**-53, 0.5, 0.5 + 2.0**-53, 1.0 - 2.0**-53]
    orders = []
    for key in keys:
        index = np.arange(30)
        batches.shuffle(key, index, np.empty(30))
        assert sorted(index) == list(range(30))
        orders.append(tuple(index))
    assert len(set(orders)) == len(keys)


def permutation(keys, size, first=0, count=None):
    index = np.empty(size - first if count is None else count, np.int64)
    batches.permuted(keys, size, first, index)
    return index


def new_keys(generator):
    return generator.integers(0, 2**64, 2 * batches.MIXING_ROUNDS, dtype=np.uint64)


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
@pytest.mark.every(2)
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
    weight, told = np.empty(100, np.float32), np.empty(4)
    batches.weigh(probability, 1000, beta, weight, told)
    drawn, total, squares, largest = told
    assert drawn == 100
    np.testing.assert_allclose(weight, weights.importance_weight(probability, 1000, beta), rtol=2e-7)
    assert total == pytest.approx(weight.astype(float).sum(), rel=1e-12)
    assert squares == pytest.approx(np.square(weight.astype(float)).sum(), rel=1e-12)
    assert largest == weight.max()


def test_uniform_weights_add_up_to_their_number():
    for size in (3, 49, 1797, 50_000):  # 49 * (1 / 49) is not 1 in float64
        weight, told = np.empty(32, np.float32), np.empty(4)
        batches.weigh(np.full(32, 1 / size), size, 1.0, weight, told)
        assert told.tolist() == [32.0, 32.0, 32.0, 1.0]
        assert (weight == 1).all()
