"""The program that measures one peer, in that peer's interpreter: a line of JSON in, a line of JSON out.

    cd REPOSITORY && .peers/tianshou/bin/python -m benchmarks.peers.worker

=========================================================  ==================================================
asked                                                      answered
=========================================================  ==================================================
``{"do": "build", "system": "tianshou",                    ``build_s``, ``bytes_per_sample`` (null where it
"priorities": "priorities.npy"}``                          cannot be told), ``versions``
``{"do": "batch", "batch": 256, "seed": 0}``               ``uniforms``: the order that was quicker, or null
``{"do": "turn", "steps": 64}``                            ``draw_us``, ``update_us``: means over the steps
``{"do": "open", "pipeline": "grain", "folder": "data",     of a pipeline: ``ahead``, ``versions``, and what it tells
"data": "images", "batch": 256, "seed": 0, "cores": 1}``   of itself; a batch of it was checked
``{"do": "take", "steps": 64, "lead": 8}``                 ``us``, for all the steps, and ``samples``; with no lead-in
                                                           the beginning of the iterator is in it
``{"do": "count", "steps": 64, "switch": "switch.so"}``    under callgrind: nothing but ``{}``; it has written
                                                           what the steps took (see ``benchmarks/instructions.py``)
=========================================================  ==================================================

A request that fails is answered by ``error`` with the reason. The program ends where its input does, and so
with the program that started it. What the peer prints goes to stderr, since stdout carries the answers.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pipeline_data
from benchmarks.peers.pipelines import PIPELINES, Pipeline
from benchmarks.peers.systems import BELOW_ONE, PEERS

ROWS = 64  # batches of losses made beforehand
ORDERS = ("ascending", "unordered")
LEAST_MEASURED = 1_000_000  # samples; below, what a process grows by says little about them
PARENT_ENDS = 1  # PR_SET_PDEATHSIG
FIRST = 8  # samples of a store made to be thrown away
TRIAL_STEPS, TRIALS = 16, 7  # to find the order of uniforms a tree is quicker with


class Worker:
    """Holds one store, and the two verbs for the batch size of the moment."""

    def __init__(self) -> None:
        self._store: Any = None
        self._order = ORDERS[0]
        self._draw: Any = None
        self._update: Any = None
        self._data: pipeline_data.Data | None = None
        self._pipeline: Pipeline | None = None

    def build(self, system: str, priorities: str) -> dict[str, Any]:
        """Make the store; the one before is let go first."""
        self._forget()
        PEERS[system](np.ones(FIRST)).close()  # imports and compiles, which is no part of building
        values = np.load(priorities, mmap_mode="r")
        before, start = anonymous_bytes(), time.perf_counter()
        self._store = PEERS[system](values)
        seconds = time.perf_counter() - start
        return {
            "build_s": round(seconds, 4),
            "bytes_per_sample": self._bytes_per_sample(values.size, before),
            "versions": {name: metadata.version(name) for name in self._store.packages},
        }

    def batch(self, batch: int, seed: int) -> dict[str, Any]:
        """Prepare for one batch size. A raw tree gets its uniforms in the order it is quicker with."""
        self._generator = np.random.default_rng([seed, batch])
        losses = self._generator.standard_exponential((ROWS, batch), np.float32) + np.finfo(np.float32).tiny
        self._steps = np.arange(batch)
        self._draw, self._update = self._store.batch(losses)
        if not self._store.raw:
            return {"uniforms": None}
        self._order = self._quicker()
        return {"uniforms": self._order}

    def turn(self, steps: int) -> dict[str, float]:
        """Do some steps; the mean µs of a draw and of an update."""
        draw, update, clock = self._draw, self._update, time.perf_counter_ns
        drawing = updating = 0
        gc.disable()
        for _ in range(steps):
            given = self._given()
            start = clock()
            drawn = draw(given)
            between = clock()
            update(drawn)
            end = clock()
            drawing += between - start
            updating += end - between
        gc.enable()
        return {"draw_us": drawing / steps / 1e3, "update_us": updating / steps / 1e3}

    def open(self, pipeline: str, folder: str, data: str, batch: int, seed: int, cores: int) -> dict[str, Any]:
        """Make an input pipeline, the one before let go, and look at a batch of it."""
        self._pipeline = None
        if self._data is None or (self._data.name, str(self._data.folder)) != (data, folder):
            self._data = pipeline_data.load(Path(folder), data)
        self._pipeline = PIPELINES[pipeline](self._data, batch, seed, cores)
        x, y = next(self._pipeline.begin())
        pipeline_data.check_batch(self._data, x, y)
        versions = {name: metadata.version(name) for name in self._pipeline.packages}
        return {"ahead": self._pipeline.ahead, "versions": versions, **self._pipeline.told}

    def take(self, steps: int, lead: int) -> dict[str, Any]:
        """Begin an iterator, take some batches untimed, and then time ``steps`` of them."""
        assert self._pipeline is not None
        samples, clock = 0, time.perf_counter_ns
        start = clock()
        batches = self._pipeline.begin()
        for _ in range(lead):
            next(batches)
        if lead:
            start = clock()
        for _ in range(steps):
            samples += len(next(batches)[1])
        return {"us": (clock() - start) / 1e3, "samples": samples}

    def _given(self) -> Any:
        """New uniforms for a raw tree, one in each of B equal parts: no store can learn them by heart."""
        if not self._store.raw:
            return None
        uniforms = np.minimum((self._steps + self._generator.random(self._steps.size)) / self._steps.size, BELOW_ONE)
        return self._store.given(uniforms if self._order == ORDERS[0] else self._generator.permutation(uniforms))

    def count(self, steps: int, switch: str) -> dict[str, Any]:
        """Let callgrind count K steps, 2K steps, and what is made ready for K and 2K, each into a file of its own."""
        counting = ctypes.CDLL(switch)
        counting.start()
        self.turn(steps)  # translated by valgrind, and in its caches
        self._make_ready(steps)
        for action in (self.turn, self._make_ready):
            for times in (1, 2):
                counting.zero()
                action(times * steps)
                counting.dump()
        counting.stop()
        return {}

    def _make_ready(self, steps: int) -> None:
        """What a step does outside the clock."""
        for _ in range(steps):
            self._given()

    def _quicker(self) -> str:
        """In turn, a few times; the order whose quickest turn is the quicker."""
        seconds: dict[str, float] = {}
        for trial in range(TRIALS + 1):
            for self._order in ORDERS:
                took = sum(self.turn(TRIAL_STEPS).values())
                if trial:  # the first compiles
                    seconds[self._order] = min(took, seconds.get(self._order, took))
        return min(seconds, key=lambda order: seconds[order])

    def _bytes_per_sample(self, size: int, before: int | None) -> float | None:
        held = self._store.nbytes()
        after = anonymous_bytes()
        if not held and (size < LEAST_MEASURED or before is None or after is None):
            return None
        return round((held or (after or 0) - (before or 0)) / size, 2)

    def _forget(self) -> None:
        if self._store is not None:
            self._store.close()
        self._store = self._draw = self._update = None
        gc.collect()


def anonymous_bytes() -> int | None:
    """What this process holds in memory, files left out; None where the system does not tell."""
    try:
        with open("/proc/self/status") as status:
            told = dict(line.split(":", 1) for line in status if ":" in line)
        return int(told["RssAnon"].split()[0]) * 1024
    except (OSError, KeyError):
        return None


def answer(worker: Worker, line: str) -> dict[str, Any]:
    """Do what one line asks."""
    try:
        asked = json.loads(line)
        done: dict[str, Any] = getattr(worker, asked.pop("do"))(**asked)
        return done
    except BaseException as error:  # whatever a peer raises, its reason is told and no figure given
        return {"error": f"{type(error).__name__}: {error}".strip().splitlines()[0]}


def main() -> None:
    """Answer until the input ends."""
    if sys.platform == "linux":  # a turn that never ends would not see the end of the input
        ctypes.CDLL(None).prctl(PARENT_ENDS, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        answers.write(json.dumps(answer(worker, line)) + "\n")
        answers.flush()
    os._exit(0)  # threads of a peer may go on for ever


if __name__ == "__main__":
    main()
