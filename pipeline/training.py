"""The loop of training, apart from the command line, logging and saving.

    from pipeline.data import load_data
    from pipeline.models import build_model
    from pipeline.training import make_reproducible, train
    from sampler import ImportanceSampler

    make_reproducible(seed=0)
    data = load_data("checker")
    sampler = ImportanceSampler(len(data), smoothing=0.5, feedback_lag=4, seed=0)
    outcome = train(data, build_model("auto", data), sampler, epochs=4, batch_size=32)
    outcome.test_loss, outcome.seconds

Every sampling goes the same way: a sampler, ``importance_dataset``, ``fit`` with ``LossFeedback``.
Uniform draws are one more sampler, with weights of 1, so a comparison compares the draws and
nothing else. A ``Presampler`` draws from the shuffled data set as from a stream.

What is measured is measured alike, too. ``seconds`` are those of training: evaluation stops the
clock. Losses of the outcome are plain means over all training and all test samples, never the
weighted batches', and always the task's own loss: a model trained on the focal loss is measured by
its cross-entropy, as the others are.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from pipeline.advice import Advice
from pipeline.data import Array, Data
from pipeline.dataset import importance_dataset
from pipeline.epochs import epoch_samples
from pipeline.feedback import LossFeedback
from pipeline.losses import SparseCategoricalFocalCrossentropy
from pipeline.models import loss_for
from pipeline.presampling import Presampler
from pipeline.refresh import RefreshStalest
from pipeline.saving import Saving, saved
from pipeline.workers import Workers
from sampler import checks

Decay = Literal["cosine", "none"]
Optimizer = Literal["adam", "sgd"]
LossName = Literal["auto", "focal"]
Row = dict[str, float | int | None]

SLICE = 512  # samples a forward pass of the evaluation
STREAM_SEED = 0  # of a shuffled stream; Keras's own seed makes it another one for each run
OPTIMIZERS = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}


@dataclass(frozen=True)
class Score:
    """How a model does on some samples.

    Attributes:
        loss: the plain mean over them.
        accuracy: in [0, 1]; None for regression.
        worst_class_accuracy: the least accuracy of a class that occurs; None for regression.
    """

    loss: float
    accuracy: float | None = None
    worst_class_accuracy: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        epochs: passes' worth of steps, ceil(N/B) each; the last may have been cut short.
        steps: batches trained on.
        seconds: wall-clock seconds of training, without evaluation.
        first_step_seconds: those of them until the first step was done; most of it is the
            compilation of the graph.
        train_loss: the mean over the whole training set at the end, unweighted.
        test_loss: the mean over the test set at the end.
        test_accuracy: in [0, 1]; None for regression.
        worst_class_accuracy: the least test accuracy of a class; None for regression.
        history: a row an epoch: ``epoch`` from 1, ``step``, ``seconds`` so far, ``learning_rate``
            next, ``loss`` (the epoch's weighted mean, an estimate of the training set's),
            ``test_loss``, ``test_accuracy``.
        figures: what ``LossFeedback`` said of the sampling in the last epoch, ``sampling/gain`` and so on.
        advice: which priority would have suited the training; it has something to say where the
            sampler wanted scores.
        curve: a row every ``evaluate_every`` steps: ``step``, ``seconds``, ``test_loss``,
            ``test_accuracy``.
    """

    epochs: int
    steps: int
    seconds: float
    first_step_seconds: float
    train_loss: float
    test_loss: float
    test_accuracy: float | None
    worst_class_accuracy: float | None
    history: list[Row]
    curve: list[Row]
    figures: dict[str, float] = field(default_factory=dict)
    advice: Advice | None = None


