"""What carries calls to shards without Ray: servers in this process, which can die, be paused, and come late."""

from __future__ import annotations

import copy
import time

from sampler.ray_calls import ShardDown, ShardLost
from sampler.shard_server import ShardServer


class InProcess:
    """Give it as ``calls=`` to several samplers, and they share one store.

    A shard that died is down for the next ``down`` calls and then made again, as Ray would. One that is paused does
    what it was asked when it goes on. ``asked`` has every call that came to a shard: (shard, method).
    """

    def __init__(self, folder=None, down=1):
        self.folder, self.down = folder, down
        self.mades, self.servers = None, []
        self.dead, self.paused, self.lost, self.waiting, self.asked = {}, set(), set(), [], []

    def __call__(self, mades):
        if self.mades is None:
            self.mades = mades
            self.servers = [self.made(shard) for shard in range(len(mades))]
        return self

    def made(self, shard, again=False):
        folder = None if self.folder is None else self.folder / str(shard)
        return ShardServer(self.mades[shard], folder=folder, every=1e6, again=again)

    def kill(self, shard):
        self.servers[shard].close()
        self.dead[shard] = self.down

    def go_on(self, shard):
        self.paused.discard(shard)
        for ref in [ref for ref in self.waiting if ref["shard"] == shard]:
            self.waiting.remove(ref)
            self._do(ref)

    def send(self, shard, method, *arguments):
        self.asked.append((shard, method))
        ref = {"shard": shard, "method": method, "arguments": copy.deepcopy(arguments)}
        if shard in self.paused:
            self.waiting.append(ref)
        else:
            self._do(ref)
        return ref

    def _do(self, ref):
        shard = ref["shard"]
        if shard in self.lost:
            ref["error"] = ShardLost("it is dead")
        elif self.dead.get(shard, 0) > 0:
            self.dead[shard] -= 1
            ref["error"] = ShardDown("it is down")
        else:
            if shard in self.dead:
                del self.dead[shard]
                self.servers[shard] = self.made(shard, again=True)
            try:
                ref["result"] = copy.deepcopy(getattr(self.servers[shard], ref["method"])(*ref["arguments"]))
            except Exception as error:
                ref["error"] = error

    def wait(self, refs, seconds):
        there = all("result" in ref or "error" in ref for ref in refs)
        if not there:
            time.sleep(min(seconds, 0.01))
        return there

    def result(self, shard, ref):
        if "error" in ref:
            raise ref["error"]
        return ref["result"]

    def remove(self):
        self.mades, self.servers = None, []
