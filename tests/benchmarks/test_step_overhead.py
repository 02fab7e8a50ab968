"""The benchmark of a training step runs, takes its ratios inside the rounds, and names what it skips.

No test here asserts how long anything takes: that is what the benchmark is for, on a machine at rest.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measuring, step_losses, step_models, step_overhead, step_report, step_worker
from benchmarks.measuring import Lost
from benchmarks.pipeline_children import Child
from benchmarks.step_names import (
    ARRAYS,
    BATCH_LOSS,
    FEEDBACK,
    FITS,
    LOSSES,
    MEAN,
    REDUCTIONS,
    REFERENCE,
    SCORE,
    TINY,
    WEIGHTED,
    WEIGHTS,
    bar,
)
from benchmarks.step_overhead import Options
from benchmarks.step_report import Point, Row
from benchmarks.step_turns import Fit
from benchmarks.step_worker import Task

ROUNDS = 2
FIT = Task("fit", cores=2, jit=(False,), rounds=ROUNDS, seconds=1e-6, seed=0, model=TINY)
LOSS = replace(FIT, kind="loss", model="", losses=("binary_crossentropy",), batches=(8,))


def measured(task: Task) -> dict[str, Row]:
    told: list[Row] = []
    step_worker.measure(task, told.append)
    assert told[0]["part"] == 0.0
    assert told[-1]["part"] == 1.0
    return {each["row"]["system"]: each["row"] for each in told if "row" in each}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], str]:
    """One run of the trainings, in a process of its own: rows, and what was printed."""
    output = tmp_path_factory.mktemp("results") / "new" / "rows.jsonl"
    options = f"--parts fit --models {TINY} --jit False --cores 1 --rounds {ROUNDS} --seconds 0.000001"
    patch, printed = pytest.MonkeyPatch(), []
    with patch.context() as context:
        context.setattr("builtins.print", lambda *words, file=None, **_: file or printed.append(" ".join(words)))
        assert step_overhead.main([*options.split(), "--output", str(output)]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()], "\n".join(printed)


# --- one run ----------------------------------------------------------------------------------


def check_rows(rows: dict[str, Row]) -> None:
    for system, row in rows.items():
        assert "skipped" not in row
        assert len(row["ms_rounds"]) == row["repeats"] == ROUNDS
        assert row["ms_quartiles"][0] <= row["ms"] <= row["ms_quartiles"][1]
        assert row["steps_per_repeat"] >= 1
        assert (row["jit"], row["batch_size"]) == (False, 8)
        assert {"processor", "load", "tensorflow", "date"} <= set(row["machine"])
        assert row.get("over") == REFERENCE.get(system)
        if system in REFERENCE:
            inside = np.divide(row["ms_rounds"], rows[row["over"]]["ms_rounds"])
            assert row["ratio"] == pytest.approx(np.median(inside), rel=1e-3)
            assert row["ratio_quartiles"] == pytest.approx(np.quantile(inside, [0.25, 0.75]), rel=1e-3)


@pytest.mark.soak
def test_every_training_has_its_row(run: tuple[list[Row], str]) -> None:
    rows = {row["system"]: row for row in run[0]}
    assert list(rows) == list(FITS)
    check_rows(rows)
    for row in rows.values():
        assert (row["kind"], row["model"], row["num_samples"], row["cores"]) == ("fit", TINY, 16, 1)
        inside = np.divide(row["ms_rounds"], rows[ARRAYS]["ms_rounds"])
        assert row["over_arrays"] == pytest.approx(np.median(inside), rel=1e-3)
        assert "bar" not in row  # none was set for this model


def test_every_way_to_the_loss_has_its_row() -> None:
    rows = measured(LOSS)
    assert list(rows) == list(REDUCTIONS)
    check_rows(rows)
    for system in (MEAN, WEIGHTED):
        assert rows[system]["bar"] == 1.01
        assert rows[system]["met"] == (rows[system]["ratio"] <= 1.01)
    assert "bar" not in rows[BATCH_LOSS]
    assert "of 2." in step_report.report(list(rows.values()))


@pytest.mark.soak
def test_what_is_printed(run: tuple[list[Row], str]) -> None:
    printed = run[1]
    assert all(name in printed for name in FITS)
    assert "tiny, B = 8, plain, 1 core" in printed
    assert "Bars met: 0 of 0." in printed


# --- turns ------------------------------------------------------------------------------------


def alternating(running: list[str], seen: list[tuple[str, int]], name: str) -> Callable[..., None]:
    """A ``fit`` of three epochs that looks whether another one runs."""

    def train(gate: object) -> None:
        for epoch in range(3):
            gate.on_epoch_begin(epoch)
            assert running == []
            running.append(name)
            time.sleep(0.002)
            assert running == [name]
            running.remove(name)
            seen.append((name, epoch))

    return train


def test_only_one_runs_at_a_time() -> None:
    running: list[str] = []
    seen: list[tuple[str, int]] = []
    fits = {name: Fit(alternating(running, seen, name)) for name in "abc"}
    for round_ in range(2):
        for name in np.random.default_rng(round_).permutation(list("abc")):
            before = len(seen)
            assert fits[name].turn(1)[0] > 0.0
            time.sleep(0.005)  # time enough for one that does not wait
            assert seen[before:] == [(name, round_)]
    for fit in fits.values():
        fit.close()
    assert len(seen) == 6
    with pytest.raises(Lost, match="closed"):
        fits["a"].turn(1)


def test_an_epoch_is_timed_with_its_end_and_without_the_pause() -> None:
    held = threading.Event()

    def train(gate: object) -> None:
        gate.on_epoch_begin(0)
        time.sleep(0.05)
        gate.on_epoch_begin(1)
        held.set()
        gate.on_epoch_begin(2)

    fit = Fit(train)
    first, _ = fit.turn(5)
    assert first >= 0.05e6 / 5
    time.sleep(0.2)
    assert not held.is_set()
    second, _ = fit.turn(1)
    assert second < 0.2e6
    with pytest.raises(Lost, match="ended by itself"):
        fit.turn(1)
    fit.close()


def test_one_that_fails_is_lost_with_its_reason() -> None:
    def train(gate: object) -> None:
        gate.on_epoch_begin(0)
        gate.on_epoch_begin(1)
        raise ZeroDivisionError("in an epoch")

    contestants = {"fails": Fit(train), "goes on": Fit(alternating([], [], "goes on"))}
    times, lost = measuring.take_rounds(
        contestants, dict.fromkeys(contestants, 1), rounds=2, generator=np.random.default_rng(0), lead_in=False
    )
    assert lost == {"fails": "in round 2: ZeroDivisionError: in an epoch"}
    assert list(times) == ["goes on"]
    for fit in contestants.values():
        fit.close()


# --- systems ----------------------------------------------------------------------------------


def test_a_broken_system_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setting: object) -> None:
        raise MemoryError("too large")

    def fails_later(setting: object) -> Callable[..., None]:
        def train(gate: object) -> None:
            for epoch in range(4):
                gate.on_epoch_begin(epoch)
            raise ZeroDivisionError("in an epoch")

        return train

    monkeypatch.setattr(step_models, "TRAINERS", {**step_models.TRAINERS, ARRAYS: broken, WEIGHTS: fails_later})
    monkeypatch.setattr(step_worker, "FITS", (ARRAYS, FEEDBACK, WEIGHTS))
    rows = measured(replace(FIT, jit=(True,)))
    assert rows[ARRAYS]["skipped"] == "MemoryError: too large"
    assert rows[WEIGHTS]["skipped"] == "lost in round 2: ZeroDivisionError: in an epoch"
    assert "ratio" not in rows[FEEDBACK]
    assert rows[FEEDBACK]["repeats"] == ROUNDS
    told = list(rows.values())
    assert "skipped: MemoryError" in step_report.table(told)
    assert "Bars met: 0 of 0." in step_report.report(told)


def test_a_process_that_fails_leaves_named_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(command: list[str]) -> Child:
        return Child(["timeit", "raise ValueError('no JSON')"])  # another program, quick to start

    monkeypatch.setattr(step_overhead, "Child", dead)
    monkeypatch.setattr(step_overhead, "on_cores", lambda cores: measuring.one_core())
    rows = step_overhead.measure(Options(models=("mlp",), losses=LOSSES[:1], batches=(8,), jit=(False,)))
    assert [row["system"] for row in rows] == [*FITS, *REDUCTIONS]
    assert all("ended with status 1: ValueError: no JSON" in row["skipped"] for row in rows)
    assert "Bars met: 0 of 3." in step_report.report(rows)
    assert "not measured" in step_report.verdict(rows)


def test_all_ways_of_training_begin_with_the_same_weights() -> None:
    setting = step_models.Setting(step_models.MODELS[TINY], jit=False, steps=2, seed=0)
    first, second = setting.compiled(metrics=True), setting.compiled(metrics=False)
    for mine, theirs in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert setting.num_samples == len(setting.arrays[0]) == len(setting.arrays[1]) == 16


@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_of_the_samples_losses_has_the_gradient_of_the_batch_loss(name: str) -> None:
    ways = {
        system: step_losses.Gradients(system, name, batch=8, jit=False, seed=0).gradients() for system in REDUCTIONS
    }
    for whole, mean, weighted in zip(*(ways[system] for system in REDUCTIONS), strict=True):
        np.testing.assert_allclose(mean, whole, rtol=1e-4, atol=1e-6)
        assert not np.allclose(weighted, whole, rtol=1e-4, atol=1e-6)


# --- the report -------------------------------------------------------------------------------


def made_row(system: str, rounds: list[float], model: str = "cnn", kind: str = "fit") -> Row:
    where = {"kind": kind, "model": model, "jit": True, "batch_size": 128, "cores": 2}
    timed = {"ms": float(np.median(rounds)), "ms_quartiles": [min(rounds), max(rounds)], "ms_rounds": rounds}
    return {"system": system, **where, **timed, "repeats": len(rounds), "steps_per_repeat": 1, "machine": {}}


def test_the_report_takes_ratios_inside_the_rounds() -> None:
    rows = [made_row(FEEDBACK, [2.0, 30.0, 4.4]), made_row(WEIGHTS, [1.0, 20.0, 4.0])]  # 2, 1.5, 1.1
    point = Point("fit", "cnn", 128, True, 2)
    assert step_report.ratio(rows, point, FEEDBACK, WEIGHTS) == pytest.approx((1.5, 1.3, 1.75))
    assert step_report.ratio(rows, point, FEEDBACK, ARRAYS) is None
    assert step_report.ratio(rows, point._replace(jit=False), FEEDBACK, WEIGHTS) is None
    assert "| cnn, B = 128, jitted, 2 cores | feedback | 4.4 | 1.500 | 1.300 - 1.750 | 1.03: missed | - |" in (
        step_report.report(rows)
    )


@pytest.mark.parametrize(
    ("system", "model", "kind", "allowed"),
    [
        (FEEDBACK, "cnn", "fit", 1.03),
        (FEEDBACK, "mlp", "fit", 1.08),
        (MEAN, LOSSES[0], "loss", 1.01),
        (WEIGHTED, LOSSES[1], "loss", 1.01),
    ],
)
def test_bars_are_told(system: str, model: str, kind: str, allowed: float) -> None:
    assert bar(system, model) == allowed
    other = made_row(REFERENCE[system], [1000.0] * 3, model, kind)
    within = [other, made_row(system, [1000.0 * allowed, 1.0, 9e9], model, kind)]
    assert step_report.verdict(within) == "Bars met: 1 of 1."
    assert f"{allowed:.2f}: met" in step_report.report(within)
    over = [other, made_row(system, [1000.0 * allowed + 1.0, 1.0, 9e9], model, kind)]
    assert step_report.verdict(over).startswith("Bars met: 0 of 1.\n- ")
    assert f"{allowed:.2f}: missed" in step_report.report(over)


def test_no_bar_was_set_for_others() -> None:
    others = [(SCORE, "cnn"), (ARRAYS, "cnn"), (FEEDBACK, TINY), (BATCH_LOSS, LOSSES[0])]
    assert [bar(system, model) for system, model in others] == [None] * 4


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        "--batches 0",
        "--cores -1",
        "--models large",
        "--losses poisson",
        "--parts all",
        "--rounds 0",
        "--loss-rounds 0",
        "--seconds 0",
    ],
)
def test_wrong_options_end_with_status_2(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        step_overhead.main(wrong.split())
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_quick_shortens() -> None:
    quick = Options(quick=True).shortened()
    assert quick.rounds < Options().rounds
    assert quick.loss_rounds < Options().loss_rounds
    assert quick.seconds < Options().seconds
    assert Options().shortened() == Options()


def test_a_process_for_each_model_compiled_or_not() -> None:
    made = step_overhead.tasks(Options())
    assert [(task.kind, task.model, task.jit) for task in made] == [
        ("fit", "cnn", (False,)),
        ("fit", "cnn", (True,)),
        ("fit", "mlp", (False,)),
        ("fit", "mlp", (True,)),
        ("loss", "", (False, True)),
    ]
    assert len(step_worker.points(made[-1])) == 18
    assert [task.kind for task in step_overhead.tasks(Options(parts=("loss",), cores=(1, 2)))] == ["loss", "loss"]
    assert Path(Options().output).name == "step_overhead.jsonl"
