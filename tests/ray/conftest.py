"""One Ray for all tests of a file, started as ``ShardedSampler`` starts it: on 127.0.0.1, with a token of its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

Started = TypeVar("Started")

SECONDS = 240.0  # for whatever must come true on a machine that is busy


def until(what: Callable[[], object], seconds: float = SECONDS) -> object:
    """Wait until ``what()`` is true, and give it; fail where it is not in time."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        if time.monotonic() > deadline:
            pytest.fail(f"not true after {seconds:g} s: {what}")
        time.sleep(0.02)
    return value


def patiently(start: Callable[[], Started]) -> Started:
    """What ``start()`` gives; Ray 2.60 gives a node 30 s to start, which may be too few on a machine that is busy."""
    import ray

    for _ in range(4):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
    return start()


def stop(process: int) -> None:
    """Pause a process, and wait until it stands still."""
    os.kill(process, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")


def scheduler_of(process: int | str) -> int:
    """The number of the process that started this one: of a shard, the scheduler of its node."""
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.fixture(scope="session")
def with_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A token in a file, of which the environment tells, and nothing else of Ray's in the environment.

    One for all, as Ray keeps the token it has read once.
    """
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(os.urandom(32).hex())
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
        yield path
    os.environ.pop("RAY_AUTH_MODE", None)  # which Ray has set
