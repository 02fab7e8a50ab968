"""Which layout of a priority store keeps up with N samples and W trainers, from the unit costs that were measured.

    units = Units.of(rows)                                       # what a call, a draw and a sample cost, from the rows
    rate = simulated("shards", 10**11, 10_000, units, Assumptions())

Three layouts: ``one``, a sampler in the trainer's process; ``local``, one in each trainer's, of its block
(:mod:`sampler.shard`), without a message; ``shards``, a store of S actors that all trainers share
(:class:`sampler.ShardedSampler`). Trainers train one model in step with each other, as gradients are averaged.

Measured are the unit costs. Computed from them are the calls of a step, the memory and the CPU time a shard is busy.
Simulated, with seeded random numbers, is the waiting line of a shard: in each step all trainers ask at about the same
time, calls are served one after the other, and a batch that comes later than the trainer has batches ahead is waited
for. Assumed, and named in :class:`Assumptions`, is what one machine cannot tell: how often processes die, the network,
the size of the machines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from benchmarks.drawing import Row

Layout = Literal["one", "local", "shards"]
LAYOUTS: tuple[Layout, ...] = ("one", "local", "shards")

MOST_SHARDS = 1 << 15
LOOKED_AT = 8  # shards whose waiting lines are simulated
GROUPS = 12  # times that every trainer asks for draws in a simulation
MOST_CALLS = 400_000  # in the line of one shard
DAY, GIGABYTE = 86_400.0, 1e9

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Assumptions:
    """What the simulation takes for granted."""

    step_ms: float = 100.0
    """A step of training by itself."""
    batch: int = 256
    """B of each trainer."""
    prefetch: int = 16
    """Batches drawn ahead from a store in shards."""
    machine_gb: float = 256.0
    """Memory of a machine for priorities, in 10^9 bytes."""
    processes: int = 8
    """Trainers on a machine."""
    shards: int = 8
    """Shards on a machine, of those the trainers are on and of more where the memory there does not do."""
    network_us: float = 100.0
    """What the network adds to a call and its answer."""
    jitter_ms: float = 1.0
    """How far apart the trainers ask in a step, on average."""
    mtbf_days: float = 365.0
    """Mean time between failures of a process."""
    restart_s: float = 60.0
    """To start a training again after a trainer has died, without what is loaded for the sampler."""
    model_s: float = 5.0
    """To save the model, while the training stands still."""
    node_s: float = 17.0
    """Until Ray notices that a node is lost, with its shards."""

    def __post_init__(self) -> None:
        for name, least in (("step_ms", 0.0), ("machine_gb", 0.0), ("mtbf_days", 0.0)):
            if not getattr(self, name) > least:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("network_us", "jitter_ms", "restart_s", "model_s", "node_s", "prefetch"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if min(self.batch, self.processes, self.shards) < 1:
            given = f"{self.batch}, {self.processes} and {self.shards}"
            raise ValueError(f"batch, processes and shards must be at least 1, got {given}")


# --- unit costs -------------------------------------------------------------------------------


class Line(NamedTuple):
    """What grows by a constant part and one a unit."""

    constant: float
    each: float

    def at(self, units: float) -> float:
        """Of so many units."""
        return self.constant + self.each * units


class Verb(NamedTuple):
    """µs of CPU of a draw, or of an update: of a batch, of each call, of each sample in it."""

    batch: float
    call: float
    sample: float

    def of(self, calls: float, samples: float, batches: float = 1.0) -> float:
        """Of so many."""
        return self.batch * batches + self.call * calls + self.sample * samples


class Units(NamedTuple):
    """All that was measured, a number each.

    Attributes:
        client_draw, client_update: of the trainer's process; µs of CPU.
        shard_draw, shard_update: of all shards together; µs of CPU.
        trip: µs of a round of calls that do nothing, by S.
        memory: resident bytes of a shard, by its samples.
        restart: seconds from the death of a shard to the next draw of it, by its samples.
        one_memory: bytes of a sampler in the process, by its samples.
        one_write, one_load: seconds of its snapshot, by its samples.
        sizes, step: N measured of a sampler in the process, and µs of a draw and an update there.
    """

    client_draw: Verb
    client_update: Verb
    shard_draw: Verb
    shard_update: Verb
    trip: Line
    memory: Line
    restart: Line
    one_memory: Line
    one_write: Line
    one_load: Line
    sizes: tuple[float, ...]
    step: tuple[float, ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Units:
        """Fitted to the rows, by least squares of relative errors without negative costs."""
        stores, shards = of_kind(rows, "store"), of_kind(rows, "shard")
        ones = sorted(of_kind(rows, "one"), key=lambda row: row["num_samples"])
        if not stores or not shards or not ones or any(row["draw_shards_cpu_us"] is None for row in stores):
            raise ValueError(
                "the simulation needs rows of the kinds store, shard and one, with CPU times; measure them on Linux"
            )
        single = [(row["shard_samples"], float(np.mean(row["resident_bytes"]))) for row in shards]
        killed = [(row["shard_samples"], float(np.median(row["restart_s"]))) for row in shards]
        return cls(
            client_draw=verb(stores, "draw_client_cpu_us", "draw_calls", client=True),
            client_update=verb(stores, "update_client_cpu_us", "update_calls", client=True),
            shard_draw=verb(stores, "draw_shards_cpu_us", "draw_calls", client=False),
            shard_update=verb(stores, "update_shards_cpu_us", "update_calls", client=False),
            trip=line([(row["shards"], row["round_trip_us"]) for row in shards]),
            memory=line(single),
            restart=line(killed),
            one_memory=line([(row["num_samples"], row["resident_bytes"]) for row in ones], floor=0.1),
            one_write=line([(row["num_samples"], row["snapshot_s"]) for row in ones]),
            one_load=line([(row["num_samples"], row["load_s"]) for row in ones]),
            sizes=tuple(float(row["num_samples"]) for row in ones),
            step=tuple(row["draw_us"] + row["update_us"] for row in ones),
        )

    def one_step_us(self, num_samples: float) -> float:
        """A draw and an update in the process: between and beyond the measured N by a line of log N; no less."""
        if len(self.sizes) == 1:
            return self.step[0]
        across = np.log10(self.sizes)
        where = math.log10(max(num_samples, 1.0))
        if where <= across[-1]:
            return float(np.interp(where, across, self.step))
        slope = (self.step[-1] - self.step[-2]) / (across[-1] - across[-2])
        return self.step[-1] + max(0.0, float(slope)) * (where - float(across[-1]))


def of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    """The rows of one kind."""
    return [row for row in rows if row["kind"] == kind]


def verb(stores: Sequence[Row], cost: str, calls: str, *, client: bool) -> Verb:
    """What a batch (of a client), a call and a sample cost."""
    columns = np.array([[float(client), row[calls], row["batch_size"]] for row in stores])
    up = np.array([row[cost] for row in stores])
    return Verb(*nonnegative(columns, up))


def line(points: Sequence[tuple[float, float]], *, floor: float = 1e-3) -> Line:
    """The constant part and one a unit, neither negative."""
    across = np.array([[1.0, first] for first, _ in points])
    return Line(*nonnegative(across, np.array([second for _, second in points], np.float64), floor=floor))


def nonnegative(columns: Floats, up: Floats, *, floor: float = 1e-3) -> list[float]:
    """Least squares of the relative errors, without negative coefficients.

    No figure counts for more than one of ``floor`` times the greatest: what is small is more noise than figure.
    """
    scale = np.maximum(np.abs(up), max(floor * float(np.abs(up).max()), 1e-12))
    size = np.maximum(np.abs(columns).max(axis=0), 1e-12)  # of a column, so that all are of one size
    solution, _ = nnls(columns / size / scale[:, None], up / scale)
    return [float(value) for value in solution / size]


# --- the calls of a step ----------------------------------------------------------------------


class Traffic(NamedTuple):
    """What one trainer sends to a store in shards.

    Attributes:
        batches: that it asks for at a time, every so many steps.
        asked: shards that are asked for these.
        told: shards that an update of one batch goes to.
    """

    batches: int
    asked: float
    told: float

    @property
    def calls(self) -> float:
        """A step."""
        return self.asked / self.batches + self.told


def traffic(shards: int, batch: int, prefetch: int) -> Traffic:
    """How many shards B draws are in, and as many of several batches, where all shards are alike.

    Systematic draws: B/S of each, rounded up or down.
    """
    batches = max(1, -(-prefetch // 2))
    within = min(1.0, batch / shards)
    return Traffic(batches, shards * (1.0 - (1.0 - within) ** batches), shards * within)


class Costs(NamedTuple):
    """µs of CPU of one trainer's step: of its own process, and of all shards together."""

    client: float
    shards: float


