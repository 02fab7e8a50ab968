"""Every sampler beside its twin, told the same: what random tests, small and long, are made of.

    pair = Pair("under a lag", size=17, seed=3)
    pair.draw(4); pair.feed(step, places, losses); pair.reload(seed=9); pair.refuses("a fraction")

Each does one thing to both and then compares all that can be looked at.
"""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sampler import DivergedError, Draw, ImportanceSampler, RankedSampler, priorities, weights
from sampler.gates import SpeedupGate

from .siblings import SIBLINGS
from .states import Unchanged, same
from .twin_shares import ExactShares
from .twins import ImportanceTwin, PruningTwin, SelectiveTwin, Twin


def balanced(n):
    """v_c = (1-β)/(1-β^n_c) of each sample's class, for the labels of siblings.py."""
    labels = np.arange(n) % 7 // 3
    return ((1 - 0.999) / (1 - 0.999 ** np.bincount(labels)))[labels]


MORE = {
    "a first pass cut short": lambda n, **options: ImportanceSampler(n, first_pass=0.3, smoothing=0.5, **options),
    "warmed up, finished": lambda n, **options: ImportanceSampler(n, warmup=1, finish_at=14, **options),
    "gated": lambda n, **options: ImportanceSampler(n, gate=SpeedupGate(ratio=0.3, smoothing=0.5), **options),
    "gated under a lag": lambda n, **options: ImportanceSampler(
        n, gate=SpeedupGate(ratio=0.3, smoothing=0.5), feedback_lag=2, **options
    ),
    "by scores": lambda n, **options: ImportanceSampler(n, priority="gradient_norm", scheme="multinomial", **options),
    "all at once by rank": lambda n, **options: RankedSampler(
        n,
        alpha=1.0,
        max_draws=2,
        forget=0.4,
        keep_losses=True,
        priority=priorities.clipped(0.7, window=15),
        feedback_lag=3,
        **options,
    ),
}
MAKERS = {**SIBLINGS, **MORE}


def half(losses, index):
    return np.sqrt(losses)


TWINS = {
    "as it comes": ImportanceTwin,
    "multinomial, bounded, smoothed": lambda n, seed, **options: ImportanceTwin(
        n, seed, scheme="multinomial", priority=lambda losses, index: -np.expm1(-losses), smoothing=0.5, **options
    ),
    "stratified, no floor, no first pass": lambda n, seed, **options: ImportanceTwin(
        n, seed, scheme="stratified", share=0.0, first_pass=0.0, **options
    ),
    "distinct, half corrected": lambda n, seed, **options: ImportanceTwin(
        n, seed, scheme="without_replacement", priority=half, beta=lambda step: 0.5, **options
    ),
    "known losses, ascending": lambda n, seed, **options: ImportanceTwin(
        n, seed, losses=np.arange(n) % 7, ascending=True, **options
    ),
    "a schedule, a function": lambda n, seed, **options: ImportanceTwin(
        n, seed, priority=lambda losses, index: np.exp(losses), beta=weights.linear(0.4, 1.0, 20), **options
    ),
    "a store of one's own": ImportanceTwin,
    "under a lag": lambda n, seed, **options: ImportanceTwin(n, seed, lag=2, **options),
    "by rank": lambda n, seed, **options: ImportanceTwin(n, seed, alpha=0.7, **options),
    "bounded draws, forgetting": lambda n, seed, **options: ImportanceTwin(n, seed, max_draws=2, forget=0.5, **options),
    "clipped, losses kept": lambda n, seed, **options: ImportanceTwin(
        n, seed, priority=half, window=(0.8, 25), smoothing=0.3, **options
    ),
    "uniform": Twin,
    "uniform under a lag": lambda n, seed, **options: Twin(n, seed, lag=3, **options),
    "ranked": lambda n, seed, **options: ImportanceTwin(n, seed, alpha=0.5, **options),
    "reducible": lambda n, seed, **options: ImportanceTwin(
        n, seed, priority=lambda losses, index: np.maximum(losses - index % 3, 0), **options
    ),
    "class-balanced": lambda n, seed, **options: ImportanceTwin(
        n,
        seed,
        priority=lambda losses, index: balanced(n)[index],
        initial=balanced(n),
        share=0.0,
        first_pass=0.0,
        beta=lambda step: 0.0,
        **options,
    ),
    "pruning": lambda n, seed, **options: PruningTwin(n, seed, last=17, **options),
    "pruning under a lag": lambda n, seed, **options: PruningTwin(n, seed, lag=2, **options),
    "selective": lambda n, seed, **options: SelectiveTwin(n, seed, selectivity=2.0, **options),
    "a first pass cut short": lambda n, seed, **options: ImportanceTwin(
        n, seed, first_pass=0.3, smoothing=0.5, **options
    ),
    "warmed up, finished": lambda n, seed, **options: ImportanceTwin(n, seed, warmup=1, finish_at=14, **options),
    "gated": ImportanceTwin,
    "gated under a lag": lambda n, seed, **options: ImportanceTwin(n, seed, lag=2, **options),
    "by scores": lambda n, seed, **options: ImportanceTwin(n, seed, scored=True, scheme="multinomial", **options),
    "all at once by rank": lambda n, seed, **options: ImportanceTwin(
        n, seed, alpha=1.0, max_draws=2, forget=0.4, window=(0.7, 15), lag=3, **options
    ),
}
SIGNED = [  # which take losses below zero
    name
    for name in MAKERS
    if "rank" in name or name.startswith(("uniform", "reducible", "class", "pruning", "selective", "a schedule"))
]


