"""Eight threads at once on one sampler: drawing, updating, reading, taking states out and in; and a pipeline each.

Losses depend on the sample and the step alone, so what is known in the end, and what a state may hold in the middle,
follows from the draws, whatever the order was. Threads are switched as often as Python can, in short runs also at
random lines of the sampler, and a watchdog ends what hangs. The tests find samplers that leave their lock out
somewhere.
"""

from __future__ import annotations

import faulthandler
import functools
import itertools
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pipeline import importance_dataset
from pipeline.checkpoints import Snapshots
from sampler import ImportanceSampler, PruningSampler, RankedSampler, UniformSampler
from sampler.state_bytes import from_bytes, to_bytes
from tests.sampler.states import PACKAGE, same

N, B, LAG = 60, 6, 3
THREADS, ROUNDS, LONG = 8, 16, 15_000
HANGS = 120.0  # seconds
NUDGES = 0.02  # of the lines of the sampler

KINDS: dict[str, Callable[..., Any]] = {
    "importance": ImportanceSampler,
    "without a pass": functools.partial(ImportanceSampler, first_pass=False),
    "gated": functools.partial(ImportanceSampler, gate="variance"),
    "bounded draws": functools.partial(ImportanceSampler, max_draws=2, keep_losses=True, scheme="multinomial"),
    "ranked": RankedSampler,
    "pruning": functools.partial(PruningSampler, finish=0.0),
    "uniform": UniformSampler,
}


def a_sampler(kind: str, lag: int | None = None) -> Any:
    return KINDS[kind](N, seed=0, feedback_lag=lag, feedback_timeout=HANGS)


class Batch(NamedTuple):
    step: int
    index: np.ndarray  # type: ignore[assignment]
    weight: np.ndarray
    probability: np.ndarray  # float32


def losses_of(index: np.ndarray, step: Any) -> np.ndarray:
    """Another one for each sample and, in fifty steps, each step."""
    return (np.asarray(index) * 7919 % 101 + 1.0) / 10.0 + np.asarray(step) % 50


def take(sampler: Any, count: int = 1, seconds: float = HANGS) -> list[Batch]:
    """One batch as a loop of one's own draws it, several as a pipeline does; none where that would take too long."""
    if count == 1:
        draw = sampler.poll(B, seconds=seconds)
        return [] if draw is None else [Batch(draw.step, draw.index, draw.weight, draw.probability.astype(np.float32))]
    index, weight, probability, step = (np.empty((count, B), dtype) for dtype in ("i8", "f4", "f4", "i8"))
    made = sampler.poll_rows(index, weight, probability, step, seconds=seconds)
    return [Batch(int(step[row, 0]), index[row], weight[row], probability[row]) for row in range(made)]


def tell(sampler: Any, batch: Batch, parts: int = 1) -> None:
    for places in np.array_split(np.arange(B), parts):
        losses = losses_of(batch.index[places], batch.step)
        sampler.update(batch.index[places], losses, step=batch.step, score=losses, mean_gradient_norm=1.0)


# --- a watchdog -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def hasty_threads() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def nudged(place: int) -> Callable[..., Any]:
    """A trace function that has other threads run before some lines of the sampler."""
    numbers = random.Random(place)

    def trace(frame: Any, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and numbers.random() < NUDGES:
            time.sleep(1e-6)
        return trace

    return trace


def whereabouts(threads: Sequence[threading.Thread]) -> list[list[tuple[int, int]]]:
    """The instructions that each thread is at, down its stack."""
    found = []
    frames = sys._current_frames()
    for thread in threads:
        frame, places = frames.get(thread.ident or 0), []
        while frame is not None:
            places.append((id(frame.f_code), frame.f_lasti))
            frame = frame.f_back
        found.append(places)
    return found


def at_once(works: Sequence[Callable[[], Any]], seconds: float = HANGS, nudge: bool = False) -> list[Any]:
    """What each gives, all run at the same time; an ``AssertionError`` with every thread's stack where they hang: where
    none gets on for so many ``seconds``, however long all of it takes on a busy machine.
    """
    start, given, errors = threading.Barrier(len(works)), [None] * len(works), []
    one_at_a_time = threading.Lock()

    def run(place: int) -> None:
        try:
            start.wait(seconds)
            if nudge:
                with one_at_a_time:  # CPython refuses two at once, which meet where an audit hook lets go of the lock
                    sys.settrace(nudged(place))
            given[place] = works[place]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(works))]
    with tempfile.TemporaryFile("w+") as stacks:
        try:
            for thread in threads:
                thread.start()
            there, since = [], time.monotonic()
            while any(thread.is_alive() for thread in threads) and time.monotonic() - since < seconds:
                faulthandler.dump_traceback_later(seconds + HANGS, exit=True)  # for one that keeps the interpreter
                for thread in threads:
                    thread.join(min(1.0, seconds) / len(threads))
                if there != (now := whereabouts(threads)):
                    there, since = now, time.monotonic()
        finally:
            faulthandler.cancel_dump_traceback_later()
        if any(thread.is_alive() for thread in threads) and not errors:
            faulthandler.dump_traceback(stacks)
            stacks.seek(0)
            raise AssertionError(f"threads hang:\n{stacks.read()}")
    if errors:
        raise errors[0]
    return given


