"""The picture of a soak: resident memory against steps, and threads and open files below, a column a mode.

    python -m benchmarks.soak_plot                         # of the committed results
    python -m benchmarks.soak_plot --results mine.jsonl    # writes mine.png

Memory is what was added since the end of the warm-up, so that trainings can be compared; the dashed line is the slope
by Theil and Sen, told in the legend.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from matplotlib.ticker import FuncFormatter, MaxNLocator

from benchmarks import comparing, drawing
from benchmarks.drawing import BLUE, INK, ORANGE, Row
from benchmarks.soak import MEGABYTE, column, theil_sen, warm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {"importance": BLUE, "none": INK}
NAMES = {"importance": "this project", "none": "without it"}
PANEL = (5.6, 4.2)  # inches of the upper panels
LOWER = 1.8  # inches of the lower ones


@dataclass(frozen=True)
class Options:
    """Draw the results."""

    results: Path = Path("benchmarks/results/soak.jsonl")
    """The JSON lines."""
    output: Path | None = None
    """Where the picture goes; beside the results if not given."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the picture of the rows as a PNG."""
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    figure = drawing.figure_of(PANEL[0] * max(len(modes), 1), PANEL[1] + LOWER)
    grid = figure.subplots(
        2, max(len(modes), 1), sharex="col", squeeze=False, height_ratios=(PANEL[1], LOWER), sharey="row"
    )
    for upper, lower, mode in zip(*grid, modes, strict=False):
        here = [row for row in rows if row["mode"] == mode]
        upper.set_title({"fit": "fit with LossFeedback", "loop": "a loop with update"}[mode], color=INK, fontsize=12)
        memory(upper, here)
        others(lower, here)
    grid[0][0].set_ylabel("resident memory, MB since the warm-up", color=INK)
    grid[1][0].set_ylabel("threads, files", color=INK)
    drawing.save(figure, "What a long training holds on to", path)


def looks(rows: Sequence[Row], sampling: str) -> list[Row]:
    """Those at one training."""
    return [row for row in rows if row["sampling"] == sampling and "kind" not in row]


def memory(axes: Axes, rows: Sequence[Row]) -> None:
    """Resident memory of the trainings of one mode."""
    drawing.quiet(axes)
    for told in rows:
        if told.get("kind") != "slope" or "skipped" in told:
            continue
        name = told["sampling"]
        seen = looks(rows, name)
        after = warm(seen, told["warm_up"])
        across, up = column(seen, "step"), column(seen, "rss_bytes") / MEGABYTE
        rest, level = column(after, "step"), column(after, "rss_bytes") / MEGABYTE
        slope = theil_sen(rest, level)
        middle = float(sorted(level - slope * rest)[len(level) // 2])
        zero = slope * rest[0] + middle
        label = f"{NAMES[name]}: {told['mb_an_hour']['theil_sen']:.2f} MB an hour"
        axes.plot(across, up - zero, color=COLORS[name], linewidth=1.2, alpha=0.7, label=label)
        ends = rest[[0, -1]]
        axes.plot(ends, slope * ends + middle - zero, color=ORANGE, linewidth=1.6, linestyle=(0, (4, 2)), zorder=4)
    axes.legend(frameon=False, fontsize=9.5, loc="lower right")


def others(axes: Axes, rows: Sequence[Row]) -> None:
    """Threads and open files of this project's training, or of the other where there is none."""
    drawing.quiet(axes)
    seen = looks(rows, "importance") or looks(rows, "none")
    for name, style in (("threads", "-"), ("files", (0, (4, 2)))):
        axes.plot(column(seen, "step"), column(seen, name), color=BLUE, linewidth=1.6, linestyle=style, label=name)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("steps", color=INK)
    axes.legend(frameon=False, fontsize=9.5, loc="lower right", ncols=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.soak_plot")
    path = options.output or options.results.with_suffix(".png")
    draw(comparing.read(options.results), path)
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
