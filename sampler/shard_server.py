"""What one shard of a shared store does, whoever calls it: draws, updates that may come twice or late, snapshots.

    server = ShardServer(Made(num_samples=50_000, shard=1, shards=4), folder="snapshots/importance-1")
    drawn = server.draw([Order(8, 0.4)], step=0)            # of 12,500..24,999 alone, counted from 0
    server.update(drawn.index, losses, steps)

:mod:`sampler.sharded` runs one in each of its actors. Nothing here knows of that: a server is an object with a lock.

A server that is made again, as Ray does it after its process has died, begins where its newest whole snapshot was::

    snapshots/importance-1/00000041.safetensors     whole: written under another name, then renamed
    snapshots/importance-1/00000042.safetensors     the newest

What it had learnt since is lost, and ``Status`` says how much that is. Its random numbers are new ones, so that the
draws it makes are not those it has made before.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sampler import checks
from sampler.base import Float64s, Int64s
from sampler.samplers.importance import ImportanceSampler
from sampler.shard import block_of
from sampler.shard_folder import taken
from sampler.shard_options import EVERY, Kept, Made, checksum, difference
from sampler.shard_stalest import Stalest
from sampler.snapshots import newest_snapshot, write_snapshot


class Order(NamedTuple):
    """What is asked of a shard for one batch.

    Attributes:
        count: ≥ 1, so many draws.
        uniform_fraction: λ of this shard, in (0, 1], for the draws by priority.
        passes: whether draws are of the first passes while these last.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count, on purpose
    uniform_fraction: float
    passes: bool = False


class Status(NamedTuple):
    """Where a shard stands; it comes with every answer.

    Attributes:
        life: a number of its own for every process the shard has run in.
        received: updates it knows of, those lost with an earlier process left out.
        loaded: how many of them it knew when this process began.
        total: the sum of its priorities.
        done: draws made of the first passes.
        seen: samples with a finite loss.
        late: losses passed over, because as new a one was known.
        step: how far the draws of all shards had come when it was last told.
        newest: the newest step that an update named, or -1.
        trouble: why the last snapshot could not be written, or nothing.
    """

    life: int
    received: int
    loaded: int
    total: float
    done: int
    seen: int
    late: int
    step: int
    newest: int
    trouble: str


class Welcome(NamedTuple):
    """For one who joins.

    Attributes:
        joined: how many have before, from 0, or from another number on where the shard has died before.
        made: what the shard is made with, ``Made.described()``.
        kept: how it is kept.
        begun: whether it has the known losses, or there are none.
        status: where it stands.
    """

    joined: int
    made: dict[str, Any]
    kept: Kept
    begun: bool
    status: Status


class Drawn(NamedTuple):
    """The draws of several orders, one after the other.

    Attributes:
        index: (m,) int64 in [0, n), within the block.
        probability: (m,) float64, the p within the block that they were drawn with.
        status: of the shard, afterwards.
    """

    index: Int64s  # type: ignore[assignment]  # hides tuple.index, on purpose
    probability: Float64s
    status: Status


