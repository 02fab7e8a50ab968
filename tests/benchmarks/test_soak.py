"""The soak trains as a user would, finds a leak, and says so in figures, a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import soak, soak_plot, soak_worker
from benchmarks.comparing import read
from benchmarks.measuring import Lost
from benchmarks.soak import FEWEST, Options
from benchmarks.soak_worker import Row, Task

TASK = Task("loop", "importance", steps=40, every=2, num_samples=64, batch=8, seed=0)
needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


def looks_at(task: Task, leak: float, count: int = 100, noise: float = 0.0) -> list[Row]:
    """Looks at a training that leaks so many bytes a step, of 1 ms each."""
    steps = np.arange(1, count + 1) * task.every
    resident = 5e8 + leak * steps + noise * np.random.default_rng(0).normal(size=count)
    return [
        {
            **{"mode": task.mode, "sampling": task.sampling, "step": int(step), "seconds": step / 1e3},
            **{"rss_bytes": int(bytes_), "shared_bytes": 0, "threads": 14, "files": 6},
        }
        for step, bytes_ in zip(steps, resident, strict=True)
    ]


# --- the slope --------------------------------------------------------------------------------


def test_the_slope_is_that_of_the_leak() -> None:
    row = soak.conclusion(TASK, looks_at(TASK, leak=3.0), warm_up=0.2)
    for name in ("least_squares", "theil_sen"):
        assert row["bytes_a_step"][name] == pytest.approx(3.0, abs=0.01)
        assert row["mb_an_hour"][name] == pytest.approx(3.0 * 3.6, abs=0.04)  # at 1 ms a step
    assert (row["met"], row["looks"], row["threads"], row["files"]) == (False, 80, [14, 14], [6, 6])


@pytest.mark.parametrize(("leak", "met"), [(0.0, True), (0.25, True), (0.3, False), (-1.0, True)])
def test_the_bar_is_one_megabyte_an_hour(leak: float, met: bool) -> None:
    task = replace(TASK, every=2000)  # so that whole bytes are as good as fractions of one
    assert soak.conclusion(task, looks_at(task, leak), warm_up=0.2)["met"] is met


def test_what_comes_before_the_warm_up_is_over_does_not_count() -> None:
    rows = looks_at(TASK, leak=0.0)
    for row in rows[:15]:
        row["rss_bytes"] -= 300_000_000
    row = soak.conclusion(TASK, rows, warm_up=0.2)
    assert row["bytes_a_step"] == {"least_squares": 0.0, "theil_sen": 0.0}


def test_a_single_jump_moves_one_of_the_slopes() -> None:
    rows = looks_at(TASK, leak=0.0)
    for row in rows[-10:]:
        row["rss_bytes"] += 1_000_000
    slopes = soak.conclusion(TASK, rows, warm_up=0.2)["bytes_a_step"]
    assert slopes["theil_sen"] == 0.0
    assert slopes["least_squares"] > 1000.0


def test_without_this_project_there_is_no_bar() -> None:
    task = replace(TASK, sampling="none")
    assert "met" not in soak.conclusion(task, looks_at(task, 1.0), warm_up=0.2)


# --- trainings --------------------------------------------------------------------------------


@needs_proc
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras, which writes weights
@pytest.mark.parametrize(("mode", "sampling"), [("fit", "importance"), ("loop", "importance"), ("loop", "none")])
def test_a_training_is_looked_at(mode: Any, sampling: Any) -> None:
    rows: list[Row] = []
    task = replace(TASK, mode=mode, sampling=sampling, steps=10, every=4)
    soak_worker.train(task, soak_worker.looks(task, rows.append))
    assert (task.epoch, task.epochs) == (8, 2)  # rounded up to whole epochs
    assert [row["step"] for row in rows] == [1, 4, 8, 12, 16]
    assert rows[0]["seconds"] == 0.0
    for row in rows:
        assert (row["mode"], row["sampling"]) == (mode, sampling)
        assert 0 < row["shared_bytes"] < row["rss_bytes"]
        assert row["threads"] >= 1
        assert row["files"] >= 1


@needs_proc
def test_a_leak_in_a_real_training_is_found() -> None:
    """400 KB a step, over what a training of 80 steps takes by itself."""
    task = replace(TASK, steps=80)
    rows: list[Row] = []
    look, kept = soak_worker.looks(task, rows.append), []

    def leaking(step: int) -> None:
        kept.append(np.ones(400_000, np.uint8))
        look(step)

    soak_worker.train(task, leaking)
    row = soak.conclusion(task, rows, warm_up=0.2)
    assert len(kept) == 80
    assert not row["met"]
    assert row["bytes_a_step"]["theil_sen"] > 300_000


# --- the program ------------------------------------------------------------------------------


class FakeChild:
    """Tells of a training that was not done; of ``none`` it dies."""

    def __init__(self, command: list[str]) -> None:
        module, asked = command
        assert module == "benchmarks.soak_worker"
        self.task = Task(**json.loads(asked))

    def __enter__(self) -> FakeChild:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def lines(self) -> Iterator[dict[str, Any]]:
        rows = looks_at(self.task, leak=0.01, count=30, noise=100.0)
        yield from ({"row": row} for row in rows)
        if self.task.sampling == "none":
            raise Lost("its process ended with status 1: no memory left")


def test_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(soak, "Child", FakeChild)
    output = tmp_path / "new" / "rows.jsonl"
    assert soak.main(["--steps", "60000", "--looks", "30", "--output", str(output)]) == 0
    rows = read(output)
    assert [(row["mode"], row["sampling"]) for row in rows if row.get("kind") == "slope"] == [
        ("fit", "importance"),
        ("loop", "importance"),
        ("fit", "none"),
        ("loop", "none"),
    ]
    assert sum("kind" not in row for row in rows) == 4 * 30
    printed = capsys.readouterr()
    assert "| fit, importance | 60,000 | 1.00 |" in printed.out
    assert "| 14 | 6 |" in printed.out
    assert "skipped: its process ended with status 1: no memory left" in printed.out
    assert "fit, importance, 50 % done" in printed.err
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert soak_plot.main(["--results", str(output), "--output", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").exists()


def test_a_quick_run_leaves_the_results_alone() -> None:
    quick = Options(quick=True).shortened()
    assert (quick.steps, quick.looks, quick.output.name) == (20_000, 40, "soak-quick.jsonl")
    assert [task.steps for task in soak.tasks(quick)] == [20_000] * 4
    assert [task.steps for task in soak.tasks(Options())] == [1_000_000] * 2 + [250_000] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"looks": 2 * FEWEST - 1}, "looks must be at least 20"),
        ({"warm_up": 0.6}, "warm_up"),
        ({"modes": ()}, "modes and samplings"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Options(**options)


def test_too_few_looks_are_no_slope() -> None:
    with pytest.raises(Lost, match="too few"):
        soak.conclusion(TASK, looks_at(TASK, 0.0, count=FEWEST), warm_up=0.2)
