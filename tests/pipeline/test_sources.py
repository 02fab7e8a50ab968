"""Every index gives its own element, as ``batch`` would have made it; and what cannot be drawn from is refused."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import columns, importance_dataset, memory, num_samples, reading
from pipeline.sources import as_source
from sampler import ImportanceSampler

from .kinds import (
    KINDS,
    WORDS,
    B,
    N,
    assert_same_values,
    drawn,
    from_generator,
    images,
    ragged,
    ramp,
    random_batches,
    rebatched,
    sparse,
    varying,
)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_ELEMENTS", 4)  # so that a few elements take several reads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.every(3)
def test_batches_are_those_of_tf_data(kind: str) -> None:
    data, dataset = KINDS[kind]()
    source, index = as_source(data), random_batches()
    ours, theirs = drawn(source, index), rebatched(dataset, index)
    assert len(source) == N
    assert ours.element_spec == theirs.element_spec
    for got, expected in zip(ours, theirs, strict=True):
        assert_same_values(got, expected)


def test_elements_of_varying_shape_become_ragged() -> None:
    index = random_batches()
    ours, theirs = drawn(as_source(varying()), index), rebatched(varying(), index, to_ragged=True)
    assert ours.element_spec == theirs.element_spec
    for got, expected in zip(ours, theirs, strict=True):
        assert_same_values(got, expected)


def test_elements_that_turn_out_equal_in_shape_stay_dense() -> None:
    index = random_batches()
    ours, theirs = drawn(as_source(images()), index), rebatched(images(), index)
    assert ours.element_spec == tf.TensorSpec((B, 4, 3, 3), tf.uint8)
    for got, expected in zip(ours, theirs, strict=True):
        assert_same_values(got, expected)


def test_sparse_elements_of_other_shapes() -> None:
    """The batch is as wide as its widest element."""
    dataset = tf.data.Dataset.range(N).map(lambda i: tf.sparse.from_dense(tf.range(i % 5)))
    index = random_batches()
    for got, row in zip(drawn(as_source(dataset), index), index, strict=True):
        expected = [[j if j < i % 5 else 0 for j in range(max(row % 5))] for i in row]
        np.testing.assert_array_equal(tf.sparse.to_dense(got), expected)


def test_the_order_of_elements_is_kept() -> None:
    kept = as_source(tf.data.Dataset.range(100, 100 + N))
    np.testing.assert_array_equal(kept.pack([], tf.range(N)), np.arange(100, 100 + N))


def test_one_sample_twice_in_a_batch() -> None:
    index = np.array([[7, 7, 3, 7, 0]])
    dataset = tf.data.Dataset.from_tensor_slices(ragged(2))
    assert_same_values(*(next(iter(part)) for part in (drawn(as_source(dataset), index), rebatched(dataset, index))))


# --- arrays are not copied ------------------------------------------------------------------------


def held(column: Any) -> np.ndarray:
    """The memory a column of one shape reads."""
    return seen(column.tensor) if isinstance(column, columns.TensorColumn) else column.array


def seen(tensor: tf.Tensor) -> np.ndarray:
    """The memory of a tensor; ``numpy()`` would be a copy."""
    return np.asarray(memoryview(tensor))


@pytest.mark.parametrize("skip", [0, 8, 16, 64])
def test_arrays_are_not_copied(skip: int) -> None:
    raw = memory.aligned((N * 16 + skip,), np.uint8)
    x = raw[skip:].view(np.float32).reshape(N, 4)
    x[:] = ramp(np.float32, 4)
    source = as_source({"x": x, "y": np.arange(N)})
    assert np.shares_memory(held(source.columns[0]), x)
    assert isinstance(source.columns[0], columns.TensorColumn if skip % 64 == 0 else columns.DenseColumn)
    x += 1  # what is written later is seen
    for batch, row in zip(drawn(source, random_batches()), random_batches(), strict=True):
        np.testing.assert_array_equal(batch["x"], ramp(np.float32, 4)[row] + 1)


def test_arrays_are_copied_where_that_is_asked_for() -> None:
    x = memory.aligned((N * 4 + 2,), np.float32)[2:].reshape(-1)[: N * 4].reshape(N, 4)  # not on a boundary
    x[:] = ramp(np.float32, 4)
    data = {"x": x, "big": ramp(">f4", 2), "text": np.array(WORDS, object), "in place": memory.aligned((N,), np.int64)}
    source = as_source(data, cache="memory")
    big, in_place, text, numbers = source.columns  # by name
    assert np.shares_memory(held(in_place), data["in place"])
    assert not np.shares_memory(held(numbers), x)
    assert all(isinstance(column, columns.TensorColumn) for column in (in_place, big, numbers))
    assert isinstance(text, columns.DenseColumn)
    for batch, row in zip(drawn(source, random_batches()), random_batches(), strict=True):
        np.testing.assert_array_equal(batch["x"], x[row])
        np.testing.assert_array_equal(batch["big"], data["big"][row])


@pytest.mark.parametrize(
    ("data", "cache", "words"),
    [
        (np.zeros(4), "elsewhere", r"cache='elsewhere' is for a tf.data.Dataset; ndarray is .* np.save and map it"),
        ((np.zeros(4), np.zeros(4)), Path("elsewhere"), "tuple is drawn from where it is: leave cache out, or save"),
        (range(5), "memory", "cache='memory' is for a tf.data.Dataset; range is drawn from where it is"),
    ],
)
def test_a_cache_is_for_datasets(data: Any, cache: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        as_source(data, cache=cache)


def test_an_array_lives_as_long_as_it_is_drawn_from() -> None:
    array = memory.aligned((N, 1000), np.float32)
    array[:] = 7.0
    source = as_source(array)
    del array
    gc.collect()
    other = memory.aligned((N, 1000), np.float32)  # would take the place of memory that was given back
    other[:] = 1.0
    np.testing.assert_array_equal(source.pack([], tf.range(N)), np.full((N, 1000), 7.0))


def test_tensors_that_were_sliced_are_not_copied() -> None:
    x = tf.constant(ramp(np.float32, 4))
    dataset = tf.data.Dataset.from_tensor_slices((x, WORDS))
    source = as_source(dataset)
    assert np.shares_memory(held(source.columns[0]), seen(next(iter(dataset._tensors))))
    assert source.dtypes == []


def test_memory_maps_stay_on_disk(tmp_path: Path) -> None:
    values = ramp(np.float32, 4)
    np.save(tmp_path / "x.npy", values)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    source, index = as_source((mapped, ramp(np.int64))), random_batches()
    assert np.shares_memory(held(source.columns[0]), mapped)
    for (x, y), row in zip(drawn(source, index), index, strict=True):
        np.testing.assert_array_equal(x, values[row])
        np.testing.assert_array_equal(y, row)


def test_a_memory_map_of_more_than_four_gigabytes(tmp_path: Path) -> None:
    """Sparse, so that it takes no room on disk."""
    rows, width = 70_000, 1 << 16
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (rows, width))
    some = np.array([0, 1, 32_767, 32_768, 65_535, 65_536, rows - 1])
    mapped[some, -1] = some % 251 + 1
    mapped.flush()
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert mapped.nbytes > 4 << 30
    sampler = ImportanceSampler(rows, losses=np.isin(np.arange(rows), some).astype(float), uniform_fraction=0.0, seed=0)
    for through in (mapped, mapped[:, : width - 1 : 2], (mapped, np.arange(rows))):
        train = importance_dataset(through, sampler, 7)
        for x, *_, sampling in train.take(3):
            np.testing.assert_array_equal(np.sort(sampling["index"]), some)
            if x.shape == (7, width):
                np.testing.assert_array_equal(x.numpy()[:, -1], sampling["index"].numpy() % 251 + 1)


def test_lists_of_arrays_count_as_tuples() -> None:
    x, y = ramp(np.float32, 2), ramp(np.int64)
    assert as_source([x, y]).spec == (None, None)
    assert as_source(([x, x], {"y": [y]})).spec == ((None, None), {"y": (None,)})
    for got, row in zip(drawn(as_source([x, y]), random_batches()), random_batches(), strict=True):
        assert_same_values(got, (tf.constant(x[row]), tf.constant(y[row])))


@pytest.mark.parametrize("make", [lambda: ragged(2), lambda: sparse(3, 4)], ids=["ragged", "sparse"])
@pytest.mark.fault(16)
def test_ragged_and_sparse_tensors(make: Callable[[], Any]) -> None:
    tensor, index = make(), random_batches()
    ours = drawn(as_source((tensor, ramp(np.int64))), index)
    theirs = rebatched(tf.data.Dataset.from_tensor_slices((tensor, ramp(np.int64))), index)
    assert ours.element_spec == theirs.element_spec
    for got, expected in zip(ours, theirs, strict=True):
        assert_same_values(got, expected)


# --- objects with __getitem__ ---------------------------------------------------------------------


class Items:
    """Elements made one by one; remembers how it was asked."""

    def __init__(self, make: Callable[[int], Any], length: int = N) -> None:
        self.make, self.length = make, length
        self.asked: list[Any] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        assert type(index) is int
        self.asked.append(index)
        return self.make(index)


class Many(Items):
    """The same, a batch at a time too."""

    def __getitems__(self, index: list[int]) -> list[Any]:
        assert all(type(i) is int for i in index)
        self.asked.append(list(index))
        return [self.make(i) for i in index]


def record(i: int) -> Any:
    return {"x": np.full((2, 2), i, np.float32), "text": f"nr {i}", "n": i}, np.int8(i)


@pytest.mark.parametrize("kind", [Items, Many])
def test_every_index_gives_its_own_item(kind: type[Items]) -> None:
    index = random_batches()
    ours = drawn(as_source(kind(record)), index)
    assert ours.element_spec == (
        {
            "x": tf.TensorSpec((B, 2, 2), tf.float32),
            "text": tf.TensorSpec((B,), tf.string),
            "n": tf.TensorSpec((B,), tf.int64),
        },
        tf.TensorSpec((B,), tf.int8),
    )
    for (x, y), row in zip(ours, index, strict=True):
        np.testing.assert_array_equal(x["x"], np.broadcast_to(row[:, None, None], (B, 2, 2)))
        assert [text.decode() for text in x["text"].numpy()] == [f"nr {i}" for i in row]
        np.testing.assert_array_equal(x["n"], row)
        np.testing.assert_array_equal(y, row)


def test_a_batch_is_fetched_at_once_where_that_is_possible() -> None:
    items = Many(record)
    source = as_source(items)
    items.asked.clear()
    source.take(np.array([4, 1, 4]))
    assert items.asked == [[4, 1, 4]]


def test_tensors_as_items() -> None:
    source = as_source(Items(lambda i: (tf.fill([2], i), tf.constant(str(i)))))
    (numbers, words) = next(iter(drawn(source, np.array([[2, 1, 2]]))))
    np.testing.assert_array_equal(numbers, [[2, 2], [1, 1], [2, 2]])
    assert list(words.numpy()) == [b"2", b"1", b"2"]


def test_an_item_of_another_shape_is_named() -> None:
    source = as_source(Items(lambda i: np.zeros(3 if i == 6 else 2)))
    with pytest.raises(ValueError, match=r"element 6 has shape \(3,\), the first element had \(2,\).*pad or crop"):
        source.take(np.array([1, 6, 2]))


def test_an_item_of_another_structure_is_named() -> None:
    source = as_source(Items(lambda i: (i, i, i) if i == 6 else (i, i)))
    with pytest.raises(ValueError, match="element 6"):
        source.take(np.array([1, 6, 2]))


def test_an_item_of_a_wider_dtype_is_not_cut() -> None:
    source = as_source(Items(lambda i: 0.5 if i == 6 else i))
    with pytest.raises(ValueError, match=r"element 6 .*float64.*int64"):
        source.take(np.array([1, 6, 2]))


def test_too_few_items_at_once() -> None:
    class Short(Many):
        def __getitems__(self, index: list[int]) -> list[Any]:
            return super().__getitems__(index)[:-1]

    with pytest.raises(ValueError, match=r"__getitems__ gave 2 elements for 3 indices"):
        as_source(Short(record)).take(np.array([1, 2, 3]))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([1, 2, 3], r"got list; use np.asarray"),
        ("text", "got str"),
        (5, "got int"),
        ({1, 2}, "got set"),
        (np.float32(3.0), "got float32"),
        (iter([1]), "got list_iterator"),
    ],
)
def test_what_is_no_source(data: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        as_source(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.array(3.0), "first axis"),
        ((np.zeros(3), 5), "first axis"),
        (([1, 2], [3, 4]), "np.asarray"),
        ((np.zeros(3), np.zeros(4)), "same length, got 3, 4"),
        ((), "same length, got none"),
        (np.zeros((0, 3)), "empty"),
    ],
)
def test_arrays_that_are_refused(data: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        as_source(data)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(3, "datetime64[s]"), r"no dtype for datetime64\[s\]; convert it with .astype"),
        (np.array([1.5, 2.5], object), "array of objects must hold str or bytes, got float in sample 0; .*astype"),
        (np.array([["a", "b"], ["c", None]], object), "must hold str or bytes, got NoneType in sample 1; .*fill in"),
        (np.ma.masked_array([1.0, 2.0], mask=[True, False]), r"masked array .*\.filled"),
    ],
)
def test_an_array_of_a_kind_that_tensorflow_does_not_know(array: np.ndarray, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        as_source(array)


@pytest.mark.parametrize(
    "empty", [lambda: Items(record, length=0), lambda: tf.data.Dataset.range(0)], ids=["items", "dataset"]
)
@pytest.mark.fault(10)
def test_empty_sources(empty: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="empty"):
        as_source(empty())


@pytest.mark.parametrize(
    ("dataset", "count"),
    [
        (lambda: tf.data.Dataset.range(N + 1), N + 1),
        (lambda: tf.data.Dataset.range(N - 1), N - 1),
        (lambda: tf.data.Dataset.range(2 * N + 4).filter(lambda i: i % 2 == 0), f"more than {N}"),
        (lambda: tf.data.Dataset.range(2 * N - 2).filter(lambda i: i % 2 == 0), N - 1),
        (lambda: tf.data.Dataset.from_tensor_slices(ramp(np.float32, 9)).skip(3), N - 3),
        (lambda: tf.data.Dataset.from_tensor_slices(ramp(np.float32, 9)).filter(lambda x: x[0] > 30.0), None),
    ],
)
def test_another_length_is_refused(dataset: Callable[[], tf.data.Dataset], count: object) -> None:
    words = rf"the dataset has {count or '[0-9]+'} elements, the sampler {N} samples; .*num_samples\(dataset\)"
    with pytest.raises(ValueError, match=words):
        as_source(dataset(), size=N)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_batches_are_told_from_samples(drop: bool, known: bool) -> None:
    batched = tf.data.Dataset.from_tensor_slices((ramp(np.float32, 2), ramp(np.int64)))
    batched = batched.batch(4, drop_remainder=drop)
    if not known:
        batched = batched.filter(lambda *_: True)
    with pytest.raises(ValueError, match=r"look like batches: apply unbatch\(\) first"):
        as_source(batched, size=N)


@pytest.mark.parametrize(
    "dataset",
    [
        lambda: tf.data.Dataset.range(N).repeat(),
        lambda: tf.data.Dataset.from_tensors(0).repeat(),
        lambda: tf.data.Dataset.random(seed=0),
        lambda: tf.data.experimental.Counter(),
    ],
)
@pytest.mark.fault(12)
def test_infinite_datasets_are_refused(dataset: Callable[[], tf.data.Dataset]) -> None:
    for call in (num_samples, lambda data: as_source(data, size=N)):
        with pytest.raises(ValueError, match=r"infinite.*remove repeat\(\), or bound it with take\(n\)"):
            call(dataset())


def test_components_that_are_not_tensors() -> None:
    windows = tf.data.Dataset.range(N).window(1)
    with pytest.raises(TypeError, match="must be dense, ragged or sparse tensors, got DatasetSpec"):
        as_source(windows)


def test_components_of_unknown_rank() -> None:
    dataset = tf.data.Dataset.from_generator(lambda: iter(range(3)), output_signature=tf.TensorSpec(None, tf.int64))
    with pytest.raises(TypeError, match=r"no known rank.*tf.ensure_shape"):
        as_source(dataset)


def test_a_dataset_that_fails_says_why() -> None:
    dataset = tf.data.Dataset.range(N).map(lambda i: tf.debugging.check_numerics(1.0 / tf.cast(i - 3, tf.float32), "x"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="Inf"):
        as_source(dataset)


# --- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dataset",
    [
        lambda: tf.data.Dataset.range(N),
        lambda: tf.data.Dataset.range(2 * N).filter(lambda i: i < N),
        lambda: from_generator(),
        lambda: tf.data.Dataset.from_tensor_slices({"a": np.zeros(N), "b": np.zeros((N, 2))}),
        lambda: tf.data.Dataset.range(N).repeat().take(N),
        lambda: tf.data.Dataset.from_tensor_slices(({"a": np.zeros(N)}, np.zeros(N))).filter(lambda *_: True),
    ],
)
@pytest.mark.fault(12)
def test_num_samples(dataset: Callable[[], tf.data.Dataset]) -> None:
    assert num_samples(dataset()) == N


def test_num_samples_of_nothing() -> None:
    assert num_samples(tf.data.Dataset.range(0)) == 0


# --- shuffles before the wrap ---------------------------------------------------------------------


def shuffled(**options: Any) -> tf.data.Dataset:
    return tf.data.Dataset.range(9).shuffle(9, **options)


MOVING: dict[str, Callable[[], tf.data.Dataset]] = {
    "plain": shuffled,
    "seed alone": lambda: shuffled(seed=1),
    "no reshuffling, no seed": lambda: shuffled(reshuffle_each_iteration=False),
    "map": lambda: shuffled().map(lambda i: i + 1),
    "parallel map": lambda: shuffled().map(lambda i: i + 1, num_parallel_calls=2),
    "cache": lambda: shuffled().cache(),
    "take": lambda: shuffled().take(9),
    "prefetch": lambda: shuffled().prefetch(1),
    "options": lambda: shuffled().with_options(tf.data.Options()),
    "unbatch": lambda: shuffled().batch(3).unbatch(),
    "filter": lambda: shuffled().filter(lambda i: i >= 0),
    "one of a zip": lambda: tf.data.Dataset.zip((tf.data.Dataset.range(9), shuffled())),
    "one of a concatenation": lambda: tf.data.Dataset.range(9).concatenate(shuffled()),
    "in flat_map": lambda: tf.data.Dataset.range(3).flat_map(lambda i: tf.data.Dataset.range(3).shuffle(3)),
    "in interleave": lambda: tf.data.Dataset.range(3).interleave(lambda i: tf.data.Dataset.range(3).shuffle(3)),
    "in parallel interleave": lambda: tf.data.Dataset.range(3).interleave(
        lambda i: tf.data.Dataset.range(3).shuffle(3), cycle_length=2, num_parallel_calls=2
    ),
    "reshuffled in flat_map": lambda: tf.data.Dataset.range(3).flat_map(
        lambda i: tf.data.Dataset.range(3).shuffle(3, seed=1)
    ),
    "files": lambda: tf.data.Dataset.list_files(str(Path(__file__).parent / "*.py")),
}


@pytest.fixture
def _no_global_seed() -> None:
    tf.random.set_seed(None)  # one set by another test would fix the order of every shuffle


@pytest.mark.usefixtures("_no_global_seed")
@pytest.mark.parametrize("kind", MOVING)
@pytest.mark.fault(15)
def test_a_shuffle_before_the_wrap_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"shuffled before it is wrapped.*remove shuffle\(\)"):
        as_source(MOVING[kind]())


@pytest.mark.parametrize(
    "dataset",
    [
        lambda: shuffled(seed=1, reshuffle_each_iteration=False),
        lambda: shuffled(seed=1, reshuffle_each_iteration=False).map(lambda i: i + 1).cache(),
        lambda: tf.data.Dataset.list_files(str(Path(__file__).parent / "*.py"), shuffle=False),
        lambda: tf.data.Dataset.range(3).flat_map(
            lambda i: tf.data.Dataset.range(3).shuffle(3, seed=1, reshuffle_each_iteration=False)
        ),
    ],
    ids=["seeded", "seeded and mapped", "files in order", "seeded in flat_map"],
)
@pytest.mark.fault(15)
def test_a_shuffle_that_moves_nothing_is_taken(dataset: Callable[[], tf.data.Dataset]) -> None:
    data = dataset()
    source = as_source(data)
    assert source.pack([], tf.range(len(source))).numpy().tolist() == list(data.as_numpy_iterator())


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (lambda: tf.Variable(np.zeros((10, 2))), TypeError, r"may change while it is drawn from; .*variable\.numpy"),
        (lambda: (np.zeros(10), tf.Variable(np.zeros(10))), TypeError, "may change"),
        (lambda: (np.zeros((10, 2)), None), ValueError, "None in place of an array; leave out"),
        (lambda: [np.zeros((3, 2)) for _ in range(10)], ValueError, r"has 10 components, not 10 samples; .*np\.stack"),
    ],
)
def test_what_is_nearly_a_source_is_refused_with_the_way_out(data: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        as_source(data(), size=10)
