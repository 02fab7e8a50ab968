"""The picture of ``benchmarks.learning``: a panel a task, test loss over uniform's against the budget, a line a method.

Every point is a run of its own, decayed to its own end: the geometric mean over the seeds, each over uniform's final
test loss of the same seed. A line that crosses 1 at a half has needed half of the steps. Methods that were run for the
whole budget alone are points.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import drawing
from benchmarks.drawing import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, RED, SKY, YELLOW
from benchmarks.learning_report import interval, log_ratios
from benchmarks.learning_tasks import FIRST, METHODS

if TYPE_CHECKING:
    from benchmarks.learning import Study

COLORS = dict(zip(METHODS, (INK, SKY, BLUE, "#7f4f24", RED, ORANGE, GREEN, PURPLE, YELLOW), strict=True))
ACROSS = 4  # panels in a row

Point = tuple[float, float, float, float]  # fraction, ratio, low, high


def points(study: Study, task: str, method: str) -> list[Point]:
    """Of all budgets of a method that were run on all seeds, ascending."""
    whole = study.tasks[task].steps
    first = study.found(task, FIRST, whole)
    found = []
    for steps in sorted({row["steps"] for row in study.rows if (row["task"], row["method"]) == (task, method)}):
        logs = log_ratios(study.found(task, method, steps), first)
        if len(logs) == study.seeds:
            found.append((steps / whole, *interval(logs)))
    return found


def draw(study: Study, path: Path) -> None:
    """Write the picture as a PNG."""
    down = math.ceil(len(study.tasks) / ACROSS)
    figure = drawing.figure_of(3.6 * ACROSS, 3.0 * down + 0.6)
    panels = figure.subplots(down, ACROSS, squeeze=False)
    for panel in panels.flat[len(study.tasks) :]:
        panel.set_visible(False)
    for panel, task in zip(panels.flat, study.tasks, strict=False):
        panel.axhline(1.0, color=FAINT, linewidth=0.8)
        for method in study.methods_on(task):
            drawn = points(study, task, method)
            if not drawn:
                continue
            x, y, low, high = zip(*drawn, strict=True)
            panel.plot(x, y, marker="o", markersize=4, color=COLORS[method], label=method)
            if len(drawn) > 1 and not any(map(math.isnan, low)):
                panel.fill_between(x, low, high, color=COLORS[method], alpha=0.15, linewidth=0)
        panel.set_yscale("log")
        panel.set_xlim(0.0, 1.05)
        panel.set_xlabel("fraction of uniform's steps", fontsize=9)
        panel.set_title(task, color=INK, fontsize=11)
        panel.grid(which="major", color="#ececec", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supylabel("test loss over uniform's", fontsize=10)
    styles = {name: drawing.Style(name, color, "o") for name, color in COLORS.items()}
    drawing.legend(figure, styles, columns=len(styles))
    drawing.save(figure, "Test loss at every budget, each run decayed to its own end", path)
