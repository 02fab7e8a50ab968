"""The program that measures training steps, in a process of its own.

    python -m benchmarks.step_worker '{"kind": "fit", "model": "cnn", ...}'     # the fields of Task, as JSON

Each model, compiled by XLA or not, is a process, and so are the losses on so many cores: the threads of TensorFlow are
fixed at its start, and what one training leaves behind shall not meet the next. With one core TensorFlow gets one
thread within an operation and one between them, otherwise its defaults.

Answers are lines of JSON on stdout: ``{"row": ...}`` for a row of the results, ``{"what": ..., "part": 0.5}`` for how
much of the *point* of the moment is done: a model, or a loss at a batch size, compiled by XLA or not. At each point all
systems have their turns in rounds, as :mod:`benchmarks.measuring` says.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks import measuring, step_losses, step_models, systems
from benchmarks.measuring import Contestant, Lost, Times
from benchmarks.pipeline_children import emitter
from benchmarks.pipeline_turns import reason
from benchmarks.step_names import ARRAYS, FITS, REDUCTIONS, REFERENCE, bar
from benchmarks.step_turns import Fit

Row = dict[str, Any]
Emit = Callable[[Row], None]

PREPARING = 0.3  # of a point is done, roughly, when all systems are traced and warm
UNTIMED = 2  # first epochs of a training: it is traced, and memory is touched
DIGITS = 6  # of a millisecond


@dataclass(frozen=True)
class Task:
    """What to measure: a model's training (``kind`` "fit"), or losses at batch sizes ("loss")."""

    kind: str
    cores: int
    jit: tuple[bool, ...]
    rounds: int
    seconds: float  # of a turn
    seed: int
    model: str = ""
    losses: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()


@dataclass
class Point:
    """What is the same for all systems that are measured together."""

    what: str  # in words
    where: Row  # the fields of the rows that say so
    systems: tuple[str, ...]
    contestants: dict[str, Contestant] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def points(task: Task) -> list[Point]:
    """The points of a task, with nobody there yet."""
    if task.kind == "fit":
        return [fit_point(task, jit) for jit in task.jit]
    return [loss_point(task, loss, batch, jit) for loss in task.losses for batch in task.batches for jit in task.jit]


def fit_point(task: Task, jit: bool) -> Point:
    """A model."""
    model = step_models.MODELS[task.model]
    size = model.steps_within(task.seconds, jit=jit) * model.batch
    where = {"kind": "fit", "model": task.model, "jit": jit, "batch_size": model.batch, "num_samples": size}
    return Point(f"{task.model}, {named(jit)}, {cores(task)}", {**where, "cores": task.cores}, FITS)


def loss_point(task: Task, loss: str, batch: int, jit: bool) -> Point:
    """A loss at a batch size."""
    where = {"kind": "loss", "model": loss, "jit": jit, "batch_size": batch, "cores": task.cores}
    return Point(f"{loss}, B={batch}, {named(jit)}, {cores(task)}", where, REDUCTIONS)


def named(jit: bool) -> str:
    """In a word."""
    return "jitted" if jit else "plain"


def cores(task: Task) -> str:
    """In words."""
    return "1 core" if task.cores == 1 else f"{task.cores} cores"


# --- measuring --------------------------------------------------------------------------------


def measure(task: Task, emit: Emit) -> None:
    """Every point: rows and progress."""
    for number, point in enumerate(points(task)):
        generator = np.random.default_rng([task.seed, task.cores, number])
        try:
            measure_point(task, point, generator, emit)
        finally:
            for contestant in point.contestants.values():
                if isinstance(contestant, Fit):
                    contestant.close()


