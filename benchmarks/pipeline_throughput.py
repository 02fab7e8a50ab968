"""How many samples a second an input pipeline gives, here and elsewhere.

    python -m benchmarks.pipeline_throughput             # a table, and JSON lines in benchmarks/results
    python -m benchmarks.pipeline_throughput --quick     # in some minutes: few rounds, small data sets
    python -m benchmarks.pipeline_throughput --peers     # with torch and Grain (make peers)
    python -m benchmarks.pipeline_throughput --data images --batches 256 --cores 1 --output mine.jsonl

Three data sets of 50,000 samples: images, features and strings (:mod:`benchmarks.pipeline_data`), batches of 32, 256
and 1024, on one core and on two. At each of these points every pipeline of :mod:`benchmarks.pipelines` is
measured in turn with the others, as :mod:`benchmarks.measuring` says. The consumer is one compiled function that loops
``for _ in tf.range(n): batch = next(iterator)`` over ``iter(dataset.repeat())``, as ``fit`` takes its batches inside
a compiled function (:mod:`benchmarks.pipeline_turns`); what lives in Python is consumed by a loop in Python. Each
number of cores is a process of its own, as TensorFlow's threads are fixed at its start. Before a system is timed,
batches of it are compared with the data, and this project's batches with their index.

A line of the output is one system at one point, or a figure of memory:

============================================  =====================================================================
field                                         meaning
============================================  =====================================================================
``system``, ``group``                         what was measured; ``this project``, ``others`` or ``floor``
``kind``                                      ``throughput``; ``eager``: the consumer is a loop in Python; ``cold``:
                                              an epoch, or a part, from a beginning with no file in the page cache
``data``, ``num_samples``, ``batch_size``     the data set, N and B
``cores``                                     one: and TensorFlow has one thread; more: its default threads
``k_samples_s``, ``..._quartiles``            thousand samples a second, median over the rounds, and quartiles
``k_samples_s_rounds``                        in each round, so that any ratio can be taken inside the rounds
``over_keras``                                over that of Keras's ``fit(X, y)`` in the same round, median
``repeats``, ``steps_per_repeat``             rounds, and the batches of each turn
``samples_per_repeat``                        the samples of each turn
``distinct_samples``, ``stayed_in_cache``     of a cold row: different samples in a round, and the greatest share
                                              of the file's pages that were in memory after all
``versions``, ``threads``, ``batched``        of a peer: its packages, and the form that was quicker
``kind``: ``memory``, ``slope``               see :mod:`benchmarks.pipeline_memory`
``machine``                                   processor, load, versions, date
``skipped``                                   why there are no figures: the system cannot be measured
============================================  =====================================================================
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its messages would stand in the middle of the progress

from benchmarks import measuring, pipeline_data, pipeline_memory, pipeline_report, pipeline_worker, progress
from benchmarks.drawing import plotted
from benchmarks.measuring import Lost
from benchmarks.pipeline_children import Child, on_cores
from benchmarks.pipeline_report import Row
from benchmarks.progress import Advance
from benchmarks.sampler_throughput import warning, write

QUICK_ROUNDS, QUICK_SECONDS, QUICK_SAMPLES, QUICK_BATCHES = 3, 0.15, 5_000, 1_000
MEMORY_BATCH = 256
MEMORY_PART = 0.15  # of a point's time that a figure of memory takes, roughly


@dataclass(frozen=True)
class Options:
    """Measure input pipelines in turn, on one core and on two."""

    data: tuple[str, ...] = pipeline_data.DATA_SETS
    """Data sets."""
    batches: tuple[int, ...] = (32, 256, 1024)
    """Batch sizes B."""
    num_samples: int = 50_000
    """Number of samples N of each data set."""
    cores: tuple[int, ...] = (1, 2)
    """Numbers of cores; each is a process of its own."""
    rounds: int = 7
    """How often each system has its turn at each point."""
    seconds: float = 0.7
    """Time for all turns of one system at one point, roughly; a batch a turn may take longer than that."""
    peers: bool = False
    """Measure torch and Grain too, where ``make peers`` could install them."""
    memory: bool = True
    """Measure memory too."""
    memory_batches: int = 100_000
    """Batches drawn to see whether memory grows; 0 leaves that out."""
    quick: bool = False
    """At most 3 rounds of 0.05 seconds, 5,000 samples, and 1,000 batches for memory."""
    seed: int = 0
    """Of the data, the losses and the draws."""
    files: Path | None = None
    """A folder on a disk, in which a temporary one is made for some gigabytes; by default the system's."""
    output: Path = Path("benchmarks/results/pipeline_throughput.jsonl")
    """Where the JSON lines go; an older file is replaced."""

    def __post_init__(self) -> None:
        for name in ("batches", "cores"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"{name} must be whole numbers of at least 1, got {values}")
        unknown = [name for name in self.data if name not in pipeline_data.DATA_SETS]
        if unknown or not self.data:
            raise ValueError(f"data must be some of {', '.join(pipeline_data.DATA_SETS)}, got {self.data}")
        if self.num_samples < max(self.batches):
            raise ValueError(f"num_samples must be at least a batch, {max(self.batches)}, got {self.num_samples}")
        if self.rounds < 1 or not self.seconds > 0.0:
            raise ValueError(f"rounds must be at least 1, seconds above 0, got {self.rounds}, {self.seconds}")
        if self.memory_batches < 0:
            raise ValueError(f"memory_batches must be at least 0, got {self.memory_batches}")

    def shortened(self) -> Options:
        """These options, cut down where ``quick`` asks for it."""
        if not self.quick:
            return self
        return replace(
            self,
            output=measuring.aside(self.output, Options.output),
            num_samples=max(min(self.num_samples, QUICK_SAMPLES), *self.batches),
            rounds=min(self.rounds, QUICK_ROUNDS),
            seconds=min(self.seconds, QUICK_SECONDS),
            memory_batches=min(self.memory_batches, QUICK_BATCHES),
        )


