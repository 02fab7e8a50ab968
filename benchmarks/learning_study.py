"""What ``benchmarks.learning`` is to run, and what of it was: learning rates, whole budgets, bisections.

    study = Study.of("checker,peaks", "uniform,importance", seeds=5, grid_seeds=1, rows=read(path))
    study.grid(), study.full(), study.budgets()             # the runs that are missing of each

A run is told by its ``KEY``, and a row is a run with what came of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.learning_tasks import ALL, BISECTED, FIRST, FRACTIONS, GRID_SEED, TASKS, Task

QUICK = 40  # so many times fewer steps
HALF = 0.5  # of the budget, at which learning rates are tried for all that is less than the whole

Job = dict[str, Any]
Row = dict[str, Any]
KEY = ("task", "method", "learning_rate", "seed", "steps")


@dataclass(frozen=True)
class Study:
    """What is to be run, and what was."""

    tasks: dict[str, Task]
    methods: tuple[str, ...]
    seeds: int
    grid_seeds: int
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def of(
        cls, tasks: str, methods: str, *, seeds: int, grid_seeds: int, quick: bool = False, rows: Iterable[Row] = ()
    ) -> Study:
        """Of names with commas between; ``ValueError`` for a name that is none."""
        chosen = {name: TASKS[name] for name in _names("task", tasks, TASKS)}
        if quick:
            chosen = {name: task._replace(steps=max(20, task.steps // QUICK)) for name, task in chosen.items()}
        names = tuple(dict.fromkeys((FIRST, *_names("method", methods, ALL))))
        return cls(chosen, names, min(seeds, 2) if quick else seeds, grid_seeds, list(rows))

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
