"""Data sets of every kind, and what ``tf.data`` makes of them: for the tests of sources and of their cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import sources

N, B, ROUNDS = 23, 5, 60
Data = tuple[Any, tf.data.Dataset]  # what is wrapped, and a dataset of the same elements

RNG = np.random.default_rng(0)
WORDS = [bytes([97 + i % 26]) * (i % 4) for i in range(N)]
LENGTHS = [3, 0, 1, 4, 2] * 5


# --- what can be drawn from -----------------------------------------------------------------------


def arrays(data: Any) -> Data:
    return data, tf.data.Dataset.from_tensor_slices(data)


def elements(dataset: tf.data.Dataset) -> Data:
    return dataset, dataset


def ramp(dtype: Any, *shape: int) -> np.ndarray:
    """Values that differ from sample to sample."""
    return (np.arange(N * int(np.prod(shape))) % 251).reshape(N, *shape).astype(dtype)


def ragged(ragged_rank: int, inner: tuple[int, ...] = (), splits: tf.DType = tf.int64) -> tf.RaggedTensor:
    """N rows with ``ragged_rank`` varying axes, some of them empty."""
    rows: Any = [[10.0 * i + j for j in range(LENGTHS[i])] for i in range(N)]
    if ragged_rank == 2:
        rows = [[[value, -value, 0.5][: k % 4] for k, value in enumerate(row)] for row in rows]
    if inner:
        rows = [[np.full(inner, value) for value in row] for row in rows]
    return tf.ragged.constant(rows, ragged_rank=ragged_rank, inner_shape=inner, row_splits_dtype=splits)


def sparse(*shape: int) -> tf.SparseTensor:
    dense = ramp(np.float32, *shape) * (RNG.random((N, *shape)) < 0.3)
    return tf.sparse.from_dense(dense)


def varying() -> tf.data.Dataset:
    """Dense elements of varying length, of varying width, of varying both, and text."""

    def element(i: tf.Tensor) -> Any:
        both = tf.fill([i % 4, 1 + i % 3, 2], i)
        return (
            tf.range(i % 4),
            tf.fill([3, i % 3], i),
            both,
            tf.strings.split(tf.strings.as_string(i * i), "0"),
        )

    return tf.data.Dataset.range(N).map(element)


def from_generator() -> tf.data.Dataset:
    def generate() -> Iterator[tuple[np.ndarray, str]]:
        for i in range(N):
            yield np.full(2, i, np.float64), f"word {i}"

    signature = (tf.TensorSpec((2,), tf.float64), tf.TensorSpec((), tf.string))
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


def images() -> tf.data.Dataset:
    """Decoded images, whose static shape is unknown though they are all of one size."""
    encoded = [tf.io.encode_png(image).numpy() for image in ramp(np.uint8, 4, 3, 3)]
    return tf.data.Dataset.from_tensor_slices(encoded).map(lambda png: tf.io.decode_png(png, channels=3))


def texts(array: np.ndarray) -> Data:
    """NumPy's own kinds of text; TensorFlow knows bytes alone."""
    return array, tf.data.Dataset.from_tensor_slices(array.astype(object))


