"""The priority store: one priority for each sample, and the sample under a share of their sum.

    from sampler.stores import ProportionalStore
    store = ProportionalStore(4, initial_priority=1.0)
    store.set(np.array([2]), np.array([5.0]))
    store.find(np.array([0.0, 0.5, 0.99]))          # (array([0, 2, 3]), array([0.125, 0.625, 0.125]))

A store knows nothing of losses or weights. Samplers ask of it what ``PriorityStore`` lists, and any object
that has these methods will do. ``ProportionalStore`` draws in proportion to priority; ``RankedStore``
(:mod:`sampler.ranked`) by the rank of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sampler import batches, checks, kernels
from sampler.ranked import RankedStore

__all__ = ["PriorityStore", "ProportionalStore", "RankedStore"]

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


class PriorityStore(Protocol):
    """What a sampler needs of a store. ``uniform_fraction`` is λ in p = (1-λ) P + λ/N."""

    signed: bool  # whether priorities may be below zero
    in_index_order: bool  # whether ``find`` gives ascending samples for ascending positions

    def __len__(self) -> int: ...

    @property
    def total(self) -> float: ...

    @property
    def nbytes(self) -> int: ...

    def mean(self) -> float: ...

    def fill(self, priorities: npt.ArrayLike) -> None: ...

    def fill_parts(self, parts: Iterable[Float64s]) -> None: ...

    def set(self, index: Int64s, priorities: Float64s) -> None: ...

    def get(self, index: Int64s) -> Float64s: ...

    def probability_of(self, index: Int64s, uniform_fraction: float = 0.0) -> Float64s: ...

    def find(self, positions: npt.ArrayLike, uniform_fraction: float = 0.0) -> tuple[Int64s, Float64s]: ...

    def find_distinct(self, count: int, offset: float, uniform_fraction: float = 0.0) -> tuple[Int64s, Float64s]: ...

    def record(self, newest: Int32s, index: Int64s, steps: Int64s, priorities: Float64s, smoothing: float) -> int: ...

    def fade(self, newest: Int32s, first: int, last: int, before: int, share: float, mean: float) -> None: ...

    def priorities(self) -> Float64s: ...

    def probabilities(self, uniform_fraction: float = 0.0) -> Float64s: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ProportionalStore:
    """Draws in proportion to priority, with a wide sum tree (see :mod:`sampler.kernels`).

    Args:
        num_samples: N ≥ 1.
        initial_priority: of every sample, a finite number ≥ 0.

    A priority is kept as float32, a positive one clamped into float32's normal range (1.2e-38 to 3.4e38);
    sums are float64 and recomputed from their parts, so they do not drift. A sample whose share of the sum is
    below float64's resolution (about 1e-16) has no chance worth the name.

    About 4.6 bytes a sample. ``find`` and ``set`` cost O(B log N), ``priorities`` and ``probabilities`` O(N), in
    one pass of memory. Not safe for threads by itself; the samplers lock.
    """

    signed = False
    in_index_order = True

    def __init__(self, num_samples: int, *, initial_priority: float = 1.0) -> None:
        self._size = checks.whole("num_samples", num_samples, least=1)
        checks.number("initial_priority", initial_priority, 0.0, np.inf, top_open=True)
        self._leaves, self._sums = kernels.allocate(num_samples)
        if initial_priority > 0.0:
            self._leaves[: self._size] = np.clip(initial_priority, kernels.SMALLEST, kernels.LARGEST)
            self._rebuild()

    def __len__(self) -> int:
        return self._size

    @property
    def total(self) -> float:
        """The sum of all priorities, float64."""
        return float(self._sums[-1])

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._leaves.nbytes + self._sums.nbytes

    def mean(self) -> float:
        """The mean priority. O(1)."""
        return self.total / self._size

    def fill(self, priorities: npt.ArrayLike) -> None:
        """Replace all priorities, (N,) ≥ 0; else an error and no change. O(N), three passes of memory."""
        values = checks.numbers("priorities", priorities, self._size)
        values = np.ascontiguousarray(values, np.float32 if values.dtype == np.float32 else np.float64)
        if not batches.least(values) >= 0.0:
            raise ValueError(f"priorities must be numbers ≥ 0, got {values[~(values >= 0.0)][0]}")
        kernels.fill(self._leaves, values)
        self._rebuild()

    def fill_parts(self, parts: Iterable[Float64s]) -> None:
        """As ``fill``, from checked priorities that come in parts, (N,) together: no array of all of them is needed."""
        first = 0
        for part in parts:
            kernels.fill(self._leaves[first : first + part.size], part)
            first += part.size
        self._rebuild()

    def set(self, index: Int64s, priorities: Float64s) -> None:
        """Give the samples ``index`` (B,) in [0, N) their ``priorities`` (B,) ≥ 0; else an error and no change."""
        index = checks.indices(index, self._size)
        priorities = checks.per_sample("priorities", priorities, index.size)
        if not batches.least(priorities) >= 0.0:
            raise ValueError(f"priorities must be numbers ≥ 0, got {priorities[~(priorities >= 0.0)][0]}")
        kernels.write(self._leaves, self._sums, index, priorities)

    def get(self, index: Int64s) -> Float64s:
        """The priorities of the samples ``index`` (B,) in [0, N): (B,) float64."""
        return self._leaves[checks.indices(index, self._size)].astype(np.float64)

    def probability_of(self, index: Int64s, uniform_fraction: float = 0.0) -> Float64s:
        """Give p of the samples ``index`` (B,) in [0, N), as ``probabilities`` does: (B,) float64. O(B)."""
        floor, priorities = self._floor(uniform_fraction), self.get(index)
        if floor is None:
            return np.full(priorities.size, 1.0 / self._size)
        shares: Float64s = (priorities + floor) / (self.total + floor * self._size)
        return shares

    def record(self, newest: Int32s, index: Int64s, steps: Int64s, priorities: Float64s, smoothing: float) -> int:
        """Learn priorities (B,) of distinct samples from feedback; returns how many were new.

        For the samplers, which have checked all of this: ``index`` must lie in [0, N). ``smoothing`` in [0, 1) is
        the share kept of the old priority, save for a sample whose ``newest`` (N,) is negative: its first counts
        whole. ``newest`` becomes ``steps`` (B,).
        """
        new: int = kernels.record(self._leaves, self._sums, newest, index, steps, priorities, smoothing)
        return new

    def fade(self, newest: Int32s, first: int, last: int, before: int, share: float, mean: float) -> None:
        """Move stale samples among ``first`` to ``last - 1`` a ``share`` in [0, 1] of the way to ``mean`` ≥ 0.

        Stale are those whose ``newest`` step (N,) is older than ``before``. O(last - first).
        """
        window = np.arange(first, last)
        kernels.fade(self._leaves, self._sums, newest, window, before, share, mean)

    def find(self, positions: npt.ArrayLike, uniform_fraction: float = 0.0) -> tuple[Int64s, Float64s]:
        """The samples under ``positions`` (B,) in [0, 1) of the cumulative p, and their p.

        p = (1-λ) q/Σq + λ/N in index order. Returns ``index`` (B,) int64 and ``probability`` (B,) float64. Raises
        ``TypeError`` or ``ValueError`` where the positions are not real numbers of shape (B,).
        """
        return self.find_owned(checks.positions(positions), uniform_fraction)

    def find_owned(self, positions: Float64s, uniform_fraction: float = 0.0) -> tuple[Int64s, Float64s]:
        """As ``find``, for positions (B,) float64 that the caller gives away: the probabilities take their place."""
        floor = self._floor(uniform_fraction)
        if floor is None:
            return self._find_uniform(positions)
        return self._search(positions, floor, self.total + floor * self._size)

    def find_rows(self, positions: Float64s, uniform_fraction: float = 0.0) -> tuple[Int64s, Float64s]:
        """As ``find_owned``, for positions (m, B), C-contiguous: what m searches give, one for each row."""
        floor = self._floor(uniform_fraction)
        if floor is None:
            return self._find_uniform(positions)
        index = np.empty(positions.shape, np.int64)
        total = self.total + floor * self._size
        kernels.find_rows(self._leaves, self._sums, self._size, floor, total, positions, index)
        return index, positions

    def find_distinct(self, count: int, offset: float, uniform_fraction: float = 0.0) -> tuple[Int64s, Float64s]:
        """``count`` distinct samples, ascending, with inclusion probabilities π = min(1, c p), Σπ = count.

        Samples with c p ≥ 1 are taken for certain; the rest is searched at equal distances of 1 along the
        cumulative π, from ``offset`` in [0, 1) on (Madow, 1949, *On the theory of systematic sampling,
        II*). Returns ``index`` (count,) int64 and π (count,) float64. O(count log N). Raises ``ValueError`` where fewer
        samples have a chance.
        """
        checks.distinct(count, self._size)
        floor = self._floor(uniform_fraction)
        if floor is None:
            return self._distinct_uniform(count, offset)
        index, inclusion = np.empty(count, np.int64), np.empty(count, np.float64)
        possible = kernels.find_distinct(self._leaves, self._sums, self._size, floor, offset, index, inclusion)
        if possible < count:
            raise ValueError(
                f"{count} distinct samples were asked for, but only {possible} have a priority "
                "above 0; ask for fewer, or set uniform_fraction above 0"
            )
        return index, inclusion

    def priorities(self) -> Float64s:
        """All priorities, a copy: (N,) float64."""
        return self._leaves[: self._size].astype(np.float64)

    def probabilities(self, uniform_fraction: float = 0.0) -> Float64s:
        """Give p of every sample: (N,) float64, sums to 1."""
        floor = self._floor(uniform_fraction)
        if floor is None:
            return np.full(self._size, 1.0 / self._size)
        values = np.empty(self._size, np.float64)
        kernels.shares(self._leaves, floor, self.total + floor * self._size, values)
        return values

    def check(self) -> None:
        """Raise ``AssertionError`` unless every sum is that of its children. For tests; O(N)."""
        sums = np.zeros_like(self._sums)
        kernels.rebuild(self._leaves, sums)
        assert np.array_equal(sums, self._sums), "a sum is not that of its children"
        assert np.isfinite(self._sums).all(), "a sum is not finite"
        assert (self._leaves >= 0).all(), "a priority is not a number ≥ 0"
        assert not self._leaves[self._size :].any(), "a leaf past the last sample has a priority"

    def state_dict(self) -> dict[str, Any]:
        """The priorities, (N,) float32, as a copy; the sums follow from them."""
        return {"priorities": self._leaves[: self._size].copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave; nothing is changed where it is refused."""
        values = checks.array("priorities", state["priorities"], self._leaves[: self._size])
        if not ((values >= 0.0) & (values <= kernels.LARGEST)).all():
            raise ValueError("priorities must be finite numbers ≥ 0")
        self.fill(values)

    # The floor of p as a constant added to each priority; None where p is uniform.
    def _floor(self, uniform_fraction: float) -> float | None:
        if uniform_fraction >= 1.0 or self.total <= 0.0:
            return None
        return uniform_fraction / (1.0 - uniform_fraction) * self.total / self._size

    def _find_uniform(self, positions: Float64s) -> tuple[Int64s, Float64s]:
        index = np.minimum((positions * self._size).astype(np.int64), self._size - 1)
        return index, np.full(index.shape, 1.0 / self._size)

    def _distinct_uniform(self, count: int, offset: float) -> tuple[Int64s, Float64s]:
        # In whole numbers, so that no two fall together: sample t is floor((t N + s) / count).
        start = min(int(offset * self._size), self._size - 1)
        index = (np.arange(count, dtype=np.int64) * self._size + start) // count
        return index, np.full(count, count / self._size)

    def _search(self, positions: Float64s, floor: float, total: float) -> tuple[Int64s, Float64s]:
        """The samples under ``positions``, shares of ``total``, and in their place the samples' own shares of it."""
        index = np.empty(positions.size, np.int64)
        kernels.find(self._leaves, self._sums, self._size, floor, total, positions, index)
        return index, positions

    def _rebuild(self) -> None:
        kernels.rebuild(self._leaves, self._sums)


