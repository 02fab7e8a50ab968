"""The pipelines give samples of their data sets, each x beside its own y; files can be put out of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import pipeline_data, pipeline_files
from benchmarks.measuring import Lost
from benchmarks.peers import install, remote_pipelines
from benchmarks.peers import pipelines as peer_pipelines
from benchmarks.peers.remote import ROOT
from benchmarks.peers.remote_pipelines import PeerPipeline, RemotePipelines
from benchmarks.peers.worker import Worker, answer
from benchmarks.pipeline_data import Data, check_batch
from benchmarks.pipeline_names import FEEDBACK, OURS
from benchmarks.pipeline_turns import MARGIN, Cold, Local, lead_in, parts, steps_within, take_some
from benchmarks.pipelines import PIPELINES, Made, Setting

SAMPLES, BATCH = 64, 8
FAKE = Path(__file__).with_name("fake_pipeline_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    for name in pipeline_data.DATA_SETS:
        pipeline_data.make(place, name, num_samples=SAMPLES, seed=0)
    return place


@pytest.fixture(scope="module", params=pipeline_data.DATA_SETS)
def data(folder: Path, request: pytest.FixtureRequest) -> Data:
    return pipeline_data.load(folder, request.param)


# --- data -------------------------------------------------------------------------------------


def test_data_sets_are_what_they_are_said_to_be(data: Data) -> None:
    assert len(data) == SAMPLES
    assert set(data.y) == set(range(10))
    shape, dtype = {
        "images": ((32, 32, 3), np.uint8),
        "features": ((1000,), np.float32),
        "strings": ((), object),
    }[data.name]
    assert data.x.shape == (SAMPLES, *shape)
    assert data.x.dtype == dtype
    if data.name == "strings":
        assert all(20 <= len(each) < 200 for each in data.x)
        assert data.nbytes == sum(map(len, data.x)) + 8 * SAMPLES
    assert np.unique(pipeline_data.keys(data.x)).size == SAMPLES
    again = pipeline_data.mapped(data)
    check_batch(data, again[0][5:9], again[1][5:9], np.arange(5, 9))


def test_a_wrong_batch_is_found_out(data: Data) -> None:
    x, y = data.x[:4], data.y[:4]
    check_batch(data, x, y, np.arange(4))
    stranger = x.copy()
    stranger[0] = b"no sample of it" if data.name == "strings" else 3
    last = x.copy()  # of one sample everything but its first bytes is another's
    last[0] = last[0][:8] + b"else" if data.name == "strings" else last[1]
    if data.name != "strings":
        last[0].reshape(-1)[:8] = x[0].reshape(-1)[:8]
    wrong = {
        "another sample's y": (x, (y + 1) % 10),
        "that is not in the data set": (stranger, y),
        "not in the data set": (last, y),
        "must have": (x, y[:3]),
        "y of": (x, y.astype(np.int32)),
        "x of": (np.zeros(x.shape, np.float64), y),
    }
    for words, batch in wrong.items():
        with pytest.raises(ValueError, match=words):
            check_batch(data, *batch)
    with pytest.raises(ValueError, match="its index names"):
        check_batch(data, x, y, np.arange(1, 5))


# --- pipelines --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, entry in PIPELINES.items() if not entry.eager])
@pytest.mark.each_value
def test_batches_are_made_of_the_samples(data: Data, name: str) -> None:
    entry = PIPELINES[name]
    if entry.only and data.name not in entry.only:
        pytest.skip("not for this data set")
    if data.name != "images" and not entry.only and entry.group != OURS:
        pytest.skip("as images, which are tried")
    local = Local(entry.build(Setting(data, BATCH, seed=0)), Setting(data, BATCH, seed=0))
    local.check()
    index = parts(next(local.begin()))[2]
    assert (index is not None) == (entry.group == OURS)
    assert len(parts(next(local.begin()))[1]) == BATCH
    assert local.turn(3)[0] > 0.0
    assert local.epoch(SAMPLES // BATCH) > 0.0


def test_the_losses_come_back(data: Data) -> None:
    made = PIPELINES[FEEDBACK].build(Setting(data, BATCH, seed=0))
    assert made.feed_back is not None
    for batch in take_some(iter(made.batches), 3):
        assert int(made.feed_back(batch)) == 0
    with pytest.raises(IndexError):  # it is the sampler that is told: it knows how many samples there are
        made.feed_back((None, None, {"index": tf.constant([SAMPLES], tf.int64), "step": tf.constant([0], tf.int64)}))


def test_classes_are_even_where_that_is_the_point(folder: Path) -> None:
    """4,096 draws from ten classes: each is off by more than a quarter of its share with a chance below 1e-6."""
    data = pipeline_data.load(folder, "images")
    for name in ("tf.data rejection_resample", "tf.data sample_from_datasets"):
        made = PIPELINES[name].build(Setting(data, 512, seed=0))
        labels = np.concatenate([parts(batch)[1] for batch in take_some(iter(made.batches), 8)])
        found = np.bincount(labels, minlength=10) / labels.size
        assert (np.abs(found - 0.1) < 0.03).all()


# --- turns ------------------------------------------------------------------------------------


@dataclass
class Counted:
    """A contestant that remembers its turns; a step takes 1,000 µs."""

    ahead: int = 0

    def __post_init__(self) -> None:
        self.turns: list[int] = []

    def turn(self, steps: int) -> tuple[float, float]:
        self.turns.append(steps)
        return 1000.0, 0.0

    def epoch(self, steps: int) -> float:
        return self.turn(steps)[0]


@pytest.mark.parametrize(
    ("ahead", "seconds", "epoch", "steps"),
    [(0, 0.1, 1000, 100), (0, 0.1, 300, 300), (0, 0.1, 50, 100), (32, 0.01, 10_000, 64), (0, 1e-9, 10, 1)],
)
def test_turns_hold_what_is_ready_and_an_epoch_if_they_can(ahead: int, seconds: float, epoch: int, steps: int) -> None:
    assert steps_within(Counted(ahead), seconds, epoch) == steps


def test_what_may_lie_ready_is_taken_untimed() -> None:
    assert lead_in(32, 64) == 32 + MARGIN
    assert lead_in(0, 1) == 1
    assert lead_in(0, 1000) == MARGIN


def test_a_turn_begins_an_iterator_of_its_own_and_counts_samples(folder: Path) -> None:
    data = pipeline_data.load(folder, "images")
    begun, taken = [], []

    def begin() -> Iterator[Any]:
        begun.append(len(taken))
        for size in (BATCH, 3, BATCH, BATCH, BATCH):
            taken.append(size)
            yield data.x[:size], data.y[:size]

    local = Local(Made(begin), Setting(data, BATCH, seed=0))
    local.turn(2)
    local.epoch(2)
    assert begun == [0, 4]  # two untimed and two timed ones, and then an iterator that is timed from the start
    assert taken[-1] == 3
    with pytest.raises(Lost, match="StopIteration"):
        local.turn(5)


# --- files ------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    if not pipeline_files.can_drop():
        pytest.skip("no such calls on this system")
    path = tmp_path / "array.npy"
    np.save(path, np.arange(100_000))
    if pipeline_files.drop([path]) > 0.0:
        pytest.skip("the file lies in memory")
    return path


def test_files_leave_the_page_cache_and_come_back(on_disk: Path) -> None:
    pipeline_files.warm([on_disk])
    assert pipeline_files._resident(on_disk)[0] == pipeline_files._resident(on_disk)[1] > 100
    assert pipeline_files.drop([on_disk]) == 0.0


def test_pages_that_are_mapped_here_leave_too(on_disk: Path) -> None:
    mapping = np.load(on_disk, mmap_mode="r")
    total = int(mapping.sum())
    assert pipeline_files.drop([on_disk]) == 0.0
    assert int(mapping.sum()) == total


def test_a_cold_turn_is_an_epoch_with_the_files_gone(on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taking = Counted()
    cold = Cold(taking, [on_disk])
    pipeline_files.warm([on_disk])
    assert cold.turn(7) == (1000.0, 0.0)
    assert (taking.turns, cold.stayed) == ([7], 0.0)
    monkeypatch.setattr(pipeline_files, "drop", lambda paths: 0.5)
    with pytest.raises(Lost, match="50% of its pages stay"):
        cold.turn(7)


# --- peers ------------------------------------------------------------------------------------


class Rows(peer_pipelines.Pipeline):
    """A peer that is NumPy alone."""

    packages = ("numpy",)

    def open(self) -> None:
        self.told = {"threads": self.cores}

    def begin(self) -> Iterator[Any]:
        while True:
            yield self.data.x[: self.batch], self.data.y[: self.batch]


@dataclass(frozen=True)
class Fake(PeerPipeline):
    """Starts the fake worker, which behaves as the system's name says."""

    def command(self) -> list[str]:
        return [sys.executable, str(FAKE), self.system]


