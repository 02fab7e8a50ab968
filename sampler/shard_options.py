"""What the shards of a store are made with, checked, and compared where somebody joins.

mades = made_alike(50_000, 4, priority="sqrt", losses=None, smoothing=0.5, ...)
difference(mades[0].described(), theirs)            # None where the stores are alike
unlike(kept, Kept("runs/mine/shards", None, None))  # None where the store is kept as is named here
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sampler import checks, draws, priorities
from sampler.priorities import Priority
from sampler.shard import block_of

SCHEMES = ("multinomial", "systematic", "stratified")
LONGEST_NAME = 200  # bytes; the names of files may have 255
EVERY = 60.0  # seconds between snapshots, where none are named
RESTARTS = 10  # of a shard, likewise
FAR = 1 << 28  # steps that an update may name ahead of draws; a client that sleeps does not fall behind so far


class Made(NamedTuple):
    """What a shard is made with: the same for all shards of a store but for ``shard``.

    Attributes:
        num_samples: N ≥ 1, of all shards.
        shard: which one, in [0, shards).
        shards: S in [1, N].
        priority, smoothing, initial_priority, first_pass, warmup: as of ``ImportanceSampler``; ``first_pass`` is whole
            or none.
        scheme: ``"multinomial"``, ``"systematic"`` or ``"stratified"``.
        known: the checksum of the known losses of the block, which ``ShardServer.begin`` is given; None where there are
            none.
        seed: ≥ 0.
    """

    num_samples: int
    shard: int
    shards: int
    priority: str | Priority = "loss"
    smoothing: float = 0.0
    scheme: str = "systematic"
    initial_priority: float = 1.0
    first_pass: bool = True
    warmup: int = 0
    known: int | None = None
    seed: int = 0

    def described(self) -> dict[str, Any]:
        """Numbers and strings that are equal where two stores are made alike; the seed is left out."""
        plain = self._asdict()
        del plain["seed"]
        plain["losses"] = plain.pop("known")
        return {**plain, "priority": priorities.describe(priorities.resolve(self.priority))}


class Kept(NamedTuple):
    """How the shards of a store are kept, or of that what somebody names who comes: None is what he does not name.

    Attributes:
        snapshots: the folder that has one for each shard; None of a store: none are written.
        snapshot_every: > 0, seconds between snapshots.
        max_restarts: ≥ 0, how often a shard is started again; None of a store that is on no Ray.
    """

    snapshots: str | None = None
    snapshot_every: float | None = None
    max_restarts: int | None = None

    def filled(self) -> Kept:
        """The same with what a store has where nothing is named."""
        every = EVERY if self.snapshot_every is None else self.snapshot_every
        restarts = RESTARTS if self.max_restarts is None else self.max_restarts
        return Kept(self.snapshots, every, restarts)


def named(snapshots: str | os.PathLike[str] | None, snapshot_every: float | None, max_restarts: int | None) -> Kept:
    """What is named of these; ``TypeError`` or ``ValueError`` for what cannot be."""
    return Kept(
        None if snapshots is None else str(Path(snapshots).absolute()),
        None if snapshot_every is None else check_seconds("snapshot_every", snapshot_every),
        None if max_restarts is None else checks.whole("max_restarts", max_restarts, least=0),
    )


def unlike(kept: Kept, named: Kept) -> str | None:
    """In words, the first that is named and is not as the store has it; None where all are, or nothing is named."""
    ours = {name: value for name, value in named._asdict().items() if value is not None}
    if kept.snapshots and named.snapshots and os.path.realpath(kept.snapshots) == os.path.realpath(named.snapshots):
        del ours["snapshots"]
    return difference(kept._asdict(), ours)


def made_alike(
    num_samples: int,
    shards: int,
    *,
    priority: str | Priority,
    smoothing: float,
    scheme: str,
    initial_priority: float,
    first_pass: bool,
    warmup: int,
    losses: npt.NDArray[Any] | None,
    seed: int,
) -> list[Made]:
    """What each shard is made with; ``TypeError`` or ``ValueError`` for options that shards cannot have."""
    check_priority(priority)
    blocks = [block_of(num_samples, shard, shards) for shard in range(shards)]
    return [
        Made(
            num_samples,
            shard,
            shards,
            priority=priority,
            smoothing=checks.number("smoothing", smoothing, 0.0, 1.0, top_open=True),
            scheme=check_scheme(scheme),
            initial_priority=checks.number("initial_priority", initial_priority, 0.0, np.inf, top_open=True),
            first_pass=checks.flag("first_pass", first_pass),
            warmup=checks.whole("warmup", warmup, least=0),
            known=None if losses is None else checksum(losses[block.start : block.stop]),
            seed=checks.whole("seed", seed, least=0),
        )
        for shard, block in enumerate(blocks)
    ]


def difference(theirs: Any, ours: dict[str, Any]) -> str | None:
    """In words, the first option of ``theirs`` that is not as in ``ours``; None where all are."""
    theirs = theirs if isinstance(theirs, dict) else {}
    for name, value in ours.items():
        if theirs.get(name) != value:
            return f"with {name}={theirs.get(name)!r}, this one has {name}={value!r}"
    return None


def checksum(losses: npt.NDArray[Any]) -> int:
    """Of known losses, as they are to the bit."""
    return zlib.crc32(np.ascontiguousarray(losses).view(np.uint8).data)


def check_scheme(scheme: str) -> str:
    """One of ``SCHEMES``; ``ValueError`` else."""
    draws.resolve(scheme)
    if scheme not in SCHEMES:
        raise ValueError(
            f"scheme must be one of {', '.join(map(repr, SCHEMES))} with shards, got {scheme!r}; a shard may be asked "
            "for more draws than it has samples"
        )
    return scheme


def check_priority(priority: str | Priority) -> Priority:
    """The priority function; ``ValueError`` for one that shards cannot have."""
    if isinstance(priority, str) and priority == "auto":
        raise ValueError("priority='auto' is named later, and the shards need it at once; name it: priority='sqrt'")
    resolved = priorities.resolve(priority)
    if getattr(resolved, "keyed", False):
        raise ValueError(
            f"priority={priorities.describe(resolved)} asks for the samples' index, which is another one in each "
            "shard; send differences as the losses, with a priority of losses alone"
        )
    return resolved


def check_name(what: str, name: Any) -> str:
    """A word that can be part of a path."""
    if not isinstance(name, str) or not name.isprintable() or name != os.path.basename(name) or name[:1] in ("", "."):
        raise ValueError(f"{what} must be a word that can be the name of a folder, got {name!r}")
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        raise ValueError(f"{what} must have at most {LONGEST_NAME} bytes, got {name[:40]!r}... of {len(name)} letters")
    return name


def check_seconds(what: str, value: float) -> float:
    """A number above 0."""
    number = checks.number(what, value, 0.0, np.inf)
    if number == 0.0:
        raise ValueError(f"{what} must be above 0 seconds, got 0")
    return number


def check_fraction(uniform_fraction: float) -> float:
    """λ in (0, 1]."""
    number = checks.number("uniform_fraction", uniform_fraction, 0.0, 1.0)
    if number == 0.0:
        raise ValueError(
            "uniform_fraction must be above 0 with shards, got 0: a shard whose total was last told as zero would "
            "never be drawn from, whatever its samples have become"
        )
    return number


def check_ahead(steps: npt.NDArray[np.int64] | None, step: int) -> npt.NDArray[np.int64] | None:
    """The steps that an update names, where draws have come to ``step``, as far as is known.

    Who joins begins behind the newest step that was named, so one that is nonsense would leave him none.
    """
    if steps is not None and steps.size and steps.max() >= step + FAR:
        raise ValueError(
            f"step names {steps.max()}, and draws have come to {step}: no model can have learnt from so many; pass the "
            "step that came with the draw, or none"
        )
    return steps


def check_lag(feedback_lag: Any) -> None:
    """None alone."""
    if feedback_lag is not None:
        raise ValueError(
            f"feedback_lag must be None with shards, got {feedback_lag!r}: when feedback reaches a shard depends on "
            "timing, and no draw waits for it; use an ImportanceSampler where runs must be the same to the bit"
        )
