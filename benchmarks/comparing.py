"""Ratios between systems, from the rows of ``sampler_throughput``: tables in Markdown for the README.

    rows = read(Path("benchmarks/results/sampler_throughput.jsonl"))
    within(rows, (1_000_000, 256), "kernels", "tianshou SegmentTree")     # a median of ratios, or None
    print(report(rows))

A ratio is taken inside each round first and then the median over the rounds, so that what slowed a round cancels.
The rows hold the step of each round, so every ratio can be taken again from a result that lies on disk.

Two of the tables have a *bar*: how small a ratio is aimed at. ✓ stands where it is reached.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import systems
from benchmarks.peers import remote

Row = dict[str, Any]
Point = tuple[int, int]  # N, B

KERNEL_BAR = 0.4  # this project's kernels over the fastest raw tree that draws right
PUBLIC_BAR = 0.25  # the public sampler over TorchRL's


def read(path: Path) -> list[Row]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def points(rows: Iterable[Row]) -> list[Point]:
    """The points, in the order they come in."""
    return list(dict.fromkeys((row["num_samples"], row["batch_size"]) for row in rows))


def find(rows: Iterable[Row], point: Point, name: str) -> Row | None:
    """The row of a system at a point, if it has figures."""
    for row in rows:
        if (row["num_samples"], row["batch_size"], row["system"]) == (*point, name):
            return None if "skipped" in row else row
    return None


def within(rows: Sequence[Row], point: Point, name: str, other: str) -> float | None:
    """The step of one system over that of another, in each round, then the median; None where one is missing."""
    ours, theirs = find(rows, point, name), find(rows, point, other)
    if ours is None or theirs is None:
        return None
    return float(np.median(np.divide(ours["step_rounds_us"], theirs["step_rounds_us"])))


def fastest_right(rows: Sequence[Row], point: Point) -> str | None:
    """The raw tree of others with the shortest step, among those known to draw right at this N."""
    steps = {}
    for name, peer in remote.PEERS.items():
        row = find(rows, point, name)
        if row and peer.kind == "kernel" and (peer.right_below is None or point[0] < peer.right_below):
            steps[name] = row["step_us"]
    return min(steps, key=lambda name: steps[name]) if steps else None


# --- tables -----------------------------------------------------------------------------------


def report(rows: Sequence[Row]) -> str:
    """All tables the rows have figures for."""
    parts = ["", "The step of ImportanceSampler over that of others:", "", ratios(rows)]
    names = {row["system"] for row in rows}
    if names & set(remote.PEERS):
        parts += ["", f"The kernels over the raw trees of others, bar {KERNEL_BAR}:", "", kernels(rows)]
        parts += ["", f"ImportanceSampler over the stores of others, bar {PUBLIC_BAR}:", "", public(rows)]
    return "\n".join(parts)


def ratios(rows: Sequence[Row]) -> str:
    """The step of ``ImportanceSampler`` over those of this process's other systems.

    Of numpy's ``choice`` the draw alone counts.
    """
    others = [name for name, entry in systems.SYSTEMS.items() if entry.everywhere][1:]
    lines = heading([f"{name}, draw alone" if name == systems.CHOICE else name for name in others])
    for point in points(rows):
        own = find(rows, point, systems.SAMPLER)
        cells = [
            (own["step_over_choice_draw"] if own else None)
            if name == systems.CHOICE
            else within(rows, point, systems.SAMPLER, name)
            for name in others
        ]
        lines.append(cells_of(point, [fraction(cell) for cell in cells]))
    return "\n".join(lines)


def kernels(rows: Sequence[Row]) -> str:
    """The kernels of this project over each raw tree; a tree known to draw wrong at this N stands in brackets."""
    trees = {name: peer for name, peer in remote.PEERS.items() if peer.kind == "kernel"}
    lines = heading([*trees, "the fastest that draws right"])
    for point in points(rows):
        cells = []
        for name, peer in trees.items():
            cell = decimal(within(rows, point, systems.KERNELS, name))
            wrong = peer.right_below is not None and point[0] >= peer.right_below and cell != "-"
            cells.append(f"({cell})" if wrong else cell)
        fastest = fastest_right(rows, point)
        ratio = within(rows, point, systems.KERNELS, fastest) if fastest else None
        cells.append(f"{fastest}: {against(ratio, KERNEL_BAR)}" if ratio else "-")
        lines.append(cells_of(point, cells))
    return "\n".join(lines)


def public(rows: Sequence[Row]) -> str:
    """The public sampler over the public systems of others, and over a raw tree."""
    others = [name for name, peer in remote.PEERS.items() if peer.kind == "public"]
    lines = heading([*others, f"{remote.TIANSHOU}, raw"])
    for point in points(rows):
        cells = [
            against(within(rows, point, systems.SAMPLER, name), PUBLIC_BAR)
            if name == remote.TORCHRL_PUBLIC
            else decimal(within(rows, point, systems.SAMPLER, name))
            for name in [*others, remote.TIANSHOU]
        ]
        lines.append(cells_of(point, cells))
    return "\n".join(lines)


def heading(titles: Sequence[str]) -> list[str]:
    """The first two lines of a table over N and B."""
    return [f"| N | B | {' | '.join(titles)} |", "|--:|--:|" + "--:|" * len(titles)]


def cells_of(point: Point, cells: Sequence[str]) -> str:
    """A line of a table over N and B."""
    return f"| {point[0]:,} | {point[1]:,} | {' | '.join(cells)} |"


def short(value: float) -> str:
    """Three digits, as far as they mean something."""
    return f"{value:,.0f}" if value >= 100.0 else f"{value:.3g}"


def fraction(ratio: float | None) -> str:
    """A ratio below one as 1/x, so that the eye reads how many times faster."""
    if ratio is None:
        return "-"
    return f"1/{short(1 / ratio)}" if ratio < 1.0 else short(ratio)


def decimal(ratio: float | None) -> str:
    """A ratio as a decimal number, to be held against a bar."""
    return "-" if ratio is None else f"{ratio:.2g}" if ratio < 0.1 else f"{ratio:.2f}"


def against(ratio: float | None, bar: float) -> str:
    """A ratio and whether it reaches the bar."""
    return "-" if ratio is None else f"{decimal(ratio)} {'✓' if ratio <= bar else '✗'}"


if __name__ == "__main__":
    print(report(read(Path(*sys.argv[1:] or ["benchmarks/results/sampler_throughput.jsonl"]))))
