"""The norm of each sample's gradient at the last layer's pre-activations: exact, and refused where there is none."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import LossFeedback, importance_dataset
from sampler import ImportanceSampler

N, B, K, T = 24, 6, 4, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)).astype(np.float32)
CLASSES = RNG.integers(0, K, N)
ONE_HOT = np.eye(K, dtype=np.float32)[CLASSES]
VALUES = RNG.normal(size=(N, K)).astype(np.float32)
TOKENS = RNG.integers(0, K, (N, T))
USER_WEIGHTS = RNG.uniform(0.2, 3.0, N).astype(np.float32)
KNOWN = np.arange(1.0, N + 1)
Dense, Input = keras.layers.Dense, keras.layers.Input
SPARSE = keras.losses.SparseCategoricalCrossentropy


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


def norm(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows.reshape(len(rows), -1), axis=1)


def functional(activation: Any = None, units: int = K) -> keras.Model:
    inputs = Input((3,))
    return keras.Model(inputs, Dense(units, activation, name="head")(Dense(5, "tanh")(inputs)))


def sequential(*last: keras.layers.Layer) -> keras.Model:
    return keras.Sequential([Dense(5, "tanh"), Dense(K, name="head"), *last])


def sequences() -> keras.Model:
    return keras.Sequential([Input((3,)), keras.layers.RepeatVector(T), keras.layers.LSTM(5, return_sequences=True),
                             Dense(K, name="head")])  # fmt: skip


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = Dense(5, "tanh"), Dense(K, "softmax", name="head")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.head(self.hidden(x))


def logits_of(model: keras.Model) -> np.ndarray:
    """The pre-activations of the layer ``head``, by its own weights."""
    head = next(layer for layer in model._flatten_layers() if layer.name == "head")
    kernel, bias = (weight.numpy().astype(np.float64) for weight in head.weights)
    if isinstance(model, Subclassed):
        before = model.hidden(X)
    else:
        hidden = model.layers[[layer.name for layer in model.layers].index("head") - 1]
        before = keras.Model(model.inputs[0], hidden.output)(X)
    return np.asarray(before, np.float64) @ kernel + bias


# The model, its loss, y, and the norms from the pre-activations.
CASES: dict[str, tuple[Any, Any, Any, Any]] = {
    "logits": (functional, SPARSE(from_logits=True), CLASSES, lambda z: norm(softmax(z) - ONE_HOT)),
    "softmax": (
        lambda: functional("softmax"),
        "sparse_categorical_crossentropy",
        CLASSES,
        lambda z: norm(softmax(z) - ONE_HOT),
    ),
    "softmax, one-hot, smoothed": (
        lambda: functional("softmax"),
        keras.losses.CategoricalCrossentropy(label_smoothing=0.2),
        ONE_HOT,
        lambda z: norm(softmax(z) - (0.8 * ONE_HOT + 0.2 / K)),
    ),
    "activation layer": (
        lambda: sequential(keras.layers.Activation("softmax")),
        "sparse_categorical_crossentropy",
        CLASSES,
        lambda z: norm(softmax(z) - ONE_HOT),
    ),
    "softmax layer": (
        lambda: sequential(keras.layers.Softmax()),
        "categorical_crossentropy",
        ONE_HOT,
        lambda z: norm(softmax(z) - ONE_HOT),
    ),
    "sigmoid": (
        lambda: functional("sigmoid"),
        "binary_crossentropy",
        (VALUES > 0).astype(np.float32),
        lambda z: norm(sigmoid(z) - (VALUES > 0)) / K,
    ),
    "binary logits": (
        lambda: functional(units=1),
        keras.losses.BinaryCrossentropy(from_logits=True),
        CLASSES % 2,
        lambda z: norm(sigmoid(z) - (CLASSES % 2)[:, None]),
    ),
    "reshaped": (
        lambda: sequential(keras.layers.Activation("softmax"), keras.layers.Reshape((K, 1)), keras.layers.Flatten()),
        "sparse_categorical_crossentropy",
        CLASSES,
        lambda z: norm(softmax(z) - ONE_HOT),
    ),
    "squared error": (sequential, "mse", VALUES, lambda z: norm(2 * (z - VALUES)) / K),
    "squared error, sum": (
        sequential,
        keras.losses.MeanSquaredError(reduction="sum"),
        VALUES,
        lambda z: norm(2 * (z - VALUES)) / K,
    ),
    "sequences": (
        sequences,
        SPARSE(from_logits=True),
        TOKENS,
        lambda z: norm(softmax(z) - np.eye(K)[TOKENS]) / T,
    ),
}
MODES: dict[str, dict[str, Any]] = {
    "graph": {"jit_compile": False},
    "jit, two steps": {"jit_compile": True, "steps_per_execution": 2},
    "eager": {"run_eagerly": True},
}


class Scored(ImportanceSampler):
    """Remembers what it was told."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.told: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def update(self, index: Any, losses: Any, step: Any = None, score: Any = None) -> None:
        super().update(index, losses, step=step, score=score)
        self.told.append((np.array(index), np.array(losses), np.array(score)))


