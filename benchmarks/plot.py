"""The picture of the results: µs per step against N, a panel a batch size, a line a system.

    python -m benchmarks.plot                                  # of the committed results
    python -m benchmarks.plot --results mine.jsonl             # writes mine.png

Both axes are logarithmic. This project's lines are thick, those of others thin, the floor (touching the samples and
nothing else) is the grey area below. The colours are those of Okabe and Ito, which stay apart for all common kinds
of colour blindness; markers repeat what they say. The background is white, so the picture reads on any page.

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
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks import comparing, systems
from benchmarks.comparing import Row
from benchmarks.peers import remote

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOWEST = 1e-3  # µs, below every step
INK, FAINT, GROUND = "#222222", "#8a8a8a", "#d9d9d9"
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#B8A600",  # of Okabe and Ito, darkened: the original is too light on white
)


@dataclass(frozen=True)
class Options:
    """Draw the results."""

    results: Path = Path("benchmarks/results/sampler_throughput.jsonl")
    """The JSON lines."""
    output: Path | None = None
    """Where the picture goes; beside the results if not given."""


@dataclass(frozen=True)
class Style:
    """How a system is drawn; ``label`` is its name in the legend."""

    label: str
    color: str
    marker: str
    dashed: bool = False
    ours: bool = False


# In the order of the legend: ours first, then raw trees, public systems, what goes over all samples.
STYLES: dict[str, Style] = {
    systems.SAMPLER: Style("ImportanceSampler (this project)", BLUE, "o", ours=True),
    systems.KERNELS: Style("its kernels (this project)", RED, "s", ours=True),
    remote.TORCHRL_FP32: Style("TorchRL tree, float32", ORANGE, "v"),
    "TorchRL SumSegmentTreeFp64": Style("TorchRL tree, float64", ORANGE, "^", dashed=True),
    remote.TIANSHOU: Style("tianshou tree", GREEN, "D"),
    "flashbax sum tree": Style("flashbax tree", PURPLE, "P"),
    "Dopamine SumTree": Style("Dopamine tree", YELLOW, "X"),
    remote.TORCHRL_PUBLIC: Style("TorchRL PrioritizedSampler", SKY, "v", dashed=True),
    "cpprb PrioritizedReplayBuffer": Style("cpprb", GREEN, "p", dashed=True),
    "sortedcontainers, P ~ 1/rank": Style("sortedcontainers", PURPLE, "h", dashed=True),
    "Reverb client": Style("Reverb client", INK, "*", dashed=True),
    systems.CHOICE: Style("numpy choice(p=)", FAINT, "<"),
    "numpy cumsum + searchsorted": Style("numpy cumsum + search", FAINT, ">", dashed=True),
    "tf.random.categorical": Style("tf.random.categorical", INK, "1"),
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the picture of the rows as a PNG."""
    batches = sorted({row["batch_size"] for row in rows})
    figure = Figure(figsize=(4.3 * max(len(batches), 2), 7.2), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(batches), sharex=True, sharey=True, squeeze=False)[0]
    for axes, batch in zip(panels, batches, strict=True):
        panel(axes, [row for row in rows if row["batch_size"] == batch], batch)
    steps = [row["step_us"] for row in rows if "skipped" not in row]
    if steps:
        panels[0].set_ylim(min(steps) / 1.6, max(steps) * 1.6)
    panels[0].set_ylabel("µs per step (draw and update)", color=INK)
    handles: dict[str, Any] = {}
    for axes in panels:
        handles.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    order = [style.label for style in STYLES.values() if style.label in handles]
    order += [label for label in handles if label not in order]
    figure.legend(
        [handles[label] for label in order],
        order,
        loc="outside lower center",
        ncols=min(5, len(order)) or 1,
        frameon=False,
        fontsize=9.5,
        handlelength=2.8,
        columnspacing=1.8,
    )
    figure.suptitle("Drawing a batch and feeding its losses back", color=INK, fontsize=14, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})


def panel(axes: Axes, rows: Sequence[Row], batch: int) -> None:
    """One batch size."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(f"B = {batch:,}", color=INK, fontsize=12)
    axes.set_xlabel("N, number of samples", color=INK)
    axes.grid(which="major", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.tick_params(colors=INK, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GROUND)
    floor(axes, rows)
    for name, style in reversed(STYLES.items()):  # ours last, so on top
        sizes, steps = line(rows, name)
        if sizes:
            axes.plot(
                sizes,
                steps,
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
    """The grey area that nobody can enter."""
    sizes, steps = line(rows, systems.FLOOR)
    if sizes:
        axes.fill_between(sizes, steps, [LOWEST] * len(steps), color=GROUND, linewidth=0, zorder=1)
        axes.plot(sizes, steps, color=FAINT, linewidth=1.0, label="floor: B values read and written", zorder=2)


def line(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    """Sizes and steps of a system, ascending."""
    found = sorted(
        (row["num_samples"], row["step_us"]) for row in rows if row["system"] == name and "skipped" not in row
    )
    return [size for size, _ in found], [step for _, step in found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.plot")
    path = options.output or options.results.with_suffix(".png")
    draw(comparing.read(options.results), path)
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
