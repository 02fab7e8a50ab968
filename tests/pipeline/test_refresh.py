"""Losses by extra forward passes: equal to an oracle, of the stalest samples, exactly within the budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import LossFeedback, importance_dataset
from pipeline.refresh import RefreshStalest, Scorer, score_all
from pipeline.sources import as_source
from sampler import ImportanceSampler

N, B, K, T = 30, 4, 3, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 5)).astype(np.float32)
CLASSES = RNG.integers(0, K, N)
SPARSE = keras.losses.SparseCategoricalCrossentropy


def network(*layers: keras.layers.Layer, rate: float = 0.0, **options: Any) -> keras.Model:
    """A compiled classifier that stands still unless it has a learning rate."""
    model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(K)])
    model.compile(keras.optimizers.SGD(rate), SPARSE(from_logits=True), **options)
    return model


def oracle(model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Of all N samples, in float64 from the logits: -log p_y, and ‖softmax - onehot‖."""
    logits = model(X, training=False).numpy().astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return -np.log(shares[np.arange(N), CLASSES]), np.linalg.norm(shares - np.eye(K)[CLASSES], axis=1)


# --- the losses of all samples --------------------------------------------------------------------


class Records:
    """Anything with ``__len__`` and ``__getitem__``."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, place: int) -> tuple[np.ndarray, np.int64]:
        return X[place], CLASSES[place]


SOURCES: dict[str, Callable[[], Any]] = {
    "arrays": lambda: (X, CLASSES),
    "tensors": lambda: (tf.constant(X), tf.constant(CLASSES)),
    "with weights": lambda: (X, CLASSES, np.arange(N)),
    "dataset": lambda: tf.data.Dataset.from_tensor_slices((X, CLASSES)).map(lambda x, y: (x * 1.0, y)),
    "items": Records,
    "source": lambda: as_source((X, CLASSES)),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("batch_size", [7, N, 512])
def test_every_sample_has_its_loss_in_the_order_of_the_index(name: str, batch_size: int) -> None:
    model = network(keras.layers.BatchNormalization(), keras.layers.Dropout(0.5))
    before = [variable.numpy().copy() for variable in model.variables]
    losses = score_all(model, SOURCES[name](), batch_size=batch_size)
    assert losses.dtype == np.float32
    np.testing.assert_allclose(losses, oracle(model)[0], rtol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))


def test_elements_are_decoded_one_by_one() -> None:
    coded = np.array([row.tobytes() for row in X], object)

    def decode(text: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.reshape(tf.io.decode_raw(text, tf.float32), [5]), label

    model = network()
    losses = score_all(model, (coded, CLASSES), map_fn=decode, batch_size=8)
    np.testing.assert_allclose(losses, oracle(model)[0], rtol=1e-5)


@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanAbsoluteError(), lambda y, z: tf.reduce_max(abs(y - z), -1)])
def test_any_loss_may_be_asked_for(loss: Any) -> None:
    model = network()
    targets = RNG.normal(size=(N, K)).astype(np.float32)
    error = np.abs(targets - model(X).numpy())
    expected = {"mse": (error**2).mean(1)}.get(loss if isinstance(loss, str) else "", error.mean(1))
    expected = error.max(1) if callable(loss) and not isinstance(loss, keras.losses.Loss) else expected
    np.testing.assert_allclose(score_all(model, (X, targets), loss), expected, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.each_value
def test_losses_of_sequences_are_those_that_come_back_from_training(
    reduction: str, masked: bool, recording: Any
) -> None:
    tokens, labels = RNG.integers(0 if masked else 1, 4, (N, T)), RNG.integers(0, K, (N, T))
    model = keras.Sequential([keras.Input((T,)), keras.layers.Embedding(4, 3, mask_zero=masked), keras.layers.Dense(K)])
    model.compile(keras.optimizers.SGD(0.0), SPARSE(from_logits=True, reduction=reduction))
    sampler = recording(N, seed=0)
    train = importance_dataset((tokens, labels), sampler, N)  # one batch of all, so that means over a batch agree
    model.fit(train, callbacks=[LossFeedback(model, sampler)], shuffle=False, verbose=0)
    ((index, losses, _),) = sampler.updates
    np.testing.assert_allclose(score_all(model, (tokens, labels))[index], losses, rtol=1e-5)


def test_gradient_norms_come_with_the_losses() -> None:
    model = network(keras.layers.Dense(4, "tanh"))
    losses, norms = Scorer(model, (X, CLASSES), score="gradient_norm")(np.array([3, 3, 29]))
    expected_losses, expected_norms = oracle(model)
    np.testing.assert_allclose(losses, expected_losses[[3, 3, 29]], rtol=1e-5)
    np.testing.assert_allclose(norms, expected_norms[[3, 3, 29]], rtol=1e-5)


def test_a_sampler_starts_from_the_losses() -> None:
    model = network()
    sampler = ImportanceSampler(N, losses=score_all(model, (X, CLASSES)), uniform_fraction=0.0)
    expected = oracle(model)[0]
    np.testing.assert_allclose(sampler.probabilities(), expected / expected.sum(), rtol=1e-5)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs samples of \(x, y\)"):
        score_all(network(), X)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        score_all(network(), (X, CLASSES), batch_size=0)
    with pytest.raises(ValueError, match="not compiled with a loss"):
        score_all(keras.Sequential([keras.layers.Dense(K)]), (X, CLASSES))
    with pytest.raises(ValueError, match="one number for the whole batch"):
        score_all(network(), (X, CLASSES), loss=lambda y, z: tf.reduce_mean(z))


# --- the stalest ----------------------------------------------------------------------------------


class Watching(RefreshStalest):
    """Remembers which samples were the stalest when it scored, and their ages before and after."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.at: list[int] = []
        self.stalest: list[np.ndarray] = []
        self.ages: list[tuple[np.ndarray, np.ndarray]] = []

    def refresh(self) -> None:
        index, ages = self.sampler.stalest(self._batch_size), self.sampler.ages()
        super().refresh()
        self.at.append(self._steps)
        self.stalest.append(index)
        self.ages.append((ages, self.sampler.ages()))


