"""The fast store beside its slow twin, driven by one random script; invariants checked after every change."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sampler import draws, kernels
from sampler.stores import PriorityStore, ProportionalStore, RankedStore

from .slow_twin import LARGEST, SMALLEST, SlowStore
from .states import interrupted

SIZES = [1, 2, 3, 15, 16, 17, 31, 255, 256, 257, 1000, 4097]
FRACTIONS = [0.0, 0.3, 0.999]
ROUNDING = 1e-14  # of the cumulative p: some ten additions in float64


class Pair:
    """A fast and a slow store that are told the same; every answer is compared."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fast, self.slow = ProportionalStore(size), SlowStore(size)
        self.newest = np.full(size, -1, np.int32)
        self.newest_slow = [-1] * size

    def check(self) -> None:
        self.fast.check()
        leaves = self.fast.priorities()
        # One unit in the last place of float32 is left to the machine's way of multiplying and adding.
        np.testing.assert_allclose(leaves, self.slow.leaves, rtol=1.2e-7, atol=0.0)
        self.slow.leaves = leaves.tolist()
        assert self.fast.total == pytest.approx(math.fsum(leaves), rel=1e-14, abs=0.0)

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

    def probabilities(self, uniform_fraction) -> None:
        fast = self.fast.probabilities(uniform_fraction)
        assert fast.dtype == np.float64
        assert fast.sum() == pytest.approx(1.0, rel=1e-12)
        np.testing.assert_allclose(fast, self.slow.probabilities(uniform_fraction), rtol=1e-13, atol=0.0)

    def find(self, positions, uniform_fraction) -> None:
        index, probability = self.fast.find(np.asarray(positions, float), uniform_fraction)
        assert index.dtype == np.int64
        assert probability.dtype == np.float64
        assert index.min() >= 0
        assert index.max() < self.size
        expected = np.array(self.slow.probabilities(uniform_fraction))
        assert (expected[index] > 0).all()
        np.testing.assert_allclose(probability, expected[index], rtol=1e-13, atol=0.0)
        assert self.slow.distance(index.tolist(), positions, uniform_fraction) <= ROUNDING

    def find_distinct(self, count, offset, uniform_fraction) -> None:
        before = self.fast.priorities()
        possible = self.size if uniform_fraction > 0 else np.count_nonzero(before) or self.size
        if count > possible:
            with pytest.raises(ValueError, match=f"{count} distinct samples .* only {possible} have a priority"):
                self.fast.find_distinct(count, offset, uniform_fraction)
        else:
            index, inclusion = self.fast.find_distinct(count, offset, uniform_fraction)
            assert (np.diff(index) > 0).all()
            expected = self.slow.inclusion(count, uniform_fraction)
            assert sum(expected) == pytest.approx(count, rel=1e-11)
            np.testing.assert_allclose(inclusion, np.array(expected)[index], rtol=1e-11, atol=0.0)
            distance = self.slow.distinct_distance(index.tolist(), count, offset, uniform_fraction)
            assert distance <= count * 1e-12 + 1e-12
        assert np.array_equal(self.fast.priorities(), before)  # it takes samples out and puts them back
        self.check()


# --- one random script


