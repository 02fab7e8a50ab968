"""The losses of every step come back from any compiled model, and the model is as it was afterwards.

The learning rate is 0 where losses are compared, so that the oracle, in NumPy and float64, is the same for every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import LossFeedback, compiled, importance_dataset, importance_sampling
from sampler import ImportanceSampler

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


# --- the contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_losses_come_back(name: str, recording: type[Any]) -> None:
    case, sampler = CASES[name], recording(N, losses=KNOWN, seed=0)
    model = case.compiled()
    fit(
        model,
        importance_dataset(case.data(user_weights=True), sampler, B),
        LossFeedback(model, sampler),
    )
    assert_every_step_came_back(sampler, case.losses(model), STEPS)
    assert np.ptp([draw.weight for draw in sampler.draws]) > 0.1  # or importance weights would not show


MOST = ["sequential", "own train_step", "regularisers and add_loss", "sequence", "two outputs, dict"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MOST)
def test_losses_come_back_in_every_mode(name: str, mode: str, recording: type[Any]) -> None:
    case, sampler = CASES[name], recording(N, losses=KNOWN, seed=0)
    model = case.compiled(**MODES[mode])
    fit(model, importance_dataset(case.data(), sampler, B), LossFeedback(model, sampler))
    assert_every_step_came_back(sampler, case.losses(model), STEPS)


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16"])
def _half_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.usefixtures("_half_precision")
@pytest.mark.parametrize(
    "mode", [{}, {"jit_compile": True, "steps_per_execution": 3}], ids=["graph", "jit, three steps"]
)
def test_losses_come_back_in_half_precision(mode: dict[str, Any], recording: type[Any]) -> None:
    """The loss is in float32; what is half as precise is the prediction. bfloat16 keeps 8 bits of it."""
    case, sampler = CASES["functional"], recording(N, losses=KNOWN, seed=0)
    model = case.compiled(**mode)
    fit(model, importance_dataset(case.data(), sampler, B), LossFeedback(model, sampler))
    assert_every_step_came_back(sampler, case.losses(model), STEPS, tolerance=0.02)


def test_masks_are_part_of_the_loss(recording: type[Any]) -> None:
    """Keras divides by the steps that count in the whole batch; here by their weighted number."""
    tokens = np.where(np.arange(T) < RNG.integers(1, T + 1, (N, 1)), RNG.integers(1, K, (N, T)), 0)
    model = keras.Sequential([keras.layers.Embedding(K, 3, mask_zero=True), Dense(K)])
    model.compile(keras.optimizers.SGD(0.0), LOGITS)
    sampler = recording(N, losses=KNOWN, seed=0)
    fit(model, importance_dataset((tokens, TOKENS), sampler, B), LossFeedback(model, sampler))
    losses = cross_entropy(TOKENS, model(tokens).numpy().astype(np.float64)) * (tokens > 0)
    for (index, got, _), draw in zip(sampler.updates, sampler.draws, strict=False):
        counted = (draw.weight * (tokens[index] > 0).sum(axis=1)).sum()
        np.testing.assert_allclose(got, losses[index].sum(axis=1) * B / counted, rtol=1e-5)


def of_unequal_length(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of which one in ten is long, and they are the hard ones."""
    rng = np.random.default_rng(5)
    long = rng.random(size) < 0.1
    tokens = np.where(np.arange(12) < np.where(long, 12, 2)[:, None], rng.integers(1, K, (size, 12)), 0)
    return tokens, np.where(long[:, None], (tokens + 1) % K, tokens)


def loss_and_accuracy_with_masks(beta: float) -> tuple[dict[str, float], dict[str, float]]:
    """What 1,600 steps report of a model that stands still, and what it is on the whole data set."""
    size, batch = 640, 64
    tokens, y = of_unequal_length(size)
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.layers.Embedding(K, K, mask_zero=True, embeddings_initializer="identity")])
    model.compile(keras.optimizers.SGD(0.0), LOGITS, metrics=["accuracy"])
    sampler = ImportanceSampler(size, first_pass=False, seed=0, beta=beta)
    train = importance_dataset((tokens, y), sampler, batch).repeat()
    history = fit(model, train, LossFeedback(model, sampler), steps_per_epoch=1600).history
    whole = model.evaluate(tokens, y, batch_size=size, verbose=0, return_dict=True)
    return {name: history[name][0] for name in whole}, whole


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_masks_do_not_bias_what_is_reported(beta: float) -> None:
    """Within 3 %: the mean of 1,600 ratios over 64 draws each has a bias near 1/64, and no chance to speak of."""
    reported, whole = loss_and_accuracy_with_masks(beta)
    assert reported == pytest.approx(whole, rel=0.03)


