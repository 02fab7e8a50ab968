"""Reading a ``tf.data.Dataset`` into columns, so that its elements can be drawn by index.

    n = num_samples(dataset)                        # counted where it is unknown
    source = dataset_source(dataset, size=n)        # read once, by batches, into arrays of its exact size

What cannot be drawn from is refused: an infinite dataset, one of another size, one that shuffles its elements anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from pipeline.columns import Column, ColumnSource, RaggedColumn, SparseColumn, dense, splits_of
from pipeline.memory import Array, Growing

CHUNK_BYTES = 1 << 25  # a dataset is read in batches of about this size
CHUNK_ELEMENTS = 1024


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


class Rows(Protocol):
    """Where the values of a component go while a dataset is read: to memory, or to a file."""

    def append(self, part: Array) -> None:
        """Add the rows ``part`` (n, *row)."""

    def finish(self, count: int) -> Any:
        """All ``count`` rows: an array, or what is indexed like one."""


Store = Callable[[str, np.dtype[Any], tuple[int, ...], int | None], Rows]
"""Makes rows of a name, a dtype (object for strings), the shape of a row, and how many there will be, if known."""


def dataset_source(dataset: tf.data.Dataset, *, size: int) -> ColumnSource:
    """Read a finite, unbatched dataset of ``size`` elements into memory.

    Tensors that were sliced and nothing else (``from_tensor_slices``) are taken as they are, without a copy. Raises
    ``ValueError`` where the number of elements is another one, where the dataset is infinite, and where
    a ``shuffle`` would give the elements other indices the next time; ``TypeError`` for components that are no
    tensors.
    """
    refuse(dataset, size)
    sliced = _sliced_tensors(dataset)
    if sliced is not None:
        return ColumnSource(spec_of(dataset), [dense(tensor) for tensor in sliced])
    columns = read(dataset, size, _in_memory, lambda count: None)
    return ColumnSource(spec_of(dataset), columns)


def read(dataset: tf.data.Dataset, size: int, store: Store, progress: Callable[[int], None]) -> list[Column]:
    """All components of the ``size`` elements, by batches, into rows that ``store`` makes.

    ``progress`` is called with the number of elements read up to then. Raises ``ValueError`` for another number.
    """
    leaves = tf.nest.flatten(dataset.element_spec)
    readers = [
        _reader(spec, size, lambda name, *rest, place=place: store(f"{place}-{name}", *rest))
        for place, spec in enumerate(leaves)
    ]
    count = 0
    for chunk in dataset.ragged_batch(_chunk_size(leaves)):
        parts = tf.nest.flatten(chunk)
        count += int(_length(parts[0]))
        if count > size:
            raise ValueError(_other_size(dataset, None, size))
        for reader, part in zip(readers, parts, strict=True):
            reader.add(part)
        progress(count)
    if count != size:
        raise ValueError(_other_size(dataset, count, size))
    return [reader.column() for reader in readers]


def spec_of(dataset: tf.data.Dataset) -> Any:
    """The nested structure of the elements, None for each component."""
    return tf.nest.map_structure(lambda _: None, dataset.element_spec)


def _in_memory(_: str, dtype: np.dtype[Any], row: tuple[int, ...], expected: int | None) -> Rows:
    return _Objects(row) if dtype.kind == "O" else Growing(dtype, row, expected)


class _Objects:
    """Strings, as they come."""

    def __init__(self, row: tuple[int, ...]) -> None:
        self._row = row
        self._parts: list[Array] = []

    def append(self, part: Array) -> None:
        self._parts.append(part)

    def finish(self, count: int) -> Array:
        parts, self._parts = self._parts, []
        return np.concatenate([np.empty((0, *self._row), object), *parts])


# --- what becomes of a component ---------------------------------------------------------------------


class _DenseReader:
    """A component of one shape."""

    def __init__(self, spec: tf.TensorSpec, size: int, store: Store) -> None:
        self.size = size
        self.values = store("values", _dtype(spec), tuple(spec.shape), size)

    def add(self, part: tf.Tensor) -> None:
        self.values.append(part.numpy())

    def column(self) -> Column:
        return _dense(self.values.finish(self.size))


class _RaggedReader:
    """Rows of varying shape; gives a dense column after all where a dense component had one shape."""

    def __init__(self, spec: tf.TensorSpec | tf.RaggedTensorSpec, size: int, store: Store) -> None:
        self.spec = spec
        self.size = size
        self.store = store
        self.lengths: list[Growing] = []
        self.values: Rows | None = None

    def add(self, part: tf.RaggedTensor) -> None:
        lengths = [level.numpy() for level in part.nested_row_lengths()]
        values = part.flat_values.numpy()
        if self.values is None:
            self.lengths = [Growing(np.int64, ()) for _ in lengths]
            self.values = self.store("values", _dtype(self.spec), values.shape[1:], None)
        for level, given in zip(self.lengths, lengths, strict=True):
            level.append(given)
        self.values.append(values)

    def column(self) -> Column:
        assert self.values is not None  # there is at least one element
        lengths, count = [], self.size
        for level in self.lengths:
            lengths.append(level.finish(count))
            count = int(lengths[-1].sum())
        values = self.values.finish(count)
        varies = not isinstance(self.spec, tf.TensorSpec)
        if not varies and all(level.size and (level == level[0]).all() for level in lengths):
            return _dense(values.reshape(self.size, *(int(level[0]) for level in lengths), *values.shape[1:]))
        splits = [self._stored(place, level) for place, level in enumerate(lengths)]
        sizes = self.spec.shape[: len(lengths)]
        return RaggedColumn(splits, values, sizes, getattr(self.spec, "row_splits_dtype", tf.int64))

    def _stored(self, level: int, lengths: Array) -> Array:
        splits = splits_of(lengths)
        rows = self.store(f"splits{level}", splits.dtype, (), splits.size)
        rows.append(splits)
        return rows.finish(splits.size)


class _SparseReader:
    """Coordinates and values."""

    def __init__(self, spec: tf.SparseTensorSpec, size: int, store: Store) -> None:
        self.spec = spec
        self.size = size
        self.store = store
        rank = spec.shape.rank
        self.lengths = Growing(np.int64, (), size)
        self.coordinates = store("coordinates", np.dtype(np.int64), (rank,), None)
        self.values = store("values", _dtype(spec), (), None)
        self.shapes = store("shapes", np.dtype(np.int64), (rank,), size)

    def add(self, part: tf.SparseTensor) -> None:
        coordinates, shape = part.indices.numpy(), part.dense_shape.numpy()
        self.lengths.append(np.bincount(coordinates[:, 0], minlength=int(shape[0])))
        self.coordinates.append(coordinates[:, 1:])
        self.values.append(part.values.numpy())
        self.shapes.append(np.broadcast_to(shape[1:], (int(shape[0]), shape.size - 1)))

    def column(self) -> Column:
        splits = splits_of(self.lengths.finish(self.size))
        rows = self.store("splits0", splits.dtype, (), splits.size)
        rows.append(splits)
        count = int(splits[-1])
        return SparseColumn(
            rows.finish(splits.size),
            self.coordinates.finish(count),
            self.values.finish(count),
            self.shapes.finish(self.size),
            self.spec.shape,
        )


_Reader = _DenseReader | _RaggedReader | _SparseReader


def _reader(spec: Any, size: int, store: Store) -> _Reader:
    if isinstance(spec, tf.RaggedTensorSpec):
        return _RaggedReader(spec, size, store)
    if isinstance(spec, tf.SparseTensorSpec):
        if spec.shape.rank is None:
            raise TypeError(f"a component has no known rank: {spec}; give it one with set_shape in a map()")
        return _SparseReader(spec, size, store)
    if isinstance(spec, tf.TensorSpec):
        if spec.shape.rank is None:
            raise TypeError(f"a component has no known rank: {spec}; give it one with tf.ensure_shape in a map()")
        if spec.shape.is_fully_defined():
            return _DenseReader(spec, size, store)
        return _RaggedReader(spec, size, store)
    raise TypeError(f"components must be dense, ragged or sparse tensors, got {spec}; convert it with a map()")


def _dtype(spec: Any) -> np.dtype[Any]:
    return np.dtype(object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype)


def _dense(values: Any) -> Column:
    """The column of what was read; strings become a tensor, since the graph gathers those quicker."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "O":
        return dense(tf.constant(values, tf.string))
    return dense(values)