class Script(RuleBasedStateMachine):
    """Whatever Hypothesis comes up with."""

    values = st.one_of(
        st.sampled_from([0.0, 1.0, SMALLEST, SMALLEST / 2, 5e-324, LARGEST, 1e39, 1e308]),
        st.floats(0.0, 1e12, allow_nan=False),
    )
    shares = st.sampled_from([0.0, 0.0, 1e-9, 0.3, 0.5, 0.999999, 1.0])
    positions = st.floats(0.0, 1.0, exclude_max=True)

    @initialize(size=st.sampled_from([1, 2, 3, 15, 16, 17, 40, 255, 256, 257]))
    def start(self, size):
        self.pair = Pair(size)

    def some(self, data, least=1, unique=False):
        numbers = st.integers(0, self.pair.size - 1)
        return data.draw(st.lists(numbers, min_size=least, max_size=8, unique=unique))

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
        self.pair.find_distinct(data.draw(st.integers(1, min(self.pair.size, 20))), offset, share)

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
    "mostly zeros": lambda generator, size: np.where(generator.random(size) < 0.95, 0, generator.random(size)),
    "1 : 1e12": lambda generator, size: 10.0 ** generator.uniform(0, 12, size),
    "all of float64": lambda generator, size: 10.0 ** generator.uniform(-320, 308, size),
    "subnormal": lambda generator, size: generator.uniform(0, 1e-39, size),
    "enormous": lambda generator, size: np.full(size, 1e308),
    "one leaf": lambda generator, size: np.eye(1, size, generator.integers(size))[0] * 3.0,
    "one leaf over a floor": lambda generator, size: np.eye(1, size, generator.integers(size))[0] * 1e9 + 1e-3,
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_seeded_script(kind, size):
    generator = np.random.default_rng([size, len(kind)])
    pair = Pair(size)
    pair.fill(KINDS[kind](generator, size).tolist())
    for uniform_fraction in FRACTIONS:
        count = int(generator.integers(1, min(size, 50) + 1))
        pair.probabilities(uniform_fraction)
        pair.find([0.0, np.nextafter(1.0, 0.0), *generator.random(20)], uniform_fraction)
        pair.find_distinct(count, generator.random(), uniform_fraction)
        pair.find_distinct(min(size, 50), 0.0, uniform_fraction)
        index = generator.integers(0, size, 8).tolist()
        pair.set(index, KINDS[kind](generator, size)[index].tolist())
        index = generator.permutation(size)[:8].tolist()
        pair.record(index, [count] * len(index), generator.random(len(index)).tolist(), 0.5)


# --- what the formulas say


@pytest.mark.parametrize("size", [1, 16, 17, 257, 4097])
def test_every_sample_of_positive_priority_can_be_found(size):
    generator = np.random.default_rng(size)
    priorities = np.where(generator.random(size) < 0.3, 0.0, 10.0 ** generator.uniform(0, 12, size))
    priorities[generator.integers(size)] = 1.0
    store = ProportionalStore(size)
    store.fill(priorities)
    probability = store.probabilities()
    middles = np.cumsum(probability) - probability / 2
    positive = np.flatnonzero(priorities)
    index, _ = store.find(middles[positive])
    wide = probability[positive] > 1e-13  # a share below the rounding of the middles proves nothing
    assert wide.mean() > 0.5
    assert np.array_equal(index[wide], positive[wide])


def test_the_least_of_a_large_store_can_be_found():
    size = 1_000_000
    store = ProportionalStore(size, initial_priority=1e6)
    store.set(np.array([777_777]), np.array([1.0]))
    begin = 777_777 * 1e6 / store.total
    index, probability = store.find(np.array([begin + 0.5 / store.total]))
    assert index.tolist() == [777_777]
    assert probability.item() == pytest.approx(1.0 / store.total, rel=1e-12)
    store.check()


@pytest.mark.parametrize("batch", [100, 100_000])
def test_ten_million_samples_are_each_found_in_their_own_place(batch):
    """Equal priorities that are no sum of powers of two: the middle of sample i lies at (i + ½) / N."""
    size = 10_000_000
    store = ProportionalStore(size, initial_priority=0.1)
    assert store.total == pytest.approx(size * float(np.float32(0.1)), rel=1e-13)
    expected = np.sort(np.random.default_rng(0).integers(0, size, batch))
    expected[[0, -1]] = 0, size - 1
    for share in (0.0, 0.3):
        index, probability = store.find((expected + 0.5) / size, share)
        assert np.array_equal(index, expected)
        np.testing.assert_allclose(probability, 1 / size, rtol=1e-12)


def test_the_floor_is_that_of_the_formula():
    priorities = np.array([0.0, 1.0, 3.0, 0.0, 12.0])
    store = ProportionalStore(5)
    store.fill(priorities)
    for share in (0.0, 0.1, 0.5, 0.9):
        expected = (1 - share) * priorities / 16 + share / 5
        np.testing.assert_allclose(store.probabilities(share), expected, rtol=1e-14)


def test_all_zero_means_uniform():
    store = ProportionalStore(7, initial_priority=0.0)
    for share in (0.0, 0.3, 1.0):
        assert store.probabilities(share).tolist() == [1 / 7] * 7
        index, probability = store.find((np.arange(7) + 0.5) / 7, share)
        assert index.tolist() == list(range(7))
        assert probability.tolist() == [1 / 7] * 7


