"""Random scripts for every store and every sampler, beside slow twins that say what must come out.

Hypothesis writes the scripts: draws, updates whole and in parts, late ones, losses that are not finite, bad input,
states out and in, threads. After each step all that can be looked at is compared (twins.py says how closely). The
scripts are the same at every run. test_divergence.py does the same for hundreds of millions of samples.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from sampler import batches
from sampler.stores import ProportionalStore, RankedStore

from .pairs import BAD, MAKERS, TWINS, Pair
from .slow_twin import LARGEST, SMALLEST, clamped
from .states import same
from .twin_shares import ExactShares

SIZES = st.sampled_from([1, 2, 3, 5, 8, 16, 17, 33])
SCRIPT = settings(
    max_examples=8,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # a script that fails is short enough to read
    report_multiple_bugs=False,
)


# --- stores


class StoreScript(RuleBasedStateMachine):
    """A store, and a list of the priorities it must have; ``spoil`` plants a fault in it."""

    alpha: float | None = None

    @staticmethod
    def spoil(store):
        return store

    values = st.one_of(
        st.sampled_from([0.0, 1.0, SMALLEST, SMALLEST / 2, 5e-324, LARGEST, 1e39, 1e308]),
        st.floats(0.0, 1e12, allow_nan=False),
    )
    shares = st.sampled_from([0.0, 0.0, 1e-9, 0.3, 0.999999, 1.0])
    inside = st.floats(0.0, 1.0, exclude_max=True)

    def make(self):
        if self.alpha is None:
            return self.spoil(ProportionalStore(self.size))
        return self.spoil(RankedStore(self.size, alpha=self.alpha))

    @initialize(size=SIZES)
    def start(self, size):
        self.size, self.expected = size, np.ones(size)
        self.newest = np.full(size, -1, np.int32)
        self.store = self.make()
        self.check()

    def kept(self, value) -> float:
        return clamped(value) if self.alpha is None else float(value)

    def signed(self, data, value) -> float:
        return -value if self.alpha is not None and data.draw(st.booleans()) else value

    def check(self) -> None:
        self.store.check()
        priorities = self.store.priorities()
        np.testing.assert_allclose(priorities, self.expected, rtol=1.2e-7, atol=0.0)
        self.expected = priorities

    def some(self, data, unique=False):
        index = data.draw(st.lists(st.integers(0, self.size - 1), max_size=8, unique=unique))
        return index, [self.signed(data, data.draw(self.values)) for _ in index]

    @rule(data=st.data())
    def set(self, data):
        index, values = self.some(data)
        self.store.set(np.array(index, np.int64), np.array(values))
        for sample, value in zip(index, values, strict=True):
            self.expected[sample] = self.kept(value)
        self.check()

    @rule(data=st.data())
    def fill(self, data):
        few = data.draw(st.lists(self.values, min_size=1, max_size=4))
        values = [self.signed(data, few[sample % len(few)]) for sample in range(self.size)]
        self.store.fill(values)
        self.expected = np.array([self.kept(value) for value in values])
        self.check()

    @rule(data=st.data(), step=st.integers(0, 99), smoothing=st.sampled_from([0.0, 0.5, 0.99]))
    def record(self, data, step, smoothing):
        index, values = self.some(data, unique=True)
        new = sum(self.newest[sample] < 0 for sample in index)
        steps = np.full(len(index), step)
        for sample, value in zip(index, values, strict=True):
            if self.newest[sample] >= 0:
                value = smoothing * self.expected[sample] + (1 - smoothing) * value
            self.expected[sample] = self.kept(value)
        assert self.store.record(self.newest, np.array(index, np.int64), steps, np.array(values), smoothing) == new
        assert (self.newest[index] == step).all()
        self.check()

    @rule(data=st.data(), before=st.integers(0, 99), share=st.sampled_from([0.0, 0.4, 1.0]))
    def fade(self, data, before, share):
        first, last = sorted(data.draw(st.tuples(st.integers(0, self.size), st.integers(0, self.size))))
        mean = float(np.clip((self.expected / self.size).sum(), -1e308, 1e308))
        self.store.fade(self.newest, first, last, before, share, mean)
        for sample in range(first, last):
            if self.newest[sample] < before:
                self.expected[sample] = self.kept((1 - share) * self.expected[sample] + share * mean)
        self.check()

    @rule(share=shares, positions=st.lists(inside, min_size=1, max_size=8))
    def find(self, share, positions):
        index, probability = self.store.find(positions, share)
        shares = ExactShares(self.expected, share, self.alpha)
        np.testing.assert_allclose(probability, shares.probability[index], rtol=1e-11, atol=0.0)
        np.testing.assert_allclose(self.store.probabilities(share), shares.probability, rtol=1e-11, atol=0.0)
        np.testing.assert_allclose(self.store.probability_of(index, share), probability, rtol=1e-12, atol=0.0)
        order = np.argsort(shares.place[index], kind="stable")
        assert (np.diff(np.asarray(positions)[order]) >= 0).all() or np.unique(index).size < index.size
        assert shares.distance(index, sorted(positions)) <= 1e-14 if self.alpha is None else 1e-12

    @rule(share=shares, data=st.data(), offset=inside)
    def find_distinct(self, share, data, offset):
        count = data.draw(st.integers(1, min(self.size, 20)))
        shares = ExactShares(self.expected, share, self.alpha)
        if np.count_nonzero(shares.probability) < count:
            with pytest.raises(ValueError, match=f"{count} distinct samples .* only {shares.ranked} have a priority"):
                self.store.find_distinct(count, offset, share)
        else:
            index, inclusion = self.store.find_distinct(count, offset, share)
            np.testing.assert_allclose(inclusion, shares.inclusion(count)[index], rtol=1e-11, atol=0.0)
            assert (np.diff(index) > 0).all()
            assert shares.distinct_distance(index, count, offset) <= count * 1e-12 + 1e-12
        self.check()

    @rule(data=st.data())
    def refuse(self, data):
        nan, size = float("nan"), self.size
        call = data.draw(
            st.sampled_from(
                [
                    lambda: self.store.set(np.array([0, size]), np.array([2.0, 2.0])),
                    lambda: self.store.set(np.array([0, -1]), np.array([2.0, 2.0])),
                    lambda: self.store.set(np.array([0.0]), np.array([2.0])),
                    lambda: self.store.set(np.array([0, 0]), np.array([2.0, nan])),
                    lambda: self.store.set(np.array([0, 0]), np.array([2.0])),
                    lambda: self.store.fill([2.0] * (size - 1) + [nan]),
                    lambda: self.store.fill([2.0] * (size + 1)),
                    lambda: self.store.find_distinct(size + 1, 0.5, 0.3),
                    lambda: self.store.find(0.5),
                    lambda: self.store.load_state_dict({**self.store.state_dict(), "priorities": np.full(size, nan)}),
                    lambda: self.store.load_state_dict({**self.store.state_dict(), "priorities": np.ones(size + 1)}),
                ]
            )
        )
        before = self.store.state_dict()
        with pytest.raises((ValueError, TypeError, IndexError)):
            call()
        assert same(self.store.state_dict(), before)
        self.check()

    @rule()
    def state_out_and_in(self):
        state, other = self.store.state_dict(), self.make()
        other.load_state_dict(state)
        assert same(other.state_dict(), state)
        assert other.total == self.store.total
        self.store.fill(np.zeros(self.size))  # the state is a copy
        self.store = other
        self.check()


def run_stores(alpha, spoil=lambda store: store, examples=20):
    script = type("Script", (StoreScript,), {"alpha": alpha, "spoil": staticmethod(spoil)})
    run_state_machine_as_test(script, settings=settings(SCRIPT, max_examples=examples))


@pytest.mark.parametrize("alpha", [None, 0.7])
def test_a_store_is_its_twin(alpha):
    run_stores(alpha)


def moved(store):
    """One position in four lies a sample further."""
    find = store.find
    store.find = lambda positions, share=0.0: (
        (found := find(positions, share))[0] // 4 * 4,
        found[1],
    )
    return store


def unsorted_after(store):
    """Ranks that do not follow what ``set`` writes."""
    store.set = lambda index, priorities: store._priorities.__setitem__(index, priorities)
    return store


def unsummed_after(store):
    """A tree whose sums do not follow what ``set`` writes."""
    store.set = lambda index, priorities: store._leaves.__setitem__(index, priorities)
    return store


def half_refusing(store):
    """What is refused is written as far as it goes."""
    set_ = store.set

    def halfway(index, priorities):
        with contextlib.suppress(ValueError, TypeError, IndexError):
            set_(index[:1], priorities[:1])
        set_(index, priorities)

    store.set = halfway
    return store


@pytest.mark.parametrize(
    ("alpha", "spoil"),
    [(None, moved), (0.7, moved), (0.7, unsorted_after), (None, unsummed_after), (None, half_refusing)],
)
def test_the_twin_of_a_store_sees_planted_faults(alpha, spoil):
    with pytest.raises((AssertionError, TypeError)):
        run_stores(alpha, spoil, examples=100)


# --- samplers


class SamplerScript(RuleBasedStateMachine):
    """A sampler and its twin; ``maker`` is another for a planted fault."""

    name = "as it comes"
    maker = None

    loss = st.one_of(
        st.sampled_from([0.0, 1.0, 1.0, 1e-3, 40.0, np.nan, np.inf, -np.inf, 1e-45, 1e308]),
        st.floats(-100.0, 100.0),
    )
    count = st.integers(1, 9)

    @initialize(size=SIZES, seed=st.integers(0, 2**32))
    def start(self, size, seed):
        self.pair = Pair(self.name, size, seed, make=self.maker)

    def losses(self, data, count):
        return data.draw(st.lists(self.loss, min_size=count, max_size=count))

    @rule(count=count)
    def draw(self, count):
        self.pair.draw(count)

    @rule(rows=st.integers(1, 4), count=count)
    def draw_rows(self, rows, count):
        self.pair.rows(rows, count)

    @precondition(lambda self: self.pair.pending)
    @rule(data=st.data(), whole=st.booleans(), part=st.booleans())
    def feed_back(self, data, whole, part):
        step = data.draw(st.sampled_from(sorted(self.pair.pending)))
        places = self.pair.pending[step][1]
        if part:
            places = np.array(data.draw(st.permutations(places.tolist()))[: data.draw(st.integers(1, places.size))])
        self.pair.feed(step, places, self.losses(data, places.size), whole=whole)

    @precondition(lambda self: self.pair.pending)
    @rule(data=st.data())
    def feed_back_twice(self, data):
        """What more comes back than was drawn is late under a lag, and newer news without one."""
        step = data.draw(st.sampled_from(sorted(self.pair.pending)))
        places = self.pair.pending[step][1][:3]
        self.pair.feed(step, np.repeat(places, 3), self.losses(data, 3 * places.size))

    @rule(data=st.data())
    def tell_of_now(self, data):
        index = data.draw(st.lists(st.integers(0, self.pair.size - 1), max_size=6))
        self.pair.update(index, self.losses(data, len(index)))

    @rule(data=st.data())
    def tell_of_any_step(self, data):
        """Late, or, where there is no lag, ahead of the draws; under one, of draws that were complete long ago."""
        index = data.draw(st.lists(st.integers(0, self.pair.size - 1), min_size=1, max_size=6))
        twin = self.pair.twin
        steps = np.arange(twin.step + 3)
        if twin.lag is not None:
            steps = np.setdiff1d(np.arange(twin.step), list(twin.flights))
        if steps.size:
            given = [data.draw(st.sampled_from(steps.tolist())) for _ in index]
            self.pair.update(index, self.losses(data, len(index)), np.array(given))

    @rule(count=st.integers(1, 3))
    def diverge(self, count):
        self.pair.diverge(count)

    @rule(kind=st.sampled_from(sorted(BAD)))
    def refuse(self, kind):
        self.pair.refuses(kind)

    @rule(seed=st.integers(0, 2**32), moves=st.integers(0, 3))
    def state_out_and_in(self, seed, moves):
        self.pair.reload(seed, moves)

    @rule()
    def rewind(self):
        self.pair.rewind()

    @rule(data=st.data(), count=count, workers=st.integers(2, 3))
    def threads(self, data, count, workers):
        self.pair.threads(count, workers, lambda places: np.array([1.0 + data.draw(st.integers(0, 8)) for _ in places]))


def run_samplers(name, maker=None, examples=8):
    script = type("Script", (SamplerScript,), {"name": name, "maker": staticmethod(maker) if maker else None})
    run_state_machine_as_test(script, settings=settings(SCRIPT, max_examples=examples))


def test_every_sampler_has_a_twin():
    assert TWINS.keys() == MAKERS.keys()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.every(2)
def test_a_sampler_is_its_twin(name):
    run_samplers(name)


# --- planted faults


def wrapped(part, name, change):
    """``part`` with its method ``name`` changed: ``change(method, *arguments)`` takes its place."""
    method = getattr(part, name)
    setattr(part, name, lambda *arguments, **options: change(method, *arguments, **options))


def p_a_little_off(sampler):
    def off(method, count):
        index, probability = method(count)
        return index, probability * (1 + 1e-9)

    wrapped(sampler, "_by_priority", off)


def weights_a_little_off(sampler):
    wrapped(sampler, "_weigh", lambda method, probability, beta: method(probability * (1 + 1e-6), beta))


def the_next_sample(sampler):
    def off(method, positions, share):
        index, probability = method(positions, share)
        return np.minimum(index + 1, len(sampler) - 1), probability

    wrapped(sampler._store, "find_owned", off)


def late_losses_count(sampler):
    wrapped(
        sampler,
        "_prepare",
        lambda method, index, losses, steps: method(index, losses, np.maximum(steps, sampler._newest[index])),
    )


def the_last_of_several_counts(sampler):
    def off(method, index, losses, steps):
        _, last = np.unique(index[::-1], return_index=True)
        kept = index.size - 1 - last
        return method(index[kept], losses[kept], steps if steps.size == 1 else steps[kept])

    wrapped(sampler, "_prepare", off)


def the_first_is_smoothed(sampler):
    def off(method, newest, index, steps, priorities, smoothing):
        new = int((newest[index] < 0).sum())
        method(np.zeros_like(newest), index, steps, priorities, smoothing)
        newest[index] = steps
        return new

    wrapped(sampler._store, "record", off)


def a_generator_of_its_own(sampler):
    def off(method, state):
        generator = sampler._generator
        method(state)
        sampler._generator = generator

    wrapped(sampler, "load_state_dict", off)


def counted_before_checked(sampler):
    def off(method, *arguments, **options):
        try:
            method(*arguments, **options)
        except Exception:
            sampler._counts["updates"] += 1
            raise

    wrapped(sampler, "update", off)


def a_bound_that_is_forgotten(sampler):
    def off(method, state):
        method(state)
        sampler._bound._start()

    wrapped(sampler, "load_state_dict", off)


def a_shorter_lag(sampler):
    sampler._ledger.lag -= 1


def no_patience(sampler):
    sampler._missing = lambda: None


def flights_lost(sampler):
    def off(method, state):
        method(state)
        sampler._ledger._again.clear()

    wrapped(sampler, "load_state_dict", off)


def a_pass_that_repeats(sampler):
    def off(method, index):
        filled = method(index)
        index[filled - 1] = index[0]
        return filled

    wrapped(sampler, "_go_on_with_pass", off)


def easy_ones_unweighted(sampler):
    def off(method, left, count):
        chance, kept = method(left, count)
        return np.ones_like(chance), kept

    wrapped(sampler, "_select", off)


def no_lock(sampler):
    """A draw is chosen, and then another thread has its turn."""
    sampler._lock = contextlib.nullcontext()
    sampler._changed.notify_all = lambda: None

    def off(method, count):
        chosen = method(count)
        time.sleep(0.002)
        return chosen

    wrapped(sampler, "_choose", off)


FAULTS = [
    ("as it comes", p_a_little_off),
    ("as it comes", weights_a_little_off),
    ("as it comes", the_next_sample),
    ("as it comes", late_losses_count),
    ("as it comes", the_last_of_several_counts),
    ("as it comes", a_generator_of_its_own),
    ("as it comes", counted_before_checked),
    ("as it comes", a_pass_that_repeats),
    ("as it comes", no_lock),
    ("clipped, losses kept", the_first_is_smoothed),
    ("bounded draws, forgetting", a_bound_that_is_forgotten),
    ("under a lag", a_shorter_lag),
    ("under a lag", no_patience),
    ("under a lag", flights_lost),
    ("uniform", a_pass_that_repeats),
    ("pruning", easy_ones_unweighted),
]


@pytest.mark.parametrize(("name", "spoil"), FAULTS, ids=lambda part: getattr(part, "__name__", part))
def test_the_twin_of_a_sampler_sees_planted_faults(name, spoil):
    def maker(size, **options):
        sampler = MAKERS[name](size, **options)
        spoil(sampler)
        return sampler

    with pytest.raises(AssertionError):
        run_samplers(name, maker, examples=300)  # most need a few


def test_a_fault_in_the_kernels_is_seen(monkeypatch):
    """A mean that counts what is not a number as zero."""
    merge = batches.merge

    def zeros(index, losses, *rest):
        return merge(index, np.nan_to_num(losses, nan=0.0), *rest)

    monkeypatch.setattr(batches, "merge", zeros)
    with pytest.raises(AssertionError):
        run_samplers("as it comes", examples=100)
