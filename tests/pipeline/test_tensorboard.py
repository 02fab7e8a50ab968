"""The event files, read back: what they show is what the sampler and the logs say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline import LossFeedback, TrainingDynamics, importance_dataset
from pipeline.samples import hardest
from pipeline.tensorboard import SHOWN, SamplingBoard
from sampler import ImportanceSampler

pytest.importorskip("tensorboard")
N, B, K, EPOCHS = 40, 8, 3, 3
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(N, 5, 4)).astype(np.float32)
CLASSES = RNG.integers(0, K, N)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any, Any]:
    """What was written, and the sampler, the dynamics and the history that it was written of."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path_factory.mktemp("logs")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5, 4)), keras.layers.Flatten(), keras.layers.Dense(K)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    sampler, dynamics = ImportanceSampler(N, feedback_lag=2, seed=0), TrainingDynamics(N)
    board = SamplingBoard(folder, sampler, dynamics=dynamics, images=IMAGES)
    train = importance_dataset((IMAGES, CLASSES), sampler, B)
    callbacks = [LossFeedback(model, sampler, dynamics=dynamics), board]
    history = model.fit(train, epochs=EPOCHS, verbose=0, shuffle=False, callbacks=callbacks).history
    read = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    read.Reload()
    return read, sampler, dynamics, history


def values(read: Any, name: str) -> tuple[list[int], list[np.ndarray]]:
    import tensorflow as tf

    events = read.Tensors(name)
    return [event.step for event in events], [tf.make_ndarray(event.tensor_proto) for event in events]


def test_scalars_are_those_of_the_logs_but_the_seconds(shown: Any) -> None:
    read, _, _, history = shown
    for name, expected in history.items():
        if name != "sampling/milliseconds":
            steps, found = values(read, name)
            assert steps == [N // B * (epoch + 1) for epoch in range(EPOCHS)]
            np.testing.assert_allclose(np.array(found), expected, rtol=1e-6)
    assert "sampling/milliseconds" not in read.Tags()["tensors"]
    assert "sampling/gain" in read.Tags()["tensors"]


def test_histograms_are_of_the_losses_and_the_weights(shown: Any) -> None:
    read, sampler, dynamics, _ = shown
    weights = 1.0 / (N * sampler.probabilities())
    for name, expected in (("sampling/losses", dynamics.newest), ("sampling/weights", weights)):
        _, found = values(read, name)
        left, right, count = found[-1].T  # of the buckets
        assert count.sum() == N
        assert (left[0], right[-1]) == pytest.approx((expected.min(), expected.max()), rel=1e-5)
        inside = [((expected >= low) & (expected < high)).sum() for low, high in zip(left, right, strict=True)]
        assert abs(np.array(inside) - count)[:-1].max() <= 1  # what lies on an edge


def test_the_images_are_the_hardest(shown: Any) -> None:
    import tensorflow as tf

    read, _, dynamics, _ = shown
    _, found = values(read, "sampling/hardest")
    wide, high, *pictures = found[-1]
    assert (int(wide), int(high), len(pictures)) == (4, 5, SHOWN)
    for picture, index in zip(pictures, hardest(dynamics.newest), strict=False):
        pixels = tf.io.decode_png(picture).numpy()[..., 0]
        assert abs(pixels - 255.0 * IMAGES[index]).max() <= 1.0


@pytest.mark.parametrize("images", [IMAGES[1:], IMAGES[0], np.zeros((N, 5, 4, 2)), np.zeros((N, 3))])
def test_what_are_no_images_is_refused(images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images must be"):
        SamplingBoard(tmp_path, ImportanceSampler(N), dynamics=TrainingDynamics(N), images=images)


def test_images_need_losses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which dynamics has"):
        SamplingBoard(tmp_path, ImportanceSampler(N), images=IMAGES)


def test_without_tensorboard_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match="needs the extra tensorboard"):
        SamplingBoard(tmp_path, ImportanceSampler(N))
