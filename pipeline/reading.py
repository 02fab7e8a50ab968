"""Reading a ``tf.data.Dataset`` into columns, so that its elements can be drawn by index.

    source = dataset_source(dataset, size=50_000)   # read once, by batches, into arrays of its exact size

What cannot be drawn from is refused, by ``pipeline.drawable``.

``read`` knows nothing of where the values go: a ``store`` makes the rows of each component, in memory or in files
(``pipeline.cache``), and what they become is put together by ``column``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from pipeline.columns import Column, ColumnSource, DenseColumn, RaggedColumn, SparseColumn, dense, splits_of
from pipeline.drawable import length, other_size, refuse
from pipeline.memory import Array, Growing
from pipeline.progress import counting

CHUNK_BYTES = 1 << 25  # a dataset is read in batches of about this size
CHUNK_ELEMENTS = 1024


class Rows(Protocol):
    """Where the values of a component go while a dataset is read: to memory, or to a file.

    What ``finish`` gives needs a ``reshape``, and no more than that until ``column`` is called with it.
    """

    def append(self, part: Array) -> None:
        """Add the rows ``part`` (n, *row)."""

    def finish(self, count: int) -> Any:
        """All ``count`` rows: an array, or what is indexed like one."""


Store = Callable[[str, np.dtype[Any], tuple[int, ...], int | None], Rows]
"""Makes rows of a name, a dtype (object for strings), the shape of a row, and how many there will be, if known."""


class Dense(NamedTuple):
    """What was read of a component of one shape: (N, ...)."""

    values: Any


class Ragged(NamedTuple):
    """What was read of a component of varying shape: where rows begin, outermost first, and the innermost values."""

    splits: list[Any]
    values: Any


class Sparse(NamedTuple):
    """What was read of a sparse component."""

    splits: Any  # (N + 1,) int64, where the values of an element begin
    coordinates: Any  # (all values, rank) int64
    values: Any
    shapes: Any  # (N, rank) int64


Parts = Dense | Ragged | Sparse


def column(spec: Any, parts: Parts) -> Column:
    """The column of a component: its ``spec`` in the dataset, and what was read of it."""
    if isinstance(parts, Dense):
        return _dense(parts.values)
    if isinstance(parts, Ragged):
        sizes = spec.shape[: len(parts.splits)]
        return RaggedColumn(parts.splits, parts.values, sizes, getattr(spec, "row_splits_dtype", tf.int64))
    return SparseColumn(parts.splits, parts.coordinates, parts.values, parts.shapes, spec.shape)


def dataset_source(dataset: tf.data.Dataset, *, size: int) -> ColumnSource:
    """Read a finite, unbatched dataset of ``size`` elements into memory.

    Tensors that were sliced and nothing else (``from_tensor_slices``) are taken as they are, without a copy. Raises
    ``ValueError`` where the number of elements is another one, where the dataset is infinite, and where
    a ``shuffle`` would give the elements other indices the next time; ``TypeError`` for components that are no
    tensors. What the dataset itself raises is raised again with the elements named that were being read.
    """
    refuse(dataset, size)
    sliced = _sliced_tensors(dataset)
    if sliced is not None:
        return ColumnSource(spec_of(dataset), [dense(tensor) for tensor in sliced])
    with counting("reading the dataset into memory", size) as progress:
        parts = read(dataset, size, _in_memory, progress)
    return source_of(dataset, parts)


def source_of(dataset: tf.data.Dataset, parts: list[Parts]) -> ColumnSource:
    """The source of what was read of all components of a dataset."""
    leaves = tf.nest.flatten(dataset.element_spec)
    return ColumnSource(spec_of(dataset), [column(*pair) for pair in zip(leaves, parts, strict=True)])


def read(
    dataset: tf.data.Dataset, size: int, store: Store, progress: Callable[[int], None], each: int = 0
) -> list[Parts]:
    """All components of the ``size`` elements, by batches, into rows that ``store`` makes.

    ``progress`` is called with the number of elements read up to then. ``each`` is the size of an element in bytes, as
    far as it is known; batches are kept small by it. Raises ``ValueError`` for another number of elements, and what
    the dataset raises, with the elements named that were being read.
    """
    leaves = tf.nest.flatten(dataset.element_spec)
    readers = [
        _reader(spec, size, lambda name, *rest, place=place: store(f"{place}-{name}", *rest))
        for place, spec in enumerate(leaves)
    ]
    count, step = 0, _chunk_size(leaves, each)
    chunks = iter(dataset.batch(step) if all(map(_of_one_shape, leaves)) else dataset.ragged_batch(step))
    while True:
        with naming(count, min(count + step, max(size, count + 1)) - 1):
            chunk = next(chunks, None)
        if chunk is None:
            break
        parts = tf.nest.flatten(chunk)
        count += int(length(parts[0]))
        if count > size:
            raise ValueError(other_size(dataset, None, size))
        for reader, part in zip(readers, parts, strict=True):
            reader.add(part)
        progress(count)
    if count != size:
        raise ValueError(other_size(dataset, count, size))
    return [reader.parts() for reader in readers]


@contextlib.contextmanager
def naming(first: int, last: int) -> Iterator[None]:
    """Name the elements in what TensorFlow raises."""
    try:
        yield
    except tf.errors.OpError as error:
        words = f"the dataset failed at one of its elements {first} to {last}: {error.message}"
        if type(error) is tf.errors.OpError:
            raise tf.errors.OpError(error.node_def, error.op, words, error.error_code) from error
        raise type(error)(error.node_def, error.op, words) from error


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

    def parts(self) -> Parts:
        return Dense(self.values.finish(self.size))


class _Splits:
    """Where rows begin, and how long they all are as long as they are of one length."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.count = self.total = 0
        self.length: int | None = None
        self.same = True
        self.rows.append(np.zeros(1, np.int64))

    def append(self, lengths: Array) -> None:
        if lengths.size == 0:
            return
        if self.length is None:
            self.length = int(lengths[0])
        self.same = self.same and bool((lengths == self.length).all())
        ends = splits_of(lengths)[1:] + self.total
        self.rows.append(ends)
        self.count, self.total = self.count + lengths.size, int(ends[-1])

    def finish(self) -> Any:
        return self.rows.finish(self.count + 1)