@pytest.mark.parametrize(("size", "count"), [(1, 1), (7, 3), (7, 7), (16, 5), (1000, 999)])
def test_distinct_uniform_samples_have_equal_chances(size, count):
    store = ProportionalStore(size, initial_priority=0.0)
    counts = np.zeros(size)
    for start in range(size):
        index, inclusion = store.find_distinct(count, (start + 0.5) / size)
        assert np.unique(index).size == count
        assert (inclusion == count / size).all()
        counts[index] += 1
    assert (counts == count).all()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_all_samples_can_be_taken(share):
    for size in (1, 3, 16, 40):
        store = ProportionalStore(size)
        store.fill(np.arange(1.0, size + 1))
        index, inclusion = store.find_distinct(size, 0.9, share)
        assert index.tolist() == list(range(size))
        np.testing.assert_allclose(inclusion, 1.0, rtol=1e-12)


def test_just_the_positive_samples_can_be_taken():
    store = ProportionalStore(5)
    store.fill([0.0, 2.0, 0.0, 7.0, 0.0])
    index, inclusion = store.find_distinct(2, 0.5)
    assert index.tolist() == [1, 3]
    assert inclusion.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="3 distinct samples were asked for, but only 2 have a priority"):
        store.find_distinct(3, 0.5)
    assert store.priorities().tolist() == [0.0, 2.0, 0.0, 7.0, 0.0]
    store.check()


@pytest.mark.parametrize("count", [3, 12])
@pytest.mark.parametrize("kind", [ProportionalStore, RankedStore])
def test_an_interrupt_at_any_moment_of_a_search_leaves_all_priorities(kind, count):
    """Also of the certain samples, and where too few have a priority."""
    store, priorities = kind(40), np.zeros(40)
    priorities[:10] = [1000.0, 900.0, *np.arange(1.0, 9.0)]
    store.fill(priorities)

    def search():
        with contextlib.suppress(ValueError):
            store.find_distinct(count, 0.5)

    search()  # compiled, before it is looked at
    moment = 0
    while interrupted(moment, search):
        moment += 1
        assert store.priorities().tolist() == priorities.tolist(), moment
    assert moment > 20
    store.check()