def fit(model: keras.Model, data: Any, sampler: Any, **options: Any) -> None:
    train = importance_dataset(data, sampler, B)
    model.fit(
        train, verbose=0, shuffle=False, callbacks=[LossFeedback(model, sampler, score="gradient_norm", **options)]
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.each_value
def test_norms_come_back(name: str, mode: str) -> None:
    if name == "sequences" and mode == "jit, two steps":
        pytest.skip("XLA does not compile Keras's LSTM on every processor")
    make, loss, y, oracle = CASES[name]
    keras.utils.set_random_seed(1)
    model = make()
    model.compile(keras.optimizers.SGD(0.0), loss, **MODES[mode])
    sampler = Scored(N, priority="gradient_norm", losses=KNOWN, seed=0)
    fit(model, (X, y, USER_WEIGHTS), sampler)
    expected = oracle(logits_of(model))
    assert len(sampler.told) == N // B
    for index, _, score in sampler.told:
        np.testing.assert_allclose(score, expected[index], rtol=2e-5)
    seen = np.unique(np.concatenate([index for index, _, _ in sampler.told]))
    np.testing.assert_allclose(sampler.priorities()[seen], expected[seen], rtol=2e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_norms_in_half_precision(policy: str) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        keras.utils.set_random_seed(1)
        model = functional()
        model.compile(keras.optimizers.SGD(0.0), SPARSE(from_logits=True))
        sampler = Scored(N, priority="gradient_norm", losses=KNOWN, seed=0)
        fit(model, (X, CLASSES), sampler)
        expected = norm(softmax(logits_of(model)) - ONE_HOT)
        for index, _, score in sampler.told:
            np.testing.assert_allclose(score, expected[index], rtol=0.03)
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("at", ["name", "layer"])
@pytest.mark.parametrize("make", [Subclassed, lambda: functional("softmax")], ids=["subclassed", "functional"])
def test_the_layer_may_be_named(make: Any, at: str) -> None:
    model = make()
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    sampler = Scored(N, priority="gradient_norm", losses=KNOWN, seed=0)
    layer = next(each for each in model._flatten_layers() if each.name == "head") if at == "layer" else "head"
    fit(model, (X, CLASSES), sampler, at=layer)
    expected = norm(softmax(logits_of(model)) - ONE_HOT)
    for index, _, score in sampler.told:
        np.testing.assert_allclose(score, expected[index], rtol=2e-5)


def test_any_tensor_of_the_model_may_be_named() -> None:
    """The output of a layer without activation: here of a normalisation, ‖∂ℓ/∂z‖ through the head."""
    inputs = Input((3,))
    hidden = keras.layers.LayerNormalization(name="norm")(Dense(5)(inputs))
    model = keras.Model(inputs, Dense(K, name="head")(hidden))
    model.compile(keras.optimizers.SGD(0.0), SPARSE(from_logits=True))
    sampler = Scored(N, priority="gradient_norm", losses=KNOWN, seed=0)
    fit(model, (X, CLASSES), sampler, at="norm")
    kernel = model.get_layer("head").kernel.numpy()
    expected = norm((softmax(model(X).numpy()) - ONE_HOT) @ kernel.T)
    for index, _, score in sampler.told:
        np.testing.assert_allclose(score, expected[index], rtol=2e-5)


def test_neither_weights_nor_regularisers_are_in_it() -> None:
    """A penalty on the logits, and weights down to 0: the score is that of the sample's own loss."""
    inputs = Input((3,))
    model = keras.Model(inputs, Dense(K, name="head", activity_regularizer="l2")(Dense(5, "tanh")(inputs)))
    sampler = Scored(N, priority="gradient_norm", losses=KNOWN, seed=0)
    model.compile(keras.optimizers.SGD(0.0), SPARSE(from_logits=True))
    fit(model, (X, CLASSES, np.where(np.arange(N) < N // 2, 0.0, 1.0).astype(np.float32)), sampler)
    expected = norm(softmax(logits_of(model)) - ONE_HOT)
    for index, _, score in sampler.told:
        np.testing.assert_allclose(score, expected[index], rtol=2e-5)


def test_the_model_is_as_it_was() -> None:
    model, sampler = functional("softmax"), ImportanceSampler(N, priority="gradient_norm", seed=0)
    model.compile("sgd", "sparse_categorical_crossentropy")
    head = model.get_layer("head")
    before, activation = set(vars(head)), head.activation
    fit(model, (X, CLASSES), sampler)
    assert head.activation is activation
    assert set(vars(head)) == before
    last = sequential(keras.layers.Softmax())
    last.compile("sgd", "sparse_categorical_crossentropy")
    fit(last, (X, CLASSES), ImportanceSampler(N, priority="gradient_norm", seed=0))
    assert "call" not in vars(last.layers[-1])


def twice() -> keras.Model:
    inputs, shared = Input((K,)), Dense(K, name="shared")
    return keras.Model(inputs, shared(shared(inputs)))


def two_outputs() -> keras.Model:
    inputs = Input((3,))
    return keras.Model(inputs, [Dense(K)(inputs), Dense(K)(inputs)])


def unused() -> keras.Model:
    model = functional()
    model.extra = Dense(3, name="extra")
    return model


REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "subclassed": (Subclassed, (X, CLASSES), {}, "which layer of a subclassed model is the last; name it"),
    "two outputs": (two_outputs, (X, (CLASSES, CLASSES)), {}, "which layer of a model of 2 outputs is the last"),
    "no such layer": (functional, (X, CLASSES), {"at": "tail"}, "no layer named 'tail'.*'head'"),
    "a layer of another model": (functional, (X, CLASSES), {"at": Dense(3)}, "was not called in the training step"),
    "time distributed": (
        lambda: keras.Sequential([Input((T, 3)), keras.layers.TimeDistributed(Dense(K))]),
        (np.repeat(X[:, None], T, axis=1), TOKENS),
        {},
        "the layer 'time_distributed.*', a TimeDistributed, which has many; end the model in a layer such as Dense",
    ),
    "recurrent": (
        lambda: keras.Sequential([Input((T, 3)), keras.layers.LSTM(K)]),
        (np.repeat(X[:, None], T, axis=1), CLASSES),
        {},
        "a LSTM, which has many",
    ),
    "called twice": (twice, (VALUES, CLASSES), {"at": "shared"}, "was called 2 times"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_where_it_cannot_be_told(name: str) -> None:
    make, data, options, words = REFUSED[name]
    model, sampler = make(), ImportanceSampler(N, priority="gradient_norm", seed=0)
    model.compile("sgd", SPARSE(from_logits=True))
    with pytest.raises(ValueError, match=f"(?s){words}"):
        fit(model, data, sampler, **options)
    assert sampler.summary()["updates"] == 0


def test_another_score_is_refused() -> None:
    with pytest.raises(ValueError, match="score must be one of 'gradient_norm', 'last_layer' or None, got 'loss'"):
        LossFeedback(functional(), ImportanceSampler(N), score="loss")


@pytest.mark.parametrize("last", ["nested functional", "nested sequential", "reshaped", "leaky"])
@pytest.mark.every(2)
def test_the_last_layer_is_found_behind_others(last: str) -> None:
    """tanh before a squared error: the gradient by the output would be another."""
    inputs = Input((5,))
    inner = {
        "nested functional": lambda: keras.Model(inputs, Dense(K, "tanh", name="head")(inputs)),
        "nested sequential": lambda: keras.Sequential([inputs, Dense(K, "tanh", name="head")]),
    }
    x = Input((3,))
    hidden = Dense(5, "tanh")(x)
    if last in inner:
        out = inner[last]()(hidden)
    elif last == "leaky":
        out = keras.layers.LeakyReLU(0.25)(Dense(K, name="head")(hidden))
    else:
        out = keras.layers.Flatten()(keras.layers.Reshape((K, 1))(Dense(K, "tanh", name="head")(hidden)))
    model = keras.Model(x, out)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    sampler = Scored(N, priority="gradient_norm", losses=KNOWN, seed=0)
    fit(model, (X, VALUES), sampler)
    head = next(layer for layer in model._flatten_layers() if layer.name == "head")
    z = np.asarray(keras.Model(x, hidden)(X), np.float64) @ head.kernel.numpy() + head.bias.numpy()
    given, slope = (np.where(z > 0, z, z / 4), np.where(z > 0, 1, 0.25)) if last == "leaky" else (
        np.tanh(z), 1 - np.tanh(z) ** 2)  # fmt: skip
    expected = norm(2 * (given - VALUES) / K * slope)
    for index, _, score in sampler.told:
        np.testing.assert_allclose(score, expected[index], rtol=2e-5)


def test_a_sampler_that_needs_scores_is_given_them_or_says_so() -> None:
    model, sampler = functional(), ImportanceSampler(N, priority="gradient_norm", seed=0)
    model.compile("sgd", SPARSE(from_logits=True))
    train = importance_dataset((X, CLASSES), sampler, B)
    model.fit(train, verbose=0, shuffle=False, callbacks=[LossFeedback(model, sampler)])
    assert sampler.summary()["seen"] == N
    with pytest.raises(ValueError, match=r"update was given none; pass score=..., or use LossFeedback"):
        sampler.update([0], [1.0])
    subclassed = Subclassed()
    subclassed.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="which layer of a subclassed model is the last; name it"):
        subclassed.fit(train, verbose=0, shuffle=False, callbacks=[LossFeedback(subclassed, sampler)])