def test_the_same_test_sees_a_batchs_own_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled._RowWise, "_of_those_that_count", lambda self, y_pred: None)
    reported, whole = loss_and_accuracy_with_masks(1.0)
    assert abs(reported["loss"] / whole["loss"] - 1.0) > 0.1


def test_losses_are_those_of_the_training_pass(recording: type[Any]) -> None:
    """Batch normalisation by the batch at hand, not by its moving averages."""
    normalised = keras.Sequential([Input((3,)), keras.layers.BatchNormalization(momentum=1.0), Dense(K)])
    normalised.compile(keras.optimizers.SGD(0.0), LOGITS)
    sampler = recording(N, losses=KNOWN, seed=0)
    fit(normalised, importance_dataset((X, CLASSES), sampler, B), LossFeedback(normalised, sampler))
    for index, got, _ in sampler.updates:
        scores = normalised(X[index], training=True).numpy()
        np.testing.assert_allclose(got, cross_entropy(CLASSES[index], scores), rtol=1e-5)


def test_a_users_own_dataset(recording: type[Any]) -> None:
    sampler = recording(N, losses=KNOWN, seed=0)
    mine = tf.data.Dataset.from_tensor_slices((X, CLASSES)).map(lambda x, y: (2.0 * x, y))
    model = CASES["sequential"].compiled()
    fit(model, mine.apply(importance_sampling(sampler, batch_size=B)), LossFeedback(model, sampler))
    assert_every_step_came_back(sampler, cross_entropy(CLASSES, model(2 * X).numpy()), STEPS)


def test_the_newest_losses_are_the_priorities() -> None:
    sampler = ImportanceSampler(N, seed=0)
    model = CASES["functional"].compiled()
    fit(model, importance_dataset((X, CLASSES), sampler, B), LossFeedback(model, sampler))
    np.testing.assert_allclose(sampler.priorities(), CASES["functional"].losses(model), rtol=1e-5)


# --- training -------------------------------------------------------------------------------------


def step_by_hand(case: Case, draw: Any, rate: float) -> list[np.ndarray]:
    """The weights after one step of descent on (1/B) Σ w u ℓ, u the user's own weights."""
    model = case.compiled()
    index = draw.index
    model(X[index])
    weight = tf.constant(draw.weight * USER_WEIGHTS[index])
    with tf.GradientTape() as tape:
        losses = SPARSE(from_logits=True, reduction=None)(case.y[index], model(X[index], training=True))
        losses = tf.reduce_mean(tf.reshape(losses, [B, -1]), axis=1)
        loss = tf.reduce_sum(losses * weight) / B + tf.add_n([*model.losses, 0.0])
    gradients = tape.gradient(loss, model.trainable_variables)
    return [
        variable.numpy() - rate * gradient.numpy()
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
    ]


@pytest.mark.parametrize("mode", [{}, {"jit_compile": True}], ids=["graph", "jit"])
@pytest.mark.parametrize("name", ["sequential", "own train_step", "regularisers and add_loss", "sequence"])
def test_training_uses_the_product_of_the_weights(name: str, mode: dict[str, Any], recording: type[Any]) -> None:
    case, sampler = CASES[name], recording(N, losses=KNOWN, seed=0)
    model = case.compiled(rate=0.5, **mode)
    train = importance_dataset(case.data(user_weights=True), sampler, B)
    fit(model, train.take(1), LossFeedback(model, sampler))
    expected = step_by_hand(case, sampler.draws[0], 0.5)
    for variable, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_sample_weights_may_have_a_last_axis_of_one(shape: tuple[int, ...]) -> None:
    sampler, model = ImportanceSampler(N, seed=0), CASES["functional"].compiled(rate=0.5)
    train = importance_dataset((X, CLASSES, USER_WEIGHTS.reshape(shape)), sampler, B)
    fit(model, train, LossFeedback(model, sampler))
    assert sampler.summary()["updates"] == STEPS


def test_training_learns() -> None:
    """Some three hundred steps, with a lag: enough for every seed that was tried, not for one by luck."""
    sampler = ImportanceSampler(N, seed=0, feedback_lag=4)
    model = CASES["functional"].compiled(rate=0.5)
    model.compile(keras.optimizers.Adam(0.1), LOGITS, metrics=["accuracy"], weighted_metrics=["accuracy"])
    history = fit(model, importance_dataset((X, CLASSES), sampler, B), LossFeedback(model, sampler), epochs=80).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert cross_entropy(CLASSES, model(X).numpy()).mean() < 0.7