@pytest.mark.parametrize("kind", [ProportionalStore, RankedStore])
@pytest.mark.parametrize("initial", [0.0, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_more_distinct_samples_than_there_are(kind, initial, share):
    store = kind(5, initial_priority=initial)
    with pytest.raises(ValueError, match="6 samples cannot be drawn without replacement from 5; ask for at most 5"):
        store.find_distinct(6, 0.5, share)


@pytest.mark.parametrize("kind", [ProportionalStore, RankedStore])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_find_takes_any_positions_and_leaves_them(kind, share):
    store = kind(8)
    store.fill(np.arange(8.0))
    positions = np.arange(10) / 16.0  # exact in float32 as well
    index, probability = store.find(positions.copy(), share)
    strided = np.zeros(20)
    strided[::2] = positions
    frozen = positions.copy()
    frozen.flags.writeable = False
    for given in (positions, positions.astype(np.float32), positions.tolist(), tuple(positions), frozen, strided[::2]):
        found, chance = store.find(given, share)
        assert (found.dtype, chance.dtype) == (np.int64, np.float64)
        assert found.tolist() == index.tolist()
        assert chance.tolist() == probability.tolist()
        assert list(given) == positions.tolist()
    with pytest.raises(ValueError, match="positions must have shape"):
        store.find(0.5, share)


@pytest.mark.parametrize("scheme", [draws.systematic, draws.stratified, draws.multinomial])
def test_a_store_with_a_find_of_its_own_is_asked(scheme):
    asked = []

    class Watched(ProportionalStore):
        def find(self, positions, uniform_fraction=0.0):
            asked.append(positions)
            return super().find(positions, uniform_fraction)

    stores = Watched(50), ProportionalStore(50)
    drawn = [scheme(store, 8, uniform_fraction=0.3, generator=np.random.default_rng(0)) for store in stores]
    assert np.array_equal(drawn[0], drawn[1])
    assert len(asked) == 1


# --- the checker, the state, the size


def test_the_checker_sees_what_is_wrong():
    faults = [
        (lambda store: store._leaves.__setitem__(3, 9.0), "sum"),
        (lambda store: store._sums.__setitem__(-1, 9.0), "sum"),
        (lambda store: store._leaves.__setitem__(-1, 9.0), "leaf past the last|sum"),
        (lambda store: store._leaves.__setitem__(slice(None), np.nan), "finite|sum|number"),
        (lambda store: (store._leaves.__setitem__(-1, 9.0), store._rebuild()), "leaf past the last"),
    ]
    for spoil, words in faults:
        store = ProportionalStore(20)
        store.check()
        spoil(store)
        with pytest.raises(AssertionError, match=words):
            store.check()


def test_the_state_of_a_store_is_a_copy_and_comes_back():
    store = ProportionalStore(300)
    store.fill(np.random.default_rng(0).pareto(1.0, 300))
    state = store.state_dict()
    other = ProportionalStore(300)
    other.load_state_dict(state)
    other.check()
    assert np.array_equal(other.priorities(), store.priorities())
    assert other.total == store.total
    kept = state["priorities"].copy()
    store.fill(np.zeros(300))
    other.fill(np.ones(300))
    assert np.array_equal(state["priorities"], kept)


@pytest.mark.parametrize(
    "priorities",
    [
        np.ones(3, np.float32),
        np.ones(1, np.float32),
        np.float32(1),
        np.ones((4, 1), np.float32),
        np.full(4, np.nan, np.float32),
        np.full(4, np.inf, np.float32),
        np.full(4, -1, np.float32),
        np.full(4, -0.5, np.float32),
        np.full(4, "a"),
    ],
)
def test_a_state_that_is_none_changes_nothing(priorities):
    store = ProportionalStore(4, initial_priority=2.0)
    with pytest.raises((ValueError, TypeError), match="priorities must"):
        store.load_state_dict({"priorities": priorities})
    assert store.priorities().tolist() == [2.0] * 4
    store.check()


@pytest.mark.parametrize("priority", [0.0, kernels.SMALLEST, kernels.LARGEST])
def test_the_ends_of_the_range_come_back_from_a_state(priority):
    store, other = ProportionalStore(4, initial_priority=priority), ProportionalStore(4)
    other.load_state_dict(store.state_dict())
    assert other.priorities().tolist() == [priority] * 4


def test_four_and_a_half_bytes_a_sample():
    store = ProportionalStore(1_000_000)
    assert store.nbytes < 4.6 * len(store)


@pytest.mark.parametrize("kind", [ProportionalStore, RankedStore])
def test_what_was_heard_of_at_the_first_step_is_not_new(kind):
    store, newest = kind(3, initial_priority=4.0), np.array([0, -1, 7], np.int32)
    new = store.record(newest, np.arange(3), np.array([8, 0, 9]), np.full(3, 2.0), 0.5)
    assert new == 1
    assert store.priorities().tolist() == [3.0, 2.0, 3.0]
    assert newest.tolist() == [8, 0, 9]


def test_what_the_protocol_asks_for_is_there():
    wanted = {name for name in vars(PriorityStore) if not name.startswith("_")} | {"__len__"}
    assert wanted <= set(dir(ProportionalStore))
    copy = ProportionalStore(2).priorities()
    copy[:] = 5.0
    assert ProportionalStore(2).priorities().tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("index", "priorities", "error"),
    [
        ([4], [1.0], IndexError),
        ([-1], [1.0], IndexError),
        ([0.5], [1.0], TypeError),
        ([0, 1], [1.0], ValueError),
        ([0], [-1.0], ValueError),
        ([0, 1], [1.0, np.nan], ValueError),
    ],
)
def test_set_refuses_what_it_cannot_hold_and_changes_nothing(index, priorities, error):
    store = ProportionalStore(4)
    with pytest.raises(error):
        store.set(np.array(index), np.array(priorities))
    store.check()
    assert store.priorities().tolist() == [1.0] * 4


@pytest.mark.parametrize(("size", "initial"), [(0, 1.0), (-3, 1.0), (4, -1.0), (4, np.inf), (4, np.nan)])
def test_a_store_that_cannot_be_is_refused(size, initial):
    with pytest.raises(ValueError, match="must be"):
        ProportionalStore(size, initial_priority=initial)
