"""Epochs that end where the sampler's pass does: as a dataset, repeated, broken off, and in ``fit``."""

from __future__ import annotations

import logging
import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import LossFeedback, importance_dataset, importance_sampling
from pipeline.epochs import end_epoch
from pipeline.iterations import Iterations, iterations_over
from sampler import ImportanceSampler, PruningSampler, SelectiveSampler, UniformSampler

N, B = 60, 8
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "pipeline")
    caplog.set_level(logging.ERROR, "sampler")


def loss_of(index: Any) -> np.ndarray:
    return np.asarray(index) * 7.0 % N


def train(dataset: tf.data.Dataset, sampler: Any, most: int | None = None) -> list[list[int]]:
    """One iteration with feedback; gives the samples of each batch."""
    made = []
    for _, _, sampling in dataset if most is None else dataset.take(most):
        index = sampling["index"].numpy()
        sampler.update(index, loss_of(index), step=sampling["step"].numpy())
        made.append(index.tolist())
    return made


# --- the dataset ----------------------------------------------------------------------------------


def test_the_cardinality_is_unknown_only_where_epochs_vary() -> None:
    for sampler in (ImportanceSampler(N), UniformSampler(N)):
        assert int(importance_dataset((X, Y), sampler, B).cardinality()) == math.ceil(N / B)
    for sampler in (PruningSampler(N), SelectiveSampler(N)):
        assert importance_dataset((X, Y), sampler, B).cardinality() == tf.data.UNKNOWN_CARDINALITY


@pytest.mark.parametrize("lag", [None, 20])
def test_epochs_of_another_length_draw_no_batch_beyond(lag: int | None) -> None:
    sampler = ImportanceSampler(N, feedback_lag=lag, seed=0)
    for batches in (3, 11):  # less than a pass over the samples, and more
        dataset = importance_dataset((X, Y), sampler, B, batches=batches, prefetch=8)
        assert int(dataset.cardinality()) == batches
        before = sampler.step
        assert len(train(dataset, sampler)) == batches
        assert sampler.step == before + batches
    with pytest.raises(ValueError, match="batches must be at least 1, got 0"):
        importance_dataset((X, Y), sampler, B, batches=0)


WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "nothing ahead": {"prefetch": 0},
    "far ahead": {"prefetch": 40},
    "mapped one by one": {"map_fn": lambda x, y: (x * 2, y), "num_parallel_calls": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("through", "cores"), [("arrays", 1), ("dataset", 2)])
