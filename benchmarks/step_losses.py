"""Forward and backward of a step, with the loss of the batch or with that of each sample.

    contestant = Gradients(MEAN, "mean_squared_error", batch=256, jit=True, seed=0)
    contestant.turn(64)                   # (µs a step, 0.0)

A step is one call of a compiled function that gives the gradients of all weights of a network with two hidden layers;
no optimizer. ``batch loss`` is the Keras loss with its default reduction; the others are ``per_sample_loss`` of that
loss, and then the mean or ``weighted_mean``. All are called with the same arguments.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.measuring import Lost
from benchmarks.pipeline_turns import reason
from benchmarks.step_names import BATCH_LOSS, MEAN, WEIGHTED
from pipeline import per_sample_loss, weighted_mean

FEATURES, CLASSES = 64, 10
WIDEST, NARROWEST = 512, 128
FIT_WIDTH = 1 << 16  # width times batch size

Reduced = Callable[[Any, Any, Any], Any]  # y, y_pred, weight: a scalar


def loss_of(name: str) -> keras.losses.Loss:
    """The Keras loss with its default reduction, from logits where there are such."""
    made: dict[str, Callable[[], keras.losses.Loss]] = {
        "sparse_categorical_crossentropy": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "binary_crossentropy": lambda: keras.losses.BinaryCrossentropy(from_logits=True),
        "mean_squared_error": keras.losses.MeanSquaredError,
    }
    return made[name]()


def width_for(batch: int) -> int:
    """The wider, the smaller the batch, so that a step is neither too short to measure nor too long."""
    return int(np.clip(FIT_WIDTH // batch, NARROWEST, WIDEST))


def reduced(system: str, name: str) -> Reduced:
    """``(y, y_pred, weight)`` to a scalar."""
    loss = loss_of(name)
    if system == BATCH_LOSS:
        return lambda y, y_pred, weight: loss(y, y_pred)
    losses_of = per_sample_loss(loss)
    return {
        MEAN: lambda y, y_pred, weight: tf.reduce_mean(losses_of(y, y_pred)),
        WEIGHTED: lambda y, y_pred, weight: weighted_mean(losses_of(y, y_pred), weight),
    }[system]


class Gradients:
    """One of the ways; whatever it raises becomes ``Lost``."""

    def __init__(self, system: str, name: str, *, batch: int, jit: bool, seed: int) -> None:
        keras.utils.set_random_seed(seed)  # the same weights for all
        generator = np.random.default_rng(seed)
        units = 1 if name == "binary_crossentropy" else CLASSES
        self.model = _network(width_for(batch), units)
        self._arguments = tuple(
            map(tf.constant, (_features(generator, batch), _labels(generator, name, batch), _weights(generator, batch)))
        )
        self._step = tf.function(_gradients(self.model, reduced(system, name)), jit_compile=jit)

    def turn(self, steps: int) -> tuple[float, float]:
        """So many steps; the mean µs of one, and nothing for what comes after."""
        step, arguments = self._step, self._arguments
        try:
            start = time.perf_counter_ns()
            for _ in range(steps):
                step(*arguments)
            end = time.perf_counter_ns()
        except Exception as error:
            raise Lost(reason(error)) from error
        return (end - start) / steps / 1e3, 0.0

    def gradients(self) -> list[np.ndarray]:
        """Of one step."""
        return [each.numpy() for each in self._step(*self._arguments)]


def _network(width: int, units: int) -> keras.Model:
    hidden = [keras.layers.Dense(width, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.layers.Input((FEATURES,)), *hidden, keras.layers.Dense(units)])


def _gradients(model: keras.Model, loss: Reduced) -> Callable[[Any, Any, Any], Any]:
    def step(x: Any, y: Any, weight: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True), weight)
        return tape.gradient(value, [variable.value for variable in model.trainable_variables])

    return step


def _features(generator: np.random.Generator, batch: int) -> np.ndarray:
    return generator.standard_normal((batch, FEATURES), dtype=np.float32)


def _labels(generator: np.random.Generator, name: str, batch: int) -> np.ndarray:
    if name == "sparse_categorical_crossentropy":
        return generator.integers(CLASSES, size=batch)
    if name == "binary_crossentropy":
        return generator.integers(2, size=(batch, 1)).astype(np.float32)
    return generator.standard_normal((batch, CLASSES), dtype=np.float32)


def _weights(generator: np.random.Generator, batch: int) -> np.ndarray:
    return generator.gamma(2.0, 0.5, size=batch).astype(np.float32)
