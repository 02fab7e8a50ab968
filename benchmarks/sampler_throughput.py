"""How long a batch takes: drawing it, and learning its losses, here and elsewhere.

    python -m benchmarks.sampler_throughput             # a table, and JSON lines in benchmarks/results
    python -m benchmarks.sampler_throughput --quick     # in less than a minute
    python -m benchmarks.sampler_throughput --sizes 50000 --batches 128 --output mine.jsonl

A *point* is a number of samples N and a batch size B. At each point every system of
:mod:`benchmarks.systems` starts from the same exponential priorities, is fed the same exponential
losses, and is measured in turn with the others as :mod:`benchmarks.measuring` says. Variants of
``ImportanceSampler`` (other draw schemes, a feedback lag) are measured at one point only.

A line of the output is one system at one point:

===========================================  ======================================================
field                                        meaning
===========================================  ======================================================
``system``, ``num_samples``, ``batch_size``  what was measured
``draw_us``, ``update_us``, ``step_us``      µs per batch, median over the rounds; a step is a draw
                                             and its update
``draw_quartiles_us``, ...                   the lower and upper quartile of the same
``step_over_choice_draw``                    this step over the draw of numpy's ``choice`` in the
                                             same round, median; null where that was skipped
``repeats``, ``steps_per_repeat``            rounds, and the steps averaged in each
``machine``                                  processor, core, load, versions, date
``skipped``                                  why there are no figures: the system cannot be measured
===========================================  ======================================================
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import measuring, systems
from benchmarks.measuring import Times

LOSSES_MADE = 64  # batches of losses made beforehand, used over and over
AT_REST = 0.5  # the load of a machine up to which nobody else computes much
QUICK_ROUNDS, QUICK_SECONDS, QUICK_LARGEST = 5, 1.0, 1_000_000

Row = dict[str, Any]
Point = tuple[int, int]  # N, B


@dataclass(frozen=True)
class Options:
    """Measure draw, update and step of samplers, in turn, on one core."""

    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    """Numbers of samples N."""
    batches: tuple[int, ...] = (32, 256, 4096)
    """Batch sizes B."""
    output: Path = Path("benchmarks/results/sampler_throughput.jsonl")
    """Where the JSON lines go; an older file is replaced."""
    rounds: int = 21
    """How often each system has its turn at each point."""
    seconds: float = 8.0
    """Time to spend at each point, shared by the systems; a step a turn may take longer than that."""
    quick: bool = False
    """At most 5 rounds, 1 second a point, and no N above 1e6."""
    one_core: bool = True
    """Keep to one core and give TensorFlow one thread."""
    variants_at: tuple[int, int] = (1_000_000, 256)
    """The point N B at which other draw schemes and a feedback lag are measured too."""
    seed: int = 0
    """Of the priorities, the losses and the draws."""

    def __post_init__(self) -> None:
        for name in ("sizes", "batches"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"{name} must be whole numbers of at least 1, got {values}")
        if self.rounds < 1 or not self.seconds > 0.0:
            given = f"{self.rounds} and {self.seconds}"
            raise ValueError(f"rounds must be at least 1 and seconds above 0, got {given}")

    def shortened(self) -> Options:
        """These options, cut down where ``quick`` asks for it."""
        if not self.quick:
            return self
        return replace(
            self,
            sizes=tuple(size for size in self.sizes if size <= QUICK_LARGEST) or self.sizes,
            rounds=min(self.rounds, QUICK_ROUNDS),
            seconds=min(self.seconds, QUICK_SECONDS),
        )

    def points(self) -> list[Point]:
        """Every size with every batch size."""
        return [(size, batch) for size in self.sizes for batch in self.batches]


# --- measuring --------------------------------------------------------------------------------


def measure(options: Options, advance: Callable[[str], None] = lambda what: None) -> list[Row]:
    """A row for each system at each point.

    ``advance`` is called with the name of the point, after its preparation and after each round.
    """
    with measuring.one_core() if options.one_core else nullcontext() as core:
        if options.one_core:
            # Without TensorFlow its system is skipped, by name; once it has run it keeps its threads.
            with suppress(ImportError, RuntimeError):
                systems.tensorflow_on_one_thread()
        machine = measuring.machine(core)
        rows = (measure_point(options, point, advance) for point in options.points())
        return [{**row, "machine": machine} for point_rows in rows for row in point_rows]


def measure_point(options: Options, point: Point, advance: Callable[[str], None]) -> list[Row]:
    """A row for each system at one point."""
    what = f"N={point[0]:,} B={point[1]}"
    generator = np.random.default_rng([options.seed, *point])
    contestants, steps, skipped = prepare(options, point, generator)
    advance(what)
    times = measuring.take_rounds(
        contestants,
        steps,
        rounds=options.rounds,
        generator=generator,
        after_round=lambda: advance(what),
    )
    return [row(name, point, times, skipped) for name in systems.SYSTEMS if name in {**times, **skipped}]


def prepare(
    options: Options, point: Point, generator: np.random.Generator
) -> tuple[dict[str, measuring.InProcess], dict[str, int], dict[str, str]]:
    """Build and warm up: the contestants, the steps of their turns, and why others are skipped."""
    entries = {
        name: entry
        for name, entry in systems.SYSTEMS.items()
        if entry.everywhere or point == tuple(options.variants_at)
    }
    lead_in = 1.0 + 1.0 / measuring.LEAD_IN
    seconds = options.seconds / (options.rounds * len(entries) * lead_in)
    priorities, losses = exponential(point, generator)
    contestants, steps, skipped = {}, {}, {}
    for name, entry in entries.items():
        try:
            system = entry.build(priorities, point[1], generator)
            contestant = measuring.InProcess(system, losses)
            steps[name] = measuring.warm_up(contestant, seconds)
            contestants[name] = contestant
        except Exception as error:
            if entry.ours:
                raise
            skipped[name] = f"{type(error).__name__}: {error}"
    return contestants, steps, skipped


def exponential(point: Point, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Priorities (N,) float64 to start from and losses (64, B) float32 to feed, all positive."""
    size, batch = point
    losses = generator.standard_exponential((LOSSES_MADE, batch), np.float32)
    least = np.finfo(np.float32).tiny  # a zero has no logarithm
    return generator.standard_exponential(size) + least, losses + least


