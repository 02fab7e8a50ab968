"""The shards of a store as actors of Ray, and the calls to them.

    calls = RayCalls(mades, name="importance", namespace="mine", kept=Kept(max_restarts=3))
    ref = calls.send(2, "draw", orders, step)
    if calls.wait([ref], seconds=1.0):
        drawn = calls.result(2, ref)

Ray finds the actors by their names, carries the calls, notices that a process or a node has died and starts the actor
again, up to ``max_restarts`` times. It does not repeat a call (``max_task_retries`` is 0, or one that makes the
process crash would be repeated for ever): ``result`` raises ``ShardDown``, and :mod:`sampler.sharded` asks again.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sampler.ray_cluster import ray_module
from sampler.shard_options import Kept, Made
from sampler.shard_server import ShardServer

GONE = 60.0  # seconds for an actor that was removed to be no more


class ShardDown(Exception):
    """A shard did not answer: it starts again, or cannot be reached; the call may have been done, or not."""


class ShardLost(RuntimeError):
    """A shard is dead and does not start again."""


class ShardActor(ShardServer):
    """A ``ShardServer`` that knows from Ray whether it has died before."""

    def __init__(self, made: Made, folder: str | None, every: float, max_restarts: int) -> None:
        context = ray_module().get_runtime_context()
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

    @property
    def _ray(self) -> Any:
        """Ray, where it still runs: it would start another by itself, on all addresses, at the next call."""
        ray = ray_module()
        if not ray.is_initialized():
            raise ShardLost(
                f"Ray was shut down in this process, so the shard {self.names[0]!r} and the others of its store cannot "
                "be reached; make the ShardedSampler again"
            )
        return ray

    def there(self) -> int:
        """The first shard that is there, or 0 where none is."""
        return next((shard for shard in range(len(self.names)) if self._named(shard) is not None), 0)

    def send(self, shard: int, method: str, *arguments: Any) -> Any:
        """Call a method of a shard, without waiting; what ``wait`` and ``result`` take."""
        ray = self._ray
        if shard not in self._actors:
            self._actors[shard] = self._found_or_made(ray, shard)
        return getattr(self._actors[shard], method).remote(*arguments)

    def _found_or_made(self, ray: Any, shard: int) -> Any:
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
        return ray.remote(ShardActor).options(**options).remote(self._mades[shard], place, every, restarts)

    def _home(self, shard: int) -> Any:
        """A node for a shard, in turn, beginning anywhere; another one where it is gone. With Ray's own "SPREAD"
        it is left to chance, and all may be on the same.
        """
        ray = ray_module()
        nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
        first = zlib.crc32(f"{self.namespace}/{self.names[0]}".encode())
        strategies = ray.util.scheduling_strategies
        return strategies.NodeAffinitySchedulingStrategy(nodes[(first + shard) % len(nodes)], soft=True)

    def wait(self, refs: Sequence[Any], seconds: float) -> bool:
        """Whether all of these answers are there, after ``seconds`` at most; an answer may be that there is none."""
        return len(self._ray.wait(list(refs), num_returns=len(refs), timeout=seconds)[0]) == len(refs)

    def result(self, shard: int, ref: Any) -> Any:
        """An answer that is there. ``ShardDown``, ``ShardLost``, or what the method raised."""
        ray = self._ray
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
        ray = self._ray
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
            return self._ray.get_actor(self.names[shard], namespace=self.namespace)
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