def scores_of(losses):
    return np.abs(np.where(np.isfinite(losses), losses, 1.0)) / 2.0 + 0.25


class Pair:
    """A sampler and its twin; ``make`` and ``twin`` make others than those of the name."""

    def __init__(self, name, size, seed, *, make=None, twin=None, shares=ExactShares) -> None:
        self.name, self.make, self.size = name, make or MAKERS[name], size
        self.twin = (twin or TWINS[name])(size, seed, shares=shares)
        self.sampler = self.new(seed)
        self.signed = name in SIGNED or getattr(self.twin, "alpha", None) is not None
        self.pending: dict[int, tuple[Draw, np.ndarray]] = {}  # draws, and which places of them have no loss yet
        self.done = {"draws": 0, "updates": 0, "states": 0, "refused": 0, "polls in vain": 0}
        self.check()

    def new(self, seed):
        sampler = self.make(self.size, seed=seed)
        sampler.feedback_timeout = 1e6  # whoever polls does not wait
        if getattr(self.twin, "forget", 0):
            self.watch(sampler)
        return sampler

    def watch(self, sampler) -> None:
        """Have the twin see what priorities have faded to: by rank, which of two equals is less is rounding."""
        method = sampler._by_priority

        def watched(count):
            drawn = method(count)
            self.twin.at_draws.append(sampler.priorities())
            return drawn

        sampler._by_priority = watched

    def check(self) -> None:
        self.twin.agree(self.sampler)

    # --- draws

    def batch(self, count) -> int:
        """The size that the next batch can have, ``count`` if it may."""
        flight = self.twin.next_again()
        if flight is not None:
            return flight.draw.index.size
        return min(count, self.size) if self.twin.distinct else count

    def draw(self, count):
        count = self.batch(count)
        self.look_at_gate()
        if self.twin.must_wait(count):
            with Unchanged(self.sampler):
                assert self.sampler.poll(count, seconds=0.0) is None, "a draw that had to wait"
            self.done["polls in vain"] += 1
            return None
        draw = self.sampler.poll(count, seconds=0.0)
        assert draw is not None, "a draw that had not to wait"
        self.saw(draw)
        self.check()
        return draw

    def saw(self, draw) -> None:
        self.twin.drawn(draw)
        self.pending[draw.step] = draw, np.arange(draw.index.size)
        self.done["draws"] += draw.index.size
        while self.twin.lag is None and len(self.pending) > 8:
            del self.pending[min(self.pending)]

    def look_at_gate(self) -> None:
        """What the gate says is asked of it: gates have tests of their own."""
        if self.sampler.gated:
            self.twin.gate_open = self.sampler.summary()["gate_open"]

    def rows(self, rows, count) -> None:
        """Several draws in one call."""
        count = self.batch(count)
        if self.twin.must_wait(count) or self.sampler.gated:
            return
        index, weight = np.empty((rows, count), np.int64), np.empty((rows, count), np.float32)
        probability, step = np.empty((rows, count), np.float32), np.empty((rows, count), np.int64)
        again = list(self.twin.again)
        if again:  # these have their own sizes
            return
        filled = self.sampler.poll_rows(index, weight, probability, step, seconds=0.0)
        assert 1 <= filled <= rows
        for row in range(filled):
            assert not self.twin.must_wait(count)
            assert (step[row] == step[row, 0]).all()
            self.saw(Draw(int(step[row, 0]), index[row], probability[row], weight[row]))
        if self.twin.lag is not None:  # what is in flight has p in full
            flights = self.sampler.state_dict()["in_flight"]
            ends = np.cumsum(flights["size"])
            for number, end, size in zip(flights["step"].tolist(), ends, flights["size"], strict=True):
                flight = self.twin.flights[number]
                full = flights["probability"][end - size : end]
                assert np.array_equal(full.astype(np.float32), flight.draw.probability.astype(np.float32))
                flight.draw = flight.draw._replace(probability=full)
        self.check()

    # --- updates

    def feed(self, step, places, losses, *, whole=True) -> None:
        """Losses of the draw of ``step``; ``whole``: the step is given once, and not for each of them."""
        draw, open_places = self.pending[step]
        index = draw.index[places]
        self.pending[step] = draw, np.setdiff1d(open_places, places)
        if self.pending[step][1].size == 0:
            del self.pending[step]
        self.update(index, losses, step if whole else np.full(index.size, step))

    def update(self, index, losses, step=None) -> None:
        losses = np.asarray(losses, np.float64)
        if not self.signed:
            losses = np.abs(losses)
        if self.name == "a schedule, a function":
            losses = np.minimum(losses, 300.0)  # e^ℓ stays finite
        score = scores_of(losses) if self.sampler.wants_score else None
        if self.twin.diverges(losses):
            with Unchanged(self.sampler), pytest.raises(DivergedError, match="10 updates in a row"):
                self.sampler.update(index, losses, step, score)
            self.done["refused"] += 1
            return
        self.sampler.update(index, losses, step, score)
        self.twin.told(index, losses, step, score)
        self.done["updates"] += losses.size
        self.check()

    def diverge(self, count) -> None:
        """Losses of which none is finite, until it is said that training has diverged."""
        for _ in range(10):
            self.update(np.zeros(count, np.int64), np.full(count, np.nan))
        assert self.twin.in_a_row == 9

    # --- bad input

    def refuses(self, kind) -> None:
        """Bad input of a kind is refused in words, and all is as it was."""
        call = BAD[kind](self)
        if call is None:
            return
        with Unchanged(self.sampler), pytest.raises((ValueError, TypeError, IndexError)) as caught:
            call()
        assert str(caught.value)
        self.check()
        self.done["refused"] += 1

    # --- states

    def reload(self, seed, moves=0) -> None:
        """The state goes on in another sampler of another seed, which may have drawn before."""
        state = copy.deepcopy(self.sampler.state_dict())
        other = self.new(seed)
        for _ in range(moves):
            draw = other.poll(min(3, self.size), seconds=0.0)
            if draw is not None:
                losses = np.ones(draw.index.size)
                other.update(draw.index, losses, draw.step, scores_of(losses) if other.wants_score else None)
        if getattr(self.twin, "forget", 0):
            self.twin.at_draws.clear()
        other.load_state_dict(state)
        assert same(_told(other.state_dict()), _told(state)), "a state that comes back otherwise"
        self.sampler = other
        self.lose_flights()
        self.done["states"] += 1
        self.check()

    def rewind(self) -> None:
        self.sampler.rewind()
        self.lose_flights()
        self.check()

    def lose_flights(self) -> None:
        self.twin.loaded()
        if self.twin.lag is not None:
            self.pending = {step: self.pending[step] for step in self.twin.again}

    # --- threads

    def threads(self, count, workers, losses_of) -> None:
        """All that is pending is fed back, while ``workers`` threads draw, too. ``losses_of(places)`` are finite."""
        works: list[list] = [[] for _ in range(workers)]
        for number, step in enumerate(sorted(self.pending)):
            draw, places = self.pending[step]
            works[number % workers].append(("update", draw.index[places], losses_of(places), step))
        flights = {flight.draw.index.size for flight in self.twin.flights.values()}
        for work in works:
            if len(flights) <= 1:  # else nobody knows for which of them to ask
                work.extend([("draw", min(flights) if flights else self.batch(count))] * 2)
            work.append(("look",))
        self.pending.clear()
        self.together(works)

    def together(self, works) -> None:
        """Run each of ``works``, lists of calls with the sampler, in a thread of its own; then tell the twin.

        The order in which things happened is written down where they happen, behind the sampler's lock. If that lock
        does not do its work, it is not the order in which they took effect, and the twin disagrees.
        """
        sampler, happened, drawn = self.sampler, [], {}
        before = dict(vars(sampler))
        for name in NOTED:
            setattr(sampler, name, NOTED[name](sampler, getattr(sampler, name), happened))
        start = threading.Barrier(len(works))

        def run(calls):
            start.wait()
            for kind, *arguments in calls:
                if kind == "draw":
                    draw = sampler.poll(*arguments, seconds=0.0)
                    if draw is not None:
                        drawn[draw.step] = draw
                elif kind == "update":
                    index, losses, step = arguments
                    sampler.update(index, losses, step, scores_of(losses) if sampler.wants_score else None)
                else:
                    sampler.probabilities(), sampler.summary(), sampler.state_dict()

        try:
            with ThreadPoolExecutor(len(works)) as pool:
                list(pool.map(run, works))
        finally:
            for name in NOTED:
                delattr(sampler, name)
                vars(sampler).update({name: before[name]} if name in before else {})
        self.replay(happened, drawn)

    def replay(self, happened, drawn) -> None:
        """Tell the twin what happened, in order."""
        self.twin.loose = True
        for kind, *what in happened:
            if kind == "update":
                index, losses, steps = what
                self.twin.told(index, losses, steps, losses)  # scores, where these take the losses' place
                self.done["updates"] += index.size
            else:
                step, self.twin.gate_open = what
                assert step in drawn, "a draw that nobody got"
                self.saw(drawn[step])
        self.check()