def costs(units: Units, sent: Traffic, batch: int) -> Costs:
    """Of a step."""
    asked = sent.asked / sent.batches
    return Costs(
        units.client_draw.of(asked, batch) + units.client_update.of(sent.told, batch),
        units.shard_draw.of(asked, batch, 0.0) + units.shard_update.of(sent.told, batch, 0.0),
    )


# --- the waiting line of a shard --------------------------------------------------------------


class Queue(NamedTuple):
    """Of a store in shards that W trainers use.

    Attributes:
        period_s: of a step, what the store adds included.
        busy: the part of it that a shard computes.
        waited_s: that a step waits for draws, in the end.
    """

    period_s: float
    busy: float
    waited_s: float


def queue(
    units: Units,
    *,
    shards: int,
    workers: int,
    batch: int,
    prefetch: int,
    step_s: float,
    network_s: float = 0.0,
    jitter_s: float = 0.0,
    cores: int | None = None,
    seed: int = 0,
) -> Queue:
    """A step of W trainers on S shards. ``cores`` are those that all share; None: each process has one of its own.

    Where the shards, or the cores, have more to do in a step than it lasts, it lasts as long as that. Else a draw is
    waited for where it comes later than the batches that are ahead are used up.
    """
    sent = traffic(shards, batch, prefetch)
    cost = costs(units, sent, batch)
    work = workers * cost.shards * 1e-6 / shards  # of a shard, a step
    alone = step_s + cost.client * 1e-6
    all_cpu = workers * (cost.client + cost.shards) * 1e-6
    period = max(alone, work, all_cpu / cores if cores else 0.0)
    answer = units.trip.at(shards) * 1e-6 + network_s
    if work >= 0.98 * period:
        return Queue(period, min(1.0, work / period), period - alone)
    slow = max(1.0, min(shards, sent.asked) / cores) if cores else 1.0  # shards that share cores
    draw = units.shard_draw.of(1.0, batch * sent.batches / max(sent.asked, 1e-9), 0.0) * 1e-6 * slow
    update = units.shard_update.of(1.0, batch / max(sent.told, 1e-9), 0.0) * 1e-6 * slow
    rng = np.random.default_rng([seed, shards, workers])
    waits = np.zeros(GROUPS)
    for _ in range(min(shards, LOOKED_AT)):
        found = burst_waits(sent, shards, workers, draw, update, period, jitter_s, rng)
        waits = np.maximum(waits[: found.size], found)
    ahead = 0 if prefetch == 0 else (prefetch - sent.batches) * period
    late = np.maximum(0.0, waits + answer - ahead).mean() / sent.batches if waits.size else 0.0
    return Queue(period + float(late), work / (period + float(late)), float(late) + period - alone)