class BlockSampler(ImportanceSampler):
    """The sampler of a block: it is told at each draw which λ to use, and whether the draw is of a pass."""

    def __init__(self, made: Made, losses: npt.NDArray[Any] | None = None) -> None:
        block = block_of(made.num_samples, made.shard, made.shards)
        seeds = np.random.SeedSequence([made.seed, made.shard])
        super().__init__(
            len(block),
            priority=made.priority,
            smoothing=made.smoothing,
            scheme=made.scheme,
            initial_priority=made.initial_priority,
            first_pass=made.first_pass and made.known is None,
            warmup=made.warmup,
            losses=losses,
            max_nonfinite_updates=2**31,  # who sends updates counts them
            seed=int(seeds.generate_state(1, np.uint64)[0]),
        )
        self._stalest = Stalest()

    @property
    def total(self) -> float:
        """The sum of the priorities; where all are zero, draws within the block are uniform."""
        return self._store.total

    @property
    def done(self) -> int:
        """How many draws of the first passes are made."""
        return self._passes * self._size + self._taken

    def take(self, order: Order) -> tuple[Int64s, Float64s]:
        """The draws of one order, (count,) each, and the p they were drawn with. O(B log n)."""
        with self._lock:
            index, probability = np.empty(order.count, np.int64), np.full(order.count, 1.0 / self._size)
            left = 0
            if order.passes:
                most = min(order.count, (1 + self.warmup) * self._size - self.done)
                while left < most:
                    left += self._go_on_with_pass(index[left:most])
            if left < order.count:
                if self._store.total <= 0.0:
                    self._say_uniform()
                index[left:], probability[left:] = self._scheme(
                    self._store,
                    order.count - left,
                    uniform_fraction=order.uniform_fraction,
                    generator=self._generator,
                )
            return index, probability

    def learn(self, index: Int64s, values: Float64s, steps: Int64s) -> None:
        """Learn the losses, or scores, of samples whose ``steps`` (B,) are newer than what is known; pass over others.

        So an update changes nothing when it comes a second time, or after a newer one.
        """
        with self._lock:
            newer = steps > self._newest[index]
            self._counts["late"] += int(newer.size - np.count_nonzero(newer))
            if newer.any():
                values = values[newer]
                self.update(index[newer], values, steps[newer], score=values if self._scored else None)

    def at(self, step: int) -> None:
        """The draws of all shards have come to ``step``."""
        self._step = max(self._step, step)

    def known(self) -> npt.NDArray[np.int32]:
        """The newest step known of each sample, or -1: (n,) int32, a copy."""
        with self._lock:
            return self._newest.copy()

    def oldest(self, count: int) -> tuple[Int64s, Int64s]:
        """The ``count`` samples whose newest step is the oldest, at most n, and that step: (count,) int64 each."""
        with self._lock:
            return self._stalest.find(self._newest, count)

    def load_state_dict(self, state: dict[str, Any], *, extend: bool = False) -> None:
        """As of an ``ImportanceSampler``."""
        with self._lock:
            super().load_state_dict(state, extend=extend)
            self._stalest.forget()

    def shuffle_anew(self) -> None:
        """Draw from here on with random numbers that nobody has seen."""
        self._generator = np.random.default_rng()

    def _warn_of_steps_ahead(self, step: int) -> None:
        """Nothing: the draws that updates name were counted elsewhere."""


