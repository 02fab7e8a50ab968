"""Killed by SIGKILL at any moment, also in a save, and gone on with: nothing that was saved is lost, and the end is
that of the training that nobody killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline import killing
from tests.pipeline.killed import new_sampler, of_state
from tests.pipeline.killing import Campaign, campaign

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks with TensorFlow loaded, which is tried on Linux")

# What a fault is found by, and the kills it may take.
FAULTS = {
    "in place": "unloadable",
    "two files": "mixed",
    "generator": "mixed",
    "early": "lost",
    "leftovers": "piled up",
}
MOST = 40


@pytest.fixture(scope="module")
def trained():
    with killing.trainings() as made:
        yield made


def told(result: Campaign) -> str:
    return "\n".join(result.failures)


@pytest.mark.fault(25)
def test_a_hundred_kills(trained, tmp_path):
    """Ten of them of ``train``; kills are aimed at saves by what the training says and by the files that it makes."""
    loops = campaign(trained, "loop", tmp_path / "loop", 90, seed=1)
    fits = campaign(trained, "fit", tmp_path / "fit", 10, seed=2)
    both = loops + fits
    assert not both.failures, told(both)
    assert both.kills == 100
    assert both.in_saves >= 30
    assert fits.resumes > 0
    assert loops.finished > 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, trained, tmp_path):
    result = campaign(trained, "loop", tmp_path, MOST, seed=3, fault=fault, until=FAULTS[fault])
    assert FAULTS[fault] in told(result)


def test_digests_of_a_snapshot_tell_everything_but_times():
    def state(**recorder):
        return {"step": 0, "parts": {"sampler": new_sampler().state_dict(), "recorder": recorder}}

    for kind in ("loop", "fit"):
        digest = of_state(kind, state(steps=3, seconds=1.0))
        assert of_state(kind, state(steps=3, seconds=2.0)) == digest
        assert of_state(kind, state(steps=4, seconds=1.0)) != digest
        assert of_state(kind, {**state(steps=3, seconds=1.0), "about": {}}) != digest
        other = state(steps=3, seconds=1.0)
        other["parts"]["sampler"]["generator"]["state"]["state"] += 1
        assert of_state(kind, other) != digest


@pytest.mark.soak
@pytest.mark.fault(25)
def test_two_thousand_kills():
    total = killing.campaigns(2000, seed=0)
    assert not total.failures, told(total)
    assert (total.kills, total.in_saves >= 600) == (2000, True)


PROGRAM = [
    sys.executable,
    str(killing.ROOT / "train.py"),
    "--dataset",
    "digits",
    "--epochs",
    "3",
    "--quiet",
    "--no-report",
]


def summary(folder: Path) -> dict[str, object] | None:
    """What the program wrote at its end, without the seconds; None before it."""
    with contextlib.suppress(FileNotFoundError):
        found = json.loads((folder / "summary.json").read_text())
        del found["seconds"]
        return found
    return None


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [*PROGRAM, "--save-every", "5steps", "--output", str(folder), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})


def killed(folder: Path, rng: random.Random, life: float) -> bool:
    """Run the program and kill it, before or after its first new snapshot; whether it was not done before."""
    end, snapshots = time.monotonic() + rng.uniform(0.0, life), folder / "snapshots"
    with start(folder, *(["--resume"] if snapshots.exists() else [])) as process:
        if rng.random() < 0.7:  # mostly not while it starts
            before = names_in(snapshots)
            while names_in(snapshots) == before and process.poll() is None:
                time.sleep(0.001)
            end = time.monotonic() + rng.uniform(0.0, 2.0)
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        said = process.communicate()[1]
    assert process.returncode in (0, -9), said
    return process.returncode != 0


def names_in(folder: Path) -> set[str]:
    return set(os.listdir(folder)) - {"lock"} if folder.exists() else set()


@pytest.mark.soak
@pytest.mark.fault(25)
def test_thirty_kills_of_the_program(tmp_path):
    whole, folder, rng, kills, finished = tmp_path / "whole", tmp_path / "run", random.Random(0), 0, 0
    begin = time.monotonic()
    with start(whole) as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    life = time.monotonic() - begin
    expected = summary(whole)
    while kills < 30 or not finished:
        kills += (was_killed := killed(folder, rng, life))
        assert summary(folder) in (None, expected)
        assert was_killed or summary(folder) == expected
        if summary(folder):
            finished += 1
            assert not killing.piled_up(folder / "snapshots", keep=3)
            shutil.rmtree(folder)
    print(f"{kills} kills of the program, {finished} finished, {time.monotonic() - begin:.0f} s")
