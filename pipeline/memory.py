"""Memory that arrays and tensors share, so that data need not be held twice.

    array = aligned((50_000, 32, 32, 3), np.uint8)  # an empty array that TensorFlow can take over
    tensor = lend(array)                            # a tensor of the same memory, or None
    rows = Growing(np.float32, (8,), expected=1000) # an array whose length is found out while it is filled
    call = weakly(source.take)                      # a function that does not keep the source alive

TensorFlow reads memory of others in place if it begins at a multiple of 64 bytes. Arrays from ``aligned``, memory maps
of ``.npy`` files and of whole files do; those that NumPy allocates by itself mostly do not.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

Array = np.ndarray[Any, np.dtype[Any]]

BOUNDARY = 64  # bytes
SPARE = 4  # blocks kept for the next arrays


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array that begins at a multiple of 64 bytes."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + BOUNDARY, np.uint8)
    skip = -raw.ctypes.data % BOUNDARY
    return raw[skip : skip + size].view(dtype).reshape(shape)


def lend(array: Array) -> tf.Tensor | None:
    """A tensor of the memory of ``array``, without a copy, or None where TensorFlow cannot take it as it is.

    The memory is kept as long as the tensor lives. What is written into the array later is seen in the tensor.
    Numbers in native byte order and booleans alone; None also for memory that begins anywhere but at a multiple of
    64 bytes.
    """
    fits = array.flags.c_contiguous and array.size and array.ctypes.data % BOUNDARY == 0
    if not fits or array.dtype.kind not in "iufcb" or not array.dtype.isnative:
        return None
    try:
        return tf.experimental.dlpack.from_dlpack(_Writable(array).lent().__dlpack__())
    except (BufferError, RuntimeError, TypeError, ValueError, tf.errors.InvalidArgumentError):
        return None


class _Writable:
    """The same memory, said to be writable: DLPack knows no read-only memory, and tensors are not written to."""

    def __init__(self, array: Array) -> None:
        self._array = array
        described = dict(array.__array_interface__)
        described["data"] = (described["data"][0], False)
        self.__array_interface__ = described

    def lent(self) -> Array:
        return np.asarray(self)


class Blocks:
    """Memory for arrays that TensorFlow takes over for a while, used again and again.

    New memory has no pages yet, and to fill it takes longer than to fill memory that was just used. A block comes back
    when nobody looks at its array any more, nor at a part of it. A few are kept; who held many batches at a time and
    let them go has the memory of the rest back.
    """

    def __init__(self) -> None:
        self._free: deque[Array] = deque(maxlen=SPARE)

    def array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised array that begins at a multiple of 64 bytes."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        try:
            block = self._free.pop()
        except IndexError:
            block = aligned((size,), np.uint8)
        if block.size < size:
            block = aligned((size,), np.uint8)
        return np.asarray(_Lease(block, self._free))[:size].view(dtype).reshape(shape)


class _Lease:
    """Lives as long as an array that looks at the block: what arrays call their base."""

    def __init__(self, block: Array, free: deque[Array]) -> None:
        self._block, self._free = block, free
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._block)


class Growing:
    """Rows that are appended until nobody knows how many; one array in the end, never two.

    The memory is enlarged by an eighth whenever it is full, which moves pages instead of copying them, and what was too
    much is given back in the end.
    """

    def __init__(self, dtype: Any, row: tuple[int, ...], expected: int | None = None) -> None:
        self._dtype, self._row = np.dtype(dtype), row
        self._values = np.empty(0 if expected is None else expected * self._width + BOUNDARY, np.uint8)
        self._filled = 0

    @property
    def _width(self) -> int:
        return math.prod(self._row) * self._dtype.itemsize

    def append(self, part: Array) -> None:
        """Add the rows ``part`` (n, *row)."""
        given = np.ascontiguousarray(part, self._dtype).reshape(-1).view(np.uint8)
        end = self._filled + given.size
        if end + BOUNDARY > self._values.size:
            self._values.resize(end + end // 8 + BOUNDARY, refcheck=False)
        self._values[self._filled : end] = given
        self._filled = end

    def finish(self, count: int) -> Array:
        """The ``count`` rows, aligned where no pages have to move for that."""
        self._values.resize(self._filled + BOUNDARY, refcheck=False)
        skip = -self._values.ctypes.data % BOUNDARY
        if skip:
            ctypes.memmove(self._values.ctypes.data + skip, self._values.ctypes.data, self._filled)
        return self._values[skip : skip + self._filled].view(self._dtype).reshape(count, *self._row)


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls a bound method and does not keep its object alive.

    TensorFlow keeps every function that ``numpy_function`` was given as long as the process runs. What the function
    needs must therefore be held by the dataset; iterators hold their dataset.
    """
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> Any:
        bound = reference()
        if bound is None:
            raise RuntimeError("the dataset was dropped while something made of it is still in use; keep it")
        return bound(*arguments)

    return call
