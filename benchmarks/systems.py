"""The systems that draw batches and learn priorities, each behind the same two functions.

    from benchmarks.systems import SYSTEMS

    system = SYSTEMS["numpy.random.Generator.choice"].build(priorities, 256, generator)
    drawn = system.draw()
    system.update(drawn, losses)

To *build* one takes the priorities to start from, (N,) float64 and positive, the batch size B and
a random generator. What ``draw`` returns is the system's own affair, as long as its ``update`` takes
it back, together with (B,) float32 losses, which become the priorities of the samples drawn. The
next draw knows them: whatever a system must recompute for that belongs to its ``draw`` or its
``update``, where its user would pay for it.

=================================  ============================  =================================
system                             draw                          update
=================================  ============================  =================================
``ImportanceSampler``              index, probability, weight    the public method, with all checks
``ImportanceSampler, ...``         the same, one option changed  the same
``ProportionalStore``              index, probability            leaves written, sums recomputed
``kernels``                        index, from given uniforms    the same, with no check
``numpy.random.Generator.choice``  index                         scatter, division by the sum
``numpy cumsum + searchsorted``    cumulative sum, then index    scatter
``tf.random.categorical``          index                         scatter into a new tensor
``floor: numpy take + scatter``    B priorities, indices known   scatter
=================================  ============================  =================================

Those of others that live in environments of their own are in :mod:`benchmarks.peers`.

The last one samples nothing: it only touches the memory of B samples, which no system can avoid.
The others that are not this project's give no probabilities and no weights; that is in their
favour, and left so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import ImportanceSampler, kernels
from sampler.draws import systematic
from sampler.stores import ProportionalStore

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

UNIFORM_FRACTION = 0.3  # the default of ImportanceSampler, for its store when measured alone
SAMPLER = "ImportanceSampler"
KERNELS = "kernels"
CHOICE = "numpy.random.Generator.choice"  # whose draw the ratios refer to
FLOOR = "floor: numpy take + scatter"


@dataclass(frozen=True)
class System:
    """Draws a batch; learns the losses of what was drawn.

    ``nbytes`` is what it holds, where that can be told. ``ready`` is called before each draw and not timed: it
    makes new what is given to ``draw`` (uniforms), which it would know by heart if it came again.
    """

    draw: Callable[[], Any]
    update: Callable[[Any, Float32s], None]
    nbytes: int | None = None
    ready: Callable[[], None] = lambda: None


Build = Callable[[Float64s, int, np.random.Generator], System]


@dataclass(frozen=True)
class Entry:
    """How to build a system and where to measure it.

    ``build`` makes it of priorities (N,), batch size and generator. Where it is ``ours``, a failure is
    an error; any other system that fails is skipped and named. It is measured ``everywhere`` (up to ``up_to``
    samples), or only at the one point where variants are compared. Its ``kind`` says what can be compared with
    it: a ``kernel`` finds samples under given uniforms and writes priorities, a ``public`` system does what its user
    calls, ``numpy`` recomputes what it needs at every draw, the ``floor`` touches memory.
    """

    build: Build
    kind: str
    ours: bool = False
    everywhere: bool = True
    up_to: int | None = None


def importance_sampler(priorities: Float64s, batch: int, generator: np.random.Generator, **options: Any) -> System:
    """The public sampler; every loss is known at the start, so that there is no first pass."""
    seed = int(generator.integers(2**31))
    sampler = ImportanceSampler(priorities.size, losses=priorities, seed=seed, **options)

    def update(draw: Any, losses: Float32s) -> None:
        sampler.update(draw.index, losses, step=draw.step)

    return System(lambda: sampler.draw(batch), update, bytes_held(sampler))


def tree_kernels(priorities: Float64s, batch: int, generator: np.random.Generator) -> System:
    """The compiled loops on a tree, called as a raw tree of others is: ascending uniforms in, priorities written."""
    size = priorities.size
    leaves, sums = kernels.allocate(size)
    kernels.fill(leaves, priorities)
    kernels.rebuild(leaves, sums)
    steps, positions, index = np.arange(batch), np.empty(batch), np.empty(batch, np.int64)

    def ready() -> None:
        np.divide(steps + generator.random(batch), batch, out=positions)

    def draw() -> Int64s:
        kernels.find(leaves, sums, size, 0.0, sums[-1], positions, index)
        return index

    def update(index: Int64s, losses: Float32s) -> None:
        kernels.write(leaves, sums, index, losses)  # type: ignore[arg-type]  # compiled for float32 as well

    return System(draw, update, leaves.nbytes + sums.nbytes, ready)


def proportional_store(priorities: Float64s, batch: int, generator: np.random.Generator) -> System:
    """The sum tree alone: no weights, no checks, no lock, no shuffling."""
    store = ProportionalStore(priorities.size)
    store.fill(priorities)

    def draw() -> Int64s:
        index, _ = systematic(store, batch, uniform_fraction=UNIFORM_FRACTION, generator=generator)
        return index

    def update(index: Int64s, losses: Float32s) -> None:
        store.set(index, losses.astype(np.float64))

    return System(draw, update, store.nbytes)


def numpy_choice(priorities: Float64s, batch: int, generator: np.random.Generator) -> System:
    """``choice(N, B, p=p)``. It wants p to sum to one, so every update divides all N again."""
    priorities = priorities.copy()
    p = priorities / priorities.sum()

    def draw() -> Any:
        return generator.choice(p.size, batch, p=p)

    def update(index: Int64s, losses: Float32s) -> None:
        priorities[index] = losses
        np.divide(priorities, priorities.sum(), out=p)

    return System(draw, update, priorities.nbytes + p.nbytes)


def numpy_searchsorted(priorities: Float64s, batch: int, generator: np.random.Generator) -> System:
    """The cumulative sum of all N at every draw, into one buffer, then a binary search."""
    priorities = priorities.copy()
    cumulative = np.empty_like(priorities)

    def draw() -> Any:
        np.cumsum(priorities, out=cumulative)
        return np.searchsorted(cumulative, generator.random(batch) * cumulative[-1], side="right")

    def update(index: Int64s, losses: Float32s) -> None:
        priorities[index] = losses

    return System(draw, update, priorities.nbytes + cumulative.nbytes)


def tf_categorical(priorities: Float64s, batch: int, generator: np.random.Generator) -> System:
    """``tf.random.categorical`` over logits held as an eager tensor on the CPU, its fastest form here.

    A ``tf.function`` costs more than these few operations do. The update makes a new tensor; a
    variable would not spare the copy, since after its first sparse write every read of it copies.
    """
    import tensorflow as tf  # on use: the other systems are measured without it

    with tf.device("/CPU:0"):
        logits = tf.constant(np.log(priorities), tf.float32)
        row = tf.expand_dims(logits, 0)
    seed = int(generator.integers(2**31))

    def draw() -> Any:
        with tf.device("/CPU:0"):
            drawn = tf.random.categorical(row, batch, seed=seed)
        return drawn.numpy()[0]

    def update(index: Int64s, losses: Float32s) -> None:
        nonlocal logits, row
        with tf.device("/CPU:0"):
            logits = tf.tensor_scatter_nd_update(logits, index[:, np.newaxis], np.log(losses))
            row = tf.expand_dims(logits, 0)

    return System(draw, update)


def memory_floor(priorities: Float64s, batch: int, generator: np.random.Generator) -> System:
    """Reads and writes B float32 at indices made beforehand: what touching the samples costs."""
    values = priorities.astype(np.float32)
    index, taken = np.empty(batch, np.int64), np.empty(batch, np.float32)

    def ready() -> None:
        index[:] = generator.integers(values.size, size=batch)

    def draw() -> Any:
        np.take(values, index, out=taken, mode="clip")  # "raise" would go through a buffer
        return index

    def update(index: Int64s, losses: Float32s) -> None:
        values[index] = losses

    return System(draw, update, values.nbytes, ready)


def tensorflow_on_one_thread() -> None:
    """Limit TensorFlow to one thread.

    Raises ``ImportError`` where it is missing, ``RuntimeError`` where it has computed already.
    """
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def bytes_held(thing: Any) -> int:
    """Bytes in the arrays that an object of the package ``sampler`` holds, directly or in its parts."""
    arrays: dict[int, int] = {}

    def visit(part: Any) -> None:
        if isinstance(part, np.ndarray):
            arrays[part.ctypes.data] = part.nbytes
        elif type(part).__module__.startswith("sampler"):
            for inner in vars(part).values():
                visit(inner)

    visit(thing)
    return sum(arrays.values())


def _variant(**options: Any) -> Entry:
    return Entry(partial(importance_sampler, **options), "public", ours=True, everywhere=False)


AT_ONCE = 10_000_000  # samples above which going over all of them at each step takes most of a second

SYSTEMS: Mapping[str, Entry] = {
    SAMPLER: Entry(importance_sampler, "public", ours=True),
    "ImportanceSampler, stratified": _variant(scheme="stratified"),
    "ImportanceSampler, multinomial": _variant(scheme="multinomial"),
    "ImportanceSampler, without_replacement": _variant(scheme="without_replacement"),
    "ImportanceSampler, feedback_lag=4": _variant(feedback_lag=4),
    "ProportionalStore": Entry(proportional_store, "public", ours=True),
    KERNELS: Entry(tree_kernels, "kernel", ours=True),
    CHOICE: Entry(numpy_choice, "numpy", up_to=AT_ONCE),
    "numpy cumsum + searchsorted": Entry(numpy_searchsorted, "numpy", up_to=AT_ONCE),
    "tf.random.categorical": Entry(tf_categorical, "numpy", up_to=AT_ONCE),
    FLOOR: Entry(memory_floor, "floor"),
}