def _told(state):
    """A state without what stands where no loss was reported, which means nothing."""
    flights = state["in_flight"]
    if flights is None:
        return state
    blank = {"losses": 0.0, "scores": np.nan}
    kept = {name: np.where(flights["reported"], flights[name], blank[name]) for name in blank if name in flights}
    return {**state, "in_flight": {**flights, **kept}}


def _noted_draws(sampler, method, happened):
    def draws(count):
        gate = getattr(sampler, "_gate", None)
        step, is_open = sampler.step, gate is None or gate.open
        chosen = method(count)
        happened.append(("draw", step, is_open))
        return chosen

    return draws


def _noted_again(sampler, method, happened):
    def again(count):
        draw = method(count)
        if draw is not None:
            happened.append(("draw", draw.step, True))
        return draw

    return again


def _noted_updates(sampler, method, happened):
    def learns(index, losses, steps, told):
        method(index, losses, steps, told)
        happened.append(("update", index.copy(), losses.copy(), None if steps is None else steps.copy()))

    return learns


NOTED = {"_choose": _noted_draws, "_hand_out_again": _noted_again, "_learn": _noted_updates}


def _update(*arguments, **options):
    """A call of ``update``, with a score where one is wanted, so that it is not the score that is missed."""

    def of(pair):
        def call():
            if pair.sampler.wants_score and "score" not in options:
                return pair.sampler.update(*arguments, score=np.ones(np.size(arguments[0])), **options)
            return pair.sampler.update(*arguments, **options)

        return call

    return of


