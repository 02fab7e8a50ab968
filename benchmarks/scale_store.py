"""What a store in shards costs on this machine, beside one in this process: the measured part of ``benchmarks.scale``.

    one = filled(ImportanceSampler(n, first_pass=False, seed=0), shards=1, seed=0)
    rows = list(store_rows(Plan(num_samples=n, shards=4), one, folder))

A store is built, filled with lognormal losses by updates, looked at, used, killed in part and removed, and only then
the next one built. The sampler of this process has its turns between those of the store, so that a slow minute slows
both. CPU times are those of the processes (``/proc``), which others that compute meanwhile change little; they are None
where there is no ``/proc``.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import measuring
from benchmarks.drawing import Row
from sampler import ImportanceSampler, ShardedSampler
from sampler.base import Sampler
from sampler.ledger import Draw
from sampler.shard import block_of
from sampler.snapshots import newest_snapshot, write_snapshot

CHUNK = 1 << 18  # samples in an update while a store is filled
SIGMA = 1.0  # of the lognormal losses
NAME, NAMESPACE = "scale", "scale"  # of the store, and in Ray
NEVER = 1e9  # seconds between snapshots: they are written when the benchmark asks for them
PINGS = 100  # rounds of calls that do nothing
SNAPSHOTS = 2

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured of one store."""

    num_samples: int
    shards: int = 1
    batches: tuple[int, ...] = (256, 4096)
    prefetches: tuple[int, ...] = (0, 4, 16)
    step_ms: tuple[float, ...] = (5.0, 20.0)
    clients: tuple[int, ...] = (1, 2, 4)
    rounds: int = 5
    seconds: float = 0.25  # of a turn
    kills: int = 2
    seed: int = 0


def open_store(num_samples: int, shards: int, folder: Path | None, *, prefetch: int = 4, seed: int = 0) -> Any:
    """Make the store, or join it: the same options everywhere."""
    return ShardedSampler(
        num_samples,
        shards=shards,
        name=NAME,
        namespace=NAMESPACE,
        snapshots=folder,
        snapshot_every=NEVER,
        prefetch=prefetch,
        first_pass=False,
        max_restarts=100,
        seed=seed,
    )


