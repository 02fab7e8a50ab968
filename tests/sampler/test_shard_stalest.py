"""The stalest samples against a sort of all, and how many looks at all of them that takes. 2 s."""

from __future__ import annotations

import numpy as np
import pytest

from sampler import shard_stalest
from sampler.shard_options import Made
from sampler.shard_server import ShardServer
from sampler.shard_stalest import Stalest


def slow_twin(newest, count):
    index = np.lexsort((np.arange(newest.size), newest))[:count]
    return index, newest[index]


@pytest.mark.parametrize("n", [1, 2, 7, 300, 5000])
@pytest.mark.parametrize("distinct", [1, 5, 1000])
def test_they_are_those_of_a_sort_whatever_is_learnt_between(n, distinct, monkeypatch):
    monkeypatch.setattr(shard_stalest, "QUESTIONS", 3)
    rng = np.random.default_rng([n, distinct])
    newest, stalest = rng.integers(-1, distinct, size=n).astype(np.int32), Stalest()
    for step in range(200):
        index, known = stalest.find(newest, count := int(rng.integers(1, 1 + min(n, 40))))
        assert index.tolist() == slow_twin(newest, count)[0].tolist()
        assert known.tolist() == newest[index].tolist()
        newest[index[: int(rng.integers(count + 1))]] += int(
            rng.integers(1, distinct + 1)
        )  # some stay, as the hopeless
        newest[rng.integers(n, size=int(rng.integers(8)))] += 1  # and what others have learnt
        if step % 50 == 49:
            newest = rng.integers(-1, distinct, size=n).astype(np.int32)  # another state
            stalest.forget()
    everything = stalest.find(newest, 10 * n)
    assert everything[0].tolist() == slow_twin(newest, n)[0].tolist()


def test_without_forgetting_another_state_would_be_missed():
    newest, stalest = np.arange(1000, dtype=np.int32), Stalest()
    stalest.find(newest, 1)
    newest[999] = -1
    assert stalest.find(newest, 1)[0].tolist() == [0]
    stalest.forget()
    assert stalest.find(newest, 1)[0].tolist() == [999]


def test_a_scorer_causes_few_looks(monkeypatch):
    """One in 64 questions, or fewer: here 200 questions of 50 of 10,000 samples, while a trainer learns others."""
    looks, look = [], Stalest._look
    monkeypatch.setattr(Stalest, "_look", lambda *arguments: looks.append(1) or look(*arguments))
    server, rng = ShardServer(Made(10_000, 0, 1)), np.random.default_rng(0)
    for _ in range(200):
        index, known = server.stalest(50)
        assert index.size == 50
        assert index.tolist() == slow_twin(server.known(), 50)[0].tolist()
        assert (known == server.known()[index]).all()
        server.update(index, np.ones(50), np.full(50, 7))
        server.update(rng.integers(10_000, size=10), np.ones(10), np.full(10, 8))
    assert len(looks) <= 4


def test_a_state_that_is_loaded_is_looked_at_anew():
    server, other = ShardServer(Made(100, 0, 1)), ShardServer(Made(100, 0, 1))
    everything = np.arange(100)
    server.update(everything, np.ones(100), everything + 50)
    other.update(everything, np.ones(100), 149 - everything)
    assert server.stalest(3)[0].tolist() == [0, 1, 2]
    server.load_state_dict(other.state_dict())
    assert server.stalest(3)[0].tolist() == [99, 98, 97]
