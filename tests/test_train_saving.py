"""``train.py`` interrupted, killed, and gone on with, from the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import time
import types
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

import train
from pipeline import scorers
from sampler.locks import Lock
from train import Config, OptionError, main
from trainer import saving as train_saving
from trainer.scorers import scoring

from .forking import Forked

SMALL = [
    "--dataset",
    "digits-longtail",
    "--model",
    "mlp",
    "--batch-size",
    "32",
    "--epochs",
    "3",
    "--quiet",
    "--no-report",
]  # 27 steps
STEPS = 27


def result(folder):
    """summary.json without the seconds."""
    found = json.loads((folder / "summary.json").read_text())
    del found["seconds"]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of the training that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    assert main([*SMALL, "--output", str(folder)]) == 0
    return result(folder)


def interrupting(monkeypatch, after, *signals):
    """Signals that come in the middle of the step before ``after`` are done."""
    begin = train_saving.beginning

    def beginning(config):
        callback = begin(config)
        steps = iter(range(1, 10_000))

        def end(batch, logs):
            if next(steps) == after:
                for number in signals:
                    os.kill(os.getpid(), number)

        callback.on_train_batch_end = end
        return callback

    monkeypatch.setattr(train, "beginning", beginning)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.fault(24)
def test_a_signal_ends_the_run_after_its_step_and_it_goes_on(number, status, whole, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        interrupting(patch, 13, number)
        assert main([*SMALL, "--output", str(tmp_path)]) == status
    said = capsys.readouterr().err
    assert f"interrupted after step 13; a snapshot of it was saved, and --output {tmp_path} --resume goes on" in said
    assert signal.getsignal(number) is before
    assert not (tmp_path / "summary.json").exists()
    keras.utils.clear_session()
    # The options are in config.yaml, --quiet is not.
    assert main(["--output", str(tmp_path), "--resume", "--no-report"]) == 0
    assert result(tmp_path) == whole
    said = capsys.readouterr().out
    assert f"goes on from the newest whole snapshot, of {tmp_path / 'snapshots' / 'snapshot-13'}\n" in said
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    figures = "effective_fraction,max_weight,gain,by_priority"
    assert header == f"epoch,step,seconds,test_loss,test_accuracy,learning_rate,loss,{figures}"


@pytest.mark.parametrize(("second", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_is_not_waited_for(second, status, tmp_path, monkeypatch, capsys):
    interrupting(monkeypatch, 2, signal.SIGINT, second)
    assert main([*SMALL, "--output", str(tmp_path)]) == status
    assert "interrupted; no result was written" in capsys.readouterr().err


@pytest.mark.fault(25)
def test_killed_and_resumed_it_has_the_result_of_one_that_was_not(whole, tmp_path):
    """By kill -9, as soon as a second snapshot is begun."""
    snapshots = tmp_path / train_saving.SNAPSHOTS
    process = Forked(["train.py", *SMALL, "--output", str(tmp_path), "--save-every", "1step"], os.environ)
    begin = time.monotonic()
    while len(list(snapshots.glob("*"))) < 5 and process.poll() is None and time.monotonic() - begin < 120:
        time.sleep(0.001)
    process.kill()
    _, errors = process.communicate(timeout=120.0)
    assert process.returncode == -signal.SIGKILL, errors
    assert not (tmp_path / "summary.json").exists()
    assert main(["--output", str(tmp_path), "--resume", "--quiet", "--no-report"]) == 0
    assert result(tmp_path) == whole


def test_a_run_that_was_not_finished_is_not_overwritten(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupting(patch, 2, signal.SIGTERM)
        assert main([*SMALL, "--output", str(tmp_path)]) == 143
    assert main([*SMALL, "--output", str(tmp_path)]) == 2
    assert "snapshots of a run that was not finished; go on with --resume" in capsys.readouterr().err
    for options, message in (
        (["--learning-rate", "0.5"], "is of a run with learning_rate at its default, in this one it is 0.5"),
        (["--dataset", "digits"], "is of a run with dataset 'digits-longtail', in this one it is at its default"),
    ):
        assert main(["--output", str(tmp_path), "--resume", "--quiet", *options]) == 2
        assert message in capsys.readouterr().err


def test_a_finished_run_has_nothing_left_to_do_and_may_be_run_again(whole, tmp_path):
    for _ in range(2):
        assert main([*SMALL, "--output", str(tmp_path), "--save-every", "10steps"]) == 0
        assert result(tmp_path) == whole
        kept = sorted(path.name for path in (tmp_path / train_saving.SNAPSHOTS).glob("*.index"))
        assert kept == [f"snapshot-{step}.index" for step in (10, 20, STEPS)]
    assert main(["--output", str(tmp_path), "--resume", "--quiet", "--no-report"]) == 0
    assert result(tmp_path) == whole


@pytest.mark.fault(26)
@pytest.mark.parametrize("has_saved", [False, True])
@pytest.mark.parametrize("options", [[], ["--resume"], ["--workers", "2"]])
def test_two_runs_in_one_folder(options, has_saved, tmp_path, capsys):
    if "--workers" in options:
        pytest.importorskip("ray")
    snapshots = tmp_path / train_saving.SNAPSHOTS
    snapshots.mkdir()
    if has_saved:
        (snapshots / "snapshot-5.index").touch()
    (tmp_path / "worker-0.log").write_text("of the first")
    with Lock(snapshots / "lock"):
        assert main([*SMALL, "--output", str(tmp_path), *options]) == 2
    assert f"in use by another run, process {os.getpid()}" in capsys.readouterr().err
    assert not (tmp_path / "config.yaml").exists()
    assert (tmp_path / "worker-0.log").read_text() == "of the first"


@pytest.mark.fault(26)
def test_a_worker_looks_into_its_own_folder_alone(tmp_path):
    workers = types.SimpleNamespace(rank=1, world=2)
    first, second = (tmp_path / train_saving.SNAPSHOTS / f"worker-{rank}-of-2" for rank in (0, 1))
    for folder in (first, second):
        folder.mkdir(parents=True)
    with Lock(first / "lock"):
        train_saving.check_unfinished(Config(output=tmp_path), workers)
        with pytest.raises(OptionError, match="in use by another run"):
            train_saving.check_unfinished(Config(output=tmp_path))
    with Lock(second / "lock"), pytest.raises(OptionError, match="in use by another run"):
        train_saving.check_unfinished(Config(output=tmp_path), workers)


@pytest.mark.fault(23)
def test_a_snapshot_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch, capsys):
    usage = type("Usage", (), {"free": 500})
    monkeypatch.setattr("pipeline.checkpoints.shutil.disk_usage", lambda path: usage)
    assert main([*SMALL, "--output", str(tmp_path), "--save-every", "2steps"]) == 1
    said = capsys.readouterr().err
    assert "at step 2: 500 bytes are free. It takes" in said
    assert "Traceback" not in said


def test_a_comparison_is_not_gone_on_with(tmp_path, capsys, monkeypatch):
    """One that was interrupted leaves its options; else a training by the defaults would begin in its folder."""

    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.comparison.compare", interrupt)
    assert main(["--compare", "uniform,importance", "--output", str(tmp_path), "--quiet"]) == 130
    assert main(["--resume", "--output", str(tmp_path)]) == 2
    assert "--resume is for a single training; a comparison begins anew" in capsys.readouterr().err


def test_what_another_run_left_is_gone(tmp_path):
    for name in ("comparison.json", "report.html"):
        (tmp_path / name).write_text("{}")
    assert main([*SMALL, "--output", str(tmp_path), "--quiet"]) == 0
    assert not {"comparison.json", "report.html"} & {path.name for path in tmp_path.iterdir()}


def test_resume_where_there_is_nothing_begins(whole, tmp_path, capsys):
    options = [option for option in SMALL if option != "--quiet"]
    assert main([*options, "--output", str(tmp_path), "--resume"]) == 0
    assert result(tmp_path) == whole
    assert f"no snapshot in {tmp_path}: it begins anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save-every", "5"], "--save-every must be like 500steps or 60s, or None, got 5"),
        (["--resume", "--compare", "uniform,importance"], "--resume is for a single training"),
    ],
)
def test_what_cannot_be_is_told(options, message, capsys):
    assert main(options) == 2
    assert message in capsys.readouterr().err


def test_seconds_are_the_steps_that_they_were_at_the_beginning(tmp_path, monkeypatch):
    options = [
        "--dataset",
        "digits-longtail",
        "--model",
        "mlp",
        "--budget",
        "9s",
        "--quiet",
        "--no-report",
        "--output",
        str(tmp_path),
    ]
    monkeypatch.setattr(train, "in_steps", lambda config: dataclasses.replace(config, budget="12steps"))
    with monkeypatch.context() as patch:
        interrupting(patch, 5, signal.SIGTERM)
        assert main(options) == 143
    monkeypatch.setattr(train, "in_steps", lambda config: config)
    assert main([*options, "--resume"]) == 0  # the same command
    assert result(tmp_path)["steps"] == 12


def test_another_reference_is_refused(tmp_path, monkeypatch, capsys):
    losses = np.linspace(0.0, 1.0, 280)
    np.save(tmp_path / "reference.npy", losses)
    options = ["--sampling", "reducible", "--reference", str(tmp_path / "reference.npy")]
    with monkeypatch.context() as patch:
        interrupting(patch, 2, signal.SIGTERM)
        assert main([*SMALL, *options, "--output", str(tmp_path)]) == 143
    losses[140] = 0.0
    np.save(tmp_path / "reference.npy", losses)
    assert main(["--output", str(tmp_path), "--resume", "--quiet"]) == 2
    assert "is of a run with reference_values" in capsys.readouterr().err


def test_a_signal_that_is_ignored_stays_so():
    """As a shell has it of what a script starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with train_saving.caught() as came:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            assert came == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_seconds_are_none_of_a_run_that_was_begun_by_epochs(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("dataset: digits\nepochs: 3\n")
    assert main(["--output", str(tmp_path), "--resume", "--budget", "60s"]) == 2
    assert f"the run in {tmp_path} is one of --epochs 3, not of --budget 60s" in capsys.readouterr().err


def test_signals_are_left_alone_in_other_threads():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: list(train_saving.caught().__enter__())).result() == []


