"""The report of a ``fit``: pictures, texts, quantities; what does not fit is refused. Fifteen seconds of CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import LossFeedback, TrainingDynamics, importance_dataset
from pipeline.report import plots, report
from pipeline.report.fitting import TrainingReport, as_classes
from pipeline.samples import Samples
from sampler import ImportanceSampler


@pytest.fixture(autouse=True, scope="module")
def coarse() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plots, "DPI", 40)
        yield


def compiled(layers: list[Any], loss: Any, metrics: list[str] | None = None) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.01), loss=loss, metrics=metrics)
    return model


def fitted(model: keras.Model, x: Any, y: Any, folder: Path, epochs: int = 3, **options: Any) -> Samples:
    sampler = ImportanceSampler(len(x), seed=0)
    feedback = LossFeedback(model, sampler, dynamics=TrainingDynamics(len(x)))
    page = TrainingReport(folder, feedback, x, y)
    train = importance_dataset((x, y), sampler, 20)
    model.fit(train, epochs=epochs, callbacks=[feedback, page], shuffle=False, verbose=0, **options)
    assert page.path == folder / "report.html"
    return Samples.read(folder / "samples.npz")


def test_images(tmp_path: Path) -> None:
    """The losses are those of the model at the end, the page has the test loss, and it can be written anew."""
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=120)
    x = (rng.random((120, 4, 4)) * 0.3 + (np.arange(4)[:, None] == y[:, None, None])).astype("float32")
    layers = [keras.Input((4, 4)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    model = compiled(layers, "sparse_categorical_crossentropy", ["accuracy"])
    samples = fitted(model, x, y, tmp_path, validation_data=(x[:50], y[:50]))
    output = model.predict(x, verbose=0)
    np.testing.assert_allclose(samples.loss, -np.log(output[np.arange(120), y]), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(samples.prediction, output.argmax(axis=1))
    assert samples.num_classes == 3
    assert samples.drawn.sum() == 3 * 120
    summary = json.loads((tmp_path / "summary.json").read_text())
    loss, accuracy = model.evaluate(x[:50], y[:50], verbose=0)
    assert summary["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert summary["test_accuracy"] == pytest.approx(accuracy)
    assert summary["steps"] == 18
    page = (tmp_path / "report.html").read_text()
    for part in ("Does it learn?", "What were the draws worth?", "The hardest samples", "Labels that may be wrong"):
        assert part in page
    assert "no uniform run beside it" not in page  # which would name train.py
    before = page
    assert report(tmp_path).read_text() == before


@pytest.mark.every(2)
@pytest.mark.parametrize("from_logits", [True, False])
def test_two_classes_and_no_validation(tmp_path: Path, from_logits: bool) -> None:
    x = np.linspace(-1.0, 1.0, 60, dtype="float32")[:, None]
    y = (x[:, 0] > 0).astype("int64")
    last = keras.layers.Dense(1, activation=None if from_logits else "sigmoid")
    model = compiled([keras.Input((1,)), last], keras.losses.BinaryCrossentropy(from_logits=from_logits))
    samples = fitted(model, x, y[:, None], tmp_path)
    kernel, bias = (float(part.numpy().item()) for part in model.layers[-1].weights)
    np.testing.assert_array_equal(samples.prediction, (kernel * x[:, 0] + bias > 0).astype(int))
    assert samples.num_classes == 2
    page = (tmp_path / "report.html").read_text()
    assert "Does it learn?" not in page
    assert "The hardest samples" in page


def test_texts_are_shown(tmp_path: Path) -> None:
    """The hardest is one whose words say the other class."""
    texts = np.array(["good film", "bad film"] * 30, object)
    y = np.arange(60) % 2
    texts[0], y[0] = "Good <film>!", 1  # the same two words to the model
    vectorize = keras.layers.TextVectorization(max_tokens=20, output_mode="multi_hot")
    vectorize.adapt(texts.astype(str))
    model = compiled(
        [keras.Input((), dtype="string"), vectorize, keras.layers.Dense(2)],
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.optimizer.learning_rate = 0.05
    samples = fitted(model, texts, y, tmp_path, epochs=15)
    assert samples.loss.argmax() == 0
    assert "Good &lt;film&gt;!" in (tmp_path / "report.html").read_text()


def test_quantities(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((60, 5)).astype("float32")
    y = x.sum(axis=1)
    model = compiled([keras.Input((5,)), keras.layers.Dense(1)], "mse")
    samples = fitted(model, x, y, tmp_path)
    np.testing.assert_allclose(samples.loss, (model.predict(x, verbose=0)[:, 0] - y) ** 2, rtol=1e-3, atol=1e-6)
    assert samples.num_classes == 0
    assert not (tmp_path / "suspects.csv").exists()


def test_one_hot_labels_are_classes() -> None:
    y, outputs = np.eye(3)[[2, 0, 1]], np.array([[0.1, 0.2, 0.7], [0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    labels, predictions, classes = as_classes(y, outputs, "categorical_crossentropy")
    assert (labels.tolist(), predictions.tolist(), classes) == ([2, 0, 1], [2, 1, 1], 3)
    assert as_classes(y / 2, outputs, "mse")[2] == 0  # quantities


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = compiled([keras.Input((1,)), keras.layers.Dense(1)], "mse")
    sampler = ImportanceSampler(10)
    x = tf.zeros((10, 1)).numpy()
    with pytest.raises(ValueError, match=r"dynamics=TrainingDynamics"):
        TrainingReport(tmp_path, LossFeedback(model, sampler), x, x)
    with pytest.raises(ValueError, match="the 10 samples"):
        TrainingReport(tmp_path, LossFeedback(model, sampler, dynamics=TrainingDynamics(10)), x[1:], x)
    with pytest.raises(TypeError, match="one input and one output, x and y as one array each, got ndarray and dict"):
        TrainingReport(tmp_path, LossFeedback(model, sampler, dynamics=TrainingDynamics(10)), x, {"a": x})


def test_several_outputs_are_refused_before_the_training(tmp_path: Path) -> None:
    put = keras.Input((1,))
    two = keras.Model(put, {"a": keras.layers.Dense(1, name="a")(put), "b": keras.layers.Dense(1, name="b")(put)})
    two.compile("sgd", loss={"a": "mse", "b": "mse"})
    sampler, x = ImportanceSampler(10), np.zeros((10, 1))
    feedback = LossFeedback(two, sampler, dynamics=TrainingDynamics(10))
    train = importance_dataset((x, {"a": x, "b": x}), sampler, 5)
    with pytest.raises(ValueError, match="has 1 and 2: leave this callback out"):
        two.fit(train, callbacks=[feedback, TrainingReport(tmp_path, feedback, x, x)], shuffle=False, verbose=0)
    assert sampler.summary()["updates"] == 0
