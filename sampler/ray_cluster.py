"""The Ray that a process joins, or starts: for this machine alone, or a cluster that asks for a token.

    connect(None)                           # a Ray of this machine, for this machine alone
    connect("head:6379")                    # a cluster that this machine is a node of

Ray is imported here alone, on use.
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
from collections.abc import Iterator
from typing import Any

GCS_PORT = 6379  # of a cluster's head, where the address names that of Ray's client
REACH, LOOK = 30.0, 0.2  # seconds in which a cluster must listen, which may just be starting; between two looks
LONGEST_ASKED = 60.0  # seconds to find out whether a cluster asks for a token
IMPATIENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3", "RAY_gcs_rpc_server_connect_timeout_s": "2"}

_starting = threading.Lock()


def connect(address: str | None) -> None:
    """Join the Ray of this process, or the cluster at ``address``, or start one for this machine alone.

    Args:
        address: of a cluster that this machine is a node of, ``"host:port"``, or ``"auto"`` for the one that was
            started here last. None is what the environment's RAY_ADDRESS says, and without that a new Ray, which
            listens on 127.0.0.1, asks for a token, and ends with this process.

    Where this process has a Ray already, that is the one; ``ValueError`` for an ``address`` of another.
    ``PermissionError`` for a cluster that would be joined without a token: whoever reaches such a one can run any
    program there. ``ConnectionError`` where nobody listens there within 30 s, and where
    none can be started. ``ImportError`` without Ray.
    """
    given = address or None
    address = address or os.environ.get("RAY_ADDRESS") or None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default 15: a shard would wait for those who wait for it
    with _starting:
        ray = ray_module()
        if ray.is_initialized():
            if given is not None:
                check_joined(given, str(ray.get_runtime_context().gcs_address))
            return
        quiet = {"logging_level": "ERROR", "log_to_driver": False}
        if address is None or address == "local":
            with _on_loopback():
                _start(include_dashboard=False, **quiet)
            return
        reach(address)
        if is_loopback(address):
            _enable_token()  # if there is one
            with _on_loopback():
                ray.init(address=address, **quiet)
            return
        check_token(address)
        ray.init(address=address, **quiet)


def _start(**options: Any) -> None:
    """Start a Ray; ``ConnectionError`` where that comes to nothing, for which Ray has no kind of error of its own."""
    try:
        ray_module().init(address="local", **options)
    except Exception as error:
        why = " ".join(str(error).split())
        raise ConnectionError(
            f"a Ray of this machine could not be started: {why:.300}. It does not where the machine is too busy, or "
            "has no memory or disk left: try again, or start it by `ray start --head` and set RAY_ADDRESS"
        ) from error


def reach(address: str) -> None:
    """Wait until somebody listens at ``host:port``; ``ConnectionError`` where nobody does. Ray 2.60 would go on trying
    for a quarter of an hour. What else an address may be is for Ray to find.
    """
    host, port = _split(address)
    if not port.isdecimal():
        return
    deadline = time.monotonic() + REACH
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=REACH or LOOK).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() >= deadline:
                raise ConnectionError(f"nobody listens at {address} ({error})") from error
        time.sleep(LOOK)


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


def ray_module() -> Any:
    """The package ``ray``; ``ImportError`` that says how to get it."""
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "ShardedSampler needs the package ray, which is not installed: pip install 'tf-importance-sampling[ray]'"
        ) from error
    return ray
