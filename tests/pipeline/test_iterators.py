"""Iterators opened and closed again and again, in every way: threads, open files and memory stay as they are.

What a round may leave is bounded in each of the three, and each bound finds a leak that is planted.
"""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import importance_dataset
from sampler import ImportanceSampler

N, B, LAG = 24, 4, 3
ROUNDS, LONG = 28, 1000
WARM_UP = 0.25  # of the rounds, in which TensorFlow takes what it keeps
SLACK, LEFT = 3 << 20, 2 << 10  # bytes that may come on top: once, and in each round after the warm-up

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
Python = Callable[..., Any]


# --- what is flat ---------------------------------------------------------------------------------


def running() -> int:
    return len(os.listdir("/proc/self/task"))


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def at_rest() -> int:
    """The number of threads, once it falls no more: they end some time after the iterator that they fill."""
    least, since = running(), time.monotonic()
    while time.monotonic() - since < 0.3:
        time.sleep(0.01)
        if running() < least:
            least, since = running(), time.monotonic()
    return least


def ends(most: int, seconds: float) -> bool:
    """Whether no more than ``most`` threads are left, at last."""
    end = time.monotonic() + seconds
    while running() > most and time.monotonic() < end:
        time.sleep(0.01)
    return running() <= most


def check_flat(turn: Callable[[], Any], rounds: int, seconds: float = 30.0) -> None:
    """After a warm-up, that many turns leave no thread and no file open, and 3 MiB and 2 KiB a turn at most."""
    warm = int(WARM_UP * rounds)
    for _ in range(warm):
        turn()
    alive, opened, before = at_rest(), files(), resident()
    for _ in range(rounds - warm):
        turn()
    assert ends(alive, seconds), f"{running()} threads, {alive} after the warm-up"
    assert files() <= opened, f"{files()} files, {opened} after the warm-up"
    grown, most = resident() - before, SLACK + LEFT * (rounds - warm)
    assert grown <= most, f"{grown / 1e6:.1f} MB more than after the warm-up, at most {most / 1e6:.1f} are allowed"


def leaking_threads(kept: list[Any]) -> None:
    """Several a turn, as those that other tests have left in this process may end meanwhile."""
    for _ in range(8):
        kept.append(threading.Event())
        threading.Thread(target=kept[-1].wait, daemon=True).start()


def leaking_files(kept: list[Any]) -> None:
    kept.append(Path(os.devnull).open())  # noqa: SIM115  # it is left open on purpose


def leaking_memory(kept: list[Any]) -> None:
    kept.append(np.ones(4 << 20, np.uint8))  # what a process has left over elsewhere would hold less


@pytest.mark.parametrize(
    ("leak", "words"),
    [(leaking_threads, "threads"), (leaking_files, "files"), (leaking_memory, "MB more than after the warm-up")],
)
def test_a_leak_is_found(leak: Callable[[list[Any]], None], words: str) -> None:
    kept: list[Any] = []
    with pytest.raises(AssertionError, match=words):
        check_flat(lambda: leak(kept), ROUNDS, seconds=0.2)
    for one in kept:
        if not isinstance(one, np.ndarray):
            one.set() if isinstance(one, threading.Event) else one.close()


# --- iterators ------------------------------------------------------------------------------------


class Pipeline:
    """A pipeline, and ways to leave its iterators. Without losses coming back a lag has the producer wait."""

    def __init__(self, lag: int | None) -> None:
        self.sampler = ImportanceSampler(N, losses=np.arange(1.0, N + 1), feedback_lag=lag, seed=0)
        self.train = importance_dataset(np.arange(N), self.sampler, B)
        self.ways = [self.delete, self.break_off, self.exhaust, self.iterate_again, self.two_at_once]

    def feed(self, batch: Any) -> None:
        x, sampling = batch
        np.testing.assert_array_equal(x, sampling["index"])
        self.sampler.update(sampling["index"], np.ones(B), step=sampling["step"])

    def delete(self) -> None:
        iterator = iter(self.train)
        self.feed(next(iterator))
        next(iterator)
        del iterator

    def break_off(self) -> None:
        for count, _ in enumerate(self.train, start=1):
            if count == 2:
                break

    def exhaust(self) -> None:
        for batch in self.train:
            self.feed(batch)

    def iterate_again(self) -> None:
        for _ in range(2):
            for batch in self.train:
                self.feed(batch)
                break

    def two_at_once(self) -> None:
        """Under a lag the first one is refused from then on."""
        first, second = iter(self.train), iter(self.train)
        self.feed(next(first))
        self.feed(next(second))
        if self.sampler.feedback_lag is None:
            self.feed(next(first))
        else:
            with pytest.raises(tf.errors.OpError, match="another iteration"):
                list(itertools.islice(first, N))  # some may have been gathered before


