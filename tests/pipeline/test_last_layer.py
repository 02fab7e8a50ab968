"""The gradient of each sample, and of the batch, with respect to the last layer's weights: exact against a tape."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import LossFeedback, SparseCategoricalFocalCrossentropy, importance_dataset, per_sample_loss
from sampler import ImportanceSampler, priorities

N, B, K = 24, 6, 4
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(N, 3)) * RNG.lognormal(size=(N, 1))).astype(np.float32)
CLASSES = RNG.integers(0, K, N)
VALUES = RNG.normal(size=(N, K)).astype(np.float32)
MODES: dict[str, dict[str, Any]] = {
    "graph": {},
    "jit, two steps": {"jit_compile": True, "steps_per_execution": 2},
    "eager": {"run_eagerly": True},
}
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Told(ImportanceSampler):
    """A sampler that wants scores, and remembers what it is told."""

    wants_score = True

    def __init__(self, **options: Any) -> None:
        super().__init__(N, losses=np.arange(1.0, N + 1), seed=0, **options)
        self.gated = True  # from now on, so that the norm of the mean gradient is told as well
        self.told: list[tuple[np.ndarray, Any, Any]] = []
        self.weight: dict[int, np.ndarray] = {}

    def poll(self, batch_size: int, *, seconds: float) -> Any:
        draw = super().poll(batch_size, seconds=seconds)
        self.weight[draw.step] = 1.0 / (N * draw.probability)
        return draw

    def poll_rows(self, *rows: Any, seconds: float) -> int:
        return super(ImportanceSampler, self).poll_rows(*rows, seconds=seconds)

    def update(self, index: Any, losses: Any, step: Any = None, score: Any = None, **more: Any) -> None:
        self.told.append((index, score, (self.weight[int(step[0])], more.get("mean_gradient_norm"))))
        super().update(index, losses, step=step)


def model_of(loss: Any, *, use_bias: bool = True, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.layers.Input((3,))
    hidden = keras.layers.Dense(5, "tanh")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(K, name="head", use_bias=use_bias)(hidden))
    model.compile(keras.optimizers.SGD(0.0), loss, **options)
    return model


def gradients(model: keras.Model, y: np.ndarray) -> np.ndarray:
    """(N, weights) float64: of each sample's loss by the head's weights, one tape each."""
    rows = []
    for i in range(N):
        with tf.GradientTape() as tape:
            loss = keras.losses.get(model.loss)(y[i : i + 1], model(X[i : i + 1]))
        parts = tape.gradient(loss, model.get_layer("head").trainable_weights)
        rows.append(np.concatenate([part.numpy().ravel() for part in parts]))
    return np.array(rows, np.float64)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("loss", "y"), [(SPARSE, CLASSES), (keras.losses.MeanSquaredError(), VALUES)])
@pytest.mark.each_value
def test_norms_of_samples_and_of_their_weighted_mean(loss: Any, y: np.ndarray, mode: str, use_bias: bool) -> None:
    model, sampler = model_of(loss, use_bias=use_bias, **MODES[mode]), Told(beta=0.5)
    data = importance_dataset((X, y), sampler, B)
    model.fit(data, epochs=1, shuffle=False, verbose=0, callbacks=[LossFeedback(model, sampler)])
    rows = gradients(model, y)
    assert len(sampler.told) == N // B
    for index, score, (weight, mean) in sampler.told:
        np.testing.assert_allclose(score, np.linalg.norm(rows[index], axis=1), rtol=2e-5)
        expected = np.linalg.norm((weight[:, None] * rows[index]).mean(axis=0))  # 1/(N p) whatever β
        assert mean == pytest.approx(expected, rel=2e-5)
        assert mean != pytest.approx(np.linalg.norm(rows[index].mean(axis=0)), rel=1e-3)  # without weights


def test_scores_at_the_pre_activations_come_with_the_mean_gradient_by_the_bias() -> None:
    model, sampler = model_of(SPARSE), Told()
    data = importance_dataset((X, CLASSES), sampler, B)
    feedback = LossFeedback(model, sampler, score="gradient_norm")
    model.fit(data, epochs=1, shuffle=False, verbose=0, callbacks=[feedback])
    rows = gradients(model, CLASSES)[:, -K:]
    for index, score, (weight, mean) in sampler.told:
        np.testing.assert_allclose(score, np.linalg.norm(rows[index], axis=1), rtol=2e-5)
        assert mean == pytest.approx(np.linalg.norm((weight[:, None] * rows[index]).mean(axis=0)), rel=2e-5)


def test_a_model_whose_last_layer_cannot_be_told_goes_without_unless_asked_for() -> None:
    class Subclassed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.head = keras.layers.Dense(K)

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return self.head(x)

    model, sampler = Subclassed(), Told()
    model.compile("sgd", SPARSE)
    data = importance_dataset((X, CLASSES), sampler, B)
    model.fit(data, epochs=1, shuffle=False, verbose=0, callbacks=[LossFeedback(model, sampler)])
    assert [score for _, score, _ in sampler.told] == [None] * (N // B)
    with pytest.raises(ValueError, match="which layer of a subclassed model is the last"):
        model.fit(data, shuffle=False, verbose=0, callbacks=[LossFeedback(model, sampler, score="last_layer")])
    model.fit(data, shuffle=False, verbose=0, callbacks=[LossFeedback(model, sampler, at=model.head)])
    assert sampler.told[-1][1] is not None


AUTO: dict[str, tuple[Any, np.ndarray, str]] = {
    "softmax, by name": ("sparse_categorical_crossentropy", CLASSES, "gradient_norm"),
    "squared error": (keras.losses.MeanSquaredError(), VALUES, "gradient_norm"),
    "absolute error": ("mae", VALUES, "loss"),
    "focal": (SparseCategoricalFocalCrossentropy(from_logits=True), CLASSES, "loss"),
}


@pytest.mark.parametrize("name", AUTO)
@pytest.mark.every(2)
def test_auto_is_the_priority_that_suits_the_loss(name: str) -> None:
    loss, y, expected = AUTO[name]
    model, sampler = model_of(loss), ImportanceSampler(N, priority="auto", seed=0)
    data = importance_dataset((X, y), sampler, B)
    for _ in range(2):
        model.fit(data, epochs=1, shuffle=False, verbose=0, callbacks=[LossFeedback(model, sampler)])
    losses = per_sample_loss(loss)(y, model(X)).numpy()
    told = np.linalg.norm(gradients(model, y), axis=1) if expected == "gradient_norm" else losses
    np.testing.assert_allclose(sampler.priorities(), told, rtol=2e-5)


@pytest.mark.parametrize(("loss", "y", "function"), [(SPARSE, CLASSES, "bounded"), ("mse", VALUES, "sqrt")])
def test_auto_without_a_layer_that_can_be_told(loss: Any, y: np.ndarray, function: str) -> None:
    class Subclassed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.head = keras.layers.Dense(K)

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return self.head(x)

    model, sampler = Subclassed(), ImportanceSampler(N, priority="auto", seed=0)
    model.compile(keras.optimizers.SGD(0.0), loss)
    data = importance_dataset((X, y), sampler, B)
    model.fit(data, epochs=1, shuffle=False, verbose=0, callbacks=[LossFeedback(model, sampler)])
    expected = priorities.resolve(function)(per_sample_loss(loss)(y, model(X)).numpy().astype(np.float64))
    np.testing.assert_allclose(sampler.priorities(), expected, rtol=2e-5)


def test_a_gate_that_gets_no_scores_is_told_and_how_to_mend_it(caplog: pytest.LogCaptureFixture) -> None:
    inputs = keras.layers.Input((3,))
    model = keras.Model(inputs, [keras.layers.Dense(K)(inputs), keras.layers.Dense(K)(inputs)])
    model.compile("sgd", [SPARSE, SPARSE])
    for gate, warned in (("variance", True), (None, False)):
        caplog.clear()
        sampler = ImportanceSampler(N, gate=gate, priority="auto", seed=0)
        data = importance_dataset((X, (CLASSES, CLASSES)), sampler, B)
        model.fit(data, shuffle=False, verbose=0, callbacks=[LossFeedback(model, sampler)])
        assert ("the sampler's gate gets no scores" in caplog.text) == warned
        assert ("LossFeedback(..., at=layer)" in caplog.text) == warned


def test_a_model_that_is_compiled_after_the_callback_was_made_has_the_figures_of_its_loss() -> None:
    model, sampler = model_of("mse"), ImportanceSampler(N, seed=0)
    feedback = LossFeedback(model, sampler)
    model.compile(keras.optimizers.SGD(0.0), SPARSE)
    data = importance_dataset((X, CLASSES), sampler, B)
    model.fit(data, shuffle=False, verbose=0, callbacks=[feedback])
    assert feedback._figures.bounded