def test_the_watchdog_tells_where_threads_hang() -> None:
    one, other = threading.Lock(), threading.Lock()
    meet = threading.Barrier(2)

    def embrace(first: threading.Lock, second: threading.Lock) -> None:
        with first:
            meet.wait(HANGS)
            second.acquire(timeout=3.0)

    works = [functools.partial(embrace, one, other), functools.partial(embrace, other, one)]
    with pytest.raises(AssertionError, match=r"threads hang:(?s:.*)in embrace"):
        at_once(works, seconds=0.2)


def test_what_a_thread_raises_is_heard() -> None:
    with pytest.raises(KeyError, match="mine"):
        at_once([dict, lambda: {}["mine"]])


# --- one sampler ----------------------------------------------------------------------------------


def known_of(state: dict[str, Any]) -> np.ndarray | None:
    """(N,) what a state holds of the newest loss of each sample; None where it holds nothing of it."""
    if "newest_losses" in state:
        return state["newest_losses"]
    if state.get("losses") is not None:
        return state["losses"]
    return state["store"]["priorities"] if "store" in state else None


def check_known(state: dict[str, Any]) -> None:
    """Losses, steps and counts are of one moment."""
    newest, known = state["newest"], known_of(state)
    seen = np.flatnonzero(newest >= 0)
    assert state["counts"]["seen"] == seen.size
    if known is not None:
        np.testing.assert_allclose(known[seen], losses_of(seen, newest[seen]), rtol=1e-6)


def check_state(kind: str, state: dict[str, Any]) -> None:
    """A sampler without a lag was in this state at some moment, and goes on from there."""
    check_known(state)
    assert state["newest"].max() < state["step"]
    if kind == "uniform" or (kind != "without a pass" and state["step"] * B < N):
        assert state["passes"] * N + state["taken"] == state["step"] * B
    drawn = np.flatnonzero(state["recent"][:, 0])
    assert drawn.size == min(state["step"], 100)
    twin = a_sampler(kind)
    twin.load_state_dict(from_bytes(to_bytes(state)))
    assert same(twin.state_dict(), state)
    if hasattr(twin, "_store"):
        twin._store.check()
    assert twin.draw(B).step == state["step"]


def look(sampler: Any, number: int) -> None:
    """One of the ways to read."""
    match number % 6:
        case 0 | 1:
            p = sampler.probabilities()
            assert p.shape == (N,)
            assert (p >= 0.0).all()
            assert abs(p.sum() - 1.0) < 1e-9
        case 2:
            q = sampler.priorities()
            assert q.shape == (N,)
            assert ((q >= 0.0) & (q < 200.0)).all()
        case 3:
            before, after = sampler.summary(), sampler.summary()
            assert before["step"] <= after["step"]
            assert before["updates"] <= after["updates"]
            assert before["seen"] <= after["seen"] <= N
        case 4:
            assert (sampler.ages() >= 0).all()
        case 5:
            assert np.unique(sampler.stalest(7)).size == 7


def work(sampler: Any, place: int, rounds: int, every: int) -> tuple[list[Batch], list[dict[str, Any]]]:
    """One thread's part: its batches, each fed back, and the states it took."""
    made: list[Batch] = []
    states = []
    for number in range(rounds):
        count = min(2, rounds - len(made)) if place % 2 else 1
        for batch in take(sampler, count):
            tell(sampler, batch, parts=1 + batch.step % 2)
            made.append(batch)
        look(sampler, number + place)
        if number % every == place % every:
            states.append(sampler.state_dict())
        if len(made) == rounds:
            break
    return made, states


def eight(sampler: Any, rounds: int, every: int = 5) -> tuple[list[Batch], list[dict[str, Any]]]:
    """The batches by step, and all the states."""
    works = [functools.partial(work, sampler, place, rounds, every) for place in range(THREADS)]
    done = at_once(works, nudge=rounds < LONG)
    made = sorted((batch for batches, _ in done for batch in batches), key=lambda batch: batch.step)
    return made, [state for _, states in done for state in states]


