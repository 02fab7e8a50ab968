"""Peers are asked by a protocol, skipped with a reason where they fail, and never fail the others.

No peer has to be installed here: ``fake_worker.py`` plays one, and NumPy alone the rest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measuring, sampler_throughput, systems
from benchmarks.measuring import Lost
from benchmarks.peers import install, remote, remote_pipelines
from benchmarks.peers import systems as peer_systems
from benchmarks.peers.remote import Peer, Remote, Remotes
from benchmarks.peers.worker import Worker, answer
from benchmarks.sampler_throughput import Options

FAKE = Path(__file__).with_name("fake_worker.py")
TINY = Options(sizes=(1000,), batches=(8,), rounds=3, seconds=1e-6, variants_at=(0, 0), one_core=False, peers=True)


@dataclass(frozen=True)
class Fake(Peer):
    """Starts the fake worker, which behaves as the system's name says."""

    def command(self) -> list[str]:
        return [sys.executable, str(FAKE), self.system]


class Cumulative(peer_systems.Store):
    """A peer that is NumPy alone."""

    def __init__(self, priorities: np.ndarray) -> None:
        self.priorities = np.array(priorities)

    def batch(self, losses: np.ndarray) -> tuple[peer_systems.Draw, peer_systems.Update]:
        loss = peer_systems.rows(losses)

        def draw(given: np.ndarray) -> np.ndarray:
            return np.searchsorted(np.cumsum(self.priorities), given * self.priorities.sum(), side="right")

        def update(index: np.ndarray) -> None:
            self.priorities[index] = next(loss)

        return draw, update


def fake(how: str, **options: int) -> Peer:
    return Fake("fake", how, "kernel", **options)


@pytest.fixture
def only_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "SYSTEMS", {systems.FLOOR: systems.SYSTEMS[systems.FLOOR]})


def warm_long(contestant: measuring.Contestant, seconds: float) -> int:
    for _ in range(36):
        contestant.turn(1)
    return 1


def measured(monkeypatch: pytest.MonkeyPatch, peers: dict[str, Peer], options: Options = TINY) -> dict[str, dict]:
    monkeypatch.setattr(remote, "PEERS", peers)
    kinds = {systems.FLOOR: "floor", **{name: peer.kind for name, peer in peers.items()}}
    monkeypatch.setattr(sampler_throughput, "KINDS", kinds)
    return {row["system"]: row for row in sampler_throughput.measure(options)}


@pytest.mark.usefixtures("only_floor")
def test_a_peer_is_measured_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measured(monkeypatch, {"fake": fake("well")})
    row = rows["fake"]
    assert (row["draw_us"], row["update_us"], row["step_us"]) == (2.0, 1.0, 3.0)
    assert row["step_rounds_us"] == [3.0] * 3
    assert (row["kind"], row["uniforms"], row["versions"]) == ("kernel", "ascending", {"fake": "1.0"})
    assert (row["build_s"], row["bytes_per_sample"]) == (0.5, 8.0)
    assert "skipped" not in rows[systems.FLOOR]


@pytest.mark.usefixtures("only_floor")
def test_without_the_flag_no_peer_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measured(monkeypatch, {"fake": fake("breaks")}, replace(TINY, peers=False))
    assert list(rows) == [systems.FLOOR]


