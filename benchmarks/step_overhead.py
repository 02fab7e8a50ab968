"""What importance sampling costs a training step: the feedback of the losses, and the loss of each sample.

    python -m benchmarks.step_overhead                   # a table, and JSON lines in benchmarks/results
    python -m benchmarks.step_overhead --quick           # in two or three minutes: few rounds
    python -m benchmarks.step_overhead --models mlp --parts fit --jit False --output mine.jsonl

**fit**: the same model, trained in turn with ``LossFeedback`` (``feedback``, with accuracy and without; ``score`` with
the norm of each sample's gradient too), on the same batches with plain sample weights and nothing fed back
(``weights``), and by ``fit(X, y)`` (``arrays``). A turn is an epoch of a ``fit`` that is held between its epochs
(:mod:`benchmarks.step_turns`), so nothing is traced again. **loss**: forward and backward of a compiled step, with the
loss of the batch, and with that of each sample and then their mean (:mod:`benchmarks.step_losses`). Systems are
measured in turn, as :mod:`benchmarks.measuring` says; each model, compiled by XLA (jitted) or not, in a process of its
own.

A line of the output is one system at one point:

=========================================  ========================================================================
field                                      meaning
=========================================  ========================================================================
``system``                                 what was measured (:mod:`benchmarks.step_names`)
``kind``                                   ``fit`` or ``loss``
``model``                                  the model; of kind ``loss`` the name of the loss
``jit``, ``cores``                         compiled by XLA or not; one core: and TensorFlow has one thread
``batch_size``, ``num_samples``            B, and N of kind ``fit``
``ms``, ``ms_quartiles``                   milliseconds a step, median over the rounds, and quartiles
``ms_rounds``                              in each round, so that any ratio can be taken inside the rounds
``over``, ``ratio``, ``ratio_quartiles``   over the system named, in the same round: median and quartiles
``over_arrays``                            of kind ``fit``: over ``arrays`` in the same round, median
``bar``, ``met``                           what ``ratio`` may be at most, where that was set, and whether it is
``repeats``, ``steps_per_repeat``          rounds, and the steps of each turn
``machine``                                processor, load, versions, date
``skipped``                                why there are no figures: the system cannot be measured
=========================================  ========================================================================
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its messages would stand in the middle of the progress

from benchmarks import measuring, step_report, step_worker
from benchmarks.measuring import Lost
from benchmarks.pipeline_children import Child, on_cores
from benchmarks.progress import Advance, parts
from benchmarks.sampler_throughput import warning, write
from benchmarks.step_names import LOSSES, MODELS, TINY
from benchmarks.step_worker import Row, Task

QUICK_ROUNDS, QUICK_SECONDS = 5, 0.1
LOSS_TURN = 0.1  # of an epoch's time that a turn of a loss takes
LOSS_PART = 0.1  # of the time of a training that the losses take at one point, roughly


@dataclass(frozen=True)
class Options:
    """Measure training steps in turn, with feedback and without."""

    parts: tuple[Literal["fit", "loss"], ...] = ("fit", "loss")
    """What to measure: the feedback in ``fit``, the loss of each sample, or both."""
    models: tuple[str, ...] = MODELS
    """Models that are trained; ``tiny`` is one more, for a trial."""
    losses: tuple[str, ...] = LOSSES
    """Losses whose gradients are taken."""
    batches: tuple[int, ...] = (32, 256, 1024)
    """Batch sizes B of the losses; each model has its own."""
    jit: tuple[bool, ...] = (False, True)
    """Without XLA, with it, or both."""
    cores: tuple[int, ...] = (2,)
    """Numbers of cores."""
    rounds: int = 21
    """How often each training has its turn."""
    loss_rounds: int = 81
    """How often each way to the loss has its turn."""
    seconds: float = 0.4
    """What an epoch, the turn of a training, takes, roughly; the turn of a loss takes a tenth."""
    quick: bool = False
    """At most 5 rounds of 0.1 seconds."""
    seed: int = 0
    """Of the data, the weights and the draws."""
    output: Path = Path("benchmarks/results/step_overhead.jsonl")
    """Where the JSON lines go; an older file is replaced."""

    def __post_init__(self) -> None:
        for name in ("batches", "cores"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"{name} must be whole numbers of at least 1, got {values}")
        for name, known in (("models", (*MODELS, TINY)), ("losses", LOSSES)):
            if not getattr(self, name) or set(getattr(self, name)) - set(known):
                raise ValueError(f"{name} must be some of {', '.join(known)}, got {getattr(self, name)}")
        for name in ("parts", "jit"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name one at least")
        if min(self.rounds, self.loss_rounds) < 1 or not self.seconds > 0.0:
            told = f"{self.rounds}, {self.loss_rounds}, {self.seconds}"
            raise ValueError(f"rounds and loss_rounds must be at least 1, seconds above 0, got {told}")

    def shortened(self) -> Options:
        """These options, cut down where ``quick`` asks for it."""
        if not self.quick:
            return self
        return replace(
            self,
            output=measuring.aside(self.output, Options.output),
            rounds=min(self.rounds, QUICK_ROUNDS),
            loss_rounds=min(self.loss_rounds, QUICK_ROUNDS),
            seconds=min(self.seconds, QUICK_SECONDS),
        )


# --- measuring --------------------------------------------------------------------------------


def tasks(options: Options) -> list[Task]:
    """What is measured, a process each."""
    made = []
    for cores in options.cores:
        if "fit" in options.parts:
            made += [
                Task("fit", cores, (jit,), options.rounds, options.seconds, options.seed, model=model)
                for model in options.models
                for jit in options.jit
            ]
        if "loss" in options.parts:
            task = Task("loss", cores, options.jit, options.loss_rounds, options.seconds * LOSS_TURN, options.seed)
            made.append(replace(task, losses=options.losses, batches=options.batches))
    return made


def measure(options: Options, advance: Advance = lambda what, part: None) -> list[Row]:
    """All rows."""
    return [row for task in tasks(options) for row in measure_task(task, advance)]


def measure_task(task: Task, advance: Advance) -> list[Row]:
    """The rows of one process. Where it fails, what is missing is skipped by name."""
    rows: list[Row] = []
    part, what = 0.0, ""
    weight = weight_of(task)
    try:
        with on_cores(task.cores), Child(["benchmarks.step_worker", json.dumps(asdict(task))]) as child:
            for told in child.lines():
                if "row" in told:
                    rows.append(told["row"])
                else:
                    before = part if told["what"] == what else 0.0
                    part, what = told["part"], told["what"]
                    advance(what, weight * (part - before))
    except Lost as lost:
        rows += missing(task, rows, str(lost))
    return rows


def missing(task: Task, rows: Sequence[Row], reason: str) -> list[Row]:
    """Rows for what a process did not come to."""
    have = {(row["system"], step_report.point_of(row)) for row in rows}
    machine = measuring.machine(None)
    made = [
        {"system": system, **point.where, "skipped": reason, "machine": machine}
        for point in step_worker.points(task)
        for system in point.systems
    ]
    return [row for row in made if (row["system"], step_report.point_of(row)) not in have]


# --- telling ----------------------------------------------------------------------------------


def weight_of(task: Task) -> float:
    """How much a point of a task is, over a training."""
    return 1.0 if task.kind == "fit" else LOSS_PART


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.step_overhead").shortened()
    with parts(sum(weight_of(task) * len(step_worker.points(task)) for task in tasks(options))) as advance:
        rows = measure(options, advance)
    write(rows, options.output)
    print(step_report.table(rows))
    print()
    print(step_report.report(rows))
    for line in warning(rows[0]["machine"]):
        print(line)
    print(f"\nwritten to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
