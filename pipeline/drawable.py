"""Whether a ``tf.data.Dataset`` can be drawn from by index, and how many elements it has.

    n = num_samples(dataset)                        # counted where it is unknown
    refuse(dataset, n)                              # ValueError where an index would not mean one sample

Refused are an infinite dataset, one of another size, an empty one, and one that shuffles its elements anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

# Operations that draw from a generator with a state begin so.
RANDOM = ("Random", "TruncatedNormal", "Multinomial", "StatefulUniform", "StatefulStandardNormal", "StatefulRandom",
          "StatefulTruncated", "ParameterizedTruncated")  # fmt: skip


def num_samples(dataset: tf.data.Dataset) -> int:
    """The number of elements of a finite dataset; counted, by one pass over it, where it is unknown.

    Raises ``ValueError`` for an infinite one.
    """
    known = int(dataset.cardinality())
    if known == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "the dataset is infinite, so its elements cannot be drawn by index; remove repeat(), or bound it with "
            "take(n)"
        )
    if known == tf.data.UNKNOWN_CARDINALITY:
        return int(dataset.reduce(np.int64(0), lambda count, *_: count + 1))
    return known


def refuse(dataset: tf.data.Dataset, size: int) -> None:
    """Refuse a dataset that cannot be drawn from, as far as that is known before it is read.

    ``ValueError`` where it has no elements, infinitely many or another number, or is shuffled anew each time;
    ``TypeError`` for components that are no tensors, or of unknown rank.
    """
    if size == 0:
        raise ValueError("the dataset is empty: a source needs at least one element")
    _refuse_moving(dataset)
    _refuse_infinite_or_other_size(dataset, size)
    _warn_of_what_may_be_meant_otherwise(dataset)
    for spec in tf.nest.flatten(dataset.element_spec):
        _refuse_component(spec)


def _refuse_component(spec: Any) -> None:
    if not isinstance(spec, (tf.TensorSpec, tf.RaggedTensorSpec, tf.SparseTensorSpec)):
        raise TypeError(f"components must be dense, ragged or sparse tensors, got {spec}; convert it with a map()")
    if spec.shape.rank is None:
        way = "set_shape" if isinstance(spec, tf.SparseTensorSpec) else "tf.ensure_shape"
        raise TypeError(f"a component has no known rank: {spec}; give it one with {way} in a map()")


def _refuse_infinite_or_other_size(dataset: tf.data.Dataset, size: int) -> None:
    known = int(dataset.cardinality())
    if known == tf.data.UNKNOWN_CARDINALITY:
        return  # counted while it is read
    if known == tf.data.INFINITE_CARDINALITY:
        num_samples(dataset)
    if known != size:
        raise ValueError(other_size(dataset, known, size))


def other_size(dataset: tf.data.Dataset, count: int | None, size: int) -> str:
    """What to say of a dataset with ``count`` elements, None for more than ``size``."""
    elements = f"more than {size}" if count is None else count
    message = f"the dataset has {elements} elements, the sampler {size} samples; they must be equal"
    if count is not None and _looks_batched(dataset, count, size):
        return message + "; its elements look like batches: apply unbatch() first, or remove batch()"
    return message + ": make the sampler with num_samples(dataset)"


def _looks_batched(dataset: tf.data.Dataset, count: int, size: int) -> bool:
    """Whether the components share a first axis of B, and N / B, rounded up or down, is the number of elements."""
    firsts = set()
    for spec in tf.nest.flatten(dataset.element_spec):
        if spec.shape.rank is None or spec.shape.rank == 0:
            return False
        firsts.add(spec.shape[0])
    if len(firsts) != 1:
        return False
    batch = firsts.pop()
    if batch is None:  # the first batch is a full one
        first = next(iter(dataset.take(1)), None)
        batch = 0 if first is None else length(tf.nest.flatten(first)[0])
    return batch > 1 and (count - 1) * batch < size < (count + 1) * batch


def _refuse_moving(dataset: tf.data.Dataset) -> None:
    """Refuse a dataset that shuffles its elements anew, so that an index would not mean one sample.

    The walk over a dataset's inputs uses names that TensorFlow does not promise; where they are missing, nothing is
    found.
    """
    for reshuffles, seeded in _shuffles(dataset):
        if reshuffles or not seeded:
            raise ValueError(
                "the dataset is shuffled before it is wrapped, so an index would mean another sample each time; remove "
                "shuffle() (draws are in random order anyway), or use "
                "shuffle(..., seed=0, reshuffle_each_iteration=False)"
            )


def _warn_of_what_may_be_meant_otherwise(dataset: tf.data.Dataset) -> None:
    """Batches, each of which would be a sample, and random numbers, which would be the same in every epoch."""
    if type(dataset).__name__ in ("_BatchDataset", "_ParallelBatchDataset"):
        warnings.warn(
            "the dataset ends in batch(), and each of its batches is taken for one sample; remove batch(), or apply "
            "unbatch() first, unless that is meant, as for windows of a series",
            RuntimeWarning,
            stacklevel=2,
        )
    if any(name.startswith(RANDOM) for name in _operations(dataset)):
        warnings.warn(
            "a map() before the dataset is wrapped makes random numbers; the dataset is read once, so they would be "
            "the same in every epoch: augment after the draw, with map_fn= or a map() over the batches",
            RuntimeWarning,
            stacklevel=2,
        )


def _operations(dataset: Any) -> Iterator[str]:
    """The types of the operations in the functions of ``dataset``, and in those that these call."""
    for function in _functions(dataset):
        for operation in function.get_operations():
            yield operation.type
        for called in function.as_graph_def().library.function:
            yield from (node.op for node in called.node_def)


def _functions(dataset: Any) -> Iterator[Any]:
    """The graphs of the functions that ``dataset`` and its inputs map."""
    pending = [dataset]
    while pending:
        node = pending.pop()
        pending.extend(getattr(node, "_inputs", list)())
        graphs = (getattr(getattr(f, "function", None), "graph", None) for f in getattr(node, "_functions", list)())
        yield from (graph for graph in graphs if graph is not None)


def _shuffles(dataset: Any) -> Iterator[tuple[bool, bool]]:
    """``(reshuffles each iteration, has a seed)`` of every shuffle in ``dataset``."""
    pending = [dataset]
    while pending:
        node = pending.pop()
        pending.extend(getattr(node, "_inputs", list)())
        if type(node).__name__ == "_ShuffleDataset":
            seeds = int(getattr(node, "_seed", 0)), int(getattr(node, "_seed2", 0))
            yield bool(getattr(node, "_reshuffle_each_iteration", True)), seeds != (0, 0)
    for graph in _functions(dataset):
        for operation in graph.get_operations():
            if operation.type.startswith("ShuffleDataset"):
                seeded = any(tf.get_static_value(seed) for seed in operation.inputs[2:4])
                yield bool(operation.get_attr("reshuffle_each_iteration")), seeded


def length(part: Any) -> int:
    """How many elements a batch of a component has."""
    if isinstance(part, tf.RaggedTensor):
        return int(part.nrows())
    return int(part.dense_shape[0]) if isinstance(part, tf.SparseTensor) else int(part.shape[0])