@pytest.mark.usefixtures("only_floor")
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("refuses", "MemoryError: too large"),
        ("breaks", "the worker ended with status 1: the library is broken"),
        ("dies", "lost in round 3: the worker ended with status 3: terminate called"),
    ],
)
def test_a_peer_that_fails_is_skipped_with_its_reason(how: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "dies":  # in the middle of measuring: after the warming, in the last round
        monkeypatch.setattr(measuring, "warm_up", warm_long)
    rows = measured(monkeypatch, {"bad": fake(how), "good": fake("well")})
    assert rows["bad"]["skipped"] == reason
    assert not any(field.endswith("_us") for field in rows["bad"])
    assert rows["good"]["step_us"] == 3.0


@pytest.mark.usefixtures("only_floor")
def test_what_was_lost_stays_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PEERS", {"bad": fake("refuses")})
    monkeypatch.setattr(sampler_throughput, "KINDS", {"bad": "kernel"})
    rows = sampler_throughput.measure(replace(TINY, batches=(8, 16)))
    assert [row["skipped"] for row in rows] == ["MemoryError: too large"] * 2


@pytest.mark.usefixtures("only_floor")
def test_a_peer_that_is_not_installed_or_not_meant_for_this_n(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FOLDER", tmp_path)
    rows = measured(monkeypatch, {"missing": Peer("none", "none", "kernel"), "small": fake("well", up_to=999)})
    assert rows["missing"]["skipped"] == "not installed: there is no .peers/none; make peers builds it"
    assert rows["small"]["skipped"] == "not measured above N=999"


def test_no_answer_in_time() -> None:
    worker = Remote([sys.executable, str(FAKE), "hangs"], asking=0.2)
    worker.build("fake", Path("none"))
    with pytest.raises(Lost, match=r"no answer to turn within 0.2 s"):
        worker.turn(1)


def test_a_worker_ends_with_its_input() -> None:
    command = [sys.executable, "-m", "benchmarks.peers.worker"]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, cwd=remote.ROOT, check=True, timeout=120).returncode == 0


def test_workers_are_ended_with_the_run(tmp_path: Path) -> None:
    with Remotes({"fake": fake("well")}) as remotes:
        remotes.build(tmp_path / "none.npy", 8)
        process = remotes._running["fake"]._process
        assert process.poll() is None
    assert process.poll() is not None


def test_the_real_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peer_systems.PEERS, "cumulative", Cumulative)
    path = tmp_path / "priorities.npy"
    np.save(path, np.random.default_rng(0).random(500) + 0.1)
    worker = Worker()

    def ask(**request: object) -> dict:
        return answer(worker, json.dumps(request))

    built = ask(do="build", system="cumulative", priorities=str(path))
    assert built["build_s"] >= 0.0
    assert built["bytes_per_sample"] is None  # it cannot tell, and 500 samples do not show in a process
    assert ask(do="batch", batch=16, seed=0)["uniforms"] in ("ascending", "unordered")
    told = ask(do="turn", steps=5)
    assert told["draw_us"] > 0.0
    assert told["update_us"] > 0.0
    assert ask(do="build", system="torchrl", priorities=str(path))["error"].startswith("KeyError")
    assert "error" in answer(worker, "no JSON")


def test_what_is_given_to_a_tree_is_new_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that saw the same uniforms again and again would have its caches and branches know them."""
    monkeypatch.setitem(peer_systems.PEERS, "cumulative", Cumulative)
    path = tmp_path / "priorities.npy"
    np.save(path, np.ones(100))
    worker = Worker()
    worker.build("cumulative", str(path))
    worker.batch(8, seed=0)
    given = [worker._given() for _ in range(200)]
    assert len({tuple(each) for each in given}) == 200
    for each in given:  # one in each eighth
        assert np.sort(np.floor(each * 8)).tolist() == list(range(8))


def test_install_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requirements, calls = tmp_path / "requirements", []
    requirements.mkdir()
    for name in ("first", "second"):
        (requirements / f"{name}.txt").write_text(f"{name}==1.0\n")

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        failing = "pip" in command and command[-1].endswith("first.txt")
        (tmp_path / "peers" / "second").mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(command, int(failing), "", "no such version\n" if failing else "")

    monkeypatch.setattr(install, "REQUIREMENTS", requirements)
    monkeypatch.setattr(install, "FOLDER", tmp_path / "peers")
    monkeypatch.setattr(install, "find_interpreter", lambda: "python")
    monkeypatch.setattr(install.subprocess, "run", run)
    assert install.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "[1/2] first: not installed: no such version",
        "[2/2] second: ready",
    ]
    before = len(calls)
    assert install.main(["second"]) == 0  # it is there already
    assert len(calls) == before


def test_requirements_are_exact_and_name_no_place() -> None:
    names = {peer.environment for peer in (*remote.PEERS.values(), *remote_pipelines.PIPELINES.values())}
    for name in names:
        for line in (install.REQUIREMENTS / f"{name}.txt").read_text().splitlines():
            assert line.count("==") == 1
            assert not set(line) & set("/:@ ")
    assert {path.stem for path in install.REQUIREMENTS.glob("*.txt")} == names


def test_every_peer_is_known_to_the_worker() -> None:
    assert {peer.system for peer in remote.PEERS.values()} <= set(peer_systems.PEERS)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such call on this system")
def test_workers_share_the_one_core() -> None:
    with measuring.one_core() as core:
        worker = Remote([sys.executable, str(FAKE), "well"])
        assert os.sched_getaffinity(worker._process.pid) == {core}
    start = time.monotonic()
    worker.close()
    assert time.monotonic() - start < remote.ENDING + 60.0