def _spoilt(change):
    """A call that loads the sampler's own state, with something wrong in it."""

    def of(pair):
        state = copy.deepcopy(pair.sampler.state_dict())
        return (lambda: pair.sampler.load_state_dict(state)) if change(state) is not False else None

    return of


def _late_part(state):
    """Something that is looked at last: what was read before must not stay."""
    if "store" in state:
        state["store"]["priorities"] = state["store"]["priorities"] * np.nan
    elif "chance" in state:
        state["chance"] = state["chance"] + 1.0
    else:
        state["generator"] = {}
    state["step"], state["newest"] = state["step"] + 5, state["newest"] + 1


def _ahead(pair):
    return _update([0], [1.0], pair.twin.step)(pair) if pair.twin.lag is not None else None


def _stranger(pair):
    """Under a lag: a sample that was not in the draw, behind one that was."""
    for step, flight in pair.twin.flights.items():
        others = np.setdiff1d(np.arange(pair.size), flight.draw.index)
        if others.size:
            return _update([int(flight.draw.index[0]), int(others[0])], [1.0, 1.0], step)(pair)
    return None


def _negative(pair):
    return None if pair.signed else _update([0], [-1.0], score=[-1.0])(pair)


def _other_size(pair):
    flight = pair.twin.next_again()
    return None if flight is None else lambda: pair.sampler.draw(flight.draw.index.size + 1)