# --- the shards of --scorers ----------------------------------------------------------------------


class Store:
    """A store of which there is nothing but the snapshots, one for each shard."""

    def __init__(self, *, name, shards, snapshots, **others):
        self.name = name
        for shard in range(shards):
            (snapshots / f"{name}-{shard}").mkdir(parents=True)
            (snapshots / f"{name}-{shard}" / "shard-1.bin").write_bytes(b"of this run")

    def ages(self):
        return np.zeros(3)

    def remove(self):
        pass


class Nobody:
    """Scorers that do nothing."""

    def __init__(self, store, recipe, *, count):
        self.publish = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def end(self):
        pass

    def summary(self):
        return {}


@pytest.fixture
def of_nothing(monkeypatch):
    monkeypatch.setattr(scorers, "ScoredSampler", Store)
    monkeypatch.setattr(scorers, "Scorers", Nobody)
    monkeypatch.setattr(scorers, "PublishWeights", lambda *arguments: None)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("own", ["mine-0", "mytrain-0", "train"])
@pytest.mark.usefixtures("of_nothing")
def test_a_store_of_the_users_own_stays_beside_that_of_the_scorers(own, fails, tmp_path):
    shards = tmp_path / "shards"
    (shards / own).mkdir(parents=True)
    (shards / own / "shard-7.bin").write_bytes(b"of the user")
    before = files(tmp_path)
    with contextlib.suppress(ZeroDivisionError), scoring(Config(scorers=2), 3, tmp_path):
        during = files(tmp_path)
        if fails:
            raise ZeroDivisionError
    assert len(during) == len(before) + 2  # the run's own
    assert files(tmp_path) == before
    assert [path.name for path in shards.iterdir()] == [own]  # no empty folders either


@pytest.mark.usefixtures("of_nothing")
def test_shards_that_a_run_that_was_killed_has_left_go_with_the_next(tmp_path):
    for name in ("train-0123456789ab", "mine", "train-00000"):  # the last two are a user's
        Store(name=name, shards=1, snapshots=tmp_path / "shards" / name)
    with scoring(Config(scorers=1), 3, tmp_path):
        assert len(files(tmp_path)) == 4
    assert set(files(tmp_path)) == {f"shards/{name}/{name}-0/shard-1.bin" for name in ("mine", "train-00000")}


@pytest.mark.usefixtures("of_nothing")
def test_no_folder_of_shards_is_left_where_nobody_else_has_some(tmp_path):
    with scoring(Config(scorers=1), 3, tmp_path):
        assert len(files(tmp_path)) == 1
    assert not list(tmp_path.iterdir())
