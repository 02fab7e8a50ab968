"""The picture of the results: µs per step against N, a panel a batch size, a line a system.

    python -m benchmarks.plot                                  # of the committed results
    python -m benchmarks.plot --results mine.jsonl             # writes mine.png

Both axes are logarithmic. This project's lines are thick, those of others thin, the floor (touching the samples and
nothing else) is the grey area below. See :mod:`benchmarks.drawing` for the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from benchmarks import comparing, drawing, systems
from benchmarks.comparing import Row
from benchmarks.drawing import BLUE, FAINT, GREEN, GROUND, INK, ORANGE, PURPLE, RED, SKY, YELLOW, Line, Style
from benchmarks.peers import remote

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOWEST = 1e-3  # µs, below every step


@dataclass(frozen=True)
class Options:
    """Draw the results."""

    results: Path = Path("benchmarks/results/sampler_throughput.jsonl")
    """The JSON lines."""
    output: Path | None = None
    """Where the picture goes; beside the results if not given."""


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
    figure = drawing.figure_of(4.3 * max(len(batches), 2), 7.2)
    panels = figure.subplots(1, len(batches), sharex=True, sharey=True, squeeze=False)[0]
    for axes, batch in zip(panels, batches, strict=True):
        panel(axes, [row for row in rows if row["batch_size"] == batch], batch)
    steps = [row["step_us"] for row in rows if "skipped" not in row]
    if steps:
        panels[0].set_ylim(min(steps) / 1.6, max(steps) * 1.6)
    panels[0].set_ylabel("µs per step (draw and update)", color=INK)
    drawing.legend(figure, STYLES, columns=5)
    drawing.save(figure, "Drawing a batch and feeding its losses back", path)


def panel(axes: Axes, rows: Sequence[Row], batch: int) -> None:
    """One batch size."""
    drawing.logarithmic(axes, f"B = {batch:,}")
    axes.set_xlabel("N, number of samples", color=INK)
    floor(axes, rows)
    drawing.lines(axes, STYLES, lambda name: line(rows, name))


def floor(axes: Axes, rows: Sequence[Row]) -> None:
    """The grey area that nobody can enter."""
    sizes, steps = line(rows, systems.FLOOR)
    if sizes:
        axes.fill_between(sizes, steps, [LOWEST] * len(steps), color=GROUND, linewidth=0, zorder=1)
        axes.plot(sizes, steps, color=FAINT, linewidth=1.0, label="floor: B values read and written", zorder=2)


def line(rows: Sequence[Row], name: str) -> Line:
    """Sizes and steps of a system, ascending."""
    return drawing.line(rows, name, "num_samples", "step_us")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.plot")
    path = options.output or options.results.with_suffix(".png")
    draw(comparing.read(options.results), path)
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
