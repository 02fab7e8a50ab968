"""The program that measures input pipelines on so many cores, in a process of its own.

    python -m benchmarks.pipeline_worker '{"cores": 1, "folder": ..., ...}'     # the fields of Task, as JSON

How many threads TensorFlow has is fixed at its first operation, so one process cannot measure both one core and two.
The one that starts this program has chosen its cores already (:mod:`benchmarks.pipeline_children`); with one core
TensorFlow gets one thread within an operation and one between them, otherwise its defaults.

Answers are lines of JSON on stdout: ``{"row": ...}`` for a row of the results, ``{"what": ..., "part": 0.5}`` for how
much of the point of the moment is done. What TensorFlow prints goes to stderr.

A *point* is a data set and a batch size. At each point all systems are built and checked, then have their turns
in rounds, as :mod:`benchmarks.measuring` says. Those that read files then have a second set of rounds, in which
the files are out of the page cache at the beginning of each turn; Keras's arrays take part, for the ratio.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring, pipeline_data, pipelines, systems
from benchmarks import pipeline_files as files
from benchmarks.measuring import Contestant, Lost, Times
from benchmarks.peers import remote_pipelines
from benchmarks.peers.remote_pipelines import PeerPipeline, RemotePipelines
from benchmarks.pipeline_children import emitter
from benchmarks.pipeline_names import KERAS, OTHERS
from benchmarks.pipeline_turns import Cold, Local, Taking, distinct_in_epoch, epoch_of, reason, steps_within
from benchmarks.pipelines import Entry, Setting

Row = dict[str, Any]
Emit = Callable[[Row], None]

PREPARING, WARM = 0.45, 0.85  # of a point is done, roughly, when all is prepared, and when the warm rounds are over
COLD_DATA = "images"  # the one data set that files are read cold of
COLD_ROUNDS = 3  # at most
COLD_SECONDS = 2.0  # an epoch that takes longer than that when it is warm is cut off there
EXACT = 3  # digits of a figure


@dataclass(frozen=True)
class Task:
    """What to measure, and where the files are."""

    cores: int
    folder: str
    data: tuple[str, ...]
    batches: tuple[int, ...]
    rounds: int
    seconds: float
    peers: bool
    seed: int


@dataclass
class Point:
    """One data set and batch size, with all that is measured there."""

    setting: Setting
    epoch: int  # batches
    contestants: dict[str, Contestant] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    told: dict[str, Row] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)  # µs a batch, warm

    @property
    def what(self) -> str:
        """In words."""
        cores = "1 core" if self.setting.cores == 1 else f"{self.setting.cores} cores"
        return f"{cores}, {self.setting.data.name}, B={self.setting.batch}"


def entries_for(data: str) -> dict[str, Entry]:
    """The systems of this process that are measured on a data set."""
    return {name: entry for name, entry in pipelines.PIPELINES.items() if not entry.only or data in entry.only}


def peers_for(data: str, cores: int, wanted: bool) -> dict[str, PeerPipeline]:
    """Those of others."""
    found = remote_pipelines.PIPELINES if wanted else {}
    return {name: peer for name, peer in found.items() if (not peer.only or data in peer.only) and cores >= peer.cores}


def measure(task: Task, emit: Emit) -> None:
    """Every point: rows and progress."""
    folder = Path(task.folder)
    with RemotePipelines(folder, task.cores) as remotes:
        for name in task.data:
            data = pipeline_data.load(folder, name)
            for batch in task.batches:
                measure_point(task, Setting(data, batch, task.seed, task.cores), remotes, emit)
                gc.collect()


def measure_point(task: Task, setting: Setting, remotes: RemotePipelines, emit: Emit) -> None:
    """One point: the warm rounds, then the cold ones."""
    point = Point(setting, epoch_of(setting.data, setting.batch))
    seconds = task.seconds / task.rounds
    peers = peers_for(setting.data.name, task.cores, task.peers)
    count, done = len(entries_for(setting.data.name)) + len(peers), 0

    def advance() -> None:
        nonlocal done
        done += 1
        emit({"what": point.what, "part": PREPARING * done / count})

    emit({"what": point.what, "part": 0.0})
    prepare_own(point, seconds, advance)
    prepare_peers(point, seconds, remotes, peers, advance)
    generator = np.random.default_rng([task.seed, setting.batch, task.cores])
    read = files_read(point, peers)
    files.warm(path for paths in read.values() for path in paths)
    cold: dict[str, Contestant] = {name: Cold(taking(point, name), paths) for name, paths in read.items()}
    rounds = min(task.rounds, COLD_ROUNDS)
    rows = run_warm(point, task.rounds, generator, progress_from(emit, point, task.rounds, PREPARING, WARM))
    rows += run_cold(point, cold, rounds, generator, progress_from(emit, point, rounds, WARM, 1.0))
    machine = measuring.machine(None)
    for row in rows:
        emit({"row": {**row, "machine": machine}})
    emit({"what": point.what, "part": 1.0})


def progress_from(emit: Emit, point: Point, rounds: int, start: float, end: float) -> Callable[[], None]:
    """What to call after each round."""
    numbers = iter(range(1, rounds + 1))

    def advance() -> None:
        emit({"what": point.what, "part": start + (end - start) * next(numbers) / rounds})

    return advance


# --- preparing --------------------------------------------------------------------------------


def prepare_own(point: Point, seconds: float, advance: Callable[[], None]) -> None:
    """Build, check and warm what lives in this process. Whatever fails is skipped by name, of whomever it is."""
    for name, entry in entries_for(point.setting.data.name).items():
        try:
            local = Local(entry.build(point.setting), point.setting, eager=entry.eager)
            local.check()
            point.steps[name] = steps_within(local, seconds, point.epoch)
            point.contestants[name] = local
        except Lost as lost:
            point.skipped[name] = str(lost)
        except Exception as error:
            point.skipped[name] = reason(error)
        advance()


def prepare_peers(
    point: Point,
    seconds: float,
    remotes: RemotePipelines,
    peers: Mapping[str, PeerPipeline],
    advance: Callable[[], None],
) -> None:
    """The same for what lives elsewhere; the workers check a batch of their own."""
    setting = point.setting
    for name in peers:
        try:
            opened = remotes.open(name, setting.data.name, setting.batch, setting.seed)
            point.steps[name] = steps_within(opened, seconds, point.epoch)
            point.contestants[name], point.told[name] = opened, opened.told
        except Lost as lost:
            point.skipped[name] = str(lost)
        advance()


def files_read(point: Point, peers: Mapping[str, PeerPipeline]) -> dict[str, list[Path]]:
    """The files of those that are measured cold, by system; none where no files can be put out of the page cache."""
    data, found = point.setting.data, dict[str, list[Path]]()
    if data.name != COLD_DATA or not files.can_drop():
        return {}
    for name, entry in entries_for(data.name).items():
        if entry.cold is not None:
            found[name] = entry.cold(data)
    found |= {name: [files.array_record_path(data)] for name, peer in peers.items() if peer.on_disk}
    return {name: paths for name, paths in found.items() if name in point.contestants}


def taking(point: Point, name: str) -> Taking:
    """A contestant that can do an epoch."""
    contestant = point.contestants[name]
    assert hasattr(contestant, "epoch")
    return contestant  # type: ignore[return-value]  # all that were prepared are such


# --- measuring --------------------------------------------------------------------------------


def run_warm(point: Point, rounds: int, generator: np.random.Generator, after_round: Callable[[], None]) -> list[Row]:
    """The rounds, and a row for each system."""
    times, lost = measuring.take_rounds(
        point.contestants,
        point.steps,
        rounds=rounds,
        generator=generator,
        after_round=after_round,
        lead_in=False,
    )
    point.took = {name: float(np.median(each.draw)) for name, each in times.items()}
    skipped = point.skipped | {name: f"lost {why}" for name, why in lost.items()}
    return [
        make_row(point, name, kind_of(name), times, skipped, point.told.get(name, {}))
        for name in sorted({*times, *skipped}, key=order)
    ]


def run_cold(
    point: Point,
    contestants: dict[str, Contestant],
    rounds: int,
    generator: np.random.Generator,
    after_round: Callable[[], None],
) -> list[Row]:
    """The cold rounds; Keras's arrays have their turns among them, for the ratio."""
    if not contestants:
        return []
    beside = {KERAS: point.contestants[KERAS]} if KERAS in point.contestants else {}
    steps = {name: point.steps[name] for name in beside} | {name: cold_steps(point, name) for name in contestants}
    times, lost = measuring.take_rounds(
        contestants | beside, steps, rounds=rounds, generator=generator, after_round=after_round, lead_in=False
    )
    skipped = {name: f"lost {why}" for name, why in lost.items()}
    rows = []
    for name in sorted(contestants, key=order):
        told = told_cold(point, name, contestants[name]) if name in times else {}
        rows.append(make_row(point, name, "cold", times, skipped, {**point.told.get(name, {}), **told}))
    return rows


