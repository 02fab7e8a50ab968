"""Which step a training of several workers goes on from, and what another number of workers makes of it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoints import SnapshotError, Snapshots
from pipeline.going_on import Here, clear, folder_of, forget_others, go_on, layouts, newest
from pipeline.workers import Workers
from sampler import ImportanceSampler

N, B = 23, 4
LOSSES = np.arange(1.0, N + 1.0)


class Progress:
    """How far a training of ``most`` steps is, as the recorder of one says."""

    def __init__(self, most: int = 100) -> None:
        self.most, self.loaded = most, -1

    def state_dict(self) -> dict[str, Any]:
        return {"most": self.most}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state["most"]


class Run:
    """One process of a training: a sampler, what is counted in an epoch, and how far it is."""

    def __init__(self, root: Path, rank: int = 0, world: int = 0) -> None:
        self.root = root
        self.workers = None if world == 0 else Workers(rank, world, strategy=None)
        make = lambda block: ImportanceSampler(len(block), feedback_lag=2, seed=block.start)  # noqa: E731
        self.sampler: Any = make(range(N)) if self.workers is None else self.workers.shard(N, make)
        self.midway, self.progress = Progress(), Progress()
        self.snapshots = Snapshots(
            folder_of(root, self.workers),
            {"sampler": self.sampler, "recorder": self.progress, "midway": self.midway},
            about={"epoch_steps": 100 // max(1, world), "data": "these"},
        )

    def train(self, steps: int) -> None:
        for _ in range(steps):
            draw = self.sampler.draw(B)
            self.sampler.update(draw.index, LOSSES[draw.index], step=draw.step)

    def go_on(self) -> int | None:
        return go_on(self.snapshots, self.root, self.workers)


def team(root: Path, world: int) -> list[Run]:
    return [Run(root, rank, world) for rank in range(world)] if world else [Run(root)]


def saved(root: Path, world: int, steps: tuple[int, ...] = (9, 12)) -> list[Run]:
    """Of a training by ``world`` workers that saved after these steps."""
    runs = team(root, world)
    for run in runs:
        before = 0
        for step in steps:
            run.train(step - before)
            run.snapshots.save(step)
            before = step
    return runs


def priorities(runs: list[Run]) -> np.ndarray:
    return np.concatenate([run.sampler.priorities() for run in runs])


@pytest.mark.parametrize("world", [0, 1, 3])
def test_of_the_same_number_each_has_its_own_back(world: int, tmp_path: Path) -> None:
    before, after = saved(tmp_path, world), team(tmp_path, world)
    assert [run.go_on() for run in after] == [12] * max(world, 1)
    for one, other in zip(before, after, strict=True):
        assert other.midway.loaded == 100
        one.sampler.rewind()
        for _ in range(5):
            draws = one.sampler.draw(B), other.sampler.draw(B)
            np.testing.assert_array_equal(draws[0].index, draws[1].index)
            for sampler, draw in zip((one.sampler, other.sampler), draws, strict=True):
                sampler.update(draw.index, LOSSES[draw.index], step=draw.step)


@pytest.mark.parametrize(("there", "here"), [(3, 2), (2, 5), (3, 0), (3, 1), (0, 3), (0, 1)])
def test_of_another_number_every_sample_is_known_as_before(there: int, here: int, tmp_path: Path) -> None:
    before, after = saved(tmp_path, there), team(tmp_path, here)
    assert {run.go_on() for run in after} == {12}
    np.testing.assert_array_equal(priorities(after), priorities(before))
    assert all(run.midway.loaded == -1 for run in after)  # it was another epoch
    assert all(run.progress.loaded == 100 for run in after)
    for run in after:
        run.train(12)


def test_the_newest_step_that_all_have(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    (folder_of(tmp_path, Workers(1, 3, None)) / "snapshot-12.index").unlink()
    assert [run.go_on() for run in team(tmp_path, 3)] == [9] * 3
    assert [run.go_on() for run in team(tmp_path, 2)] == [9] * 2


def test_one_that_is_damaged_with_one_worker_is_passed_over_by_all(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    path = folder_of(tmp_path, Workers(2, 3, None)) / "snapshot-12.data-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert [run.go_on() for run in team(tmp_path, 3)] == [9] * 3


def test_where_no_step_is_whole_it_is_refused_and_where_there_is_none_it_begins(tmp_path: Path) -> None:
    assert [run.go_on() for run in team(tmp_path, 2)] == [None, None]
    saved(tmp_path, 2, (5,))
    (folder_of(tmp_path, Workers(1, 2, None)) / "snapshot-5.index").unlink()
    for world in (0, 2, 3):
        with pytest.raises(SnapshotError, match="no step is there whole"):
            Run(tmp_path, 0, world).go_on()


def test_what_holds_no_sampler_is_no_step_of_another_number(tmp_path: Path) -> None:
    for rank in range(2):
        Snapshots(folder_of(tmp_path, Workers(rank, 2, None)), {"sampler": Progress()}).save(5)
    with pytest.raises(SnapshotError, match="no step is there whole"):
        Run(tmp_path, 0, 3).go_on()


def test_other_data_are_refused_by_any_number(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    for world in (0, 2, 3):
        run = Run(tmp_path, 0, world)
        run.snapshots.about["data"] = "others"
        with pytest.raises(SnapshotError, match="data 'these', in this one it is 'others'"):
            run.go_on()


def test_of_two_numbers_the_one_that_came_further(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    saved(tmp_path, 3, (20,))
    for world in (0, 2, 3):
        assert {run.go_on() for run in team(tmp_path, world)} == {20}


MANY, WORLD = 96_000, 12


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``WORLD`` workers saved what they know of ``MANY`` samples."""
    root = tmp_path_factory.mktemp("large")
    for rank in range(WORLD):
        workers = Workers(rank, WORLD, strategy=None)
        sampler = workers.shard(MANY, lambda block: ImportanceSampler(len(block), seed=block.start))
        Snapshots(folder_of(root, workers), {"sampler": sampler}).save(1)
    return root


