"""A cache is whole or not there: interruptions, writers at once, full disks; and what it costs in memory."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from pipeline import blobs, cache, reading
from pipeline.sources import as_source

from .caches import Counted, alter, held, litter, numbers, words
from .conftest import ROOT
from .kinds import N


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_ELEMENTS", 4)  # so that a few elements take several reads


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# --- interrupted ----------------------------------------------------------------------------------


def failing(at: int, count: int = 3000) -> tf.data.Dataset:
    def element(i: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([tf.debugging.assert_less(i, tf.constant(at, tf.int64), "it is broken here")]):
            return tf.identity(i)

    return tf.data.Dataset.range(count).map(element)


@pytest.mark.parametrize("where", ["memory", "directory"])
def test_a_dataset_that_fails_in_the_middle(where: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_ELEMENTS", 1024)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"elements 1024 to 2047: (.|\n)*it is broken here"):
        as_source(failing(1500), cache="memory" if where == "memory" else place)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"elements 2048 to 2999: (.|\n)*it is broken here"):
        as_source(failing(2999), cache="memory" if where == "memory" else place)
    assert os.listdir(place.parent) == []


def test_an_interruption_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        as_source(words(), cache=place)
    assert os.listdir(place.parent) == []


WRITE = """
    import sys, numpy as np, tensorflow as tf
    from pipeline import reading
    from pipeline.sources import as_source
    reading.CHUNK_ELEMENTS = 4

    def slow(i):
        if i >= 40:
            print("writing", flush=True)
            sys.stdin.read()
        return i

    dataset = tf.data.Dataset.range(100).map(lambda i: tf.ensure_shape(tf.numpy_function(slow, [i], tf.int64), ()))
    as_source(dataset, cache=sys.argv[1])
"""


def test_a_killed_writer_leaves_nothing_that_is_used_or_stays(place: Path) -> None:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITE), place], env=environment, **pipes) as writer:
        assert writer.stdout.readline() == b"writing\n"
        (half,) = litter(place)
        assert f"-{writer.pid}-" in half
        assert not place.exists()
        # It is at work, and its files are left alone.
        assert held(as_source(numbers(), cache=place)) == held(as_source(numbers(), cache=place))
        assert litter(place) == [half]
        shutil.rmtree(place)
        writer.send_signal(signal.SIGKILL)
    counted = Counted()
    assert held(as_source(counted.dataset, cache=place)) == [list(range(100))]
    assert counted.reads == 100 + 2 * cache.FIRST
    assert litter(place) == []


def test_what_an_earlier_process_of_the_same_number_left_is_removed(place: Path) -> None:
    half = cache._beside(place)
    half.mkdir()
    (half / "0-values.bin").write_text("half")
    mine = half.with_name(half.name.replace(f"-{os.getpid()}-", "-mine-"))
    mine.mkdir()
    as_source(numbers(), cache=place)
    assert litter(place) == [mine.name]


def test_the_later_of_two_writers_uses_the_cache_of_the_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins and ends while the first is reading."""
    first, second = Counted(), Counted()
    plain, winner = cache.read, []

    def read(*args: Any) -> Any:
        monkeypatch.setattr(cache, "read", plain)
        parts = plain(*args)
        winner.append(as_source(second.dataset, cache=place))
        winner.append((place / "cache.json").stat().st_ino)
        return parts

    monkeypatch.setattr(cache, "read", read)
    assert held(as_source(first.dataset, cache=place)) == held(winner[0]) == [list(range(100))]
    assert (place / "cache.json").stat().st_ino == winner[1]
    assert litter(place) == []


def test_two_threads_write_at_once(place: Path) -> None:
    meet = threading.Barrier(2, timeout=30)
    got: list[Any] = []

    def write() -> None:
        meet.wait()
        got.append(held(as_source(words(), cache=place)))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[0] == got[1] == held(as_source(words(), cache=place))
    assert litter(place) == []


def test_a_writer_for_another_dataset_does_not_use_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = cache.read

    def read(*args: Any) -> Any:
        monkeypatch.setattr(cache, "read", plain)
        as_source(numbers(), cache=place)
        return plain(*args)

    monkeypatch.setattr(cache, "read", read)
    with pytest.raises(ValueError, match="another dataset"):
        as_source(words(), cache=place)
    assert litter(place) == []


# --- no room --------------------------------------------------------------------------------------


class Full(io.RawIOBase):
    """A file on a disk that has room for so many bytes."""

    room = 0

    def __init__(self, path: Path, _: str, buffering: int) -> None:
        super().__init__()
        self.file = open(path, "xb", buffering=0)  # noqa: SIM115

    def write(self, part: Any) -> int:
        if len(part) > Full.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        Full.room -= len(part)
        return self.file.write(part)

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()
        super().close()


