"""The fuzzer itself, without its coverage: some inputs, and what it says of readers and samplers that are not right."""

from __future__ import annotations

import builtins
import contextlib
import pickle
import random
import struct
import types

import pytest

from sampler import checks
from sampler.state import Stateful
from sampler.stores import ProportionalStore

from .sealed import changed, seal, unseal
from .state_bytes import SELDOM, Broken, Target, guarded, load_reader, quiet, run_without_coverage

RUNS = 1000


@pytest.fixture(scope="module")
def reader():
    return load_reader()


@pytest.fixture(scope="module")
def target(reader):
    with quiet():
        return Target(reader)


@pytest.fixture(autouse=True)
def _without_warnings():
    with quiet():
        yield


@contextlib.contextmanager
def with_another(target, **functions):
    """The target with a reader that has some functions of its own."""
    reader = target.reader
    target.reader = types.SimpleNamespace(**{**vars(reader), **functions})
    try:
        yield
    finally:
        target.reader = reader


def test_some_inputs(target):
    outcomes = run_without_coverage(target, RUNS)
    assert outcomes["all"] == RUNS
    for outcome in ("refused", "not loaded", "loaded and drawn"):
        assert outcomes[outcome] > RUNS / 20, outcomes


def test_what_was_sealed_again_is_read(target, reader):
    corpus = [data for data in target.corpus() if unseal(data) is not None]
    assert len(corpus) > 90
    for data in corpus:
        assert reader.to_bytes(reader.from_bytes(seal(*unseal(data)))) == data
    source = random.Random(1)
    inside = 0
    for data in corpus * 3:
        with contextlib.suppress(ValueError, TypeError):  # one of complex numbers is read, and not written
            inside += reader.to_bytes(reader.from_bytes(changed(data, source))) != data
    assert inside > len(corpus)  # of three changes one is read, and is another state


# --- planted faults


def test_a_reader_that_unpickles(target, reader):
    def from_bytes(data):
        try:
            return reader.from_bytes(data)
        except ValueError:
            with contextlib.suppress(Exception):
                pickle.loads(data)
            raise

    with with_another(target, from_bytes=from_bytes), pytest.raises(Broken, match=r"pickle\.find_class|import"):
        run_without_coverage(target, 20_000)


def test_a_reader_that_forgets_an_error(target, reader):
    def from_bytes(data):
        state = reader.from_bytes(data)
        return {**state, "step": state["step"]}

    with with_another(target, from_bytes=from_bytes), pytest.raises(Broken, match="from_bytes: KeyError"):
        run_without_coverage(target, 20_000)


def test_a_reader_that_believes_what_is_said_of_sizes(target, reader):
    def from_bytes(data):
        (length,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
        return bytearray(min(length, 1 << 24)) and reader.from_bytes(data)

    with with_another(target, from_bytes=from_bytes), pytest.raises(Broken, match="100 bytes took 167"):
        target.look_at_memory(b"\xff" * 100)


def test_a_reader_that_opens_something_and_keeps_quiet(target):
    def from_bytes(data):
        with contextlib.suppress(BaseException), builtins.open("/dev/null"):
            pass
        raise ValueError("no state")

    with with_another(target, from_bytes=from_bytes), pytest.raises(Broken, match="open"):
        target(b"")


def test_a_sampler_that_changes_and_then_refuses(target, monkeypatch):
    read = Stateful._read_state

    def half(self, state):
        self._step = self._step ^ 1
        return read(self, state)

    monkeypatch.setattr(Stateful, "_read_state", half)
    with pytest.raises(Broken, match="was refused and has changed something"):
        run_without_coverage(target, 300 * SELDOM)


def test_a_store_that_takes_any_number(target, monkeypatch):
    def load(self, state):
        self._leaves[: self._size] = checks.array("priorities", state["priorities"], self._leaves[: self._size])
        self._rebuild()

    monkeypatch.setattr(ProportionalStore, "load_state_dict", load)
    with pytest.raises(Broken, match="after a state was loaded"):
        run_without_coverage(target, 20_000)


def test_the_guard_is_down_outside():
    with guarded():
        pass
    with open("/dev/null") as nothing:
        assert nothing.read() == ""