BAD = {
    "an index too large": lambda pair: _update([0, pair.size], [1.0, 1.0])(pair),
    "an index below zero": _update([0, -1], [1.0, 1.0]),
    "a fraction": _update([0.5], [1.0]),
    "a mask": _update([True], [1.0]),
    "a column": _update([[0], [0]], [1.0, 1.0]),
    "too few losses": _update([0, 0], [1.0]),
    "a loss reduced": _update([0, 0], 1.0),
    "losses with an axis too many": _update([0, 0], [[1.0], [1.0]]),
    "a complex loss": _update([0], [1j]),
    "losses in words": _update([0], ["high"]),
    "a step below zero": _update([0], [1.0], -1),
    "a step that is none": _update([0], [1.0], 0.5),
    "steps of another length": _update([0, 0, 0], [1.0, 1.0, 1.0], [0, 0]),
    "scores of another length": _update([0, 0], [1.0, 1.0], score=[1.0]),
    "a norm below zero": _update([0], [1.0], mean_gradient_norm=-1.0),
    "a step to come": _ahead,
    "a stranger": _stranger,
    "a negative loss": _negative,
    "an empty batch": lambda pair: lambda: pair.sampler.draw(0),
    "half a batch": lambda pair: lambda: pair.sampler.draw(1.5),
    "too many distinct": lambda pair: (
        (lambda: pair.sampler.draw(pair.size + 1)) if pair.twin.distinct and not pair.twin.flights else None
    ),
    "another batch again": _other_size,
    "the state of another size": _spoilt(lambda state: state.update(num_samples=state["num_samples"] + 1)),
    "the state of another kind": _spoilt(lambda state: state.update(sampler="Other")),
    "a newer state": _spoilt(lambda state: state.update(format=2)),
    "a state without a generator": _spoilt(lambda state: state.pop("generator") and None),
    "a state cut short": _spoilt(lambda state: state.update(newest=state["newest"][:-1])),
    "a state wrong at its end": _spoilt(_late_part),
    "no state": lambda pair: lambda: pair.sampler.load_state_dict([]),
}