def filled(sampler: Any, *, shards: int, seed: int) -> Any:
    """The sampler, once it knows a lognormal loss of every sample; a piece of every shard at a time."""
    generator = np.random.default_rng(seed)
    blocks = [block_of(len(sampler), shard, shards) for shard in range(shards)]
    piece = max(1, CHUNK // shards)
    for done in range(0, len(blocks[-1]), piece):  # no block is larger than the last
        index = np.concatenate([np.arange(b.start + done, min(b.stop, b.start + done + piece)) for b in blocks])
        sampler.update(index, generator.lognormal(sigma=SIGMA, size=index.size))
    if isinstance(sampler, ShardedSampler):
        sampler.flush()
    return sampler


# --- what processes take ----------------------------------------------------------------------


def cpu_us(pid: int) -> float | None:
    """CPU time of all threads of a process, in µs; None where the system does not tell."""
    try:
        tasks = [path / "schedstat" for path in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int(path.read_text().split()[0]) for path in tasks) / 1e3
    except (OSError, IndexError, ValueError):
        return None


def resident(pid: int) -> int | None:
    """Resident bytes of a process, without what it shares with Ray's object store; None if the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        told = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        return 1024 * (int(told["RssAnon"][0]) + int(told["RssFile"][0]))
    except (OSError, KeyError, IndexError, ValueError):
        return None


def timed(function: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# --- a sampler as fast as it goes -------------------------------------------------------------


@dataclass
class Usage:
    """What one of the two verbs took, summed over turns: batches, calls, and µs of CPU of client and shards."""

    batches: int = 0
    calls: int = 0
    client: float = 0.0
    shards: float = 0.0

    def columns(self, verb: str, known: bool) -> Row:
        """A batch, on average."""
        each = max(1, self.batches)
        return {
            f"{verb}_calls": round(self.calls / each, 4),
            f"{verb}_client_cpu_us": round(self.client / each, 3),
            f"{verb}_shards_cpu_us": round(self.shards / each, 3) if known else None,
        }


@dataclass
class Flow:
    """A contestant: all draws of a turn, then all its updates and the wait until they are learnt."""

    sampler: Any
    batch: int
    generator: np.random.Generator
    prefetch: int | None = None  # of a store in shards
    processes: Sequence[int] = ()  # of the shards
    usage: dict[str, Usage] = field(default_factory=lambda: {"draw": Usage(), "update": Usage()})

    def steps(self, seconds: float) -> int:
        """Warm up; about ``seconds`` of steps, or so many that what is ahead at the start is a small part."""
        least = 8 * max(1, self.prefetch or 0)
        self.turn(measuring.WARMING)
        each = sum(self.turn(least)) * 1e-6
        self.usage = {"draw": Usage(), "update": Usage()}
        return int(np.clip(seconds / each, least, measuring.MOST_STEPS))

    def turn(self, steps: int) -> tuple[float, float]:
        """Do ``steps`` steps; the mean µs of a draw and of an update."""
        losses = self.generator.lognormal(sigma=SIGMA, size=(steps, self.batch))
        if self.prefetch is not None:
            primed(self.sampler, self.batch, self.prefetch)
        drawn: list[Draw] = []

        def draw() -> None:
            drawn.extend(self.sampler.draw(self.batch) for _ in range(steps))

        def update() -> None:
            for each, row in zip(drawn, losses, strict=True):
                self.sampler.update(each.index, row, step=each.step)
            if self.prefetch is not None:
                self.sampler.flush()

        return self._timed("draw", draw, steps), self._timed("update", update, steps)

    def _timed(self, verb: str, function: Callable[[], None], steps: int) -> float:
        """Time it, and count what it takes until the shards have done all they were asked for."""
        calls, client, shards = self._counters()
        seconds = timed(function)
        if self.prefetch is not None:
            self.sampler.processes()  # behind all other calls
        after = self._counters()
        used = self.usage[verb]
        used.batches += steps
        used.calls += after[0] - calls - len(self.processes)
        used.client += after[1] - client
        used.shards += after[2] - shards
        return seconds * 1e6 / steps

    def _counters(self) -> tuple[int, float, float]:
        calls = self.sampler.summary()["calls"] if self.prefetch is not None else 0
        return calls, time.process_time_ns() / 1e3, sum(cpu_us(pid) or 0.0 for pid in self.processes)


def primed(sampler: Any, batch: int, prefetch: int) -> None:
    """Nothing is ahead of what other prefetches asked for, and all that this one asks for is."""
    sampler.prefetch = 0
    while sampler.summary()["ahead"] or sampler._groups:
        sampler.draw(1)
    sampler.prefetch = prefetch
    sampler.draw(batch)
    sampler.processes()


def flow_rows(plan: Plan, store: Any, one: Sampler, processes: Sequence[int]) -> Iterator[Row]:
    """Draws and updates as fast as they go, for each batch size, the sampler of this process between them."""
    generator = np.random.default_rng([plan.seed, plan.shards])
    for batch in plan.batches:
        flows = {str(prefetch): Flow(store, batch, generator, prefetch, processes) for prefetch in plan.prefetches} | {
            "one": Flow(one, batch, generator)
        }
        steps = {name: flow.steps(plan.seconds) for name, flow in flows.items()}
        times, _ = measuring.take_rounds(flows, steps, rounds=plan.rounds, generator=generator, lead_in=False)
        for prefetch in plan.prefetches:
            yield {
                "kind": "store",
                "shards": plan.shards,
                "num_samples": plan.num_samples,
                "batch_size": batch,
                "prefetch": prefetch,
                **speeds(times[str(prefetch)], batch),
                **{f"one_{name}": value for name, value in speeds(times["one"], batch).items()},
                "step_over_one": float(np.median(times[str(prefetch)].step / times["one"].step).round(4)),
                **flows[str(prefetch)].usage["draw"].columns("draw", bool(processes)),
                **flows[str(prefetch)].usage["update"].columns("update", bool(processes)),
                "rounds": plan.rounds,
            }


def speeds(times: measuring.Times, batch: int) -> Row:
    """Median and quartiles of µs a batch, and draws and updates of samples a second."""
    row: Row = {}
    for verb, values in (("draw", times.draw), ("update", times.update)):
        median, lower, upper = measuring.quartiles(values)
        row |= {f"{verb}_us": round(median, 3), f"{verb}_quartiles_us": [round(lower, 3), round(upper, 3)]}
        row[f"{verb}s_per_second"] = round(batch * 1e6 / median)
    return row


# --- a training that waits --------------------------------------------------------------------


def step_rows(plan: Plan, store: Any) -> Iterator[Row]:
    """What a trainer loses a step that takes some ms by itself, which here sleeps meanwhile."""
    batch = plan.batches[0]
    for prefetch in plan.prefetches:
        for step_ms in plan.step_ms:
            steps = max(24, round(6.0 * plan.seconds / (step_ms * 1e-3)))
            primed(store, batch, prefetch)
            before, lost = store.summary(), np.empty((2, steps))
            losses = np.random.default_rng(plan.seed).lognormal(sigma=SIGMA, size=batch)
            for step in range(steps):
                start = time.perf_counter()
                drawn = store.draw(batch)
                lost[0, step] = time.perf_counter() - start
                time.sleep(step_ms * 1e-3)
                start = time.perf_counter()
                store.update(drawn.index, losses, step=drawn.step)
                lost[1, step] = time.perf_counter() - start
            after = store.summary()
            yield {
                "kind": "step",
                "shards": plan.shards,
                "num_samples": plan.num_samples,
                "batch_size": batch,
                "prefetch": prefetch,
                "step_ms": step_ms,
                "steps": steps,
                "lost_ms": round(1e3 * float(lost.sum(axis=0).mean()), 4),
                "lost_median_ms": round(1e3 * float(np.median(lost.sum(axis=0))), 4),
                "draw_ms": round(1e3 * float(lost[0].mean()), 4),
                "update_ms": round(1e3 * float(lost[1].mean()), 4),
                "waited_ms": round(1e3 * (after["waited"] - before["waited"]) / steps, 4),
                "calls": round((after["calls"] - before["calls"]) / steps, 4),
            }


# --- several clients --------------------------------------------------------------------------


class Client:
    """One more process that draws and learns; an actor of Ray."""

    def __init__(self, num_samples: int, shards: int, folder: Path | None, seed: int) -> None:
        logging.getLogger("sampler").setLevel(logging.ERROR)
        self.sampler = open_store(num_samples, shards, folder, prefetch=16, seed=seed)

    def ready(self, batch: int) -> bool:
        """Everything is imported, and a step has been made."""
        self.run(batch, 0.1)
        return True

    def run(self, batch: int, seconds: float) -> float:
        """Draw and update for so long; steps a second."""
        losses = np.random.default_rng(0).lognormal(sigma=SIGMA, size=batch)
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            drawn = self.sampler.draw(batch)
            self.sampler.update(drawn.index, losses, step=drawn.step)
            steps += 1
        self.sampler.flush()
        return steps / (time.perf_counter() - start)


def client_rows(plan: Plan, folder: Path) -> Iterator[Row]:
    """Steps a second of several clients at the same time, all together."""
    import ray

    actor = ray.remote(num_cpus=0)(Client)
    actors: list[Any] = []
    batch = plan.batches[0]
    try:
        for count in plan.clients:
            new = [actor.remote(plan.num_samples, plan.shards, folder, plan.seed) for _ in range(count - len(actors))]
            actors += new
            ray.get([each.ready.remote(batch) for each in new])
            steps = [
                sum(ray.get([each.run.remote(batch, 2.0 * plan.seconds) for each in actors[:count]]))
                for _ in range(plan.rounds)
            ]
            median, lower, upper = measuring.quartiles(np.array(steps))
            yield {
                "kind": "clients",
                "shards": plan.shards,
                "num_samples": plan.num_samples,
                "batch_size": batch,
                "prefetch": 16,
                "clients": count,
                "steps_per_second": round(median, 2),
                "quartiles": [round(lower, 2), round(upper, 2)],
            }
    finally:
        for each in actors:
            ray.kill(each)


# --- what a shard takes, and what its death does ----------------------------------------------


def restart_seconds(store: Any, batch: int, kills: int) -> list[float]:
    """Kill a shard, and time the next draw, which needs it; one after the other."""
    took = []
    count = max(batch, 8 * store.shards)  # so that every shard is asked
    primed(store, batch, 0)
    for number in range(kills):
        pid = store.processes()[number % store.shards]
        os.kill(pid, signal.SIGKILL)
        took.append(timed(lambda: [store.draw(count) for _ in range(2)]))
    return took


def pings(store: Any) -> npt.NDArray[np.float64]:
    """µs of a round of calls that do nothing, one a shard: (PINGS,) float64."""
    return np.array([timed(store.processes) for _ in range(PINGS)]) * 1e6


def store_rows(plan: Plan, one: Sampler, folder: Path, say: Say = lambda what: None) -> Iterator[Row]:
    """All rows of one store, which is removed at the end."""
    where = f"S={plan.shards} N={plan.num_samples:,}"
    say(f"{where}: built and filled")
    start = time.perf_counter()
    store = open_store(plan.num_samples, plan.shards, folder, seed=plan.seed)
    built = time.perf_counter() - start
    try:
        took = timed(lambda: filled(store, shards=plan.shards, seed=plan.seed))
        processes = store.processes()
        told = [resident(pid) for pid in processes]
        rtt = pings(store)
        if plan.batches:
            say(f"{where}: draws and updates")
            yield from flow_rows(plan, store, one, processes if cpu_us(processes[0]) is not None else ())
            say(f"{where}: steps that take time")
            yield from step_rows(plan, store)
            say(f"{where}: several clients")
            yield from client_rows(plan, folder)
        say(f"{where}: snapshots, and a shard killed; what Ray says of that belongs here")
        written = []
        for _ in range(SNAPSHOTS):
            store.update([0], [1.0])
            written.append(timed(store.snapshot))
        bytes_ = max((path.stat().st_size for path in folder.rglob("*.safetensors")), default=0)
        restarts = restart_seconds(store, 256, plan.kills)
        median, lower, upper = measuring.quartiles(rtt)
        yield {
            "kind": "shard",
            "shards": plan.shards,
            "num_samples": plan.num_samples,
            "shard_samples": len(block_of(plan.num_samples, plan.shards - 1, plan.shards)),
            "resident_bytes": told,
            "build_s": round(built, 3),
            "fill_s": round(took, 3),
            "snapshot_s": [round(each, 4) for each in written],
            "snapshot_bytes": bytes_,
            "restart_s": [round(each, 3) for each in restarts],
            "round_trip_us": round(median, 1),
            "round_trip_quartiles_us": [round(lower, 1), round(upper, 1)],
        }
    finally:
        store.remove()


def tidied(folder: Path) -> None:
    """Remove the snapshots of a store that is no more."""
    shutil.rmtree(folder, ignore_errors=True)


def one_row(num_samples: int, batch: int, folder: Path, plan: Plan) -> tuple[Row, Sampler]:
    """What one sampler in this process takes, and the sampler."""
    before = resident(os.getpid())
    one = filled(ImportanceSampler(num_samples, first_pass=False, seed=plan.seed), shards=1, seed=plan.seed)
    after = resident(os.getpid())
    flow = Flow(one, batch, np.random.default_rng(plan.seed))
    times, _ = measuring.take_rounds(
        {"one": flow},
        {"one": flow.steps(plan.seconds)},
        rounds=plan.rounds,
        generator=np.random.default_rng(plan.seed),
        lead_in=False,
    )
    written = timed(lambda: write_snapshot(folder, {"state": one.state_dict()}))

    def load() -> None:
        content = newest_snapshot(folder)
        if content is None:
            raise RuntimeError(f"the snapshot in {folder}, just written, is not there")
        one.load_state_dict(content["state"])

    loaded = timed(load)
    row = {
        "kind": "one",
        "num_samples": num_samples,
        "batch_size": batch,
        **speeds(times["one"], batch),
        "resident_bytes": None if before is None or after is None else after - before,
        "snapshot_s": round(written, 4),
        "load_s": round(loaded, 4),
    }
    return row, one
