"""Several machines, measured and planned: draws and updates a second against shards, the second moment, a simulation.

    python -m benchmarks.scale                  # tables, JSON lines and a picture: twelve minutes, 10 GB of memory
    python -m benchmarks.scale --quick          # at N = 1e6, in less than a minute on a machine at rest
    python -m benchmarks.scale --report         # the tables and the picture again, from the results on disk
    python -m benchmarks.scale --report --assume.mtbf-days 30 --assume.step-ms 20       # under other assumptions

*Measured* are stores of 1, 2, 4 and 8 shards on Ray, of the same N samples in all, beside a sampler in this process
(:mod:`benchmarks.scale_store`), and the second moment of draws by workers of a block each
(:mod:`benchmarks.scale_local`).
*Computed* from that are the calls, memory and failures of stores up to N = 1e11 and 10,000 trainers
(:mod:`benchmarks.scale_simulation`), and, where it was measured too, what the simulation says of it.

A line of the output is of one kind:

==============  ===================================================================================================
kind            fields
==============  ===================================================================================================
``store``       draws and updates as fast as they go: ``draw_us`` and ``update_us`` a batch with quartiles;
                ``one_...`` the same of the sampler of this process in the same rounds, ``step_over_one`` their
                ratio within the rounds; ``..._calls`` a batch; ``..._client_cpu_us`` and ``..._shards_cpu_us``
                CPU time a batch
``step``        a step that sleeps ``step_ms``: ``lost_ms`` in draw and update, ``waited_ms`` of it for shards
``clients``     ``steps_per_second`` of so many clients at once, all together
``shard``       ``resident_bytes`` of each shard, seconds to build, fill, write a snapshot, and from the death of one
                to the next draw of it (``restart_s``); ``round_trip_us`` of a round of empty calls
``one``         the sampler of this process by itself: times, memory, seconds to write and to load a snapshot
``moment``      second moment and variance over those of one store, exact and, where ``draw_steps`` is there, by
                draws, with standard errors
``simulated``   a layout at one N and W: see ``in_shards`` and ``in_process``; ``part`` is the part of the time that
                goes into steps that count
``check``       what the simulation says of what was measured: both, and their ratio
==============  ===================================================================================================
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import tyro

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its messages would stand in the middle of the progress

from benchmarks import comparing, measuring, scale_local, scale_report, scale_simulation, scale_store
from benchmarks.drawing import Row, plotted
from benchmarks.progress import things
from benchmarks.sampler_throughput import write
from benchmarks.scale_simulation import Assumptions, Units
from benchmarks.scale_store import Plan

Say = Callable[[str], None]
STAGES = 5  # lines of progress of a store that is used; a small one has two
QUICK_SIZE, QUICK_MOMENTS, QUICK_CALLS = 1_000_000, 20_000, 400


@dataclass(frozen=True)
class Options:
    """Measure a store in shards and shard-local draws, and simulate larger ones."""

    num_samples: int = 100_000_000
    """N of the stores, in all."""
    shards: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of shards S."""
    batches: tuple[int, ...] = (256, 4096)
    """Batch sizes B; steps with a pause, and several clients, take the first."""
    prefetches: tuple[int, ...] = (0, 4, 16)
    """Batches drawn ahead."""
    step_ms: tuple[float, ...] = (5.0, 20.0)
    """Lengths of a step of training, which here sleeps."""
    clients: tuple[int, ...] = (1, 2, 4)
    """Numbers of clients at once."""
    sizes: tuple[int, ...] = (10_000, 1_000_000)
    """Smaller N, so that what is constant and what grows with N are apart; the last of them in a store of a shard."""
    rounds: int = 5
    """How often each has its turn."""
    seconds: float = 0.2
    """Of a turn."""
    kills: int = 2
    """How often a shard of each store is killed."""
    moments: int = 1_000_000
    """N of the second moment."""
    sigmas: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Of the lognormal losses of the second moment."""
    workers: tuple[int, ...] = (1, 2, 10, 100, 1_000, 10_000)
    """Numbers of workers W with a block each."""
    most_calls: int = 20_000
    """Calls of ``draw`` for a row of the second moment, at most; one for which they do not suffice is exact only."""
    simulated_sizes: tuple[int, ...] = (10**8, 10**9, 10**10, 10**11)
    """N of the simulation."""
    simulated_workers: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    """W of the simulation."""
    assume: Assumptions = field(default_factory=Assumptions)
    """What the simulation takes for granted."""
    report: bool = False
    """Measure nothing: simulate again from the measured rows of ``output``, print, and draw; only print under other
    assumptions."""
    quick: bool = False
    """N = 1e6, two stores, one batch size, few rounds."""
    seed: int = 0
    """Of the losses, the draws and the simulation."""
    output: Path = Path("benchmarks/results/scale.jsonl")
    """Where the JSON lines go; an older file is replaced when all has been measured."""

    def __post_init__(self) -> None:
        for name in ("shards", "batches", "clients", "sizes", "workers", "simulated_sizes", "simulated_workers"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"{name} must be whole numbers of at least 1, got {values}")
        if not self.prefetches or min(self.prefetches) < 0:
            raise ValueError(f"prefetches must be whole numbers of at least 0, got {self.prefetches}")
        for name in ("step_ms", "sigmas"):
            values = getattr(self, name)
            if not values or not min(values) > 0.0:
                raise ValueError(f"{name} must be numbers above 0, got {values}")
        if self.rounds < 1 or self.kills < 1 or not self.seconds > 0.0:
            given = f"{self.rounds}, {self.kills} and {self.seconds}"
            raise ValueError(f"rounds and kills must be at least 1 and seconds above 0, got {given}")
        if max(self.shards) > self.num_samples or max(self.workers) > self.moments:
            raise ValueError(
                f"there must be a sample for each of {max(self.shards)} shards and {max(self.workers)} workers, got "
                f"num_samples {self.num_samples} and moments {self.moments}"
            )
        if max(self.simulated_workers) > min(self.simulated_sizes):
            raise ValueError(
                f"simulated_workers must not be more than the samples, got {max(self.simulated_workers)} for "
                f"{min(self.simulated_sizes)}"
            )
        if self.report and not self.shortened().output.exists():
            raise ValueError(f"report needs measured rows, and {self.shortened().output} is not there: measure first")

    def shortened(self) -> Options:
        """These options, cut down where ``quick`` asks for it."""
        if not self.quick:
            return self
        size = min(self.num_samples, QUICK_SIZE)
        return replace(
            self,
            quick=False,
            output=measuring.aside(self.output, Options.output),
            num_samples=size,
            shards=self.shards[:2],
            batches=self.batches[:1],
            prefetches=self.prefetches[-2:],
            clients=self.clients[:1],
            sizes=tuple(each for each in self.sizes if each < size) or self.sizes[:1],
            rounds=min(self.rounds, 3),
            seconds=min(self.seconds, 0.05),
            kills=1,
            moments=min(self.moments, QUICK_MOMENTS),
            sigmas=self.sigmas[:2],
            workers=tuple(each for each in self.workers if each <= QUICK_MOMENTS // 10) or self.workers[:1],
            most_calls=min(self.most_calls, QUICK_CALLS),
        )

    def plan(self, shards: int, num_samples: int) -> Plan:
        """What is measured of one store; of a smaller one only what a shard takes."""
        whole = num_samples == self.num_samples
        return Plan(
            num_samples,
            shards,
            self.batches if whole else (),
            self.prefetches,
            self.step_ms,
            self.clients,
            self.rounds,
            self.seconds,
            self.kills,
            self.seed,
        )

    def stages(self) -> int:
        """Lines of progress."""
        return len(self.all_sizes()) + 2 + STAGES * len(self.shards) + len(scale_local.ARRANGEMENTS)

    def all_sizes(self) -> list[int]:
        """N of the samplers of this process, ascending; the last is that of the stores."""
        return sorted({*(size for size in self.sizes if size < self.num_samples), self.num_samples})


# --- measuring --------------------------------------------------------------------------------


def measure(options: Options, say: Say = lambda what: None) -> list[Row]:
    """All rows that are measured."""
    machine = measuring.machine(None)
    rows = list(moments(options, say))
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        rows += stores(options, Path(folder), say)
    return [{**row, "machine": machine} for row in rows]


def moments(options: Options, say: Say) -> Iterator[Row]:
    """Second moments and variances."""
    for arrangement in scale_local.ARRANGEMENTS:
        say(f"second moment: {arrangement}")
        yield from scale_local.moment_rows(
            arrangement=arrangement,
            num_samples=options.moments,
            workers=options.workers,
            sigmas=options.sigmas,
            uniform_fractions=(0.0, 0.3),
            most_calls=options.most_calls,
            seed=options.seed,
        )


def stores(options: Options, folder: Path, say: Say) -> Iterator[Row]:
    """The samplers of this process, then a store after the other, in shuffled order."""
    sizes = options.all_sizes()
    for size in sizes:
        say(f"one process, N={size:,}")
        row, one = scale_store.one_row(size, options.batches[0], folder / f"one-{size}", options.plan(1, size))
        yield row
    order = np.random.default_rng(options.seed).permutation(sorted(set(options.shards)))
    points = [(1, size) for size in sizes[:-1][-1:]] + [(int(shards), sizes[-1]) for shards in order]
    try:
        for shards, size in points:
            place = folder / f"store-{shards}-{size}"
            yield from scale_store.store_rows(options.plan(shards, size), one, place, say)
            scale_store.tidied(place)
    finally:
        with suppress(ImportError):
            import ray

            ray.shutdown()


def computed(rows: Sequence[Row], options: Options) -> list[Row]:
    """The simulation, and what it says of what was measured; nothing where the CPU times are not known."""
    try:
        units = Units.of(rows)
    except ValueError as error:
        return [{"kind": "simulated", "skipped": str(error)}]
    cores = next(row["machine"]["cores"] for row in rows if row["kind"] == "store")
    simulated = scale_simulation.simulation(
        units, options.assume, options.simulated_sizes, options.simulated_workers, options.seed
    )
    fitted = [{"kind": "units", **{name: list(np.ravel(value)) for name, value in units._asdict().items()}}]
    assumed = [{"kind": "assumptions", **asdict(options.assume)}]
    return [*fitted, *assumed, *simulated, *scale_simulation.checks(rows, cores)]


# --- telling ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, simulate, write, print; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.scale").shortened()
    if options.report:
        rows = [row for row in comparing.read(options.output) if row["kind"] in scale_report.MEASURED]
    else:
        with things(options.stages()) as say:
            rows = measure(options, say)
    rows += computed(rows, options)
    print(scale_report.report(rows))
    if options.report and options.assume != Assumptions():
        print("\nother assumptions: printed only, results and picture are left as they are", file=sys.stderr)
        return 0
    write(rows, options.output)
    picture = plotted("benchmarks.scale_plot", rows, options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output}{picture}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
