"""Measure systems in turn, on one core, so that their ratios hold even where the machine is noisy.

    contestants = {"a": InProcess(a, losses), "b": InProcess(b, losses)}
    with one_core():
        steps = {name: warm_up(each, seconds=0.05) for name, each in contestants.items()}
        times, lost = take_rounds(contestants, steps, rounds=21, generator=rng)
    times["a"].draw, times["a"].update           # (21,) µs each
    quartiles(times["a"].draw)                   # (median, lower, upper)

A shared machine changes its speed by the minute. Therefore nothing is measured on its own and
compared later: in each *round* every contestant has one *turn* of some steps, in an order shuffled
anew, and a slow minute slows all of them. A round gives one figure a contestant, the mean over the
steps of its turn; what is reported is the median over the rounds and the quartiles beside it. A
ratio is taken within each round, before the median.

A *contestant* is anything with ``turn``. ``InProcess`` makes one of a system in this process; one
that lives in another process only has to answer the same call, as those of
:mod:`benchmarks.peers.remote` do. One that can go on no longer raises ``Lost``; the others then
go on without it.
"""

from __future__ import annotations

import gc
import itertools
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.systems import Float32s, System

MOST_STEPS = 4096  # in a turn; more only lengthens the time between two turns
WARMING = 8  # steps before anything is estimated
LEAD_IN = 4  # a turn begins with untimed steps, one for every so many timed ones


class Lost(Exception):
    """A contestant cannot go on; the message says why."""


class Contestant(Protocol):
    """Whatever can be measured."""

    def turn(self, steps: int) -> tuple[float, float]:
        """Do ``steps`` steps; the mean µs of a draw and of an update."""
        ...


class InProcess:
    """A system in this process, fed with losses made beforehand, over and over again."""

    def __init__(self, system: System, losses: Iterable[Float32s]) -> None:
        self._system = system
        self._losses = itertools.cycle(losses)

    def turn(self, steps: int) -> tuple[float, float]:
        """Do ``steps`` steps; the mean µs of a draw and of an update."""
        ready, draw, update = self._system.ready, self._system.draw, self._system.update
        clock = time.perf_counter_ns
        drawing = updating = 0
        for losses in itertools.islice(self._losses, steps):
            ready()
            start = clock()
            drawn = draw()
            between = clock()
            update(drawn, losses)
            end = clock()
            drawing += between - start
            updating += end - between
        return drawing / steps / 1e3, updating / steps / 1e3


@dataclass(frozen=True)
class Times:
    """µs per batch, one figure a round: ``draw`` and ``update`` (rounds,); a step is their sum."""

    draw: npt.NDArray[np.float64]
    update: npt.NDArray[np.float64]
    steps: int  # in each turn

    @property
    def step(self) -> npt.NDArray[np.float64]:
        """Of the whole step."""
        return self.draw + self.update


def quartiles(times: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    lower, median, upper = np.quantile(times, [0.25, 0.5, 0.75])
    return float(median), float(lower), float(upper)


def warm_up(contestant: Contestant, seconds: float) -> int:
    """Compile and warm; returns the steps, a power of two, that a turn of about ``seconds`` holds.

    At least one, however slow: a slow system gets fewer steps a turn, never fewer turns.
    """
    contestant.turn(WARMING)  # code is compiled, memory touched, what waits under a lag is in flight
    steps = 1
    while steps < MOST_STEPS and 2 * _took(contestant, steps) <= seconds:
        steps *= 2
    return steps


def _took(contestant: Contestant, steps: int) -> float:
    """Seconds of a turn, the quicker of two: one may have been interrupted, or have compiled."""
    return min(sum(contestant.turn(steps)) for _ in range(2)) * steps * 1e-6


def take_rounds(
    contestants: Mapping[str, Contestant],
    steps: Mapping[str, int],
    *,
    rounds: int,
    generator: np.random.Generator,
    after_round: Callable[[], None] = lambda: None,
    lead_in: bool = True,
) -> tuple[dict[str, Times], dict[str, str]]:
    """Every contestant's turn, once a round, in an order shuffled anew for each round.

    Without ``lead_in`` no untimed steps go before a turn: for contestants that see to that themselves. Gives the times
    of those that did all rounds, and why the others were lost.
    """
    names = list(contestants)
    measured = {name: np.empty((2, rounds)) for name in names}
    lost: dict[str, str] = {}
    with _no_collection():
        for number in range(rounds):
            for name in generator.permutation(names):
                if name in lost:
                    continue
                try:
                    if lead_in:  # the contestant before has filled the caches with its own data
                        contestants[name].turn(-(-steps[name] // LEAD_IN))
                    measured[name][:, number] = contestants[name].turn(steps[name])
                except Lost as reason:
                    lost[str(name)] = f"in round {number + 1}: {reason}"
            after_round()
    times = {
        name: Times(draw=draw, update=update, steps=steps[name])
        for name, (draw, update) in measured.items()
        if name not in lost
    }
    return times, lost


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection in the middle of somebody's turn."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def one_core() -> Iterator[int | None]:
    """Keep this thread, and threads started from here on, on one core; gives its number.

    The last core allowed, since the first tends to serve the interrupts. None where the operating
    system has no such call.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    allowed = os.sched_getaffinity(0)
    core = max(allowed)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, allowed)


def machine(core: int | None) -> dict[str, Any]:
    """What the figures were measured on. ``load`` is the average of the minute before."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "core": core,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "clock_ns": _clock_cost(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("numpy", "numba", "tensorflow")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def aside(output: Path, default: Path) -> Path:
    """Where a quick run writes: not over the results of a whole one, unless it was told so."""
    return output.with_stem(f"{output.stem}-quick") if output == default else output


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _clock_cost() -> int:
    """What reading the clock takes, in ns: each draw and each update is longer by as much."""
    readings = [time.perf_counter_ns() for _ in range(1001)]
    return int(np.median(np.diff(readings)))