# --- rows -------------------------------------------------------------------------------------


def row(name: str, point: Point, times: Mapping[str, Times], skipped: Mapping[str, str]) -> Row:
    """One line of the output, the machine left out."""
    where: Row = {"system": name, "num_samples": point[0], "batch_size": point[1]}
    if name in skipped:
        return {**where, "skipped": skipped[name]}
    own = times[name]
    return {
        **where,
        **columns("draw", own.draw),
        **columns("update", own.update),
        **columns("step", own.step),
        "step_over_choice_draw": over_choice(own, times.get(systems.CHOICE)),
        "repeats": own.draw.size,
        "steps_per_repeat": own.steps,
    }


def columns(what: str, times: np.ndarray) -> Row:
    """Median and quartiles of one of draw, update and step."""
    median, lower, upper = (round(value, 3) for value in measuring.quartiles(times))
    return {f"{what}_us": median, f"{what}_quartiles_us": [lower, upper]}


def over_choice(own: Times, choice: Times | None) -> float | None:
    """Within each round first, so that what slowed the whole round cancels."""
    return None if choice is None else float(np.median(own.step / choice.draw).round(6))


def write(rows: Iterable[Row], path: Path) -> None:
    """All lines at once, so that a run broken off leaves the older file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(part, path)


# --- what is printed --------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """The rows as text, a block for each point."""
    lines = []
    for point in dict.fromkeys((row["num_samples"], row["batch_size"]) for row in rows):
        title = f"N = {point[0]:,}, B = {point[1]:,}"
        lines += ["", f"{title:<40}{'draw':>10}{'update':>10}{'step':>10}  {'quartiles':>19}"]
        lines[-1] += f"{'repeats':>11}{'step / choice draw':>20}"
        lines += [line(row) for row in rows if (row["num_samples"], row["batch_size"]) == point]
    machine = rows[0]["machine"]
    told = ", ".join(f"{name} {value}" for name, value in machine.items())
    return "\n".join(["µs per batch, median over the rounds", *lines, "", told, *warning(machine)])


def warning(machine: Row) -> list[str]:
    """A line where others were computing, for then the ratios suffer too (see README.md)."""
    if machine["load"] is None or machine["load"] <= AT_REST:
        return []
    return [f"the load was {machine['load']} at the start: for evidence, run again on a machine at rest"]


def line(row: Row) -> str:
    """One row as text."""
    if "skipped" in row:
        return f"{row['system']:<40}  skipped: {row['skipped']}"
    lower, upper = (short(value) for value in row["step_quartiles_us"])
    middle = "".join(f"{short(row[f'{what}_us']):>10}" for what in ("draw", "update", "step"))
    repeats = f"{row['repeats']} x {row['steps_per_repeat']}"
    return (
        f"{row['system']:<40}{middle}  {lower + ' - ' + upper:>19}{repeats:>11}"
        f"{fraction(row['step_over_choice_draw']):>20}"
    )


def short(value: float) -> str:
    """Three digits, as far as they mean something."""
    return f"{value:,.0f}" if value >= 100.0 else f"{value:.3g}"


def fraction(ratio: float | None) -> str:
    """A ratio below one as 1/x, so that the eye reads how many times faster."""
    if ratio is None:
        return "-"
    return f"1/{short(1 / ratio)}" if ratio < 1.0 else short(ratio)


def ratios(rows: Sequence[Row]) -> str:
    """The step of ``ImportanceSampler`` over those of others, as a Markdown table for README.md.

    Of numpy's ``choice`` the draw alone counts. Each ratio goes by way of that draw, with which both
    sides were compared inside each round.
    """
    over = {(row["num_samples"], row["batch_size"], row["system"]): row.get("step_over_choice_draw") for row in rows}
    others = [name for name, entry in systems.SYSTEMS.items() if entry.everywhere][1:]
    titles = [f"{name}, draw alone" if name == systems.CHOICE else name for name in others]
    lines = [f"| N | B | {' | '.join(titles)} |", "|--:|--:|" + "--:|" * len(others)]
    for size, batch in dict.fromkeys(where[:2] for where in over):
        own = over.get((size, batch, "ImportanceSampler"))
        cells = []
        for name in others:
            other = 1.0 if name == systems.CHOICE else over.get((size, batch, name))
            cells.append(fraction(own / other if own and other else None))
        lines.append(f"| {size:,} | {batch:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


@contextmanager
def progress(options: Options) -> Iterator[Callable[[str], None]]:
    """A bar with the time remaining; a plain line a point where stderr is no terminal."""
    console = Console(stderr=True)
    total = len(options.points()) * (options.rounds + 1)
    if not console.is_terminal:
        yield plain_progress(len(options.points()))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    # No refreshing in the background: it would compute in the middle of somebody's turn.
    with Progress(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task("starting", total=total)

        def advance(what: str) -> None:
            bar.update(task, advance=1, description=what, refresh=True)

        yield advance


def plain_progress(points: int) -> Callable[[str], None]:
    """A line on stderr when a point begins to be measured."""
    seen: list[str] = []

    def advance(what: str) -> None:
        if what not in seen:
            seen.append(what)
            print(f"[{len(seen)}/{points}] {what}", file=sys.stderr, flush=True)

    return advance


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print; returns the exit status."""
    # TensorFlow's messages at its start would stand in the middle of the progress.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    prog = "python -m benchmarks.sampler_throughput"
    options = tyro.cli(Options, args=arguments, prog=prog).shortened()
    with progress(options) as advance:
        rows = measure(options, advance)
    write(rows, options.output)
    print(table(rows))
    print(f"\nThe step of ImportanceSampler over that of others:\n\n{ratios(rows)}\n")
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