@pytest.mark.fault(32)
@pytest.mark.filterwarnings("ignore:a whole pass over the data brought no losses back")
@pytest.mark.parametrize(
    ("rounds", "lag"), [(ROUNDS, LAG), *(pytest.param(LONG, lag, marks=pytest.mark.soak) for lag in (None, LAG))]
)
def test_iterators_leave_nothing_behind(lag: int | None, rounds: int) -> None:
    """Each round is another way."""
    ways = itertools.cycle(Pipeline(lag).ways)
    check_flat(lambda: next(ways)(), rounds)


@pytest.mark.fault(32)
@pytest.mark.soak
@pytest.mark.parametrize("lag", [None, LAG])
@pytest.mark.parametrize("way", range(5))
def test_a_thousand_iterators_of_each_kind(lag: int | None, way: int) -> None:
    check_flat(Pipeline(lag).ways[way], LONG)


# --- one core, one thread between operations ------------------------------------------------------


ONE_CORE = """
    import faulthandler, gc, os, time
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    faulthandler.dump_traceback_later(540, exit=True)  # tells where it hangs
    import keras
    import numpy as np
    import tensorflow as tf
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    from pipeline import LossFeedback, importance_dataset, importance_sampling
    from sampler import ImportanceSampler

    N, B, EPOCHS, LAG = 96, 8, 2, 6
    x = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    samples = tf.data.Dataset.from_tensor_slices((x, x[:, :1]))
    sampler = ImportanceSampler(N, seed=0, feedback_lag=LAG, feedback_timeout=60.0)
    train = samples.apply(importance_sampling(sampler, B))
    train = train.map(lambda *batch: batch, num_parallel_calls=4).prefetch(2)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")

    class Interrupted(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                raise KeyboardInterrupt

    def fit(train, sampler, epochs, *callbacks):
        callbacks = [LossFeedback(model, sampler), *callbacks]
        model.fit(train, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks)
        return sampler.summary()["updates"]

    print("one core:", fit(train, sampler, EPOCHS))
    for turn in range(2):
        for count, _ in enumerate(train):
            if count == 4 * turn:  # no losses come back: from some batch on draws wait
                break
        gc.collect()
    kept = iter(train)  # is left waiting while another one begins
    next(kept)
    try:
        fit(train, sampler, EPOCHS, Interrupted())
    except KeyboardInterrupt:
        gc.collect()
    print("interrupted:", sampler.summary()["updates"])
    print("again:", fit(train, sampler, EPOCHS))
    del kept
    gc.collect()
    assert sampler.summary()["in_flight"] <= LAG

    for thread in os.listdir("/proc/self/task"):  # on all cores from here on
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # it has ended meanwhile
            pass
    known = np.arange(1.0, 65.0)
    sampler = ImportanceSampler(64, seed=0, feedback_lag=2, losses=known)
    blocked = importance_dataset(known, sampler, 4)
    for _ in range(5):
        begin = time.monotonic()
        for count, _ in enumerate(blocked):
            time.sleep(0.1)
            if count == 1:  # the third draw waits for the first one's feedback
                break
        assert time.monotonic() - begin < 5, time.monotonic() - begin

    sampler = ImportanceSampler(N, seed=0, feedback_lag=3)
    train = importance_dataset((x, x[:, :1]), sampler, 4).map(lambda *batch: batch, num_parallel_calls=4).prefetch(2)
    print("all cores:", fit(train, sampler, 2), flush=True)
"""


@pytest.mark.fault(33)
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such call on this system")
def test_one_thread_between_operations(python: Python) -> None:
    """On one core: a training under a lag, iterators broken off while their producer waits, and a training that is
    interrupted. On all of them: iterators broken off again and again, and a training on arrays.
    """
    ended = python(ONE_CORE, seconds=600.0)
    lines = ["one core: 24", "interrupted: 29", "again: 53", "all cores: 48"]
    assert (ended.returncode, ended.stdout.splitlines()) == (0, lines), ended.stdout + ended.stderr
