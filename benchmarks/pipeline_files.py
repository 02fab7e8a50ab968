"""Files that are read while measuring, and how they are put out of the page cache.

    write_records(path, data)             # a TFRecord file of a data set
    left = drop([path, ...])              # the share of their pages that stayed in memory: 0.0 if all went
    warm([path, ...])                     # read once, so that all of them are in memory

What a program reads from disk stays in memory, so that a second reading measures memory. ``drop`` writes out
what is not on disk yet, takes the pages out of this process's own maps, which would hold them, and then tells the
system that they are not needed (``POSIX_FADV_DONTNEED``). It asks how many pages are left, so that a figure
is not called cold where they stayed: other processes that map the file, or a file system that lives in memory, keep
them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipeline_data import Data, paths

STILL_COLD = 0.02  # of the pages may stay: what other readers fetched meanwhile
MADV_DONTNEED = 4
CHUNK = 1 << 24


def can_drop() -> bool:
    """Whether this system has the calls."""
    return hasattr(os, "posix_fadvise") and Path("/proc/self/maps").exists()


def drop(files: Sequence[Path]) -> float:
    """Put files out of the page cache; the share of their pages that stayed."""
    for path in files:
        unmap(path)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    pages = np.array([_resident(path) for path in files])
    return float(pages[:, 0].sum() / max(1, pages[:, 1].sum()))


def warm(files: Iterable[Path]) -> None:
    """Read files from one end to the other."""
    for path in files:
        with path.open("rb") as opened:
            while opened.read(CHUNK):
                pass


def files_below(folder: Path) -> list[Path]:
    """All files under a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def unmap(path: Path) -> None:
    """Take the file's pages out of this process's maps; they are fetched again when they are touched."""
    libc = ctypes.CDLL(None, use_errno=True)
    for start, end in _maps_of(path):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def _maps_of(path: Path) -> Iterator[tuple[int, int]]:
    """Where a file is mapped to be read or shared. A private map that is written to is left alone: it has no file."""
    name = str(path.resolve())
    with open("/proc/self/maps") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5] == name and fields[1] != "rw-p":
                start, _, end = fields[0].partition("-")
                yield int(start, 16), int(end, 16)


def _resident(path: Path) -> tuple[int, int]:
    """How many pages of a file are in memory, and how many it has."""
    size = path.stat().st_size
    if size == 0:
        return 0, 0
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        pages = -(-size // mmap.PAGESIZE)
        told = (ctypes.c_ubyte * pages)()
        view = np.frombuffer(mapping, np.uint8)
        done = ctypes.CDLL(None).mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), told)
        del view  # the map cannot be closed while it is looked at
        if done != 0:
            raise OSError(f"mincore failed for {path.name}")
        return int(np.frombuffer(bytes(told), np.uint8).astype(bool).sum()), pages


# --- what is read -----------------------------------------------------------------------------


def records_path(data: Data) -> Path:
    """The TFRecord file of a data set."""
    return data.folder / f"{data.name}.tfrecord"


def array_record_path(data: Data) -> Path:
    """The ArrayRecord file of a data set, which the worker in Grain's environment writes."""
    return data.folder / f"{data.name}.array_record"


def cache_folder(data: Data) -> Path:
    """Where this project keeps a data set on disk."""
    return data.folder / f"{data.name}-cache"


def map_files(data: Data) -> list[Path]:
    """The files that are memory-mapped."""
    return list(paths(data.folder, data.name))


def write_records(data: Data) -> Path:
    """A TFRecord file: the bytes of x, then those of y, in each record. Written once."""
    import tensorflow as tf

    path = records_path(data)
    if not path.exists():
        part = path.with_name(path.name + ".part")
        with tf.io.TFRecordWriter(str(part)) as writer:
            for x, y in zip(data.x, data.y, strict=True):
                writer.write(x.tobytes() + y.tobytes())
        os.replace(part, path)
    return path


def parse_records(data: Data, records: Any) -> tuple[Any, Any]:
    """The two parts of a batch of records, inside the graph: whole batches at a time, the quickest way."""
    import tensorflow as tf

    width, y_width = data.x[0].nbytes, data.y.dtype.itemsize
    x = tf.io.decode_raw(tf.strings.substr(records, 0, width), tf.as_dtype(data.x.dtype))
    y = tf.io.decode_raw(tf.strings.substr(records, width, y_width), tf.int64)
    return tf.reshape(x, (-1, *data.x.shape[1:])), tf.reshape(y, (-1,))
