"""The store that draws by rank: only the order of the priorities counts, not how far apart they lie.

    from sampler.ranked import RankedStore
    store = RankedStore(4, alpha=1.0)
    store.fill(np.array([0.1, 50.0, 0.0, -3.0]))
    store.probabilities()                           # 1/rank over 11/6: array([0.2727, 0.5454, 0., 0.1818])

P = (1/rank^α) / Σ 1/rank^α, rank 1 the highest priority (Schaul, Quan, Antonoglou & Silver, 2016, *Prioritized
experience replay*). An outlier, however large, is drawn as often as any sample of rank 1, and a priority may have
any sign. The samples stand in one order, the ranked ones before those of priority zero::

    priority       50.0   0.1   -3.0 |  0.0
    sample            1     0      3 |    2
    place             0     1      2 |    3
    rank r            1     2      3 |    -       place + 1
    1/r^α             1   1/2    1/3 |    -       11/6 in all
    left after it   5/6   1/3      0 |    -       T[r] - T[3], where T[r] = 1/(r+1)^α + ... + 1/N^α

T depends on α and N alone, so no update touches it. It is summed from its light end, so that also what is left
after many ranks is exact to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from sortedcontainers import SortedList

from sampler import checks

Float64s = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

LARGEST = float(np.finfo(np.float64).max)
LEAST_REST = 2.0**-53  # what is left of the cumulative p after the last position below 1
CERTAIN = 1.0 - 1e-12  # from this π on a sample is taken for certain
PAIR_BYTES = 120  # a place in the list, a tuple, a float and an int
INDEX_BYTES = 40  # a place in the list and an int


class RankedStore:
    """Draws in proportion to 1/rank^α, over a ``SortedList`` of (-priority, index).

    Args:
        num_samples: N ≥ 1.
        alpha: α in [0, 10]. 0 draws uniformly among the ranked samples, 1 in proportion to 1/rank; Schaul et al.
            take 0.7.
        initial_priority: of every sample, any finite number.

    Any number is a priority, a negative one too; infinite ones are clamped to the largest float64. Rank 1 is
    the highest; of equal priorities the lower index comes first. A sample of priority exactly 0 has no rank: it is
    drawn by its uniform share λ/N alone, and never where λ is 0. All zero means uniform.

    Sensible up to N of about 1e6: Python objects, about 140 bytes a sample. Measured on one core:

    ==============================  =======  =======  =======
    N                                   1e4      1e5      1e6
    ==============================  =======  =======  =======
    a draw, µs of a batch of 32         135      170      220
    a draw, µs more for each more      0.55      1.2      2.0
    an update, µs a sample                3     6-10       13
    ``fill``, seconds                  .003      .04       .4
    ==============================  =======  =======  =======

    Not safe for threads by itself; the samplers lock.
    """

    signed = True  # takes priorities below zero
    in_index_order = False  # ``find`` gives the order of the positions, which is that of the ranks

    def __init__(self, num_samples: int, *, alpha: float = 0.7, initial_priority: float = 1.0) -> None:
        self._size = checks.whole("num_samples", num_samples, least=1)
        self.alpha = checks.number("alpha", alpha, 0.0, 10.0)
        first = checks.number("initial_priority", initial_priority, -LARGEST, LARGEST)
        self._table = np.zeros(self._size + 1)
        self._table[:-1] = np.cumsum(self._by_rank(np.arange(self._size - 1, -1, -1)))[::-1]
        self.fill(np.full(self._size, first))

    def __len__(self) -> int:
        return self._size

    @property
    def total(self) -> float:
        """The sum of 1/rank^α over the ranked samples; 0 where there is none."""
        return float(self._table[0] - self._table[len(self._ranked)])

    @property
    def nbytes(self) -> int:
        """Bytes held, those of the Python objects estimated."""
        objects = PAIR_BYTES * len(self._ranked) + INDEX_BYTES * len(self._unranked)
        return self._priorities.nbytes + self._table.nbytes + objects

    def fill(self, priorities: npt.ArrayLike) -> None:
        """Replace all priorities, (N,) numbers; else an error and no change. O(N log N)."""
        values = _numbers(checks.per_sample("priorities", priorities, self._size))
        ranked = np.flatnonzero(values)
        ranked = ranked[np.argsort(-values[ranked], kind="stable")]  # of equals the lower index comes first
        self._priorities = values
        self._ranked = SortedList(zip((-values[ranked]).tolist(), ranked.tolist(), strict=True))
        self._unranked = SortedList(np.flatnonzero(values == 0.0).tolist())

    def fill_parts(self, parts: Iterable[Float64s]) -> None:
        """As ``fill``, from checked priorities that come in parts, (N,) together."""
        self.fill(np.concatenate(list(parts)))

    def set(self, index: Int64s, priorities: Float64s) -> None:
        """Give the samples ``index`` (B,) in [0, N) their ``priorities`` (B,); else an error and no change.

        Of an index given twice the last priority counts. O(B log N).
        """
        index = checks.indices(index, self._size)
        self._assign(index, _numbers(checks.per_sample("priorities", priorities, index.size)))

    def get(self, index: Int64s) -> Float64s:
        """The priorities of the samples ``index`` (B,) in [0, N): (B,) float64."""
        return self._priorities[checks.indices(index, self._size)]

    def probability_of(self, index: Int64s, uniform_fraction: float = 0.0) -> Float64s:
        """Give p of the samples ``index`` (B,) in [0, N), as ``probabilities`` does: (B,) float64. O(B log N)."""
        priorities = self.get(index)
        if self._is_uniform(uniform_fraction):
            return np.full(priorities.size, 1.0 / self._size)
        pairs = zip((-priorities).tolist(), index.tolist(), strict=True)
        # A sample of priority 0 has no rank; any place past the last one is right.
        places = [self._ranked.index(pair) if pair[0] else self._size for pair in pairs]
        return self._share(np.array(places, np.int64), uniform_fraction)

    def fade(self, newest: Int32s, first: int, last: int, before: int, share: float, mean: float) -> None:
        """Move stale samples among ``first`` to ``last - 1`` a ``share`` in [0, 1] of the way to ``mean``.

        Stale are those whose ``newest`` step (N,) is older than ``before``. O((last - first) log N).
        """
        stale = first + np.flatnonzero(newest[first:last] < before)
        # As a mixture, since the way from one end of float64 to the other would be infinite.
        self._assign(stale, _numbers((1.0 - share) * self._priorities[stale] + share * mean))

    def record(self, newest: Int32s, index: Int64s, steps: Int64s, priorities: Float64s, smoothing: float) -> int:
        """Learn priorities (B,) of distinct samples from feedback; returns how many were new. O(B log N).

        For the samplers, which have checked all of this. ``smoothing`` in [0, 1) is the share kept of the old
        priority (not of the old rank), save for a sample whose ``newest`` (N,) is negative: its first counts
        whole. ``newest`` becomes ``steps`` (B,).
        """
        first = newest[index] < 0
        with np.errstate(over="ignore"):  # what comes out infinite is clamped
            mixed = smoothing * self._priorities[index] + (1.0 - smoothing) * priorities
        self._assign(index, _numbers(np.where(first, priorities, mixed)))
        newest[index] = steps
        return int(first.sum())

    def find(self, positions: npt.ArrayLike, uniform_fraction: float = 0.0) -> tuple[Int64s, Float64s]:
        """The samples under ``positions`` (B,) in [0, 1) of the cumulative p, and their p.

        p = (1-λ) P + λ/N in order of rank, then the samples without a rank by index; where p is uniform, in
        index order. Returns ``index`` (B,) int64 and ``probability`` (B,) float64, in the order of the positions.
        Raises ``TypeError`` or ``ValueError`` where the positions are not real numbers of shape (B,).
        """
        positions = checks.positions(positions)
        if self._is_uniform(uniform_fraction):
            index = np.minimum((positions * self._size).astype(np.int64), self._size - 1)
            return index, np.full(index.size, 1.0 / self._size)
        places = self._search(np.maximum(1.0 - positions, LEAST_REST), uniform_fraction)
        return self._samples(places), self._share(places, uniform_fraction)

    def find_distinct(self, count: int, offset: float, uniform_fraction: float = 0.0) -> tuple[Int64s, Float64s]:
        """``count`` distinct samples, ascending, with inclusion probabilities π = min(1, c p), Σπ = count.

        The first k places, where c p ≥ 1, are taken for certain; the rest is searched at equal distances of 1
        along the cumulative π, from ``offset`` in [0, 1) on (Madow, 1949, *On the theory of systematic
        sampling, II*). Returns ``index`` (count,) and π (count,). Raises ``ValueError`` where fewer samples have a
        chance.
        """
        checks.distinct(count, self._size)
        if self._is_uniform(uniform_fraction):
            return self._distinct_uniform(count, offset)
        possible = self._size if uniform_fraction > 0.0 else len(self._ranked)
        if count > possible:
            raise ValueError(
                f"{count} distinct samples were asked for, but only {possible} have a priority "
                "other than 0; ask for fewer, or set uniform_fraction above 0"
            )
        certain = self._count_certain(count, uniform_fraction)
        left, mass = count - certain, self._rest(certain, uniform_fraction)
        rests = mass * (1.0 - (np.arange(left) + offset) / max(left, 1))
        rest = _distinct(self._search(rests, uniform_fraction, certain), possible)
        inclusion = np.ones(count)
        inclusion[certain:] = np.minimum(self._share(rest, uniform_fraction) * left / mass, 1.0)
        index = self._samples(np.concatenate([np.arange(certain), rest]))
        order = np.argsort(index)
        return index[order], inclusion[order]

    def priorities(self) -> Float64s:
        """All priorities, a copy: (N,) float64. O(N)."""
        return self._priorities.copy()

    def probabilities(self, uniform_fraction: float = 0.0) -> Float64s:
        """Give p of every sample: (N,) float64, sums to 1. O(N)."""
        if self._is_uniform(uniform_fraction):
            return np.full(self._size, 1.0 / self._size)
        values = np.empty(self._size)
        order = np.fromiter(self._in_order(), np.int64, self._size)
        values[order] = self._share(np.arange(self._size), uniform_fraction)
        return values

    def mean(self) -> float:
        """The mean of the priorities. O(N): about 0.5 ms at 1e6, and no sum that could drift."""
        with np.errstate(over="ignore"):
            mean = (self._priorities / self._size).sum()  # divided first, as the sum itself may be infinite
        return float(np.clip(mean, -LARGEST, LARGEST))

    def check(self) -> None:
        """Raise ``AssertionError`` unless the order is that of the priorities. For tests; O(N log N)."""
        values = self._priorities.tolist()
        assert np.isfinite(self._priorities).all(), "a priority is not a finite number"
        pairs = sorted((-value, sample) for sample, value in enumerate(values) if value != 0.0)
        assert list(self._ranked) == pairs, "the ranks are not those of the priorities"
        zeros = [sample for sample, value in enumerate(values) if value == 0.0]
        assert list(self._unranked) == zeros, "the samples without a rank are not those of priority zero"

    def state_dict(self) -> dict[str, Any]:
        """α and the priorities, (N,) float64, as a copy; the ranks follow from them."""
        return {"alpha": self.alpha, "priorities": self._priorities.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave; nothing is changed where it is refused."""
        values = checks.array("priorities", state["priorities"], self._priorities)
        if not np.isfinite(values).all():
            raise ValueError("priorities must be finite numbers")
        if state["alpha"] != self.alpha:
            raise ValueError(f"alpha must be {self.alpha:g}, that of the store, got {state['alpha']!r} in the state")
        self.fill(values)

    def _is_uniform(self, uniform_fraction: float) -> bool:
        return uniform_fraction >= 1.0 or not self._ranked

    def _distinct_uniform(self, count: int, offset: float) -> tuple[Int64s, Float64s]:
        # In whole numbers, so that no two fall together: sample t is floor((t N + s) / count).
        start = min(int(offset * self._size), self._size - 1)
        index = (np.arange(count, dtype=np.int64) * self._size + start) // count
        return index, np.full(count, count / self._size)

    def _by_rank(self, places: Int64s) -> Float64s:
        shares: Float64s = np.power(places + 1.0, -self.alpha)
        return shares

    def _share(self, places: Int64s, uniform_fraction: float) -> Float64s:
        """Give p of the samples at ``places``."""
        ranked = np.where(places < len(self._ranked), self._by_rank(places), 0.0)
        return (1.0 - uniform_fraction) / self.total * ranked + uniform_fraction / self._size

    def _rest(self, passed: Any, uniform_fraction: float) -> Any:
        """What p sums up to after the first ``passed`` ≤ M places."""
        ranked = self._table[passed] - self._table[len(self._ranked)]
        return (1.0 - uniform_fraction) / self.total * ranked + uniform_fraction / self._size * (self._size - passed)

    def _search(self, rests: Float64s, uniform_fraction: float, passed: int = 0) -> Int64s:
        """The places at which ``rests`` (B,) of p are left, looked for from place ``passed`` on.

        A place is as many as were passed before it: those after which as much or more is left. Halving finds
        that number, bit by bit; so nothing has to be kept for each λ, or anew whenever a priority becomes zero.
        """
        ranked = len(self._ranked)
        places = np.full(rests.size, passed, np.int64)
        for bit in reversed(range((ranked - passed).bit_length())):
            further = np.minimum(places + (1 << bit), ranked)
            places = np.where(self._rest(further, uniform_fraction) >= rests, further, places)
        if uniform_fraction > 0.0:  # λ/N for each of those that have no rank
            beyond = (self._rest(ranked, uniform_fraction) - rests) * (self._size / uniform_fraction)
            beyond = np.clip(beyond, 0, self._size - ranked - 1).astype(np.int64)
            places = np.where(places == ranked, ranked + beyond, places)
        return places

    def _count_certain(self, count: int, uniform_fraction: float) -> int:
        """How many of the first places are certain: those that fill a place even when all before them are out."""
        places = np.arange(min(count, len(self._ranked)))
        filled = (count - places) * self._share(places, uniform_fraction)
        certain = filled >= self._rest(places, uniform_fraction) * CERTAIN
        return int(places.size if certain.all() else certain.argmin())

    def _samples(self, places: Int64s) -> Int64s:
        ranked, unranked, start = self._ranked, self._unranked, len(self._ranked)
        found = [ranked[place][1] if place < start else unranked[place - start] for place in places.tolist()]
        return np.array(found, np.int64)

    def _in_order(self) -> Iterable[int]:
        for _, sample in self._ranked:
            yield sample
        yield from self._unranked

    def _assign(self, index: Int64s, values: Float64s) -> None:
        samples = index.tolist()
        before = dict(zip(samples, self._priorities[index].tolist(), strict=True))
        after = dict(zip(samples, values.tolist(), strict=True))  # of equal indices the last counts
        for sample, value in after.items():
            if value != before[sample]:
                self._leave(sample, before[sample])
                self._enter(sample, value)
        self._priorities[index] = values  # here, too, NumPy lets the last count

    def _leave(self, sample: int, priority: float) -> None:
        if priority == 0.0:
            self._unranked.remove(sample)
        else:
            self._ranked.remove((-priority, sample))

    def _enter(self, sample: int, priority: float) -> None:
        if priority == 0.0:
            self._unranked.add(sample)
        else:
            self._ranked.add((-priority, sample))


def _numbers(priorities: Float64s) -> Float64s:
    """``priorities`` clamped into float64's finite range; ``ValueError`` where one is not a number."""
    if np.isnan(priorities).any():
        position = int(np.isnan(priorities).argmax())
        raise ValueError(f"priorities must be numbers, got nan at position {position}; mend what computes them")
    return np.clip(priorities, -LARGEST, LARGEST)


def _distinct(places: Int64s, end: int) -> Int64s:
    """``places``, ascending and below ``end``, with each that rounding put onto the one before moved on by one."""
    count = np.arange(places.size)
    return np.minimum(np.maximum.accumulate(places - count), end - places.size) + count
