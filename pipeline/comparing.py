"""Compare methods of training over several seeds: run them in turn, and say what is beyond chance.

    def train_one(method, seed, tell):                  # tell(step) as it goes
        return ...                                      # a pipeline.training.Outcome

    runs = take_turns(["uniform", "importance"], seeds=range(5), train_one=train_one, steps={...})
    comparison = Comparison.of(runs)
    comparison.target                                   # the best common loss
    comparison.summaries["importance"].ratio            # of the first method's, metric by metric
    verdict(comparison)                                 # sentences

The runs are interleaved, method by method within a seed, so that what slows the machine for a while slows all methods.

**The best common loss** is the least test loss that every run reaches: of each run the least that was recorded, and of
these the greatest. So every run has a number of steps and seconds to it, and none is left out for never
getting there.

Seconds are those of training: without evaluation, and without the first step, most of which is compilation.

A run *diverged* where its final test loss is not finite. Its figures are left out of the means and of the tests, which
are then kind to the method: that it happened is said first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.progress import counting
from pipeline.results import counted
from pipeline.statistics import holm, paired_p_value, t_interval

LEAST_LOSS = 1e-30  # a loss below it counts as this in a ratio
SIGNIFICANT = 0.05
AGAINST = "as multiples of {}'s; accuracies: differences"  # heading of a table

Row = dict[str, Any]


class Metric(NamedTuple):
    """What is compared: as a ratio to the first method's, or as a difference from it."""

    name: str
    heading: str
    as_ratio: bool


METRICS = (
    Metric("test_loss", "test loss", True),
    Metric("train_loss", "training loss", True),
    Metric("test_accuracy", "accuracy, %", False),
    Metric("worst_class_accuracy", "worst class, %", False),
    Metric("steps_to", "steps to best common loss", True),
    Metric("seconds_to", "seconds to best common loss", True),
    Metric("seconds", "seconds", True),
    Metric("steps", "steps", True),
)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        method, seed: which.
        steps: batches trained on.
        seconds: of training, without evaluation and without the first step.
        first_step_seconds: of that, compilation included.
        train_loss, test_loss, test_accuracy, worst_class_accuracy: at the end, as of ``Outcome``.
        curve: ``(step, seconds, test loss)`` at regular steps and at the end, ascending.
    """

    method: str
    seed: int
    steps: int
    seconds: float
    first_step_seconds: float
    train_loss: float
    test_loss: float
    test_accuracy: float | None
    worst_class_accuracy: float | None
    curve: tuple[tuple[int, float, float], ...]

    @classmethod
    def of(cls, method: str, seed: int, outcome: Any) -> Run:
        """From a ``pipeline.training.Outcome``, whose curve need not have its end."""
        first = outcome.first_step_seconds
        points = [(row["step"], row["seconds"] - first, row["test_loss"]) for row in outcome.curve]
        if not points or points[-1][0] != outcome.steps:
            points.append((outcome.steps, outcome.seconds - first, outcome.test_loss))
        return cls(
            method,
            seed,
            outcome.steps,
            outcome.seconds - first,
            first,
            outcome.train_loss,
            outcome.test_loss,
            outcome.test_accuracy,
            outcome.worst_class_accuracy,
            tuple(points),
        )

    @property
    def diverged(self) -> bool:
        """Whether it ended without a finite test loss."""
        return not math.isfinite(self.test_loss)

    def lowest(self) -> float:
        """The least finite test loss that was recorded."""
        return min((loss for _, _, loss in self.curve if math.isfinite(loss)), default=math.inf)

    def first_at(self, loss: float) -> tuple[float, float]:
        """Steps and seconds at the first recorded point whose test loss is at most ``loss``; NaN where none is."""
        return next(((step, seconds) for step, seconds, found in self.curve if found <= loss), (math.nan, math.nan))


def take_turns(
    methods: Sequence[str],
    seeds: Iterable[int],
    train_one: Callable[[str, int, Callable[[int], None]], Any],
    steps: Mapping[str, int],
) -> list[Run]:
    """Train every method with every seed, method by method within a seed; tells how far it is.

    Args:
        methods: names, the first of which the others are compared with.
        seeds: one or more.
        train_one: ``(method, seed, tell) -> Outcome``; it calls ``tell(step)`` with the steps done so far.
        steps: of each method's runs, for the time that remains.
    """
    turns = [(seed, method) for seed in seeds for method in methods]
    runs: list[Run] = []
    done = 0

    def doing() -> str:
        seed, method = turns[min(len(runs), len(turns) - 1)]
        return f"{method}, seed {seed} (run {min(len(runs) + 1, len(turns))} of {len(turns)})"

    with counting(doing, sum(steps[method] for _, method in turns), unit="steps") as tell:
        for seed, method in turns:
            before = done
            outcome = train_one(method, seed, lambda step, before=before: tell(before + step))  # type: ignore[misc]
            runs.append(Run.of(method, seed, outcome))
            done += steps[method]
    return runs


# --- what the runs say ----------------------------------------------------------------------------


class Summary(NamedTuple):
    """A metric of a method: NaN where there is nothing to say.

    Attributes:
        mean, half: over the seeds, and half the width of its 95 % interval.
        against: the geometric mean of the ratios to the first method's, or the mean of the differences from it.
        low, high: its 95 % interval.
        p: of no difference; corrected for the number of methods compared.
    """

    mean: float
    half: float
    against: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """All that is compared.

    Attributes:
        methods: in their order; the others are compared with the first.
        runs: all of them.
        target: the best common loss; NaN where every run diverged.
        summaries: by method and metric.
    """

    methods: tuple[str, ...]
    runs: tuple[Run, ...]
    target: float
    summaries: dict[str, dict[str, Summary]]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Comparison:
        """Compare ``runs``, as many of each method, with the same seeds."""
        methods = tuple(dict.fromkeys(run.method for run in runs))
        target = common_loss(runs)
        rows = [row_of(run, target) for run in runs]
        summaries: dict[str, dict[str, Summary]] = {method: {} for method in methods}
        for metric in METRICS:
            for method, summary in _summaries(rows, methods, metric).items():
                summaries[method][metric.name] = summary
        return cls(methods, tuple(runs), target, summaries)

    @property
    def seeds(self) -> int:
        """How many there are."""
        return len({run.seed for run in self.runs})

    def diverged(self, method: str) -> int:
        """How many runs of a method diverged."""
        return sum(run.diverged for run in self.runs if run.method == method)

    def rows(self) -> list[Row]:
        """A row a run, in the order they were run."""
        return [row_of(run, self.target) for run in self.runs]

    def curve_rows(self) -> list[Row]:
        """A row a point of every run's curve."""
        return [
            {"method": run.method, "seed": run.seed, "step": step, "seconds": seconds, "test_loss": loss}
            for run in self.runs
            for step, seconds, loss in run.curve
        ]


