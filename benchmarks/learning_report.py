"""Tables in Markdown from the runs of ``benchmarks.learning``.

    print(report(study))

Everything is compared seed by seed with uniform draws of the whole budget. Ratios are geometric means over the seeds,
with Student's 95 % interval of their logarithms; seconds are those a step takes, compilation and evaluation left out,
medians over all runs of the whole budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.learning_study import Row, Study
from benchmarks.learning_tasks import BISECTED, FIRST
from pipeline.statistics import holm, paired_p_value, t_interval

WORSE = 1.02  # of uniform's test loss, at most, where no gain is expected
COLUMNS = (
    *("task", "method", "rate", "test loss", "over uniform's (95 %)", "p", "accuracy", "worst class"),
    *("diverged", "a step's seconds", "steps to uniform's loss", "seconds to it", "goal"),
)


def report(study: Study) -> str:
    """All tables."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'--|' * 3}{'--:|' * (len(COLUMNS) - 3)}"]
    for task in study.tasks:
        lines += [f"| {' | '.join(cells)} |" for cells in task_rows(study, task)]
    return "\n".join(lines)


def task_rows(study: Study, task: str) -> list[list[str]]:
    """The cells of a task, a row a method that was run."""
    steps = study.tasks[task].steps
    first = study.found(task, FIRST, steps)
    found = {method: study.found(task, method, steps) for method in study.methods_on(task)}
    others = [method for method in found if method != FIRST]
    p_values = dict(zip(others, holm([paired_p_value(log_ratios(found[name], first)) for name in others]), strict=True))
    return [_cells(study, task, method, rows, first, p_values) for method, rows in found.items() if rows]


def _cells(
    study: Study, task: str, method: str, rows: Sequence[Row], first: Sequence[Row], p_values: dict[str, float]
) -> list[str]:
    losses = [row["test_loss"] for row in rows if math.isfinite(row["test_loss"])]
    ratio = interval(log_ratios(rows, first)) if method != FIRST else None
    seconds = step_seconds(rows) / step_seconds(first) if first else math.nan
    share = share_of_uniform(study, task, method)
    return [
        task,
        method,
        _rates(study, task, method),
        f"{np.mean(losses):.4g}" if losses else "-",
        "" if ratio is None else _interval_text(ratio),
        "" if method == FIRST else _number(p_values[method], ".2g"),
        _share(rows, "test_accuracy"),
        _share(rows, "worst_class_accuracy"),
        f"{len(rows) - len(losses)} of {len(rows)}",
        _number(seconds, ".2f"),
        fraction_text(study, task, method),
        _number(share * seconds, ".2f"),
        _goal(study, task, method, ratio, share),
    ]


def log_ratios(rows: Sequence[Row], first: Sequence[Row]) -> list[float]:
    """Seed by seed the logarithm of the test loss over uniform's; pairs without two finite losses are left out."""
    theirs = {row["seed"]: row["test_loss"] for row in first}
    pairs = [(row["test_loss"], theirs.get(row["seed"], math.nan)) for row in rows]
    return [math.log(max(a, 1e-30) / max(b, 1e-30)) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]


def interval(logs: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean, and the ends of its 95 % interval."""
    mean, half = t_interval(logs)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def step_seconds(rows: Sequence[Row]) -> float:
    """The median over runs of the seconds a step took, but for the first; NaN where all diverged."""
    found = [row["seconds"] / (row["steps"] - 1) for row in rows if row["seconds"] > 0.0 and row["steps"] > 1]
    return float(np.median(found)) if found else math.nan


def steps_to(study: Study, task: str, method: str) -> float:
    """The fraction of the budget at which the target is reached: between the two budgets that bracket it, where the
    logarithm of the loss, taken for a straight line, meets it. NaN where it is not known, or not reached.
    """
    if not study.is_bisected(task, method):
        return math.nan
    low, high, following = study.bracket(task, method)
    if following is not None or math.isinf(high):
        return math.nan
    above, below = study.excess(task, method, low) if low else None, study.excess(task, method, high)
    if above is None or below is None or not (math.isfinite(above) and math.isfinite(below)):
        return high
    return low + (high - low) * above / (above - below)


def share_of_uniform(study: Study, task: str, method: str) -> float:
    """``steps_to`` over uniform's: the whole budget, or fewer where the target is not uniform's own end."""
    fraction = steps_to(study, task, method)
    return fraction if study.tasks[task].target is None else fraction / steps_to(study, task, FIRST)


def fraction_text(study: Study, task: str, method: str) -> str:
    """``steps_to`` with the budgets that were run around it."""
    if not study.is_bisected(task, method):
        return ""
    low, high, following = study.bracket(task, method)
    if math.isinf(high):
        return "more than 1" if low else "-"
    if following is not None:
        return f"{low:g} to {high:g}, unfinished"
    share = share_of_uniform(study, task, method)
    return f"{share:.2f} ({low:g} to {high:g})"


def _goal(study: Study, task: str, method: str, ratio: tuple[float, float, float] | None, share: float) -> str:
    goal = study.tasks[task].goal
    if method == FIRST or (goal is not None and method not in BISECTED):
        return ""
    if goal is None:
        return "" if ratio is None else f"≤ {WORSE} {'✓' if ratio[0] <= WORSE else '✗'}"
    low, high, following = study.bracket(task, method)
    if study.tasks[task].target is not None:
        unfinished, reached = following is not None or math.isnan(steps_to(study, task, FIRST)), share <= goal
    else:
        unfinished, reached = following is not None and low < goal < high, high <= goal or share <= goal
    return f"≤ {goal:g} {'unfinished' if unfinished else '✓' if reached else '✗'}"


def _rates(study: Study, task: str, method: str) -> str:
    """The method's own learning rate, and the one for fewer steps where it is another."""
    whole = study.rate(task, method)
    fewer = study.rate(task, method, 0) if study.is_bisected(task, method) else whole
    return f"{whole:g}" if whole == fewer else f"{whole:g}, {fewer:g}"


def _interval_text(found: tuple[float, float, float]) -> str:
    middle, low, high = found
    if math.isnan(middle):
        return "-"
    return f"{middle:.3g}" if math.isnan(low) else f"{middle:.3g} ({low:.3g} to {high:.3g})"


def _share(rows: Sequence[Row], name: str) -> str:
    values = [row[name] for row in rows if row[name] is not None]
    return f"{np.mean(values):.2%}" if values else ""


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"
