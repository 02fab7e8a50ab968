"""A dataset kept in files: the same batches, and it is read once."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import blobs, cache, importance_sampling, manifest, num_samples, reading, sources
from pipeline.sources import as_source
from pipeline.strings import Strings
from sampler import ImportanceSampler

from .caches import Counted, held, litter, numbers
from .kinds import KINDS, B, N, assert_same_values, drawn, images, ramp, random_batches, rebatched, varying

ROUNDS = 12


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_ELEMENTS", 4)  # so that a few elements take several reads


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# --- the same batches -----------------------------------------------------------------------------


def both(dataset: tf.data.Dataset, place: Path) -> Iterator[sources.Source]:
    """The source that was written, and the one that is opened again."""
    yield as_source(dataset, size=N, cache=place)
    yield as_source(dataset, size=N, cache=str(place))


@pytest.mark.parametrize("kind", ["tf.data dense", "tf.data strings", "ragged twice", "sparse", "nested"])
def test_batches_are_those_of_tf_data(kind: str, place: Path) -> None:
    """Where they are written, too; test_ten_thousand_batches.py opens every kind again."""
    _, dataset = KINDS[kind]()
    index = random_batches()[:ROUNDS]
    theirs = list(rebatched(dataset, index))
    for source in both(dataset, place):
        ours = drawn(source, index)
        assert len(source) == N
        assert ours.element_spec == rebatched(dataset, index).element_spec
        for got, expected in zip(ours, theirs, strict=True):
            assert_same_values(got, expected)


def test_elements_of_varying_shape_become_ragged(place: Path) -> None:
    index = random_batches()[:ROUNDS]
    theirs = list(rebatched(varying(), index, to_ragged=True))
    for source in both(varying(), place):
        for got, expected in zip(drawn(source, index), theirs, strict=True):
            assert_same_values(got, expected)


def test_elements_that_turn_out_equal_in_shape_are_dense(place: Path) -> None:
    for source in both(images(), place):
        assert drawn(source, random_batches()).element_spec == tf.TensorSpec((B, 4, 3, 3), tf.uint8)
    assert sorted(os.listdir(place)) == ["0-values.bin", "cache.json"]  # where rows begin is of no use then


def test_strings_with_nul_bytes_and_without_any(place: Path) -> None:
    texts = [b"", b"\0", b"a\0", b"\0\0b\0", b"", "ü".encode(), bytes(range(256))]
    dataset = tf.data.Dataset.from_tensor_slices(texts)
    for _ in range(2):
        source = as_source(dataset, cache=place)
        assert source.take(np.array([6, 3, 2, 1, 0, 5, 3]))[0].tolist() == [texts[i] for i in (6, 3, 2, 1, 0, 5, 3)]
        assert held(source) == [texts]


def test_strings_without_a_single_byte(place: Path) -> None:
    for source in both(tf.data.Dataset.range(N).map(lambda i: tf.constant(["", ""])), place):
        assert held(source) == [[[b"", b""]] * N]


def test_numbers_are_gathered_inside_the_graph_from_the_map(place: Path) -> None:
    dataset = tf.data.Dataset.from_tensor_slices((ramp(np.uint8, 4, 4, 3), ramp(np.int64)))
    for source in both(dataset, place):
        assert source.dtypes == []  # nothing is taken outside
    with open("/proc/self/maps") as maps:
        assert f"{place}/0-values.bin" in maps.read()
    with open(place / "0-values.bin", "r+b") as file:
        file.write(b"\xff")
    assert held(source)[0][0][0][0][0] == 255  # the page of the file itself


def test_a_sampler_draws_from_it(place: Path) -> None:
    dataset = tf.data.Dataset.from_tensor_slices((ramp(np.float32, 2), ramp(np.int64)))
    for _ in range(2):
        train = dataset.apply(importance_sampling(ImportanceSampler(N, seed=0), batch_size=B, cache=place))
        for x, y, sampling in train:
            np.testing.assert_array_equal(x, ramp(np.float32, 2)[sampling["index"]])
            np.testing.assert_array_equal(y, ramp(np.int64)[sampling["index"]])


def test_a_file_of_more_than_four_gigabytes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made with a hole, so that it takes neither room nor time."""
    monkeypatch.setattr(blobs, "VERIFIED", 4 * blobs.BLOCK)
    count, row = 1_100, (1024, 1024)
    first = count - 3
    dataset = tf.data.Dataset.range(count).map(lambda i: tf.fill(row, tf.cast(tf.maximum(i - first, 0), tf.float32)))
    mark, _ = cache._fingerprint(dataset, count)
    place.mkdir()
    size = 4 * 1024 * 1024 * count
    assert size > 1 << 32
    with open(place / "0-values.bin", "wb") as file:
        file.truncate(size)
        for i in range(first, count):
            file.seek(4 * 1024 * 1024 * i)
            file.write(np.full(row, i - first, np.float32).tobytes())
    with open(place / "0-values.bin", "rb") as file:
        hole, blocks = zlib.crc32(bytes(blobs.BLOCK)), -(-size // blobs.BLOCK)
        sums = [hole] * (blocks - 1) + [blobs._sum(file, blocks - 1)]
    written = blobs.Written("0-values", "float32", (count, *row))
    described = manifest.Manifest(mark, [reading.Dense(written)], {"0-values.bin": blobs.Summed(size, sums)})
    (place / "cache.json").write_bytes(manifest.dumped(described))
    source = as_source(dataset, cache=place)
    assert source.dtypes == []
    batch = source.pack([], tf.constant([count - 1, 0, first + 1, 700]))
    assert batch[:, 0, 0].numpy().tolist() == batch[:, -1, -1].numpy().tolist() == [2, 0, 1, 0]


# --- read once ------------------------------------------------------------------------------------


def test_it_is_read_once(place: Path) -> None:
    counted = Counted()
    as_source(counted.dataset, cache=place)
    assert counted.reads == 100 + 2 * cache.FIRST
    counted.reads = 0
    assert held(as_source(counted.dataset, cache=place)) == [list(range(100))]
    assert counted.reads == cache.FIRST


@pytest.mark.parametrize("kind", ["absent", "empty", "link to one that is empty", "parents absent"])
def test_a_directory_to_begin_with(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" if kind == "parents absent" else tmp_path / "a"
    if kind == "empty":
        place.mkdir()
    if kind.startswith("link"):
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    assert held(as_source(numbers(), cache=place)) == [ramp(np.int32, 3).tolist()]
    assert (place / "cache.json").is_file()
    assert not [name for name in litter(place) if name.endswith(".tmp")]


def test_a_sampler_may_have_its_size_from_a_count(place: Path) -> None:
    dataset = tf.data.Dataset.range(3 * N).filter(lambda i: i % 3 == 1)
    assert len(as_source(dataset, cache=place)) == num_samples(dataset) == N


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: numbers(ramp(np.int32, 3)[1:]), rf"has {N} elements, the dataset {N - 1}"),
        (lambda: numbers(ramp(np.int64, 3)), r"elements are int32 \(3,\), the dataset int64 \(3,\)"),
        (lambda: numbers(ramp(np.int32, 2)), r"elements are int32 \(3,\), the dataset int32 \(2,\)"),
        (lambda: numbers({"x": ramp(np.int32, 3)}), r"the dataset {'x': int32 \(3,\)}"),
        (lambda: numbers(ramp(np.int32, 3) + np.eye(N, 3, -15, dtype=np.int32)), "first 16 elements are others"),
    ],
    ids=["size", "dtype", "shape", "structure", "content"],
)
def test_the_cache_of_another_dataset_is_refused(other: Callable[[], tf.data.Dataset], says: str, place: Path) -> None:
    as_source(numbers(), cache=place)
    before = (place / "cache.json").stat().st_ino
    with pytest.raises(ValueError, match=rf"{says}.*[Nn]ame another directory, or delete this one"):
        as_source(other(), cache=place)
    assert (place / "cache.json").stat().st_ino == before
    assert held(as_source(numbers(), cache=place)) == [ramp(np.int32, 3).tolist()]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda place: place.write_text("mine"), "is no directory"),
        (lambda place: (place.mkdir(), (place / "notes.txt").write_text("mine")), r"something else.*notes.txt"),
        (lambda place: (place.mkdir(), (place / "0-values.bin").write_text("mine")), r"something else.*0-values.bin"),
        (lambda place: (place.mkdir(), (place / "cache.json").write_text("{}")), r"something else.*cache.json"),
        (
            lambda place: (as_source(numbers(), cache=place), (place / "more").write_text("mine")),
            "something else.*more",
        ),
        (lambda place: (as_source(numbers(), cache=place), (place / "7-values.bin").write_text("a")), "7-values.bin"),
    ],
    ids=["file", "notes", "lone data", "json of others", "a cache and notes", "data without a name"],
)
def test_what_is_not_a_cache_is_left_alone(make: Callable[[Path], Any], says: str, place: Path) -> None:
    make(place)
    before = sorted((path, path.read_bytes()) for path in place.parent.rglob("*") if path.is_file())
    with pytest.raises(ValueError, match=rf"{says}.*absent, empty, or a cache"):
        as_source(numbers(), cache=place)
    assert sorted((path, path.read_bytes()) for path in place.parent.rglob("*") if path.is_file()) == before


