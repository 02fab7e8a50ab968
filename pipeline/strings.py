"""Strings in a file: all bytes one after the other, and where each string begins.

    words = Strings(blob, offsets, (3,))            # offsets 0 2 2 7: b"ab", b"", b"cdefg"
    words[np.array([2, 0, 2])]                      # array([b"cdefg", b"ab", b"cdefg"], dtype=object)

Indexed along the first axis like an array of objects (N, ...), so that the columns take either.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

from pipeline.memory import Array


class Strings:
    """N strings, or N blocks of strings of one shape, read from ``blob`` when they are asked for.

    Args:
        blob: all strings, without anything between them. Nul bytes are bytes like any other.
        offsets: (number of strings + 1,) int64, where each begins and the last one ends.
        shape: (N, ...), whose product is the number of strings.

    A batch costs a slice of the blob a string, and nothing a character.
    """

    dtype = np.dtype(object)

    def __init__(self, blob: bytes | mmap.mmap, offsets: Array, shape: tuple[int, ...]) -> None:
        self.blob = blob
        self.offsets = offsets
        self.shape = shape
        self._each = math.prod(shape[1:])  # strings in a row

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """The number of strings."""
        return len(self.offsets) - 1

    @property
    def flat(self) -> Strings:
        """All strings along one axis."""
        return self.reshape(self.size)

    def reshape(self, *shape: int) -> Strings:
        """The same strings in another shape, of which -1 stands for what is left over."""
        known = math.prod(size for size in shape if size != -1)
        whole = tuple(self.size // max(known, 1) if size == -1 else size for size in shape)
        if math.prod(whole) != self.size:
            raise ValueError(f"{self.size} strings do not fit into the shape {shape}")
        return Strings(self.blob, self.offsets, whole)

    def take(self, index: Any, axis: int = 0) -> Array:
        """The rows ``index``, of any shape: an array of objects (*index.shape, ...). ``axis`` is 0."""
        if axis != 0:
            raise ValueError(f"axis must be 0, got {axis}")
        index = np.asarray(index)
        rows = index.reshape(-1)
        if rows.min(initial=0) < 0:
            rows = np.where(rows < 0, rows + len(self), rows)
        if rows.min(initial=0) < 0 or rows.max(initial=-1) >= len(self):
            raise IndexError(f"an index is out of bounds for {len(self)} rows")
        places = rows if self._each == 1 else (rows[:, None] * self._each + np.arange(self._each)).reshape(-1)
        begins, ends = self.offsets[places].tolist(), self.offsets[places + 1].tolist()
        blob = self.blob
        taken = np.empty(places.size, object)
        taken[:] = [blob[begin:end] for begin, end in zip(begins, ends, strict=True)]
        return taken.reshape((*index.shape, *self.shape[1:]))

    def __getitem__(self, index: Any) -> Any:
        """One row for an integer, rows for an array of integers."""
        taken = self.take(index)
        return taken if taken.ndim else taken[()]
