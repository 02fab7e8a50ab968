"""The picture of the pipelines: thousand samples a second against B, a panel a data set, a row a number of cores.

    python -m benchmarks.pipeline_plot                         # of the committed results
    python -m benchmarks.pipeline_plot --results mine.jsonl    # writes mine.png

Both axes are logarithmic. This project's lines are thick, those of others thin, and grey above all is what no pipeline
can reach: the samples taken by NumPy into one buffer, and nothing else. See :mod:`benchmarks.drawing` for the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from matplotlib.ticker import FixedLocator, FuncFormatter

from benchmarks import comparing, drawing
from benchmarks import pipeline_names as names
from benchmarks.drawing import BLUE, FAINT, GREEN, GROUND, INK, ORANGE, PURPLE, RED, SKY, YELLOW, Line, Style
from benchmarks.pipeline_report import Row, timed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HIGHEST = 1e6  # k samples/s, above every pipeline
PANEL = (4.3, 3.7)  # inches
LEGEND = 2.1  # inches below the panels, and a bit for the title
ENTRY = 2.7  # inches of an entry of the legend


@dataclass(frozen=True)
class Options:
    """Draw the results."""

    results: Path = Path("benchmarks/results/pipeline_throughput.jsonl")
    """The JSON lines."""
    output: Path | None = None
    """Where the picture goes; beside the results if not given."""


# In the order of the legend: ours first, then Keras, tf.data, torch and Grain.
STYLES: dict[str, Style] = {
    names.TENSORS: Style("this project, tensors", BLUE, "o", ours=True),
    names.ARRAYS: Style("this project, arrays in place", RED, "s", ours=True),
    names.MAPPED: Style("this project, memory map", SKY, "^", ours=True),
    names.CACHED: Style("this project, disk cache", PURPLE, "D", ours=True),
    names.KERAS: Style("Keras fit(X, y)", INK, "o"),
    names.KERAS_BATCHES: Style("Keras PyDataset", INK, "v", dashed=True),
    names.SHUFFLED: Style("tf.data shuffle.batch", ORANGE, "v"),
    names.SHUFFLED_CACHE: Style("tf.data cache.shuffle.batch", ORANGE, "^", dashed=True),
    names.RECORDS: Style("tf.data TFRecord, shuffle", ORANGE, "X"),
    names.BATCHES: Style("from_generator, batches", GREEN, "s"),
    names.ELEMENTS: Style("from_generator, elements", GREEN, "s", dashed=True),
    names.BY_CLASS: Style("sample_from_datasets", YELLOW, "P"),
    names.REJECTING: Style("rejection_resample", YELLOW, "X", dashed=True),
    names.TORCH: Style("torch WeightedRandomSampler", PURPLE, "h"),
    names.TORCH_BATCHES: Style("torch, whole batches", PURPLE, "p", dashed=True),
    names.TORCH_WORKERS: Style("torch, two workers", PURPLE, "1", dashed=True),
    names.GRAIN: Style("Grain", FAINT, "d"),
    names.GRAIN_RECORDS: Style("Grain ArrayRecord", FAINT, "*", dashed=True),
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the picture of the rows as a PNG."""
    shown = [row for row in timed(rows) if row["kind"] == "throughput"]
    data = list(dict.fromkeys(row["data"] for row in shown))
    cores = list(dict.fromkeys(row["cores"] for row in shown))
    width, height = PANEL[0] * max(len(data), 2), PANEL[1] * max(len(cores), 1) + LEGEND
    figure = drawing.figure_of(width, height)
    grid = figure.subplots(max(len(cores), 1), max(len(data), 1), sharex=True, sharey=True, squeeze=False)
    for line_of_panels, count in zip(grid, cores, strict=False):
        for axes, name in zip(line_of_panels, data, strict=False):
            here = [row for row in shown if row["data"] == name and row["cores"] == count]
            panel(axes, here, f"{name}, {count} core{'s' if count > 1 else ''}")
        line_of_panels[0].set_ylabel("thousand samples a second", color=INK)
    rates = [row["k_samples_s"] for row in shown if "skipped" not in row]
    if rates:
        grid[0][0].set_ylim(min(rates) / 1.6, max(rates) * 1.6)
    for axes in grid[-1]:
        axes.set_xlabel("B, batch size", color=INK)
    drawing.legend(figure, STYLES, int(width / ENTRY))
    drawing.save(figure, "Input pipelines", path)


def panel(axes: Axes, rows: Sequence[Row], title: str) -> None:
    """One data set on so many cores."""
    drawing.logarithmic(axes, title)
    axes.xaxis.set_major_locator(FixedLocator(sorted({row["batch_size"] for row in rows})))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    floor(axes, rows)
    drawing.lines(axes, STYLES, lambda name: line(rows, name))


def floor(axes: Axes, rows: Sequence[Row]) -> None:
    """The grey area that no pipeline enters."""
    batches, rates = line(rows, names.FLOOR)
    if batches:
        axes.fill_between(batches, rates, [HIGHEST] * len(rates), color=GROUND, alpha=0.5, linewidth=0, zorder=1)
        axes.plot(batches, rates, color=FAINT, linewidth=1.0, label="no pipeline: numpy take", zorder=2)


def line(rows: Sequence[Row], name: str) -> Line:
    """Batch sizes and rates of a system, ascending."""
    return drawing.line(rows, name, "batch_size", "k_samples_s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.pipeline_plot")
    path = options.output or options.results.with_suffix(".png")
    draw(comparing.read(options.results), path)
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
