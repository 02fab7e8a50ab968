"""Small datasets, and what the tests of the cache look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import sources

from .kinds import N, drawn, ramp


def numbers(values: Any = None) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(ramp(np.int32, 3) if values is None else values)


def words(count: int = N) -> tf.data.Dataset:
    """Strings of varying length, and numbers."""
    texts = [b"x" * (i % 5) + str(i).encode() for i in range(count)]
    return tf.data.Dataset.from_tensor_slices((texts, np.arange(count)))


def held(source: sources.Source) -> list[Any]:
    """All elements."""
    batch = next(iter(drawn(source, np.arange(len(source))[None])))
    return [leaf.numpy().tolist() for leaf in tf.nest.flatten(batch, expand_composites=True)]


def litter(place: Path) -> list[str]:
    """What lies beside the cache."""
    return sorted(path.name for path in place.parent.iterdir() if path != place)


class Counted:
    """A dataset that counts how often its elements are read."""

    def __init__(self, count: int = 100) -> None:
        self.reads = 0
        self.dataset = tf.data.Dataset.range(count).map(
            lambda i: tf.ensure_shape(tf.numpy_function(self._read, [i], tf.int64), ())
        )

    def _read(self, i: Any) -> Any:
        self.reads += 1
        return i


def alter(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
