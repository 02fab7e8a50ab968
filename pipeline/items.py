"""Elements fetched one by one or by lists of indices: anything with ``__len__`` and ``__getitem__``.

source = ItemSource(records)                    # records[i], or records.__getitems__([i, j, ...])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.columns import dtype_of
from pipeline.memory import Array


class ItemSource:
    """Elements fetched by ``items[i]``, or a batch at a time where there is ``__getitems__``.

    All elements must have the structure, shapes and dtypes of the first.
    """

    stackable = False  # fetching takes long, so each batch is fetched when it is needed
    outside = inside = 0

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

    def pack(self, tensors: Sequence[tf.Tensor], index: tf.Tensor) -> Any:
        shaped = [
            tf.ensure_shape(tensor, (*index.shape, *example.shape))
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
