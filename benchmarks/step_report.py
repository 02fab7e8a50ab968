"""What the feedback and the loss of each sample cost a step, from the rows of ``step_overhead``.

    python -m benchmarks.step_report                       # of the committed results
    print(report(read(Path("benchmarks/results/step_overhead.jsonl"))))

A ratio is time over time, taken inside each round first, and then the median over the rounds, so that what slowed a
round cancels. The rows hold every round, so any ratio can be taken again from a result that lies on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.comparing import read, short
from benchmarks.measuring import quartiles
from benchmarks.step_names import ARRAYS, REFERENCE, bar

Row = dict[str, Any]


class Point(NamedTuple):
    """What is the same for all systems that were measured together."""

    kind: str
    model: str  # or the loss
    batch: int
    jit: bool
    cores: int

    def __str__(self) -> str:
        """In words."""
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        return f"{self.model}, B = {self.batch:,}, {'jitted' if self.jit else 'plain'}, {cores}"


def point_of(row: Row) -> Point:
    """Where a row was measured."""
    return Point(row["kind"], row["model"], row["batch_size"], row["jit"], row["cores"])


def points(rows: Iterable[Row]) -> list[Point]:
    """The points, in the order they come in."""
    return list(dict.fromkeys(map(point_of, rows)))


def find(rows: Iterable[Row], point: Point, system: str) -> Row | None:
    """The row of a system at a point, if it has figures."""
    for row in rows:
        if row["system"] == system and point_of(row) == point:
            return None if "skipped" in row else row
    return None


def ratio(rows: Sequence[Row], point: Point, system: str, other: str | None) -> tuple[float, float, float] | None:
    """Time over time in each round: median, lower and upper quartile; None where one is missing."""
    mine, theirs = find(rows, point, system), None if other is None else find(rows, point, other)
    if mine is None or theirs is None:
        return None
    return quartiles(np.divide(mine["ms_rounds"], theirs["ms_rounds"]))


# --- the table of everything ------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """The rows as text, a block for each point."""
    lines = ["ms a step, median over the rounds"]
    for point in points(rows):
        lines += ["", f"{point!s:<58}{'ms':>8}  {'quartiles':>15}{'repeats':>12}{'ratio':>8}  {'quartiles':>13}"]
        lines += [line(rows, row) for row in rows if point_of(row) == point]
    if rows:
        lines += ["", ", ".join(f"{name} {value}" for name, value in rows[0]["machine"].items())]
    return "\n".join(lines)


def line(rows: Sequence[Row], row: Row) -> str:
    """One row as text."""
    if "skipped" in row:
        return f"{row['system']:<58}  skipped: {row['skipped']}"
    lower, upper = (short(value) for value in row["ms_quartiles"])
    repeats = f"{row['repeats']} x {row['steps_per_repeat']}"
    found = ratio(rows, point_of(row), row["system"], REFERENCE.get(row["system"]))
    told = "" if found is None else f"{found[0]:>8.3f}  {f'{found[1]:.3f} - {found[2]:.3f}':>13}"
    return f"{row['system']:<58}{short(row['ms']):>8}  {f'{lower} - {upper}':>15}{repeats:>12}{told}"


# --- tables in Markdown -----------------------------------------------------------------------


def report(rows: Sequence[Row]) -> str:
    """What each system takes over its reference, and whether the bars are met."""
    found = []
    if any(row["kind"] == "fit" for row in rows):
        found += ["A step of `fit`, over the one with plain weights:", "", fits(rows), ""]
    if any(row["kind"] == "loss" for row in rows):
        found += ["Forward and backward, over those with the batch loss:", "", losses(rows), ""]
    return "\n".join([*found, verdict(rows)])


def fits(rows: Sequence[Row]) -> str:
    """Every way of training at every point."""
    lines = ["| | | ms | ratio | quartiles | bar | over arrays |", "|---|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        if row["kind"] == "fit":
            over = ratio(rows, point_of(row), row["system"], ARRAYS)
            last = "-" if over is None else f"{over[0]:.2f}"
            lines.append(f"| {' | '.join([*cells(rows, row), last])} |")
    return "\n".join(lines)


def losses(rows: Sequence[Row]) -> str:
    """Every way to the loss at every point."""
    lines = ["| | | ms | ratio | quartiles | bar |", "|---|---|--:|--:|--:|--:|"]
    lines += [f"| {' | '.join(cells(rows, row))} |" for row in rows if row["kind"] == "loss"]
    return "\n".join(lines)


def cells(rows: Sequence[Row], row: Row) -> list[str]:
    """Where, who, how long, over its reference, and the bar."""
    where = [str(point_of(row)), row["system"]]
    if "skipped" in row:
        return [*where, f"skipped: {row['skipped']}", "", "", ""]
    found = ratio(rows, point_of(row), row["system"], REFERENCE.get(row["system"]))
    told = ["-", "-"] if found is None else [f"{found[0]:.3f}", f"{found[1]:.3f} - {found[2]:.3f}"]
    return [*where, short(row["ms"]), *told, judged(found, bar(row["system"], row["model"]))]


def judged(found: tuple[float, float, float] | None, allowed: float | None) -> str:
    """A bar, and whether the median is within it."""
    if allowed is None or found is None:
        return "-" if allowed is None else f"{allowed:.2f}: not measured"
    return f"{allowed:.2f}: {'met' if found[0] <= allowed else 'missed'}"


def verdict(rows: Sequence[Row]) -> str:
    """How many bars are met; a line for each that is not, and for each that could not be told."""
    told, met = [], 0
    for row in rows:
        allowed = bar(row["system"], row["model"])
        if allowed is None:
            continue
        found = ratio(rows, point_of(row), row["system"], REFERENCE[row["system"]])
        if found is not None and found[0] <= allowed:
            met += 1
            continue
        what = "not measured" if found is None else f"{found[0]:.3f} ({found[1]:.3f} - {found[2]:.3f})"
        told.append(f"- {point_of(row)}: {row['system']} {what}, bar {allowed:.2f}")
    return "\n".join([f"Bars met: {met} of {met + len(told)}.", *told])


if __name__ == "__main__":
    print(report(read(Path(*sys.argv[1:] or ["benchmarks/results/step_overhead.jsonl"]))))
