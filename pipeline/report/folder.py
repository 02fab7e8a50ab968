"""The output folder of a training or of a comparison, read: nothing in it is run.

    run = Run.read(Path("runs/digits-importance-0"))
    run.summary["test_loss"], run.curve[-1]["step"], run.samples

What is missing is None or empty, but for ``summary.json``, without which a training is not finished.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.comparing import METRICS, Summary
from pipeline.samples import Samples

Row = dict[str, float]

LARGEST = 1e300  # of a number: those beyond cannot be drawn, and a sign of damage
NUMBER = (int, float)
NEEDED = {"sampling": str, "dataset": str, "model": str, "parameters": int, "steps": int, "seconds": NUMBER}
OF_TEST = {"test_loss": NUMBER, "test_accuracy": NUMBER, "worst_class_accuracy": NUMBER}
MAY_HAVE = {**OF_TEST, "train_loss": NUMBER, "learning_rate": NUMBER, "sampler": dict}
OF_SAMPLER = {"gate_open": bool, "gate_gain": NUMBER}
OF_LOSSES = {"step", "mean", "loss_0.05", "loss_0.25", "loss_0.5", "loss_0.75", "loss_0.95", "loss_1"}


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
        checked(folder / "summary.json", summary, NEEDED, MAY_HAVE)
        checked(folder / "summary.json", summary.get("sampler") or {}, {}, OF_SAMPLER)
        history = rows_of(folder / "history.csv", {"epoch", "step"})
        curve = rows_of(folder / "curve.csv", {"step", "seconds"})
        try:
            samples = Samples.read(folder / "samples.npz")
        except FileNotFoundError:
            samples = None
        except ValueError as error:
            raise NoReport(str(error)) from error
        return cls(folder, summary, history, curve or history, rows_of(folder / "losses.csv", OF_LOSSES), samples)


@dataclass(frozen=True)
class Compared:
    """What a comparison has written: the runs, their curves, and what was found, by method and metric too."""

    folder: Path
    result: dict[str, Any]
    runs: list[dict[str, str]]
    curves: list[dict[str, str]]
    summaries: dict[str, dict[str, Summary]]

    @classmethod
    def read(cls, folder: Path) -> Compared | None:
        """Of its folder; None where it is that of no comparison."""
        result = json_of(folder / "comparison.json")
        if result is None:
            return None
        path, methods = folder / "comparison.json", result.get("methods")
        checked(path, result, {"methods": list, "seeds": list}, {"summaries": dict})
        if not methods or not all(isinstance(method, str) for method in methods):
            raise NoReport(f"{path} holds no result: its methods have no names")
        found = result.get("summaries") or {}
        checked(path, found, {}, dict.fromkeys(methods, dict))
        summaries = {method: _summaries(path, found.get(method) or {}) for method in methods}
        runs, curves = fields_of(folder / "comparison.csv"), fields_of(folder / "curves.csv")
        numbers_of(folder / "comparison.csv", runs, {"seed"}, texts={"method"})
        numbers_of(folder / "curves.csv", curves, {"step", "seconds"}, texts={"method"})
        return cls(folder, result, runs, curves, summaries)


def _summaries(path: Path, found: Mapping[str, Any]) -> dict[str, Summary]:
    """Of one method, by metric; NaN where there is no figure. ``NoReport`` for what is none."""
    checked(path, found, {}, {metric.name: dict for metric in METRICS})
    summaries = {}
    for metric in METRICS:
        parts = found.get(metric.name) or {}
        checked(path, parts, {}, dict.fromkeys(Summary._fields, NUMBER))
        values = (parts.get(name) for name in Summary._fields)
        summaries[metric.name] = Summary(*(math.nan if value is None else value for value in values))
    return summaries


def json_of(path: Path) -> dict[str, Any] | None:
    """A file of JSON, None where there is none; ``NoReport`` for one that cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise NoReport(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise NoReport(f"{path} holds no result")
    return found


def checked(path: Path, found: Mapping[str, Any], needed: Mapping[str, Any], may_have: Mapping[str, Any]) -> None:
    """``NoReport`` where ``found`` lacks what is needed, or has something of another type; None stands for NaN."""
    for name, kind in {**needed, **may_have}.items():
        value = found.get(name)
        known = isinstance(value, kind) or (value is None and name in may_have)
        if not known or (isinstance(value, int | float) and abs(value) > LARGEST):
            raise NoReport(f"{path} holds no result: {name} is {value!r:.80}")


def fields_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as text, none where there is no file; ``NoReport`` for one that cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise NoReport(f"{path} cannot be read: {error}") from error
    if any(None in row or None in row.values() for row in rows):
        raise NoReport(f"{path} cannot be read: its rows are of different lengths")
    return rows


def rows_of(path: Path, needed: Set[str]) -> list[Row]:
    """The rows of a CSV file as ``numbers_of`` has them, none where there is no file."""
    return numbers_of(path, fields_of(path), needed)


def numbers_of(
    path: Path, fields: Sequence[Mapping[str, str]], needed: Set[str], texts: Set[str] = frozenset()
) -> list[Row]:
    """The rows of a CSV file as numbers, without ``texts``; what is empty is left out of its row.

    ``NoReport`` where there is anything else in it, or a row has not what is ``needed``.
    """
    try:
        rows = [{name: float(value) for name, value in row.items() if value and name not in texts} for row in fields]
    except ValueError as error:
        raise NoReport(f"{path} holds something that is no number: {error}") from error
    for row, found in zip(rows, fields, strict=True):
        if any(LARGEST < abs(value) < math.inf for value in row.values()):
            raise NoReport(f"{path} holds a number beyond {LARGEST:g}")
        if missing := sorted((needed - row.keys()) | (texts - found.keys())):
            raise NoReport(f"{path} has a row without {', '.join(missing)}")
    return rows


def _what_is_there(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is no folder; name the output folder of a training"
    if (folder / "config.yaml").exists():
        return f"the training in {folder} is not finished: it has no summary.json yet; go on with --resume"
    return f"{folder} holds neither summary.json nor comparison.json; name the output folder of a training"