NAMED: dict[str, Callable[..., PriorityStore]] = {"proportional": ProportionalStore, "ranked": RankedStore}
GATE_NEEDS = "probability_of"  # asked of a store only where there is a gate
NEEDS = ["__len__", *PriorityStore.__annotations__, *(n for n in vars(PriorityStore) if not n.startswith("_"))]
NEEDS.remove(GATE_NEEDS)


def resolve(store: str | PriorityStore, size: int, initial_priority: float) -> PriorityStore:
    """The store that ``store`` names, or ``store`` itself where it is one of ``size`` samples; ``ValueError`` else."""
    if isinstance(store, str) and store in NAMED:
        return NAMED[store](size, initial_priority=initial_priority)
    missing = [name for name in NEEDS if not hasattr(store, name)]
    if isinstance(store, (str, type)) or missing:
        why = f", which has no {missing[0]}" if missing and not isinstance(store, str) else ""
        raise ValueError(
            f"store must be one of {', '.join(map(repr, NAMED))} or a PriorityStore such as "
            f"ProportionalStore({size}), got {store!r}{why}"
        )
    if len(store) != size:
        raise ValueError(f"store must hold {size} samples, got one of {len(store)}")
    return store


def check_for_gate(store: PriorityStore) -> None:
    """``ValueError`` where a store of one's own lacks what only a gate asks for."""
    if not hasattr(store, GATE_NEEDS):
        raise ValueError(
            f"a gate asks the store for {GATE_NEEDS}, which {type(store).__name__} has not; add it (see "
            "PriorityStore), or make the sampler with gate=None"
        )


def describe(store: PriorityStore) -> str:
    """How ``store`` is written, the same in every process."""
    return f"RankedStore(alpha={store.alpha})" if isinstance(store, RankedStore) else type(store).__name__
