"""The focal loss for integer labels against its formula, in float64; and as a compiled loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import LossFeedback, importance_dataset, per_sample_loss
from pipeline.losses import SparseCategoricalFocalCrossentropy as Focal
from pipeline.losses import loss_of
from sampler import ImportanceSampler

B, K, T = 8, 5, 3
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3.0, size=(B, K)).astype(np.float32)
CLASSES = RNG.integers(0, K, B)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z.astype(np.float64) - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def focal(y: np.ndarray, z: np.ndarray, gamma: float = 2.0, alpha: float = 1.0) -> np.ndarray:
    """-α (1 - p_y)^γ log p_y."""
    p = np.take_along_axis(softmax(z), y[..., None], axis=-1)[..., 0]
    return -alpha * (1.0 - p) ** gamma * np.log(p)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_each_sample_has_the_loss_of_the_formula(gamma: float, alpha: float) -> None:
    expected = focal(CLASSES, LOGITS, gamma, alpha)
    of_logits = per_sample_loss(Focal(gamma, alpha, from_logits=True))(CLASSES, LOGITS)
    of_shares = per_sample_loss(Focal(gamma, alpha))(CLASSES, softmax(LOGITS).astype(np.float32))
    # 1 - p is good to float32's 6e-8, so for p near 1 the relative error of the loss is γ times 6e-8 / (1 - p).
    np.testing.assert_allclose(of_logits, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(of_shares, expected, rtol=1e-4, atol=1e-6)


def test_it_is_keras_s_own_focal_loss_of_one_hot_labels() -> None:
    shares = softmax(LOGITS).astype(np.float32)
    theirs = keras.losses.CategoricalFocalCrossentropy(alpha=0.25, gamma=2.0, reduction=None)
    ours = Focal(gamma=2.0, alpha=0.25, reduction=None)
    one_hot = np.eye(K, dtype=np.float32)[CLASSES]
    np.testing.assert_allclose(ours(CLASSES, shares), theirs(one_hot, shares), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_slope_is_finite_and_right_where_a_class_is_certain(gamma: float) -> None:
    logits = tf.constant([[300.0, 0.0, 0.0], [0.0, 0.0, -300.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = Focal(gamma, from_logits=True, reduction=None)(np.array([0, 2]), logits)
    slope = tape.gradient(losses, logits).numpy()
    np.testing.assert_allclose(slope[0], 0.0, atol=1e-6)
    np.testing.assert_allclose(slope[1], [0.5, 0.5, -1.0], rtol=1e-6)  # the cross-entropy's: 1 - p_y is 1


def test_reductions_and_shapes() -> None:
    each = focal(CLASSES, LOGITS)
    assert float(Focal(from_logits=True)(CLASSES, LOGITS)) == pytest.approx(each.mean(), rel=1e-4)
    assert float(Focal(from_logits=True, reduction="sum")(CLASSES[:, None], LOGITS)) == pytest.approx(
        each.sum(), rel=1e-4
    )
    y, z = RNG.integers(0, K, (B, T)), RNG.normal(size=(B, T, K)).astype(np.float32)
    unreduced = Focal(from_logits=True, reduction=None)(y, z)
    np.testing.assert_allclose(unreduced, focal(y, z), rtol=1e-4, atol=1e-7)
    model = keras.Sequential([keras.Input((T, K))])
    np.testing.assert_allclose(
        loss_of(model, Focal(from_logits=True))(y, z), focal(y, z).mean(axis=1), rtol=1e-4, atol=1e-7
    )


def test_labels_of_the_ignored_class_do_not_count() -> None:
    value = float(Focal(from_logits=True, ignore_class=int(CLASSES[0]))(CLASSES, LOGITS))
    counted = np.not_equal(CLASSES, CLASSES[0])
    assert 0 < counted.sum() < B
    assert value == pytest.approx(focal(CLASSES, LOGITS)[counted].mean(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # Keras's
def test_it_comes_back_from_its_configuration_and_with_a_saved_model(tmp_path: Path) -> None:
    loss = Focal(3.0, alpha=0.5, from_logits=True, ignore_class=1, reduction="sum", name="mine")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is Focal
    assert again.get_config() == loss.get_config()
    model = keras.Sequential([keras.Input((K,)), keras.layers.Dense(K)])
    model.compile("sgd", loss)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.loss.get_config() == loss.get_config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1.0}, r"gamma must be in \[0, inf\), got -1"),
        ({"gamma": "two"}, "gamma must be a number, got 'two'"),
        ({"alpha": -1.0}, r"alpha must be in \[0, inf\), got -1"),
        ({"alpha": np.nan}, "alpha must be in .*, got nan"),
    ],
)
def test_other_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Focal(**options)


def test_loss_feedback_gives_the_loss_of_each_sample(recording: Any) -> None:
    x, y = RNG.normal(size=(24, K)).astype(np.float32), RNG.integers(0, K, 24)
    model = keras.Sequential([keras.Input((K,)), keras.layers.Dense(K)])
    model.compile(keras.optimizers.SGD(0.0), Focal(from_logits=True))
    sampler = recording(24, first_pass=False, losses=np.arange(1.0, 25.0), seed=0)
    assert isinstance(sampler, ImportanceSampler)
    train = importance_dataset((x, y), sampler, 8)
    history = model.fit(train, callbacks=[LossFeedback(model, sampler)], shuffle=False, verbose=0).history
    expected, weighted = focal(y, model.predict(x, verbose=0)), []
    for index, losses, step in sampler.updates:
        np.testing.assert_allclose(losses, expected[index], rtol=1e-4, atol=1e-7)
        draw = sampler.draws[int(step[0])]
        weighted.append(np.mean(draw.weight * expected[index]))
    assert len(weighted) == 3
    assert history["loss"][0] == pytest.approx(np.mean(weighted), rel=1e-4)
