"""A training that is stopped after any step and goes on in a new model: nobody can tell it from one that was not."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.data import Data
from pipeline.presampling import Presampler
from pipeline.saving import Saving, Stopped, interval
from pipeline.training import Outcome, make_reproducible, train
from sampler import ImportanceSampler, PruningSampler, RankedSampler, UniformSampler

N, B, STEPS = 24, 8, 7  # an epoch is three steps, the last one cut short
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N + 8, 5)).astype(np.float32), RNG.integers(0, 3, N + 8)
DATA = Data("small", X[:N], Y[:N], X[N:], Y[N:], 3)

SAMPLERS = {
    "uniform": lambda model, seed: UniformSampler(N, feedback_lag=2, seed=seed),
    "importance": lambda model, seed: ImportanceSampler(
        N, feedback_lag=3, smoothing=0.5, gate="variance", first_pass=0.3, priority="clipped", seed=seed
    ),
    "auto": lambda model, seed: ImportanceSampler(N, feedback_lag=2, priority="auto", max_draws=2, seed=seed),
    "ranked": lambda model, seed: RankedSampler(N, feedback_lag=2, seed=seed),
    "pruning": lambda model, seed: PruningSampler(N, steps=STEPS, feedback_lag=2, seed=seed),
    "presampled": lambda model, seed: Presampler(model, B, presample=2, seed=0),
}


class Noise(keras.layers.Layer):
    """With no seed of its own."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        return inputs + keras.random.normal((6,)) if training else inputs


def run(
    name: str = "importance", seed: int = 0, layer: keras.layers.Layer | None = None, **options: Any
) -> tuple[Outcome, list[np.ndarray]]:
    """A training of ``STEPS`` steps by a model with dropout, and the weights at its end."""
    keras.utils.clear_session()
    make_reproducible(0)  # a stream is shuffled by it
    layers = keras.layers
    last = [layer] if layer else []
    model = keras.Sequential([keras.Input((5,)), layers.Dense(6, "relu"), layers.Dropout(0.3), *last, layers.Dense(3)])
    if seed:  # other weights, other draws: all that counts must come from the snapshot
        for variable in model.variables:
            variable.assign(variable.numpy() + seed)
    sampler = SAMPLERS[name](model, seed)
    outcome = train(DATA, model, sampler, steps=STEPS, batch_size=B, evaluate_every=2, **options)
    return outcome, [variable.numpy() for variable in model.weights]


def after(count: int) -> Any:
    """Says stop when it was asked so many times."""
    asked = iter(range(1, count + 1))
    return lambda: next(asked) == count


def told(outcome: Outcome) -> dict[str, Any]:
    """All of an outcome that is not a time."""
    rows = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in part]
        for part in (outcome.history, outcome.curve)
    ]
    figures = {name: value for name, value in outcome.figures.items() if name != "sampling/milliseconds"}
    scores = (outcome.steps, outcome.train_loss, outcome.test_loss, outcome.test_accuracy)
    return {"rows": rows, "figures": figures, "scores": scores, "advice": outcome.advice and outcome.advice.gains()}


