"""What ``LossFeedback`` refuses, in words, before any weight has changed."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import LossFeedback, importance_dataset
from sampler import ImportanceSampler

from .cases import (
    CASES,
    KNOWN,
    USER_WEIGHTS,
    VALUES,
    B,
    K,
    N,
    OwnComputeLoss,
    OwnTrainStep,
    Subclassed,
    X,
    fit,
    functional,
    two_outputs,
)

# --- what is refused ------------------------------------------------------------------------------


class IgnoringWeights(Subclassed):
    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **_: Any
    ) -> Any:
        return super().compute_loss(x, y, y_pred, None)


class NeverComputingLoss(Subclassed):
    def train_step(self, data: Any) -> Any:
        x, y, _ = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(y - self(x, training=True)))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


class DroppingWeights(OwnTrainStep):
    def train_step(self, data: Any) -> Any:
        x, y, _ = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def scalar_function(y: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(y - z))


class ScalarLoss(keras.losses.Loss):
    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return scalar_function(y_true, y_pred)


def wrapped(sampler: Any) -> tf.data.Dataset:
    return importance_dataset((X, VALUES), sampler, B)


def plain(_: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, VALUES)).batch(B)


def weighted(_: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, VALUES, USER_WEIGHTS)).batch(B)


def for_each_step(sampler: Any) -> tf.data.Dataset:
    weights = np.ones((N, K), np.float32)
    return importance_dataset((X, VALUES, weights), sampler, B)


def rebatched(sampler: Any) -> tf.data.Dataset:
    return wrapped(sampler).unbatch().batch(4)


class NotLinear(Subclassed):
    """Divides by the sum of the weights."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **_: Any
    ) -> Any:
        losses = tf.reduce_mean(tf.square(y - y_pred), axis=-1)
        return tf.reduce_sum(losses * sample_weight) / tf.reduce_sum(sample_weight)


def without_probability(sampler: Any) -> tf.data.Dataset:
    return wrapped(sampler).map(lambda x, y, s: (x, y, {"index": s["index"], "weight": s["weight"]}))


# The model, its loss, the data, and what is said.
REFUSED: dict[str, tuple[Any, Any, Any, str]] = {
    "loss ignores weights": (IgnoringWeights, "mse", wrapped, "does not depend on the sample weights.*biased"),
    "not linear in the weights": (NotLinear, None, wrapped, "not linear in the sample weights.*biased"),
    "half of the sampling": (functional, "mse", without_probability, "no sampling with index, weight, probability and"),
    "scalar function": (functional, scalar_function, wrapped, "one number for the whole batch.*axis=-1"),
    "scalar object": (functional, ScalarLoss(), wrapped, "one number for the whole batch.*axis=-1"),
    "scalar function in own compute_loss": (OwnComputeLoss, scalar_function, wrapped, "one number for the whole batch"),
    "mean_with_sample_weight": (
        functional,
        keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
        wrapped,
        "divides by the sum of the weights.*sum_over_batch_size",
    ),
    "two reductions": (
        lambda: two_outputs(False),
        [keras.losses.MeanSquaredError(), keras.losses.MeanSquaredError(reduction="sum")],
        lambda sampler: importance_dataset((X, (VALUES, VALUES)), sampler, B),
        "different reductions",
    ),
    "no sampling": (functional, "mse", plain, r"no sampling.*dataset.apply\(importance_sampling"),
    "weights, but no sampling": (functional, "mse", weighted, r"no sampling.*dataset.apply\(importance_sampling"),
    "weights for each step": (functional, "mse", for_each_step, r"one number for each sample, got shape \(6, 4\)"),
    "batches made anew": (functional, "mse", rebatched, "batch size is not known.*drop_remainder"),
    "train_step without compute_loss": (NeverComputingLoss, "mse", wrapped, "never called compute_loss.*custom loop"),
    "train_step that drops weights": (DroppingWeights, "mse", wrapped, "without sample_weight.*pass it on"),
}


# Eagerly, batches may have any size.
EAGERLY = [name for name in REFUSED if name != "batches made anew"]


@pytest.mark.parametrize(("name", "eager"), [*((name, False) for name in REFUSED), *((name, True) for name in EAGERLY)])
@pytest.mark.fault(18)
@pytest.mark.each_value
def test_refused_before_any_weight_has_changed(name: str, eager: bool, recording: type[Any]) -> None:
    make, loss, data, words = REFUSED[name]
    model, sampler = make(), recording(N, losses=KNOWN, seed=0)
    model.compile(keras.optimizers.SGD(0.5), loss, run_eagerly=eager)
    model(X)
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"(?s){words}"):
        fit(model, data(sampler), LossFeedback(model, sampler))
    for value, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)
    assert sampler.updates == []


def test_another_model_is_refused() -> None:
    sampler, model, other = ImportanceSampler(N), functional(), functional()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"was made for the model .* is fitted; make it with the model that is fitted"):
        fit(model, wrapped(sampler), LossFeedback(other, sampler))


def test_a_lag_shorter_than_steps_per_execution_is_refused() -> None:
    sampler, model = ImportanceSampler(N, feedback_lag=2), functional()
    model.compile("sgd", "mse", steps_per_execution=3)
    with pytest.raises(ValueError, match=r"feedback_lag=2 is smaller than steps_per_execution=3.*to 3 or more"):
        fit(model, wrapped(sampler), LossFeedback(model, sampler))


def test_fit_without_the_callback_does_not_train_on_wrong_weights() -> None:
    sampler, model = ImportanceSampler(N, seed=0), CASES["name"].compiled(rate=0.5)
    before = model.get_weights()
    with pytest.raises((TypeError, ValueError)):  # Keras cannot make weights of a dict
        fit(model, wrapped(sampler))
    for value, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)