def common_loss(runs: Sequence[Run]) -> float:
    """The least test loss that every run reaches which did not diverge; NaN where none is left."""
    return max((run.lowest() for run in runs if not run.diverged), default=math.nan)


def row_of(run: Run, target: float) -> Row:
    """A run as plain numbers."""
    steps_to, seconds_to = run.first_at(target)
    return {
        "method": run.method,
        "seed": run.seed,
        "steps": run.steps,
        "seconds": run.seconds,
        "first_step_seconds": run.first_step_seconds,
        "train_loss": run.train_loss,
        "test_loss": run.test_loss,
        "test_accuracy": run.test_accuracy,
        "worst_class_accuracy": run.worst_class_accuracy,
        "steps_to": steps_to,
        "seconds_to": seconds_to,
    }


def _summaries(rows: Sequence[Row], methods: Sequence[str], metric: Metric) -> dict[str, Summary]:
    """One metric of all methods. A run without a finite figure is left out, and so is its pair."""
    of_method = {
        method: {row["seed"]: _figure(row, metric) for row in rows if row["method"] == method} for method in methods
    }
    first, *others = methods
    compared = {method: _differences(of_method[method], of_method[first], metric) for method in others}
    p_values = dict(zip(others, holm([paired_p_value(compared[method]) for method in others]), strict=True))
    summaries = {}
    for method in methods:
        mean, half = t_interval([value for value in of_method[method].values() if math.isfinite(value)])
        if method == first:
            summaries[method] = Summary(mean, half)
            continue
        middle, width = t_interval(compared[method])
        against, low, high = (
            math.exp(value) if metric.as_ratio else value for value in (middle, middle - width, middle + width)
        )
        summaries[method] = Summary(mean, half, against, low, high, p_values[method])
    return summaries


def _figure(row: Row, metric: Metric) -> float:
    """The figure of a run; NaN where it has none, and where the run diverged."""
    value = row[metric.name]
    return math.nan if value is None or not math.isfinite(row["test_loss"]) else float(value)


def _differences(values: Mapping[int, float], first: Mapping[int, float], metric: Metric) -> list[float]:
    """Seed by seed: differences, or those of the logarithms."""
    pairs = [(values[seed], first[seed]) for seed in values if seed in first]
    kept = np.array([pair for pair in pairs if all(map(math.isfinite, pair))]).reshape(-1, 2)
    if metric.as_ratio:
        kept = np.log(np.maximum(kept, LEAST_LOSS))
    return list(kept[:, 0] - kept[:, 1])


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """All that was found, for JSON: by method and metric what ``Summary`` has."""
    return {
        "methods": list(comparison.methods),
        "seeds": sorted({run.seed for run in comparison.runs}),
        "target": comparison.target,
        "steps": {
            method: [run.steps for run in comparison.runs if run.method == method] for method in comparison.methods
        },
        "diverged": {method: comparison.diverged(method) for method in comparison.methods},
        "summaries": {
            method: {name: summary._asdict() for name, summary in metrics.items()}
            for method, metrics in comparison.summaries.items()
        },
    }


