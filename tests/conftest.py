"""For all tests: which cases are long ones, what is compiled once for all, what is not searched for cycles again."""

from __future__ import annotations

import gc
import signal

import numpy as np
import pytest

from tests.choosing import showing_all
from tests.sampler.siblings import SIBLINGS

WAITING = (  # for other processes
    *("tests/ray/test_scorers.py", "tests/ray/test_shared_store.py", "tests/pipeline/test_workers.py"),
    *("tests/ray/test_nodes.py", "tests/pipeline/test_kills.py", "tests/pipeline/test_iterators.py"),
    *("tests/pipeline/test_feed_back.py", "tests/ray/test_train_workers.py", "tests/ray/test_docs.py"),
)
BETWEEN = 8  # places from one of them to the next
QUICK = ("tests/benchmarks/", "tests/fuzz/", "tests/sampler/")  # the last, so that all processes end together
CHOOSING = {"every", "each_value"}
COLLECT_AFTER = 50_000, 20, 20  # objects; the default 700 has a fifth of the time go into searching graphs


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Where several processes test, the one that hands out the tests compiles the kernels while the others import.

    In a fresh clone each of them, and each actor of Ray, would do so by itself: 20 seconds.
    """
    others = getattr(session.config.option, "numprocesses", None)
    if others and not hasattr(session.config, "workerinput"):
        compile_kernels()


def compile_kernels() -> None:
    """Have numba compile, or find in its cache, what all samplers do."""
    for make in SIBLINGS.values():
        sampler = make(17, seed=0)
        for size in (17, 4):  # the first pass, and one by priority
            draw = sampler.draw(size)
            sampler.update(draw.index, np.ones(size), step=draw.step)
        rows = (np.zeros((2, 4), dtype) for dtype in (np.int64, np.float32, np.float32, np.int64))
        sampler.poll_rows(*rows, seconds=0.0)
        sampler.load_state_dict(sampler.state_dict())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test that is marked ``every(n)`` or ``each_value`` some are tried, the others are soak."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if CHOOSING & {mark.name for mark in item.iter_markers()} and not item.get_closest_marker("soak"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    items[:] = in_turn(items)
    for of_one_test in cases.values():
        every = of_one_test[0].get_closest_marker("every")
        if every:
            tried = set(range(0, len(of_one_test), every.args[0]))
        else:
            tried = showing_all([item.callspec.params for item in of_one_test])
        for place, item in enumerate(of_one_test):
            if place not in tried:
                item.add_marker(pytest.mark.soak)


def in_turn(items: list[pytest.Item]) -> list[pytest.Item]:
    """File after file, those that wait for other processes far from each other: else all that test come to them at the
    same time, and the cores have nothing to do while they wait, and no time for what they wait for.
    """
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    waiting = [name for name in WAITING if name in files]
    names = sorted(files.keys() - set(waiting), key=lambda name: (name.startswith(QUICK), name))
    for place, name in enumerate(waiting):
        names.insert(place * BETWEEN, name)
    return [item for name in names for item in files[name]]


def pytest_configure() -> None:
    """Have SIGINT heeded, also where a shell that started the tests in the background has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """By now everything is imported. What a test says of memory it says after ``gc.collect()``, as before."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
