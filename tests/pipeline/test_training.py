"""The loop of training: what it does with data, sampler and budget, and what it reports."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import replace

import keras
import numpy as np
import pytest

from pipeline import training
from pipeline.data import Data, load_data
from pipeline.evaluation import Evaluator
from pipeline.models import build_model
from pipeline.presampling import Presampler
from pipeline.reference import held_out_losses
from pipeline.training import make_reproducible, schedule, train
from sampler import ImportanceSampler, PruningSampler, UniformSampler

DIGITS = load_data("digits")
FEW = replace(DIGITS, x=DIGITS.x[:200], y=DIGITS.y[:200], x_test=DIGITS.x_test[:50], y_test=DIGITS.y_test[:50])
QUANTITY = Data("sum", FEW.x, FEW.x.sum((1, 2)), FEW.x_test, FEW.x_test.sum((1, 2)), None)


def sampler_of(sampling, data, seed=0):
    if sampling == "uniform":
        return UniformSampler(len(data), feedback_lag=4, seed=seed)
    return ImportanceSampler(len(data), smoothing=0.5, feedback_lag=4, seed=seed)


def run(data, sampling="importance", *, seed=0, **options):
    """A small training; gives the outcome, the model and the sampler."""
    make_reproducible(seed)
    model, sampler = build_model("mlp", data), sampler_of(sampling, data, seed)
    settings = {"epochs": 2, "batch_size": 32, **options}
    return train(data, model, sampler, **settings), model, sampler


@pytest.fixture(scope="module")
def evaluated():
    """Three epochs of seven steps, evaluated at every fifth."""
    return run(FEW, epochs=3, batch_size=32, evaluate_every=5)


@pytest.fixture(scope="module")
def seeded():
    """Five epochs of a sampling with another seed, once and again."""

    @functools.cache
    def trainings(sampling):
        return [run(FEW, sampling, seed=3, epochs=5) for _ in range(2)]

    return trainings


def logits_of(model, x):
    """The forward pass in NumPy, in double precision."""
    values = x.reshape(len(x), -1).astype(np.float64)
    *hidden, last = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    for layer in hidden:
        values = np.maximum(values @ layer.kernel.numpy() + layer.bias.numpy(), 0)
    return values @ last.kernel.numpy() + last.bias.numpy()


def losses_of(model, x, y):
    logits = logits_of(model, x)
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]


# --- the outcome ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["uniform", "importance"])
def test_it_learns_and_reports_plain_means_over_all_samples(sampling):
    outcome, model, _ = run(DIGITS, sampling, epochs=4, evaluate_every=50)
    right = logits_of(model, DIGITS.x_test).argmax(axis=1) == DIGITS.y_test
    assert outcome.train_loss == pytest.approx(losses_of(model, DIGITS.x, DIGITS.y).mean(), rel=1e-4)
    assert outcome.test_loss == pytest.approx(losses_of(model, DIGITS.x_test, DIGITS.y_test).mean(), rel=1e-4)
    assert outcome.test_accuracy == right.mean()
    assert outcome.worst_class_accuracy == min(right[DIGITS.y_test == k].mean() for k in range(10))
    assert outcome.test_accuracy > 0.8  # one in ten by chance


def test_steps_epochs_and_rows_are_those_of_the_budget(evaluated):
    outcome, _, sampler = evaluated
    assert (outcome.epochs, outcome.steps) == (3, 21)  # ceil(200 / 32) = 7
    assert [(row["epoch"], row["step"]) for row in outcome.history] == [(1, 7), (2, 14), (3, 21)]
    assert [row["step"] for row in outcome.curve] == [5, 10, 15, 20]
    assert outcome.history[-1]["test_loss"] == outcome.test_loss
    assert outcome.history[-1]["test_accuracy"] == outcome.test_accuracy
    seconds = [row["seconds"] for row in outcome.history]
    assert 0 < outcome.first_step_seconds < seconds[0] < seconds[1] < seconds[2] <= outcome.seconds
    assert sampler.step == 21


def test_a_budget_in_steps_ends_in_the_middle_of_an_epoch():
    outcome, model, sampler = run(FEW, epochs=None, steps=17, evaluate_every=8)
    assert (outcome.epochs, outcome.steps, sampler.summary()["updates"]) == (3, 17, 17)
    assert [(row["epoch"], row["step"]) for row in outcome.history] == [(1, 7), (2, 14), (3, 17)]
    assert [row["step"] for row in outcome.curve] == [8, 16]
    assert outcome.history[-1]["learning_rate"] == pytest.approx(0.0, abs=1e-9)  # decayed to its end
    assert int(model.optimizer.iterations) == 17


def test_passes_that_get_shorter_fill_a_budget_in_steps():
    sampler = PruningSampler(len(FEW), steps=40, feedback_lag=4, seed=0)
    make_reproducible(0)
    outcome = train(FEW, build_model("mlp", FEW), sampler, steps=40, batch_size=20)
    assert outcome.steps == sampler.summary()["updates"] == 40
    assert [row["step"] for row in outcome.history] == [10, 20, 30, 40]


def test_a_presampler_draws_from_the_data_as_from_a_stream():
    make_reproducible(0)
    model = build_model("mlp", FEW)
    sampler = Presampler(model, 20, presample=2.0, seed=0)
    outcome = train(FEW, model, sampler, steps=15, batch_size=20)
    assert (outcome.steps, sampler.summary()["updates"]) == (15, 15)
    assert outcome.test_loss < math.log(10)


def test_stale_samples_are_scored_within_the_budget(monkeypatch):
    made = []

    class Remembered(training.RefreshStalest):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(training, "RefreshStalest", Remembered)
    run(FEW, epochs=3, batch_size=20, refresh=0.2)
    assert [refresh.scored for refresh in made] == [20 * 4]  # a fifth of the 20 batches after the first pass
    run(FEW, epochs=1)
    assert len(made) == 1


def test_gradient_descent_is_plain():
    _, model, _ = run(FEW, steps=3, epochs=None, optimizer="sgd")
    assert type(model.optimizer) is keras.optimizers.SGD
    assert model.optimizer.momentum == 0.0


def test_a_model_trained_on_the_focal_loss_is_measured_by_cross_entropy():
    outcome, model, sampler = run(FEW, steps=10, epochs=None, loss="focal")
    assert outcome.test_loss == pytest.approx(losses_of(model, FEW.x_test, FEW.y_test).mean(), rel=1e-4)
    # Below every cross-entropy: what came back were the smaller focal losses.
    assert sampler.summary()["mean_priority"] < losses_of(model, FEW.x, FEW.y).mean()
    with pytest.raises(ValueError, match="the focal loss is one for classes, but the y of 'sum' is a quantity"):
        run(QUANTITY, loss="focal")


def test_figures_are_those_of_the_last_epoch(evaluated):
    outcome, _, _ = evaluated
    assert {"sampling/gain", "sampling/unseen"} <= set(outcome.figures)
    assert outcome.figures["sampling/unseen"] == 0.0


@pytest.mark.parametrize("sampling", ["uniform", "importance"])
def test_the_sampler_hears_of_every_step(sampling, seeded):
    (_, _, sampler), _ = seeded(sampling)
    told = sampler.summary()
    assert (told["updates"], told["seen"]) == (35, 200)
    changed = np.ptp(sampler.probabilities()) > 0
    assert changed == (sampling == "importance")


def test_uniform_training_is_plain_training():
    """Against ``fit`` on the same batches, without sampler, weights or feedback."""
    outcome, model, _ = run(FEW, "uniform", epochs=2)
    make_reproducible(0)
    plain, sampler = build_model("mlp", FEW), sampler_of("uniform", FEW)
    plain.compile(keras.optimizers.Adam(schedule(0.003, 14)), loss=training.loss_for(FEW))
    for _ in range(14):
        draw = sampler.draw(32)
        plain.train_on_batch(FEW.x[draw.index], FEW.y[draw.index])
        sampler.update(draw.index, np.ones(32), step=draw.step)
    for ours, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert outcome.test_loss == pytest.approx(losses_of(plain, FEW.x_test, FEW.y_test).mean(), rel=1e-3)


def test_regression_has_no_accuracy():
    outcome, model, _ = run(QUANTITY, epochs=3)
    errors = (logits_of(model, QUANTITY.x_test) - QUANTITY.y_test) ** 2
    assert outcome.test_loss == pytest.approx(errors.mean(), rel=1e-4)
    assert outcome.test_accuracy is None
    assert outcome.worst_class_accuracy is None
    assert outcome.history[0]["test_accuracy"] is None
    assert outcome.curve == []  # none was asked for


# --- reproducibility ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["uniform", "importance"])
def test_a_seed_fixes_every_bit(sampling, seeded):
    (first, first_model, first_sampler), (again, again_model, again_sampler) = seeded(sampling)
    for one, two in zip(first_model.get_weights(), again_model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert first_sampler.summary() == again_sampler.summary()
    assert (first.train_loss, first.test_loss) == (again.train_loss, again.test_loss)


def test_another_seed_gives_another_training(seeded):
    (first, _, _), _ = seeded("importance")
    assert first.test_loss != run(FEW, seed=4, epochs=5)[0].test_loss


# --- time -----------------------------------------------------------------------------------------


def test_evaluation_does_not_count_as_training(monkeypatch):
    evaluate, slept = Evaluator.__call__, []

    def slowly(self, x, y):
        time.sleep(0.05)
        slept.append(0.05)
        return evaluate(self, x, y)

    def note(logs):
        moments.append((time.perf_counter(), sum(slept)))

    moments = []
    ends = keras.callbacks.LambdaCallback(on_train_begin=note, on_train_end=note)
    monkeypatch.setattr(Evaluator, "__call__", slowly)
    outcome, _, _ = run(FEW, epochs=2, evaluate_every=1, callbacks=[ends])
    passed, slept_meanwhile = np.subtract(*reversed(moments))
    assert slept_meanwhile == pytest.approx(14 * 0.05)
    # Had it counted, the seconds would hold the sleep already and the sum would pass what went by.
    assert outcome.seconds + slept_meanwhile < passed + 0.1
    assert outcome.seconds > 0


def test_time_in_callbacks_counts_as_training():
    sleeper = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: time.sleep(0.02))
    outcome, _, _ = run(FEW, epochs=2, callbacks=[sleeper])
    assert outcome.seconds > 14 * 0.02


# --- the learning rate ----------------------------------------------------------------------------


def rates(steps, count, **options):
    rate = schedule(0.01, steps, **options)
    return [float(rate(step) if callable(rate) else rate) for step in range(count)]


def test_the_rate_decays_as_a_cosine_to_the_end_of_the_budget():
    expected = [0.01 * (1 + math.cos(math.pi * step / 100)) / 2 for step in range(101)]
    np.testing.assert_allclose(rates(100, 101), expected, atol=1e-8)


def test_the_rate_can_rise_first_and_can_stay():
    risen = rates(100, 101, warmup_steps=20)
    np.testing.assert_allclose(risen[:21], np.linspace(0, 0.01, 21), atol=1e-8)
    np.testing.assert_allclose(risen[60], 0.005, atol=1e-8)  # half way of the 80 steps that remain
    np.testing.assert_allclose(risen[100], 0.0, atol=1e-8)
    assert rates(100, 101, decay="none") == [0.01] * 101
    staying = rates(100, 101, decay="none", warmup_steps=20)
    np.testing.assert_allclose(staying, np.minimum(np.arange(101) / 20, 1) * 0.01, atol=1e-8)


def test_the_rate_of_a_training_is_the_schedule_of_its_budget():
    outcome, _, _ = run(FEW, epochs=4, learning_rate=0.01)
    expected = [0.01 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in (1, 2, 3, 4)]
    np.testing.assert_allclose([row["learning_rate"] for row in outcome.history], expected, atol=1e-7)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": None}, "give epochs or steps, one of them, got epochs=None and steps=None"),
        ({"steps": 3}, "give epochs or steps, one of them, got epochs=2 and steps=3"),
        ({"epochs": None, "steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0 and finite, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0 and finite, got nan"),
        ({"warmup_steps": 14}, r"warmup_steps must be in 0..13 \(14 steps in all\), got 14"),
        ({"decay": "linear"}, "decay must be 'cosine' or 'none', got 'linear'"),
    ],
)
def test_numbers_out_of_range_are_refused_before_training(options, message):
    with pytest.raises(ValueError, match=message):
        run(FEW, **options)


# --- a reference ----------------------------------------------------------------------------------


def test_the_reference_of_a_sample_comes_from_the_half_it_is_not_in(monkeypatch):
    """A "model" that answers with the mean of what it was trained on: for its own half that would be closer."""
    seen = []

    def remember(half, model, sampler, **options):
        seen.append(set(half.y[:, 0]))
        model.compile(loss="mse")
        model.layers[-1].bias.assign([half.y.mean()])
        model.layers[-1].kernel.assign(0 * model.layers[-1].kernel)

    y = np.arange(10, dtype=np.float32)[:, None]
    data = Data("ten", y, y, y[:2], y[:2], None)
    monkeypatch.setattr("pipeline.reference.train", remember)
    losses = held_out_losses(data, lambda half: build_model("linear", half), steps=3, batch_size=2, seed=0)
    first, second = seen
    assert first | second == set(y[:, 0])
    assert not first & second
    means = [np.mean(list(second)) if value in first else np.mean(list(first)) for value in y[:, 0]]
    np.testing.assert_allclose(losses, (y[:, 0] - means) ** 2, rtol=1e-5)


def test_a_reference_needs_two_samples():
    one = replace(FEW, x=FEW.x[:1], y=FEW.y[:1])
    with pytest.raises(ValueError, match="at least 2 samples"):
        held_out_losses(one, lambda half: build_model("mlp", half), steps=1, batch_size=1, seed=0)
