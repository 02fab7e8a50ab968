"""Arrays in files: written a part at a time, checked, and mapped into memory.

    files = Files(directory)
    rows = files.rows("0-values", np.dtype(np.uint8), (32, 32, 3), None)    # goes to 0-values.bin
    rows.append(part)                               # (n, 32, 32, 3)
    written = rows.finish(count)                    # Written("0-values", "uint8", (count, 32, 32, 3))

    verify(directory, files.summed())               # raises Damaged
    array = mapped(directory, written)              # a read-only map, (count, 32, 32, 3) uint8

Numbers stand in their file as they stand in memory, one after the other and without a header. Strings take two files:
all bytes of all strings in ``<name>.bin``, and where each begins in ``<name>-offsets.bin``, int64.

A checksum is kept for every 64 MiB of a file. Nothing here believes what a directory says: only plain files are opened,
never by way of a link, and nothing is made that is larger than its file.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import stat
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.columns import splits_of
from pipeline.memory import Array
from pipeline.strings import Strings

BLOCK = 1 << 26  # bytes a checksum
VERIFIED = 1 << 30  # bytes read to verify all files, about
BUFFER = 1 << 20


class Damaged(Exception):
    """Files are not what was written."""


class Written(NamedTuple):
    """An array in a file, by its name there, TensorFlow's name of its dtype, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def reshape(self, *shape: int) -> Written:
        """The same values in another shape."""
        return self._replace(shape=shape)

    def files(self) -> dict[str, int | None]:
        """Its files and the bytes they must have, None where that is any number."""
        count = math.prod(self.shape)
        if self.dtype == "string":
            return {f"{self.name}.bin": None, f"{self.name}-offsets.bin": 8 * (count + 1)}
        return {f"{self.name}.bin": count * np.dtype(tf.as_dtype(self.dtype).as_numpy_dtype).itemsize}


class Summed(NamedTuple):
    """A file's size in bytes, and the CRC-32 of each of its blocks of ``BLOCK`` bytes."""

    bytes: int
    crc32: list[int]


# --- writing --------------------------------------------------------------------------------------


