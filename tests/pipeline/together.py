"""Worker processes on this machine, with TF_CONFIG as a cluster's manager would set it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 300.0  # far more than it takes, also on a busy machine


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def started(world: int, arguments: Sequence[str]) -> list[subprocess.Popen[str]]:
    """``python ARGUMENTS`` as each of ``world`` workers."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(world)]}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def ended(workers: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """``(exit status, output, errors)`` of each; none is left behind."""
    try:
        said = [worker.communicate(timeout=SECONDS) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.returncode, *each) for worker, each in zip(workers, said, strict=True)]
