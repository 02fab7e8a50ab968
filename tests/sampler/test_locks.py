"""The lock of a folder: who has it, and whether it is still that of the file of its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sampler.locks import Lock, LockError, check_free

pytest.importorskip("fcntl")
TAKEN = f"is in use by another run, process {os.getpid()}"


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    check_free(path)
    assert not path.exists()
    with Lock(path) as first:
        first.take()  # it has it
        assert path.read_text() == str(os.getpid())
        for attempt in (Lock(path).take, lambda: check_free(path)):
            with pytest.raises(LockError, match=TAKEN):
                attempt()
    check_free(path)
    with Lock(path):
        pass


@pytest.mark.parametrize("again", [False, True])
def test_a_file_that_was_removed_is_taken_again_unless_another_has_it(again: bool, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with Lock(path) as first:
        path.unlink()
        if again:
            with Lock(path):
                for _ in range(2):
                    with pytest.raises(LockError, match=TAKEN):
                        first.take()
        first.take()
        with pytest.raises(LockError, match=TAKEN):
            check_free(path)


def test_no_file_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Lock(tmp_path / "lock") as lock:
        for _ in range(20):
            (tmp_path / "lock").unlink()
            lock.take()
            with pytest.raises(LockError):
                check_free(tmp_path / "lock")
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert len(os.listdir("/proc/self/fd")) == before
