"""The data sets of the pipeline benchmark, as files, and the check that a batch is made of their samples.

    make(folder, "images", num_samples=50_000, seed=0)      # images-x.npy and images-y.npy
    data = load(folder, "images")                           # arrays in memory
    x, y = data.x[index], data.y[index]
    check_batch(data, x, y)                                 # right shapes and dtypes, and x beside its own y

============  ===============================================  ======================
data set      x                                                y
============  ===============================================  ======================
``images``    (N, 32, 32, 3) uint8                             (N,) int64, ten classes
``features``  (N, 1000) float32                                the same
``strings``   (N,) strings of 20 to 199 bytes                  the same
============  ===============================================  ======================

Everything is random. The classes are uneven: class c holds a share of samples in proportion to 1 / (c + 1). A
sample is known by its first eight bytes, so a batch tells by itself which samples it is made of. Strings are held as
an array of ``bytes`` objects, and on disk, where a memory map needs one length, as ``S200``.

Imports NumPy alone, and is read by Python 3.10 too: the workers of :mod:`benchmarks.peers` load the same files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DATA_SETS = ("images", "features", "strings")
CLASSES = 10
IMAGE = (32, 32, 3)
FEATURES = 1000
SHORTEST, LONGEST = 20, 200  # bytes of a string; the latter is the length of the field on disk
KEY_BYTES = 8  # of a sample that no other shares


@dataclass(frozen=True, eq=False)  # one is itself alone, so it can be the key of what was made of it
class Data:
    """One data set: x (N, ...), y (N,), and where its files are."""

    name: str
    x: Array
    y: Array
    folder: Path

    def __len__(self) -> int:
        """N."""
        return len(self.y)

    @property
    def nbytes(self) -> int:
        """Bytes of the samples themselves, without what holds them."""
        if self.x.dtype.kind in "OS":
            return sum(map(len, self.x.tolist())) + int(self.y.nbytes)
        return int(self.x.nbytes + self.y.nbytes)


def paths(folder: Path, name: str) -> tuple[Path, Path]:
    """The two files of a data set."""
    return folder / f"{name}-x.npy", folder / f"{name}-y.npy"


def make(folder: Path, name: str, *, num_samples: int, seed: int) -> None:
    """Write a data set."""
    generator = np.random.default_rng([seed, DATA_SETS.index(name)])
    x = {"images": images, "features": features, "strings": strings}[name](num_samples, generator)
    shares = 1.0 / np.arange(1, CLASSES + 1)
    y = generator.choice(CLASSES, num_samples, p=shares / shares.sum()).astype(np.int64)
    y[:CLASSES] = np.arange(CLASSES)[:num_samples]  # every class is there, however few the samples
    for path, array in zip(paths(folder, name), (x, y), strict=True):
        np.save(path, array)


def images(count: int, generator: np.random.Generator) -> Array:
    """(N, 32, 32, 3) uint8."""
    return generator.integers(0, 256, (count, *IMAGE), np.uint8)


def features(count: int, generator: np.random.Generator) -> Array:
    """(N, 1000) float32."""
    return generator.standard_normal((count, FEATURES), np.float32)


def strings(count: int, generator: np.random.Generator) -> Array:
    """(N,) S200: letters, then nothing."""
    letters = generator.integers(ord("a"), ord("z") + 1, (count, LONGEST), np.uint8)
    lengths = generator.integers(SHORTEST, LONGEST, count)
    letters[np.arange(LONGEST) >= lengths[:, np.newaxis]] = 0
    return letters.view(f"S{LONGEST}").reshape(count)


def load(folder: Path, name: str) -> Data:
    """A data set in memory."""
    x, y = (np.load(path) for path in paths(folder, name))
    return Data(name, x.astype(object) if x.dtype.kind == "S" else x, y, folder)


def mapped(data: Data) -> tuple[Array, Array]:
    """Its files as memory maps, nothing of them read."""
    x, y = (np.load(path, mmap_mode="r") for path in paths(data.folder, data.name))
    return x, y


def keys(x: Array) -> Array:
    """The first eight bytes of every sample, (N,) uint64."""
    if x.dtype.kind in "OS":
        return x.astype(f"S{KEY_BYTES}").view(np.uint64)
    rows = np.ascontiguousarray(x.reshape(len(x), -1)[:, : KEY_BYTES // x.dtype.itemsize])
    return rows.view(np.uint64).reshape(len(x))


def check_batch(data: Data, x: Any, y: Any, index: Array | None = None) -> None:
    """Raise ``ValueError`` where a batch has a wrong shape or dtype, a sample that is none, or another's y.

    With ``index`` (B,) the samples must be those that it names.
    """
    x, y = as_array(x), np.asarray(y)
    text = data.x.dtype.kind == "O"
    if not len(x) or x.shape != (len(y), *data.x.shape[1:]) or y.ndim != 1:
        raise ValueError(
            f"a batch of {data.name} must have x (B, {data.x.shape[1:]}), y (B,), got {x.shape}, {y.shape}"
        )
    if (x.dtype.kind not in "OS") if text else (x.dtype != data.x.dtype):
        raise ValueError(f"x of {data.name} must be {data.x.dtype}, got {x.dtype}")
    if y.dtype != data.y.dtype:
        raise ValueError(f"y of {data.name} must be {data.y.dtype}, got {y.dtype}")
    known = keys(data.x)
    order = np.argsort(known)
    places = order[np.searchsorted(known[order], keys(x)).clip(max=len(data) - 1)]
    if index is not None and not np.array_equal(places, index):
        raise ValueError(f"a batch of {data.name} does not hold the samples that its index names")
    if not all(np.array_equal(data.x[place], one) for place, one in zip(places, x, strict=True)):
        raise ValueError(f"a batch of {data.name} holds a sample that is not in the data set")
    if not np.array_equal(data.y[places], y):
        raise ValueError(f"a batch of {data.name} holds an x beside another sample's y")


def as_array(x: Any) -> Array:
    """A batch's x as an array; a list of strings becomes one of objects."""
    return np.array(x, object) if isinstance(x, (list, tuple)) else np.asarray(x)
