"""Records: what one element is made of, and how many of them become the arrays of a batch.

    record = Record.like({"x": image, "y": 3})      # structure, shapes and dtypes of an element
    record = Record.specified(spec)                 # or of a nested structure of tf.TensorSpec
    arrays = record.batch(index, elements)          # a flat list, each (B, ...)
    batch = record.pack(tensors, index)             # inside the graph, from tensors of those arrays

An element is an array, a number, ``str`` or ``bytes``, or a dict, tuple or namedtuple of elements. An array is whatever
``np.asarray`` makes one of, lists too. Each leaf is a component, with a class for each way to batch it: ``Dense``,
``Ragged``. Elements are copied one by one as they come, so that a source may use one buffer for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.columns import dtype_of, packed, splits_of
from pipeline.memory import Array, aligned

VARYING = (
    "all elements must have one shape: pad or crop them in __getitem__, give the encoded element and decode it after "
    "the draw with map_fn=, or give the source an element_spec, in which a first axis that varies is None"
)

READY: dict[np.dtype[Any], tuple[type, ...]] = {
    np.dtype(np.int64): (int,),
    np.dtype(np.float64): (float,),
    np.dtype(np.bool_): (bool,),
    np.dtype(object): (str, bytes),
}


class Dense:
    """A component of one shape: numbers or strings."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], said: str) -> None:
        self.name = name  # how it is reached in an element, such as "['x'][0]"; empty for the element itself
        self.shape = shape
        self.dtype = np.dtype(object) if dtype.kind in "OSU" else dtype.newbyteorder("=")
        self.given = dtype
        self.said = said  # where shape and dtype come from
        self.dtypes = [tf.string if self.dtype.kind == "O" else dtype_of(np.empty(0, self.dtype))]
        self._ready = READY.get(self.dtype, ()) if shape == () else ()  # types that are stored as they are

    def batch(self, count: int) -> Array:
        """Room for ``count`` elements."""
        shape = (count, *self.shape)
        return np.empty(shape, object) if self.dtype.kind == "O" else aligned(shape, self.dtype)

    def put(self, batch: Array, row: int, value: Any, i: int) -> None:
        """The value of element ``i`` into its row; ``ValueError`` where it does not fit."""
        if type(value) in self._ready and not (type(value) is int and value.bit_length() > 63):
            batch[row] = value
            return
        array = self._fitting(value, i)
        if array.shape != self.shape:
            raise ValueError(f"{self._at(i)} has shape {array.shape}, {self.said} {self.shape}; {VARYING}")
        batch[row, ...] = array

    def arrays(self, batch: Array) -> list[Array]:
        """What is handed over to TensorFlow."""
        return [batch]

    def pack(self, tensors: Sequence[tf.Tensor], index: tf.Tensor) -> Any:
        """The batched component."""
        return tf.ensure_shape(tensors[0], (*index.shape, *self.shape))

    def _at(self, i: int) -> str:
        return f"element {i}" + (f", in {self.name}," if self.name else "")

    def _fitting(self, value: Any, i: int) -> Array:
        """As an array that can be cast to the dtype without harm."""
        try:
            array = as_array(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self._at(i)} {error}") from error
        if array.dtype != self.dtype and not _fits(array, self.dtype):
            raise ValueError(
                f"{self._at(i)} has dtype {array.dtype}, {self.said} {self.given}, which cannot hold it; give all "
                "elements one dtype in __getitem__"
            )
        return array