@pytest.fixture(scope="module")
def unsaved() -> tuple[Outcome, list[np.ndarray]]:
    """The training that nobody stops and that saves nothing."""
    return run()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same training saving at every step, and the folder of its snapshots."""
    folder = tmp_path_factory.mktemp("saved")
    return *run(saving=Saving(folder, every="1step", keep=100)), folder


def check(name: str, steps: Iterable[int], tmp_path: Path, saved: Any = None, **options: Any) -> None:
    """What goes on from the snapshot of each of ``steps`` is the training that nobody stopped."""
    if saved is None:
        saved = *run(name, saving=Saving(tmp_path / "all", every="1step", keep=100), **options), tmp_path / "all"
    whole, weights, folder = saved
    results = []
    for number, step in enumerate(steps, start=1):
        (tmp_path / str(step)).mkdir()
        for file in folder.glob(f"snapshot-{step}.*"):
            shutil.copy(file, tmp_path / str(step))
        results.append(run(name, seed=number, saving=Saving(tmp_path / str(step), resume=True), **options))
    for outcome, again in results:
        assert told(outcome) == told(whole)
        for one, other in zip(again, weights, strict=True):
            np.testing.assert_array_equal(one, other)


def test_gone_on_with_from_any_step_it_is_the_same_training(tmp_path, saved):
    check("importance", range(1, STEPS), tmp_path, saved)


def test_saving_is_no_part_of_it(unsaved, saved):
    (whole, weights), (outcome, again, _) = unsaved, saved
    assert told(outcome) == told(whole)
    for one, other in zip(again, weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("stops", [(2,), pytest.param((1, 3), marks=pytest.mark.soak)])
def test_compiled_by_xla(stops, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.pipeline.test_resume.STEPS", 4)  # each training is compiled anew, for a second or two
    check("importance", stops, tmp_path, jit_compile=True)


def test_several_steps_an_execution(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.pipeline.test_resume.STEPS", 6)
    check("importance", (3,), tmp_path, steps_per_execution=3)
    with pytest.raises(ValueError, match="steps_per_execution must divide the 3 steps of an epoch and the 6"):
        run(steps_per_execution=2)


@pytest.mark.soak
def test_several_steps_an_execution_compiled_by_xla(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.pipeline.test_resume.STEPS", 6)
    monkeypatch.setattr("tests.pipeline.test_resume.B", 4)  # six steps an epoch: executions of two end in its middle
    check("importance", (2, 4), tmp_path, steps_per_execution=2, jit_compile=True)


@pytest.mark.parametrize(
    "name",
    ["auto", *(pytest.param(name, marks=pytest.mark.soak) for name in ("presampled", "uniform", "ranked", "pruning"))],
)
def test_every_sampling_goes_on(name, tmp_path):
    check(name, (4,), tmp_path)


@pytest.mark.soak
def test_with_refreshing(tmp_path):
    check("importance", (2, 5), tmp_path, refresh=0.7)


def test_a_model_that_draws_from_the_seeds_of_keras(tmp_path):
    check("importance", (4,), tmp_path, layer=Noise())


def test_stopped_it_says_after_which_step(tmp_path, unsaved):
    with pytest.raises(Stopped) as stopped:
        run(saving=Saving(tmp_path, stop=after(5)))
    assert stopped.value.step == 5
    outcome, again = run(seed=1, saving=Saving(tmp_path, resume=True))
    whole, weights = unsaved
    assert told(outcome) == told(whole)
    for one, other in zip(again, weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_saves_as_often_as_told_and_at_the_end(tmp_path):
    saved = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            saved.append(sorted(int(path.stem.split("-")[1]) for path in tmp_path.glob("*.index")))

    _, weights = run(saving=Saving(tmp_path, every="2steps", keep=2), callbacks=[Watch()])
    assert saved == [[], [], [2], [2], [2, 4], [2, 4], [4, 6]]
    assert sorted(int(path.stem.split("-")[1]) for path in tmp_path.glob("*.index")) == [6, 7]
    outcome, again = run(seed=3, saving=Saving(tmp_path, resume=True))  # nothing is left to do
    assert outcome.steps == STEPS
    for one, other in zip(again, weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_so_many_seconds(tmp_path, monkeypatch):
    times = iter(range(1000))
    monkeypatch.setattr("pipeline.saving.time.monotonic", lambda: float(next(times)))
    run(saving=Saving(tmp_path, every="2s", keep=9))
    steps = sorted(int(path.stem.split("-")[1]) for path in tmp_path.glob("*.index"))
    assert steps[-1] == STEPS
    assert 2 < len(steps) < STEPS


def test_another_length_of_epoch_or_data_is_refused(tmp_path):
    with pytest.raises(Stopped):
        run(saving=Saving(tmp_path, stop=after(1), about={"data": "ab"}))
    with pytest.raises(ValueError, match="is of a run with data 'ab', in this one it is 'cd'"):
        run(saving=Saving(tmp_path, resume=True, about={"data": "cd"}))
    with pytest.raises(ValueError, match=r"has the parts .*variables, this run .*refresh"):
        run(saving=Saving(tmp_path, resume=True, about={"data": "ab"}), refresh=0.1)


@pytest.mark.parametrize(
    ("text", "found"),
    [(None, None), ("500steps", (500, "steps")), ("1 step", (1, "steps")), ("1.5s", (1.5, "seconds"))],
)
def test_intervals(text, found):
    assert interval(text) == found


@pytest.mark.parametrize("text", ["", "5", "0s", "1.5steps", "-3s", "5 minutes", "nans"])
def test_what_is_no_interval(text):
    with pytest.raises(ValueError, match="like 500steps or 60s"):
        interval(text)
