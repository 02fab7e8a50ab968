"""Several processes that train one model: the same expectation as one, no sample of another's, and going on.

Real processes with TensorFlow's MultiWorkerMirroredStrategy: some 30 seconds for each number of workers.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.samples import Samples
from pipeline.workers import check_number, task
from train import main

from . import one_of_several, short_training
from .one_of_several import BATCHES, FEW, N
from .short_training import STEPS, saved
from .together import SECONDS, ended, started

BOUND = 5.2  # standard errors that the worst of three components may be off: false alarms 6e-7


# --- TF_CONFIG ------------------------------------------------------------------------------------


def of(cluster: dict[str, Any], kind: str = "worker", index: Any = 0) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"TF_CONFIG": ""}, None),
        ({"TF_CONFIG": "{}"}, None),
        (of({"worker": ["a:1"]}), None),
        (of({"worker": ["a:1", "b:1", "c:1"]}, index=2), (2, 3)),
        (of({"worker": ["a:1", "b:1"]}, index="1"), (1, 2)),
        (of({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "chief"), (0, 3)),
        (of({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, index=1), (2, 3)),
    ],
)
def test_the_place_of_a_worker_is_read(environment: dict[str, str], place: tuple[int, int] | None) -> None:
    assert task(environment) == place


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"TF_CONFIG": "worker"}, "cannot be read"),
        ({"TF_CONFIG": "[1]"}, "cannot be read"),
        (of({"worker": "a:1"}), "must be a list of addresses, host:port each, got 'a:1'"),
        (of({"worker": [None, 7]}), "must be a list of addresses"),
        (of({"worker": ["a:1", "a:1"]}), "an address is there twice"),
        (of({"worker": ["a:1", "b:1"]}, index=1.7), "index of the task must be an integer, got 1.7"),
        (of({"worker": ["a:1", "b:1"]}, index=True), "index of the task must be an integer"),
        (of({"worker": ["a:1", "b:1"]}, index=None), "cannot be read"),
        (of({"worker": ["a:1"], "ps": ["b:1"]}), "ps"),
        (of({"worker": ["a:1", "b:1"]}, "evaluator"), "evaluator"),
        (of({"worker": ["a:1", "b:1"]}, index=2), "worker 2"),
        (of({"worker": ["a:1", "b:1"]}, "chief"), "chief 0"),
    ],
)
def test_what_cannot_be_a_worker_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        task(environment)


@pytest.mark.parametrize(
    ("wanted", "environment", "said"),
    [
        (1, {}, None),
        (2, {}, None),
        (2, {"TF_CONFIG": ""}, None),
        (1, of({"worker": ["a:1"]}), None),
        (1, of({"worker": ["a:1", "b:1"]}), None),
        (2, of({"worker": ["a:1", "b:1"]}), None),  # as ``train.py --workers 2`` starts them
        (2, {"TF_CONFIG": "{}"}, "this process alone"),
        (2, {"TF_CONFIG": " "}, "this process alone"),
        (2, of({"worker": ["a:1"]}), "this process alone"),
        (2, of({"chief": ["a:1"], "worker": ["b:1", "c:1"]}), "names 3 processes"),
    ],
)
def test_as_many_workers_as_tf_config_names(wanted: int, environment: dict[str, str], said: str | None) -> None:
    if said is None:
        check_number(wanted, environment)
        return
    with pytest.raises(ValueError, match=f"--workers {wanted} does not go together with a TF_CONFIG that .*{said}"):
        check_number(wanted, environment)


def test_two_workers_are_not_trained_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TF_CONFIG", of({"worker": ["a:1"]})["TF_CONFIG"])
    run = tmp_path / "run"
    assert main([*short_training.options(tmp_path), "--output", str(run), "--workers", "2", "--quiet"]) == 2
    assert "--workers 2 does not go together with a TF_CONFIG that names this process alone" in capsys.readouterr().err
    assert not run.exists()


# --- the gradient, and fit ------------------------------------------------------------------------


def gradient_of_all() -> np.ndarray:
    """(3,) the gradient of the mean loss of all samples, by hand."""
    x, y = one_of_several.data(FEW)
    kernel, bias = one_of_several.linear().get_weights()
    return (2.0 * (x @ kernel + bias - y) * x).mean(axis=0)


def furthest(seen: np.ndarray, truth: np.ndarray) -> float:
    """How many standard errors the mean of the gradients (K, 3) is off, at most; over the priorities' first pass."""
    later = seen[len(seen) // 8 :]  # by then all of them are drawn by priority
    errors = later.std(axis=0, ddof=1) / np.sqrt(len(later))
    return float((np.abs(later.mean(axis=0) - truth) / errors).max())


def blocks(size: int, world: int) -> list[list[int]]:
    return [list(range(rank * size // world, (rank + 1) * size // world)) for rank in range(world)]


@pytest.mark.parametrize("world", [2, 4])
def test_workers_have_the_gradient_of_one_and_their_own_samples(world: int) -> None:
    """False alarms: 1e-6, three components of a mean of 175 batches; by the weights of the blocks alone, which leave
    out that they are of unequal sizes, it is off by 13 standard errors and more.
    """
    said = ended(started(world, ["-m", "tests.pipeline.one_of_several"]))
    assert [status for status, _, _ in said] == [0] * world, said[0][2][-3000:]
    told = [json.loads(output.splitlines()[-1]) for _, output, _ in said]
    assert [each["rank"] for each in told] == list(range(world))
    assert [each["drawn"] for each in told] == blocks(FEW, world)  # each by its owner only, and all of them
    assert [each["seen"] for each in told] == blocks(N, world)

    seen = np.array(told[0]["gradients"])  # (K, 2, 3)
    assert seen.shape == (BATCHES, 2, 3)
    assert furthest(seen[:, 0], gradient_of_all()) < BOUND
    assert furthest(seen[:, 1], gradient_of_all()) > 2.0 * BOUND  # the planted fault

    assert all(each["any"] == [[True, False], [False, True]] for each in told)
    largest = -(-N // world)
    assert {each["epoch"] for each in told} == {-(-largest // one_of_several.B)}
    assert {each["updates"] for each in told} == {3 * told[0]["epoch"]}
    for name in ("losses", "weights"):  # the same model, and the same report, in all
        assert all(each[name] == told[0][name] for each in told)
    loss, _, validation = told[0]["losses"]
    assert loss[0] > loss[-1]
    assert validation[0] > validation[-1]
    assert all(each["unseen"][-1] == 0.0 for each in told)


# --- train.py -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ["train.py", *short_training.options(tmp_path_factory.mktemp("data")), "--evaluate-every", "10"]


def results(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Of a run: its summary without the time it took, and the columns of its curve that are no time."""
    summary = json.loads((folder / "summary.json").read_text())
    rows = [line.split(",") for line in (folder / "curve.csv").read_text().splitlines()]
    return {**summary, "seconds": None}, [",".join([row[0], *row[2:]]) for row in rows]


def hit(workers: list[Any], rank: int, number: int, folder: Path, step: int) -> list[tuple[int, str, str]]:
    """Send a worker a signal once it has saved ``step``."""
    deadline = time.monotonic() + SECONDS
    while saved(folder, rank) < step and workers[rank].poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    workers[rank].send_signal(number)
    told = ended(workers)
    assert saved(folder, rank) >= step, told
    return told


@pytest.mark.parametrize("told_to_end", [False, pytest.param(True, marks=pytest.mark.soak)])
@pytest.mark.fault(27)
def test_a_worker_is_killed_another_is_told_to_end_and_all_go_on_to_the_same_result(
    command: list[str], told_to_end: bool, tmp_path: Path
) -> None:
    """Three or four times two processes."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    reporting = [option for option in command if option != "--no-report"]
    told = ended(started(2, [*reporting, "--output", str(whole)]))
    assert [status for status, _, _ in told] == [0, 0], told[0][2][-3000:]
    assert "on each of 2 workers" in told[0][1]
    assert told[1][1] == ""  # the first one speaks for all
    samples = Samples.read(whole / "samples.npz")  # put together of what each knows
    assert (len(samples), samples.drawn.min() >= 1, samples.drawn.sum()) == (162, True, 2 * 8 * STEPS)
    assert (whole / "report.html").exists()
    assert not list(whole.glob("samples-*"))

    here = [*command, "--output", str(broken)]
    told = hit(started(2, here), 1, signal.SIGKILL, broken, 20)
    assert [status for status, _, _ in told] == [1, -signal.SIGKILL], told
    assert "another worker is gone" in told[0][2]
    assert "--resume" in told[0][2]

    if told_to_end:
        told = hit(started(2, [*here, "--resume"]), 1, signal.SIGTERM, broken, 60)  # to one of them
        assert [status for status, _, _ in told] == [143, 143], "".join(told[0][2:])[-3000:]
        steps = [sorted(path.name for path in folder.glob("*.index")) for folder in (broken / "snapshots").iterdir()]
        assert steps[0] == steps[1]  # of the same steps

        alone = shutil.copytree(broken, tmp_path / "alone")
        assert main([*command[1:], "--output", str(alone), "--resume", "--quiet"]) == 0  # by one process
        summary, _ = results(alone)
        assert (summary["steps"], summary["sampler"]["seen"]) == (STEPS, 162)

    assert [status for status, _, _ in ended(started(2, [*here, "--resume"]))] == [0, 0]
    assert results(broken) == results(whole)
