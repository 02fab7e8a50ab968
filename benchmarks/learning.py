"""Does it pay? Every method on every task, at its own best learning rate, every budget a run of its own.

    python -m benchmarks.learning                               # 80 minutes on two cores
    python -m benchmarks.learning --tasks checker,peaks --methods uniform,importance --seeds 3
    python -m benchmarks.learning --quick                       # to see that it works; its figures mean nothing
    python -m benchmarks.learning --report                      # the tables and the picture again

1. *Learning rates*: each method with each rate of the task's grid, on seeds that are used for nothing else; the rate
   with the least mean test loss is the method's own. Where fewer steps are tried, the grid is run at half of the
   budget, too, and what is best there goes for all of them: the fewer steps, the higher the best rate.
2. *Equal steps*: all methods, on all seeds, for the whole budget, in turn within a seed.
3. *Steps to uniform's final test loss*: for the methods that got below it, the fraction of the budget that is enough is
   looked for by bisection. Each fraction is a run of its own, with the learning rate decayed to its own end, on all
   seeds; that a point of a longer run's curve lies below counts for nothing.

Rows are appended to a file of JSON lines as they come. A run that is in the file is not run again, so what was
broken off goes on where it was.

Two worker processes train side by side, each pinned to a core and with one thread for TensorFlow's kernels: that is a
slower machine than two cores together, but the same one for every method.
"""

from __future__ import annotations

import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from benchmarks import learning_report
from benchmarks.learning_tasks import ALL, BISECTED, FIRST, FRACTIONS, GRID_SEED, TASKS, Task
from benchmarks.measuring import aside
from pipeline.progress import counting

RESULTS = Path(__file__).parent / "results" / "learning.jsonl"
QUICK = 40  # so many times fewer steps
HALF = 0.5  # of the budget, at which learning rates are tried for all that is less than the whole

Job = dict[str, Any]
Row = dict[str, Any]
KEY = ("task", "method", "learning_rate", "seed", "steps")


@dataclass(frozen=True)
class Options:
    """Train every method on every task, and report what it was worth."""

    tasks: str = ",".join(TASKS)
    """Which tasks."""
    methods: str = ",".join(ALL)
    """Which methods; uniform is always among them."""
    seeds: int = 5
    """Of every run that is reported."""
    grid_seeds: int = 1
    """Of the runs that choose the learning rate."""
    minutes: float = 100.0
    """After them no run begins; the next call goes on."""
    workers: int = 2
    """Processes, each on a core of its own."""
    quick: bool = False
    """A fortieth of the steps and two seeds, into a file of its own."""
    report: bool = False
    """Train nothing."""
    results: Path = RESULTS
    """The file of the rows."""


