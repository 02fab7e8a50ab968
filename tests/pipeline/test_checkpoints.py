"""Snapshots: whole or not there, of one step, of this run; whatever lies in the folder, nothing of it is run."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import checkpoints
from pipeline.checkpoints import Seeds, SnapshotError, Snapshots, Variables
from sampler.locks import Lock, LockError
from sampler.state_bytes import from_bytes, to_bytes


class Counter:
    """A part: a number and an array."""

    def __init__(self, size: int = 1000) -> None:
        self.count, self.values = 0, np.zeros(size)

    def state_dict(self):
        return {"count": self.count, "values": self.values}

    def load_state_dict(self, state):
        if state["count"] < 0:
            raise ValueError("count is below 0")
        self.count, self.values = state["count"], state["values"]

    def go(self) -> None:
        self.count += 1
        self.values = self.values + self.count


def filled(folder, steps=4, **options):
    """A folder with the snapshots of the steps 1..steps."""
    part = Counter()
    snapshots = Snapshots(folder, {"counter": part}, **options)
    for step in range(1, steps + 1):
        part.go()
        snapshots.save(step)
    return snapshots


def restored(folder, **options):
    """``(step, count)`` after what a new process would do."""
    part = Counter()
    step = Snapshots(folder, {"counter": part}, **options).restore()
    assert part.values[0] == part.count * (part.count + 1) / 2  # of one step
    return step, part.count


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_comes_back_and_the_last_few_are_kept(tmp_path):
    assert restored(tmp_path / "none") == (None, 0)
    snapshots = filled(tmp_path, steps=5, keep=2)
    assert restored(tmp_path) == (5, 5)
    assert [path.name for path in snapshots.paths()] == ["snapshot-5", "snapshot-4"]
    again = Snapshots(tmp_path, {"counter": Counter()}, keep=2)  # another process goes on deleting
    again.restore()
    again.save(6)
    assert [path.name for path in again.paths()] == ["snapshot-6", "snapshot-5"]
    assert files(tmp_path) == [
        "checkpoint",
        *(f"snapshot-{step}.{end}" for step in (5, 6) for end in ("data-00000-of-00001", "index")),
    ]


@pytest.mark.parametrize("which", ["data", "index"])
@pytest.mark.fault(20)
def test_a_snapshot_cut_short_or_altered_is_passed_over(tmp_path, caplog, which):
    """At every 37th byte a bit flipped, and the file cut there."""
    filled(tmp_path / "whole")
    (name,) = [name for name in files(tmp_path / "whole") if name.startswith(f"snapshot-4.{which}")]
    data = (tmp_path / "whole" / name).read_bytes()
    for place in range(0, len(data), 37 if which == "index" else 997):
        for altered in (data[:place], data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]):
            shutil.rmtree(tmp_path / "cut", ignore_errors=True)
            shutil.copytree(tmp_path / "whole", tmp_path / "cut")
            (tmp_path / "cut" / name).write_bytes(altered)
            caplog.clear()
            with caplog.at_level(logging.WARNING, "pipeline"):
                found = restored(tmp_path / "cut")
            if found != (4, 4):  # where the byte belongs to TensorFlow's description of what the file holds
                assert which == "data"
                assert found == (3, 3)
                assert "snapshot-4 is passed over" in caplog.text


@pytest.mark.fault(20)
def test_without_a_whole_one_it_is_an_error(tmp_path):
    filled(tmp_path, steps=2)
    for path in tmp_path.glob("*.data*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"none of the snapshots .* is whole .*; start again in another folder"):
        restored(tmp_path)


@pytest.mark.fault(21)
def test_a_newer_format_is_no_reason_to_take_an_older_snapshot(tmp_path, monkeypatch):
    for name in ("pipeline.checkpoints.FORMAT", "sampler.state_bytes.FORMAT"):
        shutil.rmtree(tmp_path / "f", ignore_errors=True)
        filled(tmp_path / "f", steps=2)
        part = Counter()
        with monkeypatch.context() as patch:
            patch.setattr(name, 9)
            Snapshots(tmp_path / "f", {"counter": part}).save(3)
        with pytest.raises(ValueError, match=r"snapshot-3 cannot be read.*format 9, this version reads up to 1"):
            restored(tmp_path / "f")


@pytest.mark.fault(22)
def test_nothing_but_a_state_is_read(tmp_path):
    snapshots = filled(tmp_path, steps=1)

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    for content in (pickle.dumps(Harmful()), b"\x80\x04", b"x" * 100):
        snapshots._run.data = content
        snapshots._manager.save(checkpoint_number=2)
        with pytest.raises(ValueError, match="no state"):
            snapshots.read(tmp_path / "snapshot-2")
    tf.train.Checkpoint(run=tf.Variable(1.0)).write(str(tmp_path / "snapshot-3"))
    with pytest.raises(ValueError, match="hold no state"):
        snapshots.read(tmp_path / "snapshot-3")
    for end in ("index", "data-00000-of-00001"):
        (tmp_path / f"snapshot-4.{end}").symlink_to(tmp_path / f"snapshot-1.{end}")
    with pytest.raises(ValueError, match="is a link"):
        snapshots.read(tmp_path / "snapshot-4")
    assert restored(tmp_path) == (1, 1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("named", ["../outside/snapshot-1", "/etc/snapshot-1", "other-1"])
@pytest.mark.fault(22)
def test_a_list_that_names_other_files_deletes_nothing(tmp_path, named):
    (tmp_path / "outside").mkdir()
    kept = tmp_path / "outside" / "snapshot-1.index"
    kept.write_text("mine")
    filled(tmp_path / "f", steps=1)
    (tmp_path / "f" / "checkpoint").write_text(
        f'model_checkpoint_path: "snapshot-1"\nall_model_checkpoint_paths: "{named}"\n'
    )
    filled(tmp_path / "f", steps=3, keep=1)
    assert kept.read_text() == "mine"
    assert restored(tmp_path / "f") == (3, 3)


@pytest.mark.fault(23)
def test_a_full_disk_leaves_the_last_snapshot_whole(tmp_path, monkeypatch):
    snapshots = filled(tmp_path, steps=2)
    before = files(tmp_path)
    usage = type("Usage", (), {"free": 500})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match=r"at step 3: 500 bytes are free. It takes [\d,]+ bytes; make room"):
            snapshots.save(3)

    def fails(*args, **options):  # the disk fills up on the way
        (tmp_path / "snapshot-3.data-00000-of-00001").write_bytes(b"half")
        (tmp_path / "snapshot-3_temp").mkdir()
        raise tf.errors.ResourceExhaustedError(None, None, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(snapshots._open(), "save", fails)
        with pytest.raises(OSError, match=r"No space left on device. It takes"):
            snapshots.save(3)
    assert files(tmp_path) == before
    assert restored(tmp_path) == (2, 2)
    snapshots.save(3)
    assert restored(tmp_path)[0] == 3


@pytest.mark.fault(23)
def test_a_real_disk_that_is_full(mounted):
    disk = mounted("size=1m")
    part = Counter(20_000)  # of which the disk has room for six
    snapshots = Snapshots(disk / "f", {"counter": part}, keep=9)
    with pytest.MonkeyPatch.context() as patch:  # so that the writing itself fails, in its middle
        patch.setattr(checkpoints.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 40}))
        for step in range(1, 7):
            part.go()
            snapshots.save(step)
        before = files(disk / "f")
        with pytest.raises(OSError, match=r"No space left on device.* It takes 24\d,\d+ bytes"):
            snapshots.save(7)
    with pytest.raises(OSError, match=r"at step 7: [\d,]+ bytes are free. It takes 24\d,\d+ bytes"):
        snapshots.save(7)
    assert files(disk / "f") == before
    assert restored(disk / "f") == (6, 6)


@pytest.mark.fault(23)
def test_a_real_disk_that_cannot_be_written_to(mounted):
    snapshots = Snapshots(mounted("size=1m,ro") / "f", {"counter": Counter()})
    with pytest.raises(OSError, match=r"Read-only file system.* It takes [\d,]+ bytes; make room, or name another"):
        snapshots.save(1)
    with pytest.raises(SnapshotError, match="Read-only file system"), snapshots.held():
        pass


@pytest.mark.fault(23)
def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"no snapshot was written into .*file/below at step 1"):
        Snapshots(tmp_path / "file" / "below", {"counter": Counter()}).save(1)


@pytest.mark.fault(26)
def test_two_runs_in_one_folder(tmp_path):
    """The other is a process of its own; killed, it leaves nothing that is in the way."""
    script = """
        import sys, time
        from pathlib import Path
        sys.modules["tensorflow"] = sys.modules["keras"] = None  # not needed for a lock
        import fcntl, os
        file = open(sys.argv[1], "a+")
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(os.getpid())); file.flush()
        print("held", flush=True); time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LockError, match=f"by another run, process {other.pid}"), Lock(tmp_path / "lock"):
            pass
        other.kill()
        other.wait()
    with Snapshots(tmp_path, {"counter": Counter()}).held():
        assert (tmp_path / "lock").read_text() == str(os.getpid())
        with pytest.raises(LockError, match=f"process {os.getpid()}"), Lock(tmp_path / "lock"):
            pass
    with Lock(tmp_path / "lock"):
        pass