@pytest.mark.parametrize("name", ["", 3, True])
def test_what_is_no_directory(name: Any) -> None:
    with pytest.raises(TypeError, match='cache must be "memory" or the path of a directory, got'):
        as_source(numbers(), cache=name)


@pytest.mark.parametrize("kind", ["random", "shuffled in disguise"])
def test_a_dataset_that_changes_is_refused_at_once(kind: str, place: Path) -> None:
    fresh = np.random.default_rng(0)  # TensorFlow's own numbers would be the same in each pass after a set_seed
    batch = tf.data.Dataset.range(N).batch(N)

    def changed(values: np.ndarray) -> np.ndarray:
        return fresh.permutation(values) if kind == "shuffled in disguise" else fresh.integers(0, 1000, N)

    dataset = batch.map(lambda values: tf.ensure_shape(tf.numpy_function(changed, [values], tf.int64), (N,))).unbatch()
    with pytest.raises(ValueError, match=r"other elements each time it is read.*map_fn"):
        as_source(dataset, size=N, cache=place)
    assert not list(place.parent.iterdir())


def test_a_dataset_that_cannot_be_drawn_from_writes_nothing(place: Path) -> None:
    with pytest.raises(ValueError, match="shuffled before it is wrapped"):
        as_source(numbers().shuffle(3), cache=place)
    with pytest.raises(ValueError, match="has 23 elements, the sampler 24"):
        as_source(numbers(), size=N + 1, cache=place)
    with pytest.raises(ValueError, match="has 23 elements, the sampler 24"):
        as_source(numbers().filter(lambda _: True), size=N + 1, cache=place)
    with pytest.raises(TypeError, match="got DatasetSpec"):
        as_source(tf.data.Dataset.range(N).window(1), cache=place)
    assert os.listdir(place.parent) == []


