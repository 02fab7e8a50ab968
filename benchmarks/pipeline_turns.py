"""A pipeline's turn: batches taken for a while, as training takes them, and what each took.

    contestant = Local(entry.build(setting), setting)
    contestant.turn(64)                   # (µs for B samples, 0.0): the mean over 64 batches
    steps = steps_within(contestant, seconds=0.15, epoch=196)

The consumer is one compiled function that loops ``for _ in tf.range(n): batch = next(iterator)`` over
``iter(dataset.repeat())``, as ``fit`` takes its batches inside a compiled function; it adds up the length of each
batch, so that every one is there as a tensor and smaller last ones count as what they are. What lives in Python
(NumPy, torch, Grain), and the figures called *eager*, are consumed by a plain loop in Python.

A turn begins an iterator of its own and takes some batches untimed: until the pipeline's buffers are as
full as they are when batches are taken without pause. Then the clock runs. An iterator that lay waiting between two
turns would have filled its buffers meanwhile, at the cost of the others' turns, and TensorFlow makes a buffer larger
each time it was found full and then empty; after some turns one would measure nothing but what lay ready.

A *cold* turn is an epoch from the beginning of the iterator on, with all of the files out of the page cache, or what a
slow pipeline does of it in some seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from benchmarks import pipeline_files as files
from benchmarks.measuring import Contestant, Lost
from benchmarks.pipeline_data import Array, Data, check_batch
from benchmarks.pipelines import Made, Setting

MOST_STEPS = 1 << 16  # in a turn
MARGIN = 8  # untimed batches, besides those that may lie ready
LONGEST = 3  # times its share of the time a turn may take, if that makes it a whole epoch
CHECKED = 2  # batches looked at before anything is timed
TRIAL_STEPS = 1  # of the very first turn


class Taking(Contestant, Protocol):
    """A contestant that can also do an epoch from the beginning of its iterator on, and tells what may lie ready."""

    ahead: int

    def epoch(self, steps: int) -> float:
        """Begin, and take ``steps`` batches; the mean µs for B samples."""
        ...


class Local:
    """A pipeline of this process; whatever it raises becomes ``Lost``."""

    def __init__(self, made: Made, setting: Setting, *, eager: bool = False) -> None:
        self._made, self._setting = made, setting
        self.ahead = made.ahead
        graph = isinstance(made.batches, tf.data.Dataset)
        self._take = compiled(made.feed_back) if graph and not eager else take_in_python

    def turn(self, steps: int) -> tuple[float, float]:
        """Take ``steps`` batches; the mean µs for B samples, and nothing for what comes after."""
        return self._timed(steps, lead=lead_in(self.ahead, steps)), 0.0

    def epoch(self, steps: int) -> float:
        """The same from the beginning of the iterator on."""
        return self._timed(steps, lead=0)

    def check(self) -> None:
        """Raise ``ValueError`` where a batch is not made of the data set's samples, as its index names them."""
        for batch in take_some(self.begin(), CHECKED):
            x, y, index = parts(batch)
            check_batch(self._setting.data, x, y, index)

    def begin(self) -> Iterator[Any]:
        """A new iterator."""
        iterator: Iterator[Any] = iter(self._made.batches() if callable(self._made.batches) else self._made.batches)
        return iterator

    def _timed(self, steps: int, *, lead: int) -> float:
        try:
            start = time.perf_counter_ns()
            iterator = self.begin()
            if lead:
                int(self._take(iterator, tf.constant(lead)))
                start = time.perf_counter_ns()
            seen = int(self._take(iterator, tf.constant(steps)))
            end = time.perf_counter_ns()
        except Exception as error:
            raise Lost(reason(error)) from error
        return (end - start) / 1e3 * self._setting.batch / seen


class Cold:
    """Any contestant, its files out of the page cache whenever its turn comes."""

    def __init__(self, taking: Taking, paths: list[Path]) -> None:
        self._taking, self._paths = taking, paths
        self.stayed = 0.0  # the greatest share of pages that did not go

    def turn(self, steps: int) -> tuple[float, float]:
        """An epoch of ``steps`` batches."""
        self.stayed = max(self.stayed, files.drop(self._paths))
        if self.stayed > files.STILL_COLD:
            raise Lost(f"{self.stayed:.0%} of its pages stay in memory: there is no cold reading of them here")
        return self._taking.epoch(steps), 0.0


def compiled(feed_back: Callable[[Any], Any] | None) -> Callable[[Any, Any], Any]:
    """The loop over an iterator: how many samples ``count`` batches held."""

    def take(iterator: Any, count: Any) -> Any:
        seen = tf.constant(0, tf.int64)
        for _ in tf.range(count):
            batch = next(iterator)
            seen += length(batch)
            if feed_back is not None:
                seen += feed_back(batch)
        return seen

    function: Callable[[Any, Any], Any] = tf.function(take)
    return function


def length(batch: Any) -> tf.Tensor:
    """How many samples a batch of tensors has, () int64."""
    return tf.shape(tf.nest.flatten(batch)[0], tf.int64)[0]


def take_in_python(iterator: Iterator[Any], count: Any) -> int:
    """The same in Python."""
    seen = 0
    for batch in take_some(iterator, int(count)):
        seen += len(batch[1])
    return seen


def take_some(iterator: Iterator[Any], count: int) -> Iterator[Any]:
    """So many batches of an endless iterator, one by one."""
    for _ in range(count):
        yield next(iterator)


def parts(batch: Any) -> tuple[Array, Array, Array | None]:
    """x, y, and the index where the batch has one."""
    x, y, *more = batch
    index = np.asarray(more[0]["index"]) if more else None
    return np.asarray(x), np.asarray(y), index


def lead_in(ahead: int, steps: int) -> int:
    """How many batches to take untimed, before so many timed ones."""
    return ahead + MARGIN if ahead else max(1, min(MARGIN, steps))


def steps_within(contestant: Taking, seconds: float, epoch: int) -> int:
    """Compile and warm; how many batches a turn of ``seconds`` holds.

    At least twice as many as may lie ready, as these come in bursts. An epoch if that takes no more than some turns, so
    that what is done once an epoch is in the figure.
    """
    contestant.turn(TRIAL_STEPS)
    steps = least = max(1, 2 * contestant.ahead)
    for share in (0.25, 1.0):
        took, _ = contestant.turn(steps)
        steps = int(np.clip(share * seconds * 1e6 / took, least, MOST_STEPS))
    return epoch if steps < epoch <= LONGEST * steps else steps


def distinct_in_epoch(local: Local, epoch: int) -> int | None:
    """How many different samples an epoch of draws holds; None for a pipeline that gives no index."""
    seen = [parts(batch)[2] for batch in take_some(local.begin(), epoch)]
    known = [index for index in seen if index is not None]
    return int(np.unique(np.concatenate(known)).size) if known else None


def reason(error: BaseException) -> str:
    """An error in one line."""
    told = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return told if len(told) <= 200 else f"{told[:197]}..."


def epoch_of(data: Data, batch: int) -> int:
    """Batches an epoch."""
    return -(-len(data) // batch)
