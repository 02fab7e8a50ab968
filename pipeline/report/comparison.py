"""The page of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.comparing import METRICS, Summary, against_of, mean_of
from pipeline.report import plots
from pipeline.report.folder import Compared, Row
from pipeline.report.page import Page, Section, Table
from pipeline.report.words import loss_pictures, number
from pipeline.results import counted


def of_comparison(compared: Compared) -> Page:
    """The page of a comparison."""
    result = compared.result
    curves = {method: mean_curve(compared.curves, method) for method in result["methods"]}
    lines = [line for line in str(result.get("verdict", "")).splitlines() if line]
    names = list(compared.runs[0]) if compared.runs else []
    rows = [
        [number(row[name]) if place > 1 else row[name] for place, name in enumerate(names)] for row in compared.runs
    ]
    table = Table("Every run", [name.replace("_", " ") for name in names], rows, folded=True)
    about = ", ".join(f"{name} {result[name]}" for name in ("dataset", "model", "length") if result.get(name))
    seeds = counted(len(result["seeds"]), "seed")
    after = [f"A line is the geometric mean over {seeds}, its band reaches from the lowest to the highest of them."]
    shown = {method: rows for method, rows in curves.items() if rows}
    section = Section(
        "comparison",
        "Does it pay?",
        lines,
        loss_pictures(shown, "without the first step, which compiles"),
        tables=[*_means(result), table],
        after=after,
    )
    return Page(
        title=" against ".join(result["methods"][::-1]),
        subtitle=", ".join(filter(None, [about, f"{seeds} each, in {compared.folder.resolve().name}"])),
        sections=[section],
    )


def _means(result: Mapping[str, Any]) -> list[Table]:
    """What the terminal has: means over the seeds, and how they compare with the first method's."""
    first, *others = result["methods"]
    found = {method: summaries_of(result, method) for method in result["methods"]}
    shown = [one for one in METRICS if any(math.isfinite(part[one.name].mean) for part in found.values())]
    means = [[one.heading, *(mean_of(found[method][one.name], one) for method in result["methods"])] for one in shown]
    against = [[one.heading, *(against_of(found[method][one.name], one) for method in others)] for one in shown]
    return [
        Table("Means over the seeds, with 95 % intervals", ["", *result["methods"]], means),
        Table(f"As multiples of {first}'s; accuracies as differences in points", ["", *others], against),
    ]


def summaries_of(result: Mapping[str, Any], method: str) -> dict[str, Summary]:
    """By metric, as they stand in ``comparison.json``; without figures where they are not there."""
    found = result.get("summaries", {}).get(method, {})
    return {
        one.name: Summary(**{part: _or_nan(found.get(one.name, {}).get(part)) for part in Summary._fields})
        for one in METRICS
    }


def _or_nan(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def mean_curve(rows: Sequence[Mapping[str, str]], method: str) -> list[Row]:
    """The curve of a method: at each of its steps the mean of the runs' seconds, the geometric mean, the lowest and the
    highest of their test losses.
    """
    by_step: dict[float, list[tuple[float, float]]] = {}
    for row in rows:
        if row["method"] == method and row.get("test_loss"):
            loss = max(float(row["test_loss"]), plots.LEAST)
            if math.isfinite(loss):
                by_step.setdefault(float(row["step"]), []).append((float(row["seconds"]), loss))
    curve = []
    for step, points in sorted(by_step.items()):
        seconds, losses = np.array(points).T
        curve.append(
            {
                "step": step,
                "seconds": float(seconds.mean()),
                "test_loss": float(np.exp(np.log(losses).mean())),
                "lowest": float(losses.min()),
                "highest": float(losses.max()),
            }
        )
    return curve
