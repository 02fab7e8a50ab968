"""How long a batch takes: drawing it, and learning its losses, here and elsewhere.

    python -m benchmarks.sampler_throughput             # a table, and JSON lines in benchmarks/results
    python -m benchmarks.sampler_throughput --quick     # in less than a minute
    python -m benchmarks.sampler_throughput --peers     # with the priority stores of others (make peers)
    python -m benchmarks.sampler_throughput --sizes 50000 --batches 128 --output mine.jsonl

A *point* is a number of samples N and a batch size B. At each point every system of
:mod:`benchmarks.systems` starts from the same exponential priorities, is fed the same exponential
losses, and is measured in turn with the others as :mod:`benchmarks.measuring` says. Variants of
``ImportanceSampler`` (other draw schemes, a feedback lag) are measured at one point only. With ``--peers``
the stores of :mod:`benchmarks.peers` have their turns among them, each in an interpreter of its own.

A line of the output is one system at one point:

===========================================  ======================================================
field                                        meaning
===========================================  ======================================================
``system``, ``kind``                         what was measured; ``kernel``, ``public``, ``numpy`` or ``floor``
``num_samples``, ``batch_size``              N and B
``draw_us``, ``update_us``, ``step_us``      µs per batch, median over the rounds; a step is a draw
                                             and its update
``draw_quartiles_us``, ...                   the lower and upper quartile of the same
``step_rounds_us``                           the step in each round, so that any ratio can be taken
                                             inside the rounds
``step_over_choice_draw``                    this step over the draw of numpy's ``choice`` in the
                                             same round, median; null where that was skipped
``bytes_per_sample``, ``build_s``            what it holds, null where that cannot be told; seconds to
                                             build it, once imported and compiled
``uniforms``                                 of a raw tree: the order of the uniforms given to it
``versions``                                 of a peer: its packages
``repeats``, ``steps_per_repeat``            rounds, and the steps averaged in each
``machine``                                  processor, core, load, versions, date
``skipped``                                  why there are no figures: the system cannot be measured
===========================================  ======================================================
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tyro

from benchmarks import comparing, measuring, systems
from benchmarks.comparing import Point, Row, fraction, short
from benchmarks.drawing import plotted
from benchmarks.measuring import Contestant, Lost, Times
from benchmarks.peers import remote
from benchmarks.peers.remote import Remotes
from benchmarks.progress import parts

LOSSES_MADE = 64  # batches of losses made beforehand, used over and over
AT_REST = 0.5  # the load of a machine up to which nobody else computes much
QUICK_ROUNDS, QUICK_SECONDS, QUICK_LARGEST = 5, 1.0, 1_000_000
LARGE, LARGE_ROUNDS = 100_000_000, 7  # N from which there are fewer rounds


@dataclass(frozen=True)
class Options:
    """Measure draw, update and step of samplers, in turn, on one core."""

    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
    """Numbers of samples N."""
    batches: tuple[int, ...] = (32, 256, 4096)
    """Batch sizes B."""
    output: Path = Path("benchmarks/results/sampler_throughput.jsonl")
    """Where the JSON lines go; an older file is replaced."""
    rounds: int = 21
    """How often each system has its turn at each point; at most 7 times at N = 1e8 and above."""
    seconds: float = 8.0
    """Time to spend at each point, shared by the systems; a step a turn may take longer than that."""
    peers: bool = False
    """Measure the priority stores of others too, those that ``make peers`` could install."""
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
            output=measuring.aside(self.output, Options.output),
            sizes=tuple(size for size in self.sizes if size <= QUICK_LARGEST) or self.sizes,
            rounds=min(self.rounds, QUICK_ROUNDS),
            seconds=min(self.seconds, QUICK_SECONDS),
        )

    def rounds_at(self, size: int) -> int:
        """Fewer where a round takes long."""
        return min(self.rounds, LARGE_ROUNDS) if size >= LARGE else self.rounds

    def points(self) -> list[Point]:
        """Every size with every batch size."""
        return [(size, batch) for size in self.sizes for batch in self.batches]


# --- measuring --------------------------------------------------------------------------------


def measure(options: Options, advance: Callable[[str], None] = lambda what: None) -> list[Row]:
    """A row for each system at each point.

    ``advance`` is called with the name of the point, after its preparation and after each round.
    """
    with (
        measuring.one_core() if options.one_core else nullcontext() as core,
        Remotes(remote.PEERS if options.peers else {}) as remotes,
    ):
        if options.one_core:
            # Without TensorFlow its system is skipped, by name; once it has run it keeps its threads.
            with suppress(ImportError, RuntimeError):
                systems.tensorflow_on_one_thread()
        machine = measuring.machine(core)
        sized = (measure_size(options, size, remotes, advance) for size in options.sizes)
        return [{**row, "machine": machine} for rows in sized for row in rows]


def measure_size(options: Options, size: int, remotes: Remotes, advance: Callable[[str], None]) -> list[Row]:
    """A row for each system at each batch size. The peers build once, from the same priorities."""
    generator = np.random.default_rng([options.seed, size])
    priorities = generator.standard_exponential(size) + np.finfo(np.float32).tiny  # a zero has no logarithm
    if options.peers:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "priorities.npy"
            np.save(path, priorities)
            remotes.build(path, size)
    return [
        row for batch in options.batches for row in measure_point(options, (size, batch), priorities, remotes, advance)
    ]


def measure_point(
    options: Options, point: Point, priorities: np.ndarray, remotes: Remotes, advance: Callable[[str], None]
) -> list[Row]:
    """A row for each system at one point."""
    what = f"N={point[0]:,} B={point[1]}"
    generator = np.random.default_rng([options.seed, *point])
    prepared = prepare(options, point, priorities, remotes, generator)
    advance(what)
    times, lost = measuring.take_rounds(
        prepared.contestants,
        prepared.steps,
        rounds=options.rounds_at(point[0]),
        generator=generator,
        after_round=lambda: advance(what),
    )
    for name, reason in lost.items():
        remotes.lose(name, f"lost at {what}, {reason}")
    skipped = {**prepared.skipped, **{name: f"lost {reason}" for name, reason in lost.items()}}
    return [
        row(name, kind, point, times, skipped, prepared.told.get(name, {}))
        for name, kind in KINDS.items()
        if name in times or name in skipped
    ]


KINDS = {
    **{name: entry.kind for name, entry in systems.SYSTEMS.items()},
    **{name: peer.kind for name, peer in remote.PEERS.items()},
}


@dataclass
class Prepared:
    """Contestants of one point, the steps of their turns, why others are skipped, and what is told of each."""

    contestants: dict[str, Contestant] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    told: dict[str, Row] = field(default_factory=dict)


def prepare(
    options: Options, point: Point, priorities: np.ndarray, remotes: Remotes, generator: np.random.Generator
) -> Prepared:
    """Build what lives here, make the peers ready, and warm all of them up."""
    size, batch = point
    entries = {
        name: entry
        for name, entry in systems.SYSTEMS.items()
        if entry.everywhere or point == tuple(options.variants_at)
    }
    away, skipped = remotes.prepare(batch, options.seed)
    lead_in = 1.0 + 1.0 / measuring.LEAD_IN
    seconds = options.seconds / (options.rounds_at(size) * (len(entries) + len(away)) * lead_in)
    prepared = Prepared(skipped=skipped)
    losses = generator.standard_exponential((LOSSES_MADE, batch), np.float32) + np.finfo(np.float32).tiny
    for name, entry in entries.items():
        if entry.up_to is not None and size > entry.up_to:
            prepared.skipped[name] = f"not measured above N={entry.up_to:,}"
            continue
        try:
            system, prepared.told[name] = build(entry, priorities, batch, generator)
            contestant = measuring.InProcess(system, losses)
            prepared.steps[name] = measuring.warm_up(contestant, seconds)
            prepared.contestants[name] = contestant
        except Exception as error:
            if entry.ours:
                raise
            prepared.skipped[name] = f"{type(error).__name__}: {error}"
    for name, worker in away.items():
        try:
            prepared.steps[name] = measuring.warm_up(worker, seconds)
            prepared.contestants[name], prepared.told[name] = worker, dict(remotes.told[name])
        except Lost as lost:
            prepared.skipped[name] = str(lost)
            remotes.lose(name, str(lost))
    return prepared


def build(
    entry: systems.Entry, priorities: np.ndarray, batch: int, generator: np.random.Generator
) -> tuple[systems.System, Row]:
    """Build a system of this process; seconds and bytes beside it."""
    entry.build(np.ones(batch), batch, np.random.default_rng(0))  # imports and compiles
    start = time.perf_counter()
    system = entry.build(priorities, batch, generator)
    seconds = time.perf_counter() - start
    each = None if system.nbytes is None else round(system.nbytes / priorities.size, 2)
    return system, {"bytes_per_sample": each, "build_s": round(seconds, 4)}


# --- rows -------------------------------------------------------------------------------------


def row(name: str, kind: str, point: Point, times: Mapping[str, Times], skipped: Mapping[str, str], told: Row) -> Row:
    """One line of the output, the machine left out."""
    where: Row = {"system": name, "kind": kind, "num_samples": point[0], "batch_size": point[1]}
    if name in skipped:
        return {**where, "skipped": skipped[name]}
    own = times[name]
    return {
        **where,
        **columns("draw", own.draw),
        **columns("update", own.update),
        **columns("step", own.step),
        "step_rounds_us": own.step.round(3).tolist(),
        "step_over_choice_draw": over_choice(own, times.get(systems.CHOICE)),
        **{"bytes_per_sample": None, "build_s": None, **told},
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print; returns the exit status."""
    # TensorFlow's messages at its start would stand in the middle of the progress.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    prog = "python -m benchmarks.sampler_throughput"
    options = tyro.cli(Options, args=arguments, prog=prog).shortened()
    with parts(sum(options.rounds_at(size) + 1 for size, _ in options.points())) as advance:
        rows = measure(options, lambda what: advance(what, 1.0))
    write(rows, options.output)
    print(table(rows))
    print(comparing.report(rows))
    picture = plotted("benchmarks.plot", rows, options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output}{picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
