"""Elements fetched one by one or by lists of indices: anything with ``__len__`` and ``__getitem__``.

    source = ItemSource(records)                    # records[i], or records.__getitems__([i, j, ...])
    source = ItemSource(records, timeout=20.0)      # seconds that one batch may take; 300 by default
    source = array_records(["train.array_record"])  # files in the ArrayRecord format

TFDS data sources, Hugging Face datasets, Grain's MapDataset and ArrayRecordDataSource and the map-style datasets of
PyTorch have this form. What an element may be, :mod:`pipeline.records` says.

Elements are fetched in a thread of the source's own, and batches that take long are waited for in the graph, some
milliseconds at a time: a fetch that hangs holds no thread of TensorFlow, no iterator that is closed, and no program
that ends. It ends in a ``TimeoutError`` that says where it stands.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.memory import Array, weakly
from pipeline.records import Record
from pipeline.worker import FRAMES, Call, Worker

FETCH_TIMEOUT = 300.0  # seconds that one batch may take
PATIENCE = 0.05  # seconds a call waits for a batch before it gives the thread back
FORGET = 5.0  # seconds after which a batch that nobody asks for any more is dropped
SHOWN = 8  # indices of a batch that an error names


class ItemSource:
    """Elements fetched by ``items[i]``, or a batch at a time where there is ``__getitems__``.

    All elements must have the structure, shapes and dtypes of the first. Where ``items`` has an ``element_spec``, a
    nested structure of ``tf.TensorSpec``, that says them; and a component of which exactly the first axis
    is None there may vary, and arrives as a ``tf.RaggedTensor``.

    Args:
        items: with ``__len__``, N ≥ 1, and ``__getitem__`` for each index below N.
        timeout: seconds that one batch may take, waiting for the batches of other iterators included.

    Raises ``ValueError`` for no elements, endless ones, and a first element that cannot be batched; ``RuntimeError``
    where fetching it fails.
    """

    stackable = False  # fetching takes long, so each batch is fetched when it is needed
    outside = inside = 0

    def __init__(self, items: Any, *, timeout: float | None = None) -> None:
        self.items = items
        self.timeout = FETCH_TIMEOUT if timeout is None else timeout
        self.size = _length(items)
        if self.size == 0:
            raise ValueError("the source is empty: it needs at least one element")
        self._name = type(items).__name__
        self._many = callable(getattr(items, "__getitems__", None))
        self._worker = Worker(f"{self._name} fetching")
        self._at: list[int] = []  # what the worker fetches, or fetched last
        self._late: dict[int, _Late] = {}  # by ticket
        self._tickets = itertools.count(1)
        self._lock = threading.Lock()
        self.record = self._finish(self._worker.start(self._first), [0])
        self.spec = self.record.spec
        self.dtypes = [*self.record.dtypes, tf.int64]

    def __len__(self) -> int:
        return self.size

    def fetch(self, index: Array) -> list[Array]:
        """The elements ``index``, (B,), as a flat list of arrays (B, ...).

        A ragged component gives two arrays, where its rows begin (B + 1,) int64 and the values of all. Costs what the
        elements cost, two microseconds or so for each component of each, and some 30 µs to go to the
        source's thread and back.

        Raises ``TimeoutError`` after ``timeout`` seconds; ``RuntimeError`` where ``items`` raises an error; and
        ``ValueError`` for an element that does not fit, and where the source's length is not what it was.
        """
        rows = index.tolist()
        return self._finish(self._worker.start(self._batch, rows), rows)

    def take(self, index: Array) -> list[Array]:
        """What ``fetch`` gives and 0; or, where that takes long, no values, and a ticket that ``pack`` waits with."""
        return self._ask(0, index)

    def pack(self, tensors: Sequence[tf.Tensor], index: tf.Tensor) -> Any:
        """The batch, waited for where ``take`` gave a ticket. An iterator can be closed while this waits."""

        def ask(ticket: tf.Tensor, *_: tf.Tensor) -> list[tf.Tensor]:
            *arrays, ticket = tf.numpy_function(weakly(self._ask), [ticket, index], self.dtypes)
            return [tf.ensure_shape(ticket, ()), *arrays]

        *arrays, ticket = tensors
        unknown = [tf.TensorShape([])] + [tf.TensorShape(None)] * len(arrays)
        waiting = [tf.ensure_shape(ticket, ()), *arrays]
        waited = tf.while_loop(lambda ticket, *_: ticket > 0, ask, waiting, shape_invariants=unknown)
        return self.record.pack(waited[1:], index)

    # --- who waits ---

    def _ask(self, ticket: int, index: Array) -> list[Array]:
        """Start a fetch, or go on waiting for the one with this ticket; with the ticket for asking again at the end."""
        rows = index.tolist()
        if not rows:
            return [*self.record.batch([], []), np.int64(0)]
        with self._lock:
            late = self._late.pop(int(ticket), None)
        call = self._worker.start(self._batch, rows) if late is None else late.call
        if self._here(call, rows, PATIENCE):
            return [*call.result(), np.int64(0)]
        return [*self.record.batch([], []), np.int64(self._keep(call))]

    def _keep(self, call: Call) -> int:
        """A ticket for a call; forgets those that were left behind by an iterator that was closed."""
        now = time.monotonic()
        with self._lock:
            self._late = {key: late for key, late in self._late.items() if now - late.asked < FORGET}
            ticket = next(self._tickets)
            self._late[ticket] = _Late(call, now)
        return ticket

    def _finish(self, call: Call, rows: list[int]) -> Any:
        while not self._here(call, rows, PATIENCE):
            pass
        return call.result()

    def _here(self, call: Call, rows: list[int], seconds: float) -> bool:
        """Whether the call is done within ``seconds``; ``TimeoutError`` where it takes more than the timeout."""
        left = call.began + self.timeout - time.monotonic()
        if call.wait(max(0.0, min(seconds, left))):
            return True
        if time.monotonic() - call.began < self.timeout:
            return False
        raise TimeoutError(
            f"fetching the elements {_some(rows)} of {self._name} took more than {self.timeout:g} seconds. Its thread "
            f"is at the elements {_some(self._at)}:\n{self._worker.where()}If it is only slow, use "
            "ItemSource(..., timeout=seconds)"
        )

    # --- in the source's thread ---

    def _first(self) -> Record:
        self._at = [0]
        first = next(iter(self._one_by_one([0])))
        spec = getattr(self.items, "element_spec", None)
        record = Record.like(first) if spec is None else Record.specified(spec)
        record.batch([0], [first])
        return record

    def _batch(self, rows: list[int]) -> list[Array]:
        self._at = rows
        size = _length(self.items)
        if size != self.size:
            raise ValueError(
                f"the source {self._name} has {size} elements now and had {self.size} when it was wrapped, so an index "
                "may mean another element; leave it as it is, or wrap it again"
            )
        return self.record.batch(rows, self._together(rows) if self._many else self._one_by_one(rows))

    def _one_by_one(self, rows: list[int]) -> Iterator[Any]:
        for i in rows:
            try:
                element = self.items[i]
            except BaseException as error:  # SystemExit too: it must not end the thread
                raise RuntimeError(_failed(f"{self._name}.__getitem__({i})", error)) from error
            yield element

    def _together(self, rows: list[int]) -> Iterable[Any]:
        try:
            elements = self.items.__getitems__(rows)
        except BaseException as error:
            raise RuntimeError(_failed(f"{self._name}.__getitems__({_some(rows)})", error)) from error
        if isinstance(elements, Mapping) or not hasattr(elements, "__iter__"):
            raise TypeError(
                f"{self._name}.__getitems__ gave a {type(elements).__name__}; it must give a list of elements, one "
                "for each index, as [self[i] for i in indices] would, not columns"
            )
        elements = list(elements)
        if len(elements) != len(rows):
            raise ValueError(f"{self._name}.__getitems__ gave {len(elements)} elements for {len(rows)} indices")
        return elements


class _Late:
    """A call that is waited for in the graph, and when it was last asked for."""

    def __init__(self, call: Call, asked: float) -> None:
        self.call = call
        self.asked = asked


def _length(items: Any) -> int:
    """N; ``ValueError`` for a source without an end."""
    try:
        size = len(items)
    except TypeError as error:
        raise ValueError(_endless(items, f"has no length ({error})")) from error
    except OverflowError as error:
        raise ValueError(_endless(items, "is longer than Python can say")) from error
    if size == sys.maxsize:
        raise ValueError(_endless(items, "is infinite"))
    return size


def _endless(items: Any, what: str) -> str:
    return (
        f"the source {type(items).__name__} {what}, so its elements cannot be drawn by index; give it without "
        "repeat(), or a finite part of it with random access: every epoch draws from that anew"
    )


def _some(rows: Sequence[int]) -> str:
    more = f", ... ({len(rows)} in all)" if len(rows) > SHOWN else ""
    return f"[{', '.join(map(str, rows[:SHOWN]))}{more}]"


def _failed(call: str, error: BaseException) -> str:
    """What to say of an error in the source; TensorFlow shows no more of it than this text."""
    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None  # without the line above
    frames = "".join(traceback.format_tb(trace)[-FRAMES:])
    said = "".join(traceback.format_exception_only(error)).strip()
    return f"{call} raised {said}" + (f"\n{frames}" if frames else "")


# --- ArrayRecord ----------------------------------------------------------------------------------

_PATH = re.compile(r"\.\w+(-\d+-of-\d+)?$")  # ends like a file, perhaps one of several
_ARRAY_RECORD = re.compile(r"\.array_?record(-\d+-of-\d+)?$")


def are_paths(data: Any) -> bool:
    """Whether ``data`` is a path, or a list of them: a ``PathLike``, or text that ends like a file's name."""
    if isinstance(data, list):
        return bool(data) and all(isinstance(part, (str, os.PathLike)) and are_paths(part) for part in data)
    return isinstance(data, os.PathLike) or (isinstance(data, str) and _PATH.search(data) is not None)


