"""The shards of a store as actors of Ray, and the calls to them. Ray is imported here alone, on use.

    connect(None)                                       # a Ray of this machine, for this machine alone
    calls = RayCalls(mades, name="importance", namespace="mine", kept=Kept(max_restarts=3))
    ref = calls.send(2, "draw", orders, step)
    if calls.wait([ref], seconds=1.0):
        drawn = calls.result(2, ref)

Ray finds the actors by their names, carries the calls, notices that a process or a node has died and starts the actor
again, up to ``max_restarts`` times. It does not repeat a call (``max_task_retries`` is 0, or one that makes the
process crash would be repeated for ever): ``result`` raises ``ShardDown``, and :mod:`sampler.sharded` asks again.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sampler.shard_options import Kept, Made
from sampler.shard_server import ShardServer

GONE = 60.0  # seconds for an actor that was removed to be no more
GCS_PORT = 6379  # of a cluster's head, where the address names that of Ray's client
LONGEST_ASKED = 60.0  # seconds to find out whether a cluster asks for a token
IMPATIENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3", "RAY_gcs_rpc_server_connect_timeout_s": "2"}

_starting = threading.Lock()


class ShardDown(Exception):
    """A shard did not answer: it starts again, or cannot be reached; the call may have been done, or not."""


class ShardLost(RuntimeError):
    """A shard is dead and does not start again."""


class ShardActor(ShardServer):
    """A ``ShardServer`` that knows from Ray whether it has died before."""

    def __init__(self, made: Made, folder: str | None, every: float, max_restarts: int) -> None:
        context = _ray().get_runtime_context()
        again, owner = bool(context.was_current_actor_reconstructed), f"actor {context.get_actor_id()}"
        super().__init__(made, folder=folder, every=every, again=again, max_restarts=max_restarts, owner=owner)


class RayCalls:
    """The actors of a store. One that is not there yet is made when it is first called.

    Args:
        mades: what each shard is made with.
        name: of the store; shard s is the actor ``name-s``.
        namespace: of the names.
        kept: how those that are made are kept. The folder of the snapshots has one in it for each shard, and every node
            must reach it.

    Attributes:
        kept: with what is not named filled in; before the other shards are called, take here that of one that is there.
    """

    def __init__(self, mades: Sequence[Made], *, name: str, namespace: str, kept: Kept) -> None:
        self.names = [f"{name}-{made.shard}" for made in mades]
        self.namespace, self.kept = namespace, kept.filled()
        self._mades = list(mades)
        self._actors: dict[int, Any] = {}  # by shard, those called so far

    def there(self) -> int:
        """The first shard that is there, or 0 where none is."""
        return next((shard for shard in range(len(self.names)) if self._named(shard) is not None), 0)

    def send(self, shard: int, method: str, *arguments: Any) -> Any:
        """Call a method of a shard, without waiting; what ``wait`` and ``result`` take."""
        if shard not in self._actors:
            self._actors[shard] = self._found_or_made(shard)
        return getattr(self._actors[shard], method).remote(*arguments)

    def _found_or_made(self, shard: int) -> Any:
        name, (folder, every, restarts) = self.names[shard], self.kept
        options = {
            "name": name,
            "namespace": self.namespace,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": 0,
            "scheduling_strategy": self._home(shard),
            "max_restarts": restarts,
            "max_task_retries": 0,
        }
        place = None if folder is None else str(Path(folder) / name)
        return _ray().remote(ShardActor).options(**options).remote(self._mades[shard], place, every, restarts)

    def _home(self, shard: int) -> Any:
        """A node for a shard, in turn, beginning anywhere; another one where it is gone. With Ray's own "SPREAD"
        it is left to chance, and all may be on the same.
        """
        ray = _ray()
        nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
        first = zlib.crc32(f"{self.namespace}/{self.names[0]}".encode())
        strategies = ray.util.scheduling_strategies
        return strategies.NodeAffinitySchedulingStrategy(nodes[(first + shard) % len(nodes)], soft=True)

    def wait(self, refs: Sequence[Any], seconds: float) -> bool:
        """Whether all of these answers are there, after ``seconds`` at most; an answer may be that there is none."""
        return len(_ray().wait(list(refs), num_returns=len(refs), timeout=seconds)[0]) == len(refs)

    def result(self, shard: int, ref: Any) -> Any:
        """An answer that is there. ``ShardDown``, ``ShardLost``, or what the method raised."""
        ray = _ray()
        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.ActorDiedError as error:
            if not error.actor_init_failed and self._is_there(shard):
                raise ShardDown(str(error)) from error
            raise ShardLost(self._why_lost(shard, error)) from error
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.RpcError) as error:
            raise ShardDown(str(error)) from error

    def remove(self) -> None:
        """Kill the actors for good, and wait until their names are free; their snapshots stay."""
        ray = _ray()
        for actor in self._actors.values():
            ray.kill(actor)
        deadline = time.monotonic() + GONE
        while any(map(self._is_there, self._actors)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the actors of {self.names[0][:-2]!r} were killed, and are there after {GONE:g} s")
            time.sleep(0.05)

    def _named(self, shard: int) -> Any:
        """The actor of the shard's name, alive or to be started again, or None."""
        try:
            return _ray().get_actor(self.names[shard], namespace=self.namespace)
        except ValueError:
            return None

    def _is_there(self, shard: int) -> bool:
        """Whether that is still the one which was called."""
        actor = self._named(shard)
        return actor is not None and actor._actor_id == self._actors[shard]._actor_id

    def _why_lost(self, shard: int, error: Exception) -> str:
        failed = getattr(error, "actor_init_failed", False)
        if not failed and self._named(shard) is not None:
            return (
                f"the shard {self.names[shard]!r} was removed, or is dead, and another of that name is there: make the "
                "ShardedSampler again to share it"
            )
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[-1] if failed else " ".join(lines)[:500]
        return (
            f"the shard {self.names[shard]!r} is dead and does not start again: it could not be made, was removed, or "
            f"died more than max_restarts={self.kept.max_restarts} times. What is said of the last time: {why}. Make "
            "the ShardedSampler again, which goes on from the snapshots where there are any"
        )