# --- afterwards -----------------------------------------------------------------------------------


# Keras 3.15 says this of its own way to write arrays.
SAVES = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def state_of(model: keras.Model) -> dict[str, Any]:
    """What a hook could have been left in."""
    compiled = model._compile_loss
    losses = [entry.loss for entry in compiled._flat_losses or []]
    return {
        "attributes": set(vars(model)),
        "methods": [getattr(model, name).__func__ for name in ("train_step", "compute_loss", "fit", "train_on_batch")],
        "compiled loss": (set(vars(compiled)), [type(loss) for loss in losses]),
    }


@SAVES
@pytest.mark.parametrize("name", ["functional", "sequential", "own train_step", "two outputs, dict"])
def test_the_model_is_as_it_was(name: str, tmp_path: Path) -> None:
    case, sampler = CASES[name], ImportanceSampler(N, seed=0)
    model, twin = case.compiled(), case.compiled()
    plain = tf.data.Dataset.from_tensor_slices((X, case.y)).batch(B)
    for one in (model, twin):
        fit(one, plain)
    before = state_of(model)
    fit(model, importance_dataset(case.data(), sampler, B), LossFeedback(model, sampler))
    assert state_of(model) == before == state_of(twin)
    updates = sampler.summary()["updates"]
    assert model.evaluate(plain, verbose=0) == pytest.approx(twin.evaluate(plain, verbose=0), rel=1e-5)
    tf.nest.map_structure(np.testing.assert_array_equal, model.predict(X, verbose=0), twin.predict(X, verbose=0))
    losses = [fit(one, plain).history["loss"] for one in (model, twin)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    model.train_on_batch(X[:B], tf.nest.map_structure(lambda y: y[:B], case.y))
    assert sampler.summary()["updates"] == updates
    if name in ("functional", "sequential"):
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))


def test_a_model_that_was_never_built_is_as_it_was() -> None:
    sampler = ImportanceSampler(N, seed=0)
    model = CASES["sequential"].compiled()
    fit(model, importance_dataset((X, CLASSES), sampler, B), LossFeedback(model, sampler))
    twin = CASES["sequential"].compiled()
    fit(twin, tf.data.Dataset.from_tensor_slices((X, CLASSES)).batch(B))
    assert state_of(model) == state_of(twin)


def test_a_second_fit_with_the_same_callback(recording: type[Any]) -> None:
    case, sampler = CASES["functional"], recording(N, losses=KNOWN, seed=0)
    model = case.compiled()
    train, feedback = importance_dataset(case.data(), sampler, B), LossFeedback(model, sampler)
    fit(model, train, feedback)
    fit(model, tf.data.Dataset.from_tensor_slices(case.data()).batch(B))
    fit(model, train, feedback)
    assert_every_step_came_back(sampler, case.losses(model), 2 * STEPS)


def test_compiled_anew_after_the_callback_was_made(recording: type[Any]) -> None:
    sampler = recording(N, losses=KNOWN, seed=0)
    model = CASES["functional"].compiled()
    feedback = LossFeedback(model, sampler)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    fit(model, importance_dataset((X, VALUES), sampler, B), feedback)
    assert_every_step_came_back(sampler, squared(VALUES, model(X).numpy()), STEPS)


def test_a_method_set_on_the_instance_is_put_back() -> None:
    sampler, model = ImportanceSampler(N, seed=0), CASES["functional"].compiled()
    own = model.compute_loss

    def mine(*args: Any, **options: Any) -> Any:
        return own(*args, **options)

    object.__setattr__(model, "compute_loss", mine)
    fit(model, importance_dataset((X, CLASSES), sampler, B), LossFeedback(model, sampler))
    assert vars(model)["compute_loss"] is mine


def test_two_callbacks_in_one_fit_are_refused() -> None:
    sampler, model = ImportanceSampler(N, seed=0), CASES["functional"].compiled()
    train = importance_dataset((X, CLASSES), sampler, B)
    with pytest.raises(ValueError, match="another LossFeedback is at work on this model"):
        fit(model, train, LossFeedback(model, sampler), LossFeedback(model, sampler))
    fit(model, train, LossFeedback(model, sampler))
    assert "train_step" not in vars(model)