def test_the_real_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peer_pipelines.PIPELINES, "rows", Rows)
    worker = Worker()

    def ask(**request: object) -> dict[str, Any]:
        return answer(worker, json.dumps(request))

    asked = {"do": "open", "pipeline": "rows", "folder": str(folder), "batch": BATCH, "seed": 0, "cores": 2}
    told = ask(data="strings", **asked)
    assert told == {"ahead": 0, "versions": {"numpy": np.__version__}, "threads": 2}
    taken = ask(do="take", steps=5, lead=2)
    assert taken["samples"] == 5 * BATCH
    assert taken["us"] > 0.0
    assert ask(data="images", **{**asked, "pipeline": "nothing"})["error"].startswith("KeyError")


def test_peers_are_asked_and_given_up(folder: Path) -> None:
    peers = {how: Fake("fake", how, "others") for how in ("well", "refuses", "dies")}
    with RemotePipelines(folder, 2, peers) as remotes:
        opened = remotes.open("well", "images", BATCH, 0)
        assert (opened.ahead, opened.told) == (2, {"versions": {"fake": "1.0"}, "threads": 2})
        assert opened.turn(4) == (1000.0, 0.0)
        assert opened.epoch(4) == 1000.0
        for _ in range(2):  # it lives, and may serve another data set
            with pytest.raises(Lost, match="TypeError: no strings"):
                remotes.open("refuses", "strings", BATCH, 0)
        with pytest.raises(Lost, match="terminate called"):
            remotes.open("dies", "images", BATCH, 0).turn(4)


def test_every_peer_is_known_to_the_worker() -> None:
    assert {peer.system for peer in remote_pipelines.PIPELINES.values()} == set(peer_pipelines.PIPELINES)
    for peer in remote_pipelines.PIPELINES.values():
        assert (install.REQUIREMENTS / f"{peer.environment}.txt").exists()


def test_the_worker_needs_no_tensorflow() -> None:
    code = "import sys, benchmarks.peers.worker; sys.exit('tensorflow' in sys.modules or 'sampler' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
