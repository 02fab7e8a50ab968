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

The cardinality is one epoch, ceil(N / B) batches of exactly B; every epoch goes on where the last one stopped. Where
the sampler leaves samples out, an epoch ends with its pass, and the cardinality is unknown (:mod:`pipeline.epochs`).

One call into Python draws as many batches as may be ahead of training, and gathers their samples where TensorFlow
cannot read the memory of the data in place; elsewhere the graph gathers. Where a ``feedback_lag`` makes the draw wait,
the call gives up after some milliseconds and the graph calls again, so that an iterator can be closed at any time and
no thread of TensorFlow is held.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.epochs import epoch_samples
from pipeline.iterations import iterations_begun as iterations_begun
from pipeline.iterations import iterations_over
from pipeline.memory import Array, aligned, weakly
from pipeline.sources import Source, as_source
from pipeline.worker import inside
from sampler import checks

PATIENCE = 0.02  # seconds a call waits for feedback before it gives the thread back
LEAST_AHEAD, MOST_AHEAD = 2, 64  # batches drawn ahead by default
CALL_BYTES = 1 << 24  # that one call brings from outside the graph
GROUP_BYTES = 1 << 22  # of batches gathered together
LEAST_TOGETHER = 4  # batches gathered with their call
BUFFER_BYTES = 1 << 24  # of batches gathered ahead, if there is more than one

logger = logging.getLogger("pipeline")


