"""Kinds of models and losses, each with an oracle in NumPy that tells the loss of every sample.

The learning rate is 0 where losses are compared, so that the oracle, in float64, is the same for every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

N, B, K = 24, 6, 4
T = B  # the trap: weights (B,) laid along T go unnoticed
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)).astype(np.float32)
CLASSES = RNG.integers(0, K, N)
VALUES = RNG.normal(size=(N, K)).astype(np.float32)
TOKENS = RNG.integers(0, K, (N, T))
PIXELS = RNG.integers(0, K, (N, T, 2))
KNOWN = np.arange(1.0, N + 1)  # losses known beforehand, so that the first draws are weighted
STEPS = N // B
USER_WEIGHTS = RNG.uniform(0.2, 3.0, N).astype(np.float32)

Dense, Input = keras.layers.Dense, keras.layers.Input
SPARSE = keras.losses.SparseCategoricalCrossentropy


# --- oracles --------------------------------------------------------------------------------------


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def cross_entropy(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return -np.take_along_axis(log_softmax(z), y[..., None], axis=-1)[..., 0]


def smoothed(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return -((y * 0.8 + 0.2 / K) * log_softmax(z)).sum(axis=-1)


def squared(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return ((y - z) ** 2).mean(axis=-1)


def binary(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    return -np.where(y == 1, np.log(p[:, 0]), np.log1p(-p[:, 0]))


def mean_of(oracle: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda y, z: oracle(y, z).reshape(N, -1).mean(axis=1)


def sum_of(oracle: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda y, z: oracle(y, z).reshape(N, -1).sum(axis=1)


# --- models ---------------------------------------------------------------------------------------


def functional(units: int = K, activation: str | None = None) -> keras.Model:
    inputs = Input((3,))
    return keras.Model(inputs, Dense(units, activation)(Dense(5, "tanh")(inputs)))


def sequential() -> keras.Model:
    return keras.Sequential([Dense(5, "tanh"), Dense(K)])  # built by its first batch


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = Dense(5, "tanh"), Dense(K)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.out(self.hidden(x))


class OwnTrainStep(Subclassed):
    """As in Keras's guide to customised training."""

    def train_step(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


class OwnComputeLoss(Subclassed):
    """A penalty beside the compiled loss; the arguments have names of the user's own."""

    def compute_loss(self, inputs: Any, target: Any, out: Any, weight: Any, training: bool = True) -> Any:
        return super().compute_loss(inputs, target, out, weight) + 0.1 * tf.reduce_mean(out**2)


class OldComputeLoss(Subclassed):
    """Without ``training``, and without the compiled loss."""

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None) -> Any:
        losses = tf.reduce_mean(tf.square(y - y_pred), axis=-1)
        return tf.reduce_mean(losses * sample_weight)


