"""Per-sample losses against NumPy, their weighted mean, and the gradients of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import per_sample_loss, weighted_mean

B, T, H, W, K = 6, 3, 2, 4, 5
RNG = np.random.default_rng(0)
Oracle = Callable[[np.ndarray, np.ndarray], np.ndarray]


# --- oracles, in NumPy and float64 ----------------------------------------------------------------


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def sparse_cross_entropy(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return -np.take_along_axis(log_softmax(z), y[..., None], axis=-1)[..., 0]


def smoothed_cross_entropy(y: np.ndarray, z: np.ndarray, smoothing: float) -> np.ndarray:
    target = np.eye(K)[y] * (1 - smoothing) + smoothing / K
    return -(target * log_softmax(z)).sum(axis=-1)


def squared(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return ((y - z) ** 2).mean(axis=-1)


def absolute(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.abs(y - z).mean(axis=-1)


def binary(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return (np.logaddexp(0.0, z) - y * z).mean(axis=-1)


def huber(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    error = np.abs(y - z)
    return np.where(error <= 1.0, error**2 / 2, error - 0.5).mean(axis=-1)


def my_squared(y: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """A function of the user's own."""
    return keras.ops.mean(keras.ops.square(y - z), axis=-1)


class MySquared(keras.losses.Loss):
    """A loss class of the user's own."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return my_squared(y_true, y_pred)


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(z))


SCORES = RNG.normal(size=(B, K)).astype(np.float32)
CLASSES = RNG.integers(0, K, B)
VALUES = RNG.normal(size=(B, K)).astype(np.float32)
BITS = RNG.integers(0, 2, (B, K)).astype(np.float32)
SPARSE = keras.losses.SparseCategoricalCrossentropy
SMOOTHED = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
SMOOTHED_LOSSES = smoothed_cross_entropy(CLASSES, SCORES, 0.2)

# The loss, y, what the model gives, and the losses that are expected.
LOSSES: dict[str, tuple[Any, np.ndarray, np.ndarray, np.ndarray]] = {
    "name": ("mse", VALUES, SCORES, squared(VALUES, SCORES)),
    "long name": ("mean_squared_error", VALUES, SCORES, squared(VALUES, SCORES)),
    "CamelCase name": ("MeanSquaredError", VALUES, SCORES, squared(VALUES, SCORES)),
    "another name": ("mae", VALUES, SCORES, absolute(VALUES, SCORES)),
    "name of a class alone": ("Huber", VALUES, SCORES, huber(VALUES, SCORES)),
    "probabilities": (
        "sparse_categorical_crossentropy",
        CLASSES,
        softmax(SCORES),
        sparse_cross_entropy(CLASSES, SCORES),
    ),
    "camel probabilities": (
        "SparseCategoricalCrossentropy",
        CLASSES,
        softmax(SCORES),
        sparse_cross_entropy(CLASSES, SCORES),
    ),
    "object": (SPARSE(from_logits=True), CLASSES, SCORES, sparse_cross_entropy(CLASSES, SCORES)),
    "object, y (B, 1)": (
        SPARSE(from_logits=True),
        CLASSES[:, None],
        SCORES,
        sparse_cross_entropy(CLASSES, SCORES),
    ),
    "object that sums": (
        SPARSE(from_logits=True, reduction="sum"),
        CLASSES,
        SCORES,
        sparse_cross_entropy(CLASSES, SCORES),
    ),
    "unreduced object": (
        SPARSE(from_logits=True, reduction=None),
        CLASSES,
        SCORES,
        sparse_cross_entropy(CLASSES, SCORES),
    ),
    "label smoothing": (SMOOTHED, np.eye(K)[CLASSES], SCORES, SMOOTHED_LOSSES),
    "binary": (keras.losses.BinaryCrossentropy(from_logits=True), BITS, SCORES, binary(BITS, SCORES)),
    "class": (keras.losses.MeanSquaredError, VALUES, SCORES, squared(VALUES, SCORES)),
    "Keras's function": (keras.losses.mean_squared_error, VALUES, SCORES, squared(VALUES, SCORES)),
    "own function": (my_squared, VALUES, SCORES, squared(VALUES, SCORES)),
    "own class": (MySquared, VALUES, SCORES, squared(VALUES, SCORES)),
    "own object": (MySquared(), VALUES, SCORES, squared(VALUES, SCORES)),
    "y (B,), prediction (B, 1)": ("mse", VALUES[:, 0], SCORES[:, :1], squared(VALUES[:, :1], SCORES[:, :1])),
    "function, y (B,), prediction (B, 1)": (
        my_squared,
        VALUES[:, 0],
        SCORES[:, :1],
        squared(VALUES[:, :1], SCORES[:, :1]),
    ),
    "y (B, 1), prediction (B,)": (
        my_squared,
        VALUES[:, :1],
        SCORES[:, 0],
        squared(VALUES[:, :1], SCORES[:, :1]),
    ),
    "whole numbers as y": (my_squared, CLASSES, SCORES[:, :1], squared(CLASSES[:, None], SCORES[:, :1])),
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_losses_are_those_of_numpy(kind: str, graph: bool) -> None:
    loss, y, y_pred, expected = LOSSES[kind]
    losses_of = per_sample_loss(loss)
    losses = (tf.function(losses_of) if graph else losses_of)(tf.constant(y), tf.constant(y_pred))
    assert losses.shape == (B,)
    np.testing.assert_allclose(losses, expected, rtol=2e-6, atol=1e-6)


def test_arrays_do_as_well_as_tensors() -> None:
    np.testing.assert_allclose(per_sample_loss("mse")(VALUES, SCORES), squared(VALUES, SCORES), rtol=1e-6)
    np.testing.assert_allclose(
        per_sample_loss(my_squared)(VALUES[:, 0], SCORES[:, :1]),
        squared(VALUES[:, :1], SCORES[:, :1]),
        rtol=1e-6,
    )


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_predictions(dtype: tf.DType) -> None:
    """The loss itself is computed in float32, as Keras does."""
    scores = tf.cast(SCORES, dtype)
    losses = per_sample_loss(SPARSE(from_logits=True))(CLASSES, scores)
    assert losses.dtype == tf.float32
    np.testing.assert_allclose(losses, sparse_cross_entropy(CLASSES, tf.cast(scores, tf.float64).numpy()), rtol=2e-6)


# --- further axes ---------------------------------------------------------------------------------


@pytest.mark.fault(9)
def test_sequences_are_reduced_as_asked() -> None:
    scores = RNG.normal(size=(B, T, K)).astype(np.float32)
    classes = RNG.integers(0, K, (B, T))
    expected = sparse_cross_entropy(classes, scores)
    loss = SPARSE(from_logits=True)
    np.testing.assert_allclose(per_sample_loss(loss, reduce="mean")(classes, scores), expected.mean(1), rtol=2e-6)
    np.testing.assert_allclose(per_sample_loss(loss, reduce="sum")(classes, scores), expected.sum(1), rtol=2e-6)


def test_images_are_reduced_as_asked() -> None:
    y, y_pred = RNG.normal(size=(2, B, H, W, 3)).astype(np.float32)
    expected = squared(y, y_pred)
    assert expected.shape == (B, H, W)
    np.testing.assert_allclose(per_sample_loss("mse", reduce="mean")(y, y_pred), expected.mean((1, 2)), rtol=2e-6)
    np.testing.assert_allclose(per_sample_loss("mse", reduce="sum")(y, y_pred), expected.sum((1, 2)), rtol=2e-6)


def test_reduce_leaves_plain_losses_alone() -> None:
    np.testing.assert_array_equal(
        per_sample_loss("mse", reduce="sum")(VALUES, SCORES), per_sample_loss("mse")(VALUES, SCORES)
    )


def test_masked_steps_count_nothing() -> None:
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    layer = keras.layers.Embedding(4, K, mask_zero=True)
    y = RNG.normal(size=(2, 3, K)).astype(np.float32)
    scores = layer(tokens)
    losses = per_sample_loss("mse", reduce="sum")(y, scores)
    expected = squared(y, scores.numpy()) * (tokens > 0)
    np.testing.assert_allclose(losses, expected.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("shape", [(B, T, K), (B, H, W, K)])
@pytest.mark.fault(9)
def test_further_axes_without_reduce_are_refused(shape: tuple[int, ...], graph: bool) -> None:
    losses_of = per_sample_loss("mse")
    call = tf.function(losses_of) if graph else losses_of
    with pytest.raises(ValueError, match=r"shape \(6, .*say how.*reduce='mean'\) or reduce='sum'"):
        call(tf.zeros(shape), tf.zeros(shape))


# --- what is refused ------------------------------------------------------------------------------


def scalar_function(y: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(y - z))


class ScalarLoss(keras.losses.Loss):
    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return scalar_function(y_true, y_pred)


@pytest.mark.parametrize("loss", [scalar_function, ScalarLoss, ScalarLoss()])
@pytest.mark.parametrize("reduce", [None, "mean"])
@pytest.mark.fault(8)
def test_a_loss_that_gives_one_number_is_refused(loss: Any, reduce: str | None) -> None:
    with pytest.raises(ValueError, match=r"one number for the whole batch.*ops.mean\(..., axis=-1\)"):
        per_sample_loss(loss, reduce=reduce)(tf.zeros([B, K]), tf.zeros([B, K]))


@pytest.mark.parametrize("loss", [5, None, ["mse"]])
def test_what_is_no_loss(loss: Any) -> None:
    with pytest.raises(TypeError, match="a Keras loss, its name or a function, got"):
        per_sample_loss(loss)


def test_a_name_that_keras_does_not_know() -> None:
    with pytest.raises(ValueError, match="no_such_loss"):
        per_sample_loss("no_such_loss")


def test_a_reduction_that_is_none() -> None:
    with pytest.raises(ValueError, match="reduce must be 'mean', 'sum' or None, got 'max'"):
        per_sample_loss("mse", reduce="max")


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean"])
def test_the_loss_given_is_left_alone(reduction: str) -> None:
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    before = float(loss(VALUES, SCORES))
    per_sample_loss(loss)(VALUES, SCORES)
    assert loss.reduction == reduction
    assert float(loss(VALUES, SCORES)) == before


# --- the weighted mean ----------------------------------------------------------------------------


def test_weighted_mean_divides_by_the_batch_size() -> None:
    losses, weight = np.array([1.0, 3.0, 5.0]), np.array([0.5, 2.0, 4.0])
    assert float(weighted_mean(losses, weight)) == pytest.approx((0.5 + 6.0 + 20.0) / 3)


def test_weighted_mean_keeps_the_losses_precision() -> None:
    weight = np.ones(3, np.float32)
    assert weighted_mean(tf.ones(3, tf.float16), weight).dtype == tf.float16
    assert weighted_mean(np.ones(3), weight).dtype == tf.float64


@pytest.mark.parametrize(
    ("losses", "weight"),
    [((B, 1), (B,)), ((B,), (B, 1)), ((B, 1), (B, 1)), ((), (B,)), ((B,), ()), ((B, T), (B,))],
)
def test_weighted_mean_refuses_other_shapes(losses: tuple[int, ...], weight: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must both have shape \(B,\), got"):
        weighted_mean(tf.ones(losses), tf.ones(weight))


def test_weighted_mean_refuses_other_lengths() -> None:
    """(1,) would be laid along (B,)."""
    with pytest.raises(ValueError, match=r"must both have shape \(B,\), got \(6,\) and \(1,\)"):
        weighted_mean(tf.ones(B), tf.ones(1))


# --- gradients ------------------------------------------------------------------------------------


def gradients(loss_of: Callable[[tf.Tensor], tf.Tensor]) -> np.ndarray:
    scores = tf.constant(SCORES)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        loss = loss_of(scores)
    return tape.gradient(loss, scores).numpy()


@pytest.mark.parametrize("loss", [SPARSE(from_logits=True), "sparse"], ids=["object", "function"])
def test_the_mean_of_the_losses_has_the_gradient_of_the_batch_loss(loss: Any) -> None:
    if loss == "sparse":

        def loss(y: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
            return keras.losses.sparse_categorical_crossentropy(y, z, from_logits=True)

    whole = SPARSE(from_logits=True)
    per_sample = per_sample_loss(loss)
    ours = gradients(lambda z: tf.reduce_mean(per_sample(CLASSES, z)))
    np.testing.assert_allclose(ours, gradients(lambda z: whole(CLASSES, z)), rtol=1e-6, atol=1e-8)
    assert np.abs(ours).max() > 0.01


def test_the_weighted_mean_has_the_gradient_of_keras_sample_weights() -> None:
    weight = RNG.uniform(0.1, 3.0, B).astype(np.float32)
    whole, per_sample = SPARSE(from_logits=True), per_sample_loss(SPARSE(from_logits=True))
    ours = gradients(lambda z: weighted_mean(per_sample(CLASSES, z), weight))
    theirs = gradients(lambda z: whole(CLASSES, z, sample_weight=weight))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_sequences_have_the_gradient_of_their_batch_loss(reduce: str) -> None:
    reduction = "sum_over_batch_size" if reduce == "mean" else "sum"
    y = RNG.normal(size=(2, 3, K)).astype(np.float32)

    def shaped(z: tf.Tensor) -> tf.Tensor:
        return tf.reshape(z, [2, 3, K])

    per_sample = per_sample_loss("mse", reduce=reduce)
    whole = keras.losses.MeanSquaredError(reduction=reduction)
    together = tf.reduce_mean if reduce == "mean" else tf.reduce_sum
    ours = gradients(lambda z: together(per_sample(y, shaped(z))))
    np.testing.assert_allclose(ours, gradients(lambda z: whole(y, shaped(z))), rtol=1e-6, atol=1e-8)