def burst_waits(
    sent: Traffic,
    shards: int,
    workers: int,
    draw: float,
    update: float,
    period: float,
    jitter: float,
    rng: np.random.Generator,
) -> Floats:
    """Seconds from asking to the answer, of the last trainer each time they ask for draws: (m,) float64, m ≤ GROUPS.

    In each step every trainer sends its update, and in one of ``sent.batches`` it asks for draws before; a shard
    serves calls in the order of their arrival.
    """
    asks, tells = sent.asked / shards, sent.told / shards  # the chance that this shard is called
    each = workers * (asks + tells * sent.batches)
    groups = int(np.clip(MOST_CALLS / max(each, 1.0), 2, GROUPS))
    arrival, service, group = [], [], []
    for number in range(groups):
        for step in range(sent.batches):
            start = (number * sent.batches + step) * period
            if step == 0:
                come = rng.exponential(jitter, rng.binomial(workers, asks)) if jitter else np.zeros(workers)
                arrival.append(start + come)
                service.append(np.full(come.size, draw))
                group.append(np.full(come.size, number))
            come = rng.exponential(jitter, rng.binomial(workers, tells)) if jitter else np.zeros(workers)
            arrival.append(start + come)
            service.append(np.full(come.size, update))
            group.append(np.full(come.size, -1))
    took, of = waiting_line(np.concatenate(arrival), np.concatenate(service)), np.concatenate(group)
    last = np.zeros(groups)
    np.maximum.at(last, of[of >= 0], took[of >= 0])
    return last


