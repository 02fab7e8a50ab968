"""Sources: random access to the samples of a data set, a batch of indices at a time.

    from pipeline.sources import as_source
    source = as_source((images, labels))            # arrays, memory maps, nested structures of them
    source = as_source(dataset, size=50_000)        # a finite tf.data.Dataset, held in memory
    source = as_source(records)                     # anything with __len__ and __getitem__

A source has a length and a ``spec``, the nested structure of its elements, and two methods that work hand in hand:
``take(index)`` gives NumPy arrays, outside the graph; ``pack(tensors, batch_size)`` makes of those, inside the graph,
what ``batch`` would have made of the elements. Dense, string, ragged and sparse components arrive unchanged.

Arrays are not copied. A ``tf.data.Dataset`` is read once, by batches, into arrays of its exact size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from pipeline.columns import (
    Array,
    Column,
    ColumnSource,
    DenseColumn,
    RaggedColumn,
    SparseColumn,
    dtype_of,
    splits_of,
)

CHUNK_BYTES = 1 << 25  # a dataset is read in batches of about this size
CHUNK_ELEMENTS = 1024


class Source(Protocol):
    """Random access to N elements."""

    spec: Any  # nested structure with one leaf a component
    dtypes: list[tf.DType]  # of the arrays that ``take`` gives

    def __len__(self) -> int:
        """N."""

    def take(self, index: Array) -> list[Array]:
        """The elements ``index`` (B,) as a flat list of arrays."""

    def pack(self, tensors: Sequence[tf.Tensor], batch_size: int) -> Any:
        """The nested structure of batched components made of the tensors that ``take`` gave."""


def as_source(data: Any, *, size: int | None = None) -> Source:
    """The source that fits ``data``; ``size`` is the number of elements it is expected to have."""
    if isinstance(data, tf.data.Dataset):
        return dataset_source(data, size=num_samples(data) if size is None else size)
    if hasattr(data, "take") and hasattr(data, "pack") and hasattr(data, "spec"):
        return data
    if isinstance(data, (np.ndarray, tf.Tensor, tuple, dict)):
        return array_source(data)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, (list, str)):
        return ItemSource(data)
    raise TypeError(
        f"a source is an array, a tuple or dict of arrays, a tf.data.Dataset, or has __len__ and __getitem__; got "
        f"{type(data).__name__}" + ("; use np.asarray(...)" if isinstance(data, list) else "")
    )


# --- arrays ---------------------------------------------------------------------------------------


def array_source(arrays: Any) -> ColumnSource:
    """A source over an array (N, ...) or a nested structure of arrays of equal length. Nothing is copied."""
    leaves = [np.asanyarray(leaf) for leaf in tf.nest.flatten(arrays)]
    for leaf in leaves:
        if leaf.ndim == 0:
            raise ValueError(
                "every array needs a first axis over the samples, got a single number; a list of numbers is made "
                "an array by np.asarray(...)"
            )
    lengths = sorted({len(leaf) for leaf in leaves})
    if len(lengths) != 1:
        raise ValueError(f"all arrays must have the same length, got {', '.join(map(str, lengths)) or 'none'}")
    if lengths == [0]:
        raise ValueError("the arrays are empty: a source needs at least one element")
    return ColumnSource(tf.nest.map_structure(lambda _: None, arrays), [DenseColumn(leaf) for leaf in leaves])


# --- anything with __len__ and __getitem__ ---------------------------------------------------------


class ItemSource:
    """Elements fetched by ``items[i]``, or a batch at a time where there is ``__getitems__``.

    All elements must have the structure, shapes and dtypes of the first.
    """

    def __init__(self, items: Any) -> None:
        if len(items) == 0:
            raise ValueError("the source is empty: it needs at least one element")
        first = items[0]
        self.items = items
        self.spec = tf.nest.map_structure(lambda _: None, first)
        self.examples = [np.asarray(leaf) for leaf in tf.nest.flatten(first)]
        self.dtypes = [dtype_of(example) for example in self.examples]

    def __len__(self) -> int:
        return len(self.items)

    def take(self, index: Array) -> list[Array]:
        rows = [self._leaves(i, element) for i, element in zip(index, self._fetch(index.tolist()), strict=True)]
        return [self._stack(example, [row[leaf] for row in rows], index) for leaf, example in enumerate(self.examples)]

    def pack(self, tensors: Sequence[tf.Tensor], batch_size: int) -> Any:
        shaped = [
            tf.ensure_shape(tensor, (batch_size, *example.shape))
            for tensor, example in zip(tensors, self.examples, strict=True)
        ]
        return tf.nest.pack_sequence_as(self.spec, shaped)

    def _fetch(self, index: list[int]) -> Sequence[Any]:
        if not hasattr(self.items, "__getitems__"):
            return [self.items[i] for i in index]
        elements = list(self.items.__getitems__(index))
        if len(elements) != len(index):
            raise ValueError(f"__getitems__ gave {len(elements)} elements for {len(index)} indices")
        return elements

    def _leaves(self, i: int, element: Any) -> list[Any]:
        try:
            tf.nest.assert_same_structure(self.spec, element)
        except (TypeError, ValueError) as error:
            raise ValueError(f"element {i} has another structure than the first element: {error}") from None
        return tf.nest.flatten(element)

    def _stack(self, example: Array, values: list[Any], index: Array) -> Array:
        arrays = [np.asarray(value) for value in values]
        for i, array in zip(index, arrays, strict=True):
            if array.shape != example.shape:
                raise ValueError(
                    f"element {i} has shape {array.shape}, the first element had {example.shape}; all elements "
                    "must have one shape: pad or crop them in __getitem__"
                )
            if array.dtype != example.dtype and not _fits(array.dtype, example.dtype):
                raise ValueError(
                    f"element {i} has dtype {array.dtype}, the first element had {example.dtype}, which cannot hold "
                    "it; give all elements one dtype in __getitem__"
                )
        dtype = object if example.dtype.kind in "OSU" else example.dtype.newbyteorder("=")
        return np.stack([array.astype(dtype, copy=False) for array in arrays])


def _fits(given: np.dtype[Any], dtype: np.dtype[Any]) -> bool:
    if dtype.kind in "OSU":
        return given.kind in "OSU"
    return np.can_cast(given, dtype, "same_kind")


# --- tf.data ----------------------------------------------------------------------------------------


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


def dataset_source(dataset: tf.data.Dataset, *, size: int) -> ColumnSource:
    """Read a finite, unbatched dataset of ``size`` elements into memory.

    Raises ``ValueError`` where the number of elements is another one, where the dataset is infinite, and where
    a ``shuffle`` would give the elements other indices the next time; ``TypeError`` for components that are no
    tensors.
    """
    if size == 0:
        raise ValueError("the dataset is empty: a source needs at least one element")
    _refuse_moving(dataset)
    _refuse_infinite_or_other_size(dataset, size)
    leaves = tf.nest.flatten(dataset.element_spec)
    readers = [_reader(spec, size) for spec in leaves]
    count = 0
    for chunk in dataset.ragged_batch(_chunk_size(leaves)):
        parts = tf.nest.flatten(chunk)
        count += int(_length(parts[0]))
        if count > size:
            raise ValueError(_other_size(dataset, None, size))
        for reader, part in zip(readers, parts, strict=True):
            reader.add(part)
    if count != size:
        raise ValueError(_other_size(dataset, count, size))
    spec = tf.nest.map_structure(lambda _: None, dataset.element_spec)
    return ColumnSource(spec, [reader.column() for reader in readers])


class _DenseReader:
    """Fills a preallocated array."""

    def __init__(self, spec: tf.TensorSpec, size: int) -> None:
        dtype = object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype
        self.array: Array = np.empty((size, *spec.shape), dtype)
        self.filled = 0

    def add(self, part: tf.Tensor) -> None:
        end = self.filled + int(_length(part))
        self.array[self.filled : end] = part.numpy()
        self.filled = end

    def column(self) -> Column:
        return DenseColumn(self.array)


class _RaggedReader:
    """Collects rows of varying shape; gives a dense column after all where a dense component had one shape."""

    def __init__(self, spec: tf.TensorSpec | tf.RaggedTensorSpec) -> None:
        self.spec = spec
        self.lengths: list[list[Array]] = []
        self.values: list[Array] = []

    def add(self, part: tf.RaggedTensor) -> None:
        self.lengths.append([lengths.numpy() for lengths in part.nested_row_lengths()])
        self.values.append(part.flat_values.numpy())

    def column(self) -> Column:
        lengths = [np.concatenate(level) for level in zip(*self.lengths, strict=True)]
        values = np.concatenate(self.values)
        self.lengths, self.values = [], []
        dense = isinstance(self.spec, tf.TensorSpec)
        if dense and all(level.size and (level == level[0]).all() for level in lengths):
            shape = (len(lengths[0]), *(int(level[0]) for level in lengths), *values.shape[1:])
            return DenseColumn(values.reshape(shape))
        sizes = self.spec.shape[: len(lengths)]
        return RaggedColumn(
            [splits_of(level) for level in lengths],
            values,
            sizes,
            getattr(self.spec, "row_splits_dtype", tf.int64),
        )


class _SparseReader:
    """Collects coordinates and values."""

    def __init__(self, spec: tf.SparseTensorSpec) -> None:
        self.shape = spec.shape
        self.parts: list[tuple[Array, Array, Array, Array]] = []

    def add(self, part: tf.SparseTensor) -> None:
        coordinates, shape = part.indices.numpy(), part.dense_shape.numpy()
        lengths = np.bincount(coordinates[:, 0], minlength=int(shape[0]))
        shapes = np.broadcast_to(shape[1:], (int(shape[0]), shape.size - 1))
        self.parts.append((lengths, coordinates[:, 1:], part.values.numpy(), shapes))

    def column(self) -> Column:
        lengths, coordinates, values, shapes = (np.concatenate(part) for part in zip(*self.parts, strict=True))
        self.parts = []
        return SparseColumn(splits_of(lengths), coordinates, values, shapes, self.shape)


_Reader = _DenseReader | _RaggedReader | _SparseReader


def _reader(spec: Any, size: int) -> _Reader:
    if isinstance(spec, tf.RaggedTensorSpec):
        return _RaggedReader(spec)
    if isinstance(spec, tf.SparseTensorSpec):
        return _SparseReader(spec)
    if isinstance(spec, tf.TensorSpec):
        if spec.shape.rank is None:
            raise TypeError(f"a component has no known rank: {spec}; give it one with tf.ensure_shape in a map()")
        if spec.shape.is_fully_defined():
            return _DenseReader(spec, size)
        return _RaggedReader(spec)
    raise TypeError(f"components must be dense, ragged or sparse tensors, got {spec}; convert it with a map()")


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
