"""Sources that fail, hang or are slow: it is said what and where, nobody hangs with them, and no thread is left."""

from __future__ import annotations

import contextlib
import gc
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import importance_dataset, items, worker
from pipeline.items import ItemSource
from pipeline.sources import as_source
from sampler import UniformSampler

N, B = 29, 4
WORDS = [f"{i}" * (i % 3) for i in range(N)]


class Items:
    """Elements of a list, one by one."""

    def __init__(self, elements: list[Any]) -> None:
        self.elements = elements

    def __len__(self) -> int:
        return len(self.elements)

    def __getitem__(self, index: int) -> Any:
        return self.elements[index]


class Many(Items):
    """A batch at a time."""

    def __getitems__(self, index: list[int]) -> list[Any]:
        return [self.elements[i] for i in index]


# --- sources that fail ----------------------------------------------------------------------------


class Broken(Items):
    def __init__(self, error: BaseException) -> None:
        super().__init__(list(range(N)))
        self.error = error

    def __getitem__(self, index: int) -> int:
        return self.decode(index)

    def decode(self, index: int) -> int:
        if index == 7:
            raise self.error
        return index


@pytest.mark.parametrize("error", [KeyError("label"), StopIteration(), SystemExit(3), RuntimeError("gone")])
@pytest.mark.fault(27)
def test_an_error_of_the_source_is_told_with_its_index_and_trace(error: BaseException) -> None:
    source = as_source(Broken(error))
    words = rf"Broken.__getitem__\(7\) raised {type(error).__name__}(.|\n)*in decode"
    with pytest.raises(RuntimeError, match=words) as caught:
        source.take(np.array([1, 7]))
    assert caught.value.__cause__ is error
    assert source.fetch(np.array([1]))[0] == [1]  # the thread goes on


@pytest.mark.parametrize("error", [KeyError("label"), StopIteration(), tf.errors.OutOfRangeError(None, None, "end")])
def test_an_error_of_the_source_ends_a_dataset_with_the_same_words(error: BaseException) -> None:
    with pytest.raises(tf.errors.OpError, match=r"Broken.__getitem__\(7\) raised (.|\n)*in decode"):
        list(importance_dataset(Broken(error), UniformSampler(N), B))


def test_an_error_of_getitems_names_its_indices() -> None:
    class BrokenMany(Many):
        def __getitems__(self, index: list[int]) -> list[Any]:
            raise OSError("the disk is gone")

    source = as_source(BrokenMany(list(range(N))))
    with pytest.raises(RuntimeError, match=r"__getitems__\(\[1, 7\]\) raised OSError: the disk is gone"):
        source.take(np.array([1, 7]))
    with pytest.raises(RuntimeError, match=r"\[0, 1, 2, 3, 4, 5, 6, 7, \.\.\. \(20 in all\)\]"):
        source.take(np.arange(20))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda elements: {"x": elements}, "gave a dict; it must give a list of elements"),
        (lambda elements: None, "gave a NoneType"),
        (lambda elements: elements[1:], "gave 1 elements for 2 indices"),
    ],
)
def test_getitems_that_gives_no_list_of_elements(given: Callable[[Any], Any], words: str) -> None:
    class Columns(Many):
        def __getitems__(self, index: list[int]) -> Any:
            return given(super().__getitems__(index))

    with pytest.raises((TypeError, ValueError), match=words):
        as_source(Columns(list(range(N)))).take(np.array([1, 2]))


# --- sources that are slow, or hang ---------------------------------------------------------------


class Stuck(Items):
    """Hangs at index 7 until it is let go."""

    def __init__(self) -> None:
        super().__init__(list(range(N)))
        self.go = threading.Event()

    def __getitem__(self, index: int) -> int:
        if index == 7:
            self.go.wait(60)
        return index


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    data = Stuck()
    yield data
    data.go.set()


class Slow(Items):
    def __getitem__(self, index: int) -> Any:
        time.sleep(0.002)
        return super().__getitem__(index)


def in_order(data: Any) -> tf.data.Dataset:
    """Batches of the elements 0, 1, 2, ... as the generator makes them."""
    source = data if isinstance(data, ItemSource) else as_source(data)

    def batch(index: tf.Tensor) -> Any:
        return source.pack(tf.numpy_function(source.take, [index], source.dtypes), index)

    index = tf.data.Dataset.range(len(source)).batch(B, drop_remainder=True)
    return index.map(lambda row: (row, batch(row))).prefetch(1)


@pytest.mark.fault(29)
def test_a_fetch_that_hangs_is_given_up_with_where_it_stands(stuck: Stuck) -> None:
    source = ItemSource(stuck, timeout=0.3)
    words = (
        r"the elements \[3, 7\] of Stuck took more than 0.3 seconds. Its thread is at the elements \[3, 7\]:"
        r"(.|\n)*in __getitem__(.|\n)*self.go.wait"
    )
    with pytest.raises(TimeoutError, match=words):
        source.fetch(np.array([3, 7]))
    with pytest.raises(TimeoutError, match=r"elements \[2\] of Stuck(.|\n)*at the elements \[3, 7\]"):
        source.fetch(np.array([2]))  # who waits behind it is told so
    with pytest.raises(tf.errors.OpError, match=r"TimeoutError: fetching the elements \[0, 1, 2, 3\](.|\n)*go.wait"):
        next(iter(in_order(source)))
    stuck.go.set()
    assert source.fetch(np.array([7]))[0] == [7]