@pytest.mark.fault(13)
@pytest.mark.fault(14)
def test_what_the_run_is_about_must_be_the_same(tmp_path):
    filled(tmp_path, about={"num_samples": 100, "data": "ab12"})
    assert restored(tmp_path, about={"num_samples": 100, "data": "ab12"}) == (4, 4)
    for about, message in (
        ({"num_samples": 101, "data": "ab12"}, "is of a run with num_samples 100, in this one it is 101"),
        ({"num_samples": 100, "data": "cd34"}, "is of a run with data 'ab12', in this one it is 'cd34'"),
        ({"num_samples": 100}, "is of a run with data 'ab12', in this one it is at its default"),
    ):
        with pytest.raises(ValueError, match=message):
            restored(tmp_path, about=about)


def test_other_parts_and_parts_that_refuse_are_errors(tmp_path):
    snapshots = filled(tmp_path)
    with pytest.raises(ValueError, match="has the parts counter, this run counter, sampler; go on with the same"):
        Snapshots(tmp_path, {"counter": Counter(), "sampler": Counter()}).restore()
    snapshots.parts["counter"].count = -5
    snapshots.save(9)
    with pytest.raises(ValueError, match="snapshot-9 does not fit: counter: count is below 0"):
        restored(tmp_path)


def model(units: int = 3) -> keras.Model:
    built = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5), keras.layers.Dense(units)])
    built.compile("adam", "mse")
    return built


