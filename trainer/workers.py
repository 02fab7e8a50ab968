"""``train.py --workers W``: that many processes on Ray, which train one model together.

    python train.py --workers 2 --output runs/mine
    RAY_ADDRESS=head:6379 python train.py --workers 8 --output /shared/mine     # on a cluster; docs/scale.md

Ray places an actor for each worker, on one node after the other, and each starts ``train.py`` anew as a process of its
own with a ``TF_CONFIG`` that names them all; from there on they are TensorFlow's (:mod:`pipeline.workers`). What each
says is in ``worker-RANK.log`` in the output folder, which all nodes must reach; what the first one says is shown.

Where a worker is lost, killed or with its node, all are started again, at most ``RESTARTS`` times, and go on from the
newest step that all have saved. SIGINT and SIGTERM end all of them after a step, with a snapshot: the first one is sent
SIGTERM, which ends it, too, where it has only begun.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.config import PROGRAM, Config, OptionError
from trainer.saving import caught, check_folder, check_unfinished

RESTARTS = 3
LOOK = 0.2  # seconds between two looks at the workers
GRACE = 20.0  # for those that are left, where one is lost, to say so
TAIL = 2000  # bytes of a log that are shown where it did not end well
FAILED = 1
TOLD = (0, 2, 128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit status of a worker that is not to be started again


class Process:
    """A worker: ``train.py`` as a process of its own, on the node where Ray has placed this actor."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, loopback: bool) -> str:
        """Where the others reach it: this node, and a port that was free a moment ago."""
        import ray

        host = "127.0.0.1" if loopback else ray.util.get_node_ip_address()
        with socket.socket() as found:
            found.bind((host, 0))
            return f"{host}:{found.getsockname()[1]}"

    def start(self, command: list[str], folder: str, environment: dict[str, str], log: str) -> int:
        """Start ``command``; gives the number of its process. It ends with this actor: Ray kills what it started.

        Raises ``OSError`` where ``log``, which is there already, or ``folder``, or the program cannot be reached here.
        """
        # Not made where it is not: that would be in a folder of this node's own.
        with open(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW), "ab") as file:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal comes through ``tell`` alone
            )
        return self._process.pid

    def status(self) -> int | None:
        """The exit status; None while it runs, negative for the signal that killed it."""
        assert self._process is not None
        return self._process.poll()

    def tell(self, number: int) -> None:
        """Send it a signal, if it was started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


class Team:
    """The workers of one attempt."""

    def __init__(self, world: int, loopback: bool) -> None:
        import ray

        self._ray = ray
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= world else 0
        actor = ray.remote(Process).options(num_cpus=0, num_gpus=gpus, scheduling_strategy="SPREAD")
        self._workers = [actor.remote() for _ in range(world)]
        self._addresses = ray.get([worker.address.remote(loopback) for worker in self._workers])

    def start(self, arguments: Sequence[str], logs: Sequence[Path]) -> None:
        """Start ``train.py`` on all; ``OptionError`` where a node has not what it takes."""
        command = [sys.executable, str(Path(__file__).parents[1] / PROGRAM), *arguments]
        cluster = {"worker": self._addresses}
        started = [
            worker.start.remote(
                command,
                os.getcwd(),
                {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})},
                str(log.absolute()),
            )
            for rank, (worker, log) in enumerate(zip(self._workers, logs, strict=True))
        ]
        try:
            self._ray.get(started)
        except OSError as error:  # which ``Process.start`` raised
            raise OptionError(
                f"a worker could not be started on its node: {getattr(error, 'cause', error)}. All workers must reach "
                "the same --output folder, and find Python, this program and the working directory at the paths they "
                "have here: choose an --output on a disk that all nodes share"
            ) from error

    def statuses(self) -> list[int | None]:
        """The exit status of each, None while it runs; -SIGKILL of one whose actor is gone."""
        found: list[int | None] = []
        for ref in [worker.status.remote() for worker in self._workers]:
            try:
                found.append(self._ray.get(ref))
            except self._ray.exceptions.RayActorError:
                found.append(-signal.SIGKILL)
        return found

    def tell(self, number: int) -> None:
        """Send the first one a signal; it tells the others."""
        with contextlib.suppress(self._ray.exceptions.RayActorError):
            self._ray.get(self._workers[0].tell.remote(number))

    def end(self) -> None:
        """Kill what is left."""
        with contextlib.suppress(self._ray.exceptions.RayActorError):
            self._ray.get([worker.tell.remote(signal.SIGKILL) for worker in self._workers])
        for worker in self._workers:
            self._ray.kill(worker)


def launch(config: Config, arguments: Sequence[str]) -> int:
    """Train with ``config.workers`` processes, started with the same ``arguments``; gives the exit status."""
    loopback = _joined(config)
    with caught() as signals:
        check_folder(config.folder)
        check_unfinished(config)
        logs = [config.folder / f"worker-{rank}.log" for rank in range(config.workers)]
        for log in logs:
            _emptied(log)
        with _shown(logs[0], config.quiet) as show:
            return _trained(config.workers, loopback, arguments, logs, signals, show)


def _emptied(log: Path) -> None:
    """Make a file with nothing in it; ``OptionError`` where it cannot be, and for a link, which is not followed."""
    try:
        os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666))
    except OSError as error:
        raise OptionError(f"the log {log} cannot be written: {error}; remove it, or choose another --output") from error


def _joined(config: Config) -> bool:
    """Join a Ray, or start one; whether it is of this machine alone. ``OptionError`` where there is none to be had."""
    try:
        from sampler.ray_cluster import connect, is_loopback

        address = os.environ.get("RAY_ADDRESS", "")
        connect(None)
    except (ImportError, PermissionError) as error:
        raise OptionError(f"--workers {config.workers} needs Ray: {error}") from error
    except ConnectionError as error:
        if not address:
            raise OptionError(f"--workers {config.workers}: {error}") from error
        raise OptionError(
            f"--workers {config.workers} joins the Ray cluster of RAY_ADDRESS={address}, and cannot: "
            f"{str(error).rstrip('.')}. Start the cluster, set its address, or none for a Ray of this machine alone"
        ) from error
    except SystemExit:  # with which Ray 2.60 answers SIGTERM
        raise KeyboardInterrupt(signal.SIGTERM) from None
    return not address or address == "local" or is_loopback(address)


def _trained(
    world: int, loopback: bool, arguments: Sequence[str], logs: Sequence[Path], signals: list[int], show: Any
) -> int:
    """Start the workers, again where some are lost; gives the exit status."""
    again: list[str] = []
    for attempt in range(RESTARTS + 1):
        team = Team(world, loopback)
        try:
            team.start([*arguments, *again], logs)
            statuses = _watched(team, signals, show)
        finally:
            team.end()
        if all(status in TOLD for status in statuses):
            ended = max(status or 0 for status in statuses)
            return 128 + signals[-1] if signals and ended == 128 + signal.SIGTERM else ended
        if signals and statuses[0] != FAILED:  # told to end before they could hear of it
            _say("interrupted while the workers started; what was saved before is there: go on with --resume")
            return 128 + signals[-1]
        lost = [rank for rank, status in enumerate(statuses) if status is not None and status < 0]
        if not lost or attempt == RESTARTS:
            break
        _say(f"lost worker {', '.join(map(str, lost))}; all are started again ({attempt + 1} of {RESTARTS})")
        again = ["--resume"]
    _say(f"the workers ended with status {', '.join(map(str, statuses))}. The last that was said:")
    for rank, (log, status) in enumerate(zip(logs, statuses, strict=True)):
        if status != 0:
            _say(f"worker {rank}: {log}:\n{log.read_bytes()[-TAIL:].decode(errors='replace')}")
    return FAILED


def _watched(team: Team, signals: list[int], show: Any) -> list[int | None]:
    """Wait until all have ended, or one has not ended well and the others had time to; gives their status."""
    told, until = False, float("inf")
    while True:
        statuses = team.statuses()
        show()
        if signals and not told:
            team.tell(signal.SIGTERM)  # SIGINT is an error like others to a Python that has only begun
            told = True
        if None not in statuses or time.monotonic() > until:
            return statuses
        if until == float("inf") and any(status not in (None, *TOLD) for status in statuses):
            until = time.monotonic() + GRACE
        time.sleep(LOOK)


@contextlib.contextmanager
def _shown(log: Path, quiet: bool) -> Iterator[Any]:
    """Gives what shows the lines that are new in a log."""
    place = 0

    def show() -> None:
        nonlocal place
        if quiet or not log.exists():
            return
        with log.open("rb") as file:
            file.seek(place)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        place += len(whole)
        if whole:
            print(whole.decode(errors="replace"), end="", flush=True)

    yield show
    show()


def _say(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)
