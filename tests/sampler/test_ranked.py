"""The store of ranks beside its slow twin, one random script for both, and frequencies against 1/rank^α."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sampler import draws
from sampler.ranked import RankedStore, _distinct
from sampler.stores import PriorityStore

from .chance import count_variance, suspects
from .slow_twin import SlowStore

LARGEST = float(np.finfo(np.float64).max)
ROUNDING = 1e-13  # of the cumulative p: some hundreds of additions in float64


class SlowRanked(SlowStore):
    """A list sorted anew for every question; the masses of the places are exact whole numbers.

    What ``SlowStore`` says of samples in index order is said here of places in order of rank.
    """

    def __init__(self, size: int, alpha: float) -> None:
        self.alpha = alpha
        self.leaves = [1.0] * size

    def fill(self, priorities) -> None:
        self.leaves = [min(max(float(priority), -LARGEST), LARGEST) for priority in priorities]

    def set(self, index, priorities) -> None:
        for sample, priority in zip(index, priorities, strict=True):
            self.leaves[sample] = min(max(float(priority), -LARGEST), LARGEST)

    def record(self, newest, index, steps, priorities, smoothing) -> int:
        new = sum(newest[sample] < 0 for sample in index)
        for sample, step, priority in zip(index, steps, priorities, strict=True):
            if newest[sample] >= 0:
                priority = smoothing * self.leaves[sample] + (1.0 - smoothing) * priority
            self.set([sample], [priority])
            newest[sample] = step
        return new

    def order(self, uniform_fraction: float) -> list[int]:
        """The samples in the order of the cumulative p."""
        if uniform_fraction >= 1.0:
            return list(range(len(self.leaves)))
        return sorted(range(len(self.leaves)), key=lambda sample: (self.leaves[sample] == 0, -self.leaves[sample]))

    def places(self, index, uniform_fraction: float) -> list[int]:
        order = self.order(uniform_fraction)
        place_of = {sample: place for place, sample in enumerate(order)}
        return [place_of[sample] for sample in index]

    def masses(self, uniform_fraction: float) -> list[int]:
        above, below = uniform_fraction.as_integer_ratio()
        size, ranked = len(self.leaves), sum(leaf != 0 for leaf in self.leaves)
        units = [int(math.ldexp(rank**-self.alpha, 200)) for rank in range(1, ranked + 1)] + [0] * (size - ranked)
        if ranked == 0:
            return [1] * size
        return [(below - above) * size * unit + above * sum(units) for unit in units]

    def of_samples(self, of_places, uniform_fraction: float) -> np.ndarray:
        values = np.empty(len(self.leaves))
        values[self.order(uniform_fraction)] = of_places
        return values


class Pair:
    """A fast and a slow store that are told the same; every answer is compared."""

    def __init__(self, size: int, alpha: float) -> None:
        self.size = size
        self.fast, self.slow = RankedStore(size, alpha=alpha), SlowRanked(size, alpha)
        self.newest = np.full(size, -1, np.int32)
        self.newest_slow = [-1] * size

    def check(self) -> None:
        self.fast.check()
        assert self.fast.priorities().tolist() == self.slow.leaves
        ranked = sum(leaf != 0 for leaf in self.slow.leaves)
        total = math.fsum(rank**-self.fast.alpha for rank in range(1, ranked + 1))
        assert self.fast.total == pytest.approx(total, rel=1e-12, abs=0.0)
        assert (self.fast.total > 0) == (ranked > 0)
        mean = float(sum(map(Fraction, self.slow.leaves)) / self.size)
        scale = max(map(abs, self.slow.leaves))
        assert abs(self.fast.mean() - mean) <= 1e-14 * scale + 1e-300

    def fill(self, priorities) -> None:
        self.fast.fill(np.asarray(priorities, float))
        self.slow.fill(priorities)
        self.check()

    def set(self, index, priorities) -> None:
        self.fast.set(np.asarray(index, np.int64), np.asarray(priorities, float))
        self.slow.set(index, priorities)
        self.check()

    def record(self, index, steps, priorities, smoothing) -> None:
        arguments = np.asarray(index, np.int64), np.asarray(steps, np.int64), np.asarray(priorities, float)
        new = self.fast.record(self.newest, *arguments, smoothing)
        assert new == self.slow.record(self.newest_slow, index, steps, priorities, smoothing)
        assert self.newest.tolist() == self.newest_slow
        self.check()

    def probabilities(self, share) -> None:
        fast = self.fast.probabilities(share)
        assert fast.dtype == np.float64
        assert fast.sum() == pytest.approx(1.0, rel=1e-12)
        np.testing.assert_allclose(fast, self.slow.of_samples(self.slow.probabilities(share), share), rtol=1e-12)

    def find(self, positions, share) -> None:
        index, probability = self.fast.find(np.asarray(positions, float), share)
        assert index.dtype == np.int64
        assert probability.dtype == np.float64
        places = self.slow.places(index.tolist(), share)
        expected = np.array(self.slow.probabilities(share))[places]
        assert (expected > 0).all()
        np.testing.assert_allclose(probability, expected, rtol=1e-12, atol=0.0)
        assert self.slow.distance(places, positions, share) <= ROUNDING

    def find_distinct(self, count, offset, share) -> None:
        possible = self.size if share > 0 else np.count_nonzero(self.slow.leaves) or self.size
        if count > possible:
            with pytest.raises(ValueError, match=f"{count} distinct samples .* only {possible} have a priority"):
                self.fast.find_distinct(count, offset, share)
            return
        index, inclusion = self.fast.find_distinct(count, offset, share)
        assert index.dtype == np.int64
        assert index.size == count
        assert (np.diff(index) > 0).all()
        places = self.slow.places(index.tolist(), share)
        expected = self.slow.inclusion(count, share)
        assert sum(expected) == pytest.approx(count, rel=1e-11)
        np.testing.assert_allclose(inclusion, np.array(expected)[places], rtol=1e-11, atol=0.0)
        assert self.slow.distinct_distance(places, count, offset, share) <= count * 1e-12 + 1e-12


# --- one random script


class Script(RuleBasedStateMachine):
    """Whatever Hypothesis comes up with; few different numbers, so that there are ties and zeros."""

    values = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, 1.0, -1.0, 2.0, 5e-324, 1e308, -1e308, math.inf, -math.inf]),
        st.floats(-1e6, 1e6, allow_nan=False),
    )
    shares = st.sampled_from([0.0, 0.0, 1e-9, 0.3, 0.5, 0.999999, 1.0])
    positions = st.floats(0.0, 1.0, exclude_max=True)

    @initialize(size=st.sampled_from([1, 2, 3, 15, 16, 17, 40]), alpha=st.sampled_from([0.0, 0.5, 0.7, 1.0, 2.0, 10.0]))
    def start(self, size, alpha):
        self.pair = Pair(size, alpha)

    def some(self, data, unique=False):
        numbers = st.integers(0, self.pair.size - 1)
        return data.draw(st.lists(numbers, min_size=1, max_size=8, unique=unique))

    def one_for_each(self, data, index):
        return data.draw(st.lists(self.values, min_size=len(index), max_size=len(index)))

    @rule(data=st.data())
    def set(self, data):
        index = self.some(data)
        self.pair.set(index, self.one_for_each(data, index))

    @rule(value=values)
    def fill(self, value):
        self.pair.fill([value] * self.pair.size)

    @rule(data=st.data(), step=st.integers(0, 100), smoothing=st.sampled_from([0.0, 0.5, 0.99]))
    def record(self, data, step, smoothing):
        index = self.some(data, unique=True)
        self.pair.record(index, [step] * len(index), self.one_for_each(data, index), smoothing)

    @rule(share=shares, positions=st.lists(positions, min_size=1, max_size=8))
    def find(self, share, positions):
        self.pair.find(positions, share)

    @rule(share=shares, data=st.data(), offset=positions)
    def find_distinct(self, share, data, offset):
        self.pair.find_distinct(data.draw(st.integers(1, self.pair.size)), offset, share)

    @rule(share=shares)
    def probabilities(self, share):
        self.pair.probabilities(share)

    @invariant()
    def sound(self):
        if hasattr(self, "pair"):
            self.pair.fast.check()


TestScript = Script.TestCase
TestScript.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True, database=None)

KINDS = {
    "ones": lambda generator, size: np.ones(size),
    "zeros": lambda generator, size: np.zeros(size),
    "mostly zeros": lambda generator, size: np.where(generator.random(size) < 0.9, 0, generator.normal(size=size)),
    "of both signs": lambda generator, size: generator.normal(size=size),
    "many ties": lambda generator, size: generator.integers(-3, 4, size).astype(float),
    "all of float64": lambda generator, size: (
        generator.choice([-1, 1], size) * 10.0 ** generator.uniform(-320, 308, size)
    ),
}


@pytest.mark.parametrize("size", [1, 2, 3, 255, 1025])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.each_value
def test_a_seeded_script(kind, size):
    generator = np.random.default_rng([size, len(kind)])
    pair = Pair(size, 0.7)
    pair.fill(KINDS[kind](generator, size).tolist())
    for share in (0.0, 0.3, 0.999):
        pair.probabilities(share)
        pair.find([0.0, np.nextafter(1.0, 0.0), *generator.random(20)], share)
        for count in (1, min(size, 50), size):
            pair.find_distinct(count, generator.random(), share)
        index = generator.integers(0, size, 8).tolist()
        pair.set(index, KINDS[kind](generator, size)[index].tolist())
        index = generator.permutation(size)[:8].tolist()
        pair.record(index, [1] * len(index), generator.normal(size=len(index)).tolist(), 0.5)


# --- what the formulas say


def test_rank_one_is_the_highest_and_of_equals_the_lower_index_comes_first():
    store = RankedStore(6, alpha=1.0)
    store.fill([2.0, -1.0, 7.0, 2.0, 0.0, 1e300])
    ranks = np.array([3, 5, 2, 4, np.inf, 1])
    np.testing.assert_allclose(store.probabilities(), 1 / ranks / (1 / ranks).sum(), rtol=1e-14)
    store.set(np.array([0]), np.array([1.0]))
    assert store.probabilities().argsort().tolist() == [4, 1, 0, 3, 2, 5]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_the_floor_is_that_of_the_formula(alpha, share):
    store = RankedStore(3, alpha=alpha)
    store.fill([0.0, 1.0, 5.0])
    by_rank = np.array([0.0, 2.0**-alpha, 1.0]) / (1 + 2.0**-alpha)
    np.testing.assert_allclose(store.probabilities(share), (1 - share) * by_rank + share / 3, rtol=1e-14)


def test_all_zero_means_uniform():
    store = RankedStore(7, initial_priority=0.0)
    for share in (0.0, 0.3, 1.0):
        assert store.total == 0.0
        assert store.probabilities(share).tolist() == [1 / 7] * 7
        index, probability = store.find((np.arange(7) + 0.5) / 7, share)
        assert index.tolist() == list(range(7))
        assert probability.tolist() == [1 / 7] * 7
        assert store.find_distinct(7, 0.9, share)[0].tolist() == list(range(7))


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_every_sample_can_be_found_in_its_own_place(alpha, share):
    priorities = np.random.default_rng(0).permutation(np.arange(-20.0, 980.0))
    store = RankedStore(1000, alpha=alpha)
    store.fill(priorities)
    order = np.lexsort((np.arange(1000), -priorities, priorities == 0))
    probability = store.probabilities(share)[order]
    wanted = probability > 0
    index, found = store.find((np.cumsum(probability) - probability / 2)[wanted], share)
    assert index.tolist() == order[wanted].tolist()
    np.testing.assert_allclose(found, probability[wanted], rtol=1e-13)


def test_the_last_of_a_million_ranks_is_found_where_it_lies():
    store = RankedStore(1_000_000)
    least = (1e6**-0.7) / store.total
    index, probability = store.find(np.array([1 - least / 2, 1 - least * 1.5]))
    assert index.tolist() == [999_999, 999_998]
    assert probability == pytest.approx(least, rel=1e-5)
    assert store.nbytes < 150 * len(store)


def test_bytes_are_those_of_two_arrays_and_of_what_the_order_is_made_of():
    store = RankedStore(10)
    store.fill([1.0, 0.0, 2.0, 0.0, 0.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert store.nbytes == 8 * 10 + 8 * 11 + 120 * 7 + 40 * 3


def test_a_position_that_was_rounded_to_one_is_no_sample_of_priority_zero():
    store = RankedStore(4)
    store.fill([0.0, 3.0, 0.0, -2.0])
    assert store.find(np.array([1.0]))[0].tolist() == [3]
    assert store.find_distinct(2, np.nextafter(1.0, 0.0))[0].tolist() == [1, 3]


def test_places_that_rounding_put_together_are_told_apart():
    assert _distinct(np.array([3, 3, 4, 9, 9]), 10).tolist() == [3, 4, 5, 8, 9]
    assert _distinct(np.array([0, 2, 5]), 6).tolist() == [0, 2, 5]
    assert _distinct(np.array([6]), 6).tolist() == [5]
    assert _distinct(np.empty(0, np.int64), 6).size == 0


def test_just_the_ranked_samples_can_be_taken():
    store = RankedStore(5)
    store.fill([0.0, 2.0, 0.0, -7.0, 0.0])
    index, inclusion = store.find_distinct(2, 0.5)
    assert index.tolist() == [1, 3]
    assert inclusion.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="3 distinct samples were asked for, but only 2 have a priority other than 0"):
        store.find_distinct(3, 0.5)
    assert store.find_distinct(5, 0.99, 0.3)[0].tolist() == list(range(5))


def test_smoothing_acts_on_priorities_not_on_ranks():
    store, newest = RankedStore(3), np.array([-1, 4, 4], np.int32)
    new = store.record(newest, np.array([0, 1]), np.array([7, 7]), np.array([-3.0, -3.0]), 0.75)
    assert new == 1
    assert store.priorities().tolist() == [-3.0, 0.0, 1.0]
    assert newest.tolist() == [7, 7, 4]
    store.check()


# --- frequencies

SCHEMES = list(draws.NAMED)
BATCH = 64
BATCHES = {"multinomial": 4000, "systematic": 1500, "stratified": 1500, "without_replacement": 1500}
SHARES = [0.0, 0.3]


def some_priorities() -> np.ndarray:
    """300 of both signs, no two equal, but for a tenth that is zero."""
    generator = np.random.default_rng(5)
    return np.where(generator.random(300) < 0.1, 0.0, generator.normal(size=300))


def looks_wrong(scheme: str, store: RankedStore, store_share: float, share: float) -> bool:
    """Whether draws are not those of 1/rank^0.7 over ``some_priorities``; see chance.py for false alarms."""
    generator = np.random.default_rng(11)
    drawn = [
        draws.NAMED[scheme](store, BATCH, uniform_fraction=store_share, generator=generator)[0]
        for _ in range(BATCHES[scheme])
    ]
    slow = SlowRanked(300, 0.7)
    slow.fill(some_priorities())
    distinct = scheme == "without_replacement"
    expected = np.array(slow.inclusion(BATCH, share) if distinct else slow.probabilities(share))  # of the places
    expected *= 1 if distinct else BATCH
    counts = np.bincount(np.concatenate(drawn), minlength=300)[slow.order(share)]
    variance = BATCHES[scheme] * count_variance(scheme, expected, BATCH)
    return suspects(counts, BATCHES[scheme] * expected, variance).size > 0


def a_store(priorities, alpha=0.7) -> RankedStore:
    store = RankedStore(priorities.size, alpha=alpha)
    store.fill(priorities)
    return store


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_frequencies_are_those_of_the_formula(scheme, share):
    assert not looks_wrong(scheme, a_store(some_priorities()), share, share)


FAULTS = {
    "uniform instead of ranked": lambda priorities, share: (a_store(priorities, 0.0), share),
    "an exponent 10 % off": lambda priorities, share: (a_store(priorities, 0.77), share),
    "the lowest first": lambda priorities, share: (a_store(-priorities), share),
    "the sign forgotten": lambda priorities, share: (a_store(np.abs(priorities)), share),
    "an index off by one": lambda priorities, share: (a_store(np.roll(priorities, 1)), share),
    "zero has a rank": lambda priorities, share: (a_store(np.where(priorities == 0, 1e-300, priorities)), share),
    "the floor forgotten, or put where there is none": lambda priorities, share: (a_store(priorities), 0.3 - share),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.each_value
def test_the_test_of_frequencies_sees_planted_faults(fault, scheme):
    share = SHARES[-1]
    store, store_share = FAULTS[fault](some_priorities(), share)
    assert looks_wrong(scheme, store, store_share, share)


# --- what is refused, the state, the checker


@pytest.mark.parametrize(
    ("index", "priorities", "error"),
    [
        ([4], [1.0], IndexError),
        ([-1], [1.0], IndexError),
        ([0.5], [1.0], TypeError),
        ([0, 1], [1.0], ValueError),
        ([0, 1], [5.0, np.nan], ValueError),
    ],
)
def test_set_refuses_what_it_cannot_hold_and_changes_nothing(index, priorities, error):
    store = RankedStore(4)
    with pytest.raises(error):
        store.set(np.array(index), np.array(priorities))
    store.check()
    assert store.priorities().tolist() == [1.0] * 4


@pytest.mark.parametrize("priorities", [[1.0, 2.0], [1.0, 2.0, np.nan], 3.0])
def test_fill_refuses_what_it_cannot_hold_and_changes_nothing(priorities):
    store = RankedStore(3)
    with pytest.raises(ValueError, match="priorities must"):
        store.fill(priorities)
    store.check()
    assert store.priorities().tolist() == [1.0] * 3


def test_of_an_index_given_twice_the_last_counts_and_infinity_is_clamped():
    store = RankedStore(3)
    store.set(np.array([1, 0, 1, 2]), np.array([9.0, np.inf, 0.5, -np.inf]))
    assert store.priorities().tolist() == [LARGEST, 0.5, -LARGEST]
    assert store.mean() == pytest.approx(0.5 / 3, abs=LARGEST * 1e-16)
    store.fill([np.inf] * 3)
    assert store.mean() == LARGEST
    store.check()


@pytest.mark.parametrize(
    "arguments",
    [{"num_samples": 0}, {"alpha": -0.1}, {"alpha": 11}, {"alpha": np.nan}, {"initial_priority": np.inf}],
)
def test_a_store_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        RankedStore(**{"num_samples": 4, **arguments})


def test_the_state_is_a_copy_and_comes_back():
    store, other = RankedStore(300), RankedStore(300)
    store.fill(np.random.default_rng(0).integers(-5, 5, 300).astype(float))
    state = store.state_dict()
    other.load_state_dict(state)
    other.check()
    positions = np.random.default_rng(1).random(500)
    for one, two in zip(store.find(positions, 0.3), other.find(positions, 0.3), strict=True):
        assert np.array_equal(one, two)
    kept = state["priorities"].copy()
    store.fill(np.zeros(300))
    other.set(np.arange(300), np.ones(300))
    assert np.array_equal(state["priorities"], kept)


@pytest.mark.parametrize(
    "state",
    [
        {"alpha": 0.7, "priorities": np.ones(3)},
        {"alpha": 0.7, "priorities": np.full(4, np.nan)},
        {"alpha": 0.7, "priorities": np.full(4, np.inf)},
        {"alpha": 0.7, "priorities": np.full(4, "a")},
        {"alpha": 0.6, "priorities": np.ones(4)},
    ],
)
def test_a_state_that_is_none_changes_nothing(state):
    store = RankedStore(4, initial_priority=2.0)
    with pytest.raises((ValueError, TypeError), match=r"(priorities|alpha) must"):
        store.load_state_dict(state)
    assert store.priorities().tolist() == [2.0] * 4
    store.check()


def test_the_checker_sees_what_is_wrong():
    faults = [
        (lambda store: store._priorities.__setitem__(3, 9.0), "ranks"),
        (lambda store: store._priorities.__setitem__(3, 0.0), "ranks"),
        (lambda store: store._priorities.__setitem__(3, np.nan), "finite"),
        (lambda store: store._unranked.add(3), "without a rank"),
    ]
    for spoil, words in faults:
        store = RankedStore(20)
        store.check()
        spoil(store)
        with pytest.raises(AssertionError, match=words):
            store.check()


def test_what_the_protocol_asks_for_is_there():
    wanted = {name for name in vars(PriorityStore) if not name.startswith("_")} | {"__len__"}
    assert wanted <= set(dir(RankedStore))
    copy = RankedStore(2).priorities()
    copy[:] = 5.0
    assert RankedStore(2).priorities().tolist() == [1.0, 1.0]