def test_variables_are_all_there_are_of_a_model():
    first, second = model(), model()
    first.fit(np.ones((8, 2)), np.ones((8, 3)), verbose=0)
    state = Variables(first).state_dict()
    assert [len(state[kind]) for kind in ("model", "optimizer")] == [3, 6]  # the seed of the dropout among them
    Variables(second).load_state_dict(state)
    for one, other in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    np.testing.assert_array_equal(first.optimizer.variables[3], second.optimizer.variables[3])
    first(np.ones((1, 2)), training=True)
    assert not np.array_equal(state["model"][0], np.asarray(first.variables[0]))  # a copy


def test_variables_of_another_model_are_refused_as_a_whole():
    other = model(units=4)
    before = Variables(other).state_dict()
    with pytest.raises(ValueError, match=r"kernel must have shape \(2, 4\), got \(2, 3\)"):
        Variables(other).load_state_dict(Variables(model()).state_dict())
    state = Variables(model()).state_dict()
    with pytest.raises(ValueError, match="2 variables of the model were saved, here are 3"):
        Variables(model()).load_state_dict({**state, "model": state["model"][:2]})
    for kind, values in Variables(other).state_dict().items():
        for one, two in zip(values, before[kind], strict=True):
            np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="has no weights yet"):
        Variables(keras.Sequential([keras.layers.Dense(1)]), keras.optimizers.SGD())


