"""Memory that arrays and tensors share: where it begins, how long it lives, when it is used again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import importance_dataset
from pipeline.memory import Blocks, Growing, aligned, lend
from sampler import ImportanceSampler


@pytest.mark.parametrize("shape", [(0,), (1,), (7, 3), (5, 0, 2), ()])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64, tf.bfloat16.as_numpy_dtype, bool])
def test_aligned(shape: tuple[int, ...], dtype: Any) -> None:
    array = aligned(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.size == 0 or array.ctypes.data % 64 == 0
    assert array.flags.c_contiguous
    assert array.flags.writeable


@pytest.mark.parametrize("dtype", ["i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16", "?"])
@pytest.mark.parametrize("writable", [True, False])
def test_a_tensor_of_the_same_memory(dtype: str, writable: bool) -> None:
    array = aligned((5, 3), dtype)
    array[:] = np.arange(15).reshape(5, 3) % 2
    array.flags.writeable = writable
    tensor = lend(array)
    assert tensor is not None
    assert np.shares_memory(np.asarray(memoryview(tensor)), array)
    assert tensor.dtype == tf.as_dtype(array.dtype)
    np.testing.assert_array_equal(tf.gather(tensor, [4, 0]), array[[4, 0]])
    assert array.flags.writeable == writable


@pytest.mark.parametrize(
    "array",
    [
        aligned((65,), np.uint8)[1:],
        aligned((8, 8), np.float32)[:, :4],
        aligned((4,), ">f4"),
        aligned((0, 4), np.float32),
        aligned((4,), tf.bfloat16.as_numpy_dtype),
        np.array(["text"], object),
    ],
    ids=["elsewhere", "strided", "big endian", "empty", "unknown", "objects"],
)
def test_what_cannot_be_lent(array: np.ndarray) -> None:
    assert lend(array) is None


def test_blocks_are_used_again_when_nobody_looks_at_them() -> None:
    blocks = Blocks()
    first = blocks.array((4, 8), np.float32)
    second = blocks.array((4, 8), np.float32)
    where = first.ctypes.data
    assert not np.shares_memory(first, second)
    part = first[2:]
    del first
    gc.collect()
    third = blocks.array((4, 8), np.float32)
    assert not np.shares_memory(third, part)  # a part of the first is still looked at
    del part, third
    gc.collect()
    again = {blocks.array((2, 8), np.int32).ctypes.data for _ in range(5)}
    assert len(again) == 1
    more = [blocks.array((4, 8), np.float32) for _ in range(2)]
    assert where in {array.ctypes.data for array in more}
    assert all(array.ctypes.data % 64 == 0 for array in more)


def block_of(array: Any) -> np.ndarray:
    return array._block if hasattr(array, "_block") else block_of(array.base)


def test_few_blocks_are_kept() -> None:
    """Who held many batches has their memory back."""
    blocks = Blocks()
    arrays = [blocks.array((1 << 16,), np.uint8) for _ in range(20)]
    held = [weakref.ref(block_of(array)) for array in arrays]
    del arrays
    gc.collect()
    assert sum(block() is not None for block in held) <= 4


def test_blocks_grow() -> None:
    blocks = Blocks()
    del (small := [blocks.array((3,), np.uint8)])[:]
    large = blocks.array((1000,), np.float64)
    large[:] = 1.0
    assert (small, large.shape) == ([], (1000,))


def test_a_tensor_keeps_its_block() -> None:
    """What TensorFlow took over must not be written to by the next batch."""
    blocks = Blocks()
    source = np.arange(1000.0)

    def take(first: np.ndarray) -> np.ndarray:
        out = blocks.array((10, 100), np.float64)
        out[:] = source[:100] + first
        return out

    batches = list(tf.data.Dataset.range(20).map(lambda i: tf.numpy_function(take, [i], tf.float64)).prefetch(3))
    for i, batch in enumerate(batches):
        np.testing.assert_array_equal(batch, np.tile(source[:100] + i, (10, 1)))


@pytest.mark.parametrize("expected", [None, 3, 14, 20])
@pytest.mark.parametrize("row", [(), (3,), (2, 2)])
def test_growing(expected: int | None, row: tuple[int, ...]) -> None:
    rows = Growing(np.float32, row, expected)
    parts = [np.full((i, *row), i, np.float64) for i in (2, 0, 5, 7)]
    for part in parts:
        rows.append(part)
    array = rows.finish(14)
    np.testing.assert_array_equal(array, np.concatenate(parts))
    assert (array.dtype, array.ctypes.data % 64) == (np.float32, 0)


# --- no second copy -------------------------------------------------------------------------------

ROWS, WIDTH = 4096, 1 << 16  # 256 MiB


def filled(array: np.ndarray) -> np.ndarray:
    array[:] = 1
    return array


def mapped(folder: Path) -> np.ndarray:
    np.save(folder / "x.npy", np.ones((ROWS, WIDTH), np.uint8))
    return np.load(folder / "x.npy", mmap_mode="r")


SOURCES: dict[str, Callable[[Path], Any]] = {
    "aligned": lambda _: filled(aligned((ROWS, WIDTH), np.uint8)),
    "elsewhere": lambda _: filled(aligned((ROWS * WIDTH + 16,), np.uint8)[16:].reshape(ROWS, WIDTH)),
    "strided": lambda _: filled(aligned((ROWS, 2 * WIDTH), np.uint8))[:, ::2],
    "mapped": mapped,
    "sliced": lambda _: tf.data.Dataset.from_tensor_slices(tf.ones((ROWS, WIDTH), tf.uint8)),
}


def anonymous_bytes() -> int:
    """Memory of this process that is in no file."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc/self/status")
    return int(next(line for line in status.read_text().splitlines() if line.startswith("RssAnon")).split()[1]) << 10