class Ragged(Dense):
    """A component whose first axis varies; it arrives as a ``tf.RaggedTensor``, as from ``ragged_batch``."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], said: str) -> None:
        super().__init__(name, shape, dtype, said)  # the shape without its first axis
        self.dtypes = [tf.int64, *self.dtypes]

    def batch(self, count: int) -> Any:
        """A list of ``count`` arrays."""
        return [np.empty((0, *self.shape), self.dtype)] * count

    def put(self, batch: Any, row: int, value: Any, i: int) -> None:
        """The value of element ``i`` into its place; ``ValueError`` where it does not fit."""
        array = self._fitting(value, i)
        if array.ndim != len(self.shape) + 1 or array.shape[1:] != self.shape:
            raise ValueError(f"{self._at(i)} has shape {array.shape}, {self.said} {(None, *self.shape)}")
        batch[row] = array.astype(self.dtype)  # a copy always

    def arrays(self, batch: Any) -> list[Array]:
        """Where the rows begin, (B + 1,) int64, and the values of all."""
        if not batch:
            return [splits_of(np.zeros(0, np.int64)), np.empty((0, *self.shape), self.dtype)]
        return [splits_of(np.array([len(array) for array in batch])), np.concatenate(batch)]

    def pack(self, tensors: Sequence[tf.Tensor], index: tf.Tensor) -> Any:
        """The batched component."""
        splits = tf.ensure_shape(tensors[0], (index.shape[0] + 1,))
        values = tf.ensure_shape(tensors[1], (None, *self.shape))
        return tf.RaggedTensor.from_row_splits(values, splits, validate=False)


class Record:
    """The nested structure of an element, None for each leaf, and its components in the order of ``tf.nest``."""

    def __init__(self, spec: Any, components: list[Dense]) -> None:
        if not components:
            raise ValueError("an element has no components: it needs at least one array, number or string")
        self.spec = spec
        self.components = components
        self.dtypes = [dtype for component in components for dtype in component.dtypes]

    @classmethod
    def like(cls, element: Any) -> Record:
        """With the structure, shapes and dtypes of an element; ``ValueError`` for one that cannot be batched."""
        components = []
        for name, value in _named(element, ""):
            try:
                example = as_array(value)
                dtype_of(example)
            except (TypeError, ValueError) as error:
                raise ValueError(f"the first element{f', in {name},' if name else ''} {error}") from error
            components.append(Dense(name, example.shape, example.dtype, "the first element had"))
        return cls(_skeleton(element), components)

    @classmethod
    def specified(cls, spec: Any) -> Record:
        """By a nested structure of ``tf.TensorSpec``, or of other leaves with ``shape`` and ``dtype``."""
        return cls(_skeleton(spec), [_specified(name, leaf) for name, leaf in _named(spec, "")])

    def batch(self, index: Sequence[int], elements: Iterable[Any]) -> list[Array]:
        """The arrays of the elements ``index``; ``ValueError`` names the first that does not fit, and how."""
        batches = [component.batch(len(index)) for component in self.components]
        for row, (i, element) in enumerate(zip(index, elements, strict=True)):
            leaves: list[Any] = []
            _flatten(self.spec, element, leaves, i)
            for component, batch, leaf in zip(self.components, batches, leaves, strict=True):
                component.put(batch, row, leaf, i)
        pairs = zip(self.components, batches, strict=True)
        return [array for component, batch in pairs for array in component.arrays(batch)]

    def pack(self, tensors: Sequence[tf.Tensor], index: tf.Tensor) -> Any:
        """The nested structure of batched components."""
        return packed(self.spec, self.components, tensors, index)


# --- the structure --------------------------------------------------------------------------------


def _parts(element: Any) -> list[tuple[Any, Any]] | None:
    """Keys and values of a dict, in ``tf.nest``'s order, or of a tuple; None for a leaf."""
    if isinstance(element, Mapping):
        return sorted(element.items(), key=lambda item: item[0])
    return list(enumerate(element)) if isinstance(element, tuple) else None


def _named(element: Any, name: str) -> list[tuple[str, Any]]:
    """The leaves, each with how it is reached."""
    parts = _parts(element)
    if parts is None:
        return [(name, element)]
    return [leaf for key, value in parts for leaf in _named(value, f"{name}[{key!r}]")]


def _skeleton(element: Any) -> Any:
    """The same structure with None for each leaf; every mapping becomes a dict."""
    parts = _parts(element)
    if parts is None:
        return None
    inner = [_skeleton(value) for _, value in parts]
    if isinstance(element, Mapping):
        return dict(zip((key for key, _ in parts), inner, strict=True))
    return type(element)(*inner) if hasattr(element, "_fields") else tuple(inner)


