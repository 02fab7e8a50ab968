"""The page of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.comparing import AGAINST, cells_of
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
        tables=[*_means(compared), table],
        after=after,
    )
    return Page(
        title=" against ".join(result["methods"][::-1]),
        subtitle=", ".join(filter(None, [about, f"{seeds} each, in {compared.folder.resolve().name}"])),
        sections=[section],
    )


def _means(compared: Compared) -> list[Table]:
    """What the terminal has: means over the seeds, and how they compare with the first method's."""
    first, *others = compared.summaries
    means, against = cells_of(compared.summaries)
    heading = AGAINST.format(first)
    return [
        Table("Means over the seeds, with 95 % intervals", ["", first, *others], means),
        Table(heading[0].upper() + heading[1:], ["", *others], against),
    ]


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
