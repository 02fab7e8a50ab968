"""What ``fit`` reports: the loss and metrics of the whole data set, and what sampling was worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import LossFeedback, importance_dataset
from sampler import ImportanceSampler, UniformSampler

N, B, K, T = 24, 6, 4, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)).astype(np.float32)
CLASSES = RNG.integers(0, K, N)
TOKENS = RNG.integers(1, K, (N, T))
USER_WEIGHTS = RNG.uniform(0.2, 3.0, N).astype(np.float32)
HARD = np.where(np.arange(N) % 4 == 0, 20.0, 0.5)  # losses known beforehand that have draws far from uniform
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FIGURES = {f"sampling/{name}" for name in ("effective_fraction", "max_weight", "gain", "unseen", "milliseconds")}
EPOCHS = 150


def standing(**options: Any) -> keras.Model:
    """A model that does not move."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(K)])
    model.compile(keras.optimizers.SGD(0.0), LOGITS, jit_compile=False, **options)
    return model


def by_sample(losses: np.ndarray, index: np.ndarray) -> np.ndarray:
    """A priority that no feedback changes."""
    return HARD[index]


by_sample.keyed = True  # type: ignore[attr-defined]


def frozen(**options: Any) -> ImportanceSampler:
    """A sampler whose draws are far from uniform and stay so."""
    return ImportanceSampler(N, losses=HARD, priority=by_sample, scheme="multinomial", seed=0, **options)


def history(model: keras.Model, data: Any, sampler: Any, epochs: int = EPOCHS, **options: Any) -> dict[str, np.ndarray]:
    train = importance_dataset(data, sampler, B).repeat()  # one iterator: each takes a tenth of a second to begin
    made = model.fit(
        train,
        epochs=epochs,
        steps_per_epoch=-(-N // B),
        verbose=0,
        shuffle=False,
        callbacks=[LossFeedback(model, sampler, **options)],
    )
    return {name: np.array(values) for name, values in made.history.items()}


def cross_entropy(z: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=-1, keepdims=True)
    return (np.log(np.exp(z).sum(axis=-1)) - np.take_along_axis(z, CLASSES[:, None], -1)[:, 0]).astype(np.float64)


def deviation(values: np.ndarray, truth: float) -> float:
    """Of their mean from the truth, in standard errors."""
    return abs(values.mean() - truth) / (values.std() / np.sqrt(len(values)))


# --- unbiased -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beta", "weighted"),
    [
        (1.0, False),
        pytest.param(0.4, False, marks=pytest.mark.soak),
        (0.4, True),
        pytest.param(0.0, True, marks=pytest.mark.soak),
    ],
)
def test_loss_and_metrics_estimate_those_of_the_data_set(beta: float, weighted: bool) -> None:
    """150 epochs' figures, their mean within 4.5 standard errors, 10 times: a false alarm in 15,000 seeds.

    A metric is a ratio of sums over the 24 draws of an epoch, with a bias of its own of a part of a standard error.
    """
    model = standing(metrics=["accuracy"], weighted_metrics=[keras.metrics.SparseCategoricalAccuracy("weighted")])
    data = (X, CLASSES, USER_WEIGHTS) if weighted else (X, CLASSES)
    seen = history(model, data, frozen(beta=beta))
    scores = model.predict(X, verbose=0)
    right, losses = (scores.argmax(axis=1) == CLASSES).astype(float), cross_entropy(scores)
    own = USER_WEIGHTS if weighted else np.ones(N)
    assert deviation(seen["loss"], (own * losses).mean()) < 4.5
    assert abs(seen["accuracy"].mean() - right.mean()) < 0.05
    assert abs(seen["weighted"].mean() - (own * right).sum() / own.sum()) < 0.05


def test_the_batches_drawn_would_report_something_else() -> None:
    """The same figures without weights are far from those of the data set, or the test above would show nothing."""
    model, sampler = standing(), frozen()
    right = (model.predict(X, verbose=0).argmax(axis=1) == CLASSES).astype(float)
    losses = cross_entropy(model.predict(X, verbose=0))
    drawn = np.concatenate([sampler.draw(B).index for _ in range(4 * EPOCHS)])
    assert abs(right[drawn].mean() - right.mean()) > 0.08
    assert abs(losses[drawn].mean() / losses.mean() - 1) > 0.05