def cold_steps(point: Point, name: str) -> int:
    """Batches of a cold turn: an epoch, or what a slow system does in some seconds."""
    took = point.took.get(name, 0.0) * 1e-6
    return point.epoch if took * point.epoch <= COLD_SECONDS else max(1, int(COLD_SECONDS / took))


def told_cold(point: Point, name: str, contestant: Contestant) -> Row:
    """What a cold round read, and what share of the pages was in memory after all."""
    told: Row = {"stayed_in_cache": round(contestant.stayed, 4) if isinstance(contestant, Cold) else None}
    local, data, steps = point.contestants[name], point.setting.data, cold_steps(point, name)
    distinct = distinct_in_epoch(local, steps) if isinstance(local, Local) else None
    told["distinct_samples"] = distinct if distinct is not None else min(len(data), steps * point.setting.batch)
    return told


# --- rows -------------------------------------------------------------------------------------


def order(name: str) -> int:
    """The place of a system among the rows."""
    return [*pipelines.PIPELINES, *remote_pipelines.PIPELINES, name].index(name)


def kind_of(name: str) -> str:
    """``eager`` or ``throughput``."""
    entry = pipelines.PIPELINES.get(name)
    return "eager" if entry is not None and entry.eager else "throughput"


def group_of(name: str) -> str:
    """Whose it is."""
    entry = pipelines.PIPELINES.get(name)
    return OTHERS if entry is None else entry.group


