"""``train.py --compare``: its methods, what it writes, and runs that diverge."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest

from pipeline.comparing import Run
from train import main
from trainer import comparison as train_comparison
from trainer import options as train_options
from trainer import plan as train_plan
from trainer.config import Config


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_methods_have_options_of_their_own():
    config = Config(
        dataset="digits", learning_rate=0.01, compare="uniform, importance:beta=0.5:learning-rate=0.02", seeds=3
    )
    methods = train_options.methods_of(config)
    assert list(methods) == ["uniform", "importance:beta=0.5:learning-rate=0.02"]
    first, second = methods.values()
    assert first == dataclasses.replace(config, sampling="uniform", compare=None)
    assert second == dataclasses.replace(first, sampling="importance", beta=0.5, learning_rate=0.02)


def test_a_comparison_writes_its_files_and_can_be_had_again_from_its_config(tmp_path, capsys):
    options = [
        "--dataset",
        "digits-longtail",
        "--model",
        "mlp",
        "--compare",
        "uniform,pruning:prune=0.4",
        "--seeds",
        "2",
        "--no-report",
    ]
    first, again = tmp_path / "first", tmp_path / "again"
    assert main([*options, "--budget", "24steps", "--seed", "5", "--output", str(first)]) == 0
    told = capsys.readouterr().out
    assert "Final test loss, as a multiple of uniform's (paired over 2 seeds" in told
    assert f"written to {first}" in told
    assert "to look at" not in told  # with --no-report
    assert sorted(path.name for path in first.iterdir()) == [
        *("comparison.csv", "comparison.json", "comparison.png", "config.yaml", "curves.csv")
    ]
    rows = rows_of(first / "comparison.csv")
    assert [(row["seed"], row["method"]) for row in rows] == [
        (seed, method) for seed in "56" for method in ("uniform", "pruning:prune=0.4")
    ]
    assert {row["steps"] for row in rows} == {"24"}
    assert len(rows_of(first / "curves.csv")) == 4 * 24  # at every step, as forty points would be more

    options = ["--config", str(first / "config.yaml"), "--output", str(again), "--quiet", "--seeds", "1", "--no-report"]
    assert main(options) == 0
    assert capsys.readouterr().out == ""
    for one, other in zip(rows[:2], rows_of(again / "comparison.csv"), strict=True):
        assert (one["test_loss"], one["steps_to"]) == (other["test_loss"], other["steps_to"])


def test_a_comparison_of_seconds_is_had_again_by_its_steps():
    class Found:
        methods = ("uniform", "importance:beta=0.5")
        runs = tuple(train_run(name, steps) for name, steps in zip(methods, (291, 170), strict=True))

    config = Config(compare=",".join(Found.methods), budget="1s")
    again = train_options.methods_of(train_comparison._with_steps(config, Found()))
    assert [(method.budget, method.beta) for method in again.values()] == [("291steps", 1.0), ("170steps", 0.5)]
    same = dataclasses.replace(config, budget="3steps")
    assert train_comparison._with_steps(same, Found()) is same


def train_run(method, steps):
    return Run(method, 0, steps, 1.0, 0.1, 0.1, 0.1, None, None, ())


def test_a_comparison_is_planned_without_training(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_plan.Plan, "train", lambda *_: pytest.fail("it was trained"))
    assert main(["--compare", "uniform,ranked", "--budget", "60s", "--seeds", "3", "--dry-run"]) == 0
    first, second, seeds = capsys.readouterr().out.splitlines()
    assert first.startswith("uniform on digits: 60 s of steps of 32,")
    assert second.startswith("ranked on digits: ")
    assert seeds == "each with 3 seeds"
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_a_comparison_that_diverges_is_told_and_the_others_go_on(tmp_path, capsys):
    path = tmp_path / "big.npz"
    np.savez(path, x=np.full((40, 3), 3e38, np.float32), y=np.arange(40, dtype=np.float32))
    options = ["--dataset", f"npz:{path}", "--batch-size", "2", "--output", str(tmp_path / "out")]
    assert main([*options, "--compare", "uniform,importance", "--epochs", "1", "--seeds", "1", "--no-report"]) == 0
    assert "uniform diverged in 1 of 1 runs" in capsys.readouterr().out
