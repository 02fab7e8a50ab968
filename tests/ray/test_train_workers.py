"""``train.py --workers``: processes on Ray that train one model; one is killed, all are told to end, and they go on.

Three times two processes, and a Ray: some 100 seconds on two cores. What is tried with ``Here`` in the place of Ray,
and with processes that do nothing, takes five seconds in all.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sampler import ray_cluster
from train import Config, main
from trainer import workers as train_workers
from trainer.config import OptionError
from trainer.workers import Process, Team, launch

from ..pipeline import short_training
from ..pipeline.short_training import STEPS, saved
from .conftest import until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    return [*short_training.options(tmp_path), "--output", str(tmp_path / "run")]


def started(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def process_of(folder: Path, rank: int) -> int:
    """The number of the process that is this worker."""
    for entry in Path("/proc").iterdir():
        try:
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:  # no process, or none any more
            continue
        if str(folder).encode() in command and f'"index": {rank}'.encode() in environment:
            return int(entry.name)
    raise LookupError(rank)


@pytest.mark.soak
@pytest.mark.fault(27)
@pytest.mark.usefixtures("with_token")
def test_a_worker_is_killed_all_are_started_again_told_to_end_and_go_on(command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    training = started([*command, "--workers", "2"])
    try:
        until(lambda: saved(folder, 1) >= 20 or training.poll() is not None)
        before = saved(folder, 1)
        os.kill(process_of(folder, 1), signal.SIGKILL)
        until(lambda: saved(folder, 0) >= before + 20 or training.poll() is not None)
        training.send_signal(signal.SIGTERM)
        output, errors = training.communicate(timeout=300)
    finally:
        training.kill()
    assert training.returncode == 143, errors[-3000:]
    assert "on each of 2 workers" in output
    assert "lost worker 1; all are started again (1 of 3)" in errors
    assert before < saved(folder, 0) == saved(folder, 1) < STEPS
    assert not (folder / "summary.json").exists()

    again = started(["--output", str(folder), "--resume"])  # with two, as its config.yaml says
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors[-3000:]
    assert "all of its 2 workers have saved" in output
    assert json.loads((folder / "summary.json").read_text())["steps"] == STEPS


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers", "0"], "--workers must be in 1..10000"),
        (["--workers", "2", "--compare", "uniform,importance"], "--compare uniform,importance is for one process"),
        (["--workers", "2", "--budget", "5s"], "--budget 5s is for one process"),
        (["--workers", "2", "--sampling", "presampled"], "--sampling presampled is for one process"),
    ],
)
def test_what_several_cannot_do_is_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    assert said in capsys.readouterr().err


# --- with no Ray ----------------------------------------------------------------------------------


class Actor:
    """An actor that is an object of this process: what is called is done at once."""

    def __init__(self, inner: Process) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, Exception | None]:
            try:
                return getattr(self.inner, name)(*arguments), None
            except Exception as error:
                return None, error

        return types.SimpleNamespace(remote=call)


class Here:
    """What :mod:`trainer.workers` takes of Ray, all of it in this process."""

    exceptions = types.SimpleNamespace(RayActorError=type("RayActorError", (Exception,), {}))

    def __init__(self) -> None:
        self.workers: list[Process] = []
        self.gets = 0
        self.meanwhile: Callable[[int], None] = lambda number: None

    def cluster_resources(self) -> dict[str, float]:
        return {}

    def remote(self, kind: Callable[[], Process]) -> Any:
        def made() -> Actor:
            self.workers.append(kind())
            return Actor(self.workers[-1])

        actor = types.SimpleNamespace(remote=made)
        return types.SimpleNamespace(options=lambda **options: actor)

    def get(self, answers: Any) -> Any:
        self.gets += 1
        self.meanwhile(self.gets)
        if isinstance(answers, list):
            return [self.get(answer) for answer in answers]
        value, error = answers
        if error is not None:
            raise error
        return value

    def kill(self, actor: Actor) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Here:
    """In the place of Ray; and of ``train.py`` a program that waits until it is told to end."""
    found = Here()
    monkeypatch.setitem(sys.modules, "ray", found)
    monkeypatch.setattr("sampler.ray_cluster.connect", lambda address: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(train_workers, "__file__", str(tmp_path / "trainer" / "workers.py"))
    (tmp_path / "train.py").write_text(
        "import time\n"
        "try:\n"
        "    time.sleep(600)\n"
        "except KeyboardInterrupt:\n"
        "    raise SystemExit(1)  # as any Python while it starts\n"
    )
    return found


def all_ended(workers: Sequence[Process]) -> bool:
    return all(worker.status() is not None for worker in workers)


STARTED = 5  # the answers that were got when all are started: their addresses, and the first of the starts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", [1, STARTED])
def test_told_to_end_while_workers_start_none_is_left(
    number: int,
    moment: int,
    here: Here,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As their actors are made, and as they are started; the others would wait for the first one for ever."""
    monkeypatch.setattr(train_workers, "GRACE", 0.5)
    here.meanwhile = lambda gets: os.kill(os.getpid(), number) if gets == moment else None
    before = signal.getsignal(number)
    try:
        assert launch(Config(workers=3, output=tmp_path / "run"), []) == 128 + number
        assert len(here.workers) == 3
        until(lambda: all_ended(here.workers))
    finally:
        for worker in here.workers:
            worker.tell(signal.SIGKILL)
    assert signal.getsignal(number) is before
    assert "interrupted while the workers started" in capsys.readouterr().err