class _RaggedReader:
    """Rows of varying shape; they are dense after all where a dense component had one shape."""

    def __init__(self, spec: tf.TensorSpec | tf.RaggedTensorSpec, size: int, store: Store) -> None:
        self.spec = spec
        self.size = size
        self.store = store
        self.levels: list[_Splits] = []
        self.values: Rows | None = None

    def add(self, part: tf.RaggedTensor) -> None:
        lengths = [level.numpy() for level in part.nested_row_lengths()]
        values = part.flat_values.numpy()
        if self.values is None:
            expected = [self.size + 1] + [None] * (len(lengths) - 1)
            self.levels = [
                _Splits(self.store(f"splits{place}", np.dtype(np.int64), (), count))
                for place, count in enumerate(expected)
            ]
            self.values = self.store("values", _dtype(self.spec), values.shape[1:], None)
        for level, given in zip(self.levels, lengths, strict=True):
            level.append(given)
        self.values.append(values)

    def parts(self) -> Parts:
        assert self.values is not None  # there is at least one element
        splits = [level.finish() for level in self.levels]
        values = self.values.finish(self.levels[-1].total)
        one_shape = [level.length for level in self.levels if level.same and level.length is not None]
        if isinstance(self.spec, tf.TensorSpec) and len(one_shape) == len(self.levels):
            return Dense(values.reshape(self.size, *one_shape, *values.shape[1:]))
        return Ragged(splits, values)


class _SparseReader:
    """Coordinates and values."""

    def __init__(self, spec: tf.SparseTensorSpec, size: int, store: Store) -> None:
        self.spec = spec
        self.size = size
        rank = spec.shape.rank
        self.splits = _Splits(store("splits0", np.dtype(np.int64), (), size + 1))
        self.coordinates = store("coordinates", np.dtype(np.int64), (rank,), None)
        self.values = store("values", _dtype(spec), (), None)
        self.shapes = store("shapes", np.dtype(np.int64), (rank,), size)

    def add(self, part: tf.SparseTensor) -> None:
        coordinates, shape = part.indices.numpy(), part.dense_shape.numpy()
        self.splits.append(np.bincount(coordinates[:, 0], minlength=int(shape[0])))
        self.coordinates.append(coordinates[:, 1:])
        self.values.append(part.values.numpy())
        self.shapes.append(np.broadcast_to(shape[1:], (int(shape[0]), shape.size - 1)))

    def parts(self) -> Parts:
        count = self.splits.total
        return Sparse(
            self.splits.finish(),
            self.coordinates.finish(count),
            self.values.finish(count),
            self.shapes.finish(self.size),
        )


_Reader = _DenseReader | _RaggedReader | _SparseReader


def _reader(spec: Any, size: int, store: Store) -> _Reader:
    if isinstance(spec, tf.SparseTensorSpec):
        return _SparseReader(spec, size, store)
    if _of_one_shape(spec):
        return _DenseReader(spec, size, store)
    return _RaggedReader(spec, size, store)


def _dtype(spec: Any) -> np.dtype[Any]:
    return np.dtype(object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype)


def _dense(values: Any) -> Column:
    """The column of what was read; strings become a tensor, since the graph gathers those quicker, unless in a file."""
    if not isinstance(values, np.ndarray):
        return DenseColumn(values)
    return dense(tf.constant(values, tf.string) if values.dtype.kind == "O" else values)


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


def known_bytes(dataset: tf.data.Dataset) -> tuple[int, bool]:
    """Bytes an element takes, of its components of fixed shape, and whether that is all there is."""
    leaves = tf.nest.flatten(dataset.element_spec)
    known = _known_bytes(leaves)
    return sum(known), len(known) == len(leaves)


def _known_bytes(leaves: list[Any]) -> list[int]:
    fixed = [leaf for leaf in leaves if _of_one_shape(leaf) and leaf.dtype != tf.string]
    return [leaf.shape.num_elements() * leaf.dtype.size for leaf in fixed]


def _of_one_shape(spec: Any) -> bool:
    return isinstance(spec, tf.TensorSpec) and spec.shape.is_fully_defined()


def _chunk_size(leaves: list[Any], each: int) -> int:
    """How many elements to read at a time; sparse ones of varying shape alone, as a batch keeps the largest shape."""
    if any(isinstance(leaf, tf.SparseTensorSpec) and not leaf.shape.is_fully_defined() for leaf in leaves):
        return 1
    return max(1, min(CHUNK_ELEMENTS, CHUNK_BYTES // max(sum(_known_bytes(leaves)), each, 1)))
