"""Sources: random access to the samples of a data set, a batch of indices at a time.

    from pipeline.sources import as_source
    source = as_source((images, labels))            # arrays, memory maps, tensors, nested structures of them
    source = as_source(dataset, size=50_000)        # a finite tf.data.Dataset, held in memory
    source = as_source(dataset, size=50_000, cache="/data/cache")       # or on disk, for the next run too
    source = as_source(records)                     # anything with __len__ and __getitem__: see pipeline.items
    source = as_source("train.array_record")        # records of a file, or of several in a list

A source has a length and a ``spec``, the nested structure of its elements, and two methods that work hand in hand:
``take(index)`` gives NumPy arrays, outside the graph; ``pack(tensors, index)`` makes of those, inside the graph,
what ``batch`` would have made of the elements. Dense, string, ragged and sparse components arrive unchanged.

Arrays are not copied. A ``tf.data.Dataset`` is read once, by batches, into arrays of its exact size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from pipeline.cache import cached_source
from pipeline.columns import Column, ColumnSource, DenseColumn, dense
from pipeline.drawable import num_samples
from pipeline.items import ItemSource, are_paths, array_records
from pipeline.memory import Array, aligned
from pipeline.reading import dataset_source
from pipeline.worker import refuse_fork

__all__ = ["Source", "array_source", "as_source", "dataset_source", "num_samples"]

Cache = str | os.PathLike[str]


class Source(Protocol):
    """Random access to N elements."""

    spec: Any  # nested structure with one leaf a component
    dtypes: list[tf.DType]  # of the arrays that ``take`` gives
    stackable: bool  # whether ``take`` and ``pack`` serve several batches at a time, from an index (m, B)
    outside: int  # bytes a sample that ``take`` gives, 0 where that is not known
    inside: int  # bytes a sample that ``pack`` gives, 0 where that is not known

    def __len__(self) -> int:
        """N."""

    def take(self, index: Array) -> list[Array]:
        """The elements ``index``, (B,), as a flat list of arrays."""

    def pack(self, tensors: Sequence[tf.Tensor], index: tf.Tensor) -> Any:
        """The nested structure of batched components made of ``index``, and of the tensors that ``take`` gave."""


def as_source(data: Any, *, size: int | None = None, cache: Cache | None = None) -> Source:
    """The source that fits ``data``: random access to the samples 0 ... N - 1.

    Args:
        data: a finite ``tf.data.Dataset``; an array or tensor (N, ...), or a nested structure of them; the path
            of an ArrayRecord file, or a list of paths; an object with ``__len__`` and ``__getitem__``; or a source.
        size: the number of elements that is expected; a dataset of another size is refused, and one of unknown size
            need not be counted.
        cache: where the elements of a dataset are kept: ``"memory"`` (also None), or files under a directory.
            Arrays are drawn from in place (None), or copied once to where the graph can gather them (``"memory"``).

    Cost: arrays nothing, unless they are copied; a dataset one pass over it; an object one element.

    Raises ``TypeError`` for anything else, ``ValueError`` for what is empty, endless or of unequal lengths, and
    ``RuntimeError`` in a process forked after TensorFlow was loaded.
    """
    refuse_fork()
    if isinstance(data, tf.Variable):
        raise _changes()
    if isinstance(data, tf.data.Dataset):
        return _dataset(data, num_samples(data) if size is None else size, cache)
    if hasattr(data, "take") and hasattr(data, "pack") and hasattr(data, "spec"):
        return data
    if are_paths(data):
        return array_records(_uncached(data, cache))
    if isinstance(data, dict) and any(hasattr(part, "__getitems__") for part in data.values()):
        raise TypeError(f"got a dict of sources; choose one of its splits, {list(data)}")
    if isinstance(data, list) and len(data) == size and _of_arrays(data) and len(array_source(data)) != size:
        raise ValueError(
            f"a list of {size} arrays has {size} components, not {size} samples; make one array of them with "
            "np.stack(...)"
        )
    if isinstance(data, (np.ndarray, tf.Tensor, tf.RaggedTensor, tf.SparseTensor, tuple, dict)) or _of_arrays(data):
        return array_source(data if cache == "memory" else _uncached(data, cache), copy=cache == "memory")
    if hasattr(data, "__getitem__") and not isinstance(data, (list, str, bytes, np.generic)):
        return ItemSource(_uncached(data, cache))
    raise TypeError(
        f"a source is an array, a tuple or dict of arrays, a tf.data.Dataset, the path of an .array_record file, or "
        f"has __len__ and __getitem__; got {type(data).__name__}"
        + ("; use np.asarray(...)" if isinstance(data, list) else "")
    )


def _uncached(data: Any, cache: Cache | None) -> Any:
    """``data``; ``ValueError`` where it is to be kept anywhere else than where it is."""
    if cache is not None:
        raise ValueError(
            f"cache={cache!r} is for a tf.data.Dataset; {type(data).__name__} is drawn from where it is: leave cache "
            "out"
            + (", or save it with np.save and map it with np.load(..., mmap_mode='r')" if _of_arrays((data,)) else "")
        )
    return data


def _dataset(dataset: tf.data.Dataset, size: int, cache: Cache | None) -> Source:
    if cache is None or cache == "memory":
        return dataset_source(dataset, size=size)
    return cached_source(dataset, size=size, directory=cache)


# --- arrays ---------------------------------------------------------------------------------------


def array_source(arrays: Any, *, copy: bool = False) -> ColumnSource:
    """A source over an array or tensor (N, ...) or a nested structure of them, of equal length.

    Nothing is copied, unless ``copy`` asks for numbers in memory that the graph can gather from. Lists count as tuples.
    ``ValueError`` for arrays of unequal length, of none, and for a number instead of an array.
    """
    columns = [_column(leaf, copy) for leaf in tf.nest.flatten(arrays)]
    lengths = sorted({len(column) for column in columns})
    if len(lengths) != 1:
        raise ValueError(f"all arrays must have the same length, got {', '.join(map(str, lengths)) or 'none'}")
    if lengths == [0]:
        raise ValueError("the arrays are empty: a source needs at least one element")
    return ColumnSource(_tuples(tf.nest.map_structure(lambda _: None, arrays)), columns)


def _of_arrays(data: Any) -> bool:
    """Whether ``data`` is a structure whose every leaf is an array or a tensor, such as a list of arrays."""
    kinds = (np.ndarray, tf.Tensor, tf.RaggedTensor, tf.SparseTensor)
    leaves = tf.nest.flatten(data)
    return bool(leaves) and data is not leaves[0] and all(isinstance(leaf, kinds) for leaf in leaves)


def _changes() -> TypeError:
    return TypeError("a tf.Variable may change while it is drawn from; pass its values, variable.numpy()")


def _column(leaf: Any, copy: bool) -> Column:
    if isinstance(leaf, tf.Variable):
        raise _changes()
    if leaf is None:
        raise ValueError("got None in place of an array; leave out what there is not: (x,) or x for inputs alone")
    if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
        sliced = tf.data.Dataset.from_tensor_slices(leaf)
        return dataset_source(sliced, size=int(sliced.cardinality())).columns[0]
    values = leaf if isinstance(leaf, tf.Tensor) else np.asanyarray(leaf)
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError("a masked array has samples without a value; fill them in with .filled(...)")
    if len(values.shape) == 0:
        raise ValueError(
            "every array needs a first axis over the samples, got a single number; a list of numbers is made "
            "an array by np.asarray(...)"
        )
    column = dense(values)
    return dense(_moved(column.array)) if copy and isinstance(column, DenseColumn) else column


def _moved(array: Array) -> Array:
    """A copy on a boundary, in native byte order, of an array of numbers; other arrays as they are."""
    if array.dtype.kind in "OSU":
        return array
    moved = aligned(array.shape, array.dtype.newbyteorder("="))
    moved[...] = array
    return moved


def _tuples(structure: Any) -> Any:
    """The same structure with tuples for lists, which ``tf.data`` would take for tensors."""
    if isinstance(structure, list):
        return tuple(_tuples(part) for part in structure)
    if isinstance(structure, dict):
        return type(structure)((key, _tuples(part)) for key, part in structure.items())
    if type(structure) is tuple:
        return tuple(_tuples(part) for part in structure)
    return structure
