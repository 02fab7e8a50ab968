"""The generator: batches drawn by a sampler, as a ``tf.data.Dataset``.

    from pipeline import importance_sampling, importance_dataset

    train = dataset.apply(importance_sampling(sampler, batch_size=128))     # an existing, unbatched dataset
    train = importance_dataset((x, y), sampler, batch_size=128)             # arrays, memory maps, ...

Elements are ``(x, y, sampling)``, or ``(x, sampling)`` where the data are inputs alone. ``sampling`` is a dict::

    index        (B,) int64     the samples drawn
    weight       (B,) float32   their importance weights
    probability  (B,) float32   expected number of times in the batch, over B
    step         (B,) int64     the draw's step, B times, so that replicas can split it
    sample_weight (B,) ...      the third component of the data, where there is one

The cardinality is one epoch, ceil(N / B) batches of exactly B; every epoch goes on where the last one stopped.

One Python call makes a whole batch: the draw, and the gathering of its samples. Where a ``feedback_lag`` makes the
draw wait, the call gives up after some milliseconds and the graph calls again, so that an iterator can be closed at any time
and no thread of TensorFlow is held.
"""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.sources import Array, Source, as_source
from sampler import Draw

PATIENCE = 0.02  # seconds a call waits for feedback before it gives the thread back
PREFETCH = 2

logger = logging.getLogger("pipeline")


