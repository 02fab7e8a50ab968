"""A node that dies: its shards come back on another one, and nobody draws in their place meanwhile.

A cluster of three nodes on this machine, each with a scheduler of its own. 30 s, 17 of them until the shard
is back.
"""

from __future__ import annotations

import contextlib
import os
import signal

import numpy as np
import pytest

from sampler import ShardedSampler
from sampler.ray_cluster import _enable_token, _on_loopback

from .conftest import SECONDS, patiently, scheduler_of

ray = pytest.importorskip("ray")

N, B = 60, 8
LOSSES = np.random.default_rng(0).gamma(1.0, size=N)


@pytest.fixture
def cluster(with_token):
    from ray.cluster_utils import Cluster

    assert _enable_token()
    with _on_loopback():
        small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
        made = patiently(lambda: Cluster(initialize_head=True, head_node_args=small))
        for _ in range(2):
            patiently(lambda: made.add_node(wait=False, **small))
        made.wait_for_nodes(SECONDS)
        yield made
        ray.shutdown()
        made.shutdown()


def node_with_a_shard(cluster, sampler):
    """A node that is not the head and has a shard, and which shards these are."""
    homes = [scheduler_of(process) for process in sampler.processes()]
    for node in cluster.worker_nodes:
        (raylet,) = node.all_processes["raylet"]
        mine = [shard for shard, home in enumerate(homes) if home == raylet.process.pid]
        if mine:
            return node, mine
    pytest.fail(f"the shards are all on one node: their schedulers are {homes}")


def test_the_shards_of_a_dead_node_come_back_on_another(cluster, tmp_path, caplog):
    options = {"shards": 3, "snapshots": tmp_path, "timeout": SECONDS, "first_pass": False, "prefetch": 0}
    with ShardedSampler(N, name="nodes", address=cluster.address, **options) as sampler:
        sampler.update(np.arange(N), LOSSES, step=0)
        sampler.snapshot()
        node, mine = node_with_a_shard(cluster, sampler)
        before = sampler.processes()
        cluster.remove_node(node, allow_graceful=False)
        for shard in mine:  # which may answer a while yet, though its node is gone
            with contextlib.suppress(ProcessLookupError):
                os.kill(before[shard], signal.SIGKILL)
        for _ in range(10):
            draw = sampler.draw(B)
            np.testing.assert_allclose(draw.weight, 1 / (N * draw.probability), rtol=3e-7)
            sampler.update(draw.index, LOSSES[draw.index], step=draw.step)
        sampler.flush()
        after = sampler.processes()
        assert [shard for shard in range(3) if before[shard] != after[shard]] == mine
        assert all(os.path.exists(f"/proc/{process}") for process in after)
        assert sampler.summary()["restarts"] == len(mine)
        assert sampler.step == 10
        np.testing.assert_allclose(sampler.priorities(), LOSSES, rtol=1e-6)  # as the snapshots knew them
        assert f"shard {mine[0]} of 'nodes' has died, and is back" in caplog.text
        sampler.remove()
