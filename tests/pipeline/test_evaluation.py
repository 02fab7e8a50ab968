"""How a model does, on each sample and on all of them."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest

from pipeline import evaluation
from pipeline.data import Data, load_data
from pipeline.evaluation import Evaluator
from pipeline.models import build_model

DIGITS = load_data("digits")
FEW = replace(DIGITS, x=DIGITS.x[:200], y=DIGITS.y[:200], x_test=DIGITS.x_test[:50], y_test=DIGITS.y_test[:50])
QUANTITY = Data("sum", FEW.x, FEW.x.sum((1, 2)), FEW.x_test, FEW.x_test.sum((1, 2)), None)


def losses_of(model, x, y):
    output = np.asarray(model(x, training=False), np.float64)
    if y.ndim == 2:
        return np.square(output - y).mean(axis=1)
    return np.log(np.exp(output).sum(axis=1)) - output[np.arange(len(y)), y]


@pytest.mark.parametrize("data", [FEW, QUANTITY], ids=["classes", "quantities"])
def test_each_sample_has_its_loss_and_what_it_is_taken_for(data):
    model = build_model("linear", data)
    losses, predictions = Evaluator(model, data).each(data.x, data.y)
    output = np.asarray(model(data.x, training=False))
    np.testing.assert_allclose(losses, losses_of(model, data.x, data.y), rtol=1e-5)
    np.testing.assert_allclose(predictions, output if data is QUANTITY else output.argmax(axis=1), rtol=1e-5)


def test_the_evaluation_is_the_same_whatever_the_slices(monkeypatch):
    model = build_model("mlp", DIGITS)
    x, y = DIGITS.x[:1030], DIGITS.y[:1030]
    scores = []
    for size in (7, 512, 1030, 5000):
        monkeypatch.setattr(evaluation, "SLICE", size)
        scores.append(Evaluator(model, DIGITS)(x, y))
    for score in scores:
        assert score.loss == pytest.approx(losses_of(model, x, y).mean(), rel=1e-5)
        assert (score.accuracy, score.worst_class_accuracy) == (
            scores[0].accuracy,
            scores[0].worst_class_accuracy,
        )


def test_the_worst_class_is_among_those_that_occur():
    """A model that always says 1: right for class 1, wrong for 0; class 2 is not there."""
    data = Data("three", FEW.x, FEW.y % 3, FEW.x_test, FEW.y_test % 3, 3)
    constant = keras.layers.Dense(3, kernel_initializer="zeros", bias_initializer=lambda *_, **__: [0.0, 9.0, 0.0])
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), constant])
    evaluate = Evaluator(model, data)
    assert evaluate(FEW.x[:4], np.array([1, 1, 1, 0])).worst_class_accuracy == 0.0
    assert evaluate(FEW.x[:4], np.array([1, 1, 1, 0])).accuracy == 0.75
    assert evaluate(FEW.x[:4], np.array([1, 1, 1, 1])).worst_class_accuracy == 1.0


def test_the_evaluation_is_in_inference_mode():
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dropout(0.9), keras.layers.Dense(10)])
    model(FEW.x[:1])
    evaluate = Evaluator(model, FEW)
    assert evaluate(FEW.x, FEW.y) == evaluate(FEW.x, FEW.y)