def importance_sampling(
    sampler: Any, batch_size: int, *, prefetch: int | None = None
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A transformation for ``dataset.apply``: the same samples, in batches that ``sampler`` draws.

    The dataset must be finite and unbatched, with as many elements as the sampler has samples; it is read once, into
    memory. ``map`` on the result works on batches.

    Args:
        sampler: an ``ImportanceSampler`` or one of its siblings.
        batch_size: B ≥ 1.
        prefetch: batches drawn ahead of training. None: 2, or fewer where a short ``feedback_lag`` demands it.
            Draws ahead know less of the latest losses; their weights are right all the same.

    Applying it raises ``ValueError`` where the number of elements is not the sampler's, for an infinite dataset, and
    for one that is shuffled anew each time.
    """

    def apply(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return importance_dataset(dataset, sampler, batch_size, prefetch=prefetch)

    return apply


def importance_dataset(
    source: Any, sampler: Any, batch_size: int, *, prefetch: int | None = None
) -> tf.data.Dataset:
    """The same over any source: arrays, memory maps, a dataset, ``__len__`` and ``__getitem__``.

    Args:
        source: what ``pipeline.sources.as_source`` takes. A tuple of one, two or three is x, y and
            sample weights; anything else is x.
        sampler, batch_size, prefetch: as for ``importance_sampling``.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    data = as_source(source, size=len(sampler))
    if len(data) != len(sampler):
        raise ValueError(
            f"the source has {len(data)} elements, the sampler {len(sampler)} samples; they must be equal: make the "
            f"sampler with num_samples={len(data)}"
        )
    if isinstance(data.spec, tuple) and len(data.spec) not in (1, 2, 3):
        raise ValueError(
            f"elements must be x, (x, y) or (x, y, sample_weight), got a tuple of {len(data.spec)}"
        )
    ahead = _prefetch(prefetch, sampler.feedback_lag)
    steps = math.ceil(len(sampler) / batch_size)
    return _epoch(_Feeder(data, sampler, batch_size, steps), steps, ahead)


def _prefetch(prefetch: int | None, lag: int | None) -> int:
    """How many batches to draw ahead; with a lag of k at most k - 1, or draws would wait for their own training."""
    most = math.inf if lag is None else lag - 1
    if prefetch is None:
        return int(min(PREFETCH, most))
    if prefetch < 0:
        raise ValueError(f"prefetch must be at least 0, got {prefetch}")
    if prefetch > most:
        raise ValueError(
            f"prefetch={prefetch} needs a feedback_lag of at least {prefetch + 1}, got {lag}: a draw made that far ahead "
            "cannot know the feedback it must use; lower prefetch or raise feedback_lag"
        )
    return prefetch


def _epoch(feeder: _Feeder, steps: int, ahead: int) -> tf.data.Dataset:
    """One epoch. Its last batch is not drawn ahead, so that an epoch drawn to its end was asked for to its end."""

    def batches(iteration: tf.Tensor) -> tf.data.Dataset:
        first = tf.data.Dataset.range(steps - 1).map(lambda _: feeder.batch(iteration))
        last = tf.data.Dataset.range(1).map(lambda _: feeder.batch(iteration))
        if ahead:
            first = first.prefetch(ahead)
        return first.concatenate(last).concatenate(nothing(iteration))

    def nothing(iteration: tf.Tensor) -> tf.data.Dataset:
        def end(_: tf.Tensor) -> tf.data.Dataset:
            none = _call(feeder.end, [iteration], tf.int64)
            return tf.data.Dataset.range(none).map(lambda _: feeder.batch(iteration))

        return tf.data.Dataset.range(1).flat_map(end)

    begin = tf.data.Dataset.range(1).map(lambda _: _call(feeder.begin, [], tf.int64))
    return begin.flat_map(batches).apply(tf.data.experimental.assert_cardinality(steps))


def _call(function: Callable[..., Any], inputs: list[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    return tf.ensure_shape(tf.numpy_function(function, inputs, dtype), ())


class _Feeder:
    """Joins a sampler to a source, and watches over the iterations."""

    def __init__(self, source: Source, sampler: Any, batch_size: int, steps: int) -> None:
        self.source = source
        self.sampler = sampler
        self.batch_size = batch_size
        self.steps = steps
        self.lock = threading.Lock()
        self.iteration = 0
        self.drawn = 0  # batches of the current iteration
        self.ended = False  # whether the consumer asked on after the last
        self.updates = 0  # the sampler's count when the iteration began
        self.warned = False

    # --- in the graph ---

    def batch(self, iteration: tf.Tensor) -> Any:
        """One batch, as tensors. Calls ``next_batch`` until there is one."""
        dtypes = [tf.int64, tf.float32, tf.float32, tf.int64, *self.source.dtypes]

        def body(_: tf.Tensor, *__: tf.Tensor) -> list[tf.Tensor]:
            ready, *parts = tf.numpy_function(self.next_batch, [iteration], [tf.bool, *dtypes])
            return [tf.ensure_shape(ready, ()), *parts]

        nothing = [tf.zeros([0], dtype) for dtype in dtypes]
        any_shape = [tf.TensorShape(None)] * len(dtypes)
        _, *parts = tf.while_loop(
            lambda ready, *_: tf.logical_not(ready),
            body,
            [tf.constant(False), *nothing],
            shape_invariants=[tf.TensorShape([]), *any_shape],
        )
        sampling = {
            name: tf.ensure_shape(part, (self.batch_size,))
            for name, part in zip(("index", "weight", "probability", "step"), parts[:4], strict=True)
        }
        return _element(self.source.pack(parts[4:], self.batch_size), sampling)

    # --- outside it ---

    def next_batch(self, iteration: int) -> list[Any]:
        """``[ready, index, weight, probability, step, *the source's arrays]``."""
        self._check_current(iteration)
        draw = self.sampler.poll(self.batch_size, seconds=PATIENCE)
        if draw is None:
            return [np.False_, *self._empty()]
        with self.lock:
            self.drawn += 1
        return [np.True_, *_columns(draw), *self.source.take(draw.index)]

    def begin(self) -> np.int64:
        """A new iteration begins: what an unfinished one left behind is handed out again first."""
        with self.lock:
            fed_back = self._fed_back()
            broken_off = self.iteration > 0 and (self.drawn < self.steps or (fed_back and not self.ended))
            self._warn_without_feedback()
            if broken_off:
                self.sampler.rewind()
            self.iteration += 1
            self.drawn, self.ended, self.updates = 0, False, self.sampler.summary()["updates"]
            return np.int64(self.iteration)

    def end(self, iteration: int) -> np.int64:
        """The consumer asked on after the last batch; there are no more."""
        with self.lock:
            if iteration == self.iteration:
                self.ended = True
                self._warn_without_feedback()
            return np.int64(0)

    def _fed_back(self) -> bool:
        return bool(self.sampler.summary()["updates"] > self.updates)

    def _check_current(self, iteration: int) -> None:
        if self.sampler.feedback_lag is not None and iteration != self.iteration:
            raise RuntimeError(
                "another iteration over this dataset has begun. With a feedback_lag only one can go on at a time, or the "
                "order of the draws would not be fixed; finish one first, or use feedback_lag=None"
            )

    def _warn_without_feedback(self) -> None:
        whole_pass = self.iteration > 0 and self.drawn >= self.steps
        if self.warned or not whole_pass or self._fed_back() or not self.sampler.uses_feedback:
            return
        self.warned = True
        message = (
            "a whole pass over the data brought no losses back, so priorities cannot change; is "
            "LossFeedback(model, sampler) among fit's callbacks, or does the loop call sampler.update(...)?"
        )
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        except RuntimeWarning:  # warnings are errors here, but an iteration without training must go on
            logger.warning(message)

    def _empty(self) -> list[Array]:
        numbers = [np.zeros(0, dtype) for dtype in (np.int64, np.float32, np.float32, np.int64)]
        return numbers + [
            np.zeros(0, object if dtype == tf.string else dtype.as_numpy_dtype)
            for dtype in self.source.dtypes
        ]


def _columns(draw: Draw) -> list[Array]:
    step = np.full(draw.index.size, draw.step, np.int64)
    return [draw.index, draw.weight, draw.probability.astype(np.float32), step]


def _element(data: Any, sampling: dict[str, tf.Tensor]) -> Any:
    """``(x, y, sampling)`` or ``(x, sampling)``."""
    if not isinstance(data, tuple):
        return data, sampling
    if len(data) == 3:
        sampling["sample_weight"] = data[2]
    return (*data[:2], sampling)
