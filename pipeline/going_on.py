"""Where a training that several workers saved goes on: the newest step that all of them have, by whatever number.

    runs/mine/snapshots/                    of one process
    runs/mine/snapshots/worker-0-of-2/      of each of two, where all can read it
    runs/mine/snapshots/worker-1-of-2/

    go_on(snapshots, root, workers)         # loads; gives the steps done, or None where there is nothing

Workers save after the same steps, each its own samples and the model, which is the same in all. Of the same number it
goes on exactly. Of another, model and optimizer are those of the first worker, and each takes what is known of the
samples of its new block; what the epoch under way has counted is dropped, since it was another epoch. Every worker
looks for itself, and all find the same, for none saves anew before all have begun.
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


class Found(NamedTuple):
    """What all workers of a run have: the states of a step, by rank, and how much of the training that is."""

    world: int  # 0 is one process that is no worker
    step: int
    states: list[State]

    @property
    def share(self) -> float:
        """Of the whole training, in [0, 1]: what tells which of two numbers of workers came later."""
        progress = self.states[0]["parts"].get("recorder", {})
        return self.step / max(1, progress.get("most", self.step))


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


def newest(there: dict[int, list[Path]], mine: int) -> Found | None:
    """What of ``layouts`` can be gone on from, best by as many as here, ``mine``; ``SnapshotError`` where there are
    snapshots, but no step is whole with all workers.
    """
    found = [each for world, folders in there.items() if (each := _common(world, folders)) is not None]
    if there and not found:
        names = ", ".join(str(folder) for folders in there.values() for folder in folders)
        raise SnapshotError(
            f"no step is there whole in all of {names}; every worker must be able to read the others' folders. Start "
            "again in another folder"
        )
    return max(found, key=lambda each: (each.share, each.world == mine), default=None)


def _common(world: int, folders: list[Path]) -> Found | None:
    steps = [{path.name: path for path in Snapshots(folder, {}).paths()} for folder in folders]
    for name, path in steps[0].items():  # the newest first
        if all(name in other for other in steps):
            try:
                states = [Snapshots(each[name].parent, {}).read(each[name]) for each in steps]
            except ValueError as error:
                logger.warning("the snapshots %s of %d workers are passed over: %s", name, max(world, 1), error)
                continue
            return Found(world, int(states[0]["step"]), states)
        logger.warning("the snapshot %s is passed over: not all of %d workers have it", path, max(world, 1))
    return None


def go_on(snapshots: Snapshots, root: Path, workers: Workers | None) -> int | None:
    """Load what ``newest`` finds into the parts of ``snapshots``; gives the steps done, or None where there is nothing.

    Raises ``SnapshotError`` as ``Snapshots.restore``.
    """
    mine, there = _world(workers), layouts(root)
    if workers is None and set(there) <= {0}:
        return snapshots.restore()  # with its own words for each that is damaged
    found = newest(there, mine)
    if found is None:
        return None
    rank = 0 if workers is None else workers.rank
    if found.world == mine:
        snapshots.load(found.states[rank], folder_of(root, workers))
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
    if found.world == 0:
        states = [{"num_samples": len(sampler), "first": 0, "sampler": states[0]}]
    loaded = {name: state for name, state in first["parts"].items() if name not in NOT_OF_ALL}
    state = {**first, "about": about, "parts": {**loaded, "sampler": {"shards": states}}}
    Snapshots(root, parts, about=ours).load(state, root)
    logger.info("went on from step %d of %d workers, the samples dealt anew", found.step, max(found.world, 1))
    return found.step


class _Recut:
    """A part that takes the states of all shards."""

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
