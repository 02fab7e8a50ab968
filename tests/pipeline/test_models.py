"""The named models: shapes, what they compute, what they refuse; and functions of the user's own."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest

from pipeline.data import Data
from pipeline.models import build_model, loss_for, outputs
from pipeline.training import make_reproducible


def task(x_shape, classes=3, columns=None, dtype=np.float32):
    """Seven samples to train and two to test, of no meaning."""
    generator = np.random.default_rng(0)
    x = (generator.random((9, *x_shape)) * 10 + 1).astype(dtype)
    y = generator.integers(0, classes, 9) if columns is None else generator.random((9, columns), np.float32)
    return Data("made up", x[:7], y[:7], x[7:], y[7:], classes if columns is None else None)


VECTORS, IMAGES, GREY, TOKENS = task((8,)), task((8, 8, 3)), task((6, 6)), task((5,), dtype=np.int32)


@pytest.mark.parametrize(
    ("name", "data", "built"),
    [
        ("auto", VECTORS, "mlp"),
        ("auto", IMAGES, "cnn"),
        ("auto", GREY, "mlp"),
        ("auto", TOKENS, "mlp"),
        ("mlp", IMAGES, "mlp"),
        ("cnn", IMAGES, "cnn"),
        ("cnn", GREY, "cnn"),
        ("cnn", task((1, 1, 1)), "cnn"),
        ("mlp", task((2,), columns=1), "mlp"),
        ("cnn", task((8, 8, 1), columns=4), "cnn"),
        ("lstm", task((6, 2)), "lstm"),
        ("lstm", VECTORS, "lstm"),
        ("lstm", TOKENS, "lstm"),
        ("linear", IMAGES, "linear"),
        ("linear", task((2,), columns=1), "linear"),
    ],
)
def test_a_model_fits_its_data(name, data, built):
    model = build_model(name, data)
    assert model.name == built
    assert model(data.x).shape == (7, outputs(data))
    assert not model.compiled


def test_the_architecture_is_the_documented_one():
    dense = [layer for layer in build_model("mlp", VECTORS).layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense] == [64, 64, 3]
    assert [layer.activation.__name__ for layer in dense] == ["relu", "relu", "linear"]
    convolutions = [layer for layer in build_model("cnn", IMAGES).layers if isinstance(layer, keras.layers.Conv2D)]
    assert [(layer.filters, layer.kernel_size) for layer in convolutions] == [(32, (3, 3)), (64, (3, 3))]


def test_the_linear_model_is_linear():
    model = build_model("linear", task((2,), columns=1))
    x = np.float32([[1.0, 2.0], [-3.0, 5.0]])
    (kernel, bias) = model.get_weights()
    np.testing.assert_allclose(model(x), x @ kernel + bias, rtol=1e-6)


def test_first_weights_follow_the_seed():
    def first_weights(seed):
        make_reproducible(seed)
        return build_model("mlp", VECTORS).get_weights()[0]

    np.testing.assert_array_equal(first_weights(3), first_weights(3))
    assert (first_weights(3) != first_weights(4)).mean() > 0.99


def test_tokens_are_averaged_without_their_padding():
    model = build_model("mlp", TOKENS)
    plain = np.array([[1, 2, 3, 0, 0]], np.int32)
    order = np.array([[0, 3, 0, 1, 2]], np.int32)
    other = np.array([[1, 2, 4, 0, 0]], np.int32)
    np.testing.assert_allclose(model(plain), model(order), atol=1e-6)
    assert np.abs(model(plain) - model(other)).max() > 1e-4
    # The mean of three embeddings, not of five: as many words twice over give the same.
    np.testing.assert_allclose(model(plain), model(np.array([[1, 2, 3, 1, 2, 3]])), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "cnn",
            VECTORS,
            r"needs images, \(N, H, W, C\), but the inputs of 'made up' are \(7, 8\) float32; use",
        ),
        ("cnn", TOKENS, "needs images"),
        ("lstm", IMAGES, r"needs sequences, \(N, T, C\) or \(N, T\), but the inputs of 'made up' are \(7, 8, 8, 3\)"),
        ("linear", TOKENS, "needs quantities, but the inputs of 'made up' are int32"),
        ("mlp", task((5, 2), dtype=np.int32), "integer inputs are rows of tokens"),
        ("mlp", Data("x", -TOKENS.x, TOKENS.y, TOKENS.x_test, TOKENS.y_test, 3), "at least 0"),
        ("mlp", Data("x", TOKENS.x, TOKENS.y, 0 * TOKENS.x_test, TOKENS.y_test, 3), "rows of padding"),
        (
            "cnnn",
            IMAGES,
            "unknown model 'cnnn'. Did you mean 'cnn'[?] There are: auto, mlp, cnn, lstm, linear, module:function",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(name, data, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, data)


# --- losses ---------------------------------------------------------------------------------------


def test_the_loss_of_classes_is_cross_entropy_on_logits():
    logits, y = np.float32([[2.0, -1.0, 0.5], [0.0, 3.0, 0.0]]), np.array([0, 2])
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[[0, 1], y]
    np.testing.assert_allclose(loss_for(VECTORS)(y, logits), losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss_for(VECTORS, reduction=None)(y, logits), losses, rtol=1e-5)


def test_the_loss_of_quantities_is_the_squared_error():
    y, given = np.float32([[1.0, 2.0], [0.0, 0.0]]), np.float32([[0.0, 2.0], [2.0, 2.0]])
    np.testing.assert_allclose(loss_for(task((2,), columns=2), reduction=None)(y, given), [0.5, 4.0])


# --- functions of the user's own ------------------------------------------------------------------

OWN_MODELS = """
import keras

def small(data):
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(data.num_classes)], name="small")

def with_one_unit(data):
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])

def broken(data):
    return data.no_such_field

def not_a_model(data):
    return "model"

WIDTH = 64
"""


@pytest.fixture
def own_models(tmp_path, monkeypatch):
    """A folder with ``own_models.py``, as the current one; what importing changes is undone."""
    (tmp_path / "own_models.py").write_text(OWN_MODELS)
    (tmp_path / "needs_more.py").write_text("import no_such_package_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


@pytest.mark.usefixtures("own_models")
def test_a_function_of_the_current_folder_makes_the_model():
    model = build_model("own_models:small", IMAGES)
    assert model.name == "small"
    assert model(IMAGES.x).shape == (7, 3)


@pytest.mark.usefixtures("own_models")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "own_modles:small",
            "no module 'own_modles' for the model .* in the current folder; the form is module:",
        ),
        ("no.such:small", "no module 'no.such'"),
        ("own_models:smal", "no function 'smal'; did you mean own_models:small[?]"),
        ("own_models:WIDTH", "no function 'WIDTH'"),
        ("own_models.py:small", "no module 'own_models.py'"),
        ("folder/own_models:small", "'folder/own_models' is not the name of a module"),
        (":small", "'' is not the name of a module"),
        ("own_models:not_a_model", "must return a keras.Model, it returned str"),
        (
            "own_models:with_one_unit",
            r"gives \(1, 1\) for one sample of 'made up', needed is \(1, 3\): one logit",
        ),
    ],
)
def test_a_function_that_cannot_be_used_is_told_why(name, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, IMAGES)


@pytest.mark.usefixtures("own_models")
def test_an_error_in_the_users_code_is_not_called_a_wrong_option():
    with pytest.raises(RuntimeError, match="own_models:broken raised AttributeError") as error:
        build_model("own_models:broken", IMAGES)
    assert isinstance(error.value.__cause__, AttributeError)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):
        build_model("needs_more:small", IMAGES)