def test_the_optimizer_of_a_loop_of_ones_own():
    one, optimizer = model(), keras.optimizers.SGD(0.1, momentum=0.9)
    state = Variables(one, optimizer).state_dict()
    assert len(state["optimizer"]) == len(optimizer.variables) == 4
    bare = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="not compiled; give the optimizer"):
        Variables(bare)
    Variables(bare, optimizer=keras.optimizers.SGD()).load_state_dict(
        Variables(bare, keras.optimizers.SGD()).state_dict()
    )


def test_a_part_must_be_one(tmp_path):
    with pytest.raises(TypeError, match=r"the part 'model' has no state_dict .*; give Variables\(model\)"):
        Snapshots(tmp_path, {"model": model()})


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b'model_checkpoint_path: "snapshot-1"\n'])
@pytest.mark.fault(25)
def test_the_list_of_snapshots_may_be_behind_or_damaged(tmp_path, monkeypatch, content):
    """A kill between a snapshot and the list of them: what was resumed from stays, and the oldest go as ever."""
    filled(tmp_path, steps=3)
    (tmp_path / "snapshot-2_temp").mkdir()
    (tmp_path / "checkpoint").unlink()
    if content is not None:
        (tmp_path / "checkpoint").write_bytes(content)
    part = Counter()
    snapshots = Snapshots(tmp_path, {"counter": part}, keep=2)
    assert snapshots.restore() == 3

    def fails(*args, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "full")

    with monkeypatch.context() as patch:
        patch.setattr(snapshots._open(), "save", fails)
        with pytest.raises(OSError, match=r"full. It takes"):
            snapshots.save(4)
    assert restored(tmp_path) == (3, 3)
    part.go()
    snapshots.save(4)
    assert [path.name for path in snapshots.paths()] == ["snapshot-4", "snapshot-3"]
    assert not list(tmp_path.glob("*_temp"))


def test_what_is_no_file_is_no_snapshot(tmp_path):
    """To open a pipe would wait for ever."""
    filled(tmp_path, steps=1)
    os.mkfifo(tmp_path / "snapshot-5.index")
    (tmp_path / "snapshot-6.index").mkdir()
    shutil.copy(tmp_path / "snapshot-1.index", tmp_path / "snapshot-7.index")
    os.mkfifo(tmp_path / "snapshot-7.data-00000-of-00001")
    assert restored(tmp_path) == (1, 1)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(LockError, match=r"cannot be locked: .*symbolic link"), Lock(tmp_path / "lock"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_what_else_can_lie_where_a_run_writes(tmp_path):
    (tmp_path / "file").write_text("mine")
    held = Snapshots(tmp_path / "file", {}).held()
    with pytest.raises(SnapshotError, match=r"cannot be a folder of snapshots: .*exists"), held:
        pass
    (tmp_path / "lock").mkdir()
    with pytest.raises(LockError, match=r"cannot be locked: .*directory"), Lock(tmp_path / "lock"):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").write_text("mine")
    for left in ("checkpoint", "snapshot-4_temp"):  # a link to a folder is removed, not what it names
        (tmp_path / left).symlink_to(tmp_path / "mine")
    snapshots = filled(tmp_path, steps=1)
    snapshots.clear()
    assert files(tmp_path) == ["file", "lock", "mine"]
    assert files(tmp_path / "mine") == ["kept"]


@pytest.mark.fault(25)
@pytest.mark.parametrize("name", ["lr[01]", "a*b", "q?", "{a}", "back\\slash", "sp ace ü"])
def test_a_folder_is_no_pattern(name, tmp_path):
    """TensorFlow takes it for one where it removes: its own snapshots would all stay, and others' would go."""
    neighbours = [tmp_path / other for other in ("lr1", "axb", "qx", "a")]
    for neighbour in neighbours:
        filled(neighbour)
    filled(tmp_path / name, steps=6)
    for folder, steps in ((tmp_path / name, (4, 5, 6)), *((each, (2, 3, 4)) for each in neighbours)):
        assert [path.name for path in Snapshots(folder, {}).paths()] == [f"snapshot-{step}" for step in steps[::-1]]
        assert restored(folder) == (steps[-1], steps[-1])


def test_what_others_have_in_the_folder_stays(tmp_path):
    others = ["snapshot-notes.txt", "snapshot-best.index", "checkpoint_best.weights.h5", "snapshot-3"]
    for name in others:
        (tmp_path / name).write_text("mine")
    for name in ("checkpoints", "checkpoint-1000", "snapshot-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.keras").write_text("mine")
    before = {path: path.is_dir() or path.read_text() for path in tmp_path.rglob("*")}
    snapshots = filled(tmp_path, steps=5)
    snapshots.clear()
    assert {path: path.is_dir() or path.read_text() for path in tmp_path.rglob("*")} == before


def test_the_list_does_not_grow_with_the_steps(tmp_path):
    filled(tmp_path, steps=100, keep=2)
    assert len((tmp_path / "checkpoint").read_text()) < 4_000
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "snapshot-100")


