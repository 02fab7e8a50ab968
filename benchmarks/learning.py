"""Does it pay? Every method on every task, at its own best learning rate, every budget a run of its own.

    python -m benchmarks.learning                               # 80 minutes on two cores
    python -m benchmarks.learning --tasks checker,peaks --methods uniform,importance --seeds 3
    python -m benchmarks.learning --quick                       # to see that it works; its figures mean nothing
    python -m benchmarks.learning --report                      # the tables and the pictures again

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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks import learning_curves, learning_plot, learning_report
from benchmarks.learning_study import Job, Row, Study
from benchmarks.learning_tasks import ALL, TASKS
from benchmarks.measuring import aside
from pipeline.progress import counting

RESULTS = Path(__file__).parent / "results" / "learning.jsonl"


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
    study = study_of(options, read(path))
    if not options.report:
        _run_missing(study, options, path, make_worker)
    return f"{learning_report.report(study)}\n\n{_drawn(study, path.with_suffix('.png'))}"


def study_of(options: Options, rows: Sequence[Row] = ()) -> Study:
    """What is to be run, and the ``rows`` of what was; ``ValueError`` for a name that is none."""
    counts = {"seeds": options.seeds, "grid_seeds": options.grid_seeds}
    return Study.of(options.tasks, options.methods, **counts, quick=options.quick, rows=rows)


def _drawn(study: Study, picture: Path) -> str:
    """Draw the picture of all tasks, and those of one each; what to say of them."""
    try:
        learning_plot.draw(study, picture)
        drawn = [picture, *learning_curves.curves(study, picture)]
    except ImportError as error:
        return f"Not plotted ({error}; the extra plots has it)."
    return f"Pictures: {', '.join(path.name for path in drawn)}."


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