def trained(model: keras.Model, sampler: Any, refresh: RefreshStalest, epochs: int = 1) -> Any:
    train = importance_dataset((X, CLASSES), sampler, B, prefetch=0)
    callbacks = [LossFeedback(model, sampler), refresh]
    return model.fit(train, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0)


def test_exactly_the_stalest_are_scored_and_their_ages_fall(recording: Any) -> None:
    model = network()
    sampler = recording(N, losses=np.arange(1.0, N + 1), uniform_fraction=0.1, seed=0)
    refresh = Watching(model, sampler, (X, CLASSES), batch_size=B, budget=0.5, start=0)
    trained(model, sampler, refresh, epochs=3)
    losses = oracle(model)[0]
    extra = [(index, values) for index, values, step in sampler.updates if step.dtype == object]  # without a step
    assert len(extra) == len(refresh.stalest) == 12  # of 24 steps
    for (index, values), stalest, (before, after) in zip(extra, refresh.stalest, refresh.ages, strict=True):
        np.testing.assert_array_equal(index, stalest)
        np.testing.assert_allclose(values, losses[index], rtol=1e-5)
        others = np.setdiff1d(np.arange(N), index)
        assert before[index].min() >= before[others].max()
        assert after[index].max() == 0
        np.testing.assert_array_equal(after[others], before[others])


STEP_BY_STEP = [(0.1, 0, 1), (0.29, 0, 1), (0.3, 5, 1), (1.0, None, 1), (2.5, None, 1), (0.0, 0, 1)]


@pytest.mark.parametrize(("budget", "start", "together"), [*STEP_BY_STEP, (0.3, 5, 3), (1.0, None, 3)])
@pytest.mark.every(2)
def test_the_budget_is_kept_exactly(budget: float, start: int | None, together: int) -> None:
    model = network(steps_per_execution=together)
    sampler = ImportanceSampler(N, feedback_lag=3, seed=0)
    refresh = Watching(model, sampler, (X, CLASSES), batch_size=B, budget=budget, start=start)
    trained(model, sampler, refresh, epochs=5)
    first = 8 if start is None else start  # ceil(30 / 4)
    assert refresh.scored == B * int(budget * (40 - first) + 1e-9)
    assert all(count + 1 <= budget * (at - first) + 1e-9 for count, at in enumerate(refresh.at))
    if together == 1:  # and none comes late
        assert all(count + 1 > budget * (at - 1 - first) + 1e-9 for count, at in enumerate(refresh.at))


def test_a_run_comes_out_the_same_bit_for_bit_when_nothing_is_drawn_ahead() -> None:
    def run() -> tuple[np.ndarray, list[np.ndarray]]:
        keras.utils.set_random_seed(0)
        model = network(keras.layers.Dropout(0.2), rate=0.1)
        sampler = ImportanceSampler(N, feedback_lag=2, smoothing=0.5, seed=0)
        refresh = Watching(model, sampler, (X, CLASSES), batch_size=B, budget=0.5)
        trained(model, sampler, refresh, epochs=4)
        return sampler.priorities(), [*refresh.stalest, *model.get_weights()]

    (one, first), (two, second) = run(), run()
    np.testing.assert_array_equal(one, two)
    assert len(first) > 12
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_priority_that_asks_for_scores_is_given_them() -> None:
    model = network()
    sampler = ImportanceSampler(N, priority="gradient_norm", first_pass=False, initial_priority=1.0)
    RefreshStalest(model, sampler, (X, CLASSES), batch_size=N, score="gradient_norm").refresh()
    np.testing.assert_allclose(sampler.priorities(), oracle(model)[1], rtol=1e-5)
    RefreshStalest(model, sampler, (X, CLASSES), batch_size=N).refresh()  # by the layer's weights
    inputs = keras.Model(model.inputs[0], model.layers[-1].input)(X).numpy()
    expected = oracle(model)[1] * np.sqrt((inputs**2).sum(axis=1) + 1.0)
    np.testing.assert_allclose(sampler.priorities(), expected, rtol=1e-5)


def test_it_goes_with_feedback_by_scores() -> None:
    model = network(keras.layers.Dense(4, "relu"), rate=0.1)
    sampler = ImportanceSampler(N, priority="gradient_norm", seed=0)
    refresh = RefreshStalest(model, sampler, (X, CLASSES), batch_size=B, budget=0.5, score="gradient_norm")
    train = importance_dataset((X, CLASSES), sampler, B)
    feedback = LossFeedback(model, sampler, score="gradient_norm")
    model.fit(train, epochs=3, callbacks=[feedback, refresh], shuffle=False, verbose=0)
    assert refresh.scored == 8 * B


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"budget": -0.1}, r"budget must be in \[0, inf\), got -0.1"),
        ({"start": -1}, "start must be at least 0, got -1"),
        ({"score": "norm"}, "score must be one of 'gradient_norm', 'last_layer' or None, got 'norm'"),
        ({"source": (X[1:], CLASSES[1:])}, "the source has 29 elements, the sampler 30 samples"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    given = {"source": (X, CLASSES), "batch_size": B, **options}
    with pytest.raises(ValueError, match=message):
        RefreshStalest(network(), ImportanceSampler(N), **given)
