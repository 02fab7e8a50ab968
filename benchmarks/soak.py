"""Whether a training of a million steps holds on to anything: resident memory, threads and open files on the way.

    python -m benchmarks.soak                                   # a table, JSON lines and a picture: about an hour
    python -m benchmarks.soak --quick                           # in two minutes: few steps, so the slopes say little
    python -m benchmarks.soak --modes fit --samplings importance --steps 1000000 --output mine.jsonl

Four trainings one after the other, each in a process of its own (:mod:`benchmarks.soak_worker`): by ``fit`` with
``LossFeedback`` and by a loop of one's own with ``sampler.update``, both under a lag; and, fewer steps, the same
without this project, to tell what TensorFlow and Keras keep by themselves.

A slope is that of resident memory after a warm-up, by least squares and by Theil and Sen (the median of the slopes
between all pairs of looks, which a single jump does not move), in MB (10^6 bytes) an hour and in bytes a step. The
*bar* is 1 MB an hour by both, for the trainings of this project.

A line of the output is a look at the process, or of kind ``slope`` what they come to, as soon as it is there:

================================  =================================================================================
field                             meaning
================================  =================================================================================
``mode``, ``sampling``            ``fit`` or ``loop``; ``importance``, or ``none`` for ``shuffle().batch()``
``step``, ``seconds``             how many steps were done, and the time since the first
``rss_bytes``, ``shared_bytes``   resident memory, and what of it is files
``threads``, ``files``            of the process; files are open ones
``mb_an_hour``, ``bytes_a_step``  of kind ``slope``: by ``least_squares`` and by ``theil_sen``
``threads``, ``files``            of kind ``slope``: the least and the most after the warm-up
``steps``, ``ms_a_step``          of kind ``slope``: all, and the mean time of one
``warm_up``, ``looks``            of kind ``slope``: the part of the steps left out, and how many looks remain
``bar``, ``met``                  of kind ``slope`` with ``importance``: MB an hour, and whether both are below it
``skipped``                       of kind ``slope``: why there is none
================================  =================================================================================
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tyro

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its messages would stand in the middle of the progress

from benchmarks import measuring
from benchmarks.drawing import plotted
from benchmarks.measuring import Lost
from benchmarks.pipeline_children import Child
from benchmarks.progress import Advance, parts
from benchmarks.soak_worker import Row, Task

BAR = 1.0  # MB an hour
HOUR, MEGABYTE = 3600.0, 1e6
QUICK_STEPS, QUICK_LOOKS = 20_000, 40
FEWEST = 10  # looks that a slope is taken over


@dataclass(frozen=True)
class Options:
    """Train for a very long time, and look at what the process takes."""

    modes: tuple[Literal["fit", "loop"], ...] = ("fit", "loop")
    """By Keras's ``fit``, by a loop of one's own, or both."""
    samplings: tuple[Literal["importance", "none"], ...] = ("importance", "none")
    """With this project, without it, or both."""
    steps: int = 1_000_000
    """Steps of each training, rounded up to whole epochs."""
    control_steps: int = 250_000
    """The same without this project, if it is fewer."""
    looks: int = 500
    """How often each process is looked at."""
    warm_up: float = 0.2
    """The part of the steps that the slope leaves out."""
    num_samples: int = 128_000
    """N."""
    batch: int = 64
    """B."""
    quick: bool = False
    """At most 20,000 steps and 40 looks."""
    seed: int = 0
    """Of the data, the weights and the draws."""
    output: Path = Path("benchmarks/results/soak.jsonl")
    """Where the JSON lines go; an older file is replaced."""

    def __post_init__(self) -> None:
        if not self.modes or not self.samplings:
            raise ValueError("modes and samplings must name one at least")
        counts = {name: getattr(self, name) for name in ("steps", "control_steps", "num_samples", "batch")}
        if min(counts.values()) < 1:
            raise ValueError(f"{', '.join(counts)} must be at least 1, got {list(counts.values())}")
        if self.looks < 2 * FEWEST or not 0.0 <= self.warm_up <= 0.5:
            raise ValueError(
                f"looks must be at least {2 * FEWEST} and warm_up in [0, 0.5], got {self.looks} and {self.warm_up}"
            )

    def shortened(self) -> Options:
        """These options, cut down where ``quick`` asks for it."""
        if not self.quick:
            return self
        return replace(
            self,
            output=measuring.aside(self.output, Options.output),
            steps=min(self.steps, QUICK_STEPS),
            looks=min(self.looks, QUICK_LOOKS),
        )


# --- measuring --------------------------------------------------------------------------------


def tasks(options: Options) -> list[Task]:
    """The trainings, this project's first."""
    made = []
    for sampling, mode in itertools.product(options.samplings, options.modes):
        steps = options.steps if sampling == "importance" else min(options.steps, options.control_steps)
        every = max(1, steps // options.looks)
        made.append(Task(mode, sampling, steps, every, options.num_samples, options.batch, options.seed))
    return made


def measure(task: Task, warm_up: float, advance: Advance = lambda what, part: None) -> Iterator[Row]:
    """Looks at one training as they come, and then the slope."""
    rows: list[Row] = []
    name, done = f"{task.mode}, {task.sampling}", 0
    advance(name, 0.0)
    try:
        with Child(["benchmarks.soak_worker", json.dumps(asdict(task))]) as child:
            for told in child.lines():
                rows.append(told["row"])
                tenths = 10 * rows[-1]["step"] // (task.epoch * task.epochs)
                advance(f"{name}, {tenths}0 % done" if tenths else name, rows[-1]["step"] - done)
                done = rows[-1]["step"]
                yield rows[-1]
        yield conclusion(task, rows, warm_up)
    except Lost as lost:
        yield {**about(task), "skipped": str(lost), "machine": measuring.machine(None)}


def about(task: Task) -> Row:
    """What a slope is of."""
    return {
        "kind": "slope",
        "mode": task.mode,
        "sampling": task.sampling,
        "num_samples": task.num_samples,
        "batch_size": task.batch,
    }


def conclusion(task: Task, rows: Sequence[Row], warm_up: float) -> Row:
    """What the looks come to."""
    after = warm(rows, warm_up)
    if len(after) < FEWEST:
        raise Lost(f"{len(after)} looks after the warm-up are too few")
    row = {
        **about(task),
        "steps": rows[-1]["step"],
        "seconds": rows[-1]["seconds"],
        "ms_a_step": round(1e3 * rows[-1]["seconds"] / max(1, rows[-1]["step"] - 1), 4),
        "warm_up": warm_up,
        "looks": len(after),
        "mb_an_hour": {name: round(slope * HOUR / MEGABYTE, 4) for name, slope in slopes(after, "seconds").items()},
        "bytes_a_step": {name: round(slope, 4) for name, slope in slopes(after, "step").items()},
        "threads": extremes(after, "threads"),
        "files": extremes(after, "files"),
    }
    if task.sampling == "importance":
        row |= {"bar": BAR, "met": max(row["mb_an_hour"].values()) < BAR}
    return {**row, "machine": measuring.machine(None)}


def warm(rows: Sequence[Row], warm_up: float) -> list[Row]:
    """The looks after the first part of the steps."""
    return [row for row in rows if row["step"] > warm_up * rows[-1]["step"]]


def slopes(rows: Sequence[Row], over: str) -> dict[str, float]:
    """Bytes of resident memory a unit of the field ``over``, two ways."""
    across, up = column(rows, over), column(rows, "rss_bytes")
    return {"least_squares": float(np.polyfit(across, up, 1)[0]), "theil_sen": theil_sen(across, up)}


def theil_sen(across: npt.NDArray[np.float64], up: npt.NDArray[np.float64]) -> float:
    """The median of the slopes between all pairs of points."""
    first, second = np.triu_indices(across.size, 1)
    apart = across[second] - across[first]
    return float(np.median((up[second] - up[first])[apart > 0.0] / apart[apart > 0.0]))


def extremes(rows: Sequence[Row], name: str) -> list[int]:
    """The least and the most."""
    values = [row[name] for row in rows]
    return [min(values), max(values)]


def column(rows: Iterable[Row], name: str) -> npt.NDArray[np.float64]:
    """A field of all rows."""
    return np.array([row[name] for row in rows], np.float64)


# --- telling ----------------------------------------------------------------------------------


def table(rows: Iterable[Row]) -> str:
    """The slopes, a line each, in Markdown."""
    lines = [
        "| training | steps | ms a step | MB an hour: least squares | Theil-Sen | bytes a step | threads | files |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if row.get("kind") != "slope":
            continue
        name = f"{row['mode']}, {row['sampling']}"
        if "skipped" in row:
            lines.append(f"| {name} | skipped: {row['skipped']} |" + " |" * 6)
            continue
        hour, step = row["mb_an_hour"], row["bytes_a_step"]
        cells: list[Any] = [
            name,
            f"{row['steps']:,}",
            f"{row['ms_a_step']:.2f}",
            f"{hour['least_squares']:.2f}",
            f"{hour['theil_sen']:.2f}" + {True: " ✓", False: " ✗", None: ""}[row.get("met")],
            f"{step['least_squares']:.3g} / {step['theil_sen']:.3g}",
            *("-".join(map(str, sorted(set(row[kind])))) for kind in ("threads", "files")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write, print; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.soak").shortened()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    todo = tasks(options)
    with parts(sum(task.epoch * task.epochs for task in todo)) as advance, options.output.open("w") as output:
        for task in todo:
            for row in measure(task, options.warm_up, advance):
                rows.append(row)
                print(json.dumps(row), file=output, flush=True)
    print(table(rows))
    picture = plotted("benchmarks.soak_plot", rows, options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output}{picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