# --- in words -------------------------------------------------------------------------------------


def verdict(comparison: Comparison) -> str:
    """Which differences are beyond chance, and which are not: a sentence a line."""
    first, *others = comparison.methods
    lines = [
        f"{method} diverged in {count} of {comparison.seeds} runs; they are left out of all that follows."
        for method in comparison.methods
        if (count := comparison.diverged(method))
    ]
    if not others:
        return "\n".join([*lines, "There is one method, and nothing to compare it with."])
    if comparison.seeds < 2:
        lines.append("One seed is an impression: no difference can be told from chance. Ask for --seeds 5.")
    tests = f"paired over {counted(comparison.seeds, 'seed')}, 95 % intervals, p after Holm"
    for name, what in (
        ("test_loss", "final test loss"),
        ("seconds_to", f"seconds to the best common test loss, {comparison.target:.4g}, which every run reached"),
    ):
        found = {method: comparison.summaries[method][name] for method in others}
        beyond = [_said(method, part) for method, part in found.items() if part.p < SIGNIFICANT]
        within = [_said(method, part) for method, part in found.items() if not part.p < SIGNIFICANT]
        said = []
        if beyond:
            said.append("beyond chance: " + "; ".join(beyond))
        if within:
            said.append("not beyond chance: " + "; ".join(within))
        lines.append(
            f"{what[0].upper()}{what[1:]}, as a multiple of {first}'s ({tests}). "
            + ". ".join(part[0].upper() + part[1:] for part in said)
            + "."
        )
    return "\n".join(lines)


def _said(method: str, summary: Summary) -> str:
    if math.isnan(summary.against):
        return f"{method}, of which there is no figure"
    if math.isnan(summary.p):
        return f"{method} {summary.against:#.3g}"
    return f"{method} {summary.against:#.3g} ({summary.low:#.3g} to {summary.high:#.3g}, p = {summary.p:.2g})"


def to_tables(comparison: Comparison, title: str) -> list[Any]:
    """Two ``rich`` tables, a row a metric: means with 95 % intervals, and how they compare with the first's."""
    first, *others = comparison.methods
    names = [_with_failures(comparison, method) for method in comparison.methods]
    headings = (f"{title}: means over {counted(comparison.seeds, 'seed')} ± 95 %", AGAINST.format(first))
    cells = cells_of(comparison.summaries)
    return [_table(*parts) for parts in zip(headings, (names, others), cells, strict=True)]


def cells_of(summaries: Mapping[str, Mapping[str, Summary]]) -> tuple[list[list[str]], list[list[str]]]:
    """Of both tables the rows, by method and metric: a heading, and a cell a method, the second without the first."""
    means, against = [], []
    for metric in METRICS:
        figures = [of_method[metric.name] for of_method in summaries.values()]
        if _tells(figures, metric):
            means.append([metric.heading, *(_mean(one, metric) for one in figures)])
            against.append([metric.heading, *(_against(one, metric) for one in figures[1:])])
    return means, against


def _with_failures(comparison: Comparison, method: str) -> str:
    count = comparison.diverged(method)
    return f"{method}, {count} of {comparison.seeds} diverged" if count else method


def _tells(figures: Sequence[Summary], metric: Metric) -> bool:
    """Whether there are figures of it; equal numbers of steps were asked for, and tell nothing."""
    means = {one.mean for one in figures}
    return any(map(math.isfinite, means)) and not (metric.name == "steps" and len(means) == 1)


def _table(title: str, methods: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("", overflow="fold")
    for method in methods:
        table.add_column(method, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _mean(summary: Summary, metric: Metric) -> str:
    """The mean with half the width of its interval, or a dash for what there is not."""
    if math.isnan(summary.mean):
        return "-"
    digits, scale = (".4g", 1.0) if metric.as_ratio else (".2f", 100.0)
    mean, half = f"{scale * summary.mean:{digits}}", scale * summary.half
    if math.isnan(half):
        return mean
    return f"{mean} ±{half:.2g}" if half < 100 else f"{mean} ±{half:.0f}"


def _against(summary: Summary, metric: Metric) -> str:
    """The ratio to the first method's, or the difference from it, with its interval."""
    if math.isnan(summary.against):
        return "-"
    digits, scale = (".2f", 1.0) if metric.as_ratio else ("+.2f", 100.0)
    middle = f"{scale * summary.against:{digits}}"
    if math.isnan(summary.low):
        return middle
    return f"{middle} ({scale * summary.low:{digits}} to {scale * summary.high:{digits}})"