class ShardServer:
    """One shard of a store that several share.

    Args:
        made: what the shard is made with.
        folder: of its snapshots, in that of the store; None keeps none. What is there is gone on with.
        every: > 0, seconds between snapshots; none is written where nothing has changed.
        again: whether this is a shard that has died before, so that its random numbers must be others.
        max_restarts: how often it is started again by whoever does so, which is told to those who join.
        owner: of the folder, a word for this shard of this store whatever process it runs in; None: whoever comes is.

    Safe for threads. Raises ``ValueError`` for snapshots that are of a shard made otherwise, of a newer version, or
    none of which is whole, and for a folder that another shard has.
    """

    def __init__(
        self,
        made: Made,
        *,
        folder: str | os.PathLike[str] | None = None,
        every: float = EVERY,
        again: bool = False,
        max_restarts: int | None = None,
        owner: str | None = None,
    ) -> None:
        self.made = made
        self._sampler = BlockSampler(made)
        self._folder = None if folder is None else Path(folder)
        self._kept = Kept(None if self._folder is None else str(self._folder.parent), every, max_restarts)
        self._lock = threading.RLock()
        self._life = int.from_bytes(os.urandom(7), "big")
        self._received = self._loaded = 0
        self._begun = made.known is None  # whether it has the known losses, if there are any
        self._trouble = ""
        self._written: tuple[int, ...] | None = None  # what had been done when the last snapshot was written
        self._closed = threading.Event()
        self._writing = threading.Lock()
        self._held: io.FileIO | None = None
        if self._folder is not None:
            self._held = None if owner is None else taken(self._folder, owner)
            again = self._go_on(self._folder) or again
            threading.Thread(target=self._write_at_times, args=(every,), daemon=True).start()
        self._again = again
        self._joined = self._life if again else 0  # so many before it, or so many that nobody has had that number
        if again:
            self._sampler.shuffle_anew()

    # --- the two verbs ---

    def draw(self, orders: Sequence[Order], step: int) -> Drawn:
        """The draws of these orders; all of them have come to ``step``. O(B log n)."""
        with self._lock:
            self._sampler.at(step)
            taken = [self._sampler.take(order) for order in orders]
            index, probability = (np.concatenate(column) for column in zip(*taken, strict=True))
            return Drawn(index, probability, self.status())

    def update(self, index: Int64s, values: Float64s, steps: Int64s) -> Status:
        """Learn what is newer: (B,) samples of the block, finite losses or scores, and the steps of their model."""
        with self._lock:
            self._sampler.learn(index, values, steps)
            self._received += 1
            return self.status()

    # --- looking inside ---

    def hello(self) -> Welcome:
        """For one who joins."""
        with self._lock:
            self._joined += 1
            return Welcome(self._joined - 1, self.made.described(), self._kept, self._begun, self.status())

    def begin(self, losses: npt.NDArray[Any]) -> Status:
        """Start from the known losses (n,) of the block, once.

        They are of step 0, and the first draw is of step 1. They are no argument of the actor's constructor, which Ray
        would have to keep in its object store for every restart; so they are in a snapshot at once, if there are any.
        ``ValueError`` for losses that it is not made with.
        """
        with self._lock:
            if not self._begun:
                if checksum(losses) != self.made.known:
                    raise ValueError(
                        "the losses are not those that the shard is made with; give all who share the same"
                    )
                self._begun = True
                if not self._received:  # a shard that died, kept nothing and has learnt since goes on with that
                    self._sampler = BlockSampler(self.made, losses)
                    self._sampler.at(1)
                    self._received += 1
                    if self._again:
                        self._sampler.shuffle_anew()
        with contextlib.suppress(OSError):  # the status tells
            self.snapshot()
        return self.status()

    def status(self) -> Status:
        """Where the shard stands. O(1)."""
        with self._lock:
            inner = self._sampler
            return Status(
                life=self._life,
                received=self._received,
                loaded=self._loaded,
                total=inner.total,
                done=inner.done,
                seen=inner._counts["seen"],
                late=inner._counts["late"],
                step=inner.step,
                newest=inner._newest_step,
                trouble=self._trouble,
            )

    def process(self) -> int:
        """The number of the process that the shard runs in."""
        return os.getpid()

    def priorities(self) -> Float64s:
        """(n,) float64, a copy."""
        return self._sampler.priorities()

    def known(self) -> npt.NDArray[np.int32]:
        """The newest step known of each sample, or -1: (n,) int32."""
        return self._sampler.known()

    def stalest(self, count: int) -> tuple[Int64s, Int64s]:
        """The ``count`` samples whose newest step is the oldest, at most n, and that step: (count,) int64 each.

        Once in 64 times or more O(n), else O(count): see :mod:`sampler.shard_stalest`.
        """
        return self._sampler.oldest(count)

    # --- the state ---

    def state_dict(self) -> dict[str, Any]:
        """The state of the block's sampler. O(n)."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> Status:
        """Take back what ``state_dict`` gave, and write a snapshot of it, if there are any.

        ``ValueError``, and no change, for the state of another block.
        """
        with self._lock:
            self._sampler.load_state_dict(state)
            self._begun = True
            self._received += 1
        with contextlib.suppress(OSError):  # the status tells
            self.snapshot()
        return self.status()

    def snapshot(self) -> bool:
        """Write one now; False where there is no folder, or nothing has changed since the last. ``OSError`` else."""
        if self._folder is None:
            return False
        with self._writing:
            with self._lock:
                now = self._received, self._sampler.step, self._sampler.done
                if now == self._written or not self._begun:
                    return False
                content = {"made": self.made.described(), "received": self._received}
                state = self._sampler.state_dict()
            try:
                write_snapshot(self._folder, {**content, "state": state})
            except OSError as error:
                self._trouble = f"shard {self.made.shard} could not write a snapshot: {error}"
                raise
            self._written, self._trouble = now, ""
            return True

    def close(self) -> None:
        """Write no more snapshots by the clock, and leave the folder to others."""
        self._closed.set()
        if self._held is not None:
            self._held.close()

    def _write_at_times(self, every: float) -> None:
        while not self._closed.wait(every):
            with contextlib.suppress(OSError):  # the status tells
                self.snapshot()

    def _go_on(self, folder: Path) -> bool:
        """Load the newest whole snapshot, if there are any; whether there was one."""
        content = newest_snapshot(folder)
        if content is None:
            return False
        differs = difference(content.get("made"), self.made.described())
        if differs:
            raise ValueError(
                f"the snapshots in {folder} are of a shard {differs}; make it alike, or name another folder for the "
                "snapshots"
            )
        self._received = self._loaded = checks.whole("received", content.get("received"), least=0)
        self._sampler.load_state_dict(content["state"])
        self._begun = True
        return True
