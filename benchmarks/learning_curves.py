"""Two pictures for those who ask in a minute: one task where draws by loss gain, and one where they do not.

    gain, none = curves(study, path)    # paths beside the results: learning_gain.png, learning_none.png

``python -m benchmarks.learning --report`` draws them, too.

The test loss in the course of the training, against steps and against seconds of training, for uniform draws and two
ways of draws by loss. Runs of the whole budget, each at its method's own learning rate: the median of the seeds, and
shaded from the least to the largest of them. The rows are those of ``benchmarks.learning``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import drawing
from benchmarks.drawing import BLUE, INK, SKY
from benchmarks.learning_study import Row, Study
from benchmarks.learning_tasks import FIRST

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {
    FIRST: drawing.Style("uniform draws", INK, ""),
    "importance": drawing.Style("by loss (importance)", SKY, "", ours=True),
    "auto": drawing.Style("by gradient norm (auto)", BLUE, "", ours=True),
}
SHOWN = {
    "gain": ("checker", "Where it gains: 95 % of the samples are trivial, 5 % lie on a checkerboard"),
    "none": ("digits", "Where it does not: 1,347 handwritten digits, learnt by heart"),
}


def curves(study: Study, path: Path) -> list[Path]:
    """Write those pictures whose task was run, beside the results at ``path``; gives their paths."""
    found = []
    for name, (task, title) in SHOWN.items():
        if task in study.tasks:
            found.append(path.with_name(f"{path.stem}_{name}.png"))
            draw(study, task, title, found[-1])
    return found


def draw(study: Study, task: str, title: str, path: Path) -> None:
    """Write the picture of one task as a PNG."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = drawing.figure_of(10.0, 3.9)
    by_steps, by_seconds = figure.subplots(1, 2, sharey=True)
    for method, style in STYLES.items():
        rows = [row for row in study.found(task, method, study.tasks[task].steps) if row["curve"]]  # none: diverged
        if rows:
            _line(by_steps, rows, style, 0)
            _line(by_seconds, rows, style, 1)
    by_steps.set_ylabel("test loss", color=INK)
    by_steps.set_xlabel("steps", color=INK)
    by_seconds.set_xlabel("seconds of training", color=INK)
    for panel in (by_steps, by_seconds):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_xlim(left=0)
        drawing.quiet(panel, labelsize=9)
    by_steps.xaxis.set_major_formatter("{x:,.0f}")
    drawing.legend(figure, STYLES, columns=len(STYLES))
    drawing.save(figure, title, path)


def _line(panel: Axes, rows: list[Row], style: drawing.Style, column: int) -> None:
    """Median and range over the seeds; ``column`` of a curve's points is steps (0) or seconds (1).

    At the steps of the shortest curve; of others what lies between their points.
    """
    found = [np.array(row["curve"]).T for row in rows]  # (3, points) each
    steps = min(found, key=np.size)[0]
    across = np.median([np.interp(steps, curve[0], curve[column]) for curve in found], axis=0)
    losses = np.array([np.interp(steps, curve[0], curve[2]) for curve in found])
    panel.plot(across, np.median(losses, axis=0), color=style.color, label=style.label, linewidth=2.2)
    panel.fill_between(across, losses.min(axis=0), losses.max(axis=0), color=style.color, alpha=0.15, linewidth=0)