def make_row(
    point: Point, name: str, kind: str, times: Mapping[str, Times], skipped: Mapping[str, str], told: Row
) -> Row:
    """One line of the output, the machine left out."""
    setting = point.setting
    where: Row = {
        "system": name,
        "kind": kind,
        "group": group_of(name),
        "data": setting.data.name,
        "num_samples": len(setting.data),
        "batch_size": setting.batch,
        "cores": setting.cores,
    }
    if name in skipped:
        return {**where, "skipped": skipped[name]}
    took, keras = times[name].draw, times.get(KERAS)
    rates = setting.batch / took * 1e3
    median, lower, upper = measuring.quartiles(rates)
    return {
        **where,
        "k_samples_s": round(median, EXACT),
        "k_samples_s_quartiles": [round(lower, EXACT), round(upper, EXACT)],
        "k_samples_s_rounds": rates.round(EXACT).tolist(),
        "over_keras": None if keras is None else float(np.median(keras.draw / took).round(6)),
        "repeats": took.size,
        "steps_per_repeat": times[name].steps,
        "samples_per_repeat": times[name].steps * setting.batch,
        **told,
    }


def main(arguments: Sequence[str]) -> int:
    """Measure what the argument asks for."""
    (asked,) = arguments
    fields: dict[str, Any] = json.loads(asked)
    task = Task(**{**fields, "data": tuple(fields["data"]), "batches": tuple(fields["batches"])})
    emit = emitter()
    warnings.simplefilter("ignore")  # nobody trains here, which this project says once
    if task.cores == 1:
        systems.tensorflow_on_one_thread()
    measure(task, emit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