def _sliced_tensors(dataset: tf.data.Dataset) -> list[tf.Tensor] | None:
    """The tensors of which ``dataset`` is the slices; None where it is anything else, or a component is not dense.

    By names that TensorFlow does not promise; where they are missing, the dataset is read like any other.
    """
    tensors = getattr(dataset, "_tensors", None)
    dense_ones = all(isinstance(spec, tf.TensorSpec) for spec in tf.nest.flatten(dataset.element_spec))
    if type(dataset).__name__ != "_TensorSliceDataset" or not tensors or not dense_ones:
        return None
    whole = [isinstance(tensor, tf.Tensor) and hasattr(tensor, "numpy") for tensor in tensors]
    return list(tensors) if all(whole) else None


def _chunk_size(leaves: list[Any]) -> int:
    """How many elements to read at a time; sparse ones of varying shape alone, as a batch keeps the largest shape."""
    if any(isinstance(leaf, tf.SparseTensorSpec) and not leaf.shape.is_fully_defined() for leaf in leaves):
        return 1
    known = [
        leaf.shape.num_elements() * max(leaf.dtype.size, 1)
        for leaf in leaves
        if isinstance(leaf, tf.TensorSpec) and leaf.shape.is_fully_defined()
    ]
    return max(1, min(CHUNK_ELEMENTS, CHUNK_BYTES // max(sum(known), 1)))


def _length(part: Any) -> int:
    if isinstance(part, tf.RaggedTensor):
        return int(part.nrows())
    return int(part.dense_shape[0]) if isinstance(part, tf.SparseTensor) else int(part.shape[0])


# --- what a dataset must not be ----------------------------------------------------------------------


def refuse(dataset: tf.data.Dataset, size: int) -> None:
    """``ValueError`` for a dataset that cannot be drawn from, as far as that is known before it is read."""
    if size == 0:
        raise ValueError("the dataset is empty: a source needs at least one element")
    _refuse_moving(dataset)
    _refuse_infinite_or_other_size(dataset, size)


def _refuse_infinite_or_other_size(dataset: tf.data.Dataset, size: int) -> None:
    known = int(dataset.cardinality())
    if known == tf.data.UNKNOWN_CARDINALITY:
        return  # counted while it is read
    if known == tf.data.INFINITE_CARDINALITY:
        num_samples(dataset)
    if known != size:
        raise ValueError(_other_size(dataset, known, size))


def _other_size(dataset: tf.data.Dataset, count: int | None, size: int) -> str:
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
        batch = 0 if first is None else _length(tf.nest.flatten(first)[0])
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


def _shuffles(dataset: Any) -> Iterator[tuple[bool, bool]]:
    """``(reshuffles each iteration, has a seed)`` of every shuffle in ``dataset``."""
    pending = [dataset]
    while pending:
        node = pending.pop()
        pending.extend(getattr(node, "_inputs", list)())
        if type(node).__name__ == "_ShuffleDataset":
            seeds = int(getattr(node, "_seed", 0)), int(getattr(node, "_seed2", 0))
            yield bool(getattr(node, "_reshuffle_each_iteration", True)), seeds != (0, 0)
        for function in getattr(node, "_functions", list)():
            graph = getattr(getattr(function, "function", None), "graph", None)
            for operation in graph.get_operations() if graph is not None else ():
                if operation.type.startswith("ShuffleDataset"):
                    seeded = any(tf.get_static_value(seed) for seed in operation.inputs[2:4])
                    yield bool(operation.get_attr("reshuffle_each_iteration")), seeded