class Reconstruction(keras.Model):
    """Learns from inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.out = Dense(3)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.out(x)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **_: Any
    ) -> Any:
        assert y is None
        return tf.reduce_mean(tf.reduce_mean(tf.square(x - y_pred), axis=-1) * sample_weight)


class OwnSequenceLoss(keras.Model):
    """A sequence model that adds to the compiled loss."""

    def __init__(self) -> None:
        super().__init__()
        self.out = Dense(T * K)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(self.out(x), [-1, T, K])

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **_: Any
    ) -> Any:
        return super().compute_loss(x, y, y_pred, sample_weight) + 1.0


def regularised() -> keras.Model:
    class Penalty(keras.layers.Layer):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            self.add_loss(0.1 * tf.reduce_sum(x**2))
            return x

    inputs = Input((3,))
    hidden = Penalty()(Dense(5, "tanh", kernel_regularizer="l2")(inputs))
    return keras.Model(inputs, Dense(K, bias_regularizer="l1")(hidden))


def shaped(*shape: int) -> keras.Model:
    inputs = Input((3,))
    flat = Dense(int(np.prod(shape)))(inputs)
    return keras.Model(inputs, keras.layers.Reshape(shape)(flat))


def two_outputs(as_dict: bool) -> keras.Model:
    inputs = Input((3,))
    outputs = [Dense(K, name="kind")(inputs), Dense(K, name="value")(inputs)]
    return keras.Model(inputs, {"kind": outputs[0], "value": outputs[1]} if as_dict else outputs)


def own_function(y: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    return keras.ops.mean(keras.ops.square(y - z), axis=-1)


class OwnLoss(keras.losses.Loss):
    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return own_function(y_true, y_pred)


class Case:
    """A model, how it is compiled, what it learns from, and the losses expected of all samples."""

    def __init__(
        self, model: Callable[[], keras.Model], loss: Any, y: Any, oracle: Callable[..., Any], **options: Any
    ) -> None:
        self.model, self.loss, self.y, self.oracle, self.options = model, loss, y, oracle, options

    def data(self, user_weights: bool = False) -> Any:
        if self.y is None:
            return X
        return (X, self.y, USER_WEIGHTS) if user_weights else (X, self.y)

    def compiled(self, rate: float = 0.0, **options: Any) -> keras.Model:
        keras.utils.set_random_seed(1)
        model = self.model()
        model.compile(keras.optimizers.SGD(rate), self.loss, **{"jit_compile": False, **self.options, **options})
        return model

    def losses(self, model: keras.Model) -> np.ndarray:
        predictions = tf.nest.map_structure(lambda z: z.numpy().astype(np.float64), model(X))
        return self.oracle(self.y, predictions)


def both(y: Any, z: Any) -> np.ndarray:
    return cross_entropy(y["kind"], z["kind"]) + 0.5 * squared(y["value"], z["value"])


def both_listed(y: Any, z: Any) -> np.ndarray:
    return 2.0 * cross_entropy(y[0], z[0]) + 0.25 * squared(y[1], z[1])


def mixed_ranks(y: Any, z: Any) -> np.ndarray:
    return cross_entropy(y[0], z[0]) + cross_entropy(y[1], z[1]).mean(axis=(1, 2))


def ranked_outputs() -> keras.Model:
    """A class for the sample, and one for each of its pixels."""
    inputs = Input((3,))
    pixels = keras.layers.Reshape((T, 2, K))(Dense(T * 2 * K)(inputs))
    return keras.Model(inputs, [Dense(K)(inputs), pixels])


LOGITS = SPARSE(from_logits=True)
ONE_HOT = np.eye(K, dtype=np.float32)[CLASSES]
CASES: dict[str, Case] = {
    "functional": Case(functional, LOGITS, CLASSES, cross_entropy),
    "sequential": Case(sequential, LOGITS, CLASSES, cross_entropy),
    "subclassed": Case(Subclassed, LOGITS, CLASSES, cross_entropy),
    "own train_step": Case(OwnTrainStep, LOGITS, CLASSES, cross_entropy),
    "own compute_loss": Case(OwnComputeLoss, LOGITS, CLASSES, cross_entropy),
    "old compute_loss": Case(OldComputeLoss, None, VALUES, squared),
    "inputs alone": Case(Reconstruction, None, None, lambda _, z: squared(X, z)),
    "regularisers and add_loss": Case(regularised, LOGITS, CLASSES, cross_entropy),
    "name": Case(functional, "mse", VALUES, squared),
    "name, probabilities": Case(
        lambda: functional(activation="softmax"),
        "sparse_categorical_crossentropy",
        CLASSES,
        lambda y, p: -np.log(p[np.arange(N), y]),
    ),
    "y (B,), prediction (B, 1)": Case(
        lambda: functional(1, "sigmoid"), "binary_crossentropy", CLASSES % 2, lambda y, p: binary(y, p)
    ),
    "own function": Case(functional, own_function, VALUES, squared),
    "own object": Case(functional, OwnLoss(), VALUES, squared),
    "label smoothing": Case(
        functional,
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2),
        ONE_HOT,
        smoothed,
    ),
    "sum": Case(functional, SPARSE(from_logits=True, reduction="sum"), CLASSES, cross_entropy),
    "unreduced": Case(functional, SPARSE(from_logits=True, reduction=None), CLASSES, cross_entropy),
    "mean": Case(functional, SPARSE(from_logits=True, reduction="mean"), CLASSES, cross_entropy),
    "loss weight": Case(functional, LOGITS, CLASSES, lambda y, z: 0.5 * cross_entropy(y, z), loss_weights=[0.5]),
    "sequence": Case(lambda: shaped(T, K), LOGITS, TOKENS, mean_of(cross_entropy)),
    "sequence, sum": Case(
        lambda: shaped(T, K), SPARSE(from_logits=True, reduction="sum"), TOKENS, sum_of(cross_entropy)
    ),
    "sequence, own function": Case(lambda: shaped(T, K), own_function, RNG.normal(size=(N, T, K)), mean_of(squared)),
    "sequence, own object": Case(lambda: shaped(T, K), OwnLoss(), RNG.normal(size=(N, T, K)), mean_of(squared)),
    "sequence, own compute_loss": Case(OwnSequenceLoss, LOGITS, TOKENS, mean_of(cross_entropy)),
    "image": Case(lambda: shaped(T, 2, K), LOGITS, PIXELS, mean_of(cross_entropy)),
    "image, own object": Case(lambda: shaped(T, 2, K), OwnLoss(), RNG.normal(size=(N, T, 2, K)), mean_of(squared)),
    "two outputs, dict": Case(
        lambda: two_outputs(True),
        {"kind": LOGITS, "value": "mse"},
        {"kind": CLASSES, "value": VALUES},
        both,
        loss_weights={"kind": 1.0, "value": 0.5},
    ),
    "two outputs, list": Case(
        lambda: two_outputs(False), [LOGITS, "mse"], (CLASSES, VALUES), both_listed, loss_weights=[2.0, 0.25]
    ),
    "two outputs, two ranks": Case(ranked_outputs, [LOGITS, LOGITS], (CLASSES, PIXELS), mixed_ranks),
}
MODES: dict[str, dict[str, Any]] = {
    "jit": {"jit_compile": True},
    "three steps": {"steps_per_execution": 3},
    "jit, three steps": {"jit_compile": True, "steps_per_execution": 3},
    "eager": {"run_eagerly": True},
}


def fit(model: keras.Model, train: Any, *callbacks: Any, epochs: int = 1, **options: Any) -> Any:
    return model.fit(train, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks), **options)


def assert_every_step_came_back(sampler: Any, losses: np.ndarray, steps: int, tolerance: float = 1e-5) -> None:
    assert [set(step) for _, _, step in sampler.updates] == [{step} for step in range(steps)]
    assert len(sampler.updates) == steps
    for (index, got, _), draw in zip(sampler.updates, sampler.draws, strict=False):
        np.testing.assert_array_equal(index, draw.index)
        np.testing.assert_allclose(got, losses[index], rtol=tolerance)