@pytest.mark.parametrize("earlier", [False, True])
def test_a_disk_that_becomes_full(earlier: bool, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if earlier:  # a damaged one is not taken away before there is another
        as_source(words(), cache=place)
        alter(place / "1-values.bin", 0)
    before = {path.name: path.read_bytes() for path in place.iterdir()} if earlier else {}
    monkeypatch.setattr(blobs, "open", Full, raising=False)
    monkeypatch.setattr(Full, "room", 250)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(OSError, match=rf"{N} elements could not be written to {place}: No space left") as raised:
            as_source(words(), cache=place)
    assert raised.value.errno == errno.ENOSPC
    for part in (
        r"about [1-9][0-9]* bytes are needed",
        r"[0-9,]+ are free there now",
        "free some space, or name a dir",
    ):
        assert raised.match(part)
    assert litter(place) == []
    assert ({path.name: path.read_bytes() for path in place.iterdir()} if earlier else {}) == before


def test_too_little_room_for_a_known_size_is_found_before_anything_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 201, 799))
    with pytest.raises(OSError, match=r"after 0 elements.* 800 bytes are needed, 799 are free there now"):
        as_source(counted.dataset, cache=place)
    assert counted.reads == 2 * cache.FIRST
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 200, 800))
    as_source(counted.dataset, cache=place)


def test_a_real_disk_that_is_full(mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=1m")
    large = tf.data.Dataset.range(40).map(lambda i: tf.fill([tf.cast(i, tf.int32) * 3000], i))
    with pytest.raises(OSError, match=r"No space left on device.*about [0-9,]{9,} bytes are needed, by what was read"):
        as_source(large, cache=disk / "cache")
    assert os.listdir(disk) == []
    as_source(numbers(), cache=disk / "cache")
    with pytest.raises(ValueError, match=r"is where a disk is mounted.*such as .*disk/cache"):
        as_source(numbers(), cache=disk)


def test_a_real_disk_that_cannot_be_written_to(mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=1m,ro")
    with pytest.raises(OSError, match=r"Read-only file system.* 276 bytes are needed.*name one that can be written to"):
        as_source(numbers(), cache=disk / "cache")


def test_a_folder_that_cannot_be_written_to(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied.* 276 bytes are needed.*one that can be written to"):
        as_source(numbers(), cache=place)


# --- memory -----------------------------------------------------------------------------------------


def peak() -> int:
    """Bytes of memory this process has had at most."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


@pytest.fixture
def from_here() -> Callable[[], int]:
    """Begins to watch memory; the function gives how much more than at the beginning there was at most."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        begin = peak()
    except OSError:
        pytest.skip("the peak of memory cannot be read here")
    return lambda: peak() - begin


LARGE = 200 << 20


@pytest.mark.parametrize("varying", [False, True])
def test_only_a_part_is_held_while_it_is_written(
    varying: bool, place: Path, monkeypatch: pytest.MonkeyPatch, from_here: Callable[[], int]
) -> None:
    monkeypatch.setattr(reading, "CHUNK_ELEMENTS", 1024)
    monkeypatch.setattr(reading, "CHUNK_BYTES", 4 << 20)
    width = (1 << 20) + (1 if varying else 0)
    dataset = tf.data.Dataset.range(LARGE >> 20)
    if varying:
        dataset = dataset.map(lambda i: tf.fill([width - tf.cast(i % 2, tf.int32)], tf.cast(i, tf.uint8)))
    else:
        dataset = dataset.map(lambda i: tf.fill([width], tf.cast(i, tf.uint8)))
    source = as_source(dataset, cache=place)
    assert from_here() < LARGE // 2
    assert len(source) == LARGE >> 20
    assert (place / "0-values.bin").stat().st_size >= LARGE - 200


@pytest.mark.parametrize("varying", [False, True])
def test_one_copy_is_held_in_memory(
    varying: bool, monkeypatch: pytest.MonkeyPatch, from_here: Callable[[], int]
) -> None:
    monkeypatch.setattr(reading, "CHUNK_BYTES", 4 << 20)
    dataset = tf.data.Dataset.range(LARGE >> 20)
    if varying:
        dataset = dataset.map(lambda i: tf.fill([(1 << 20) - tf.cast(i % 2, tf.int32)], tf.cast(i, tf.uint8)))
    else:
        dataset = dataset.map(lambda i: tf.fill([1 << 20], tf.cast(i, tf.uint8)))
    source = as_source(dataset)
    assert from_here() < 1.75 * LARGE
    assert len(source) == LARGE >> 20
