"""The program that trains for a very long time and tells what the process takes, one training in one process.

    python -m benchmarks.soak_worker '{"mode": "fit", "sampling": "importance", ...}'      # the fields of Task, as JSON

Writes a line of JSON, ``{"row": ...}``, every so many steps: ``step`` and ``seconds`` since the first, ``rss_bytes``
resident (of them ``shared_bytes`` in files), ``threads`` and ``files`` open. Nothing is collected before a look, so
this is what a user would see.

What is trained is a small network on the data set ``checker``, as a user would: an iterator for each epoch, a map
over the batches and a prefetch behind it, in ``fit`` a validation and files that are written after each epoch.
``"none"`` is the same training without this project: ``shuffle().batch()``.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from benchmarks.pipeline_children import emitter
from pipeline import LossFeedback, importance_sampling, per_sample_loss, weighted_mean
from pipeline.generated import TASKS
from sampler import ImportanceSampler

Mode = Literal["fit", "loop"]
Sampling = Literal["importance", "none"]
Row = dict[str, Any]
Look = Callable[[int], None]  # at the process, after so many steps

LAG = 8
BUFFERED = 2  # batches, behind the pipeline
SHUFFLED = 10_000  # samples in the buffer of a plain shuffle
VALIDATED = 512  # samples
LOSS = "sparse_categorical_crossentropy"


@dataclass(frozen=True)
class Task:
    """Which training, for so many steps, with a look every so many."""

    mode: Mode
    sampling: Sampling
    steps: int
    every: int
    num_samples: int
    batch: int
    seed: int

    @property
    def epoch(self) -> int:
        """Steps of an epoch."""
        return math.ceil(self.num_samples / self.batch)

    @property
    def epochs(self) -> int:
        """Whole ones, as many as it takes."""
        return math.ceil(self.steps / self.epoch)


class Process:
    """What this process takes."""

    def __init__(self) -> None:
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._begin: float | None = None

    def look(self) -> Row:
        """Now; the first look starts the clock."""
        now = time.monotonic()
        self._begin = now if self._begin is None else self._begin
        _, resident, shared, *_ = (int(pages) for pages in Path("/proc/self/statm").read_text().split())
        return {
            "seconds": round(now - self._begin, 2),
            "rss_bytes": resident * self._page,
            "shared_bytes": shared * self._page,
            "threads": len(os.listdir("/proc/self/task")),
            "files": len(os.listdir("/proc/self/fd")) - 1,  # the list's own
        }


class Looking(keras.callbacks.Callback):
    """Looks after each step, whatever the epoch."""

    def __init__(self, look: Look) -> None:
        super().__init__()
        self._look, self._steps = look, itertools.count(1)

    def on_train_batch_end(self, batch: int, logs: Row | None = None) -> None:
        """Count it."""
        self._look(next(self._steps))


def train(task: Task, look: Look) -> None:
    """Train to the end; ``look`` is called after each step."""
    keras.utils.set_random_seed(task.seed)
    x, y = TASKS["checker"].draw(task.num_samples, np.random.default_rng(task.seed))
    sampler = ImportanceSampler(task.num_samples, feedback_lag=LAG, seed=task.seed)
    samples = tf.data.Dataset.from_tensor_slices((x, y))
    if task.sampling == "none":
        batches = samples.shuffle(SHUFFLED, seed=task.seed).batch(task.batch)
    else:
        batches = samples.apply(importance_sampling(sampler, task.batch))
    batches = batches.map(lambda x, *more: (2.0 * x, *more)).prefetch(BUFFERED)
    layers = [keras.layers.Input(x.shape[1:]), keras.layers.Dense(16, activation="relu")]
    model = keras.Sequential([*layers, keras.layers.Dense(2, activation="softmax")])
    if task.mode == "fit":
        held_out = tf.data.Dataset.from_tensor_slices((2.0 * x[:VALIDATED], y[:VALIDATED])).batch(VALIDATED)
        fit(task, model, batches, held_out, [LossFeedback(model, sampler)][: task.sampling == "importance"], look)
    else:
        loop(task, model, batches, sampler, look)


def fit(
    task: Task, model: keras.Model, batches: tf.data.Dataset, held_out: tf.data.Dataset, feedback: Any, look: Look
) -> None:
    """By ``fit``, with what is customary around it."""
    model.compile("adam", LOSS, metrics=["accuracy"])
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [
            *feedback,
            keras.callbacks.ReduceLROnPlateau(patience=20),
            keras.callbacks.CSVLogger(f"{folder}/history.csv"),
            keras.callbacks.ModelCheckpoint(f"{folder}/best.weights.h5", save_best_only=True, save_weights_only=True),
            Looking(look),
        ]
        model.fit(batches, epochs=task.epochs, validation_data=held_out, callbacks=callbacks, shuffle=False, verbose=0)


def loop(task: Task, model: keras.Model, batches: tf.data.Dataset, sampler: ImportanceSampler, look: Look) -> None:
    """By a loop of one's own."""
    optimizer, losses_of = keras.optimizers.Adam(), per_sample_loss(LOSS)

    @tf.function  # type: ignore[untyped-decorator]
    def step(x: tf.Tensor, y: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = losses_of(y, model(x, training=True))
            loss = weighted_mean(losses, weight)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return losses

    ones = tf.ones(task.batch)
    steps = itertools.count(1)
    for _ in range(task.epochs):
        for x, y, *more in batches:
            if more:
                (sampling,) = more
                losses = step(x, y, sampling["weight"])
                sampler.update(sampling["index"], losses, step=sampling["step"])
            else:
                step(x, y, ones[: len(x)])
            look(next(steps))


def looks(task: Task, tell: Callable[[Row], None]) -> Look:
    """Tells what the process takes, after the first step and after every so many."""
    process = Process()

    def look(step: int) -> None:
        if step == 1 or step % task.every == 0:
            tell({"mode": task.mode, "sampling": task.sampling, "step": step, **process.look()})

    return look


def main(arguments: Sequence[str]) -> int:
    """Train as the argument says."""
    (asked,) = arguments
    task, emit = Task(**json.loads(asked)), emitter()
    train(task, looks(task, lambda row: emit({"row": row})))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