def connect(address: str | None) -> None:
    """Join the Ray of this process, or the cluster at ``address``, or start one for this machine alone.

    Args:
        address: of a cluster that this machine is a node of, ``"host:port"``, or ``"auto"`` for the one that was
            started here last. None is what the environment's RAY_ADDRESS says, and without that a new Ray, which
            listens on 127.0.0.1, asks for a token, and ends with this process.

    Where this process has a Ray already, that is the one; ``ValueError`` for an ``address`` of another.
    ``PermissionError`` for a cluster that would be joined without a token: whoever reaches such a one can run any
    program there. ``ImportError`` without Ray.
    """
    given = address or None
    address = address or os.environ.get("RAY_ADDRESS") or None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default 15: a shard would wait for those who wait for it
    with _starting:
        ray = _ray()
        if ray.is_initialized():
            if given is not None:
                check_joined(given, str(ray.get_runtime_context().gcs_address))
            return
        quiet = {"logging_level": "ERROR", "log_to_driver": False}
        if address is None or address == "local":
            with _on_loopback():
                ray.init(address="local", include_dashboard=False, **quiet)
            return
        if is_loopback(address):
            _enable_token()  # if there is one
            with _on_loopback():
                ray.init(address=address, **quiet)
            return
        check_token(address)
        ray.init(address=address, **quiet)


def check_joined(address: str, joined: str) -> None:
    """``ValueError`` for an ``address`` that is not that of the cluster that this process has joined.

    Hosts are compared by the addresses that their names stand for. ``"auto"`` names none, ``"local"`` one of this
    machine, and the port of ``"ray://..."`` is another one than that of the cluster.
    """
    (host, port), (theirs, their_port) = _split(address), _split(joined)
    if address == "auto" or address == joined:
        return
    if address == "local":
        host = "localhost"
    if (address == "local" or address.startswith("ray://") or port == their_port) and _hosts(host) & _hosts(theirs):
        return
    raise ValueError(
        f"address={address!r}, but this process has joined the Ray at {joined!r} already; leave address out to use "
        "that one, or call ray.shutdown() first"
    )


def _split(address: str) -> tuple[str, str]:
    """The host of an address, and its port."""
    host, port = (*address.removeprefix("ray://").rsplit(":", 1), "")[:2]
    return host.strip("[]"), port


def _hosts(host: str) -> set[str]:
    """The addresses that the name of a host stands for, those of this machine as ``"here"``; none of an unknown one."""
    try:
        found = {(family, place[0]) for family, _, _, _, place in socket.getaddrinfo(host, None)}
    except OSError:
        return set()
    return {"here" if _is_here(family, str(place)) else str(place) for family, place in found}


def _is_here(family: socket.AddressFamily, place: str) -> bool:
    """Whether an address is one of this machine."""
    with socket.socket(family, socket.SOCK_DGRAM) as tried:
        try:
            tried.bind((place, 0))
        except OSError:
            return False
    return True


def is_loopback(address: str) -> bool:
    """Whether ``address`` names this machine, as no other machine can reach it."""
    host = _split(address)[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(address: str) -> None:
    """See to it that a token is asked for, here and there, and that there is one; ``PermissionError`` else.

    A cluster that asks for one takes seconds to say so.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token" or not _enable_token():
        raise PermissionError(
            f"the Ray cluster at {address!r} would be joined without a token, and whoever reaches such a cluster can "
            "run any program on it. Make a token with `ray get-auth-token --generate`, start the cluster with "
            "RAY_AUTH_MODE=token, and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, here"
            + ("" if mode.lower() == "token" else f"; RAY_AUTH_MODE is {mode!r} now")
        )
    if lets_in_anybody(address):
        raise PermissionError(
            f"the Ray cluster at {address!r} lets in whoever comes, with any token and without: start it with "
            "RAY_AUTH_MODE=token, or whoever reaches it can run any program on it"
        )


def lets_in_anybody(address: str) -> bool:
    """Whether the cluster at ``address`` answers one whose token is made up; False too where nobody answers.

    Asked by a process of its own, since Ray reads its token once.
    """
    made_up = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_AUTH_", "RAY_ADDRESS"))}
    if address.startswith("ray://"):
        address = f"{address.removeprefix('ray://').rsplit(':', 1)[0]}:{GCS_PORT}"
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        asked = subprocess.run(
            command, env={**kept, **IMPATIENT, **made_up}, capture_output=True, timeout=LONGEST_ASKED, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


def _enable_token() -> bool:
    """Have this process use the token that the environment, or the file of the user, has; whether there is one."""
    from ray._private.authentication import authentication_token_setup as setup

    if not setup.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        return False
    return bool(setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False))


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """What Ray starts meanwhile listens on 127.0.0.1 alone, as it does on macOS and Windows anyway, and is found there.

    ``_node_ip_address="127.0.0.1"`` would not do: Ray 2.60 takes it for a name of the machine and then listens on all
    its addresses.
    """
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before, constant = os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "ShardedSampler needs the package ray, which is not installed: pip install 'tf-importance-sampling[ray]'"
        ) from error
    return ray