@pytest.mark.parametrize("kind", SOURCES)
def test_no_second_copy_is_kept(kind: str, tmp_path: Path) -> None:
    """At most a tenth of the data, over an epoch with a map and a prefetch behind it; TensorFlow's own rewriting of the
    graph would copy what was lent.
    """
    data = SOURCES[kind](tmp_path)
    sampler = ImportanceSampler(ROWS, losses=np.ones(ROWS), seed=0)
    list(importance_dataset(np.zeros(ROWS), sampler, 64).take(3))  # what TensorFlow takes once
    before = anonymous_bytes()
    train = importance_dataset(data, sampler, 2).map(lambda x, sampling: (x[:, 0], sampling)).prefetch(1)
    for x, _ in train.take(100):
        assert x.shape == (2,)
    assert anonymous_bytes() - before < ROWS * WIDTH / 10


# --- everything goes with the dataset -------------------------------------------------------------


class Elements:
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> float:
        return float(index)


@pytest.mark.parametrize("lag", [None, 4])
@pytest.mark.parametrize(
    "make",
    [
        lambda: filled(aligned((8, 4), np.float32)),
        lambda: filled(aligned((8 * 4 + 1,), np.float32)[1:].reshape(8, 4)),
        Elements,
        lambda: tf.data.Dataset.range(8).map(lambda i: tf.fill([3], i)),
    ],
    ids=["lent", "taken", "elements", "read"],
)
@pytest.mark.each_value
def test_source_and_sampler_go_with_the_dataset(make: Callable[[], Any], lag: int | None) -> None:
    data, sampler = make(), ImportanceSampler(8, seed=0, feedback_lag=lag)
    train = importance_dataset(data, sampler, 2, map_fn=lambda x: x)
    gone = [weakref.ref(sampler), weakref.ref(train.feeder), weakref.ref(train.feeder.source)]
    if not isinstance(data, tf.data.Dataset):
        gone.append(weakref.ref(data))
    for _ in train.take(3):
        pass
    del data, sampler, train
    gc.collect()
    assert [reference() for reference in gone] == [None] * len(gone)


def test_an_iterator_alone_keeps_what_it_needs() -> None:
    sampler = ImportanceSampler(8, seed=0)
    iterator = iter(importance_dataset(np.arange(8), sampler, 2).map(lambda *batch: batch).prefetch(1).repeat())
    gc.collect()
    for _ in range(10):
        x, sampling = next(iterator)
        np.testing.assert_array_equal(x, sampling["index"])