@dataclass(frozen=True)
class Study:
    """What is to be run, and what was."""

    tasks: dict[str, Task]
    methods: tuple[str, ...]
    seeds: int
    grid_seeds: int
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def of(cls, options: Options, rows: Iterable[Row] = ()) -> Study:
        """``ValueError`` for a name that is none."""
        tasks = {name: TASKS[name] for name in _names("task", options.tasks, TASKS)}
        methods = _names("method", options.methods, ALL)
        if options.quick:
            tasks = {name: task._replace(steps=max(20, task.steps // QUICK)) for name, task in tasks.items()}
        seeds = min(options.seeds, 2) if options.quick else options.seeds
        return cls(tasks, tuple(dict.fromkeys((FIRST, *methods))), seeds, options.grid_seeds, list(rows))

    def methods_on(self, task: str) -> list[str]:
        """The methods that are trained on a task."""
        return [name for name in self.methods if name in self.tasks[task].methods]

    def grid(self) -> list[Job]:
        """The runs that choose the learning rates."""
        return self._missing(
            _job(task, method, rate, seed, self.steps(task, fraction))
            for task in self.tasks
            for fraction in (1.0, HALF)
            for seed in self.seeds_of(task, grid=True)
            for rate in self.tasks[task].rates
            for method in self.methods_on(task)
            if fraction == 1.0 or self.is_bisected(task, method)
        )

    def full(self) -> list[Job]:
        """The runs of the whole budget."""
        return self._missing(
            _job(task, method, self.rate(task, method), seed, self.tasks[task].steps)
            for task in self.tasks
            for seed in self.seeds_of(task)
            for method in self.methods_on(task)
        )

    def budgets(self) -> list[Job]:
        """The next runs of the bisections: none when all have ended."""
        wanted = [
            (task, method, fraction)
            for task in self.tasks
            for method in self.methods_on(task)
            if self.is_bisected(task, method)
            for fraction in [self.bracket(task, method)[2]]
            if fraction is not None
        ]
        return self._missing(
            _job(task, method, self.rate(task, method, self.steps(task, fraction)), seed, self.steps(task, fraction))
            for task, method, fraction in wanted
            for seed in self.seeds_of(task)
        )

    def is_bisected(self, task: str, method: str) -> bool:
        """Whether the steps to the target are looked for: of uniform draws where the target is not their own end."""
        found = self.tasks[task]
        return found.goal is not None and (method in BISECTED or (method == FIRST and found.target is not None))

    def seeds_of(self, task: str, grid: bool = False) -> range:
        """The seeds of the runs that are reported, or of those that choose the learning rate."""
        if not grid:
            return range(self.seeds)
        return range(GRID_SEED, GRID_SEED + max(self.grid_seeds, self.tasks[task].grid_seeds))

    def steps(self, task: str, fraction: float) -> int:
        """A fraction of the whole budget."""
        return round(fraction * self.tasks[task].steps)

    def rate(self, task: str, method: str, steps: int | None = None) -> float:
        """The method's own learning rate: that of the least mean test loss; a run that diverged has an infinite one.

        For the whole budget, or for ``steps`` fewer than that: then that of half of the budget.
        """
        whole = self.tasks[task].steps
        tried = whole if steps in (None, whole) else self.steps(task, HALF)

        def mean(rate: float) -> float:
            losses = [row["test_loss"] for row in self.found(task, method, tried, rate, grid=True)]
            return (
                sum(loss if math.isfinite(loss) else math.inf for loss in losses) / len(losses) if losses else math.inf
            )

        return min(self.tasks[task].rates, key=mean)

    def found(self, task: str, method: str, steps: int, rate: float | None = None, grid: bool = False) -> list[Row]:
        """The rows of a method at one budget, by seed; at its own learning rate unless told otherwise."""
        rate = self.rate(task, method, steps) if rate is None else rate
        seeds = self.seeds_of(task, grid)
        kept = [
            row
            for row in self.rows
            if (row["task"], row["method"], row["steps"], row["learning_rate"]) == (task, method, steps, rate)
            and row["seed"] in seeds
        ]
        return sorted(kept, key=lambda row: row["seed"])

    def excess(self, task: str, method: str, fraction: float) -> float | None:
        """Mean logarithm of the test loss over the target's: at most 0 where it is reached; None where runs miss.

        The target is uniform's final test loss, seed by seed, or the task's own.
        """
        ours = self.found(task, method, self.steps(task, fraction))
        theirs = self.found(task, FIRST, self.tasks[task].steps)
        if len(ours) < self.seeds or len(theirs) < self.seeds:
            return None
        targets = [self.tasks[task].target or row["test_loss"] for row in theirs]
        return sum(log_ratio(row["test_loss"], target) for row, target in zip(ours, targets, strict=True)) / self.seeds

    def bracket(self, task: str, method: str) -> tuple[float, float, float | None]:
        """``(not enough, enough, next)`` fractions of the budget; 0 and infinity where none is known to be.

        ``next`` is None where the two are neighbours, or the whole budget is not enough.
        """
        whole = self.excess(task, method, 1.0)
        if whole is None:
            return 0.0, math.inf, None
        if whole > 0.0:
            return 1.0, math.inf, None
        grid = (0.0, *FRACTIONS, 1.0)
        low, high = 0, len(grid) - 1  # never enough, and known to be
        while high - low > 1:
            middle = (low + high) // 2
            excess = self.excess(task, method, grid[middle])
            if excess is None:
                return grid[low], grid[high], grid[middle]
            low, high = (middle, high) if excess > 0.0 else (low, middle)
        return grid[low], grid[high], None

    def _missing(self, jobs: Iterable[Job]) -> list[Job]:
        known = {_key(row) for row in self.rows}
        return [job for job in jobs if _key(job) not in known]


def log_ratio(loss: float, target: float) -> float:
    """The logarithm of a loss over a target: infinite where it is not finite, unless the target is not, either."""
    if not math.isfinite(loss):
        return math.inf
    return -math.inf if not math.isfinite(target) else math.log(max(loss, 1e-30) / max(target, 1e-30))


def _job(task: str, method: str, rate: float, seed: int, steps: int) -> Job:
    return dict(zip(KEY, (task, method, rate, seed, steps), strict=True))


def _key(job: Job) -> tuple[Any, ...]:
    return tuple(job[name] for name in KEY)


def _names(what: str, text: str, known: Iterable[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; there are: {', '.join(known)}")
    return names


# --- running --------------------------------------------------------------------------------------


class Worker:
    """A process that trains, pinned to a core."""

    def __init__(self, core: int) -> None:
        command = [sys.executable, "-m", "benchmarks.learning_worker", str(core)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, job: Job) -> Row:
        """The row of a job; ``RuntimeError`` where the process has died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker died of {job}; what it said stands above")
        return dict(json.loads(line))

    def close(self) -> None:
        """Let the process end."""
        self.process.communicate()


def run_all(
    study: Study,
    what: str,
    jobs: Sequence[Job],
    workers: queue.SimpleQueue[Any],
    count: int,
    deadline: float,
    path: Path,
) -> bool:
    """Run the jobs in their order, as many at a time as there are workers; False where time was up."""
    lock, failed, done, in_time = threading.Lock(), threading.Event(), 0.0, True

    def one(job: Job) -> None:
        nonlocal done, in_time
        if failed.is_set() or time.monotonic() > deadline:
            in_time = False
            return
        worker = workers.get()
        try:
            row = worker.run(job)
        except BaseException:
            failed.set()  # the other workers end what they are at, and no more is begun
            raise
        finally:
            workers.put(worker)
        with lock:
            study.rows.append(row)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            done += cost(job)
            tell(int(done))

    with (
        counting(what, math.ceil(sum(map(cost, jobs))), unit="core seconds") as tell,
        ThreadPoolExecutor(count) as pool,
    ):
        list(pool.map(one, jobs))
    return in_time


def cost(job: Job) -> float:
    """About how many seconds of a core a run takes: its steps, compiling and evaluating."""
    return job["steps"] * TASKS[job["task"]].milliseconds / 1e3 + 3.0


def read(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main(options: Options, make_worker: Callable[[int], Any] = Worker) -> str:
    """Run what is missing, and give the report."""
    path = aside(options.results, RESULTS) if options.quick else options.results
    study = Study.of(options, read(path))
    if not options.report:
        _run_missing(study, options, path, make_worker)
    return learning_report.report(study, path)


def _run_missing(study: Study, options: Options, path: Path, make_worker: Callable[[int], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60.0 * options.minutes
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    started = [make_worker(core) for core, _ in zip(cores, range(options.workers), strict=False)]
    workers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for worker in started:
        workers.put(worker)
    try:
        for what, jobs_of in (("learning rates", study.grid), ("equal steps", study.full), ("budgets", study.budgets)):
            while jobs := jobs_of():
                if not run_all(study, what, jobs, workers, len(started), deadline, path):
                    print(f"{options.minutes:g} minutes are over; run it again to go on", file=sys.stderr)
                    return
    finally:
        for worker in started:
            worker.close()


if __name__ == "__main__":
    print(main(tyro.cli(Options)))
