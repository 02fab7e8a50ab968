"""Columns: one component of a data set's elements each, for all samples.

    column = dense(images)                          # one shape: an array or a tensor (N, ...)
    column = RaggedColumn([splits], values)         # varying shape: all values, and where each row begins
    column = SparseColumn(splits, coordinates, values, shapes)
    source = ColumnSource(spec, [column, ...])      # elements of several components

All have ``take(index)``, NumPy arrays for the samples ``index`` (B,), outside the graph, and ``pack(tensors, index)``,
which makes a batch of those inside the graph. Nothing is copied until it is taken.

A component of one shape is gathered inside the graph where TensorFlow can read its memory as it is: then nothing is
taken outside. Such a gathering needs no interpreter and several threads share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.memory import Array, Blocks, lend


class TensorColumn:
    """A component of one shape that the graph gathers: a tensor (N, ...), numbers or strings."""

    stackable = True  # several batches can be made at a time, from an index (m, B)
    outside = 0  # bytes a sample that ``take`` gives

    def __init__(self, tensor: tf.Tensor) -> None:
        self.tensor = tensor
        self.dtypes: list[tf.DType] = []
        self.inside = _bytes_of(tensor.dtype.size, tensor.shape[1:])  # bytes a sample in the batch

    def __len__(self) -> int:
        return int(self.tensor.shape[0])

    def take(self, index: Array) -> list[Array]:
        return []

    def pack(self, tensors: Sequence[tf.Tensor], index: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.tensor, index)


class DenseColumn:
    """A component of one shape: an array (N, ...), numbers or strings."""

    stackable = True

    def __init__(self, array: Array) -> None:
        self.array = array
        self.dtypes = [dtype_of(array)]
        self.outside = self.inside = _bytes_of(array.dtype.itemsize, array.shape[1:])
        self._blocks = Blocks()

    def __len__(self) -> int:
        return len(self.array)

    def take(self, index: Array) -> list[Array]:
        array = self.array
        if array.dtype.kind in "OSU" or not array.dtype.isnative:
            return [plain(array[index])]
        out = self._blocks.array((*index.shape, *array.shape[1:]), array.dtype)
        if array.flags.c_contiguous:
            return [array.take(index, axis=0, out=out, mode="clip")]  # any other mode goes by way of a second array
        out[...] = array[index]  # ``take`` would first copy all of a strided array
        return [out]

    def pack(self, tensors: Sequence[tf.Tensor], index: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tensors[0], [*index.shape, *self.array.shape[1:]])


def dense(values: Array | tf.Tensor) -> TensorColumn | DenseColumn:
    """The column of an array or a tensor (N, ...), gathered inside the graph where that needs no copy."""
    if isinstance(values, tf.Tensor):
        return TensorColumn(values)
    tensor = lend(values)
    return DenseColumn(values) if tensor is None else TensorColumn(tensor)


def _bytes_of(itemsize: int, shape: Sequence[int]) -> int:
    return max(itemsize, 1) * int(np.prod(list(shape), dtype=np.int64))


class RaggedColumn:
    """A component of varying shape: the rows' values in one array, and where each row begins.

    ``sizes`` has the static size of each of the element's axes that has splits, None where it varies.
    """

    stackable = False
    outside = inside = 0

    def __init__(
        self, splits: list[Array], values: Array, sizes: Sequence[int | None], dtype: tf.DType = tf.int64
    ) -> None:
        self.splits = splits  # outermost first
        self.values = values
        self.sizes = list(sizes)
        self.splits_dtype = dtype
        self.dtypes = [tf.int64] * len(splits) + [dtype_of(values)]

    def __len__(self) -> int:
        return len(self.splits[0]) - 1

    def take(self, index: Array) -> list[Array]:
        rows, taken = index, []
        for splits in self.splits:
            rows, lengths = _rows(splits, rows)
            taken.append(splits_of(lengths))
        return [*taken, self.values[rows]]

    def pack(self, tensors: Sequence[tf.Tensor], index: tf.Tensor) -> tf.RaggedTensor:
        *splits, values = tensors
        packed = tf.ensure_shape(values, (None, *self.values.shape[1:]))
        rows = [index.shape[0] + 1] + [None] * (len(splits) - 1)
        for split, size, count in reversed(list(zip(splits, self.sizes, rows, strict=True))):
            split = tf.cast(tf.ensure_shape(split, (count,)), self.splits_dtype)
            if size is None:
                packed = tf.RaggedTensor.from_row_splits(packed, split, validate=False)
            else:
                size, nrows = tf.constant(size, split.dtype), tf.size(split, split.dtype) - 1
                packed = tf.RaggedTensor.from_uniform_row_length(packed, size, nrows, validate=False)
        return packed


class SparseColumn:
    """A sparse component: coordinates and values of all rows, and where each row begins."""

    stackable = False
    outside = inside = 0

    def __init__(self, splits: Array, coordinates: Array, values: Array, shapes: Array, static: tf.TensorShape) -> None:
        self.splits = splits
        self.coordinates = coordinates  # (all values, rank)
        self.values = values
        self.shapes = shapes  # (N, rank)
        self.static = static  # what is known of the shape of all elements
        self.dtypes = [tf.int64, dtype_of(values), tf.int64]

    def __len__(self) -> int:
        return len(self.splits) - 1

    def take(self, index: Array) -> list[Array]:
        places, lengths = _rows(self.splits, index)
        row = np.repeat(np.arange(index.size), lengths)
        coordinates = np.column_stack([row, self.coordinates[places]])
        shape = np.concatenate([[index.size], self.shapes[index].max(axis=0)])
        return [coordinates, self.values[places], shape]

    def pack(self, tensors: Sequence[tf.Tensor], index: tf.Tensor) -> tf.SparseTensor:
        coordinates, values, shape = tensors
        rank = self.coordinates.shape[1] + 1
        sparse = tf.SparseTensor(
            tf.ensure_shape(coordinates, (None, rank)),
            tf.ensure_shape(values, (None,)),
            tf.ensure_shape(shape, (rank,)),
        )
        sparse.set_shape((index.shape[0], *self.static))
        return sparse


Column = TensorColumn | DenseColumn | RaggedColumn | SparseColumn


class ColumnSource:
    """Elements held by columns, one for each component of the nested structure ``spec``."""

    def __init__(self, spec: Any, columns: list[Column]) -> None:
        self.spec = spec
        self.columns = columns
        self.dtypes = [dtype for column in columns for dtype in column.dtypes]
        self.stackable = all(column.stackable for column in columns)
        self.outside = sum(column.outside for column in columns)
        self.inside = sum(column.inside for column in columns)

    def __len__(self) -> int:
        return len(self.columns[0])

    def take(self, index: Array) -> list[Array]:
        return [part for column in self.columns for part in column.take(index)]

    def pack(self, tensors: Sequence[tf.Tensor], index: tf.Tensor) -> Any:
        return packed(self.spec, self.columns, tensors, index)


def packed(spec: Any, components: Sequence[Any], tensors: Sequence[tf.Tensor], index: tf.Tensor) -> Any:
    """The structure ``spec`` of batched components, each packed of as many of the tensors as it has ``dtypes``."""
    batches, first = [], 0
    for component in components:
        end = first + len(component.dtypes)
        batches.append(component.pack(tensors[first:end], index))
        first = end
    return tf.nest.pack_sequence_as(spec, batches)


def dtype_of(array: Array) -> tf.DType:
    """TensorFlow's dtype for the values of ``array``; ``TypeError`` where there is none."""
    if array.dtype.kind in "SU":
        return tf.string
    if array.dtype.kind == "O" and not isinstance(array, np.ndarray):
        return tf.string  # strings in files are bytes; to look at each would read all of them
    if array.dtype.kind == "O":
        place, other = next(((i, v) for i, v in enumerate(array.flat) if not isinstance(v, (str, bytes))), (0, ""))
        if not isinstance(other, (str, bytes)):
            sample = place // max(1, array[:1].size)
            raise TypeError(
                f"an array of objects must hold str or bytes, got {type(other).__name__} in sample {sample}; make it "
                "an array of numbers with .astype(...), or fill in what is missing"
            )
        return tf.string
    try:
        return tf.as_dtype(array.dtype.newbyteorder("="))
    except TypeError:
        raise TypeError(f"TensorFlow has no dtype for {array.dtype}; convert it with .astype(...)") from None


def plain(array: Array) -> Array:
    """The same values in the form TensorFlow takes over as it is: text as objects, numbers in native byte order."""
    if array.dtype.kind == "U":
        return array.astype(object)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _rows(splits: Array, rows: Array) -> tuple[Array, Array]:
    """The places that ``rows`` hold one level below, and how many each has."""
    starts, lengths = splits[rows], splits[rows + 1] - splits[rows]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths), lengths


def splits_of(lengths: Array) -> Array:
    """Where rows of these lengths begin and end: (N + 1,) int64 from (N,)."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