@pytest.mark.fault(26)
def test_a_folder_that_is_removed_is_taken_hold_of_again(tmp_path):
    folder, part = tmp_path / "run", Counter()
    first, second = (Snapshots(folder, {"counter": part}) for _ in range(2))
    with first.held():
        first.save(1)
        shutil.rmtree(folder)
        first.save(2)
        with pytest.raises(SnapshotError, match=f"in use by another run, process {os.getpid()}"), second.held():
            pass
        shutil.rmtree(folder)
        with second.held():  # is there first
            second.save(1)
            with pytest.raises(SnapshotError, match=f"in use by another run, process {os.getpid()}"):
                first.save(3)
            assert [path.name for path in second.paths()] == ["snapshot-1"]
    with second.held():
        pass


@pytest.mark.fault(22)
def test_an_index_is_not_believed(tmp_path):
    """Whatever it says: TensorFlow's reader would take memory for it, or end the process."""
    filled(tmp_path, steps=1)
    for content in (b"", b"x" * 300, np.random.default_rng(0).bytes(300)):
        (tmp_path / "snapshot-1.index").write_bytes(content)
        assert restored(tmp_path) == (1, 1)


def test_tensorflow_reads_what_is_here_read_past_it(tmp_path):
    snapshots = filled(tmp_path, steps=2)
    data = tf.train.load_checkpoint(str(tmp_path / "snapshot-2")).get_tensor("run/.ATTRIBUTES/py_state")
    read = snapshots.read(tmp_path / "snapshot-2")
    assert to_bytes(from_bytes(data)) == to_bytes(read)
    assert read["parts"]["counter"]["count"] == 2


def test_seeds_that_belong_to_no_model():
    def numbers() -> list[float]:
        return [float(keras.random.uniform(())), float(tf.random.get_global_generator().uniform(()))]

    keras.utils.set_random_seed(3)
    numbers()
    state = Seeds().state_dict()
    first = numbers()
    keras.utils.set_random_seed(4)
    tf.random.set_global_generator(tf.random.Generator.from_seed(4))
    assert numbers() != first
    Seeds().load_state_dict(from_bytes(to_bytes(state)))
    assert numbers() == first
    with pytest.raises(ValueError, match="tensorflow must have shape"):
        Seeds().load_state_dict({**state, "tensorflow": np.zeros(5, np.int64)})


def test_variables_of_bfloat16():
    def narrow() -> keras.Model:
        built = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, dtype="bfloat16")])
        built.compile("sgd", "mse")
        return built

    one, other = narrow(), narrow()
    Variables(other).load_state_dict(from_bytes(to_bytes(Variables(one).state_dict())))
    for first, second in zip(one.variables, other.variables, strict=True):
        assert (first.numpy() == second.numpy()).all()
