"""Elements fetched by index: each index gives its own, what cannot be is said in words, and nothing hangs."""

from __future__ import annotations

import collections
import itertools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from pipeline import importance_dataset, items
from pipeline.items import ItemSource
from pipeline.sources import as_source
from sampler import UniformSampler

N, B, BATCHES = 29, 4, 800  # batches of each kind: more than 10,000 in all
RNG = np.random.default_rng(0)
WORDS = [f"ü{i}" * (i % 3) for i in range(N)]
RAW = [bytes([i, 0, 255, i % 2, 0]) for i in range(N)]  # NumPy's own text would lose the zeros at the end


class Items:
    """Elements of a list, one by one."""

    def __init__(self, elements: list[Any]) -> None:
        self.elements = elements

    def __len__(self) -> int:
        return len(self.elements)

    def __getitem__(self, index: int) -> Any:
        assert type(index) is int
        return self.elements[index]


class Many(Items):
    """A batch at a time, as TFDS and Grain have it."""

    def __getitems__(self, index: list[int]) -> list[Any]:
        return [self.elements[i] for i in index]


class HuggingFace(Many):
    """Whose ``__getitem__`` with a list gives columns, which must not be taken for elements."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int):
            return self.elements[index]
        return {key: [self.elements[i][key] for i in index] for key in self.elements[0]}


class OneBuffer(Items):
    """Hands out the same array each time, with other values in it."""

    def __getitem__(self, index: int) -> Any:
        self.buffer = getattr(self, "buffer", np.zeros(3))
        self.buffer[:] = index
        return self.buffer


class Image:
    """What NumPy makes an array of, as of the images of PIL and the tensors of PyTorch."""

    def __init__(self, i: int) -> None:
        self.i = i

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.full((2, 3), self.i, np.uint8)


class Point(NamedTuple):
    x: Any
    y: Any


def element(**components: Any) -> Callable[[int], Any]:
    return lambda i: {key: value(i) for key, value in components.items()}


KINDS: dict[str, tuple[Callable[[list[Any]], Any], Callable[[int], Any]]] = {
    "numbers": (Items, lambda i: i),
    "halves": (Items, lambda i: i / 2),
    "arrays": (Items, lambda i: np.full((2, 2), i, np.float32)),
    "big endian": (Items, lambda i: np.full(2, i, ">i4")),
    "text": (Items, lambda i: WORDS[i]),
    "bytes": (Many, lambda i: RAW[i]),
    "tensors": (Items, lambda i: (tf.fill([2], i), tf.constant(RAW[i]))),
    "TFDS": (Many, element(image=lambda i: np.full((2, 2, 1), i, np.uint8), label=np.int64, id=lambda i: RAW[i])),
    "Hugging Face": (
        HuggingFace,
        element(text=lambda i: WORDS[i], tokens=lambda i: [i, i + 1, 0], tags=lambda i: [WORDS[i], "-"], label=int),
    ),
    "PyTorch": (Items, lambda i: (Image(i), i)),
    "namedtuple": (Items, lambda i: Point(np.float32(i), Point(i, [i, i]))),
    "nested": (Many, lambda i: ({"b": (i, np.bool_(i % 2)), "a": [[i], [i]]}, WORDS[i])),
    "one buffer": (OneBuffer, lambda i: np.full(3, i, np.float64)),
}


def leaves(part: Any) -> list[Any]:
    """The slow twin of what the source does: the components in the order of ``tf.nest``."""
    if isinstance(part, dict):
        return [leaf for key in sorted(part) for leaf in leaves(part[key])]
    if isinstance(part, tuple):
        return [leaf for value in part for leaf in leaves(value)]
    if isinstance(part, tf.Tensor):
        part = part.numpy()
    return [np.asarray(part, object) if isinstance(part, bytes) else np.asarray(part)]


def of_kind(kind: str) -> tuple[Any, Callable[[int], Any]]:
    holds, make = KINDS[kind]
    return holds([make(i) for i in range(N)]), make


def same(got: np.ndarray, expected: list[np.ndarray]) -> None:
    assert got.shape == (len(expected), *np.shape(expected[0]))
    if got.dtype == object:  # TensorFlow gives bytes back, whatever went in
        flat = [[text.encode() if isinstance(text, str) else text for text in part.flat] for part in expected]
        assert [text.encode() if isinstance(text, str) else text for text in got.flat] == [*itertools.chain(*flat)]
    else:
        np.testing.assert_array_equal(got, expected)


# --- every index gives its own element ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_index_gives_its_own_element(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "PATIENCE", 30.0)  # however busy the machine is, a batch is there at once
    data, make = of_kind(kind)
    source, known = as_source(data), [leaves(make(i)) for i in range(N)]
    assert isinstance(source, ItemSource)
    assert len(source) == N
    for index in RNG.integers(0, N, (BATCHES, B)):
        *arrays, ticket = source.take(index)
        assert ticket == 0
        for leaf, array in enumerate(arrays):
            same(array, [known[i][leaf] for i in index])


@pytest.mark.parametrize("kind", ["TFDS", "Hugging Face", "PyTorch", "namedtuple", "nested", "text"])
def test_every_index_gives_its_own_element_in_a_dataset(kind: str) -> None:
    data, make = of_kind(kind)
    plain = make(0)
    for *parts, sampling in importance_dataset(data, UniformSampler(N, seed=0), B):
        batch = tuple(parts) if isinstance(plain, tuple) else parts[0]
        assert isinstance(batch, type(plain)) or not isinstance(plain, dict)
        for leaf, tensor in enumerate(tf.nest.flatten(batch)):
            assert tensor.shape[0] == B
            same(tensor.numpy(), [leaves(make(int(i)))[leaf] for i in sampling["index"]])


def test_shapes_are_known_beforehand() -> None:
    x, sampling = importance_dataset(of_kind("Hugging Face")[0], UniformSampler(N), B).element_spec
    assert x == {
        "label": tf.TensorSpec((B,), tf.int64),
        "tags": tf.TensorSpec((B, 2), tf.string),
        "text": tf.TensorSpec((B,), tf.string),
        "tokens": tf.TensorSpec((B, 3), tf.int64),
    }
    assert sampling["index"].shape == (B,)


def test_a_mapping_of_another_kind_is_a_dict() -> None:
    source = as_source(Items([collections.UserDict(b=i, a=-i) for i in range(N)]))
    assert source.spec == {"a": None, "b": None}
    assert [array.tolist() for array in source.fetch(np.array([3, 1]))] == [[-3, -1], [3, 1]]


def test_one_of_several_splits_must_be_chosen() -> None:
    with pytest.raises(TypeError, match=r"choose one of its splits, \['train', 'test'\]"):
        as_source({"train": Many([1]), "test": Many([2])})


# --- what varies ----------------------------------------------------------------------------------


class Specified(Items):
    def __init__(self, elements: list[Any], spec: Any) -> None:
        super().__init__(elements)
        self.element_spec = spec


@pytest.mark.parametrize("inner", [(), (2,)])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, object])
@pytest.mark.each_value
def test_a_first_axis_that_varies_becomes_ragged(inner: tuple[int, ...], dtype: Any) -> None:
    lengths = [i % 4 for i in range(N)]
    values = [np.full((length, *inner), i).astype(dtype) for i, length in enumerate(lengths)]
    if dtype is object:
        values = [value.astype(str).astype(object) for value in values]
    kind = tf.string if dtype is object else tf.as_dtype(dtype)
    spec = {"x": tf.TensorSpec((None, *inner), kind), "i": tf.TensorSpec((), tf.int32)}
    data = Specified([{"x": value.tolist(), "i": i} for i, value in enumerate(values)], spec)
    if inner:  # an empty list does not say how wide it is
        data = Specified([{"x": value, "i": i} for i, value in enumerate(values)], spec)
    train = importance_dataset(data, UniformSampler(N, seed=0), B)
    assert train.element_spec[0]["x"] == tf.RaggedTensorSpec((B, None, *inner), kind, 1, tf.int64)
    assert train.element_spec[0]["i"] == tf.TensorSpec((B,), tf.int32)
    for x, sampling in train:
        index = sampling["index"].numpy()
        np.testing.assert_array_equal(x["i"], index)
        assert list(x["x"].row_lengths()) == [lengths[i] for i in index]
        same(x["x"].flat_values.numpy(), [np.asarray(part, dtype) for i in index for part in values[i]])
    ones = tf.data.Dataset.from_generator(lambda: (values[i] for i in index), output_signature=spec["x"])
    assert x["x"].to_list() == next(iter(ones.ragged_batch(B))).to_list()


@pytest.mark.parametrize(
    ("spec", "first", "words"),
    [
        (
            tf.TensorSpec((2, None), tf.int64),
            [[1], [2]],
            r"element_spec has the shape \(2, None\); only the first axis",
        ),
        (tf.TensorSpec(None, tf.int64), 1, "only the first axis"),
        ({"x": 3}, {"x": 3}, r"in \['x'\], has a int; its leaves must be tf.TensorSpec"),
        (tf.TensorSpec((3,), tf.int64), [1, 2], r"shape \(2,\), the element_spec says \(3,\)"),
        (tf.TensorSpec((None,), tf.int64), [[1, 2]], r"shape \(1, 2\), the element_spec says \(None,\)"),
        ({"x": tf.TensorSpec((), tf.int64)}, 3, "another structure: a int where .*the keys"),
        (tf.TensorSpec((), tf.int64), 0.5, "dtype float64, the element_spec says int64"),
    ],
)
def test_an_element_spec_that_does_not_fit(spec: Any, first: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        as_source(Specified([first] * 3, spec))


# --- elements that are refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        (np.zeros(2), np.zeros(3), r"element 6 has shape \(3,\), the first element had \(2,\).*element_spec"),
        ({"x": [1, 2]}, {"x": [1]}, r"element 6, in \['x'\], has shape \(1,\).*map_fn"),
        ((1, 2), (1, 2, 3), "element 6 has another structure: a tuple of 3 where .* has a tuple of 2"),
        ({"x": 1}, {"y": 1}, r"element 6 .*the keys \['y'\] where .*the keys \['x'\]"),
        (Point(1, 2), (1, 2), "element 6 .*a tuple of 2 where .*a Point of 2"),
        ({"x": 1}, None, "element 6 is None, or a part of it is"),
        (1, None, "element 6 is None, which a batch cannot hold"),
        ({"x": (1, "a")}, {"x": (1, None)}, r"element 6, in \['x'\]\[1\], is None"),
        ([1, 2], [1, None], "element 6 holds None inside a list"),
        (1, 0.5, "element 6 has dtype float64, the first element had int64, which cannot hold it"),
        (np.int8(1), 300, "element 6 has dtype int64, the first element had int8"),
        (np.uint8(1), -1, "element 6 has dtype int64, the first element had uint8"),
        (1, 1 << 63, "element 6 has dtype uint64, the first element had int64"),
        ("a", 1, "element 6 has dtype int64"),
        (1, "a", "element 6 has dtype object, the first element had int64"),
        ([1, 2], [1, [2]], "element 6 is a list that NumPy makes no array of.*tuple or a dict"),
        (["a", "b"], ["a", 1], "element 6 holds a int"),
        (1, {1}, "element 6 holds a set, which is neither a number nor text"),
    ],
)
def test_an_element_that_does_not_fit_is_named(good: Any, bad: Any, words: str) -> None:
    source = as_source(Items([bad if i == 6 else good for i in range(N)]))
    with pytest.raises(ValueError, match=words):
        source.take(np.array([1, 6, 2]))
    source.take(np.array([1, 5, 2]))  # goes on


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (None, "the first element is None"),
        ({"x": None}, r"the first element, in \['x'\], is None"),
        ([{"x": 1}], "the first element holds a dict"),
        ([np.zeros(2), 1], "the first element is a list that NumPy makes no array of"),
        ((), "no components"),
        (np.zeros(2, "datetime64[s]"), "no dtype for datetime64"),
    ],
)
def test_a_first_element_that_cannot_be_batched(first: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        as_source(Items([first]))


def test_numbers_of_one_kind_are_cast() -> None:
    source = as_source(Items([np.float32(0), 0.5, np.float16(2), np.int8(3)]))
    (array,) = source.fetch(np.array([0, 1, 2, 3]))
    assert array.dtype == np.float32
    assert array.tolist() == [0, 0.5, 2, 3]


# --- lengths --------------------------------------------------------------------------------------


class Length(Items):
    def __init__(self, length: Any) -> None:
        self.length = length

    def __len__(self) -> int:
        if isinstance(self.length, Exception):
            raise self.length
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (sys.maxsize, "is infinite"),
        (1 << 70, "is longer than Python can say"),
        (TypeError("no idea"), r"has no length \(no idea\)"),
    ],
)
def test_a_source_without_an_end(length: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"the source Length {words}.*without repeat\(\), or a finite part"):
        as_source(Length(length))


def test_a_source_without_a_length() -> None:
    class Endless:
        def __getitem__(self, index: int) -> int:
            return index

    with pytest.raises(ValueError, match="the source Endless has no length"):
        as_source(Endless())


def test_a_length_that_changes_is_noticed() -> None:
    data = Length(N)
    source = as_source(data)
    data.length = N + 1
    with pytest.raises(ValueError, match=f"has {N + 1} elements now and had {N}"):
        source.take(np.array([1]))
    assert len(source) == N
    data.length = N
    assert source.fetch(np.array([1]))[0] == [1]