def train(
    data: Data,
    model: keras.Model,
    sampler: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int,
    learning_rate: float = 0.003,
    decay: Decay = "cosine",
    warmup_steps: int = 0,
    optimizer: Optimizer = "adam",
    loss: LossName = "auto",
    refresh: float = 0.0,
    evaluate_every: int | None = None,
    steps_per_execution: int = 1,
    jit_compile: bool | Literal["auto"] = "auto",
    saving: Saving | None = None,
    workers: Workers | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Outcome:
    """Train ``model`` on the batches that ``sampler`` draws, to the end of the budget.

    Args:
        data: the task.
        model: a Keras model whose outputs suit ``loss_for(data)``; it is compiled here.
        sampler: an ``ImportanceSampler`` or one of its siblings, for ``len(data)`` samples; or a
            ``Presampler`` of this model.
        epochs: ≥ 1; an epoch is ceil(N/B) steps, whatever a pass of the sampler is.
        steps: ≥ 1, the budget in steps, in place of ``epochs``.
        batch_size: B ≥ 1.
        learning_rate: > 0, the highest that is reached.
        decay: ``"cosine"`` or ``"none"``, see ``schedule``.
        warmup_steps: over so many the learning rate first rises from 0.
        optimizer: ``"adam"``, or ``"sgd"`` without momentum.
        loss: ``"auto"`` (see ``loss_for``), or ``"focal"`` to train a classifier on the focal loss.
        refresh: ≥ 0, stale samples scored by forward passes for each sample trained on; see
            ``RefreshStalest``.
        evaluate_every: steps between the rows of ``Outcome.curve``. None: no curve.
        steps_per_execution, jit_compile: as for ``compile``; the number of steps of an epoch, and of the last one, must
            be a multiple of the first.
        saving: where and when the training saves itself, and whether it goes on from there. None: it does not.
        workers: this process among those that train together, under whose strategy the model was made; then the sampler
            is a ``Shard``, B is of each worker, and an epoch as many steps as the largest block needs.
        callbacks: further Keras callbacks. Their time counts as training.

    Raises ``ValueError`` for numbers outside these ranges, before anything is trained; with ``saving`` what
    ``Snapshots`` raises, and ``Stopped``.
    """
    epoch_steps = _epoch_steps(sampler, data, _at_least_one("batch_size", batch_size))
    if (epochs is None) == (steps is None):
        raise ValueError(f"give epochs or steps, one of them, got epochs={epochs} and steps={steps}")
    steps = _at_least_one("steps", steps) if epochs is None else _at_least_one("epochs", epochs) * epoch_steps
    epochs = math.ceil(steps / epoch_steps)  # the last one is cut short where they do not come out even
    _at_least_one("evaluate_every", 1 if evaluate_every is None else evaluate_every)
    if epoch_steps % steps_per_execution or steps % steps_per_execution:
        raise ValueError(
            f"steps_per_execution must divide the {epoch_steps} steps of an epoch and the {steps} of the training, got "
            f"{steps_per_execution}"
        )
    rate = schedule(learning_rate, steps, decay=decay, warmup_steps=warmup_steps)
    with model.distribute_strategy.scope():
        model.compile(
            OPTIMIZERS[optimizer](rate),
            loss=trained_loss(loss, data),
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
        )
    evaluator = Evaluator(model, data)
    recorder = _Recorder(evaluator, data, evaluate_every, steps)
    feedback = LossFeedback(model, sampler)
    refreshing = []
    if refresh:
        refreshing.append(RefreshStalest(model, sampler, (data.x, data.y), batch_size=batch_size, budget=refresh))
    together = [feedback, *refreshing, recorder, *callbacks]
    with ExitStack() as stack:
        if saving is not None:
            parts = {"sampler": sampler, "recorder": recorder, **({"refresh": refreshing[0]} if refreshing else {})}
            saving = replace(saving, workers=workers)
            entered = saved(model, feedback, parts, saving, lambda: recorder.steps, epoch_steps)
            together.append(stack.enter_context(entered))
        model.stop_training = False  # an earlier training may have left it so
        for first, last, length in _stretches(recorder.steps, steps, epoch_steps):
            if recorder.steps < steps and not model.stop_training:
                prefetch = 0 if refresh else None
                batches = _batches(data, sampler, batch_size, recorder.steps, steps, prefetch=prefetch)
                model.fit(
                    batches if workers is None else workers.batches(batches),
                    initial_epoch=first,
                    epochs=last,
                    steps_per_epoch=length,
                    shuffle=False,  # the sampler does; without this Keras warns
                    verbose=0,
                    callbacks=together,
                )
    test = recorder.test_score()
    return Outcome(
        epochs=epochs,
        steps=recorder.steps,
        seconds=recorder.clock.seconds,
        first_step_seconds=recorder.first_step_seconds,
        train_loss=evaluator(data.x, data.y).loss,
        test_loss=test.loss,
        test_accuracy=test.accuracy,
        worst_class_accuracy=test.worst_class_accuracy,
        history=recorder.history,
        curve=recorder.curve,
        figures=recorder.figures,
        advice=feedback.advice,
    )


def _epoch_steps(sampler: Any, data: Data, batch_size: int) -> int:
    return math.ceil(epoch_samples(sampler, len(data)) / batch_size)


def _stretches(done: int, steps: int, epoch_steps: int) -> list[tuple[int, int, int]]:
    """``(first epoch, last epoch, steps an epoch)`` of each call of ``fit`` after ``done`` steps: the rest of the epoch
    that was begun is one by itself.
    """
    epochs = math.ceil(steps / epoch_steps)
    first, begun = divmod(done, epoch_steps)
    rest = [(first, first + 1, epoch_steps - begun)] if begun else []
    return [*rest, (first + len(rest), epochs, epoch_steps)]


def diverged(steps: int) -> Outcome:
    """The outcome of a training that had to be broken off: losses that are not a number."""
    nan = math.nan
    return Outcome(0, steps, 0.0, 0.0, nan, nan, None, None, history=[], curve=[])


def trained_loss(name: LossName, data: Data) -> keras.losses.Loss:
    """The loss to train on: the task's own, or the focal loss. ``ValueError`` for the focal loss of quantities."""
    if name == "auto":
        return loss_for(data)
    if data.num_classes is None:
        raise ValueError(f"the focal loss is one for classes, but the y of {data.name!r} is a quantity; use 'auto'")
    return SparseCategoricalFocalCrossentropy(from_logits=True)


def _batches(data: Data, sampler: Any, batch_size: int, done: int, steps: int, prefetch: int | None) -> tf.data.Dataset:
    """The batches from ``done`` to ``steps``, from one iterator: to start one for each epoch takes a tenth of a second
    or more. Where epochs are all alike none is drawn beyond them, so that the sampler's summary in the end depends on
    no timing. With refreshing none is drawn ahead, or what a draw knows would.
    """
    if isinstance(sampler, Presampler):
        stream = tf.data.Dataset.from_tensor_slices((data.x, data.y)).shuffle(len(data), seed=STREAM_SEED)
        return stream.repeat().skip(done * len(sampler)).apply(sampler)
    dataset = functools.partial(importance_dataset, (data.x, data.y), sampler, batch_size, prefetch=prefetch)
    if getattr(sampler, "epochs_vary", False):
        return dataset().repeat()  # of passes nobody knows how many it takes
    epochs, rest = divmod(steps - done, _epoch_steps(sampler, data, batch_size))
    if not rest:
        return dataset().repeat(epochs)
    last = dataset(batches=rest)
    return dataset().repeat(epochs).concatenate(last) if epochs else last


def make_reproducible(seed: int) -> None:
    """Seed Python, NumPy and Keras, before the model is built: its first weights come from here.

    With the sampler's own seed and a ``feedback_lag``, a training then gives the same bits each time
    on one machine. On CPUs TensorFlow's kernels do so by themselves (tried with dense, convolutional
    and embedding models on 2 and on 16 threads); on GPUs some do not, and are exchanged here for
    slower ones that do, for the whole process.
    """
    keras.utils.set_random_seed(seed)
    tf.random.set_global_generator(tf.random.Generator.from_seed(seed))  # which makes its own of the clock
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


def schedule(learning_rate: float, steps: int, *, decay: Decay = "cosine", warmup_steps: int = 0) -> Any:
    """The learning rate as a function of the step.

    Args:
        learning_rate: > 0, the highest that is reached.
        steps: of the whole budget, at which a cosine decay comes down to 0.
        decay: ``"cosine"``, or ``"none"`` for a rate that stays.
        warmup_steps: in 0..steps-1; over so many the rate first rises from 0 in a straight line.

    A baseline whose rate does not come down by the end of its budget is beaten by anything that
    averages its noise away (Kaddour et al., 2023, *No Train No Gain*); so the decay is the default
    for every sampling.
    """
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be above 0 and finite, got {learning_rate}")
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"warmup_steps must be in 0..{steps - 1} ({steps} steps in all), got {warmup_steps}")
    if decay not in ("cosine", "none"):
        raise ValueError(f"decay must be 'cosine' or 'none', got {decay!r}")
    warmup = {"warmup_target": learning_rate, "warmup_steps": warmup_steps} if warmup_steps else {}
    if decay == "none" and not warmup_steps:
        return learning_rate
    lowest = 0.0 if decay == "cosine" else 1.0  # as a share; 1 keeps the cosine at its top
    start = 0.0 if warmup_steps else learning_rate
    return keras.optimizers.schedules.CosineDecay(start, steps - warmup_steps, alpha=lowest, **warmup)