def importance_sampling(
    sampler: Any,
    batch_size: int,
    *,
    cache: str | os.PathLike[str] | None = None,
    map_fn: Callable[..., Any] | None = None,
    num_parallel_calls: int | None = None,
    prefetch: int | None = None,
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A transformation for ``dataset.apply``: the same samples, in batches that ``sampler`` draws.

    The dataset must be finite and unbatched, with as many elements as the sampler has samples; it is read once. ``map``
    on the result works on batches. Do not drop samples after the draw (``unbatch().filter()``): the
    estimate would be biased, and under a ``feedback_lag`` draws would wait for their losses. Filter before.

    ``fit`` on the result needs ``LossFeedback``. Without it Keras takes ``sampling`` for sample weights and raises a
    ``TypeError`` that speaks of an int64 tensor where float32 was expected.

    Args:
        sampler: an ``ImportanceSampler`` or one of its siblings.
        batch_size: B ≥ 1.
        cache: where the elements are kept: ``"memory"`` (also None), or a directory, in files that the next run uses
            again. They are known by their number, structure and first 16 elements: name another directory where
            anything else about the data changes.
        map_fn: called with each element by itself, after the draw, as ``Dataset.map`` calls it: for decoding and
            augmentation. What it returns takes the element's place.
        num_parallel_calls: calls of ``map_fn`` at the same time; None lets ``tf.data`` choose. The order stays. More
            than one call at a time draws up to 1 + calls / B batches more ahead than ``prefetch`` says.
        prefetch: batches drawn ahead of training at most, ≥ 0. None: a tenth of an epoch, at least 2 and at most 64, or
            fewer where a short ``feedback_lag`` demands it, or where each batch takes long to fetch. A call into
            Python takes a fifth of a millisecond and draws as many batches as there is room for, so more is faster. A
            draw made ahead does not know the losses of the batches before it that are not trained on yet. Its weight
            is right all the same, and up to a tenth of an epoch hardly matters: a sample is drawn about once in an
            epoch, so its loss is half an epoch old anyway.

    Applying it raises ``ValueError`` where the number of elements is not the sampler's, for an infinite dataset, and
    for one that is shuffled anew each time.
    """
    checks.whole("batch_size", batch_size, least=1)

    def apply(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return importance_dataset(
            dataset,
            sampler,
            batch_size,
            cache=cache,
            map_fn=map_fn,
            num_parallel_calls=num_parallel_calls,
            prefetch=prefetch,
        )

    return apply


def importance_dataset(
    source: Any,
    sampler: Any,
    batch_size: int,
    *,
    cache: str | os.PathLike[str] | None = None,
    map_fn: Callable[..., Any] | None = None,
    num_parallel_calls: int | None = None,
    prefetch: int | None = None,
    batches: int | None = None,
) -> tf.data.Dataset:
    """The same over any source: arrays, memory maps, a dataset, ``__len__`` and ``__getitem__``.

    Args:
        source: what ``pipeline.sources.as_source`` takes. A tuple of one, two or three is x, y and
            sample weights; anything else is x.
        cache: as for ``importance_sampling`` where the source is a dataset. Arrays are drawn from in place (None),
            which takes no memory, or copied once (``"memory"``) to where the graph can gather them, which is quicker
            by half for batches of hundreds of rows of kilobytes. Memory maps of ``.npy`` files need no copy for that.
        sampler, batch_size, map_fn, num_parallel_calls, prefetch: as for ``importance_sampling``.
        batches: ≥ 1, of an epoch; None is ceil(N/B), of a ``Shard`` ceil(ceil(N/W)/B). None is drawn beyond them, where
            ``take`` or ``steps_per_epoch`` leave some behind that were drawn ahead.
    """
    batch_size = checks.whole("batch_size", batch_size, least=1)
    if num_parallel_calls is not None:
        checks.whole("num_parallel_calls", num_parallel_calls, least=1)
    each = None if map_fn is None else _each(map_fn, num_parallel_calls, batch_size, sampler.feedback_lag)
    data = as_source(source, size=len(sampler), cache=cache)
    if len(data) != len(sampler):
        raise ValueError(
            f"the source has {len(data)} elements, the sampler {len(sampler)} samples; they must be equal: make the "
            f"sampler with num_samples={len(data)}"
        )
    if map_fn is None:
        _check_parts(data.spec)
    samples = epoch_samples(sampler, len(sampler))
    steps = math.ceil(samples / batch_size) if batches is None else checks.whole("batches", batches, least=1)
    plan = _plan(data, batch_size, prefetch, sampler.feedback_lag, steps, 0 if each is None else each.held)
    return _epoch(_Feeder(data, sampler, batch_size, steps, plan, each))


class _Each(NamedTuple):
    """What is done to every element by itself."""

    function: Callable[..., Any]
    calls: int | None  # at the same time; None for one after the other
    held: int  # batches drawn for calls at the same time, beyond those that are ahead anyway


def _each(function: Callable[..., Any], calls: int | None, batch_size: int, lag: int | None) -> _Each:
    """One call after the other where a short lag leaves no room for more."""
    held = 1 + -(-(calls or os.cpu_count() or 1) // batch_size)
    if calls == 1 or (calls is None and lag is not None and held >= lag):
        return _Each(function, None, 0)
    if lag is not None and held >= lag:
        raise ValueError(
            f"num_parallel_calls={calls} needs a feedback_lag of at least {held + 1}, got {lag}: calls at the same "
            f"time hold up to {held} batches that are not trained on yet; raise feedback_lag, or leave "
            "num_parallel_calls out"
        )
    return _Each(function, tf.data.AUTOTUNE if calls is None else calls, held)


class _Plan(NamedTuple):
    """How far ahead of training batches are drawn, and how their samples are gathered.

    Batches are gathered in groups, small ones many at a time, so that training seldom waits for another thread. A group
    of all that one call draws is gathered with the call; other groups one by one, or on several cores side by side.
    """

    at_once: int  # batches drawn in one call
    grouped: int  # batches gathered together
    buffered: int  # groups gathered ahead
    parallel: bool = False  # whether several groups are gathered at the same time

    @property
    def together(self) -> bool:
        """Whether the batches of one call are gathered with it."""
        return self.grouped > 1 and self.grouped == self.at_once

    @property
    def ahead(self) -> int:
        """How many batches are drawn ahead at most."""
        return self.at_once - 1 + self.buffered * self.grouped


def _plan(
    source: Source, batch_size: int, prefetch: int | None, lag: int | None, steps: int, mapping: int = 0
) -> _Plan:
    """Draw as many batches in one call as may be ahead together with those gathered ahead.

    No more are drawn at once than fit into the caches, where their samples come from outside the graph, and no more
    gathered than some megabytes. With one core none are gathered ahead inside the graph. With a lag of k at most k - 1
    batches are ahead, those that ``map_fn`` holds (``mapping``) among them, or draws would wait for their own training.
    """
    most = math.inf if lag is None else max(0, lag - 1 - mapping)
    room = max(1, CALL_BYTES // max(1, source.outside * batch_size)) if source.stackable else 1
    if prefetch is None:
        ahead = int(min(max(LEAST_AHEAD, min(MOST_AHEAD, steps // 10)), most))
        ahead = min(ahead, max(LEAST_AHEAD, room))
    else:
        ahead = checks.whole("prefetch", prefetch, least=0)
        if ahead > most:
            raise ValueError(
                f"prefetch={ahead} needs a feedback_lag of at least {ahead + mapping + 1}, got {lag}: a draw made that "
                "far ahead cannot know the feedback it must use; lower prefetch or raise feedback_lag"
            )
    batch_bytes = max(1, source.inside * batch_size)
    group = max(1, GROUP_BYTES // batch_bytes) if source.stackable else 1
    in_graph = source.stackable and source.inside > source.outside
    if in_graph and _cores() == 1:  # where a thread that gathers ahead would take its time from training
        at_once = min(ahead + 1, room)
        return _Plan(at_once, at_once if at_once <= group else 1 if lag is not None else group, 0)
    half = (ahead + 1) // 2
    if LEAST_TOGETHER <= half <= group:
        return _Plan(half, half, 1)
    parallel = in_graph and ahead > 0
    share = max(2, 2 * ahead // 5) if parallel else ahead // 4  # of those ahead; the fewer, the longer the calls
    waiting = min(ahead, max(1, min(share, BUFFER_BYTES // batch_bytes)))
    grouped = 1 if lag is not None else max(1, min(group, waiting // 2))
    buffered = waiting // grouped
    at_once = min(ahead - buffered * grouped + 1, room)
    return _Plan(at_once, grouped, (ahead - at_once + 1) // grouped, parallel)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_parts(data: Any) -> None:
    if isinstance(data, tuple) and len(data) not in (1, 2, 3):
        raise ValueError(f"elements must be x, (x, y) or (x, y, sample_weight), got a tuple of {len(data)}")


def _epoch(feeder: _Feeder) -> tf.data.Dataset:
    """One epoch: an iteration begins, batches are drawn and made, some of them ahead, and it ends."""

    def iteration(number: tf.Tensor) -> tf.data.Dataset:
        made = feeder.batches(number)
        if feeder.lagging:
            made = made.filter(lambda _, place: feeder.leaves(number, place)).map(lambda element, _: element)
        return made.concatenate(tf.data.Dataset.from_tensors(0).flat_map(lambda _: made.take(feeder.end(number))))

    epoch = tf.data.Dataset.from_tensors(0).map(feeder.begin).flat_map(iteration)
    options = tf.data.Options()
    # The rewriting of the graph would copy all memory that was lent to it. Nothing here gains by it.
    options.experimental_optimization.apply_default_optimizations = False
    # With these TensorFlow would draw ahead on its own account.
    options.experimental_optimization.inject_prefetch = False
    options.experimental_optimization.map_parallelization = False
    options.experimental_optimization.filter_parallelization = False
    if not feeder.varies:
        epoch = epoch.apply(tf.data.experimental.assert_cardinality(feeder.steps))
    train = epoch.with_options(options)
    train.feeder = feeder  # which the functions in the graph do not keep alive
    return train


class _Feeder:
    """Joins a sampler to a source, and watches over the iterations."""

    def __init__(
        self, source: Source, sampler: Any, batch_size: int, steps: int, plan: _Plan, each: _Each | None
    ) -> None:
        self.source = source
        self.sampler = sampler
        self.batch_size = batch_size
        self.steps = steps  # of an epoch; at most, where they vary
        self.varies = bool(getattr(sampler, "epochs_vary", False))
        self.plan = plan
        self.each = each
        self.lagging = sampler.feedback_lag is not None
        self.iterations = iterations_over(sampler)

    # --- in the graph ---

    def begin(self, _: tf.Tensor) -> tf.Tensor:
        """The number of an iteration that begins."""
        return tf.ensure_shape(tf.numpy_function(_called(self.begun), [], tf.int64), ())

    def batches(self, iteration: tf.Tensor) -> tf.data.Dataset:
        """The elements of an epoch, some of them ahead; under a lag each with its place beside it."""
        plan = self.plan
        calls = tf.data.Dataset.counter().scan(tf.constant(0, tf.int64), lambda place, _: self.call(iteration, place))
        if self.varies:
            calls = calls.take_while(lambda *call: self.goes_on(iteration, call))
        if plan.together and self.each is None:
            return _slices(_buffer(calls, plan.buffered)).take(self.steps)
        drawn = _slices(calls).take(self.steps)
        if self.each is not None:
            packed = drawn if plan.together else drawn.map(self.pack)
            return _buffer(self.one_by_one(packed, self.each), plan.grouped * plan.buffered)
        if plan.grouped > 1:
            drawn = drawn.batch(plan.grouped)
        if plan.parallel:
            packed = drawn.map(self.pack, num_parallel_calls=plan.buffered, deterministic=True)
        else:
            packed = _buffer(drawn.map(self.pack), plan.buffered)
        return packed if plan.grouped == 1 else _slices(packed)

    def call(self, iteration: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """One call of ``next_batches``, from ``place`` in the iteration on."""
        called = tf.numpy_function(
            _called(self.next_batches), [iteration, place], [tf.int64, tf.float32, *self.source.dtypes]
        )
        wholes, reals = (tf.ensure_shape(part, (2, None, self.batch_size)) for part in called[:2])
        sampling = {"index": wholes[0], "weight": reals[0], "probability": reals[1], "step": wholes[1]}
        count = tf.shape(wholes, tf.int64)[1]
        batches = (tuple(called[2:]), sampling, place + tf.range(count))
        return place + count, self.pack(*batches) if self.plan.together else batches

    def goes_on(self, iteration: tf.Tensor, call: Any) -> tf.Tensor:
        """Whether more may follow a call: one that gave nothing may have waited, or come after the last batch."""

        def ask() -> tf.Tensor:
            return tf.ensure_shape(tf.numpy_function(_called(self.is_open), [iteration], tf.bool), ())

        return tf.cond(tf.shape(tf.nest.flatten(call)[-1])[0] > 0, lambda: tf.constant(True), ask)

    def pack(self, data: Any, sampling: dict[str, tf.Tensor], place: tf.Tensor) -> Any:
        """What the batch looks like outside, if it need not be taken apart again."""
        data = self.source.pack(data, sampling["index"])
        return self.finished(data, sampling, place) if self.each is None else (data, sampling, place)

    def finished(self, data: Any, sampling: dict[str, tf.Tensor], place: tf.Tensor) -> Any:
        """The element, under a lag with its place beside it."""
        return (_element(data, sampling), place) if self.lagging else _element(data, sampling)

    def one_by_one(self, drawn: tf.data.Dataset, each: _Each) -> tf.data.Dataset:
        """The same batches, what each element becomes in its place; index and weight stay with their element."""

        def call(data: Any, sampling: Any, place: tf.Tensor) -> Any:
            mapped = each.function(*data) if type(data) is tuple else each.function(data)
            _check_parts(mapped)
            return mapped, sampling, place

        places = drawn.map(lambda data, sampling, place: (data, sampling, tf.fill([self.batch_size], place)))
        mapped = places.unbatch().map(
            call, num_parallel_calls=each.calls, deterministic=None if each.calls is None else True
        )
        again = mapped.batch(self.batch_size, drop_remainder=True)
        return again.map(lambda data, sampling, place: self.finished(data, sampling, place[0]))

    def leaves(self, iteration: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        """True; told of each batch that leaves, since batches drawn ahead must not leave an iteration that another has
        replaced.
        """
        return tf.ensure_shape(tf.numpy_function(_called(self.left), [iteration, place], tf.bool), ())

    def end(self, iteration: tf.Tensor) -> tf.Tensor:
        """0; told where the consumer asks on after the last batch.

        Without a lag the next iteration says what this would, and only the first one's end is told: a call takes a
        fifth of a millisecond.
        """

        def tell() -> tf.Tensor:
            return tf.ensure_shape(tf.numpy_function(_called(self.ended), [iteration], tf.int64), ())

        return tell() if self.lagging else tf.cond(iteration > 1, lambda: tf.constant(0, tf.int64), tell)

    # --- outside it ---

    def begun(self) -> np.int64:
        """A new iteration begins: what an unfinished one left behind is handed out again first."""
        with self.iterations.lock:
            updates = self._updates()
            self._warn_without_feedback(updates)
            if self.iterations.broken_off(updates):
                self.sampler.rewind()
            return np.int64(self.iterations.begin(updates))

    def next_batches(self, iteration: int, place: int) -> list[Array]:
        """``[(index, step), (weight, probability), *the source's arrays]`` of m batches, none where draws must wait.

        (2, m, B) each: TensorFlow takes some 6 µs over every array.
        """
        length = self.iterations.lengths.get(iteration, self.steps)
        shape = (2, min(self.plan.at_once, length - place), self.batch_size)
        wholes, reals = aligned(shape, np.int64), aligned(shape, np.float32)
        with self.iterations.lock:  # an iteration that has been replaced must not take a draw of the new one
            self._check_current(iteration)
            count = self.sampler.poll_rows(wholes[0], *reals, wholes[1], seconds=PATIENCE)
            if self.varies and count and self.sampler.ends_epoch(int(wholes[1, count - 1, 0])):
                length = place + count
                self.iterations.is_drawn(int(iteration), length)
            if place + count == length and iteration == self.iterations.current:
                self.iterations.complete = not self.lagging and length > self.plan.ahead
        return [wholes[:, :count], reals[:, :count], *self._take(wholes[0, :count])]

    def _take(self, index: Array) -> list[Array]:
        """What the source gives for the batches ``index`` (m, B): arrays with a first axis of m."""
        if not self.source.stackable and not len(index):
            return [np.zeros(0, object if dtype == tf.string else dtype.as_numpy_dtype) for dtype in self.source.dtypes]
        taken = self.source.take(index.reshape(-1))
        if not self.source.stackable:  # one batch then
            return [part[None] for part in taken]
        return [part.reshape(*index.shape, *part.shape[1:]) for part in taken]

    def is_open(self, iteration: int) -> np.bool_:
        """Whether the last batch of an epoch that varies is still to be drawn."""
        with self.iterations.lock:
            return np.bool_(iteration not in self.iterations.lengths)

    def left(self, iteration: int, place: int) -> np.bool_:
        """The consumer takes a batch."""
        with self.iterations.lock:
            self._check_current(iteration)
            if place == self.iterations.lengths.get(iteration, self.steps) - 1:
                self.iterations.complete = True
        return np.True_

    def ended(self, iteration: int) -> np.int64:
        """The consumer asks on after the last batch."""
        with self.iterations.lock:
            self._check_current(iteration)
            if iteration == self.iterations.current:
                self.iterations.complete = self.iterations.ended = True
                self._warn_without_feedback(self._updates())
        return np.int64(0)

    def _updates(self) -> int:
        return int(self.sampler.summary()["updates"])

    def _check_current(self, iteration: int) -> None:
        if self.lagging and iteration != self.iterations.current:
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


def _called(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` for TensorFlow to call: it keeps no feeder alive, and nobody is in it when the program ends."""
    held = weakly(method)

    def call(*arguments: Any) -> Any:
        with inside():
            return held(*arguments)

    return call


def _slices(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The batches of each element one by one. Slices of aligned tensors are no copies."""
    return batches.flat_map(lambda *element: tf.data.Dataset.from_tensor_slices(element))


def _buffer(dataset: tf.data.Dataset, size: int) -> tf.data.Dataset:
    """With a buffer of ``size`` elements, filled by a thread of its own."""
    return dataset.prefetch(size) if size else dataset


def _element(data: Any, sampling: dict[str, tf.Tensor]) -> Any:
    """``(x, y, sampling)`` or ``(x, sampling)``."""
    if not isinstance(data, tuple):
        return data, sampling
    if len(data) == 3:
        sampling["sample_weight"] = data[2]
    return (*data[:2], sampling)
