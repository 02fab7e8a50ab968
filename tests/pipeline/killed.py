"""Trainings that are there to be killed: a process that has loaded TensorFlow, and forks one of them for each job.

    python -m tests.pipeline.killed          # a job a line on its input, as JSON; what the training says on its output

To load TensorFlow takes seconds, a fork milliseconds. A fork is sound here because the process that forks has run no
operation of TensorFlow, and so has none of its threads: each training makes its own. What a training says, a line each:

    from 3          the step it goes on from
    draw 3 8ab4…    a batch left the sampler: its step and a digest of its indices, weights and probabilities
    clear           the snapshots of the training before are about to be removed
    save 4          a save begins; ``saved 4``: it has returned
    done 0c1d…      a digest of all that the training came to; ``failed`` where it raised an error

Two kinds of training: ``fit``, which is ``pipeline.training.train`` with a Keras model, and ``loop``, a loop of one's
own with a model in NumPy, which is there a second sooner. Both have dropout, momentum, a lag and a gate.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline import checkpoints, worker
from pipeline.checkpoints import Snapshots
from pipeline.data import Data
from pipeline.dynamics import TrainingDynamics
from pipeline.saving import Saving
from pipeline.training import Outcome, make_reproducible, train
from sampler import Draw, ImportanceSampler
from sampler.state_bytes import State, from_bytes, to_bytes

N, B, WIDTH, CLASSES = 24, 8, 5, 3  # three steps an epoch
STEPS = {"loop": 12, "fit": 7}
LAG = 3
KEEP = 2
BALLAST = 1 << 15  # float64s, so that a snapshot takes a while to write
# What may differ between equal trainings: times, and a figure that depends on how many batches are drawn ahead.
TIMES = ("seconds", "first_step_seconds", "sampling/milliseconds", "sampling/unseen")
PIECE = 0.004  # seconds that a faulty save takes for each of its pieces

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N + 8, WIDTH)).astype(np.float32), RNG.integers(0, CLASSES, N + 8)
DATA = Data("small", X[:N], Y[:N], X[N:], Y[N:], CLASSES)


@dataclass(frozen=True)
class Job:
    """A training to fork: its kind, the folder of its snapshots, whether it goes on, and what is wrong with it."""

    kind: str
    folder: str
    resume: bool = False
    keep: int = KEEP
    fault: str = ""


# --- what is compared ---


def digest(*parts: bytes) -> str:
    return hashlib.sha1(b"".join(parts)).hexdigest()[:16]


def of_draw(draw: Draw) -> str:
    return digest(*(np.ascontiguousarray(part).tobytes() for part in (draw.index, draw.weight, draw.probability)))


def of_state(kind: str, state: State) -> str:
    """Of a whole snapshot, times left out. How many draws are ahead of a ``fit`` depends on timing; so the digest is of
    the sampler after it has drawn as far as its lag lets it.
    """
    parts = dict(state["parts"])
    if kind == "fit":
        sampler = new_sampler()
        sampler.load_state_dict(parts["sampler"])
        while sampler.step < state["step"] + LAG:
            sampler.draw(B)
        parts["sampler"] = sampler.state_dict()
    return digest(to_bytes(timeless({**state, "parts": parts})))


def timeless(part: Any) -> Any:
    """Without the entries that are times, at any depth."""
    if isinstance(part, dict):
        return {key: timeless(value) for key, value in part.items() if key not in TIMES}
    return [timeless(value) for value in part] if isinstance(part, list) else part


def of_result(weights: list[np.ndarray], told: Any) -> str:
    return digest(*(np.ascontiguousarray(weight).tobytes() for weight in weights), json.dumps(timeless(told)).encode())


# --- the trainings ---


class Telling(ImportanceSampler):
    """Tells of each batch that leaves it."""

    def poll_rows(self, *rows: Any, seconds: float) -> int:
        count = super().poll_rows(*rows, seconds=seconds)
        for index, weight, probability, step in zip(*(row[:count] for row in rows), strict=True):
            tell("draw", int(step[0]), of_draw(Draw(int(step[0]), index, probability, weight)))
        return count


def new_sampler() -> ImportanceSampler:
    return Telling(
        N, feedback_lag=LAG, smoothing=0.5, gate="variance", first_pass=0.3, priority="clipped", max_draws=2, seed=0
    )


def tell(*words: Any) -> None:
    """A line at once and as a whole: a process that is killed has written it, or has not."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def fit(job: Job) -> str:
    """``train``, with Adam and a snapshot each step."""
    make_reproducible(0)
    tf.random.set_global_generator(tf.random.Generator.from_seed(0))  # else made of the time, and in the snapshots
    layers = keras.layers
    model = keras.Sequential([keras.Input((WIDTH,)), layers.Dense(6, "relu"), layers.Dropout(0.3), layers.Dense(3)])
    outcome: Outcome = train(
        DATA,
        model,
        new_sampler(),
        steps=STEPS["fit"],
        batch_size=B,
        evaluate_every=2,
        dynamics=(dynamics := TrainingDynamics(N)),
        saving=Saving(job.folder, every="1step", resume=job.resume, keep=job.keep),
    )
    told = {**vars(outcome), "advice": outcome.advice and outcome.advice.gains(), "looks": dynamics.looks}
    each, ages = told.pop("each"), told.pop("ages")
    weights = [variable.numpy() for variable in model.variables]
    return of_result([*weights, *each, ages, dynamics.drawn, dynamics.mean, dynamics.deviation], told)