KINDS: dict[str, Callable[[], Data]] = {
    "uint8": lambda: arrays(ramp(np.uint8, 4, 4, 3)),
    "float16": lambda: arrays(ramp(np.float16, 2)),
    "bfloat16": lambda: arrays(ramp(tf.bfloat16.as_numpy_dtype, 2)),
    "float32": lambda: arrays(ramp(np.float32, 3)),
    "float64": lambda: arrays(ramp(np.float64)),
    "int32": lambda: arrays(ramp(np.int32, 1)),
    "int64": lambda: arrays(ramp(np.int64)),
    "complex": lambda: arrays(ramp(np.complex64, 2)),
    "bool": lambda: arrays(ramp(np.int64, 3) % 2 == 0),
    "objects": lambda: arrays(np.array(WORDS, object)),
    "bytes": lambda: arrays(np.array(WORDS)),
    "text": lambda: texts(np.array([f"{i} ü" for i in range(N)])),
    "eager tensor": lambda: arrays(tf.constant(ramp(np.float32, 2))),
    "strided": lambda: arrays(ramp(np.float32, 6)[:, ::2]),
    "big endian": lambda: (ramp(">f4", 2), tf.data.Dataset.from_tensor_slices(ramp(np.float32, 2))),
    "pair": lambda: arrays((ramp(np.float32, 2), ramp(np.int64))),
    "nested": lambda: arrays(({"b": ramp(np.uint8, 2), "a": (ramp(np.float32), ramp(bool))}, ramp(np.int32))),
    "no values": lambda: arrays(ramp(np.float32, 0)),
    "tf.data dense": lambda: elements(tf.data.Dataset.range(N).map(lambda i: tf.fill([2, 2], i))),
    "tf.data strings": lambda: elements(tf.data.Dataset.from_tensor_slices(tf.reshape(WORDS, [N, 1]))),
    "tf.data nested": lambda: elements(
        tf.data.Dataset.range(N).map(lambda i: ({"x": tf.cast(i, tf.float16), "s": tf.as_string(i)}, (i, i + 1)))
    ),
    "ragged": lambda: elements(tf.data.Dataset.from_tensor_slices(ragged(1))),
    "ragged, int32 splits": lambda: elements(tf.data.Dataset.from_tensor_slices(ragged(2, splits=tf.int32))),
    "ragged twice": lambda: elements(tf.data.Dataset.from_tensor_slices(ragged(2))),
    "ragged with inner axes": lambda: elements(tf.data.Dataset.from_tensor_slices(ragged(1, (2, 3)))),
    "ragged strings": lambda: elements(
        tf.data.Dataset.from_tensor_slices(tf.strings.split([b"a b", b"", b" c d e"] * 7 + [b"z", b"y"]))
    ),
    "sparse": lambda: elements(tf.data.Dataset.from_tensor_slices(sparse(7))),
    "sparse matrices": lambda: elements(tf.data.Dataset.from_tensor_slices(sparse(3, 4))),
    "mixed": lambda: elements(
        tf.data.Dataset.from_tensor_slices({"r": ragged(1), "s": sparse(4), "d": ramp(np.float32, 2)})
    ),
    "filter": lambda: elements(tf.data.Dataset.range(3 * N).filter(lambda i: i % 3 == 1)),
    "from_generator": lambda: elements(from_generator()),
    "without elements in a row": lambda: elements(tf.data.Dataset.range(N).map(lambda i: tf.zeros([0, 2]))),
}


def drawn(source: sources.Source, index: np.ndarray) -> tf.data.Dataset:
    """Batches of the samples ``index`` (rounds, B), made in a graph as the generator makes them."""

    def batch(row: tf.Tensor) -> Any:
        return source.pack(tf.numpy_function(source.take, [row], source.dtypes) if source.dtypes else [], row)

    return tf.data.Dataset.from_tensor_slices(index).map(batch)


def rebatched(dataset: tf.data.Dataset, index: np.ndarray, *, to_ragged: bool = False) -> tf.data.Dataset:
    """The same batches, made by TensorFlow of the elements one by one."""
    singles = [dataset.skip(i).take(1).cache().repeat() for i in range(N)]
    picked = tf.data.Dataset.choose_from_datasets(singles, tf.data.Dataset.from_tensor_slices(index.ravel()))
    return picked.ragged_batch(B, drop_remainder=True) if to_ragged else picked.batch(B, drop_remainder=True)


def assert_same_values(got: Any, expected: Any) -> None:
    tf.nest.assert_same_structure(got, expected)
    got, expected = (tf.nest.flatten(part, expand_composites=True) for part in (got, expected))
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def random_batches() -> np.ndarray:
    return np.random.default_rng(1).integers(0, N, (ROUNDS, B))