def check_end(kind: str, sampler: Any, made: list[Batch]) -> None:
    """Each step was drawn once, no update was lost, and weights are those of the draw."""
    total = len(made)
    assert [batch.step for batch in made] == list(range(total))
    summary = sampler.summary()
    assert (summary["step"], summary["nonfinite"]) == (total, 0)
    assert summary["updates"] == sum(1 + batch.step % 2 for batch in made)
    newest = np.full(N, -1)
    for batch in made:
        newest[batch.index] = batch.step
        np.testing.assert_allclose(batch.weight, 1.0 / (N * batch.probability), rtol=1e-5)
    state = sampler.state_dict()
    np.testing.assert_array_equal(state["newest"], newest)
    check_state(kind, state)
    drawn = np.concatenate([batch.index for batch in made])
    whole = {"uniform": drawn.size // N, "without a pass": 0}.get(kind, 1)
    passes = drawn[: whole * N].reshape(-1, N)
    np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(N), (len(passes), 1)))
    if hasattr(sampler, "_store"):
        sampler._store.check()


def drive(kind: str, sampler: Any, rounds: int) -> None:
    """Eight threads on a sampler without a lag, and all that must hold then."""
    made, states = eight(sampler, rounds, every=5 if rounds < LONG else 1000)
    assert len(made) == THREADS * rounds
    assert states
    for state in states:
        check_state(kind, state)
    check_end(kind, sampler, made)


def drive_under_a_lag(kind: str, sampler: Any, rounds: int) -> None:
    """Eight threads under a lag: the draws of one thread, and every state on the way leads to them."""
    alone, expected = a_sampler(kind, LAG), []
    for _ in range(THREADS * rounds):
        (batch,) = take(alone)
        tell(alone, batch)
        expected.append(batch)
    made, states = eight(sampler, rounds, every=5 if rounds < LONG else 5000)
    assert [batch.step for batch in made] == list(range(len(expected)))
    assert all(map(same_batch, made, expected))
    assert states
    for state in states:
        check_known(state)
        check_future(kind, state, expected)
    ended, told = sampler.state_dict(), alone.state_dict()
    for one in (ended, told):
        one["counts"].pop("updates")  # some came in two parts
    assert same(ended, told)