def test_told_to_end_while_ray_starts(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(address: None) -> None:
        raise SystemExit(1)  # as Ray does on SIGTERM

    monkeypatch.setattr("sampler.ray_cluster.connect", connect)
    assert main(["--workers", "2"]) == 143
    assert not here.workers


@pytest.mark.parametrize("option", ["--workers", "--scorers"])
def test_a_cluster_where_nobody_listens(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Ray is not asked, who would go on trying for a quarter of an hour."""
    monkeypatch.setattr(ray_cluster, "REACH", 0.0)
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: False))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        silent = f"127.0.0.1:{nobody.getsockname()[1]}"
        for address in (silent, f"ray://{silent}", "127.0.0.1:100000"):
            monkeypatch.setenv("RAY_ADDRESS", address)
            assert main([option, "2", "--output", str(tmp_path)]) == 2
            said = capsys.readouterr().err
            assert f"nobody listens at {address}" in said
            assert "Traceback" not in said


def test_a_cluster_that_ray_does_not_find(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def connect(address: None) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray_cluster, "connect", connect)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert main(["--workers", "2"]) == 2
    said = capsys.readouterr().err
    assert "--workers 2 joins the Ray cluster of RAY_ADDRESS=auto, and cannot: Could not find any running" in said
    assert "Traceback" not in said


def test_a_cluster_that_is_about_to_listen_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        monkeypatch.setattr("time.sleep", lambda seconds: head.listen())
        ray_cluster.reach(f"127.0.0.1:{head.getsockname()[1]}")


def test_a_log_that_is_a_link_is_not_written_through(
    here: Here, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "worker-0.log").symlink_to(tmp_path / "mine")
    assert main(["--workers", "2", "--output", str(tmp_path / "run")]) == 2
    assert "worker-0.log cannot be written: " in capsys.readouterr().err
    with pytest.raises(OSError, match="symbolic links"):
        Process().start([], str(tmp_path), {}, str(tmp_path / "run" / "worker-0.log"))
    assert (tmp_path / "mine").read_text() == "mine"


def test_an_output_folder_that_a_node_does_not_reach(here: Here, tmp_path: Path) -> None:
    """The folder may be there by its name, and be another one."""
    logs = [tmp_path / "worker-0.log", tmp_path / "worker-1.log"]
    logs[0].touch()
    team = Team(2, loopback=True)
    try:
        with pytest.raises(
            OptionError, match=r"No such file.*worker-1\.log'\. All workers must reach the same --output"
        ):
            team.start([], logs)
    finally:
        team.end()
    until(lambda: here.workers[0].status() is not None)
    assert not logs[1].exists()
