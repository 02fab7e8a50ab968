"""What is said of trainings with scorers and without follows from their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scorers
from benchmarks.scorers import TASKS, WAYS, Options, at_equal_seconds, loss_at, report, training
from trainer.config import Config


def a_row(way: str, seed: int, seconds: float, losses: list[float]) -> dict[str, Any]:
    """A training of four steps, of which the first took a second, with a point of its curve for each loss."""
    times = [seconds * (number + 1) / len(losses) for number in range(len(losses))]
    return {
        **{"task": "checker", "seed": seed, "way": way, "num_samples": 1000, "steps": 4, "seconds": seconds},
        **{"first_step_seconds": 1.0, "test_loss": losses[-1], "mean_age": 50.0 * seconds},
        "curve": [list(point) for point in zip(times, losses, strict=True)],
        "scorers": {"scored_per_second": 7.0} if way == "scorers" else None,
    }


def test_losses_after_the_same_seconds() -> None:
    quick, slow = a_row("alone", 0, 4.0, [8.0, 4.0, 2.0, 1.0]), a_row("scorers", 0, 8.0, [6.0, 3.0, 1.5, 0.5])
    assert [loss_at(quick, seconds) for seconds in (0.5, 1.0, 1.9, 2.0, 4.0, 9.0)] == [8.0, 8.0, 8.0, 4.0, 1.0, 1.0]
    assert at_equal_seconds(slow, quick) == 3.0  # 3 after 4 s, where the other one has come to 1
    assert at_equal_seconds(quick, slow) == pytest.approx(1 / 3)


def test_the_table_has_medians_and_ranges() -> None:
    rows = [a_row(way, seed, 2.0 + seed, [4.0, 2.0]) for way in WAYS for seed in range(3)]
    rows[-1]["test_loss"] = 6.0  # scorers, the last seed
    lines = report(rows).splitlines()
    assert len(lines) == 2 + len(WAYS)
    assert lines[2] == "| checker | 1,000 | alone | 666.67 | 150 | 1.00 (1.00 - 1.00) | 1.00 (1.00 - 1.00) |  |"
    assert lines[4] == "| checker | 1,000 | scorers | 666.67 | 150 | 1.00 (1.00 - 3.00) | 1.00 (1.00 - 1.00) | 7 |"


def test_the_results_are_told_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [a_row(way, 0, 2.0, [4.0, 2.0]) for way in WAYS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert scorers.main(["--report", "--output", str(path)]) == 0
    assert capsys.readouterr().out == report(rows) + "\n"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", TASKS)
def test_the_trainings_differ_in_their_way_alone(task: str, way: str) -> None:
    alone, own = (Config(**training(TASKS[task], 3, one)) for one in ("alone", way))
    differing = {name for name in vars(own) if getattr(own, name) != getattr(alone, name)}
    assert differing == set(WAYS[way])
    assert own.seed == 3


@pytest.mark.parametrize("given", [{"tasks": ("other",)}, {"tasks": ()}, {"seeds": 0}])
def test_what_cannot_be_measured_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tasks must be of checker, countries, digits-longtail, and seeds at least 1"):
        Options(**given)
