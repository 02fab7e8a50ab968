"""Whether scorers pay: trainings with and without them, on the same cores.

    python -m benchmarks.scorers                 # twenty minutes: a table, and JSON lines in benchmarks/results
    python -m benchmarks.scorers --report        # the table again, from the results on disk
    python -m benchmarks.scorers --seeds 1 --tasks checker --output mine.jsonl

Three ways, in turn, with the same seed, options and number of steps:

- ``alone``: the trainer has all the cores, and draws from a sampler of its own;
- ``refresh``: the same, and looks by itself at the stalest samples (``--refresh``), for each it trains on .3 more;
- ``scorers``: one core is a scorer's (``--scorers 1``), the trainer has the rest, and draws from a store on Ray.

None has a gate. Told are the seconds of training, how old what is known of a sample is at the end, in draws, and the
test loss: after the same steps, and after the same seconds, those of the quicker of the two.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from benchmarks import measuring
from benchmarks.pipeline_children import Child
from benchmarks.progress import things
from benchmarks.sampler_throughput import write

Row = dict[str, Any]
WAYS: dict[str, Row] = {"alone": {}, "refresh": {"refresh": 0.3}, "scorers": {"scorers": 1}}
POINTS = 20  # of a curve


class Task(NamedTuple):
    """A training: the options of ``train.py``."""

    dataset: str
    model: str
    steps: int
    batch_size: int = 32
    learning_rate: float = 0.003


TASKS = {
    "checker": Task("checker", "mlp", 4_000),
    "countries": Task("countries", "mlp", 1_500, batch_size=512, learning_rate=0.01),
    "digits-longtail": Task("digits-longtail", "cnn", 600, batch_size=128, learning_rate=0.001),
}


@dataclass(frozen=True)
class Options:
    """Train with scorers and without, on the same cores."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Of the tasks, by name."""
    seeds: int = 3
    """Trainings of each task in each way."""
    output: Path = Path("benchmarks/results/scorers.jsonl")
    """Where the JSON lines go; an older file is replaced."""
    report: bool = False
    """Train nothing, and print the table of what is on disk."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown or not self.tasks or self.seeds < 1:
            raise ValueError(
                f"tasks must be of {', '.join(TASKS)}, and seeds at least 1; got {self.tasks}, {self.seeds}"
            )


def measure(options: Options) -> list[Row]:
    """A row for each training."""
    machine, rows = measuring.machine(None), []
    jobs = [(task, seed, way) for task in options.tasks for seed in range(options.seeds) for way in WAYS]
    with things(len(jobs)) as begin:
        for task, seed, way in jobs:
            begin(f"{task}, seed {seed}, {way}")
            with Child(["benchmarks.scorers_worker", json.dumps(training(TASKS[task], seed, way))]) as child:
                (told,) = child.lines()
            rows.append({"task": task, "seed": seed, "way": way, **told, "machine": machine})
    return rows


def training(task: Task, seed: int, way: str) -> Row:
    """The options of ``train.py``."""
    return {
        "dataset": task.dataset,
        "model": task.model,
        "batch_size": task.batch_size,
        "learning_rate": task.learning_rate,
        "budget": f"{task.steps}steps",
        "evaluate_every": task.steps // POINTS,
        "gate": "none",
        "seed": seed,
        **WAYS[way],
    }


# --- what is printed --------------------------------------------------------------------------


def loss_at(row: Row, seconds: float) -> float:
    """The test loss after so many seconds: that of the last point of the curve until then, or of the first."""
    times, losses = np.array(row["curve"]).T
    return float(losses[max(0, int(np.searchsorted(times, seconds, side="right")) - 1)])


def at_equal_seconds(row: Row, other: Row) -> float:
    """The test loss over that of another training, after the seconds of the quicker one."""
    seconds = min(row["curve"][-1][0], other["curve"][-1][0])
    return loss_at(row, seconds) / loss_at(other, seconds)


def report(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table: medians over the seeds, and the range of the ratios."""
    lines = [
        "| task | N | way | ms a step | age of what is known, draws | test loss over alone's, same steps "
        "| same seconds | scored a second |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        alone = {row["seed"]: row for row in of_task if row["way"] == "alone"}
        for way in WAYS:
            of_way = [row for row in of_task if row["way"] == way]
            pairs = [(row, alone[row["seed"]]) for row in of_way]
            step = np.median(
                [1e3 * (row["seconds"] - row["first_step_seconds"]) / (row["steps"] - 1) for row in of_way]
            )
            age = np.median([row["mean_age"] for row in of_way])
            scored = [row["scorers"]["scored_per_second"] for row in of_way if row["scorers"]]
            lines.append(
                f"| {task} | {of_way[0]['num_samples']:,} | {way} | {step:.2f} | {age:,.0f} "
                f"| {spread([row['test_loss'] / other['test_loss'] for row, other in pairs])} "
                f"| {spread([at_equal_seconds(*pair) for pair in pairs])} "
                f"| {f'{np.median(scored):,.0f}' if scored else ''} |"
            )
    return "\n".join(lines)


def spread(ratios: Sequence[float]) -> str:
    """The median, and the range."""
    return f"{np.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write, print; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.scorers")
    if options.report:
        rows = [json.loads(line) for line in options.output.read_text().splitlines()]
    else:
        rows = measure(options)
        write(rows, options.output)
    print(report(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