def waiting_line(arrival: Floats, service: Floats) -> Floats:
    """Seconds from the arrival to the end of the service of each call, one at a time in the order of arrival.

    A call ends at the latest of all a_j + s_j + ... + s_i over j ≤ i, which is a running maximum.
    """
    order = np.argsort(arrival, kind="stable")
    done = np.cumsum(service[order])
    ends = done + np.maximum.accumulate(arrival[order] - (done - service[order]))
    took = np.empty(arrival.size)
    took[order] = ends - arrival[order]
    return took


# --- failures ---------------------------------------------------------------------------------


def useful(failures_a_second: float, save_s: float, restart_s: float) -> tuple[float, float]:
    """The part of the time that a training gets on, with snapshots at the best interval; and that interval, seconds.

    With failures at random, a piece of τ seconds and its snapshot of δ are done after (1/r + R)(e^{r(τ+δ)} − 1) on
    average, R the time of a restart, for what is broken off is done again from the start (Daly, 2006).
    """
    interval = np.geomspace(1.0, 10 * DAY, 400)
    with np.errstate(over="ignore"):
        growth = np.expm1(failures_a_second * (interval + save_s))
        part = interval / ((1.0 / failures_a_second + restart_s) * growth)
    best = int(np.argmax(part))
    return float(part[best]), float(interval[best])


# --- layouts ----------------------------------------------------------------------------------


def simulated(layout: Layout, num_samples: int, workers: int, units: Units, assume: Assumptions, seed: int = 0) -> Row:
    """One layout at one N and W; of a store in shards the fastest number of them."""
    if layout == "one" and workers > 1:
        return {**named(layout, num_samples, workers), "fits": False, "why": "one process cannot train as several"}
    if layout != "shards":
        return in_process(layout, num_samples, workers, units, assume)
    powers = [2**power for power in range(int(math.log2(min(MOST_SHARDS, num_samples))) + 1)]
    fitting = [shards for shards in powers if placed(shards, num_samples, workers, units, assume)[2]]
    tried = [in_shards(shards, num_samples, workers, units, assume, seed) for shards in fitting or powers[-1:]]
    best = max(row["part"] for row in tried)
    return next(row for row in tried if row["part"] >= 0.995 * best)  # the fewest that are as good


