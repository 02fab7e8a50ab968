"""Where a training that several workers saved goes on: the newest step that all of them have, by whatever number.

    runs/mine/snapshots/                    of one process
    runs/mine/snapshots/worker-0-of-2/      of each of two, where all can read it
    runs/mine/snapshots/worker-1-of-2/

    go_on(snapshots, root, workers)         # loads; gives the steps done, or None where there is nothing

Workers save after the same steps, each its own samples and the model, which is the same in all. Of the same number it
goes on exactly. Of another, model and optimizer are those of the first worker, and each takes what is known of the
samples of its new block; what the epoch under way has counted is dropped, since it was another epoch. Every worker
looks for itself, and all find the same, for none saves anew before all have begun.

For that each reads the snapshots of all workers and checks each whole: O(N), but one at a time, of which it keeps what
it needs alone (``Here.needed``). So it takes the memory of its own samples and of one other's snapshot.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.checkpoints import Part, SnapshotError, Snapshots
from pipeline.workers import Workers
from sampler import Shard
from sampler.state_bytes import State

OF_LAYOUT = ("epoch_steps",)  # facts that differ between numbers of workers
NOT_OF_ALL = ("midway",)  # parts that mean nothing to another number of workers

logger = logging.getLogger("pipeline")


class Here(NamedTuple):
    """One process of those that go on: which it is, and what it needs of those that saved."""

    rank: int
    world: int  # 0 is one process that is no worker
    block: range  # of the samples that it draws

    @classmethod
    def of(cls, workers: Workers | None, sampler: Any) -> Here:
        """By the part ``"sampler"`` of its snapshots: a ``Shard``, or a sampler of all."""
        block = sampler.block if isinstance(sampler, Shard) else range(len(sampler))
        return cls(0 if workers is None else workers.rank, _world(workers), block)

    def needed(self, state: State, rank: int, world: int) -> State:
        """What is kept of the state that worker ``rank`` of ``world`` saved.

        Of as many as here its own as it is, and nothing of the others. Of another number, of all a sampler's state as
        that of a ``Shard``: whole where it knows samples of this block, else no more than which ones it knows; of the
        first the model, too, and what else is not the samples'.

        Raises ``ValueError`` where it is not the state of a worker.
        """
        if world == self.world:
            return state if rank == self.rank else {}
        parts = state["parts"]
        others = {name: part for name, part in parts.items() if rank == 0 and name not in NOT_OF_ALL}
        try:
            sampler = parts["sampler"]
            shard = sampler if world else {"num_samples": sampler["num_samples"], "first": 0, "sampler": sampler}
            first, size = shard["first"], shard["sampler"]["num_samples"]
            if first >= self.block.stop or first + size <= self.block.start:
                shard = {**shard, "sampler": {"num_samples": size}}
        except (KeyError, TypeError) as error:
            raise ValueError(f"it holds no state of a worker's sampler ({error})") from error
        return {**state, "parts": {**others, "sampler": shard}}


class Found(NamedTuple):
    """What all workers of a run have: a step, and how much of the training that is."""

    world: int  # 0 is one process that is no worker
    states: list[State]  # by rank, what is needed here

    @property
    def _known(self) -> State:
        return next(state for state in self.states if state)  # whichever: they are alike in what is no sample's

    @property
    def step(self) -> int:
        """After which all of them saved."""
        return int(self._known["step"])

    @property
    def share(self) -> float:
        """Of the whole training, in [0, 1]: what tells which of two numbers of workers came later."""
        return self.step / max(1, self._known["parts"].get("recorder", {}).get("most", self.step))


def _world(workers: Workers | None) -> int:
    return 0 if workers is None else workers.world


def folder_of(root: Path, workers: Workers | None) -> Path:
    """The folder of a worker's snapshots, or of the only process's."""
    return root if workers is None else root / f"worker-{workers.rank}-of-{workers.world}"


def layouts(root: Path) -> dict[int, list[Path]]:
    """The folders by number of workers, in the order of their ranks; 0 is one process."""
    found: dict[int, list[Path]] = {}
    if Snapshots(root, {}).paths():
        found[0] = [root]
    for folder in root.glob("worker-*-of-*"):
        named = re.fullmatch(r"worker-\d+-of-(\d+)", folder.name)
        if named and Snapshots(folder, {}).paths():
            world = int(named[1])
            found[world] = [root / f"worker-{rank}-of-{world}" for rank in range(world)]
    return found


def newest(there: dict[int, list[Path]], here: Here) -> Found | None:
    """What of ``layouts`` can be gone on from, best by as many as here.

    ``SnapshotError`` where there are snapshots, but no step is whole with all workers.
    """
    found = (each for world, folders in there.items() if (each := _common(world, folders, here)) is not None)
    best = max(found, key=lambda each: (each.share, each.world == here.world), default=None)
    if there and best is None:
        names = ", ".join(str(folder) for folders in there.values() for folder in folders)
        raise SnapshotError(
            f"no step is there whole in all of {names}; every worker must be able to read the others' folders. Start "
            "again in another folder"
        )
    return best


def _common(world: int, folders: list[Path], here: Here) -> Found | None:
    steps = [{path.name: path for path in Snapshots(folder, {}).paths()} for folder in folders]
    for name, path in steps[0].items():  # the newest first
        if all(name in other for other in steps):
            try:
                return Found(world, [_read(each[name], rank, world, here) for rank, each in enumerate(steps)])
            except ValueError as error:
                logger.warning("the snapshots %s of %d workers are passed over: %s", name, max(world, 1), error)
                continue
        logger.warning("the snapshot %s is passed over: not all of %d workers have it", path, max(world, 1))
    return None


def _read(path: Path, rank: int, world: int, here: Here) -> State:
    return here.needed(Snapshots(path.parent, {}).read(path), rank, world)


def go_on(snapshots: Snapshots, root: Path, workers: Workers | None) -> int | None:
    """Load what ``newest`` finds into the parts of ``snapshots``; gives the steps done, or None where there is nothing.

    Raises ``SnapshotError`` as ``Snapshots.restore``.
    """
    there = layouts(root)
    if workers is None and set(there) <= {0}:
        return snapshots.restore()  # with its own words for each that is damaged
    here = Here.of(workers, snapshots.parts["sampler"])
    found = newest(there, here)
    if found is None:
        return None
    if found.world == here.world:
        snapshots.load(found.states[here.rank], folder_of(root, workers))
        return found.step
    return _recut(snapshots, found, root)


def _recut(snapshots: Snapshots, found: Found, root: Path) -> int:
    first = found.states[0]
    about = {name: value for name, value in first["about"].items() if name not in OF_LAYOUT}
    ours = {name: value for name, value in snapshots.about.items() if name not in OF_LAYOUT}
    sampler: Any = snapshots.parts["sampler"]
    shard = sampler if isinstance(sampler, Shard) else Shard(len(sampler), rank=0, world=1, make=lambda _: sampler)
    parts: Mapping[str, Part] = {
        **{name: part for name, part in snapshots.parts.items() if name not in NOT_OF_ALL},
        "sampler": _Recut(shard),
    }
    states = [state["parts"]["sampler"] for state in found.states]
    state = {**first, "about": about, "parts": {**first["parts"], "sampler": {"shards": states}}}
    Snapshots(root, parts, about=ours).load(state, root)
    logger.info("went on from step %d of %d workers, the samples dealt anew", found.step, max(found.world, 1))
    return found.step


class _Recut:
    """A part that takes the states of all shards, of which those without a sample of this one's need no more than which
    samples they know.
    """

    def __init__(self, shard: Shard) -> None:
        self.shard = shard

    def state_dict(self) -> State:
        return self.shard.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shard.load_shards(state["shards"])


def clear(root: Path, snapshots: Snapshots, workers: Workers | None) -> None:
    """Remove the snapshots of a run that another takes the place of: each worker its own, the first the rest, too."""
    snapshots.clear()
    forget_others(root, workers)


def forget_others(root: Path, workers: Workers | None) -> None:
    """Remove the snapshots of other numbers of workers; done by the first worker, for all."""
    if workers is not None and workers.rank > 0:
        return
    mine = _world(workers)
    for world, folders in layouts(root).items():
        if world != mine:
            for folder in folders:
                Snapshots(folder, {}).clear()
