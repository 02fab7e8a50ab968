"""What a ``ShardedSampler`` shows of its shards: priorities, ages, the stalest samples, and where it stands.

    sampler.probabilities()                             # of every sample
    index = sampler.stalest(1_000)
    sampler.summary()["lost_updates"]

All but ``summary`` ask the shards, behind all updates of this client, and change nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import checks, weights
from sampler.base import RECENT_DRAWS, SUMMED_DRAWS, Float64s, Int64s
from sampler.shard_calls import Call, Patient
from sampler.shard_plan import Pool, ShardPlan
from sampler.shard_standing import Standing


class ShardedViews:
    """What of a ``ShardedSampler`` looks at it."""

    shards: int
    uniform_fraction: float
    _size: int
    _patient: Patient
    _plan: ShardPlan
    _pool: Pool
    _standing: Standing
    _telling: threading.Lock
    _counts: dict[str, int]
    _step: int
    _drawn: int
    _recent: Float64s

    def probabilities(self) -> Float64s:
        """Give p of every sample, what an independent draw would use that knew all totals. O(N), a call a shard.

        (N,) float64, sums to 1.
        """
        values = self.priorities()
        total = values.sum()
        share = values / total if total > 0.0 else np.full(self._size, 1.0 / self._size)
        probability: Float64s = (1.0 - self.uniform_fraction) * share + self.uniform_fraction / self._size
        return probability

    def priorities(self) -> Float64s:
        """The priority of every sample: (N,) float64, ≥ 0. O(N), a call a shard."""
        return self._gathered("priorities")

    def ages(self) -> Int64s:
        """How stale what is known of each sample is, in draws: (N,) int64, ≥ 0. O(N), a call a shard."""
        return np.maximum(self._step - 1 - self._gathered("known").astype(np.int64), 0)

    def stalest(self, count: int) -> Int64s:
        """The ``count`` samples of all shards of the greatest age, the oldest first: at most all N. As ``oldest``."""
        return self.oldest(count, range(self.shards))[0]

    def oldest(self, count: int, shards: Iterable[int]) -> tuple[Int64s, Int64s]:
        """The ``count`` samples of these shards whose newest loss is the oldest, the oldest first, and its step.

        (m,) int64 each, m ≤ count; the step is -1 of a sample of which nothing is known. A call a shard, behind all
        updates, and O(count) in the shard, but for one question in 64 or more, which looks at all its n samples while
        draws wait. Of 512 samples and n = 50,000, a million and 12.5 million a question took 0.2 ms of CPU on average,
        0.2 and 0.4; those that look at all took up to 2, 9 and 120.
        """
        count = checks.whole("count", count, least=1)
        self.flush()
        calls = [Call(shard, "stalest", min(count, int(self._plan.size[shard]))) for shard in shards]
        answers = zip(calls, self._patient.answers(calls), strict=True)
        parts = [(index + self._plan.first[call.shard], known) for call, (index, known) in answers]
        index, known = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((index, known))[:count]
        return index[order], known[order]

    def processes(self) -> list[int]:
        """The number of the process that each shard runs in, on whatever node."""
        return self._patient.ask_all("process", shards=self.shards)

    def _gathered(self, method: str) -> npt.NDArray[Any]:
        self.flush()
        return np.concatenate(self._patient.ask_all(method, shards=self.shards))

    def summary(self) -> dict[str, int | float]:
        """Where the sampler stands, as far as the shards have told; no call is made. O(S).

        As of every sampler, with ``seen``, ``late`` and ``mean_priority`` of all clients and the rest of this one; and
        ``restarts``, how often a shard was found to have died; ``lost_updates``, those that shards had taken and do
        not know any more; ``calls``; ``waited``, seconds spent waiting for shards; ``ahead``, draws that are there.
        """
        with self._telling:
            statuses = self._standing.all()
        recent = self._recent[np.arange(max(0, self._drawn - SUMMED_DRAWS), self._drawn) % RECENT_DRAWS]
        drawn, total, squares, _ = recent.sum(axis=0)
        effective = weights.effective(float(total), float(squares))
        return {
            "step": self._step,
            **self._counts,
            "seen": sum(status.seen for status in statuses),
            "late": sum(status.late for status in statuses),
            "effective_sample_size": effective,
            "effective_fraction": effective / float(drawn) if drawn else 1.0,
            "max_weight": float(recent[:, 3].max(initial=0.0)),
            "mean_priority": sum(status.total for status in statuses) / self._size,
            "in_flight": 0,
            "restarts": self._standing.restarts,
            "lost_updates": self._standing.lost_updates,
            "calls": self._patient.sent,
            "waited": self._patient.waited,
            "ahead": self._pool.size,
        }

    def flush(self) -> None:  # noqa: D102
        raise NotImplementedError
