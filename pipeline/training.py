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
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import keras
import tensorflow as tf

from pipeline.advice import Advice
from pipeline.data import Array, Data
from pipeline.dataset import importance_dataset
from pipeline.dynamics import TrainingDynamics
from pipeline.epochs import epoch_samples
from pipeline.evaluation import Each, Evaluator
from pipeline.feedback import LossFeedback
from pipeline.losses import SparseCategoricalFocalCrossentropy
from pipeline.models import loss_for
from pipeline.presampling import Presampler
from pipeline.recording import Recorder, Row
from pipeline.refresh import RefreshStalest
from pipeline.saving import Saving, saved
from pipeline.workers import Workers

Decay = Literal["cosine", "none"]
Optimizer = Literal["adam", "sgd"]
LossName = Literal["auto", "focal"]

STREAM_SEED = 0  # of a shuffled stream; Keras's own seed makes it another one for each run
OPTIMIZERS = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}


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
            ``test_loss``, ``test_accuracy``, and what ``LossFeedback.of_epoch`` says of the draws.
        figures: what ``LossFeedback`` said of the sampling in the last epoch, ``sampling/gain`` and so on.
        advice: which priority would have suited the training; it has something to say where the
            sampler wanted scores.
        each: the loss and the prediction of each training sample at the end, in inference mode; None of a training that
            diverged.
        ages: (N,) draws since the newest loss that the sampler knows of each sample; None without ``dynamics``.
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
    each: Each | None = None
    ages: Array | None = None


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
    dynamics: TrainingDynamics | None = None,
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
        dynamics: for ``len(data)`` samples, is told what each sample's loss does, and is part of the snapshots; not for
            a ``Presampler``, whose samples have no index. Of several workers each knows its own samples.
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
    feedback = LossFeedback(model, sampler, dynamics=dynamics)
    recorder = Recorder(evaluator, data, evaluate_every, steps, feedback, dynamics)
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
    test, each = recorder.test_score(), evaluator.each(data.x, data.y)
    return Outcome(
        epochs=epochs,
        steps=recorder.steps,
        seconds=recorder.clock.seconds,
        first_step_seconds=recorder.first_step_seconds,
        train_loss=float(each.losses.mean(dtype="float64")),
        test_loss=test.loss,
        test_accuracy=test.accuracy,
        worst_class_accuracy=test.worst_class_accuracy,
        history=recorder.history,
        curve=recorder.curve,
        figures=recorder.figures,
        advice=feedback.advice,
        each=each,
        ages=None if dynamics is None else sampler.ages(),
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