def taken(root: Path, rank: int, world: int) -> tuple[float, float]:
    """The memory that is kept to go on as a worker, and the most that is taken meanwhile; 1 is what one has saved."""
    paths = list((root / f"worker-0-of-{WORLD}").glob("*.data-*"))
    block = range(rank * MANY // world, (rank + 1) * MANY // world)
    tracemalloc.start()
    try:
        found = newest(layouts(root), Here(rank, world, block))
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found is not None
    assert len(found.states) == WORLD
    return kept / paths[0].stat().st_size, most / paths[0].stat().st_size


@pytest.mark.parametrize(
    ("rank", "world", "theirs"),
    [
        (0, WORLD, 1),
        (7, WORLD, 1),
        (0, 2 * WORLD, 1),
        (23, 2 * WORLD, 1),
        (1, WORLD // 4, 4),
        (1, WORLD - 1, 2),
    ],
)
def test_a_worker_keeps_what_is_known_of_its_own_samples(
    rank: int, world: int, theirs: int, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ``theirs`` of those that saved; and beside them there is one state at a time, thrice as long as it is read."""
    kept, most = taken(large, rank, world)
    assert theirs - 0.1 < kept < theirs + 0.5
    assert most < theirs + 3.5
    monkeypatch.setattr(Here, "needed", lambda here, state, rank, world: state)  # the planted fault
    kept, most = taken(large, rank, world)
    assert kept > WORLD - 0.5


@pytest.mark.parametrize(("rank", "left"), [(0, {3}), (1, {2, 3})])
def test_the_first_worker_forgets_those_of_other_numbers(rank: int, left: set[int], tmp_path: Path) -> None:
    saved(tmp_path, 2)
    saved(tmp_path, 3)
    forget_others(tmp_path, Workers(rank, 3, None))
    assert set(layouts(tmp_path)) == left


def test_a_run_that_begins_anew_removes_all(tmp_path: Path) -> None:
    for world in (0, 2, 3):
        saved(tmp_path, world)
    for run in team(tmp_path, 3):
        clear(tmp_path, run.snapshots, run.workers)
    assert layouts(tmp_path) == {}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]