# --- strings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24,), (24, 1), (12, 2), (4, 2, 3), (0,), (5, 0)])
def test_strings_are_indexed_like_an_array_of_objects(shape: tuple[int, ...]) -> None:
    texts = np.empty(shape, object)
    flat = [b"\0" * (i % 3) + b"x" * (i % 4) + b"\0" * (i % 2) for i in range(texts.size)]
    texts.reshape(-1)[:] = flat
    offsets = np.cumsum([0, *map(len, flat)])
    ours = Strings(b"".join(flat), offsets, shape)
    assert (len(ours), ours.shape, ours.dtype, ours.size) == (len(texts), shape, texts.dtype, texts.size)
    generator = np.random.default_rng(0)
    for index in [generator.integers(-len(texts), len(texts), size) for size in ((7,), (0,), (2, 3)) if len(texts)]:
        for got in (ours[index], ours.take(index, axis=0)):
            assert got.dtype == object
            assert (got.shape, got.tolist()) == (texts[index].shape, texts[index].tolist())
    assert ours.reshape(-1).shape == (texts.size,)
    if texts.size:
        assert ours.flat[0] == flat[0]
        assert ours.reshape(-1)[np.arange(texts.size)].tolist() == flat
    for beyond in (len(texts), -len(texts) - 1):
        with pytest.raises(IndexError):
            ours.take(np.array([beyond]))
    with pytest.raises(ValueError, match="do not fit"):
        ours.reshape(7, 5)


def test_strings_in_a_file_are_not_read_before_they_are_drawn(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = tf.data.Dataset.range(N).map(lambda i: tf.strings.as_string(i))
    as_source(dataset, size=N, cache=place)

    def never(self: Strings, index: Any, axis: int = 0) -> Any:
        raise AssertionError("a string was read")

    monkeypatch.setattr(Strings, "take", never)
    assert as_source(dataset, size=N, cache=place).dtypes == [tf.string]


def test_strings_are_sliced_quickly(place: Path) -> None:
    """A tenth of what it does, so that a busy machine passes."""
    dataset = tf.data.Dataset.from_tensor_slices([b"word" * (i % 9) for i in range(5000)])
    source = as_source(dataset, cache=place)
    index = np.random.default_rng(0).integers(0, 5000, (40, 256))
    began = time.perf_counter()
    for row in index:
        source.take(row)
    assert index.size / (time.perf_counter() - began) > 2e5
