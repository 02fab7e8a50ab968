"""Calls of shards where Ray was shut down; all else of them is tried with a real Ray, in ``tests/ray``."""

from __future__ import annotations

import types
from typing import Any

import pytest

from sampler import ray_calls
from sampler.ray_calls import RayCalls, ShardLost
from sampler.shard_options import Kept


@pytest.mark.parametrize(
    "call",
    [
        lambda calls: calls.there(),
        lambda calls: calls.send(0, "draw", 3),
        lambda calls: calls.wait([1], 0.0),
        lambda calls: calls.result(0, 1),
        lambda calls: calls.remove(),
    ],
)
def test_no_call_starts_another_ray(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray does by itself, and that one listens on all addresses."""
    stopped = types.SimpleNamespace(is_initialized=lambda: False)  # what else is asked of it is an AttributeError
    monkeypatch.setattr(ray_calls, "ray_module", lambda: stopped)
    calls = RayCalls([types.SimpleNamespace(shard=0)], name="store", namespace="ours", kept=Kept(None, None, None))
    with pytest.raises(ShardLost, match="Ray was shut down in this process, so the shard 'store-0'"):
        call(calls)
