"""Loops of one's own: losses fed back in one line, eagerly, in a graph, and over several replicas."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import feed_back, importance_dataset, weighted_mean
from sampler import ImportanceSampler

N, B = 24, 6
X = np.arange(N, dtype=np.float32)
LOSSES = X % 5 + 1.0


def loss_of(x: tf.Tensor) -> tf.Tensor:
    return x % 5.0 + 1.0


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("lag", [None, 3])
@pytest.mark.each_value
def test_losses_reach_the_sampler(compiled: bool, lag: int | None) -> None:
    sampler = ImportanceSampler(N, seed=0, feedback_lag=lag, feedback_timeout=20.0)

    def step(x: tf.Tensor, sampling: Any) -> tf.Tensor:
        losses = loss_of(x)
        feed_back(sampler, sampling, losses)
        return weighted_mean(losses, sampling["weight"])

    step = tf.function(step) if compiled else step
    for _ in range(3):
        for x, sampling in importance_dataset(X, sampler, B):
            step(x, sampling)
    assert sampler.summary()["updates"] == 3 * N // B
    np.testing.assert_allclose(sampler.priorities(), LOSSES)


def test_a_whole_epoch_in_one_function() -> None:
    sampler = ImportanceSampler(N, seed=0)

    @tf.function
    def epoch(train: tf.data.Dataset) -> None:
        for x, sampling in train:
            feed_back(sampler, sampling, loss_of(x))

    train = importance_dataset(X, sampler, B)
    for _ in range(2):
        epoch(train)
    assert sampler.summary()["updates"] == 2 * N // B
    np.testing.assert_allclose(sampler.priorities(), LOSSES)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_scores_go_beside_the_losses(compiled: bool) -> None:
    sampler = ImportanceSampler(N, priority="gradient_norm", seed=0)

    def step(x: tf.Tensor, sampling: Any) -> None:
        feed_back(sampler, sampling, loss_of(x), score=2.0 * loss_of(x))

    step = tf.function(step) if compiled else step
    for x, sampling in importance_dataset(X, sampler, B):
        step(x, sampling)
    np.testing.assert_allclose(sampler.priorities(), 2.0 * LOSSES)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_no_gradient_runs_through_it(compiled: bool) -> None:
    sampler, variable = ImportanceSampler(N, seed=0), tf.Variable(2.0)

    def step(x: tf.Tensor, sampling: Any) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = variable * (x + 1.0)
            feed_back(sampler, sampling, losses)
            loss = weighted_mean(losses, sampling["weight"])
        return tape.gradient(loss, variable)

    step = tf.function(step) if compiled else step
    x, sampling = next(iter(importance_dataset(X, sampler, B)))
    expected = (sampling["weight"].numpy() * (x.numpy() + 1.0)).mean()
    assert float(step(x, sampling)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_what_the_sampler_refuses_ends_the_step_with_its_words(compiled: bool) -> None:
    sampler = ImportanceSampler(N, seed=0)

    def step(x: tf.Tensor, sampling: Any) -> None:
        feed_back(sampler, sampling, -loss_of(x))

    step = tf.function(step) if compiled else step
    x, sampling = next(iter(importance_dataset(X, sampler, B)))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="negative"):
        step(x, sampling)
    assert sampler.summary()["updates"] == 0


def test_the_function_does_not_keep_the_sampler() -> None:
    sampler = ImportanceSampler(N, seed=0)
    x, sampling = next(iter(importance_dataset(X, sampler, B)))

    def traced(given: ImportanceSampler) -> Any:
        @tf.function
        def step(x: tf.Tensor, sampling: Any) -> None:
            feed_back(given, sampling, loss_of(x))

        step(x, sampling)

    traced(sampler)
    reference = weakref.ref(sampler)
    del sampler
    gc.collect()
    assert reference() is None


MIRRORED = """
    import keras
    import numpy as np
    import tensorflow as tf
    from pipeline import LossFeedback, feed_back, importance_dataset, per_sample_loss, weighted_mean
    from sampler import ImportanceSampler

    devices = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(devices[0], [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    N, B, K = 24, 6, 4
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3)).astype(np.float32)
    y = rng.integers(0, K, N)
    own = rng.uniform(0.5, 2.0, N).astype(np.float32)

    class Remembering(ImportanceSampler):
        told = ()
        def update(self, index, losses, step=None, score=None):
            super().update(index, losses, step=step, score=score)
            self.told += ((np.array(index), np.array(losses), score if score is None else np.array(score)),)

    def model_of(rate, built):
        keras.utils.set_random_seed(1)
        first = [keras.layers.Input((3,))] if built else []
        model = keras.Sequential([*first, keras.layers.Dense(5, "tanh"), keras.layers.Dense(K)])
        model.compile(keras.optimizers.SGD(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                      metrics=["accuracy"], jit_compile=False)
        return model

    def fitted(rate, built, epochs=2):
        sampler = Remembering(N, seed=0, feedback_lag=4, losses=np.arange(1.0, N + 1), feedback_timeout=30.0)
        model = model_of(rate, built)
        feedback = LossFeedback(model, sampler, score="gradient_norm")
        train = importance_dataset((x, y, own), sampler, B)
        history = model.fit(train, epochs=epochs, verbose=0, shuffle=False, callbacks=[feedback]).history
        return model, sampler, history

    def check(built):
        with strategy.scope():
            model, sampler, history = fitted(0.0, built)
        scores = model.predict(x, verbose=0)
        losses = keras.losses.sparse_categorical_crossentropy(y, scores, from_logits=True).numpy()
        p = np.exp(scores - scores.max(1, keepdims=True)); p /= p.sum(1, keepdims=True)
        norms = np.linalg.norm(p - np.eye(K)[y], axis=1)
        assert len(sampler.told) == 2 * N // B, len(sampler.told)
        for index, got, score in sampler.told:
            assert len(index) == B
            np.testing.assert_allclose(got, losses[index], rtol=1e-5)
            np.testing.assert_allclose(score, norms[index], rtol=1e-4)
        with strategy.scope():
            model, sampler, history = fitted(0.5, built)
        alone, twin, expected = fitted(0.5, built)
        for one, other in zip(model.get_weights(), alone.get_weights()):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose(history[name], expected[name], rtol=1e-4)
        for (index, got, _), (there, want, _) in zip(sampler.told, twin.told):
            np.testing.assert_array_equal(index, there)
            np.testing.assert_allclose(got, want, rtol=1e-4)

    for built in (True, False):
        check(built)
        print("alike", "built" if built else "not built", flush=True)

    sampler = Remembering(N, seed=0)
    loss_of = per_sample_loss("mse")

    def step(inputs, sampling):
        losses = loss_of(inputs[:, :1], inputs[:, 1:2])
        feed_back(sampler, sampling, losses)
        return tf.reduce_mean(losses * sampling["weight"])

    for batch in strategy.experimental_distribute_dataset(importance_dataset(x, sampler, B)):
        tf.function(lambda b: strategy.run(step, args=b))(batch)
    assert [len(index) for index, _, _ in sampler.told] == [B // 2] * (2 * N // B)
    np.testing.assert_allclose(sampler.priorities(), (x[:, 0] - x[:, 1]) ** 2, rtol=1e-5)
    print("a loop, too")
"""


def test_two_replicas(python: Callable[..., Any]) -> None:
    """MirroredStrategy over two logical CPUs: the same losses, scores, weights and metrics as one replica.

    With a model that is built beforehand, and with one that its first batch builds.
    """
    result = python(MIRRORED)
    lines = ["alike built", "alike not built", "a loop, too"]
    assert (result.returncode, result.stdout.splitlines()) == (0, lines), result.stderr[-3000:]