@pytest.mark.parametrize("inner", ["fit", "train_on_batch"])
def test_training_the_model_within_its_own_fit_is_refused(inner: str) -> None:
    class Nested(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            getattr(self.model, inner)(X[:B], CLASSES[:B])

    sampler, model = ImportanceSampler(N, seed=0), CASES["functional"].compiled()
    with pytest.raises(RuntimeError, match=f"{inner} was called while fit with LossFeedback is at work"):
        fit(model, importance_dataset((X, CLASSES), sampler, B), LossFeedback(model, sampler), Nested())


def test_a_second_fit_traces_the_step_once() -> None:
    """The variables that the losses go out by are kept, or every fit would trace twice."""
    traced = []

    class Counting(Subclassed):
        def train_step(self, data: Any) -> Any:
            traced.append(1)
            return super().train_step(data)

    sampler, model = ImportanceSampler(N, seed=0), Counting()
    model.compile("sgd", LOGITS, jit_compile=False)
    train, feedback = importance_dataset((X, CLASSES), sampler, B), LossFeedback(model, sampler)
    fit(model, train, feedback)
    first = len(traced)
    for _ in range(3):
        fit(model, train, feedback)
    assert len(traced) == first + 3
    assert sampler.summary()["updates"] == 4 * STEPS


class Interruption(keras.callbacks.Callback):
    """Ends ``fit`` the hard way."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            raise KeyboardInterrupt


@SAVES
def test_fit_that_died_leaves_a_model_of_use(recording: type[Any], tmp_path: Path) -> None:
    case, sampler = CASES["functional"], recording(N, losses=KNOWN, seed=0, feedback_lag=3)
    model = case.compiled()
    train, feedback = importance_dataset(case.data(), sampler, B), LossFeedback(model, sampler)
    plain = tf.data.Dataset.from_tensor_slices(case.data()).batch(B)
    with pytest.raises(KeyboardInterrupt):
        fit(model, train, Interruption(), feedback)
    model.evaluate(plain, verbose=0)
    model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    fit(model, plain)
    assert "train_step" not in vars(model)
    with pytest.raises(KeyboardInterrupt):
        fit(model, train, feedback, Interruption())
    model.train_on_batch(X[:B], CLASSES[:B])
    fit(model, train, feedback)
    steps = [int(step[0]) for _, _, step in sampler.updates]
    assert sorted(set(steps)) == list(range(max(steps) + 1))
    for index, got, _ in sampler.updates:
        np.testing.assert_allclose(got, case.losses(model)[index], rtol=1e-5)


@SAVES
def test_saving_in_the_middle_of_fit(tmp_path: Path) -> None:
    sampler, model = ImportanceSampler(N, seed=0), CASES["functional"].compiled(rate=0.1)
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fit(model, importance_dataset((X, CLASSES), sampler, B), LossFeedback(model, sampler), saving, epochs=2)
    loaded = keras.models.load_model(tmp_path / "2.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    fit(loaded, importance_dataset((X, CLASSES), sampler, B), LossFeedback(loaded, sampler))


# --- beside fit's other options -------------------------------------------------------------------


def test_validation_data(recording: type[Any]) -> None:
    case, sampler = CASES["functional"], recording(N, losses=KNOWN, seed=0)
    model = case.compiled()
    train = importance_dataset(case.data(), sampler, B)
    history = fit(model, train, LossFeedback(model, sampler), epochs=2, validation_data=case.data()).history
    assert_every_step_came_back(sampler, case.losses(model), 2 * STEPS)
    np.testing.assert_allclose(history["val_loss"], [case.losses(model).mean()] * 2, rtol=1e-5)


@pytest.mark.parametrize("lag", [None, 3])
def test_steps_per_epoch(lag: int | None, recording: type[Any]) -> None:
    case, sampler = CASES["functional"], recording(N, losses=KNOWN, seed=0, feedback_lag=lag)
    model = case.compiled()
    train = importance_dataset(case.data(), sampler, B).repeat()
    fit(model, train, LossFeedback(model, sampler), epochs=3, steps_per_epoch=3)
    assert_every_step_came_back(sampler, case.losses(model), 9)


@pytest.mark.parametrize("lag", [None, 3])
def test_early_stopping(lag: int | None, recording: type[Any]) -> None:
    case, sampler = CASES["functional"], recording(N, losses=KNOWN, seed=0, feedback_lag=lag)
    model = case.compiled()
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=0)
    train = importance_dataset(case.data(), sampler, B)
    options = {"epochs": 5, "validation_data": case.data()}
    fit(model, train, LossFeedback(model, sampler), stopping, **options)
    assert_every_step_came_back(sampler, case.losses(model), 2 * STEPS)
    assert "train_step" not in vars(model)


def test_stopping_in_the_middle_of_an_epoch(recording: type[Any]) -> None:
    """What was drawn ahead then is handed out first by the next fit."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = True

    case, sampler = CASES["functional"], recording(N, losses=KNOWN, seed=0, feedback_lag=3)
    model = case.compiled()
    train, feedback = importance_dataset(case.data(), sampler, B), LossFeedback(model, sampler)
    for _ in range(3):
        fit(model, train, feedback, Stop())
    assert [int(step[0]) for _, _, step in sampler.updates] == [0, 1, 2]


def test_a_lag_as_short_as_steps_per_execution(recording: type[Any]) -> None:
    case, sampler = CASES["functional"], recording(N, losses=KNOWN, seed=0, feedback_lag=3, feedback_timeout=20.0)
    model = case.compiled(steps_per_execution=3)
    fit(model, importance_dataset(case.data(), sampler, B), LossFeedback(model, sampler), epochs=2)
    assert_every_step_came_back(sampler, case.losses(model), 2 * STEPS)


# --- what is refused ------------------------------------------------------------------------------


class IgnoringWeights(Subclassed):
    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **_: Any
    ) -> Any:
        return super().compute_loss(x, y, y_pred, None)


