"""The model is as it was after a fit with ``LossFeedback``, and fit's other options work beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import LossFeedback, importance_dataset
from sampler import ImportanceSampler

from .cases import (
    CASES,
    CLASSES,
    KNOWN,
    LOGITS,
    STEPS,
    VALUES,
    B,
    N,
    Subclassed,
    X,
    assert_every_step_came_back,
    fit,
    squared,
)

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
@pytest.mark.every(2)
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


@pytest.mark.parametrize("lag", [pytest.param(None, marks=pytest.mark.soak), 3])
def test_steps_per_epoch(lag: int | None, recording: type[Any]) -> None:
    case, sampler = CASES["functional"], recording(N, losses=KNOWN, seed=0, feedback_lag=lag)
    model = case.compiled()
    train = importance_dataset(case.data(), sampler, B).repeat()
    fit(model, train, LossFeedback(model, sampler), epochs=3, steps_per_epoch=3)
    assert_every_step_came_back(sampler, case.losses(model), 9)


@pytest.mark.parametrize("lag", [None, 3])
@pytest.mark.every(2)
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