class Linear:
    """A linear classifier trained with dropout and momentum, as a part of a snapshot."""

    def __init__(self) -> None:
        self.weights, self.momentum = np.zeros((WIDTH, CLASSES)), np.zeros((WIDTH, CLASSES))
        self.generator = np.random.default_rng(1)

    def train(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One step; the losses (B,) and norms of the gradients (B,) of its samples."""
        x = x * (self.generator.random(x.shape) < 0.7)
        outputs = np.exp(x @ self.weights)
        shares = outputs / outputs.sum(axis=1, keepdims=True)
        errors = shares - np.eye(CLASSES)[y]
        self.momentum = 0.9 * self.momentum + x.T @ (errors * weight[:, None]) / len(x)
        self.weights = self.weights - 0.1 * self.momentum
        norms = np.linalg.norm(errors, axis=1) * np.linalg.norm(x, axis=1)
        return -np.log(shares[np.arange(len(y)), y]), norms

    def state_dict(self) -> State:
        return {"weights": self.weights, "momentum": self.momentum, "generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: State) -> None:
        self.weights, self.momentum = state["weights"], state["momentum"]
        self.generator.bit_generator.state = state["generator"]


class Trace:
    """What was trained on so far, as a part of a snapshot; and ballast, which is another in each step."""

    def __init__(self) -> None:
        self.steps = 0
        self.rows: list[list[float]] = []

    def state_dict(self) -> State:
        ballast = np.full(BALLAST, float(self.steps))
        return {"steps": self.steps, "rows": self.rows, "ballast": ballast}

    def load_state_dict(self, state: State) -> None:
        if state["ballast"][0] != state["steps"]:
            raise ValueError("the ballast is of another step")
        self.steps, self.rows = state["steps"], state["rows"]


def loop(job: Job) -> str:
    """A loop of one's own, with a snapshot each step."""
    model, sampler, trace = Linear(), new_sampler(), Trace()
    parts = {"model": model, "sampler": sampler, "trace": trace}
    if job.fault == "two files":
        parts["sampler"] = Beside(sampler, Path(f"{job.folder}-sampler"))
    snapshots = Snapshots(job.folder, parts, keep=job.keep)
    with snapshots.held():
        if job.resume:
            snapshots.restore()
        else:
            snapshots.clear()
        while trace.steps < STEPS["loop"]:
            draw = sampler.draw(B)
            tell("draw", draw.step, of_draw(draw))
            losses, norms = model.train(DATA.x[draw.index], DATA.y[draw.index], draw.weight)
            sampler.update(draw.index, losses, step=draw.step, score=norms)
            trace.rows.append([*map(float, losses)])
            trace.steps += 1
            snapshots.save(trace.steps)
    return of_result([model.weights, model.momentum], trace.rows)


KINDS: dict[str, Callable[[Job], str]] = {"loop": loop, "fit": fit}


# --- faults that a test must find ---


class Beside:
    """Two files in place of one: a part that is kept in a file of its own, whole at any time."""

    def __init__(self, part: Any, file: Path) -> None:
        self.part, self.file = part, file

    def state_dict(self) -> State:
        new = self.file.with_suffix(".new")
        new.write_bytes(to_bytes(self.part.state_dict()))
        new.replace(self.file)
        time.sleep(PIECE)
        return {}

    def load_state_dict(self, state: State) -> None:
        self.part.load_state_dict(from_bytes(self.file.read_bytes()))


def in_place(snapshots: Snapshots, step: int) -> None:
    """A snapshot that grows where it is looked for, its index before its data."""
    scratch = Path(f"{snapshots.folder}-scratch")
    whole = SAVE(Snapshots(scratch, snapshots.parts), step)
    for file in sorted(scratch.glob(f"{whole.name}.*"), reverse=True):
        data = file.read_bytes()
        with open(snapshots.folder / file.name, "wb", buffering=0) as growing:
            for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
                growing.write(piece)
                time.sleep(PIECE)
    shutil.rmtree(scratch)
    for file in snapshots.folder.glob(f"{whole.name.replace(str(step), str(step - KEEP))}.*"):
        file.unlink()


def early(snapshots: Snapshots, step: int) -> None:
    """A save that is said to be done before it is."""
    tell("saved", step)
    time.sleep(PIECE)
    SAVE(snapshots, step)


def without_generator(model: Linear, state: State) -> None:
    """A training that goes on with another random state."""
    model.weights, model.momentum = state["weights"], state["momentum"]


SAVE = Snapshots.save


def plant(fault: str) -> None:
    """Make this process, which is about to be killed, save or go on wrongly."""
    if fault == "in place":
        Snapshots.save = in_place
    elif fault == "early":
        Snapshots.save = early
    elif fault == "generator":
        Linear.load_state_dict = without_generator
    elif fault == "leftovers":
        checkpoints._remove = lambda paths: None


# --- the process that is forked ---


def tell_of_snapshots() -> None:
    """From here on in this process."""
    save, restore, clear = Snapshots.save, Snapshots.restore, Snapshots.clear

    def saving(snapshots: Snapshots, step: int) -> None:
        tell("save", step)
        save(snapshots, step)
        tell("saved", step)

    def restoring(snapshots: Snapshots) -> int | None:
        step = restore(snapshots)
        tell("from", step or 0)
        return step

    def clearing(snapshots: Snapshots) -> None:
        tell("clear")
        clear(snapshots)

    Snapshots.save, Snapshots.restore, Snapshots.clear = saving, restoring, clearing


def run(job: Job) -> None:
    """The training, in a process of its own from here to its end."""
    worker._PROCESS = os.getpid()  # which refuses a fork, since it cannot know that no operation was run before
    plant(job.fault)
    tell_of_snapshots()
    # Without AutoGraph, whose conversions take as long as all the rest and are needed by nothing here.
    tell("done", tf.autograph.experimental.do_not_convert(KINDS[job.kind])(job))


def serve() -> None:
    """Fork a training for each line, which tells its number first; ``ended`` with its status, once that is asked."""
    sampler = new_sampler()  # its compiled loops are loaded once for all
    for _ in range(2 * N // B):
        draw = sampler.draw(B)
        sampler.update(draw.index, np.ones(B), step=draw.step, score=np.ones(B))
    Linear().train(DATA.x[:B], DATA.y[:B], np.ones(B))
    threads = Path("/proc/self/task")
    if threads.exists() and len(list(threads.iterdir())) > 1:
        raise RuntimeError("this process has threads, which would be missing in those that it forks")
    gc.collect()
    gc.freeze()
    tell("ready")
    for line in sys.stdin:
        process = os.fork()
        if not process:
            status = 1
            tell("forked", os.getpid())  # before all else that it tells
            try:
                run(Job(**json.loads(line)))
                status = 0
            except BaseException:
                traceback.print_exc()
                tell("failed")
            finally:
                os._exit(status)
        sys.stdin.readline()  # its number is its own until it is waited for
        tell("ended", os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


if __name__ == "__main__":
    serve()