def _flatten(spec: Any, element: Any, leaves: list[Any], i: int) -> None:
    """Append the leaves of element ``i`` in the order of ``spec``; ``ValueError`` for one of another structure."""
    if isinstance(spec, dict):
        if not isinstance(element, Mapping) or element.keys() != spec.keys():
            raise ValueError(_other_structure(spec, element, i))
        for key, part in spec.items():
            _flatten(part, element[key], leaves, i)
    elif isinstance(spec, tuple):
        same = isinstance(element, tuple) and len(element) == len(spec)
        if not same or getattr(element, "_fields", None) != getattr(spec, "_fields", None):
            raise ValueError(_other_structure(spec, element, i))
        for part, value in zip(spec, element, strict=True):
            _flatten(part, value, leaves, i)
    else:
        leaves.append(element)


def _other_structure(spec: Any, element: Any, i: int) -> str:
    if element is None:
        return f"element {i} is None, or a part of it is; put a value in its place, or leave such elements out"
    had = f"the first element, or the element_spec, has {_kind(spec)}"
    return f"element {i} has another structure: {_kind(element)} where {had}"


def _kind(part: Any) -> str:
    if isinstance(part, Mapping):
        return f"a dict with the keys {list(part)}"
    if isinstance(part, tuple):
        return f"a {type(part).__name__} of {len(part)}"
    return "None" if part is None else f"a {type(part).__name__}"


# --- one leaf -------------------------------------------------------------------------------------


def as_array(value: Any) -> Array:
    """Any leaf as an array, text as an array of objects.

    ``TypeError`` or ``ValueError``, worded to follow the element's name, for what is none.
    """
    if type(value) is np.ndarray and value.dtype.kind != "O":
        return value
    if not isinstance(value, (int, float, str, bytes, np.ndarray)) and isinstance(value, tf.Tensor):
        value = value.numpy()
    if isinstance(value, (str, bytes)):
        return _text(value)
    if value is None:
        raise TypeError("is None, which a batch cannot hold; put a value in its place, or leave such elements out")
    try:
        array = np.asarray(value)
        if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
            array = np.asarray(value, object)  # NumPy's own kinds of text lose zero bytes at the end
    except Exception as error:
        # Whatever __array__ raises; and lists of lists of unequal length.
        hint = "; components of different kinds belong in a tuple or a dict" if isinstance(value, list) else ""
        raise ValueError(f"is a {type(value).__name__} that NumPy makes no array of ({error}){hint}") from error
    if array.dtype.kind == "O":
        _check_text(array, value)
    return array


def _text(value: str | bytes) -> Array:
    array: Array = np.empty((), object)
    array[()] = value
    return array


def _check_text(array: Array, value: Any) -> None:
    if any(part is None for part in array.flat):
        raise TypeError(f"holds None inside a {type(value).__name__}; put a value in its place")
    for part in array.flat:
        if not isinstance(part, (str, bytes)):
            what = type(part).__name__ if array.ndim else type(value).__name__
            raise TypeError(
                f"holds a {what}, which is neither a number nor text; give arrays, numbers, text, or dicts and tuples "
                "of them"
            )


def _fits(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` holds the values: of the same kind, and no whole number cut. An empty list fits always."""
    if array.size == 0:
        return True
    if dtype.kind == "O" or array.dtype.kind in "OSU":
        return dtype.kind == "O" and array.dtype.kind in "OSU"
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        return False
    return dtype.kind not in "iu" or bool((array.astype(dtype) == array).all())


def _specified(name: str, leaf: Any) -> Dense:
    """The component that an ``element_spec`` describes."""
    at = f"the element_spec{f', in {name},' if name else ''}"
    try:
        shape, dtype = tf.TensorShape(leaf.shape), tf.as_dtype(leaf.dtype)
    except (AttributeError, TypeError) as error:
        raise TypeError(f"{at} has a {type(leaf).__name__}; its leaves must be tf.TensorSpec") from error
    said, numpy = "the element_spec says", np.dtype(object if dtype == tf.string else dtype.as_numpy_dtype)
    if shape.is_fully_defined():
        return Dense(name, tuple(shape), numpy, said)
    if shape.rank and shape[0] is None and shape[1:].is_fully_defined():
        return Ragged(name, tuple(shape[1:]), numpy, said)
    raise ValueError(
        f"{at} has the shape {shape}; only the first axis of an element may vary: pad the others, or give the encoded "
        "element and decode it after the draw with map_fn="
    )
