"""Worker processes on this machine, with TF_CONFIG as a cluster's manager would set it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack

from ..forking import Forked

SECONDS = 300.0  # far more than it takes, also on a busy machine


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def started(world: int, arguments: Sequence[str]) -> list[Forked]:
    """``python ARGUMENTS`` as each of ``world`` workers."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(world)]}
    tasks = [{"cluster": cluster, "task": {"type": "worker", "index": rank}} for rank in range(world)]
    return [Forked(arguments, {**os.environ, "TF_CONFIG": json.dumps(each)}) for each in tasks]


def ended(workers: Sequence[Forked]) -> list[tuple[int, str, str]]:
    """``(exit status, output, errors)`` of each; none is left behind."""
    try:
        said = [worker.communicate(timeout=SECONDS) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.returncode, *each) for worker, each in zip(workers, said, strict=True)]