# --- measuring --------------------------------------------------------------------------------


def measure(options: Options, advance: Advance = lambda what, part: None) -> list[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory(dir=options.files) as place:
        folder = Path(place).resolve()
        for name in options.data:
            pipeline_data.make(folder, name, num_samples=options.num_samples, seed=options.seed)
        rows = [row for cores in options.cores for row in measure_cores(options, cores, folder, advance)]
        return rows + measure_memory(options, folder, advance)


def measure_cores(options: Options, cores: int, folder: Path, advance: Advance) -> list[Row]:
    """The rows of one number of cores. Where its process fails, what is missing is skipped by name."""
    asked = {name: getattr(options, name) for name in ("data", "batches", "rounds", "seconds", "peers", "seed")}
    task = pipeline_worker.Task(cores=cores, folder=str(folder), **asked)
    rows: list[Row] = []
    part, what = 0.0, ""
    try:
        with on_cores(cores), Child(["benchmarks.pipeline_worker", json.dumps(asdict(task))]) as child:
            for told in child.lines():
                if "row" in told:
                    rows.append(told["row"])
                else:
                    before = part if told["what"] == what else 0.0
                    part, what = told["part"], told["what"]
                    advance(what, part - before)
    except Lost as lost:
        rows += missing(options, cores, rows, str(lost))
    return rows


def missing(options: Options, cores: int, rows: Sequence[Row], reason: str) -> list[Row]:
    """Rows for what a process did not come to."""
    have = {(row["system"], row["data"], row["batch_size"]) for row in rows}
    machine = measuring.machine(None)
    made = []
    for data in options.data:
        names = [*pipeline_worker.entries_for(data), *pipeline_worker.peers_for(data, cores, options.peers)]
        for batch in options.batches:
            made += [
                {
                    "system": name,
                    "kind": pipeline_worker.kind_of(name),
                    "group": pipeline_worker.group_of(name),
                    "data": data,
                    "num_samples": options.num_samples,
                    "batch_size": batch,
                    "cores": cores,
                    "skipped": reason,
                    "machine": machine,
                }
                for name in names
                if (name, data, batch) not in have
            ]
    return made


def measure_memory(options: Options, folder: Path, advance: Advance) -> list[Row]:
    """A process for each figure of memory."""
    machine = measuring.machine(None)
    rows = []
    for task in memory_tasks(options, folder):
        advance(f"memory: {task.data}, {task.system}", 0.0)
        rows.append({**measure_one(task), "machine": machine})
        advance(f"memory: {task.data}, {task.system}", MEMORY_PART)
    return rows


def measure_one(task: pipeline_memory.Task) -> Row:
    """One figure of memory."""
    try:
        with Child(["benchmarks.pipeline_memory", json.dumps(asdict(task))]) as child:
            (told,) = child.lines()
            row: Row = told["row"]
            return row
    except (Lost, ValueError) as error:
        kind = "slope" if task.batches else "memory"
        where = {"system": task.system, "kind": kind, "group": pipeline_worker.group_of(task.system)}
        return {**where, "data": task.data, "batch_size": task.batch, "skipped": str(error)}


def memory_tasks(options: Options, folder: Path) -> list[pipeline_memory.Task]:
    """Each way of holding each data set, and then whether memory grows."""
    if not options.memory or not Path("/proc/self/status").exists():
        return []
    batch = min(MEMORY_BATCH, options.num_samples)
    common = {"folder": str(folder), "seed": options.seed}
    tasks = [
        pipeline_memory.Task(system, data, batch=batch, **common)  # type: ignore[arg-type]  # str and int
        for data in options.data
        for system in pipeline_memory.SYSTEMS
    ]
    if options.memory_batches:
        many = {"batch": min(options.batches), "batches": options.memory_batches}
        tasks += [
            pipeline_memory.Task(system, options.data[0], **common, **many)  # type: ignore[arg-type]
            for system in pipeline_memory.SLOPES
        ]
    return tasks


# --- telling ----------------------------------------------------------------------------------


def parts(options: Options) -> float:
    """How much there is to do, in points."""
    points = len(options.cores) * len(options.data) * len(options.batches)
    return points + MEMORY_PART * len(memory_tasks(options, Path()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print; returns the exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.pipeline_throughput").shortened()
    with progress.parts(parts(options)) as advance:
        rows = measure(options, advance)
    write(rows, options.output)
    print(pipeline_report.table(rows))
    print(pipeline_report.report(rows))
    for line in warning(rows[0]["machine"]):
        print(line)
    picture = plotted("benchmarks.pipeline_plot", rows, options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output}{picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
