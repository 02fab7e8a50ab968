"""How many instructions a step takes, counted by valgrind: a figure that does not vary with the hour.

    python -m benchmarks.instructions                    # a table, and JSON lines in benchmarks/results
    python -m benchmarks.instructions --cache-sim        # misses of the last cache as well
    python -m benchmarks.instructions --systems kernels --sizes 1000000 --batches 256

Seconds vary on a shared machine, by up to a factor of two from hour to hour; the number of instructions that a step
executes hardly does. Each system runs in a worker (:mod:`benchmarks.peers.worker`) under
``valgrind --tool=callgrind``, which counts only when told to: importing, compiling and building go uncounted. Then K
steps are counted, and 2K steps; the difference over K is a step, and whatever is done once for a count is in neither.

Counts are not times: they know nothing of waiting for memory, of branches guessed wrong, or of wide registers. Valgrind
shows programs a processor without AVX-512, so what is compiled here is compiled for AVX2. Each step also makes
the uniforms that a raw tree is given, which the clock leaves out; they are counted on their own and taken off.

A line of the output: ``system``, ``kind``, ``num_samples``, ``batch_size``, ``instructions`` a step,
``last_level_misses`` a step (null without ``--cache-sim``), ``steps`` (K); or ``skipped`` and the reason.

The simulated caches are empty when a count begins, so the misses are those of samples touched for the first time. Large
batches have touched most of the memory after K steps; then 2K steps miss no more often than K, and null stands there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks import comparing, measuring, sampler_throughput, systems
from benchmarks.comparing import Row
from benchmarks.measuring import Lost
from benchmarks.peers import remote
from benchmarks.peers.remote import Peer, Remote
from benchmarks.progress import things

ANSWER = 3600.0  # seconds; valgrind takes some fifty times as long

# TorchRL's trees for a processor that valgrind knows.
FOR_VALGRIND = {"TORCHRL_EXTENSION": str(remote.FOLDER / "torchrl" / "valgrind" / "_torchrl.so")}

# Starts, ends and divides the counts from inside the program: callgrind's own requests, which do nothing without it.
SWITCH = """
#include <valgrind/callgrind.h>
extern "C" void start() { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_TOGGLE_COLLECT; }
extern "C" void stop() { CALLGRIND_TOGGLE_COLLECT; CALLGRIND_STOP_INSTRUMENTATION; }
extern "C" void zero() { CALLGRIND_ZERO_STATS; }
extern "C" void dump() { CALLGRIND_DUMP_STATS; }
"""


@dataclass(frozen=True)
class Here(Peer):
    """A system of this project, in an interpreter like the one that runs this."""

    def command(self) -> list[str]:
        """How its worker is started."""
        return [sys.executable, "-W", "ignore", "-m", "benchmarks.peers.worker"]


COUNTED: Mapping[str, Peer] = {
    systems.KERNELS: Here("", "kernels", "kernel"),
    systems.SAMPLER: Here("", "importance_sampler", "public"),
    **{
        name: remote.PEERS[name]
        for name in (
            remote.TORCHRL_FP32,
            "TorchRL SumSegmentTreeFp64",
            remote.TIANSHOU,
            remote.TORCHRL_PUBLIC,
            "cpprb PrioritizedReplayBuffer",
        )
    },
}


@dataclass(frozen=True)
class Options:
    """Count the instructions of a step."""

    sizes: tuple[int, ...] = (1_000_000,)
    """Numbers of samples N."""
    batches: tuple[int, ...] = (32, 256, 4096)
    """Batch sizes B."""
    systems: tuple[str, ...] = tuple(COUNTED)
    """Which to count."""
    steps: int = 16
    """K: steps of the shorter count."""
    cache_sim: bool = False
    """Simulate the caches too, which takes three times as long."""
    output: Path = Path("benchmarks/results/instructions.jsonl")
    """Where the JSON lines go; an older file is replaced."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.systems if name not in COUNTED]
        if unknown:
            raise ValueError(f"systems must be among {', '.join(COUNTED)}; got {unknown[0]}")
        if min((*self.sizes, *self.batches, self.steps)) < 1:
            raise ValueError("sizes, batches and steps must be whole numbers of at least 1")


