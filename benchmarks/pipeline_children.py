"""Programs that measure in a process of their own, and tell of it by lines of JSON.

    with on_cores(2):                                            # what is started in here keeps to two cores
        child = Child(["benchmarks.pipeline_worker", argument])
    for told in child.lines():                                   # raises Lost where it fails
        ...

In the child: ``emit = emitter()`` before anything else is printed, then ``emit({...})``.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.measuring import Lost

ROOT = Path(__file__).resolve().parents[1]
SILENCE = 600.0  # seconds without a line after which a child is given up
ENDING = 10.0  # seconds to end by itself once it has closed its output
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "tensorflow"}


class Child:
    """A program of this package in an interpreter of its own."""

    def __init__(self, command: Sequence[str], *, silence: float = SILENCE) -> None:
        self._silence = silence
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the child
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            cwd=ROOT,
            env={**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def __enter__(self) -> Child:
        """It runs already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """It ends with the block."""
        self.close()

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it tells, until it ends. Raises ``Lost`` where it ends badly or says nothing for too long."""
        assert self._process.stdout is not None
        received = b""
        while True:
            ready, _, _ = select.select([self._process.stdout], [], [], self._silence)
            if not ready:
                self.close()
                raise Lost(f"it said nothing for {self._silence:g} s")
            more = os.read(self._process.stdout.fileno(), 1 << 16)
            if not more:
                break
            *whole, received = (received + more).split(b"\n")
            for line in whole:
                yield json.loads(line)
        self._check_end()

    def close(self) -> None:
        """End it, if it runs."""
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def _check_end(self) -> None:
        try:
            status: int | str = self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            return  # it has told all there is; close() ends it
        if status != 0:
            self._stderr.seek(0)
            said = self._stderr.read().decode(errors="replace").strip().splitlines()
            raise Lost(f"its process ended with status {status}" + (f": {said[-1]}" if said else ""))


def emitter() -> Callable[[dict[str, Any]], None]:
    """In the child: what writes a line to the parent. From now on what others print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def emit(told: dict[str, Any]) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    return emit


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """What is started inside keeps to the last ``count`` cores this process may use. Raises ``Lost`` for too few."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    if count > len(allowed):
        raise Lost(f"this process may use {len(allowed)} of the machine's cores, and {count} are asked for")
    os.sched_setaffinity(0, set(sorted(allowed)[-count:]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