def check_future(kind: str, state: dict[str, Any], expected: list[Batch]) -> None:
    """A sampler that goes on from ``state`` makes the draws of one that ran through."""
    twin = a_sampler(kind, LAG)
    twin.load_state_dict(from_bytes(to_bytes(state)))
    for step in range(state["step"], min(state["step"] + 3 * N // B, len(expected))):
        while True:  # those in flight come first
            (batch,) = take(twin)
            assert same_batch(batch, expected[batch.step])
            tell(twin, batch)
            if batch.step >= step:
                break
        assert batch.step == step


def same_batch(one: Batch, other: Batch) -> bool:
    return one.step == other.step and all(map(np.array_equal, one[1:], other[1:]))


@pytest.mark.parametrize("kind", KINDS)
def test_eight_threads_on_one_sampler(kind: str) -> None:
    drive(kind, a_sampler(kind), ROUNDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.every(2)
def test_eight_threads_under_a_lag_make_the_draws_of_one(kind: str) -> None:
    drive_under_a_lag(kind, a_sampler(kind, LAG), ROUNDS)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_eight_threads_on_one_sampler_for_long(kind: str) -> None:
    drive(kind, a_sampler(kind), LONG)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_eight_threads_under_a_lag_make_the_draws_of_one_for_long(kind: str) -> None:
    drive_under_a_lag(kind, a_sampler(kind, LAG), LONG)


# --- states taken in ------------------------------------------------------------------------------


def take_states_in(sampler: Any, rounds: int) -> None:
    """Six threads draw and feed back while two set the sampler back to where it was some time ago."""
    refused = r"feedback for step|was not in the draw"  # what came back was of a draw that is undone

    def train(place: int) -> None:
        for number in range(rounds):
            for batch in take(sampler, 1 + place % 2, seconds=0.001):
                try:
                    tell(sampler, batch, parts=1 + number % 2)
                except ValueError as error:
                    if sampler.feedback_lag is None or not any(word in str(error) for word in refused.split("|")):
                        raise
            look_only(sampler)

    def set_back() -> None:
        for _ in range(rounds // 4):
            state = sampler.state_dict()
            look_only(sampler)
            sampler.load_state_dict(state)

    at_once([functools.partial(train, place) for place in range(6)] + [set_back] * 2, nudge=True)


def look_only(sampler: Any) -> None:
    assert abs(sampler.probabilities().sum() - 1.0) < 1e-9


@pytest.mark.parametrize("lag", [None, LAG])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.each_value
def test_states_are_taken_in_while_others_draw(kind: str, lag: int | None) -> None:
    """Afterwards the sampler is whole: its state is of one moment, and another one goes on from it as it does."""
    sampler = a_sampler(kind, lag)
    take_states_in(sampler, 4 * ROUNDS)
    state = sampler.state_dict()
    check_known(state)
    twin = a_sampler(kind, lag)
    twin.load_state_dict(state)
    sampler.rewind()
    for _ in range(2 * N // B):
        (one,), (other,) = take(sampler), take(twin)
        assert same_batch(one, other)
        tell(sampler, one)
        tell(twin, other)
    assert same(sampler.state_dict(), twin.state_dict())


# --- a lock that is missing -----------------------------------------------------------------------


class Leaky:
    """A lock that lets some methods through."""

    def __init__(self, lock: Any, *through: str) -> None:
        self.lock, self.through = lock, through

    def __enter__(self) -> None:
        if sys._getframe(1).f_code.co_name not in self.through:
            self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        if sys._getframe(1).f_code.co_name not in self.through:
            self.lock.release()


# Not in a pass over all samples: a pass that is overrun has no end.
FAULTS: dict[str, tuple[str, int | None, tuple[str, ...]]] = {
    "draws are not locked": ("without a pass", None, ("poll", "poll_rows")),
    "updates are not locked": ("without a pass", None, ("update",)),
    "states are not locked": ("without a pass", None, ("state_dict",)),
    "states under a lag are not locked": ("importance", LAG, ("state_dict",)),
    "ranks are updated without the lock": ("ranked", None, ("update",)),
    "ranks are read without the lock": ("ranked", None, ("probabilities",)),
}


def is_found(kind: str, lag: int | None, through: tuple[str, ...]) -> bool:
    sampler = a_sampler(kind, lag)
    sampler._lock = Leaky(sampler._lock, *through)
    try:
        (drive if lag is None else drive_under_a_lag)(kind, sampler, 2 * ROUNDS)
    except Exception:
        return True
    return False


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lock_that_is_missing_is_found(fault: str) -> None:
    """In one of some runs: which threads meet is chance."""
    assert any(is_found(*FAULTS[fault]) for _ in range(40))


# --- pipelines ------------------------------------------------------------------------------------


def epoch(train: Any, sampler: Any, x: np.ndarray, epochs: int) -> list[int]:
    """The steps of the batches of so many epochs, each of which is fed back."""
    steps = []
    for _ in range(epochs):
        for got, sampling in train:
            index, step = sampling["index"].numpy(), int(sampling["step"][0])
            np.testing.assert_array_equal(got, x[index])
            sampler.update(index, losses_of(index, step), step=step)
            steps.append(step)
    return steps


def test_eight_threads_with_a_pipeline_each(tmp_path: Path) -> None:
    """Over one sampler; and one more thread saves it again and again, each time as a whole."""
    sampler, x = ImportanceSampler(N, seed=0), np.random.default_rng(0).normal(size=(N, 3))
    snapshots = Snapshots(tmp_path, {"sampler": sampler}, keep=100)
    works: list[Callable[[], Any]] = [
        functools.partial(epoch, importance_dataset(x, sampler, B), sampler, x, 4) for _ in range(THREADS)
    ]

    def save() -> list[int]:
        return [snapshots.save(number) and number for number in range(1, 6)]

    *steps, _ = at_once([*works, save])
    assert [len(each) for each in steps] == [4 * N // B] * THREADS
    assert all(map(np.array_equal, map(sorted, steps), steps))
    drawn = sorted(itertools.chain(*steps))
    assert np.unique(drawn).size == len(drawn)
    assert drawn[-1] < sampler.step  # some were drawn ahead and never taken
    check_state("importance", sampler.state_dict())
    assert sampler.summary()["updates"] == len(drawn)
    again = ImportanceSampler(N, seed=1)
    assert Snapshots(tmp_path, {"sampler": again}).restore() == 5
    check_state("importance", again.state_dict())


def test_eight_threads_with_one_iterator_under_a_lag() -> None:
    """Whoever takes a batch: they are those of one thread."""
    lag, total = 12, 40
    alone, expected = ImportanceSampler(N, seed=0, feedback_lag=lag), []
    for _ in range(total):
        (batch,) = take(alone)
        tell(alone, batch)
        expected.append(batch)
    sampler = ImportanceSampler(N, seed=0, feedback_lag=lag, feedback_timeout=HANGS)
    iterator = iter(importance_dataset(np.arange(N), sampler, B).repeat(total * B // N))
    made: list[Batch] = []

    def consume() -> None:
        while (got := next(iterator, None)) is not None:
            sampling = {name: part.numpy() for name, part in got[1].items()}
            made.append(Batch(int(sampling["step"][0]), *(sampling[n] for n in ("index", "weight", "probability"))))
            tell(sampler, made[-1])

    at_once([consume] * THREADS)
    made.sort(key=lambda batch: batch.step)
    assert len(made) == total
    assert all(map(same_batch, made, expected))