def array_records(paths: Any) -> ItemSource:
    """The records, ``bytes``, of a file in the ArrayRecord format, or of several one after another.

    Needs the package array-record, which the extra ``arrayrecord`` brings: ``ImportError`` without it. A path that is
    not there is a ``FileNotFoundError``; another kind of file, by its name or by what it holds, a ``ValueError``.
    """
    names = [os.fspath(path) for path in (paths if isinstance(paths, list) else [paths])]
    for name in names:
        if not _ARRAY_RECORD.search(name):
            raise ValueError(
                f"only files that end in .array_record are read by index, got {name!r}; wrap records of "
                "tf.data.TFRecordDataset(...) with importance_sampling, arrays of np.load(..., mmap_mode='r') as they "
                "are, and texts by np.asarray(texts)"
            )
        if not os.path.exists(name):
            raise FileNotFoundError(f"there is no file {name}")
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
    except ImportError as error:
        raise ImportError(
            "reading ArrayRecord files needs the package array-record; install it with "
            "pip install 'tf-importance-sampling[arrayrecord]'"
        ) from error
    try:
        records = ArrayRecordDataSource(names)
    except RuntimeError as error:  # what its reader raises for any other content
        raise ValueError(f"{_some_names(names)} cannot be read as ArrayRecord: {error}") from error
    return ItemSource(records)


def _some_names(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")
