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
draw wait, the call gives up after some milliseconds and the graph calls again, so that an iterator can be closed at
any time and no thread of TensorFlow is held.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.columns import Array
from pipeline.sources import Source, as_source
from sampler import Draw, checks

PATIENCE = 0.02  # seconds a call waits for feedback before it gives the thread back
PREFETCH = 2
GRACE = 0.02  # seconds for calls on their way, when the program ends
COLUMNS = {"index": tf.int64, "weight": tf.float32, "probability": tf.float32, "step": tf.int64}

logger = logging.getLogger("pipeline")


def importance_sampling(
    sampler: Any, batch_size: int, *, prefetch: int | None = None
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A transformation for ``dataset.apply``: the same samples, in batches that ``sampler`` draws.

    The dataset must be finite and unbatched, with as many elements as the sampler has samples; it is read once, into
    memory. ``map`` on the result works on batches. Do not drop samples after the draw (``unbatch().filter()``): the
    estimate would be biased, and under a ``feedback_lag`` draws would wait for their losses. Filter before.

    ``fit`` on the result needs ``LossFeedback``. Without it Keras takes ``sampling`` for sample weights and raises a
    ``TypeError`` that speaks of an int64 tensor where float32 was expected.

    Args:
        sampler: an ``ImportanceSampler`` or one of its siblings.
        batch_size: B ≥ 1.
        prefetch: batches drawn ahead of training. None: 2, or fewer where a short ``feedback_lag`` demands it.
            Draws ahead know less of the latest losses; their weights are right all the same.

    Applying it raises ``ValueError`` where the number of elements is not the sampler's, for an infinite dataset, and
    for one that is shuffled anew each time.
    """
    checks.whole("batch_size", batch_size, least=1)
    _prefetch(prefetch, sampler.feedback_lag)

    def apply(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return importance_dataset(dataset, sampler, batch_size, prefetch=prefetch)

    return apply


def importance_dataset(source: Any, sampler: Any, batch_size: int, *, prefetch: int | None = None) -> tf.data.Dataset:
    """The same over any source: arrays, memory maps, a dataset, ``__len__`` and ``__getitem__``.

    Args:
        source: what ``pipeline.sources.as_source`` takes. A tuple of one, two or three is x, y and
            sample weights; anything else is x.
        sampler, batch_size, prefetch: as for ``importance_sampling``.
    """
    batch_size = checks.whole("batch_size", batch_size, least=1)
    ahead = _prefetch(prefetch, sampler.feedback_lag)
    data = as_source(source, size=len(sampler))
    if len(data) != len(sampler):
        raise ValueError(
            f"the source has {len(data)} elements, the sampler {len(sampler)} samples; they must be equal: make the "
            f"sampler with num_samples={len(data)}"
        )
    if isinstance(data.spec, tuple) and len(data.spec) not in (1, 2, 3):
        raise ValueError(f"elements must be x, (x, y) or (x, y, sample_weight), got a tuple of {len(data.spec)}")
    ahead = _prefetch(prefetch, sampler.feedback_lag)
    steps = math.ceil(len(sampler) / batch_size)
    return _epoch(_Feeder(data, sampler, batch_size, steps), ahead)


def _prefetch(prefetch: int | None, lag: int | None) -> int:
    """How many batches to draw ahead; with a lag of k at most k - 1, or draws would wait for their own training."""
    most = math.inf if lag is None else lag - 1
    if prefetch is None:
        return int(min(PREFETCH, most))
    prefetch = checks.whole("prefetch", prefetch, least=0)
    if prefetch > most:
        raise ValueError(
            f"prefetch={prefetch} needs a feedback_lag of at least {prefetch + 1}, got {lag}: a draw made that far "
            "ahead cannot know the feedback it must use; lower prefetch or raise feedback_lag"
        )
    return prefetch


def _epoch(feeder: _Feeder, ahead: int) -> tf.data.Dataset:
    """One epoch: calls that make batches, those drawn ahead, those that left, and what they look like outside.

    A call that found feedback missing gives place -1 and is made again. After the last batch comes one more element, an
    end without a draw, so that it is known whether the consumer asked on.
    """
    calls = tf.data.Dataset.counter().scan((tf.constant(0, tf.int64), tf.constant(0, tf.int64)), feeder.call)
    ready = calls.filter(lambda place, *_: place >= 0).take(feeder.steps + 1)
    if ahead:
        ready = ready.prefetch(ahead)
    epoch = ready.filter(feeder.leaves).map(feeder.element)
    options = tf.data.Options()
    # With these TensorFlow would draw ahead on its own account.
    options.experimental_optimization.inject_prefetch = False
    options.experimental_optimization.map_parallelization = False
    options.experimental_optimization.filter_parallelization = False
    return epoch.apply(tf.data.experimental.assert_cardinality(feeder.steps)).with_options(options)


class _Iterations:
    """What is known of the iterations over one sampler's draws; the current one is the one that began last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.current = 0
        self.complete = False  # whether the consumer took the last batch of the current iteration,
        self.ended = False  # and whether it asked on after that
        self.updates = 0  # the sampler's count when the iteration began
        self.warned = False

    def begin(self, updates: int) -> int:
        """A new iteration; returns its number, from 1 on."""
        self.current += 1
        self.complete, self.ended, self.updates = False, False, updates
        return self.current

    def broken_off(self, updates: int) -> bool:
        """Whether the consumer left before it was done: before the last batch, or with it in its hands.

        Keras takes the last batch and does not ask on. Where no loss ever came back nobody trains, and that is taken
        for the end.
        """
        return self.current > 0 and not self.ended and (not self.complete or updates > 0)

    def without_feedback(self, updates: int) -> bool:
        """Whether the consumer took all batches and no loss came back."""
        return self.complete and updates == self.updates


_ITERATIONS: weakref.WeakKeyDictionary[Any, _Iterations] = weakref.WeakKeyDictionary()  # by sampler
_LEAVING = threading.Event()  # set when the interpreter is about to end


@atexit.register
def _leave() -> None:
    """Let every thread of TensorFlow that is in here out, and none in again, before the interpreter goes.

    One that came later would wait for an interpreter that is no more, and the end of its iterator for it.
    """
    _LEAVING.set()
    for iterations in list(_ITERATIONS.values()):
        if iterations.lock.acquire(timeout=1.0):
            iterations.lock.release()
    if _ITERATIONS:
        time.sleep(GRACE)


class _Feeder:
    """Joins a sampler to a source, and watches over the iterations."""

    def __init__(self, source: Source, sampler: Any, batch_size: int, steps: int) -> None:
        self.source = source
        self.sampler = sampler
        self.batch_size = batch_size
        self.steps = steps
        self.iterations = _ITERATIONS.setdefault(sampler, _Iterations())

    # --- in the graph ---

    def call(self, state: tuple[tf.Tensor, tf.Tensor], _: tf.Tensor) -> tuple[Any, Any]:
        """One call of ``next_batch``. The state is the number of the iteration and the place in it, from 0 on."""
        iteration, place = state
        dtypes = [tf.bool, tf.int64, *COLUMNS.values(), *self.source.dtypes]
        ready, iteration, *parts = tf.numpy_function(self.next_batch, [iteration, place], dtypes)
        ready, iteration = tf.ensure_shape(ready, ()), tf.ensure_shape(iteration, ())
        element = (tf.where(ready, place, -1), iteration, *parts)
        return (iteration, place + tf.cast(ready, tf.int64)), element

    def leaves(self, place: tf.Tensor, iteration: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        """Whether this is a batch. The last one is told when it leaves, and so is the end after it; under a lag all
        are, since batches drawn ahead must not leave an iteration that another has replaced.
        """

        def tell() -> tf.Tensor:
            return tf.ensure_shape(tf.numpy_function(self.left, [iteration, place], tf.bool), ())

        if self.sampler.feedback_lag is not None:
            return tell()
        return tf.cond(place >= self.steps - 1, tell, lambda: tf.constant(True))

    def element(self, _: tf.Tensor, __: tf.Tensor, *parts: tf.Tensor) -> Any:
        """``(x, y, sampling)`` or ``(x, sampling)``, with the shapes that are known."""
        columns = parts[: len(COLUMNS)]
        sampling = {
            name: tf.ensure_shape(part, (self.batch_size,)) for name, part in zip(COLUMNS, columns, strict=True)
        }
        return _element(self.source.pack(parts[len(COLUMNS) :], self.batch_size), sampling)

    # --- outside it ---

    def next_batch(self, iteration: int, place: int) -> list[Any]:
        """``[ready, iteration, index, weight, probability, step, *the source's arrays]``."""
        if _LEAVING.is_set():
            raise RuntimeError("the program is ending")
        with self.iterations.lock:  # an iteration that has been replaced must not take a draw of the new one
            if iteration == 0:
                iteration = self._begin()
            self._check_current(iteration)
            if place == self.steps:
                return [np.True_, np.int64(iteration), *self._nothing()]
            draw = self.sampler.poll(self.batch_size, seconds=PATIENCE)
        if draw is None:
            return [np.False_, np.int64(iteration), *self._nothing()]
        return [np.True_, np.int64(iteration), *_columns(draw), *self.source.take(draw.index)]

    def left(self, iteration: int, place: int) -> np.bool_:
        """The consumer takes a batch, or asks on after the last; gives whether there is one for it."""
        if place < self.steps - 1:
            self._check_current(iteration)
            return np.True_
        with self.iterations.lock:
            self._check_current(iteration)
            if iteration == self.iterations.current:
                self.iterations.complete = True
                self.iterations.ended = bool(place == self.steps)
                if self.iterations.ended:
                    self._warn_without_feedback(self._updates())
        return np.bool_(place < self.steps)

    def _begin(self) -> int:
        """A new iteration begins: what an unfinished one left behind is handed out again first."""
        updates = self._updates()
        self._warn_without_feedback(updates)
        if self.iterations.broken_off(updates):
            self.sampler.rewind()
        return self.iterations.begin(updates)

    def _updates(self) -> int:
        return int(self.sampler.summary()["updates"])

    def _check_current(self, iteration: int) -> None:
        if self.sampler.feedback_lag is not None and iteration != self.iterations.current:
            raise RuntimeError(
                "another iteration over this sampler's draws has begun. With a feedback_lag only one can go on at "
                "a time, or the order of the draws would not be fixed; finish one first, or use feedback_lag=None"
            )

    def _warn_without_feedback(self, updates: int) -> None:
        silent = self.sampler.uses_feedback and self.iterations.without_feedback(updates)
        if self.iterations.warned or not silent:
            return
        self.iterations.warned = True
        message = (
            "a whole pass over the data brought no losses back, so priorities cannot change; is "
            "LossFeedback(model, sampler) among fit's callbacks, or does the loop call sampler.update(...)?"
        )
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        except RuntimeWarning:  # warnings are errors here, but an iteration without training must go on
            logger.warning(message)

    def _nothing(self) -> list[Array]:
        dtypes = [*COLUMNS.values(), *self.source.dtypes]
        return [np.zeros(0, object if dtype == tf.string else dtype.as_numpy_dtype) for dtype in dtypes]


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
