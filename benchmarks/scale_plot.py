"""The picture of ``benchmarks.scale``: throughput against shards, draws from blocks, and the simulation.

python -m benchmarks.scale --report         # draws it too
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import drawing
from benchmarks.drawing import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, RED, SKY, Row
from benchmarks.scale_report import NAMES, power
from benchmarks.scale_simulation import LAYOUTS, of_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL = (5.6, 4.2)  # inches
COLORS = {"one": INK, "local": ORANGE, "shards": BLUE}
MARKS = {"shuffled": (GREEN, "o"), "sorted": (RED, "s"), "sorted, own directions": (PURPLE, "^")}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the picture of the rows as a PNG."""
    figure = drawing.figure_of(2 * PANEL[0], 2 * PANEL[1])
    flow, blocks, memory, part = figure.subplots(2, 2).ravel()
    throughput(flow, rows)
    moments(blocks, rows)
    simulated = [row for row in of_kind(rows, "simulated") if "skipped" not in row]
    memories(memory, simulated)
    parts(part, simulated)
    drawing.save(figure, "A priority store on several processes, measured and planned", path)


def told(axes: Axes, across: str, up: str) -> None:
    """Names of the axes, and the legend."""
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5)


def throughput(axes: Axes, rows: Sequence[Row]) -> None:
    """Draws and updates a second by one client, at the largest prefetch; one process beside them."""
    stores = of_kind(rows, "store")
    cores, size = stores[0]["machine"]["cores"], stores[0]["num_samples"]
    drawing.logarithmic(axes, f"Measured: one client, N = {power(size)} in all, {cores} cores")
    most = max(row["prefetch"] for row in stores)
    batches = sorted({row["batch_size"] for row in stores})
    for verb, color in (("draw", BLUE), ("update", ORANGE)):
        for batch, marker, faint in zip(batches, "os^v", (1.0, 0.55, 0.4, 0.3), strict=False):
            here = sorted(
                (row["shards"], row) for row in stores if row["batch_size"] == batch and row["prefetch"] == most
            )
            across = [shards for shards, _ in here]
            quartiles = [row[f"{verb}_quartiles_us"] for _, row in here]
            up = [row[f"{verb}s_per_second"] for _, row in here]
            low = [value - batch * 1e6 / slow for value, (_, slow) in zip(up, quartiles, strict=True)]
            high = [batch * 1e6 / fast - value for value, (fast, _) in zip(up, quartiles, strict=True)]
            axes.errorbar(
                across,
                up,
                yerr=[[max(0.0, each) for each in low], [max(0.0, each) for each in high]],
                color=color,
                alpha=faint,
                marker=marker,
                linewidth=2.4,
                label=f"{verb}s, B = {batch:,}",
            )
            one = [row[f"one_{verb}s_per_second"] for _, row in here]
            axes.plot(across, one, color=color, alpha=faint, marker=marker, markersize=4, linewidth=1.2, dashes=(4, 2))
    axes.set_xticks(sorted({row["shards"] for row in stores}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    top = max(row[f"one_{verb}s_per_second"] for row in stores for verb in ("draw", "update"))
    axes.set_ylim(top=60 * top)
    axes.plot([], [], color=FAINT, linewidth=1.2, dashes=(4, 2), label="the same in one process")
    told(axes, "shards", "samples a second (median, quartiles)")


def moments(axes: Axes, rows: Sequence[Row]) -> None:
    """Second moment and variance over those of one store, exact as lines, by draws as points."""
    drawing.quiet(axes)
    found = [row for row in of_kind(rows, "moment") if row["uniform_fraction"] > 0.0]
    sigma = next((row["sigma"] for row in found if "draw_steps" in row), found[0]["sigma"])
    axes.set_title(f"Draws from blocks over draws from one store, σ = {sigma:g}", color=INK, fontsize=12)
    axes.set_xscale("log")
    for name, (color, marker) in MARKS.items():
        here = [row for row in found if row["arrangement"] == name and row["sigma"] == sigma]
        across = [row["workers"] for row in here]
        if name != "sorted, own directions":  # its norms are those of the sorted one
            axes.plot(
                across,
                [row["second_over_one_store"] for row in here],
                color=color,
                linewidth=1.6,
                dashes=(4, 2),
                label=f"second moment, {name}",
            )
        variance = [row["variance_over_one_store"] for row in here]
        axes.plot(across, variance, color=color, linewidth=2.4, label=f"variance of the mean, {name}")
        drawn = [row for row in here if "draw_steps" in row]
        axes.errorbar(
            [row["workers"] for row in drawn],
            [row["multinomial_variance"][0] for row in drawn],
            yerr=[2 * row["multinomial_variance"][1] for row in drawn],
            color=color,
            marker=marker,
            linestyle="none",
            markersize=5,
            capsize=2,
        )
    axes.axhline(1.0, color=FAINT, linewidth=1.0)
    axes.set_ylim(bottom=0.0, top=2.9)
    axes.plot([], [], color=FAINT, marker="o", linestyle="none", label="by draws, ± 2 standard errors")
    told(axes, "workers, a block each", "ratio (below 1: blocks are better)")


def memories(axes: Axes, simulated: Sequence[Row]) -> None:
    """Memory of the process that holds the most, against N."""
    drawing.logarithmic(axes, "Computed: memory of a process")
    shown = sorted({row["workers"] for row in simulated})
    shown = [shown[0], *shown[2::2]] if len(shown) > 3 else shown
    for layout in LAYOUTS:
        for number, workers in enumerate(shown):
            here = sorted(
                (row["num_samples"], row["gb_a_shard"], row["shards"])
                for row in simulated
                if row["layout"] == layout and row["workers"] == workers and "why" not in row
            )
            if not here or (layout == "local" and workers == 1):
                continue
            axes.plot(
                [size for size, _, _ in here],
                [gb for _, gb, _ in here],
                color=COLORS[layout],
                alpha=1.0 - 0.28 * number,
                marker="osv^"[number % 4],
                linewidth=2.0,
                label=NAMES[layout] if layout == "one" else f"{NAMES[layout]}, W = {workers:,}",
            )
    axes.set_ylim(top=1e6)
    told(axes, "samples N", "GB")


def parts(axes: Axes, simulated: Sequence[Row]) -> None:
    """The part of the time that goes into steps that count, against W."""
    drawing.quiet(axes)
    axes.set_xscale("log")
    axes.set_title("Computed: time that goes into steps that count", color=INK, fontsize=12)
    sizes = sorted({row["num_samples"] for row in simulated})
    for size, dashes, faint in ((sizes[-1], (1, 0), 1.0), (sizes[0], (3, 2), 0.7)) if sizes else ():
        for layout in LAYOUTS[1:]:
            here = sorted(
                (row["workers"], 100 * row["part"])
                for row in simulated
                if row["layout"] == layout and row["num_samples"] == size and row["fits"]
            )
            axes.plot(
                [count for count, _ in here],
                [part for _, part in here],
                color=COLORS[layout] if faint == 1.0 else {"local": "#B87A00", "shards": SKY}[layout],
                dashes=dashes,
                marker="o",
                linewidth=2.0,
                label=f"{NAMES[layout]}, N = {power(size)}",
            )
    axes.set_ylim(0.0, 103.0)
    told(axes, "trainers W", "% of the time")