@pytest.mark.each_value
def test_an_epoch_ends_with_the_pass(way: str, through: str, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.dataset._cores", lambda: cores)
    sampler = PruningSampler(N, finish=0.0, seed=0)
    if through == "arrays":
        dataset = importance_dataset((X, Y), sampler, B, **WAYS[way])
    else:
        dataset = tf.data.Dataset.from_tensor_slices((X, Y)).apply(importance_sampling(sampler, B, **WAYS[way]))
    lengths = []
    for _ in range(6):
        first = sampler.step
        lengths.append(len(train(dataset, sampler)))
        assert sampler.step == first + lengths[-1]  # nothing is drawn beyond the end
        assert [sampler.ends_epoch(step) for step in range(first, sampler.step)] == [False] * (lengths[-1] - 1) + [True]
    assert lengths[0] == math.ceil(N / B)
    known = lengths[1:] if way == "nothing ahead" else lengths[2:]  # a second pass begun early knows few losses
    assert all(5 <= length <= 6 for length in known)  # half of the lower half is left out: 45 samples
    assert list(iterations_over(sampler).lengths.values()) == lengths


@pytest.mark.parametrize("lag", [1, 4])
@pytest.mark.parametrize("make", [PruningSampler, SelectiveSampler])
@pytest.mark.each_value
def test_under_a_lag_epochs_are_those_of_the_sampler_alone(lag: int, make: Any) -> None:
    ours, alone = (make(N, feedback_lag=lag, seed=1) for _ in range(2))
    dataset = importance_dataset((X, Y), ours, B)
    for _ in range(6):
        made = train(dataset, ours)
        expected = []
        while not expected or not alone.ends_epoch(expected[-1].step):
            expected.append(alone.draw(B))
            alone.update(expected[-1].index, loss_of(expected[-1].index), step=expected[-1].step)
        assert made == [draw.index.tolist() for draw in expected]


@pytest.mark.parametrize("lag", [None, 2, 5])
@pytest.mark.every(2)
def test_repeated(lag: int | None) -> None:
    repeated, one_by_one = (PruningSampler(N, finish=0.0, feedback_lag=lag, seed=2) for _ in range(2))
    together = train(importance_dataset((X, Y), repeated, B).repeat(4), repeated)
    dataset = importance_dataset((X, Y), one_by_one, B)
    apart = [batch for _ in range(4) for batch in train(dataset, one_by_one)]
    if lag is not None:  # without one a pass knows what has come back by chance
        assert together == apart
    assert 8 + 3 * 5 <= len(together) <= 8 + 3 * 6
    assert repeated.ends_epoch(repeated.step - 1)


@pytest.mark.parametrize("left", [1, 3, 5])
@pytest.mark.every(2)
def test_an_epoch_broken_off_is_gone_on_with(left: int) -> None:
    """Under a lag to the batch: the rest of the pass is the next epoch."""
    sampler, whole = (PruningSampler(N, finish=0.0, feedback_lag=4, seed=3) for _ in range(2))
    dataset, reference = (importance_dataset((X, Y), each, B) for each in (sampler, whole))
    expected = [train(reference, whole) for _ in range(4)]
    assert train(dataset, sampler) == expected[0]
    begun = train(dataset, sampler, left)
    rest = train(dataset, sampler)
    assert begun + rest == expected[1]
    assert train(dataset, sampler) == expected[2]


def test_resumed_within_an_epoch() -> None:
    whole = PruningSampler(N, finish=0.0, feedback_lag=4, seed=3)
    reference = importance_dataset((X, Y), whole, B)
    expected = [train(reference, whole) for _ in range(3)]
    sampler = PruningSampler(N, finish=0.0, feedback_lag=4, seed=3)
    dataset = importance_dataset((X, Y), sampler, B)
    train(dataset, sampler)
    begun = train(dataset, sampler, 4)  # the last draws of the pass are in flight
    resumed = PruningSampler(N, finish=0.0, feedback_lag=4)
    resumed.load_state_dict(sampler.state_dict())
    again = importance_dataset((X, Y), resumed, B)
    assert begun + train(again, resumed) == expected[1]
    assert train(again, resumed) == expected[2]


def test_without_feedback_nothing_is_left_out() -> None:
    sampler = PruningSampler(N, finish=0.0, seed=0)
    dataset = importance_dataset((X, Y), sampler, B)
    with pytest.warns(RuntimeWarning, match="a whole pass over the data brought no losses back"):
        lengths = [sum(1 for _ in dataset) for _ in range(2)]
    assert lengths == [8, 7]  # the first took four samples of the second


# --- fit ------------------------------------------------------------------------------------------


class Steps(keras.callbacks.Callback):
    """Counts the steps of each epoch, and puts them into the history."""

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.steps = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.steps = batch + 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert logs is not None
        logs["steps"] = self.steps


def a_model() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    return model


def fit(sampler: Any, epochs: int, **options: Any) -> dict[str, list[float]]:
    model, dataset = a_model(), importance_dataset((X, Y), sampler, B)
    if "steps_per_epoch" in options:
        dataset = dataset.repeat()
    callbacks = [Steps(), LossFeedback(model, sampler)]
    history = model.fit(dataset, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks, **options)
    return history.history


@pytest.mark.parametrize("lag", [None, 3])
def test_fit_takes_epochs_as_they_come(lag: int | None) -> None:
    """Warnings are errors here, so this is also that Keras has nothing to warn of."""
    sampler = PruningSampler(N, epochs=5, finish=0.2, feedback_lag=lag, seed=0)
    history = fit(sampler, 5)
    assert history["steps"][0] == 8
    assert all(4 <= steps < 7 for steps in history["steps"][1:4])
    assert history["steps"][4] >= 7  # the finish: more than the epoch before
    assert sum(history["steps"]) == sampler.step == sampler.summary()["updates"]
    assert sampler.summary()["seen"] == N
    assert max(history["sampling/max_weight"]) > 1.0
    assert history["loss"][-1] < history["loss"][0]


def test_a_first_epoch_that_is_pruned_does_not_cut_the_others() -> None:
    sampler = PruningSampler(N, epochs=5, finish=0.4, seed=0)
    fit(sampler, 2)
    steps = fit(sampler, 3)["steps"]
    assert steps[0] < 7 <= min(steps[1:])
    assert sampler.ends_epoch(sampler.step - 1)


def test_fit_with_steps_per_epoch_over_the_repeated_dataset() -> None:
    sampler = PruningSampler(N, finish=0.0, seed=0)
    assert fit(sampler, 3, steps_per_epoch=6)["steps"] == [6, 6, 6]
    assert sampler.summary()["updates"] == 18


def reported(kind: Any, together: int = 1, **options: Any) -> tuple[Any, Any, list[float], list[float]]:
    """Eight epochs of a model that does not learn: what was reported as the loss, and what its draws say it is."""

    class Recording(kind):  # type: ignore[misc]
        def poll(self, batch_size: int, *, seconds: float) -> Any:
            draw = super().poll(batch_size, seconds=seconds)
            made.extend([] if draw is None else [draw])
            return draw

    made: list[Any] = []
    sampler = Recording(N, feedback_lag=6, seed=0, **options)
    model, dataset = a_model(), importance_dataset((X, Y), sampler, B)
    model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", steps_per_execution=together)
    losses = -np.log(model.predict(X, verbose=0)[np.arange(N), Y])
    callbacks = [LossFeedback(model, sampler)]
    history = model.fit(dataset, epochs=8, verbose=0, shuffle=False, callbacks=callbacks).history["loss"]
    expected, batches = [], []
    for draw in made:
        batches.append((losses[draw.index] / (N * draw.probability)).mean())
        if sampler.ends_epoch(draw.step):
            expected.append(np.mean(batches))
            batches = []
    return sampler, model, history, expected


@pytest.mark.parametrize("together", [1, 4])
def test_no_step_is_counted_beyond_the_last(together: int) -> None:
    """Neither by the optimizer nor in the loss, which is the mean of w ℓ over the batches of the epoch."""
    sampler, model, history, expected = reported(PruningSampler, together, prune=0.9, finish=0.0)
    assert int(model.optimizer.iterations) == sampler.step == sampler.summary()["updates"]
    assert len(set(sampler.priorities())) == 2
    np.testing.assert_allclose(history, expected, rtol=1e-5)


def test_what_fit_reports_of_a_biased_sampler_is_of_the_whole_data_set() -> None:
    """The mean of ℓ/(N p), though training has the weights 1."""
    sampler, _, history, expected = reported(SelectiveSampler)
    np.testing.assert_allclose(history, expected, rtol=1e-5)
    trained_on = np.average(sampler._losses, weights=sampler.probabilities())
    assert np.mean(history) < 1.1 * np.mean(sampler._losses) < 0.95 * trained_on


def test_lengths_are_not_kept_for_ever() -> None:
    iterations = Iterations()
    for _ in range(1000):
        iterations.is_drawn(iterations.begin(0), 7)
    assert len(iterations.lengths) == 100


def test_keras_by_itself_counts_a_step_beyond_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for ``end_epoch``; where this fails, Keras has mended it, and the module can go."""
    monkeypatch.setattr("pipeline.epochs._steps_of_fit", lambda model: None)
    sampler = PruningSampler(N, finish=0.0, seed=0)
    model, dataset = a_model(), importance_dataset((X, Y), sampler, B)
    with pytest.warns(UserWarning, match="Your input ran out of data"):
        model.fit(dataset, epochs=1, verbose=0, shuffle=False, callbacks=[LossFeedback(model, sampler)])
    assert int(model.optimizer.iterations) == sampler.step + 1


def test_outside_fit_there_is_nothing_to_end() -> None:
    sampler = PruningSampler(N, finish=0.0)
    last = len(train(importance_dataset((X, Y), sampler, B), sampler)) - 1
    end_epoch(a_model(), sampler, last)