class NeverComputingLoss(Subclassed):
    def train_step(self, data: Any) -> Any:
        x, y, _ = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(y - self(x, training=True)))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


class DroppingWeights(OwnTrainStep):
    def train_step(self, data: Any) -> Any:
        x, y, _ = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def scalar_function(y: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(y - z))


class ScalarLoss(keras.losses.Loss):
    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return scalar_function(y_true, y_pred)


def wrapped(sampler: Any) -> tf.data.Dataset:
    return importance_dataset((X, VALUES), sampler, B)


def plain(_: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, VALUES)).batch(B)


def weighted(_: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, VALUES, USER_WEIGHTS)).batch(B)


def for_each_step(sampler: Any) -> tf.data.Dataset:
    weights = np.ones((N, K), np.float32)
    return importance_dataset((X, VALUES, weights), sampler, B)


def rebatched(sampler: Any) -> tf.data.Dataset:
    return wrapped(sampler).unbatch().batch(4)


class NotLinear(Subclassed):
    """Divides by the sum of the weights."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **_: Any
    ) -> Any:
        losses = tf.reduce_mean(tf.square(y - y_pred), axis=-1)
        return tf.reduce_sum(losses * sample_weight) / tf.reduce_sum(sample_weight)


def without_probability(sampler: Any) -> tf.data.Dataset:
    return wrapped(sampler).map(lambda x, y, s: (x, y, {"index": s["index"], "weight": s["weight"]}))


# The model, its loss, the data, and what is said.
REFUSED: dict[str, tuple[Any, Any, Any, str]] = {
    "loss ignores weights": (IgnoringWeights, "mse", wrapped, "does not depend on the sample weights.*biased"),
    "not linear in the weights": (NotLinear, None, wrapped, "not linear in the sample weights.*biased"),
    "half of the sampling": (functional, "mse", without_probability, "no sampling with index, weight, probability and"),
    "scalar function": (functional, scalar_function, wrapped, "one number for the whole batch.*axis=-1"),
    "scalar object": (functional, ScalarLoss(), wrapped, "one number for the whole batch.*axis=-1"),
    "scalar function in own compute_loss": (OwnComputeLoss, scalar_function, wrapped, "one number for the whole batch"),
    "mean_with_sample_weight": (
        functional,
        keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
        wrapped,
        "divides by the sum of the weights.*sum_over_batch_size",
    ),
    "two reductions": (
        lambda: two_outputs(False),
        [keras.losses.MeanSquaredError(), keras.losses.MeanSquaredError(reduction="sum")],
        lambda sampler: importance_dataset((X, (VALUES, VALUES)), sampler, B),
        "different reductions",
    ),
    "no sampling": (functional, "mse", plain, r"no sampling.*dataset.apply\(importance_sampling"),
    "weights, but no sampling": (functional, "mse", weighted, r"no sampling.*dataset.apply\(importance_sampling"),
    "weights for each step": (functional, "mse", for_each_step, r"one number for each sample, got shape \(6, 4\)"),
    "batches made anew": (functional, "mse", rebatched, "batch size is not known.*drop_remainder"),
    "train_step without compute_loss": (NeverComputingLoss, "mse", wrapped, "never called compute_loss.*custom loop"),
    "train_step that drops weights": (DroppingWeights, "mse", wrapped, "without sample_weight.*pass it on"),
}


# Eagerly, batches may have any size.
EAGERLY = [name for name in REFUSED if name != "batches made anew"]


@pytest.mark.parametrize(("name", "eager"), [*((name, False) for name in REFUSED), *((name, True) for name in EAGERLY)])
def test_refused_before_any_weight_has_changed(name: str, eager: bool, recording: type[Any]) -> None:
    make, loss, data, words = REFUSED[name]
    model, sampler = make(), recording(N, losses=KNOWN, seed=0)
    model.compile(keras.optimizers.SGD(0.5), loss, run_eagerly=eager)
    model(X)
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"(?s){words}"):
        fit(model, data(sampler), LossFeedback(model, sampler))
    for value, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)
    assert sampler.updates == []


def test_another_model_is_refused() -> None:
    sampler, model, other = ImportanceSampler(N), functional(), functional()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"was made for the model .* is fitted; make it with the model that is fitted"):
        fit(model, wrapped(sampler), LossFeedback(other, sampler))


def test_a_lag_shorter_than_steps_per_execution_is_refused() -> None:
    sampler, model = ImportanceSampler(N, feedback_lag=2), functional()
    model.compile("sgd", "mse", steps_per_execution=3)
    with pytest.raises(ValueError, match=r"feedback_lag=2 is smaller than steps_per_execution=3.*to 3 or more"):
        fit(model, wrapped(sampler), LossFeedback(model, sampler))


def test_fit_without_the_callback_does_not_train_on_wrong_weights() -> None:
    sampler, model = ImportanceSampler(N, seed=0), CASES["name"].compiled(rate=0.5)
    before = model.get_weights()
    with pytest.raises((TypeError, ValueError)):  # Keras cannot make weights of a dict
        fit(model, wrapped(sampler))
    for value, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)


# --- unbiased, from end to end --------------------------------------------------------------------


class Gradients(keras.callbacks.Callback):
    """Takes the gradient of each batch from the change it made, and undoes the change."""

    def __init__(self, model: keras.Model, rate: float) -> None:
        super().__init__()
        self.start, self.rate = model.get_weights(), rate
        self.seen: list[np.ndarray] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        changes = [(old - new).ravel() for old, new in zip(self.start, self.model.get_weights(), strict=True)]
        self.seen.append(np.concatenate(changes) / self.rate)
        self.model.set_weights(self.start)


def weights_dropped(x: Any, y: Any, sampling: Any) -> Any:
    return x, y, {**sampling, "weight": tf.ones_like(sampling["weight"])}


def divided_by_their_sum(x: Any, y: Any, sampling: Any) -> Any:
    weight = sampling["weight"]
    return x, y, {**sampling, "weight": weight * B / tf.reduce_sum(weight)}


DRAWS = 800


def worst_deviation(fault: Any) -> float:
    """Of the mean gradient over many draws from that of all data, in standard errors of its components."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(N, 2)).astype(np.float32)
    y = (x[:, :1] + np.where(np.arange(N) % 6 == 0, 6.0, 0.3)[:, None] * rng.normal(size=(N, 1))).astype(np.float32)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([Input((2,)), Dense(1)])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    error = x @ model.get_weights()[0] + model.get_weights()[1] - y
    whole = np.concatenate([2 * (error * x).mean(axis=0), 2 * error.mean(axis=0)])
    sampler = ImportanceSampler(N, losses=(error**2)[:, 0], scheme="multinomial", uniform_fraction=0.2, seed=0)
    train, gradients = importance_dataset((x, y), sampler, B).repeat(), Gradients(model, 0.5)
    if fault is not None:
        train = train.map(fault)
    fit(model, train, gradients, LossFeedback(model, sampler), steps_per_epoch=DRAWS)
    seen = np.stack(gradients.seen)
    return float((np.abs(seen.mean(axis=0) - whole) / (seen.std(axis=0) / np.sqrt(DRAWS))).max())


def test_the_weighted_gradient_is_unbiased() -> None:
    """The mean of three components within 4.5 standard errors: a false alarm in 50,000 seeds."""
    assert worst_deviation(None) < 4.5


@pytest.mark.parametrize("fault", [weights_dropped, divided_by_their_sum])
def test_the_same_test_rejects_a_planted_fault(fault: Any) -> None:
    assert worst_deviation(fault) > 6.0
