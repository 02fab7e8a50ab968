"""``train.py --workers``: processes on Ray that train one model; one is killed, all are told to end, and they go on.

Three times two processes, and a Ray: some 100 seconds on two cores.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from train import main

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
        (["--workers", "0"], "--workers must be at least 1"),
        (["--workers", "2", "--compare", "uniform,importance"], "--compare uniform,importance is for one process"),
        (["--workers", "2", "--budget", "5s"], "--budget 5s is for one process"),
        (["--workers", "2", "--sampling", "presampled"], "--sampling presampled is for one process"),
    ],
)
def test_what_several_cannot_do_is_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    assert said in capsys.readouterr().err