def measure_point(task: Task, point: Point, generator: np.random.Generator, emit: Emit) -> None:
    """All systems of one point, in turn."""
    rounds = iter(range(1, task.rounds + 1))

    def tell(part: float) -> None:
        emit({"what": point.what, "part": part})

    tell(0.0)
    prepare(task, point, lambda part: tell(PREPARING * part))
    times, lost = measuring.take_rounds(
        point.contestants,
        point.steps,
        rounds=task.rounds,
        generator=generator,
        after_round=lambda: tell(PREPARING + (1.0 - PREPARING) * next(rounds) / task.rounds),
        lead_in=task.kind == "loss",
    )
    skipped = point.skipped | {name: f"lost {why}" for name, why in lost.items()}
    machine = measuring.machine(None)
    for system in point.systems:
        emit({"row": {**make_row(point, system, times, skipped), "machine": machine}})
    tell(1.0)


def prepare(task: Task, point: Point, advance: Callable[[float], None]) -> None:
    """Build and warm all systems. One that fails is skipped by name."""
    setting: step_models.Setting | None = None
    if task.kind == "fit":
        model = step_models.MODELS[task.model]
        jit = point.where["jit"]
        setting = step_models.Setting(model, jit, model.steps_within(task.seconds, jit=jit), task.seed)
    for number, system in enumerate(point.systems, 1):
        try:
            if setting is None:
                prepare_loss(task, point, system)
            else:
                prepare_fit(point, system, setting)
        except Lost as lost:
            point.skipped[system] = str(lost)
        except Exception as error:
            point.skipped[system] = reason(error)
        advance(number / len(point.systems))


def prepare_fit(point: Point, system: str, setting: step_models.Setting) -> None:
    """Begin a training, and let it do its first epochs."""
    fit = Fit(step_models.trainer(system, setting))
    for _ in range(UNTIMED):
        fit.turn(setting.steps)
    point.contestants[system], point.steps[system] = fit, setting.steps


def prepare_loss(task: Task, point: Point, system: str) -> None:
    """Compile one of the ways; all of a point have the steps of the first, so that they lose as much by a pause."""
    where = point.where
    made = step_losses.Gradients(system, where["model"], batch=where["batch_size"], jit=where["jit"], seed=task.seed)
    warm = measuring.warm_up(made, task.seconds)
    point.contestants[system] = made
    point.steps[system] = next(iter(point.steps.values()), warm)


# --- rows -------------------------------------------------------------------------------------


def make_row(point: Point, system: str, times: Mapping[str, Times], skipped: Mapping[str, str]) -> Row:
    """One line of the output, the machine left out."""
    where = {"system": system, **point.where}
    if system in skipped:
        return {**where, "skipped": skipped[system]}
    took = times[system].draw / 1e3
    median, lower, upper = measuring.quartiles(took)
    row = {
        **where,
        "ms": round(median, DIGITS),
        "ms_quartiles": [round(lower, DIGITS), round(upper, DIGITS)],
        "ms_rounds": took.round(DIGITS).tolist(),
        "repeats": took.size,
        "steps_per_repeat": times[system].steps,
    }
    other = REFERENCE.get(system, "")
    if other in times:
        median, lower, upper = measuring.quartiles(times[system].draw / times[other].draw)
        row |= {"over": other, "ratio": round(median, DIGITS)}
        row["ratio_quartiles"] = [round(lower, DIGITS), round(upper, DIGITS)]
        allowed = bar(system, point.where["model"])
        if allowed is not None:
            row |= {"bar": allowed, "met": median <= allowed}
    if ARRAYS in times:
        row["over_arrays"] = round(float(np.median(times[system].draw / times[ARRAYS].draw)), DIGITS)
    return row


def main(arguments: Sequence[str]) -> int:
    """Measure what the argument asks for."""
    (asked,) = arguments
    fields: dict[str, Any] = json.loads(asked)
    fields |= {name: tuple(fields[name]) for name in ("jit", "losses", "batches")}
    task = Task(**fields)
    emit = emitter()
    warnings.simplefilter("ignore")  # one of the systems feeds nothing back, which this project says once
    if task.cores == 1:
        systems.tensorflow_on_one_thread()
    measure(task, emit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
