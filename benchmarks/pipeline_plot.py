"""The picture of the pipelines: thousand samples a second against B, a panel a data set, a row a number of cores.

    python -m benchmarks.pipeline_plot                         # of the committed results
    python -m benchmarks.pipeline_plot --results mine.jsonl    # writes mine.png

Both axes are logarithmic. This project's lines are thick, those of others thin, and grey above all is what no pipeline
can reach: the samples taken by NumPy into one buffer, and nothing else. Colours, ground and letters are those of
:mod:`benchmarks.plot`.

Needs matplotlib, which the extra ``plots`` brings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks import comparing
from benchmarks import pipeline_names as names
from benchmarks.pipeline_report import Row, timed
from benchmarks.plot import BLUE, FAINT, GREEN, GROUND, INK, ORANGE, PURPLE, RED, SKY, YELLOW, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HIGHEST = 1e6  # k samples/s, above every pipeline
PANEL = (4.3, 3.7)  # inches
LEGEND = 2.1  # inches below the panels, and a bit for the title
ENTRY = 2.7  # inches of an entry of the legend
DPI = 150


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
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
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
    legend(figure, [axes for line_of_panels in grid for axes in line_of_panels], int(width / ENTRY))
    figure.suptitle("Input pipelines", color=INK, fontsize=14, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})


def legend(figure: Figure, panels: Sequence[Axes], columns: int) -> None:
    """One for all panels, in the order of the styles."""
    handles: dict[str, Any] = {}
    for axes in panels:
        handles.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    order = [style.label for style in STYLES.values() if style.label in handles]
    order += [label for label in handles if label not in order]
    figure.legend(
        [handles[label] for label in order],
        order,
        loc="outside lower center",
        ncols=min(columns, len(order)) or 1,
        frameon=False,
        fontsize=9.5,
        handlelength=2.8,
        columnspacing=1.8,
    )


def panel(axes: Axes, rows: Sequence[Row], title: str) -> None:
    """One data set on so many cores."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, color=INK, fontsize=12)
    axes.grid(which="major", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(FixedLocator(sorted({row["batch_size"] for row in rows})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator(numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.tick_params(colors=INK, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GROUND)
    floor(axes, rows)
    for name, style in reversed(STYLES.items()):  # ours last, so on top
        batches, rates = line(rows, name)
        if batches:
            axes.plot(
                batches,
                rates,
                label=style.label,
                color=style.color,
                marker=style.marker,
                markersize=7 if style.ours else 5,
                markeredgecolor="white" if style.marker not in "1" else style.color,
                markeredgewidth=0.7,
                linewidth=3.2 if style.ours else 1.3,
                linestyle=(0, (4, 2)) if style.dashed else "-",
                alpha=1.0 if style.ours else 0.9,
                zorder=4 if style.ours else 3,
            )


def floor(axes: Axes, rows: Sequence[Row]) -> None:
    """The grey area that no pipeline enters."""
    batches, rates = line(rows, names.FLOOR)
    if batches:
        axes.fill_between(batches, rates, [HIGHEST] * len(rates), color=GROUND, alpha=0.5, linewidth=0, zorder=1)
        axes.plot(batches, rates, color=FAINT, linewidth=1.0, label="no pipeline: numpy take", zorder=2)


def line(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    """Batch sizes and rates of a system, ascending."""
    found = sorted(
        (row["batch_size"], row["k_samples_s"]) for row in rows if row["system"] == name and "skipped" not in row
    )
    return [batch for batch, _ in found], [rate for _, rate in found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.pipeline_plot")
    path = options.output or options.results.with_suffix(".png")
    draw(comparing.read(options.results), path)
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