def placed(shards: int, num_samples: int, workers: int, units: Units, assume: Assumptions) -> tuple[float, int, bool]:
    """Bytes of a shard, machines, and whether the shards have room on these."""
    memory = units.memory.at(num_samples / shards)
    machines = max(-(-workers // assume.processes), math.ceil(shards * memory / (assume.machine_gb * GIGABYTE)))
    return memory, machines, memory <= assume.machine_gb * GIGABYTE and shards <= assume.shards * machines


def named(layout: Layout, num_samples: int, workers: int) -> Row:
    """What a row is about."""
    return {"kind": "simulated", "layout": layout, "num_samples": num_samples, "workers": workers}


def in_process(layout: Layout, num_samples: int, workers: int, units: Units, assume: Assumptions) -> Row:
    """A sampler in each trainer."""
    own = num_samples / workers
    together = min(workers, assume.processes)  # on a machine, whose disk they share
    memory = units.one_memory.at(own)
    lost = units.one_step_us(own) * 1e-6
    step = assume.step_ms * 1e-3
    failures = workers / (assume.mtbf_days * DAY)
    load, write = units.one_load.at(own) * together, units.one_write.at(own) * together
    part, interval = useful(failures, assume.model_s + write, assume.restart_s + load)
    return {
        **named(layout, num_samples, workers),
        "shards": workers,
        "fits": memory * together <= assume.machine_gb * GIGABYTE,
        "gb_a_shard": memory / GIGABYTE,
        "machines": -(-workers // assume.processes),
        "calls_a_step": 0.0,
        "calls_a_shard_second": 0.0,
        "busy": 0.0,
        "lost_ms": 1e3 * lost,
        "waited_ms": 0.0,
        "useful": part,
        "interval_s": interval,
        "shard_down_s": assume.restart_s + load,
        "part": part * step / (step + lost),
    }


def in_shards(shards: int, num_samples: int, workers: int, units: Units, assume: Assumptions, seed: int) -> Row:
    """A store of so many shards that all trainers share.

    A shard that dies, or its node, is waited for, but for what is ahead; trainers die as they do in every layout.
    """
    own = num_samples / shards
    memory, machines, fits = placed(shards, num_samples, workers, units, assume)
    step = assume.step_ms * 1e-3
    line = queue(
        units,
        shards=shards,
        workers=workers,
        batch=assume.batch,
        prefetch=assume.prefetch,
        step_s=step,
        network_s=assume.network_us * 1e-6,
        jitter_s=assume.jitter_ms * 1e-3,
        seed=seed,
    )
    period = assume.mtbf_days * DAY
    part, interval = useful(workers / period, assume.model_s, assume.restart_s)
    ahead = assume.prefetch / 2 * line.period_s
    down = assume.node_s + units.restart.at(own)
    stands = shards / period * max(0.0, down - ahead)
    sent = traffic(shards, assume.batch, assume.prefetch)
    return {
        **named("shards", num_samples, workers),
        "shards": shards,
        "fits": fits,
        "gb_a_shard": memory / GIGABYTE,
        "machines": machines,
        "calls_a_step": sent.calls * workers,
        "calls_a_shard_second": sent.calls * workers / shards / line.period_s,
        "busy": line.busy,
        "lost_ms": 1e3 * (line.period_s - step),
        "waited_ms": 1e3 * line.waited_s,
        "useful": part / (1.0 + stands),
        "interval_s": interval,
        "shard_down_s": down,
        "part": part / (1.0 + stands) * step / line.period_s,
    }


def simulation(
    units: Units, assume: Assumptions, sizes: Sequence[int], workers: Sequence[int], seed: int = 0
) -> list[Row]:
    """All layouts at all N and W."""
    return [
        simulated(layout, size, count, units, assume, seed) for size in sizes for count in workers for layout in LAYOUTS
    ]


def winner(rows: Sequence[Row]) -> str | None:
    """The layout that trains the most in a second of those that fit, of rows at one N and W."""
    fitting = [row for row in rows if row["fits"]]
    return max(fitting, key=lambda row: row["part"])["layout"] if fitting else None


# --- against what was measured ----------------------------------------------------------------


def checks(rows: Sequence[Row], cores: int) -> list[Row]:
    """What the simulation says of what was measured but not fitted to: a row each, both side by side.

    The time of flowing draws and updates, of which only CPU times were fitted; steps with a pause; several clients.
    """
    units, found = Units.of(rows), []

    def add(row: Row, what: str, measured: float, said: float) -> None:
        about = {name: row[name] for name in ("shards", "num_samples", "batch_size", "prefetch")}
        compared = {"what": what, "measured_ms": measured, "simulated_ms": said, "ratio": said / measured}
        found.append({"kind": "check", **about, **compared})

    for row in of_kind(rows, "store"):
        if row["prefetch"]:
            said = predicted(units, row, cores, workers=1, step_s=0.0)
            add(row, "flow", (row["draw_us"] + row["update_us"]) / 1e3, 1e3 * said.period_s)
    for row in of_kind(rows, "step"):
        step = row["step_ms"] * 1e-3
        said = predicted(units, row, cores, workers=1, step_s=step)
        add(row, f"lost in a step of {row['step_ms']:g} ms", row["lost_ms"], 1e3 * (said.period_s - step))
    for row in of_kind(rows, "clients"):
        count = row["clients"]
        said = predicted(units, row, cores, workers=count, step_s=0.0)
        add(row, f"clients {count}", 1e3 * count / row["steps_per_second"], 1e3 * said.period_s)
    return found


def predicted(units: Units, row: Row, cores: int, *, workers: int, step_s: float) -> Queue:
    """Of the store of a row."""
    return queue(
        units,
        shards=row["shards"],
        workers=workers,
        batch=row["batch_size"],
        prefetch=row["prefetch"],
        step_s=step_s,
        cores=cores,
    )
