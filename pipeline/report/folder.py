"""The output folder of a training or of a comparison, read: nothing in it is run.

    run = Run.read(Path("runs/digits-importance-0"))
    run.summary["test_loss"], run.curve[-1]["step"], run.samples

What is missing is None or empty, but for ``summary.json``, without which a training is not finished.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.samples import Samples

Row = dict[str, float]


class NoReport(ValueError):
    """A folder that holds nothing to report of, said in words."""


@dataclass(frozen=True)
class Run:
    """What a training has written.

    Attributes:
        folder: where it was read from.
        summary: the result.
        history: a row an epoch.
        curve: a row an evaluation, at least one an epoch: ``step``, ``seconds``, ``test_loss``.
        losses: a row an epoch, of how the newest losses were distributed.
        samples: what is known of each sample.
    """

    folder: Path
    summary: dict[str, Any]
    history: list[Row]
    curve: list[Row]
    losses: list[Row]
    samples: Samples | None

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Of the folder of one training; ``NoReport`` where there is none that is finished, or not whole."""
        summary = json_of(folder / "summary.json")
        if summary is None:
            raise NoReport(_what_is_there(folder))
        history, curve = rows_of(folder / "history.csv"), rows_of(folder / "curve.csv")
        try:
            samples = Samples.read(folder / "samples.npz")
        except FileNotFoundError:
            samples = None
        except ValueError as error:
            raise NoReport(str(error)) from error
        return cls(folder, summary, history, curve or history, rows_of(folder / "losses.csv"), samples)


@dataclass(frozen=True)
class Compared:
    """What a comparison has written: the runs, their curves, and what was found."""

    folder: Path
    result: dict[str, Any]
    runs: list[dict[str, str]]
    curves: list[dict[str, str]]

    @classmethod
    def read(cls, folder: Path) -> Compared | None:
        """Of its folder; None where it is that of no comparison."""
        result = json_of(folder / "comparison.json")
        if result is None:
            return None
        return cls(folder, result, fields_of(folder / "comparison.csv"), fields_of(folder / "curves.csv"))


def json_of(path: Path) -> dict[str, Any] | None:
    """A file of JSON, None where there is none; ``NoReport`` for one that cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise NoReport(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise NoReport(f"{path} holds no result")
    return found


def fields_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as text, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows_of(path: Path) -> list[Row]:
    """The rows of a CSV file as numbers; what is empty is left out of its row."""
    try:
        return [{name: float(value) for name, value in row.items() if value} for row in fields_of(path)]
    except (ValueError, TypeError) as error:
        raise NoReport(f"{path} holds something that is no number: {error}") from error


def _what_is_there(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is no folder; name the output folder of a training"
    if (folder / "config.yaml").exists():
        return f"the training in {folder} is not finished: it has no summary.json yet; go on with --resume"
    return f"{folder} holds neither summary.json nor comparison.json; name the output folder of a training"
