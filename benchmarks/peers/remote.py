"""Our side of the workers: start one a peer, ask it, and give it up with a reason.

    with Remotes() as remotes:
        remotes.build("priorities.npy", size=10_000)         # dict of what was built
        contestants, skipped = remotes.prepare(batch=256, seed=0)
        contestants["tianshou SegmentTree"].turn(64)          # (µs of a draw, µs of an update)

A peer has one worker for the whole run, which builds one store after another; between its turns it sleeps, waiting
for a line. Whatever goes wrong in it (not installed, not loading, dying, not answering in time) becomes a reason that
stands in the results instead of a figure, and leaves the others alone.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any

from benchmarks.measuring import Lost

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".peers"
BUILDING = 600.0  # seconds to import and to build the largest store
ASKING = 120.0  # seconds for any other answer: one turn
ENDING = 5.0  # seconds to end by itself

# One thread each, no accelerator, no banners.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "RL_WARNINGS": "0",
}


@dataclass(frozen=True)
class Peer:
    """One system of others.

    It lives in ``.peers/<environment>`` and is called ``system`` in :mod:`benchmarks.peers.systems`. It is not
    measured above ``up_to`` samples, and known to draw right only below ``right_below``.
    """

    environment: str
    system: str
    kind: str
    up_to: int | None = None
    right_below: int | None = None

    def command(self) -> list[str]:
        """How its worker is started. Raises ``Lost`` where it is not installed."""
        folder = FOLDER / self.environment
        if not (folder / "installed").exists():
            raise Lost(f"not installed: there is no .peers/{self.environment}; make peers builds it")
        return [str(folder / "bin" / "python"), "-W", "ignore", "-m", "benchmarks.peers.worker"]


TORCHRL_FP32 = "TorchRL SumSegmentTreeFp32"
TIANSHOU = "tianshou SegmentTree"
TORCHRL_PUBLIC = "TorchRL PrioritizedSampler"

PEERS: Mapping[str, Peer] = {
    # float32 sums draw wrong in a large tree: after 1e8 draws at N = 1e7 χ² per item is 1.79, where 1.00 is right.
    TORCHRL_FP32: Peer("torchrl", "torchrl_fp32", "kernel", right_below=10_000_000),
    "TorchRL SumSegmentTreeFp64": Peer("torchrl", "torchrl_fp64", "kernel"),
    TIANSHOU: Peer("tianshou", "tianshou", "kernel"),
    "flashbax sum tree": Peer("flashbax", "flashbax", "kernel", right_below=10_000_000),
    "Dopamine SumTree": Peer("dopamine", "dopamine", "kernel", up_to=10_000_000),
    TORCHRL_PUBLIC: Peer("torchrl", "torchrl_buffer", "public"),
    "cpprb PrioritizedReplayBuffer": Peer("cpprb", "cpprb", "public"),
    "sortedcontainers, P ~ 1/rank": Peer("sortedcontainers", "sortedcontainers", "public", up_to=1_000_000),
    "Reverb client": Peer("reverb", "reverb", "public", up_to=100_000),
}


class Remote:
    """One worker; a contestant once it has built and prepared."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        building: float = BUILDING,
        asking: float = ASKING,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.building, self.asking = building, asking
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the worker
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, **environment, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self._received = b""

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self._process.poll() is None

    def build(self, system: str, priorities: Path) -> dict[str, Any]:
        """Make the store; what the worker told of it."""
        return self.ask(self.building, do="build", system=system, priorities=str(priorities))

    def prepare(self, batch: int, seed: int) -> dict[str, Any]:
        """Make ready for a batch size; what the worker told of it."""
        return self.ask(self.building, do="batch", batch=batch, seed=seed)

    def turn(self, steps: int) -> tuple[float, float]:
        """Do ``steps`` steps; the mean µs of a draw and of an update."""
        told = self.ask(self.asking, do="turn", steps=steps)
        return told["draw_us"], told["update_us"]

    def ask(self, seconds: float, **request: Any) -> dict[str, Any]:
        """One request, one answer. Raises ``Lost`` where none comes, or an error."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            told: dict[str, Any] = json.loads(self._line(time.monotonic() + seconds))
        except TimeoutError:
            self.close(at_once=True)
            raise Lost(f"no answer to {request['do']} within {seconds:g} s") from None
        except (OSError, EOFError):
            raise Lost(self._last_words()) from None
        if "error" in told:
            raise Lost(told["error"])
        return told

    def close(self, *, at_once: bool = False) -> None:
        """End the worker: it is told by the end of its input, and stopped if it does not listen."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if at_once:
            self._process.kill()
        self._process.stdin.close()
        try:
            self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._process.stdout], [], [], max(left, 0.0))
            if not ready:
                raise TimeoutError
            more = os.read(self._process.stdout.fileno(), 65536)
            if not more:
                raise EOFError
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _last_words(self) -> str:
        """Why it ended: its status and the last line it wrote."""
        try:
            status: int | str = self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            status = "unknown"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"the worker ended with status {status}" + (f": {lines[-1]}" if lines else "")


class Remotes:
    """The workers of all peers, for one run. What was lost stays lost."""

    def __init__(self, peers: Mapping[str, Peer] = PEERS) -> None:
        self._peers = peers
        self._running: dict[str, Remote] = {}
        self._lost: dict[str, str] = {}
        self._beyond: dict[str, str] = {}
        self.told: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Remotes:
        """Workers are started when something is built."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all workers."""
        for remote in self._running.values():
            remote.close()

    def build(self, priorities: Path, size: int) -> None:
        """Build every peer that goes this far, one after the other."""
        self.told, self._beyond = {}, {}
        for name, peer in self._peers.items():
            if peer.up_to is not None and size > peer.up_to:
                self._beyond[name] = f"not measured above N={peer.up_to:,}"
            elif name not in self._lost:
                self._try(name, partial(self._build, name, peer, priorities))

    def prepare(self, batch: int, seed: int) -> tuple[dict[str, Remote], dict[str, str]]:
        """Make ready for a batch size: the contestants, and why others are skipped."""
        for name in list(self.told):
            self._try(name, partial(self._prepare, name, batch, seed))
        return {name: self._running[name] for name in self.told}, {**self._lost, **self._beyond}

    def lose(self, name: str, reason: str) -> None:
        """Give a peer up."""
        self._lost[name] = reason
        self.told.pop(name, None)
        remote = self._running.pop(name, None)
        if remote is not None:
            remote.close(at_once=True)

    def _build(self, name: str, peer: Peer, priorities: Path) -> None:
        if name not in self._running:
            self._running[name] = Remote(peer.command())
        self.told[name] = self._running[name].build(peer.system, priorities)

    def _prepare(self, name: str, batch: int, seed: int) -> None:
        self.told[name].update(self._running[name].prepare(batch, seed))

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Lost as lost:
            self.lose(name, str(lost))
