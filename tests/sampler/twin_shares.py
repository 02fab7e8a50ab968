"""What p must be, from the priorities alone: twice, in whole numbers for a few samples, in wide floats for many.

    shares = ExactShares(priorities, share=0.3)             # p = (1-λ) q/Σq + λ/N, λ the share
    shares = ExactShares(priorities, share=0.3, alpha=0.7)  # P ∝ 1/rank^α in the place of q/Σq
    shares.probability, shares.distance(index, positions)

Neither knows a tree: the whole cumulative p is laid out each time. ``distance`` says how far the positions are, at
most, from the shares of the samples that were found under them, as a part of the whole; 0 where each lies in its own.
"""

from __future__ import annotations

import math

import numpy as np

from .slow_twin import CERTAIN, SlowStore


def store_order(priorities, share, alpha):
    """The samples in the order of the cumulative p: by index, or by rank with those of priority 0 behind."""
    if alpha is None or share >= 1.0 or not np.any(priorities):
        return np.arange(len(priorities))
    return np.lexsort((np.arange(len(priorities)), -priorities, priorities == 0))


class Shares:
    """``probability`` (N,), and ``order``: the samples as the store has them; ``place`` is its inverse."""

    def __init__(self, priorities, share, alpha=None) -> None:
        self.priorities, self.share, self.alpha = np.asarray(priorities, np.float64), share, alpha
        self.order = store_order(self.priorities, share, alpha)
        self.place = np.empty(self.order.size, np.int64)
        self.place[self.order] = np.arange(self.order.size)
        self.ranked = np.count_nonzero(self.priorities)


class ExactShares(Shares):
    """In whole numbers. The powers of ranks, which are no fractions, are rounded at 2^-120."""

    def __init__(self, priorities, share, alpha=None) -> None:
        super().__init__(priorities, share, alpha)
        self._store = SlowStore(self.order.size)
        if alpha is not None:
            ranks = [rank**-alpha if rank <= self.ranked else 0.0 for rank in range(1, self.order.size + 1)]
            self._store.leaves = [math.ldexp(power, -29) for power in ranks]  # the store counts in 2^-149
        else:
            self._store.leaves = self.priorities.tolist()
        self.probability = np.array(self._store.probabilities(share))[self.place]

    def distance(self, index, positions):
        return self._store.distance(np.sort(self.place[index]).tolist(), list(positions), self.share)

    def inclusion(self, count):
        return np.array(self._store.inclusion(count, self.share))[self.place]

    def distinct_distance(self, index, count, offset):
        return self._store.distinct_distance(self.place[index].tolist(), count, offset, self.share)


class WideShares(Shares):
    """In long doubles: a sum of N of them is off by N 2^-64 of itself at most (2^-53 where these are doubles)."""

    def __init__(self, priorities, share, alpha=None) -> None:
        super().__init__(priorities, share, alpha)
        size = self.order.size
        mass = self.priorities.astype(np.longdouble)
        if alpha is not None:
            mass = np.where(np.arange(size) < self.ranked, np.arange(1.0, size + 1) ** -alpha, 0.0)
            mass = mass.astype(np.longdouble)
        total = mass.sum()
        part = mass / total if total > 0 else np.full(size, 1 / np.longdouble(size))
        self._mass = (1 - np.longdouble(share)) * part + np.longdouble(share) / size
        self._ends = np.cumsum(self._mass)
        self._ends /= self._ends[-1]
        self.probability = self._mass.astype(np.float64)[self.place]

    def distance(self, index, positions):
        return _outside(self._ends, self._mass, np.sort(self.place[index]), positions)

    def _certain(self, count):
        """π = min(1, c p), Σπ = count, as places: which are certain, and c."""
        heaviest = np.argsort(-self._mass, kind="stable")
        mass = self._mass[heaviest]
        rest = np.cumsum(mass[::-1])[::-1]
        places = count - np.arange(min(count, mass.size))
        fails = places * mass[: places.size] < float(CERTAIN) * rest[: places.size]
        taken = int(fails.argmax()) if fails.any() else places.size
        certain = np.zeros(mass.size, np.bool_)
        certain[heaviest[:taken]] = True
        return certain, ((count - taken) / rest[taken] if taken < count else np.longdouble(0))

    def inclusion(self, count):
        certain, factor = self._certain(count)
        return np.where(certain, 1.0, (factor * self._mass).astype(np.float64))[self.place]

    def distinct_distance(self, index, count, offset):
        certain, _ = self._certain(count)
        places = np.sort(self.place[index])
        rest = places[~certain[places]]
        if (np.diff(places) <= 0).any() or places.size != count or rest.size + certain.sum() != count:
            return math.inf
        if rest.size == 0:
            return 0.0
        mass = np.where(certain, np.longdouble(0), self._mass)
        mass /= mass.sum()
        ends = np.cumsum(mass)
        return _outside(ends, mass, rest, (np.arange(rest.size) + np.longdouble(offset)) / rest.size) * rest.size


def _outside(ends, mass, places, positions):
    positions = np.asarray(positions, np.longdouble)
    before, after = ends[places] - mass[places] - positions, positions - ends[places]
    return float(max(before.max(initial=0), after.max(initial=0), 0.0))
