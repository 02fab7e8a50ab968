"""What several tests of the pipeline need: samplers that remember, and a Python of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sampler import Draw, ImportanceSampler
from sampler.base import Sampler

from ..forking import Forked

ROOT = Path(__file__).parents[2]


class RecordingSampler(ImportanceSampler):
    """Remembers the draws that left it, and the updates that came in."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.draws: list[Draw] = []
        self.polls = 0
        self.updates: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def poll(self, batch_size: int, *, seconds: float) -> Draw | None:
        self.polls += 1
        draw = super().poll(batch_size, seconds=seconds)
        if draw is not None:
            self.draws.append(draw)
        return draw

    def poll_rows(self, *rows: Any, seconds: float) -> int:
        return Sampler.poll_rows(self, *rows, seconds=seconds)  # by ``poll``

    def update(self, index: Any, losses: Any, step: Any = None, **more: Any) -> None:
        super().update(index, losses, step=step, **more)
        self.updates.append((np.array(index), np.array(losses), np.array(step)))


@pytest.fixture
def recording() -> type[RecordingSampler]:
    return RecordingSampler


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program in a process of its own, with TensorFlow loaded where Python gets no flags.

    ``TimeoutExpired`` where it hangs; the bound leaves room for a busy machine.
    """

    def run(program: str, *flags: str, seconds: float = 240.0) -> subprocess.CompletedProcess[str]:
        arguments = [*flags, "-c", textwrap.dedent(program)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
        if flags:
            command = [sys.executable, *arguments]
            options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
            return subprocess.run(command, **options, timeout=seconds, check=False)
        forked = Forked(arguments, environment)
        try:
            said = forked.communicate(seconds)
        finally:
            forked.kill()
        return subprocess.CompletedProcess(arguments, forked.returncode, *said)

    return run


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk in memory; skips where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        program = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(program, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True, check=False)
