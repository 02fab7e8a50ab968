"""How a model does: on each sample, and on all of them.

    evaluator = Evaluator(model, data)
    evaluator(data.x_test, data.y_test)         # Score(loss=0.12, accuracy=0.97, worst_class_accuracy=0.9)
    evaluator.each(data.x, data.y).losses       # (N,) float32

The loss is the task's own, whatever the model was trained on, and the model is in inference mode.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from pipeline.data import Array, Data
from pipeline.models import loss_for

SLICE = 512  # samples a forward pass


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


class Each(NamedTuple):
    """What a model says of single samples.

    Attributes:
        losses: (M,) float32.
        predictions: (M,) int64, the likeliest class; for quantities the output, (M, D) float32.
    """

    losses: Array
    predictions: Array


class Evaluator:
    """How a model does on any samples of the task.

    The forward pass, in inference mode, is compiled once for any size and run on slices of 512.
    """

    def __init__(self, model: keras.Model, data: Data) -> None:
        self.model = model
        self._classes = data.num_classes
        self._loss = loss_for(data, reduction=None)
        x, y = (tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in (data.x, data.y))
        # A partial, since TensorFlow counts the traces of methods over all objects, and would warn of many evaluators.
        self._forward = tf.function(functools.partial(self._evaluate), input_signature=(x, y))

    def __call__(self, x: Array, y: Array) -> Score:
        """The score on ``x`` (M, ...) and ``y`` (M, ...), M ≥ 1."""
        losses, predictions = self.each(x, y)
        loss = float(losses.mean(dtype=np.float64))
        if self._classes is None:
            return Score(loss)
        hits = predictions == y
        return Score(loss, float(hits.mean()), _worst_class(hits, y))

    def each(self, x: Array, y: Array) -> Each:
        """The loss of each of M ≥ 1 samples, and what the model takes it for."""
        return Each(*by_slices(self._forward, x, y))

    def _evaluate(self, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        output = tf.cast(self.model(x, training=False), tf.float32)  # whatever the model computes in
        return self._loss(y, output), tf.argmax(output, axis=-1) if self._classes else output


def by_slices(of_slice: Callable[[Array, Array], tuple[Any, Any]], x: Array, y: Array) -> tuple[Array, Array]:
    """What ``of_slice`` gives for slices of x and y (M, ...), M ≥ 1, put together."""
    parts = [of_slice(x[first : first + SLICE], y[first : first + SLICE]) for first in range(0, len(x), SLICE)]
    first, second = (np.concatenate([np.asarray(part) for part in column]) for column in zip(*parts, strict=True))
    return first, second


def _worst_class(hits: Array, y: Array) -> float:
    return min(float(hits[y == k].mean()) for k in np.unique(y))