@pytest.mark.parametrize("mode", [{}, {"run_eagerly": True}, {"jit_compile": True, "steps_per_execution": 2}])
def test_in_every_mode_the_same_is_reported(mode: dict[str, Any]) -> None:
    keras.utils.set_random_seed(3)
    expected = history(standing(metrics=["accuracy"]), (X, CLASSES), frozen(beta=0.5), epochs=2)
    model = standing(metrics=["accuracy"])
    model.compile(keras.optimizers.SGD(0.0), LOGITS, metrics=["accuracy"], **mode)
    got = history(model, (X, CLASSES), frozen(beta=0.5), epochs=2)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("weighted", [False, True], ids=["metrics", "weighted_metrics"])
@pytest.mark.each_value
def test_metrics_of_sequences(masked: bool, weighted: bool) -> None:
    """Weights lie along the batch, not along T, though both are as long."""
    tokens = np.where(np.arange(T) < RNG.integers(1, T + 1, (N, 1)), TOKENS, 0) if masked else TOKENS
    model = keras.Sequential([keras.layers.Embedding(K, 3, mask_zero=masked), keras.layers.Dense(K)])
    kind = "weighted_metrics" if weighted else "metrics"
    model.compile(keras.optimizers.SGD(0.0), LOGITS, jit_compile=False, **{kind: ["accuracy"]})
    sampler, seen = frozen(), []
    real = importance_dataset((tokens, TOKENS), sampler, B)
    got = model.fit(real, epochs=1, verbose=0, shuffle=False, callbacks=[LossFeedback(model, sampler)]).history
    again = frozen()
    for _ in range(N // B):
        draw = again.draw(B)
        right = model.predict(tokens[draw.index], verbose=0).argmax(axis=-1) == TOKENS[draw.index]
        counted = tokens[draw.index] > 0
        weight = 1.0 / (N * draw.probability[:, None]) * np.ones((B, T))
        seen.append(((weight * right * counted).sum(), (weight * counted).sum()))
    right_sum, sum_of_weights = np.sum(seen, axis=0)
    np.testing.assert_allclose(got["accuracy"], [right_sum / sum_of_weights], rtol=1e-5)


def test_models_with_metrics_of_their_own() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.out = keras.layers.Dense(K)
            self.mean_weight = keras.metrics.Mean("mean_weight")

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return self.out(x)

        def compute_metrics(self, inputs: Any, y: Any, y_pred: Any, weight: Any) -> Any:
            self.mean_weight.update_state(weight)
            return super().compute_metrics(inputs, y, y_pred, weight)

    model = Own()
    model.compile(keras.optimizers.SGD(0.0), LOGITS, metrics=["accuracy"])
    seen = history(model, (X, CLASSES), frozen(beta=0.0), epochs=40)
    assert {"accuracy", "mean_weight", "loss"} <= set(seen)
    assert deviation(seen["mean_weight"], 1.0) < 4.5  # the mean of 1/(N p), though training goes without weights


def test_evaluation_is_left_alone() -> None:
    model, sampler = standing(metrics=["accuracy"]), frozen()
    train = importance_dataset((X, CLASSES), sampler, B)
    seen = []

    class Evaluating(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append(self.model.evaluate(X, CLASSES, verbose=0))
            seen.append(list(self.model.evaluate(X, CLASSES, verbose=0, return_dict=True).values()))

    fitted = model.fit(
        train,
        epochs=2,
        verbose=0,
        shuffle=False,
        validation_data=(X, CLASSES),
        callbacks=[LossFeedback(model, sampler), Evaluating()],
    )
    values = model.evaluate(X, CLASSES, verbose=0)
    for other in seen:
        assert sorted(other) == pytest.approx(sorted(values))
    assert set(fitted.history) == {"loss", "accuracy", "val_loss", "val_accuracy"} | FIGURES


# --- what sampling is worth -----------------------------------------------------------------------


class Noting(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.logs: list[dict[str, float]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.logs.append(dict(logs))


def test_every_callback_sees_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, sampler = standing(metrics=["accuracy"]), ImportanceSampler(N, seed=0)
    before, after = Noting(), Noting()
    written = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    train = importance_dataset((X, CLASSES), sampler, B)
    fitted = model.fit(
        train, epochs=2, verbose=2, shuffle=False, callbacks=[before, written, LossFeedback(model, sampler), after]
    )
    for logs in (*before.logs, *after.logs):
        assert set(logs) >= FIGURES
        assert all(np.isfinite(logs[name]) for name in FIGURES)
    assert set(fitted.history) == {"loss", "accuracy"} | FIGURES
    assert fitted.params["metrics_weighted_by"] == "1/(N p)"
    assert set((tmp_path / "log.csv").read_text().splitlines()[0].split(",")) >= FIGURES
    assert "sampling/gain" in capsys.readouterr().out
    assert fitted.history["sampling/unseen"] == [0.0, 0.0]
    assert fitted.history["sampling/max_weight"][0] == 1.0  # the first pass
    assert fitted.history["sampling/milliseconds"][1] > 0.0


@pytest.mark.parametrize("kind", ["cross-entropy", "squared error", "score"])
def test_the_gain_is_the_ratio_of_second_moments(kind: str, recording: type[Any]) -> None:
    """Against NumPy, from the draws themselves."""
    model = standing()
    sampler, options = frozen(), {}
    scores = model.predict(X, verbose=0)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    one_hot = np.eye(K)[CLASSES]
    if kind == "squared error":
        model.compile(keras.optimizers.SGD(0.0), "mse")
        proxy, y = np.sqrt(((scores - one_hot) ** 2).mean(axis=1)), one_hot
    elif kind == "score":
        proxy, y, options = np.linalg.norm(probabilities - one_hot, axis=1), CLASSES, {"score": "gradient_norm"}
    else:
        proxy, y = 1.0 - np.exp(-cross_entropy(scores)), CLASSES
    seen = history(model, (X, y), sampler, epochs=1, **options)
    again = frozen()
    uniform = drawn = 0.0
    for _ in range(N // B):
        draw = again.draw(B)
        weight, a = 1.0 / (N * draw.probability), proxy[draw.index]
        uniform, drawn = uniform + (weight * a**2).sum(), drawn + (weight**2 * a**2).sum()
    assert seen["sampling/gain"][0] == pytest.approx(uniform / drawn, rel=1e-4)


def test_uniform_sampling_gains_nothing() -> None:
    seen = history(standing(), (X, CLASSES), UniformSampler(N, seed=0), epochs=1)
    assert seen["sampling/gain"][0] == pytest.approx(1.0)
    assert seen["sampling/effective_fraction"][0] == pytest.approx(1.0)


def test_unseen_samples_are_counted() -> None:
    model, sampler = standing(), ImportanceSampler(N, seed=0, first_pass=False)
    seen = history(model, (X, CLASSES), sampler, epochs=2)["sampling/unseen"]
    assert 0.0 < seen[0] < 1.0
    assert seen[1] == 1.0 - sampler.summary()["seen"] / N


# --- class weights --------------------------------------------------------------------------------

RARE = {0: 3.0, 2: 0.5}


def weights_of(classes: np.ndarray) -> np.ndarray:
    return np.array([RARE.get(int(c), 1.0) for c in classes], np.float32)


@pytest.mark.parametrize("labels", ["(B,)", "(B, 1)", "float", "one-hot"])
@pytest.mark.parametrize("own", [False, True], ids=["", "and sample weights"])
@pytest.mark.each_value
def test_class_weights_multiply(labels: str, own: bool, recording: type[Any]) -> None:
    sampler, model = recording(N, losses=HARD, seed=0), standing()
    one_hot = labels == "one-hot"
    loss = keras.losses.CategoricalCrossentropy(from_logits=True) if one_hot else LOGITS
    model.compile(keras.optimizers.SGD(0.5), loss)
    y = {"(B,)": CLASSES, "(B, 1)": CLASSES[:, None], "float": CLASSES.astype(np.float32)}.get(labels)
    y = np.eye(K, dtype=np.float32)[CLASSES] if y is None else y
    before = [variable.numpy() for variable in model.trainable_variables]
    data = (X, y, USER_WEIGHTS) if own else (X, y)
    train = importance_dataset(data, sampler, B).take(1)
    feedback = LossFeedback(model, sampler, class_weight=RARE)
    model.fit(train, verbose=0, shuffle=False, callbacks=[feedback])
    (draw, *_), i = sampler.draws, sampler.draws[0].index
    weight = draw.weight * weights_of(CLASSES[i]) * (USER_WEIGHTS[i] if own else 1.0)
    twin = standing()
    with tf.GradientTape() as tape:
        losses = keras.losses.sparse_categorical_crossentropy(CLASSES[i], twin(X[i]), from_logits=True)
        value = tf.reduce_mean(losses * weight)
    for old, new, gradient in zip(
        before, model.trainable_variables, tape.gradient(value, twin.trainable_variables), strict=True
    ):
        np.testing.assert_allclose(new.numpy(), old - 0.5 * gradient.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sampler.updates[0][1], losses.numpy(), rtol=1e-5)  # without any weight


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([1.0, 2.0], TypeError, "must be a dict of a weight for each class"),
        ({}, TypeError, "must be a dict of a weight for each class"),
        ({"cat": 1.0}, TypeError, "class of class_weight must be an integer"),
        ({-1: 1.0}, ValueError, "class of class_weight"),
        ({0: -1.0}, ValueError, r"class_weight\[0\]"),
        ({0: np.nan}, ValueError, r"class_weight\[0\]"),
    ],
)
def test_class_weights_that_are_none_are_refused(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        LossFeedback(standing(), ImportanceSampler(N), class_weight=given)


@pytest.mark.parametrize(("y", "words"), [((CLASSES, CLASSES), "got several"), (TOKENS[..., None], "of shape")])
def test_class_weights_for_other_labels_are_refused(y: Any, words: str) -> None:
    model, sampler = standing(), ImportanceSampler(N, seed=0)
    with pytest.raises(ValueError, match=f"one output with labels.*{words}"):
        history(model, (X, y), sampler, epochs=1, class_weight=RARE)


SOFT = np.where(CLASSES > 1, 0.9, 0.1).astype(np.float32)


def test_soft_labels_are_rounded_as_keras_does() -> None:
    model, sampler = standing(), ImportanceSampler(N, seed=0)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.SGD(0.0), "binary_crossentropy")
    seen = history(model, (X, SOFT), sampler, epochs=1, class_weight={1: 5.0})
    losses = keras.losses.binary_crossentropy(SOFT[:, None], model(X)).numpy()
    assert seen["loss"][0] == pytest.approx((losses * np.where(SOFT > 0.5, 5.0, 1.0)).mean(), rel=1e-5)


# --- another sampler than the dataset's -----------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: ImportanceSampler(N // 2, losses=np.ones(N // 2)), f"has {N // 2} samples"),
        (lambda: ImportanceSampler(2 * N), "made 0 draws"),
        (
            lambda: ImportanceSampler(N),
            "made 0 draws, none of them for this fit; give it the sampler that the dataset was wrapped with",
        ),
    ],
    ids=["smaller", "larger", "as large"],
)
def test_another_sampler_than_the_datasets_is_refused(other: Any, words: str) -> None:
    model, sampler = standing(), other()
    train = importance_dataset((X, CLASSES), ImportanceSampler(N, seed=0), B)
    before = sampler.summary()
    with pytest.raises(ValueError, match=words):
        model.fit(train, verbose=0, shuffle=False, callbacks=[LossFeedback(model, sampler)])
    assert sampler.summary() == before


def test_a_sampler_that_was_used_before_is_no_excuse() -> None:
    model, old = standing(), ImportanceSampler(N, seed=0)
    history(model, (X, CLASSES), old, epochs=3)
    before = old.summary()
    train = importance_dataset((X, CLASSES), ImportanceSampler(N, seed=0), B)
    with pytest.raises(ValueError, match="none of them for this fit"):
        model.fit(train, verbose=0, shuffle=False, callbacks=[LossFeedback(model, old)])
    assert old.summary() == before


# --- metrics of all kinds -------------------------------------------------------------------------


class Plain(keras.metrics.Metric):
    """Of the user's own, without weights."""

    def __init__(self) -> None:
        super().__init__(name="plain")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any) -> None:
        self.count.assign_add(tf.cast(tf.shape(y_pred)[0], tf.float32))

    def result(self) -> Any:
        return self.count