def _at_least_one(name: str, value: int | None) -> int:
    if value is None or value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


# --- measuring ------------------------------------------------------------------------------------


class Evaluator:
    """The score of a model on any samples of the task: ``Evaluator(model, data)(x, y)``.

    The forward pass, in inference mode, is compiled once for any size and run on slices of 512.
    """

    def __init__(self, model: keras.Model, data: Data) -> None:
        self.model = model
        self._classes = data.num_classes
        self._loss = loss_for(data, reduction="sum")
        x, y = (tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in (data.x, data.y))
        # A partial, since TensorFlow counts the traces of methods over all objects, and would warn of many evaluators.
        self._forward = tf.function(functools.partial(self._evaluate), input_signature=(x, y))

    def __call__(self, x: Array, y: Array) -> Score:
        """The score on ``x`` (M, ...) and ``y`` (M, ...), M ≥ 1."""
        loss, right = 0.0, []
        for first in range(0, len(x), SLICE):
            part = slice(first, first + SLICE)
            sliced_loss, sliced_right = self._forward(x[part], y[part])
            loss += float(sliced_loss)
            right.append(sliced_right.numpy())
        if self._classes is None:
            return Score(loss / len(x))
        hits = np.concatenate(right)
        return Score(loss / len(x), float(hits.mean()), _worst_class(hits, y))

    def _evaluate(self, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum of the losses, and for classes which samples are right (B,) bool."""
        # In float32 whatever the model computes in: a sum of 512 losses can overflow float16.
        output = tf.cast(self.model(x, training=False), tf.float32)
        right = tf.equal(tf.argmax(output, axis=-1), y) if self._classes else tf.zeros((0,), tf.bool)
        return self._loss(y, output), right


def _worst_class(hits: Array, y: Array) -> float:
    return min(float(hits[y == k].mean()) for k in np.unique(y))


@dataclass
class _Clock:
    """A stop-watch that can be halted: what passes while it is halted does not count."""

    seconds: float = 0.0
    _since: float = field(default_factory=time.perf_counter)

    def lap(self) -> float:
        """Count up to now, and give the seconds so far."""
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now
        return self.seconds

    @contextmanager
    def halted(self) -> Iterator[None]:
        self.lap()
        yield
        self._since = time.perf_counter()


class _Recorder(keras.callbacks.Callback):
    """Counts steps and seconds, evaluates at the end of every epoch and every so many steps, and ends the training."""

    def __init__(self, evaluator: Evaluator, data: Data, every: int | None, most: int) -> None:
        super().__init__()
        self.steps = 0
        self._begun_at = 0
        self.figures: dict[str, float] = {}
        self._most = most
        self.first_step_seconds = 0.0
        self.history: list[Row] = []
        self.curve: list[Row] = []
        self._evaluator, self._data, self._every = evaluator, data, every
        self._scored: tuple[int, Score] | None = None
        self.test_score()  # compiles the evaluation before the clock starts
        self.clock = _Clock()

    def test_score(self) -> Score:
        """The score on the test set now; done once a step."""
        if self._scored is None or self._scored[0] != self.steps:
            self._scored = self.steps, self._evaluator(self._data.x_test, self._data.y_test)
        return self._scored[1]

    def state_dict(self) -> dict[str, Any]:
        """How far it is, and the rows so far."""
        return {
            "steps": self.steps,
            "most": self._most,
            "seconds": self.clock.lap(),
            "first_step_seconds": self.first_step_seconds,
            "history": self.history,
            "curve": self.curve,
            "figures": self.figures,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        most = checks.whole("most", state.get("most", self._most), least=1)
        self.steps = checks.whole("steps", state["steps"], least=0, most=most)
        if most != self._most:  # of another number of workers: as far as it was, of what it is now
            self.steps = self.steps * self._most // most
            self._evaluator.model.optimizer.iterations.assign(self.steps)
        self.clock = _Clock(checks.number("seconds", state["seconds"], 0.0, np.inf))
        self.first_step_seconds = checks.number("first_step_seconds", state["first_step_seconds"], 0.0, np.inf)
        self.history, self.curve, self.figures = list(state["history"]), list(state["curve"]), dict(state["figures"])
        self._scored = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.clock = _Clock(self.clock.seconds)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._begun_at = self.steps

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        before, self.steps = self.steps, self._begun_at + batch + 1  # several, with steps_per_execution
        if before == 0:
            self.first_step_seconds = self.clock.lap()
        if self.steps == self._most:
            self.model.stop_training = True
        if self._every and self.steps // self._every > before // self._every:
            with self.clock.halted():
                self.curve.append(self._row())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        with self.clock.halted():
            row = self._row()
            rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
            loss = float((logs or {})["loss"])
            self.figures = {name: float(value) for name, value in (logs or {}).items() if name.startswith("sampling/")}
            self.history.append({"epoch": epoch + 1, **row, "learning_rate": rate, "loss": loss})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.clock.lap()

    def _row(self) -> Row:
        test = self.test_score()
        return {
            "step": self.steps,
            "seconds": self.clock.seconds,
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
        }
