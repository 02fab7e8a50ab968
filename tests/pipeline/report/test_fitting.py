"""The report of a ``fit``: pictures, texts, quantities; what does not fit is refused. Fifteen seconds of CPU."""

from __future__ import annotations

import csv
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


LOGITS = keras.losses.BinaryCrossentropy(from_logits=True)


@pytest.mark.parametrize(
    ("y", "output", "loss", "labels", "predictions"),
    [
        ([0, 1, 1], [[0.2], [0.4], [0.9]], "binary_crossentropy", [0, 1, 1], [0, 0, 1]),
        ([0.0, 1.0, 1.0], [[0.2], [0.4], [0.9]], "bce", [0, 1, 1], [0, 0, 1]),
        ([False, True, True], [[0.2], [0.4], [0.9]], keras.losses.binary_focal_crossentropy, [0, 1, 1], [0, 0, 1]),
        ([0, 1, 1], [[-0.2], [0.4], [0.9]], LOGITS, [0, 1, 1], [0, 1, 1]),
        ([-1, 1, 1], [[-0.2], [0.4], [-0.9]], "hinge", [0, 1, 1], [0, 1, 0]),
        ([-1.0, 1.0, 1.0], [-0.2, 0.4, -0.9], keras.losses.SquaredHinge(), [0, 1, 1], [0, 1, 0]),
        ([2.0, 0.0], [[0, 0, 1], [0, 1, 0]], "sparse_categorical_crossentropy", [2, 0], [2, 1]),
    ],
)
def test_labels_of_classes(y: Any, output: Any, loss: Any, labels: list[int], predictions: list[int]) -> None:
    found = as_classes(np.array(y), np.array(output, float), loss)
    assert (found[0].tolist(), found[1].tolist()) == (labels, predictions)
    assert found[2] == max(2, np.array(output).size // len(y))


@pytest.mark.parametrize(
    ("y", "output", "loss"),
    [
        ([0, 1, 1], [[0.2], [0.4], [0.9]], "mse"),  # counts
        ([3, 7, 1], [[0.2], [0.4], [0.9]], "poisson"),
        ([0.2, 1.0], [[0.2], [0.4]], "bce"),  # shares
        ([0, -4, 1], [[6, 7], [1, 2], [0, 1]], lambda y, y_pred: y_pred[:, 0]),  # a mean and its variance
        ([7, 2, 1], [[6, 7, 8], [1, 2, 3], [0, 1, 2]], lambda y, y_pred: y_pred[:, 0]),  # three quantiles of counts
        ([[1, 1, 0], [0, 0, 1]], [[0.6, 0.7, 0.1], [0, 0, 1]], "bce"),  # several labels a sample
        ([[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0, 1]], "categorical_crossentropy"),  # soft ones
        ([[0.5, 0.5], [0.0, 1.0]], [[0.6, 0.4], [0, 1]], "mse"),
    ],
)
def test_quantities_are_no_classes(y: Any, output: Any, loss: Any) -> None:
    found, predictions, classes = as_classes(np.array(y), np.array(output, float), loss)
    assert classes == 0
    assert len(found) == len(predictions) == len(y)
    assert found.ndim == predictions.ndim == 2


def test_a_sequence_of_classes_counts_by_its_mean(tmp_path: Path) -> None:
    y = np.random.default_rng(0).integers(1, 5, (40, 3))
    layers = [keras.Input((3,)), keras.layers.Embedding(5, 4), keras.layers.Dense(5, activation="softmax")]
    model = compiled(layers, "sparse_categorical_crossentropy")
    samples = fitted(model, y, y, tmp_path, epochs=1)
    output = model.predict(y, verbose=0)
    right = np.take_along_axis(output, y[:, :, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(samples.loss, -np.log(right).mean(axis=1), rtol=1e-4)
    np.testing.assert_array_equal(samples.prediction, output.argmax(axis=2))
    assert samples.num_classes == 0


def test_a_mask_counts_for_each_sample_by_itself(tmp_path: Path) -> None:
    """The loss of a sequence is the mean over its own steps, whoever its neighbours are."""
    x = np.zeros((30, 6), "int64")
    x[:, 0] = 1
    x[10:, :] = 1
    y = np.ones((30, 6, 1), "float32")
    layers = [keras.Input((6,)), keras.layers.Embedding(3, 4, mask_zero=True), keras.layers.Dense(1)]
    model = compiled(layers, "mse")
    samples = fitted(model, x, y, tmp_path, epochs=1)
    expected = (model.predict(x, verbose=0)[-1, 0, 0] - 1.0) ** 2  # of every step that counts: all have the same token
    np.testing.assert_allclose(samples.loss, expected, rtol=1e-5)


# --- how it is trained ---


def small(folder: Path, loss: str | None = "mse", **options: Any) -> tuple[keras.Model, TrainingReport, Any]:
    """A model that fits a line, its report, and a function that trains it."""
    x = np.linspace(0.0, 1.0, 20, dtype="float32")[:, None]
    model = compiled([keras.Input((1,)), keras.layers.Dense(1)], loss)
    sampler = ImportanceSampler(20, seed=0)
    feedback = LossFeedback(model, sampler, dynamics=TrainingDynamics(20))
    page = TrainingReport(folder, feedback, x, x)
    train = importance_dataset((x, x), sampler, 10)

    def fit(*others: Any, epochs: int = 1, **more: Any) -> None:
        callbacks = [feedback, page, *others]
        model.fit(train, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0, **options, **more)

    return model, page, fit


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files alone, without the page, which takes longer than all else."""
    monkeypatch.setattr("pipeline.report.fitting.report", lambda folder: folder / "report.html")


def _unlike(model: keras.Model) -> tuple[Any, ...]:
    """A feedback that is not in the list, and samples."""
    x = np.ones((4, 1), "float32")
    return LossFeedback(model, ImportanceSampler(4), dynamics=TrainingDynamics(4)), x, x


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("undrawn")
def test_epochs_without_validation_leave_the_last_test_loss(tmp_path: Path) -> None:
    """Of three epochs the second alone is validated."""
    x = np.ones((4, 1), "float32")
    _, _, fit = small(tmp_path, validation_data=(x, x), validation_freq=2)
    fit(epochs=3)
    found = [row["test_loss"] for row in history(tmp_path)]
    assert found[0] == found[2] == ""
    assert json.loads((tmp_path / "summary.json").read_text())["test_loss"] == float(found[1])


@pytest.mark.usefixtures("undrawn")
def test_a_second_fit_goes_on(tmp_path: Path) -> None:
    """And what a comparison had left there is gone, or its page would be shown."""
    _, _, fit = small(tmp_path)
    (tmp_path / "comparison.json").write_text("{}")
    fit(epochs=2)
    fit()
    rows = history(tmp_path)
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "2"), ("2", "4"), ("3", "6")]
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert json.loads((tmp_path / "summary.json").read_text())["epochs"] == 3
    assert Samples.read(tmp_path / "samples.npz").drawn.sum() == 60
    assert not (tmp_path / "comparison.json").exists()


@pytest.mark.usefixtures("undrawn")
def test_steps_are_those_of_the_fit_even_if_gradients_are_gathered(tmp_path: Path) -> None:
    x = np.ones((4, 1), "float32")
    model, _, fit = small(tmp_path)
    model.compile(keras.optimizers.Adam(0.01, gradient_accumulation_steps=2), loss="mse")
    model.fit(x, x, verbose=0)
    fit(epochs=3)
    assert [row["step"] for row in history(tmp_path)] == ["2", "4", "6"]
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 6


@pytest.mark.usefixtures("undrawn")
def test_accuracy_is_what_keras_calls_so(tmp_path: Path) -> None:
    x = np.ones((4, 1), "float32")
    metrics = [keras.metrics.MeanAbsoluteError(name="acceleration"), keras.metrics.BinaryAccuracy()]
    model, _, fit = small(tmp_path, validation_data=(x, x))
    model.compile("sgd", loss="mse", metrics=metrics)
    fit()
    accuracy = json.loads((tmp_path / "summary.json").read_text())["test_accuracy"]
    assert accuracy == pytest.approx(model.evaluate(x, x, verbose=0, return_dict=True)["binary_accuracy"])


@pytest.mark.usefixtures("undrawn")
def test_of_an_interrupted_training_what_is_known_can_be_written(tmp_path: Path) -> None:
    def interrupt(epoch: int, logs: Any) -> None:
        raise KeyboardInterrupt

    _, page, fit = small(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(keras.callbacks.LambdaCallback(on_epoch_end=interrupt), epochs=5)
    assert page.path is None
    assert page.write() == page.path == tmp_path / "report.html"
    assert len(history(tmp_path)) == 1


def test_of_no_training_there_are_the_losses(tmp_path: Path) -> None:
    _, page, fit = small(tmp_path)
    fit(epochs=0)
    assert page.path is not None
    told = page.path.read_text()
    assert "The hardest samples" in told
    assert "What did training look at?" not in told


def test_a_page_that_cannot_be_written_does_not_end_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.report.fitting.report", full)
    _, page, fit = small(tmp_path)
    with pytest.warns(RuntimeWarning, match="no report in .* No space left"):
        fit()
    assert page.path is None


def test_what_cannot_end_well_is_refused_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model, _, fit = small(tmp_path / "file")
    with pytest.raises(OSError, match=r"cannot be made: .*; name another"):
        fit()
    assert int(model.optimizer.iterations) == 0
    with pytest.raises(ValueError, match=r"\[feedback, page\]"):
        model.fit(np.ones((4, 1)), np.ones((4, 1)), callbacks=[TrainingReport(tmp_path, *_unlike(model))])
    assert int(model.optimizer.iterations) == 0
    model, _, fit = small(tmp_path, loss=None)
    with pytest.raises(ValueError, match="not compiled with a loss"):
        fit()
    assert int(model.optimizer.iterations) == 0


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
    named = keras.Model(put, {"a": keras.layers.Dense(1, name="a")(put)})
    named.compile("sgd", loss="mse")
    sampler, x = ImportanceSampler(10), np.zeros((10, 1))
    feedback = LossFeedback(named, sampler, dynamics=TrainingDynamics(10))
    train = importance_dataset((x, x), sampler, 5)
    with pytest.raises(ValueError, match="one output, which is a tensor"):
        named.fit(train, callbacks=[feedback, TrainingReport(tmp_path, feedback, x, x)], shuffle=False, verbose=0)
    two = keras.Model(put, {"a": keras.layers.Dense(1, name="a")(put), "b": keras.layers.Dense(1, name="b")(put)})
    two.compile("sgd", loss={"a": "mse", "b": "mse"})
    sampler, x = ImportanceSampler(10), np.zeros((10, 1))
    feedback = LossFeedback(two, sampler, dynamics=TrainingDynamics(10))
    train = importance_dataset((x, {"a": x, "b": x}), sampler, 5)
    with pytest.raises(ValueError, match="has 1 and 2: leave this callback out"):
        two.fit(train, callbacks=[feedback, TrainingReport(tmp_path, feedback, x, x)], shuffle=False, verbose=0)
    assert sampler.summary()["updates"] == 0