def test_an_iterator_is_closed_while_a_fetch_hangs(stuck: Stuck) -> None:
    iterator = iter(in_order(stuck))
    assert next(iterator)[0].numpy().tolist() == [0, 1, 2, 3]
    time.sleep(0.2)  # the next one is fetched ahead, and hangs
    start = time.monotonic()
    del iterator
    assert time.monotonic() - start < 1.0


def test_batches_that_take_long_are_waited_for_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "PATIENCE", 0.001)
    source = ItemSource(Slow([{"i": i, "t": WORDS[i]} for i in range(N)]))
    for index, batch in in_order(source):
        np.testing.assert_array_equal(batch["i"], index)
        assert [text.decode() for text in batch["t"].numpy()] == [WORDS[i] for i in index]
    assert not source._late


def test_what_nobody_waits_for_any_more_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "PATIENCE", 0.0)
    monkeypatch.setattr(items, "FORGET", 0.0)
    source = ItemSource(Slow(list(range(N))))
    index = np.array([3, 5])
    *_, first = source.take(index)
    for _ in range(5):
        assert source.take(index)[-1] > 0
    assert len(source._late) == 1
    monkeypatch.setattr(items, "PATIENCE", 1.0)
    array, ticket = source._ask(int(first), index)  # is fetched again where it was asked for late
    assert (array.tolist(), ticket) == ([3, 5], 0)


def test_several_iterators_share_a_source() -> None:
    train = in_order(Slow(list(range(N)))).repeat(2)
    failed: list[BaseException] = []

    def read() -> None:
        try:
            for index, batch in train:
                np.testing.assert_array_equal(batch, index)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("sources", [200, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_source_that_is_dropped_takes_its_thread_with_it(sources: int) -> None:
    gc.collect()
    before = threading.active_count()
    for _ in range(sources):
        ItemSource(Items([1, 2])).take(np.array([0]))
    wait_for(lambda: threading.active_count() <= before)


def test_a_source_that_failed_takes_its_thread_with_it_at_once() -> None:
    class Fails(Items):
        def __getitem__(self, index: int) -> int:
            return 1 // (7 - index)

    gc.collect()
    gc.disable()  # no cycle keeps it
    try:
        before = threading.active_count()
        for _ in range(20):
            source = as_source(Fails(list(range(N))))
            with contextlib.suppress(RuntimeError):
                source.take(np.array([7]))
        del source
        wait_for(lambda: threading.active_count() <= before)
    finally:
        gc.enable()


def test_nothing_is_fetched_any_more_when_the_program_ends(monkeypatch: pytest.MonkeyPatch, stuck: Stuck) -> None:
    """Threads of TensorFlow that came back into an interpreter that is no more would never get out."""
    source = as_source(stuck)
    monkeypatch.setattr(worker, "_LEAVING", threading.Event())
    *_, ticket = source.take(np.array([7]))
    start = time.monotonic()
    worker._leave()
    assert time.monotonic() - start < 1.5
    for call in (lambda: source.take(np.array([1])), lambda: source._ask(int(ticket), np.array([7]))):
        with pytest.raises(RuntimeError, match="the program is ending"):
            call()


HANGS = """
    import atexit, os, sys, threading, time
    atexit.register(lambda: print("left", time.monotonic(), flush=True))  # runs after all that are registered later
    import numpy as np, tensorflow as tf
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from pipeline import importance_dataset
    from pipeline.sources import as_source
    from sampler import UniformSampler

    child = os.fork()
    if child == 0:
        for data in (np.zeros(3), tf.data.Dataset.range(3)):
            try:
                as_source(data)
            except RuntimeError as error:
                print("child:", error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)

    class Items:
        hang = False
        def __len__(self):
            return 40
        def __getitem__(self, i):
            if self.hang:
                time.sleep(1000)
            return np.float32(i)

    data = Items()
    for x, sampling in importance_dataset(data, UniformSampler(40), 8):
        np.testing.assert_array_equal(x, sampling["index"])
    iterator = iter(importance_dataset(data, UniformSampler(40), 8, prefetch=1))
    next(iterator)
    data.hang = True
    threading.Thread(target=next, args=(iterator,), daemon=True).start()
    time.sleep(0.5)
    print("leaving", time.monotonic(), flush=True)
"""


@pytest.mark.fault(31)
def test_a_forked_process_is_refused_and_a_program_ends_while_a_fetch_hangs(python: Callable[..., Any]) -> None:
    result = python(HANGS, "-W", "ignore::DeprecationWarning")
    assert result.returncode == 0, result.stderr
    *child, leaving, left = result.stdout.splitlines()
    words = r"child: .*TensorFlow does not survive fork.*multiprocessing.get_context\(\"spawn\"\)"
    assert len(child) == 2
    assert all(re.match(words, line) for line in child)
    assert 0.5 < float(left.split()[1]) - float(leaving.split()[1]) < 2.0
