"""Ratios between input pipelines, from the rows of ``pipeline_throughput``: tables in Markdown for the README.

    python -m benchmarks.pipeline_report                                   # of the committed results
    rows = read(Path("benchmarks/results/pipeline_throughput.jsonl"))
    within(rows, Point("images", 256, 1), "this project, tensors", "tf.data shuffle")    # a median of ratios, or None
    print(report(rows))

A ratio is samples a second over samples a second, taken inside each round first, and then the median over the rounds,
so that what slowed a round cancels; above 1 the first of the two is the faster. The rows hold every round, so any ratio
can be taken again from a result that lies on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.comparing import read, short
from benchmarks.pipeline_names import EAGER, FLOOR, KERAS, OTHERS, WAYS

Row = dict[str, Any]

EQUAL = 0.97  # from this ratio on nobody is called faster: the quartiles are about as wide
PER = 10_000  # batches of a slope


class Point(NamedTuple):
    """A data set, a batch size and a number of cores."""

    data: str
    batch: int
    cores: int

    def __str__(self) -> str:
        """In words."""
        return f"{self.data}, B = {self.batch:,}, {self.cores} core{'s' if self.cores > 1 else ''}"


def timed(rows: Iterable[Row]) -> list[Row]:
    """The rows that are not about memory."""
    return [row for row in rows if row["kind"] not in ("memory", "slope")]


def point_of(row: Row) -> Point:
    """Where a row was measured."""
    return Point(row["data"], row["batch_size"], row["cores"])


def points(rows: Iterable[Row]) -> list[Point]:
    """The points, in the order they come in."""
    return list(dict.fromkeys(point_of(row) for row in timed(rows)))


def find(rows: Iterable[Row], point: Point, name: str, kind: str | None = None) -> Row | None:
    """The row of a system at a point, if it has figures; of any kind but ``cold`` where none is given."""
    for row in timed(rows):
        of_kind = row["kind"] == kind if kind else row["kind"] != "cold"
        if of_kind and row["system"] == name and point_of(row) == point:
            return None if "skipped" in row else row
    return None


def within(rows: Sequence[Row], point: Point, name: str, other: str, kind: str | None = None) -> float | None:
    """The rate of one system over that of another, in each round, then the median; None where one is missing."""
    ours, theirs = find(rows, point, name, kind), find(rows, point, other, kind)
    if ours is None or theirs is None:
        return None
    return float(np.median(np.divide(ours["k_samples_s_rounds"], theirs["k_samples_s_rounds"])))


# --- the table of everything ------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """The rows as text, a block for each point."""
    lines = ["thousand samples a second, median over the rounds"]
    for point in points(rows):
        for cold in (False, True):
            block = [row for row in timed(rows) if point_of(row) == point and (row["kind"] == "cold") == cold]
            if block:
                title = f"{point}{', cold' if cold else ''}"
                lines += ["", f"{title:<40}{'k samples/s':>12}  {'quartiles':>17}{'repeats':>14}{'over Keras':>12}"]
                lines += [line(row) for row in block]
    if rows:
        lines += ["", ", ".join(f"{name} {value}" for name, value in rows[0]["machine"].items())]
    return "\n".join(lines)


def line(row: Row) -> str:
    """One row as text."""
    if "skipped" in row:
        return f"{row['system']:<40}  skipped: {row['skipped']}"
    lower, upper = (short(value) for value in row["k_samples_s_quartiles"])
    repeats = f"{row['repeats']} x {row['steps_per_repeat']}"
    return (
        f"{row['system']:<40}{short(row['k_samples_s']):>12}  {lower + ' - ' + upper:>17}{repeats:>14}"
        f"{ratio(row['over_keras']):>12}{cold_note(row)}"
    )


def cold_note(row: Row) -> str:
    """What a cold round read."""
    if row["kind"] != "cold":
        return ""
    return f"   {row['samples_per_repeat']:,} samples a round, {row['distinct_samples']:,} different"


def ratio(value: float | None) -> str:
    """A ratio of speeds."""
    return "-" if value is None else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


# --- tables in Markdown -----------------------------------------------------------------------


def report(rows: Sequence[Row]) -> str:
    """All tables the rows have figures for, and where this project loses."""
    found = []
    for cores in dict.fromkeys(point.cores for point in points(rows)):
        for data in dict.fromkeys(point.data for point in points(rows)):
            found += ["", f"{data}, {cores} core{'s' if cores > 1 else ''}, thousand samples a second:", ""]
            found.append(rates(rows, data, cores))
    if any(row["kind"] == "cold" for row in rows):
        found += ["", "From disk, the files out of the page cache at the beginning of each epoch:", "", cold(rows)]
    if any(row["kind"] == "memory" for row in rows):
        found += ["", "Resident memory added, over the bytes of the data; all of it in brackets:", "", memory(rows)]
    if any(row["kind"] == "slope" for row in rows):
        found += ["", f"What memory grows by in {PER:,} batches:", "", slopes(rows)]
    return "\n".join([*found, "", "Where this project loses:", "", losses(rows)])


def rates(rows: Sequence[Row], data: str, cores: int) -> str:
    """Every system against B: the rate, and in brackets that of this project over tensors over it."""
    batches = [point.batch for point in points(rows) if (point.data, point.cores) == (data, cores)]
    lines = [f"| | {' | '.join(f'B = {batch:,}' for batch in batches)} |", "|---|" + "--:|" * len(batches)]
    names = dict.fromkeys(
        row["system"] for row in timed(rows) if row["kind"] != "cold" and (row["data"], row["cores"]) == (data, cores)
    )
    for name in names:
        cells = []
        for batch in batches:
            row = find(rows, Point(data, batch, cores), name)
            cells.append("-" if row is None else f"{short(row['k_samples_s'])} ({ratio(row['over_keras'])})")
        lines.append(f"| {f'**{name}**' if name in WAYS else name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"In brackets: over {KERAS}."])


def cold(rows: Sequence[Row]) -> str:
    """Systems that read files, cold and warm."""
    lines = [
        "| | B | cores | cold, k samples/s | warm | samples a round | different ones |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if row["kind"] != "cold":
            continue
        cells = [row["system"], f"{row['batch_size']:,}", str(row["cores"])]
        warm = find(rows, point_of(row), row["system"])
        if "skipped" in row:
            cells += [row["skipped"], "", "", ""]
        else:
            cells += [short(row["k_samples_s"]), "-" if warm is None else short(warm["k_samples_s"])]
            cells += [f"{row['samples_per_repeat']:,}", f"{row['distinct_samples']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def memory(rows: Sequence[Row]) -> str:
    """Anonymous memory over the bytes of the data; in brackets all that is resident."""
    lines = ["| | data | MB of data | loaded | wrapped | after an epoch |", "|---|---|--:|--:|--:|--:|"]
    for row in rows:
        if row["kind"] != "memory":
            continue
        if "skipped" in row:
            lines.append(f"| {row['system']} | {row['data']} | skipped: {row['skipped']} | | | |")
            continue
        cells = [
            f"{row['anon_over_data'][when]:.2f} ({row['rss_over_data'][when]:.2f})"
            for when in ("loaded", "wrapped", "epoch")
        ]
        lines.append(f"| {row['system']} | {row['data']} | {row['data_bytes'] / 1e6:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def slopes(rows: Sequence[Row]) -> str:
    """Megabytes in 10,000 batches."""
    lines = ["| | data | B | batches | anonymous, MB | all, MB |", "|---|---|--:|--:|--:|--:|"]
    for row in rows:
        if row["kind"] == "slope":
            cells = [row["system"], row["data"], f"{row['batch_size']:,}"]
            if "skipped" in row:
                cells += [f"skipped: {row['skipped']}", "", ""]
            else:
                grown = [f"{row[f'{name}_mb_per_{PER}']:+.2f}" for name in ("anon", "rss")]
                cells += [f"{row['batches']:,}", *grown]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def losses(rows: Sequence[Row]) -> str:
    """A line for each way of this project at each point where systems of others are faster, the floor left out."""
    lines = []
    for point in points(rows):
        others = [row["system"] for row in timed(rows) if row["group"] == OTHERS and point_of(row) == point]
        for kind, ways in (("throughput", WAYS), ("eager", (EAGER,)), ("cold", WAYS)):
            for way in ways:
                slower = {other: within(rows, point, way, other, kind) for other in dict.fromkeys(others)}
                faster = [f"{other} ({ratio(value)})" for other, value in slower.items() if value and value < EQUAL]
                if faster:
                    lines.append(
                        f"- {point}{', cold' if kind == 'cold' else ''}: {way} is slower than {'; '.join(faster)}"
                    )
    return "\n".join(lines) or f"Nowhere: no system of others but the floor ({FLOOR}) is faster at any point measured."


if __name__ == "__main__":
    print(report(read(Path(*sys.argv[1:] or ["benchmarks/results/pipeline_throughput.jsonl"]))))