class Files:
    """The files that are being written into a directory; ``rows`` is the ``store`` of ``reading.read``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blobs: dict[str, _Blob] = {}

    def rows(self, name: str, dtype: np.dtype[Any], row: tuple[int, ...], _: int | None) -> _Numbers | _Texts:
        """Rows of the shape ``row`` that go to files of this name."""
        if dtype.kind == "O":
            return _Texts(name, row, self._new(f"{name}.bin"), self._new(f"{name}-offsets.bin"))
        return _Numbers(name, dtype, row, self._new(f"{name}.bin"))

    def _new(self, name: str) -> _Blob:
        self._blobs[name] = _Blob(self.directory / name)
        return self._blobs[name]

    @property
    def written(self) -> int:
        """Bytes so far."""
        return sum(blob.size for blob in self._blobs.values())

    def keep(self, names: set[str]) -> None:
        """Delete all files but these."""
        for name in self._blobs.keys() - names:
            self._blobs.pop(name).close()
            (self.directory / name).unlink()

    def summed(self) -> dict[str, Summed]:
        """Sizes and checksums of what was written."""
        return {name: Summed(blob.size, blob.sums) for name, blob in sorted(self._blobs.items())}

    def close(self) -> None:
        """Close what is open, whatever state it is in."""
        for blob in self._blobs.values():
            blob.close()


class _Blob:
    """One file that is being written, and the checksums of its blocks."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "xb", buffering=BUFFER)  # noqa: SIM115, it stays open from part to part
        self.size = 0
        self.sums: list[int] = []

    def write(self, view: memoryview) -> None:
        """Add a part, whose items are bytes."""
        begin = 0
        while begin < len(view):
            if self.size % BLOCK == 0:
                self.sums.append(0)
            end = min(len(view), begin + BLOCK - self.size % BLOCK)
            self.sums[-1] = zlib.crc32(view[begin:end], self.sums[-1])
            self.size += end - begin
            begin = end
        self.file.write(view)

    def finish(self) -> None:
        """Return when all of it is on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the disk may be full, and closing writes what is left
            self.file.close()


class _Numbers:
    """Rows of one dtype, to one file."""

    def __init__(self, name: str, dtype: np.dtype[Any], row: tuple[int, ...], blob: _Blob) -> None:
        self.name, self.dtype, self.row, self.blob = name, dtype, row, blob

    def append(self, part: Array) -> None:
        self.blob.write(_bytes(np.ascontiguousarray(part, self.dtype)))

    def finish(self, count: int) -> Written:
        self.blob.finish()
        return Written(self.name, tf.as_dtype(self.dtype).name, (count, *self.row))


class _Texts:
    """Rows of strings, to two files."""

    def __init__(self, name: str, row: tuple[int, ...], blob: _Blob, offsets: _Blob) -> None:
        self.name, self.row, self.blob, self.offsets = name, row, blob, offsets
        self.offsets.write(memoryview(bytes(8)))  # the first begins at 0

    def append(self, part: Array) -> None:
        strings = part.reshape(-1).tolist()
        ends = splits_of(np.fromiter(map(len, strings), np.int64, len(strings)))[1:] + self.blob.size
        self.blob.write(memoryview(b"".join(strings)))
        self.offsets.write(_bytes(ends))

    def finish(self, count: int) -> Written:
        self.blob.finish()
        self.offsets.finish()
        return Written(self.name, "string", (count, *self.row))


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


# --- reading --------------------------------------------------------------------------------------


def opened(path: Path) -> BinaryIO:
    """A plain file, for reading; ``ValueError`` for a link and for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        if path.is_symlink():
            raise ValueError(f"{path} is a link; a cache holds plain files alone") from None
        raise
    file = os.fdopen(descriptor, "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise ValueError(f"{path} is no plain file; a cache holds plain files alone")
    return file


def verify(directory: Path, files: dict[str, Summed]) -> None:
    """``Damaged`` where a file has another size, or a block another checksum than it had when it was written.

    All blocks of up to ``VERIFIED`` bytes in all; of more the first and the last block of every file, and as many
    others as that allows, evenly spread. Costs the reading of those.
    """
    for name, block in _to_verify(files):
        summed = files[name]
        try:
            file = opened(directory / name)
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        with file:
            size = os.fstat(file.fileno()).st_size
            if size != summed.bytes:
                raise Damaged(f"{name} has {size:,} bytes, {summed.bytes:,} were written")
            if block is not None and _sum(file, block) != summed.crc32[block]:
                raise Damaged(f"{name} has another checksum than what was written, in block {block}")


def _to_verify(files: dict[str, Summed]) -> list[tuple[str, int | None]]:
    """Files and blocks; None for the size of a file alone, which come first."""
    sizes: list[tuple[str, int | None]] = [(name, None) for name in files]
    blocks = [(name, block) for name, summed in files.items() for block in range(len(summed.crc32))]
    if sum(summed.bytes for summed in files.values()) <= VERIFIED:
        return [*sizes, *blocks]
    spread = np.linspace(0, len(blocks) - 1, max(2, VERIFIED // BLOCK)).astype(int)
    chosen = {blocks[place] for place in spread}
    chosen |= {(name, end) for name, summed in files.items() if summed.crc32 for end in (0, len(summed.crc32) - 1)}
    return [*sizes, *sorted(chosen)]


def _sum(file: BinaryIO, block: int) -> int:
    file.seek(block * BLOCK)
    found, left = 0, BLOCK
    while left and (part := file.read(min(left, BUFFER))):
        found, left = zlib.crc32(part, found), left - len(part)
    return found


def mapped(directory: Path, written: Written) -> Array | Strings:
    """The array, read from its file where it is used; strings as ``Strings``.

    Numbers begin at the beginning of a page, so that ``memory.lend`` can lend them to TensorFlow. The map lasts as long
    as something uses it, also where the file is moved or deleted.
    """
    if written.dtype == "string":
        offsets = mapped(directory, Written(f"{written.name}-offsets", "int64", (math.prod(written.shape) + 1,)))
        with opened(directory / f"{written.name}.bin") as file:
            size = os.fstat(file.fileno()).st_size
            blob = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""  # nothing is no map
        assert isinstance(offsets, np.ndarray)
        check_splits(f"{written.name}-offsets", offsets, size)
        return Strings(blob, offsets, written.shape)
    dtype = np.dtype(tf.as_dtype(written.dtype).as_numpy_dtype)
    if 0 in written.shape:
        return np.empty(written.shape, dtype)
    with opened(directory / f"{written.name}.bin") as file:
        return np.asarray(np.memmap(file, dtype, "r", shape=written.shape))  # indexed quicker than a memmap


def check_splits(name: str, splits: Array, total: int, size: int | None = None) -> None:
    """``Damaged`` where ``splits`` do not rise from 0 to ``total``, by ``size`` each where that is given.

    Costs the reading of them, a part at a time.
    """
    fine = len(splits) > 0 and splits[0] == 0 and splits[-1] == total
    for begin in range(0, len(splits) - 1, BUFFER):
        part = splits[begin : begin + BUFFER + 1]
        fine = fine and bool((part[1:] >= part[:-1]).all())  # so none lies outside 0 to total
        fine = fine and (size is None or bool((np.diff(part) == size).all()))
    if not fine:
        raise Damaged(f"{name} do not rise from 0 to {total}, as the beginnings of rows do")
