"""The picture of ``benchmarks.learning``: what a method is worth after the same steps, and after fewer.

The large panel has a row a task: the test loss over uniform's after the same steps, a point a method, with its 95 %
interval. Left of the line at 1 a method has won. The small panels are the tasks where a gain is aimed at: test loss
over uniform's final one (or over the task's own target) against the budget. Every point is a run of its own, decayed to
its own end, a geometric mean over the seeds. A line that crosses 1 at a half has needed half of the steps.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import drawing
from benchmarks.drawing import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, RED, SKY, YELLOW
from benchmarks.learning_report import interval, log_ratios
from benchmarks.learning_study import Study
from benchmarks.learning_tasks import FIRST, MAIN, METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

COLORS = dict(zip(METHODS, (INK, SKY, BLUE, "#7f4f24", RED, ORANGE, GREEN, PURPLE, YELLOW), strict=True))
MARKERS = dict(zip(METHODS, "|osD^vPXd", strict=True))
ACROSS = 4  # small panels in a row

Point = tuple[float, float, float, float]  # fraction, ratio, low, high


def points(study: Study, task: str, method: str) -> list[Point]:
    """Of all budgets of a method that were run on all seeds, ascending; over the target where the task has one."""
    whole, target = study.tasks[task].steps, study.tasks[task].target
    first = study.found(task, FIRST, whole)
    if target is not None:
        first = [row | {"test_loss": target} for row in first]
    found = []
    for steps in sorted({row["steps"] for row in study.rows if (row["task"], row["method"]) == (task, method)}):
        logs = log_ratios(study.found(task, method, steps), first)
        if len(logs) == study.seeds:
            found.append((steps / whole, *interval(logs)))
    return found


def draw(study: Study, path: Path) -> None:
    """Write the picture as a PNG."""
    followed = [name for name, task in study.tasks.items() if task.goal is not None]
    down = max(1, math.ceil(len(followed) / ACROSS))
    figure = drawing.figure_of(15.5, max(3.2 * down, 0.55 * len(study.tasks) + 1.0) + 0.8)
    parts = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.0, 2.0))
    left, right = parts.flat
    _after_the_same_steps(left.subplots(), study)
    panels = right.subplots(down, ACROSS, squeeze=False)
    for panel in panels.flat[len(followed) :]:
        panel.set_visible(False)
    for panel, task in zip(panels.flat, followed, strict=False):
        _at_every_budget(panel, study, task)
    right.supxlabel("fraction of uniform's steps", fontsize=9)
    styles = {name: drawing.Style(name, color, MARKERS[name]) for name, color in COLORS.items()}
    drawing.legend(figure, styles, columns=len(styles))
    drawing.save(figure, "Test loss of the methods over that of uniform draws", path)


def _after_the_same_steps(panel: Axes, study: Study) -> None:
    """A row a task: the intervals of all methods, one below the other."""
    tasks = [name for name, task in study.tasks.items() if task.target is None]
    methods = [name for name in study.methods if name != FIRST]
    panel.axvline(1.0, color=FAINT, linewidth=1.0)
    for row, task in enumerate(tasks):
        if row % 2:
            panel.axhspan(row - 0.5, row + 0.5, color="#f6f6f6", linewidth=0)
        here = [name for name in methods if name in study.methods_on(task)]
        for place, method in enumerate(here):
            found = [point for point in points(study, task, method) if point[0] == 1.0]
            if not found:
                continue
            _, ratio, low, high = found[0]
            y = row + 0.8 * ((place + 0.5) / len(here) - 0.5)
            if not math.isnan(low):
                panel.plot((low, high), (y, y), color=COLORS[method], linewidth=1.6, solid_capstyle="butt")
            panel.plot(
                ratio,
                y,
                color=COLORS[method],
                marker=MARKERS[method],
                markersize=5 if method in MAIN else 4,
                linestyle="",
                label=method,
            )
    panel.set_xscale("log")
    panel.set_yticks(range(len(tasks)), tasks)
    panel.set_ylim(max(len(tasks), 1) - 0.5, -0.5)
    panel.set_xlabel("after the same steps (left of 1: better)", fontsize=9)
    _plain(panel.xaxis, (0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0))
    drawing.quiet(panel, "x", labelsize=9)


def _at_every_budget(panel: Axes, study: Study, task: str) -> None:
    panel.axhline(1.0, color=FAINT, linewidth=1.0)
    for method in study.methods_on(task):
        drawn = points(study, task, method)
        if not drawn or (len(drawn) == 1 and method not in MAIN):
            continue
        x, y, low, high = zip(*drawn, strict=True)
        panel.plot(x, y, marker=MARKERS[method], markersize=4, color=COLORS[method], label=method)
        if len(drawn) > 1 and not any(map(math.isnan, low)):
            panel.fill_between(x, low, high, color=COLORS[method], alpha=0.15, linewidth=0)
    panel.set_yscale("log")
    panel.set_xlim(0.0, 1.05)
    panel.set_xticks((0.0, 0.25, 0.5, 0.75, 1.0), ("0", "¼", "½", "¾", "1"))
    target = study.tasks[task].target
    panel.set_title(task if target is None else f"{task}, over {target:g}", color=INK, fontsize=11)
    if target is None:
        _plain(panel.yaxis, (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.7, 2.0, 3.0, 5.0))
    else:
        panel.minorticks_off()
    drawing.quiet(panel, labelsize=9)


def _plain(axis: Axis, ticks: tuple[float, ...]) -> None:
    """Of a logarithmic axis: these ticks in plain numbers, those that are in sight."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