def one_number(y: Any, p: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(keras.ops.cast(y, "float32") - p))


STEPWISE = {
    "Precision": lambda: keras.metrics.Precision(),
    "AUC": lambda: keras.metrics.AUC(num_thresholds=50),
    "BinaryAccuracy": lambda: keras.metrics.BinaryAccuracy(),
    "BinaryIoU": lambda: keras.metrics.BinaryIoU(dtype="float32"),
}


@pytest.mark.parametrize("kind", ["metrics", "weighted_metrics"])
@pytest.mark.parametrize("name", STEPWISE)
@pytest.mark.parametrize("length", [B, 5], ids=["T = B", "T = 5"])
@pytest.mark.each_value
def test_metrics_of_every_step_of_a_sequence(name: str, kind: str, length: int) -> None:
    """Against the metric itself, given weights in the full shape."""
    y = (np.random.default_rng(1).random((N, length, 1)) > 0.5).astype(np.float32)
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Input((3,)), keras.layers.Dense(length, "sigmoid"), keras.layers.Reshape((length, 1))]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.0), "binary_crossentropy", jit_compile=False, **{kind: [STEPWISE[name]()]})
    seen = history(model, (X, y), frozen(), epochs=1)
    again, metric = frozen(), STEPWISE[name]()
    for _ in range(N // B):
        draw = again.draw(B)
        weight = np.broadcast_to((1.0 / (N * draw.probability))[:, None, None], (B, length, 1)).astype(np.float32)
        metric.update_state(y[draw.index], model(X[draw.index]), sample_weight=weight)
    got = next(values for key, values in seen.items() if key not in FIGURES | {"loss"})
    np.testing.assert_allclose(got, [metric.result()], rtol=1e-5)


def test_segmentation() -> None:
    pixels = RNG.integers(0, K, (N, 5, 2))
    layers = [keras.layers.Input((3,)), keras.layers.Dense(5 * 2 * K), keras.layers.Reshape((5, 2, K))]
    model = keras.Sequential(layers)
    model.compile("sgd", LOGITS, metrics=[keras.metrics.MeanIoU(K, sparse_y_pred=False), "accuracy"])
    seen = history(model, (X, pixels), frozen(), epochs=1)
    assert all(0.0 <= values[0] <= 1.0 for name, values in seen.items() if "accuracy" in name or "io_u" in name)


@pytest.mark.parametrize("mode", [{}, {"run_eagerly": True}], ids=["graph", "eager"])
def test_metrics_that_take_no_weights_see_the_batch_and_that_is_said_once(
    mode: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=[Plain(), one_number, "mae"], **mode)
    seen = history(model, (X, SOFT), frozen(), epochs=2)
    assert seen["plain"].tolist() == [N, N]
    assert np.isfinite(seen["one_number"]).all()
    for name in ("plain", "one_number"):
        assert sum(f"{name!r} takes no weights" in record.getMessage() for record in caplog.records) == 1
    assert not any("'mae' takes" in record.getMessage() for record in caplog.records)


class Guided(keras.Model):
    """A train step that updates every metric itself, as Keras's guide to customised training has it."""

    def __init__(self) -> None:
        super().__init__()
        self.out = keras.layers.Dense(K)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.out(x)

    def train_step(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred, sample_weight=sample_weight)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_a_train_step_that_updates_metrics_itself(beta: float) -> None:
    keras.utils.set_random_seed(3)
    model = Guided()
    model.compile(keras.optimizers.SGD(0.0), LOGITS, metrics=["accuracy"], jit_compile=False)
    seen = history(model, (X, CLASSES), frozen(beta=beta), epochs=100)
    scores = model.predict(X, verbose=0)
    assert deviation(seen["loss"], cross_entropy(scores).mean()) < 4.5