def count(options: Options) -> Iterator[Row]:
    """A row for each system at each point."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            switch = make_switch(folder)
        except Lost as lost:
            yield from (skipped(system, point, str(lost)) for system, point in everything(options))
            return
        for size in options.sizes:
            priorities = folder / f"{size}.npy"
            np.save(priorities, np.random.default_rng(0).standard_exponential(size) + np.finfo(np.float32).tiny)
            for system in options.systems:
                yield from count_system(options, system, size, priorities, switch)


def everything(options: Options) -> list[tuple[str, tuple[int, int]]]:
    """Every system with every point."""
    return [(name, (size, batch)) for size in options.sizes for name in options.systems for batch in options.batches]


def count_system(options: Options, name: str, size: int, priorities: Path, switch: Path) -> Iterator[Row]:
    """Its rows at one N: one worker under valgrind, one batch size after another."""
    peer, folder = COUNTED[name], switch.parent
    files = folder / f"counts.{len(list(folder.iterdir()))}"
    try:
        command = [*valgrind(files, options.cache_sim), *peer.command()]
        worker = Remote(command, building=ANSWER, asking=ANSWER, environment=FOR_VALGRIND)
    except Lost as lost:
        yield from (skipped(name, (size, batch), str(lost)) for batch in options.batches)
        return
    try:
        worker.build(peer.system, priorities)
        for batch in options.batches:
            worker.prepare(batch, 0)
            before = dumps(files)
            worker.ask(ANSWER, do="count", steps=options.steps, switch=str(switch))
            counts = [parse(path.read_text()) for path in dumps(files)[len(before) :]]
            yield counted(name, (size, batch), counts, options.steps)
    except Lost as lost:
        yield from (skipped(name, (size, batch), str(lost)) for batch in options.batches)
    finally:
        worker.close(at_once=True)


def valgrind(files: Path, cache_sim: bool) -> list[str]:
    """How a program is started under callgrind. It counts from ``start`` of the switch on."""
    return [
        "valgrind",
        "--tool=callgrind",
        "--instr-atstart=no",
        "--collect-atstart=no",
        f"--cache-sim={'yes' if cache_sim else 'no'}",
        f"--callgrind-out-file={files}",
        "--quiet",
    ]


def make_switch(folder: Path) -> Path:
    """The switch, compiled. Raises ``Lost`` where valgrind or a compiler is missing."""
    for program in ("valgrind", "g++"):
        if shutil.which(program) is None:
            raise Lost(f"{program} is not installed")
    source, switch = folder / "switch.cpp", folder / "switch.so"
    source.write_text(SWITCH)
    done = subprocess.run(
        ["g++", "-O2", "-shared", "-fPIC", str(source), "-o", str(switch)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Lost(f"the headers of valgrind are missing: {done.stderr.strip().splitlines()[0]}")
    return switch


def dumps(files: Path) -> list[Path]:
    """What callgrind has written so far, in order."""
    numbered = [path for path in files.parent.glob(files.name + ".*") if path.suffix[1:].isdigit()]
    return sorted(numbered, key=lambda path: int(path.suffix[1:]))


def parse(text: str) -> dict[str, int]:
    """The totals of one file of callgrind: ``{"Ir": instructions, ...}``."""
    events: list[str] = []
    totals: list[int] = []
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        if key == "events":
            events = rest.split()
        elif key in ("summary", "totals"):
            totals = [int(number) for number in rest.split()]
    if not events or not totals:
        raise ValueError("no events and totals in what callgrind wrote")
    # Trailing zeros are left out of the file.
    return dict(zip(events, totals + [0] * (len(events) - len(totals)), strict=True))


def counted(name: str, point: tuple[int, int], counts: Sequence[Mapping[str, int]], steps: int) -> Row:
    """A row, of the counts of K steps, of 2K steps, and of what is made ready for K and for 2K."""
    each = {event: per_step(event, counts, steps) for event in counts[0]}
    misses = [each[event] for event in ("ILmr", "DLmr", "DLmw") if event in each]
    told = bool(misses) and sum(misses) >= 0
    return {
        **where(name, point),
        "instructions": round(each["Ir"]),
        "last_level_misses": round(sum(misses), 1) if told else None,
        "steps": steps,
    }


def per_step(event: str, counts: Sequence[Mapping[str, int]], steps: int) -> float:
    """Of one event: the difference of the two counts, less that of making ready."""
    once, twice, ready_once, ready_twice = (count[event] for count in counts)
    return ((twice - once) - (ready_twice - ready_once)) / steps


def skipped(name: str, point: tuple[int, int], reason: str) -> Row:
    """A row without figures."""
    return {**where(name, point), "skipped": reason}


def where(name: str, point: tuple[int, int]) -> Row:
    """What a row is of."""
    return {"system": name, "kind": COUNTED[name].kind, "num_samples": point[0], "batch_size": point[1]}


def table(rows: Sequence[Row]) -> str:
    """Instructions a step, in Markdown; last-level misses behind them where they were simulated."""
    names = list(dict.fromkeys(row["system"] for row in rows))
    lines = comparing.heading(names)
    for point in comparing.points(rows):
        lines.append(comparing.cells_of(point, [cell(comparing.find(rows, point, name)) for name in names]))
    reasons = {row["system"]: row["skipped"] for row in rows if "skipped" in row}
    return "\n".join([*lines, *[f"{name} skipped: {reason}" for name, reason in reasons.items()]])


def cell(row: Row | None) -> str:
    """One count."""
    if row is None:
        return "-"
    misses = row["last_level_misses"]
    return f"{row['instructions']:,}" + ("" if misses is None else f" ({misses:,.0f} misses)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, write, print; returns the exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.instructions")
    rows: list[Row] = []
    todo = [f"N={size:,} B={batch} {name}" for name, (size, batch) in everything(options)]
    with measuring.one_core() as core, things(len(todo)) as begin:
        machine = measuring.machine(core)
        begin(todo[0])
        for row in count(options):
            rows.append({**row, "machine": machine})
            if len(rows) < len(todo):
                begin(todo[len(rows)])
    sampler_throughput.write(rows, options.output)
    print(f"instructions a step\n\n{table(rows)}\n\nwritten to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
