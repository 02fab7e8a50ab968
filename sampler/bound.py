"""A bound on how often a sample is drawn in an epoch, without a bias.

    bound = DrawBound(num_samples=50_000, max_draws=5, uniform_fraction=0.3, signed=store.signed)
    bound.begin(store)                      # before a draw: perhaps a new epoch
    bound.count(store, index)               # after it

A sample that was drawn ``max_draws`` times is *held down*: its priority in the store is 0 until the epoch (N draws)
ends, and the uniform share λ/N of its probability is all that is left. To take it out altogether would bias the
estimate for the rest of the epoch; so it may come again, with the weight of its true probability, on average at most
λ times.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import batches, checks, kernels
from sampler.stores import PriorityStore

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


class DrawBound:
    """Counts draws, and keeps the priorities of the samples that are held down.

    Args:
        num_samples: N ≥ 1.
        max_draws: 1 to 255.
        uniform_fraction: λ of the draws; ``ValueError`` for 0, since a sample held down could not be drawn at all.
        signed: whether the store takes priorities below zero.

    About 10.2 bytes a sample: one that counts, and a place for its priority, float64, in a tree that knows their sum.
    """

    def __init__(self, num_samples: int, max_draws: int, uniform_fraction: float, *, signed: bool) -> None:
        self.max_draws = checks.whole("max_draws", max_draws, least=1, most=255)
        if uniform_fraction == 0.0:
            raise ValueError(
                "max_draws leaves a sample its uniform share alone, and with uniform_fraction=0 it has none, which "
                "would bias the estimate; set uniform_fraction above 0, or max_draws=None"
            )
        self.signed = signed
        self._size = num_samples
        self._start()

    def _start(self) -> None:
        """An epoch in which nobody was drawn yet."""
        self._counts = np.zeros(self._size, np.uint8)
        self._held = kernels.allocate_sums(self._size)  # begins with the priorities held down, (N,)
        self._drawn = 0  # samples in this epoch

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._counts.nbytes + self._held.nbytes

    def begin(self, store: PriorityStore) -> None:
        """A draw follows; where it begins an epoch, nobody is held down any more."""
        if self._drawn >= self._size:
            self.release_all(store)
            self._start()

    def count(self, store: PriorityStore, index: Int64s) -> None:
        """The samples ``index`` (B,) were drawn; those that come to the bound are held down."""
        self._drawn += index.size
        reached = np.empty(index.size, np.int64)
        found = batches.tally(self._counts, index, self.max_draws, reached)
        if found:
            self.hold(store, reached[:found])

    def release(self, store: PriorityStore, index: Int64s) -> None:
        """Give those of the distinct samples ``index`` that are held down their priority back, for the time being."""
        self._release(store, self._down(index))

    def release_all(self, store: PriorityStore) -> None:
        """Give all that are held down their priority back, for the time being. O(N)."""
        self._release(store, self._all_down())

    def _release(self, store: PriorityStore, down: Int64s) -> None:
        if down.size:
            store.set(down, self._held[down])

    def hold(self, store: PriorityStore, index: Int64s) -> None:
        """Hold those of the distinct samples ``index`` down that have come to the bound."""
        down = self._down(index)
        if down.size:
            kernels.put(self._held, self._size, down, store.get(down))
            store.set(down, np.zeros(down.size))

    def keep_down(self, store: PriorityStore, first: int, last: int) -> None:
        """Put those of the samples ``first`` to ``last - 1`` that are held down, and have been raised, back to 0."""
        down = first + np.flatnonzero(self._counts[first:last] == self.max_draws)
        store.set(down, np.zeros(down.size))

    def mean_held(self) -> float:
        """What the priorities held down add to the mean over all N samples. O(1)."""
        mean = float(self._held[-1]) / self._size
        if not np.isfinite(mean):  # the sum itself is; divided first, the numbers add up to one that is not
            mean = float((self._held[: self._size] / self._size).sum())
        return mean

    def put_back(self, priorities: Float64s) -> Float64s:
        """``priorities`` (N,) of the store with those of the samples held down in their places, in place."""
        down = self._all_down()
        priorities[down] = self._held[down]
        return priorities

    def _all_down(self) -> Int64s:
        return np.flatnonzero(self._counts == self.max_draws)

    def _down(self, index: Int64s) -> Int64s:
        down: Int64s = index[self._counts[index] == self.max_draws]
        return down

    def state_dict(self) -> dict[str, Any]:
        """The counts, and who is held down, as plain arrays."""
        down = self._all_down()
        return {
            "counts": self._counts.copy(),
            "drawn": self._drawn,
            "held": down,
            "priorities": self._held[down],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave; nothing is changed where it is refused."""
        counts = checks.array("counts", state["counts"], self._counts)
        drawn = checks.whole("drawn", state["drawn"], least=0)
        held = checks.indices(state["held"], counts.size)
        priorities = checks.per_sample("priorities", state["priorities"], held.size)
        if counts.max() > self.max_draws:
            raise ValueError(f"counts must be at most {self.max_draws}, got {counts.max()}")
        if not (np.isfinite(priorities) & (self.signed | (priorities >= 0.0))).all():
            raise ValueError(f"the priorities held must be finite numbers{'' if self.signed else ' ≥ 0'}")
        if not np.array_equal(np.sort(held), np.flatnonzero(counts == self.max_draws)):
            raise ValueError(f"the samples held down are not those drawn {self.max_draws} times")
        self._start()
        kernels.put(self._held, self._size, held, priorities)
        self._counts, self._drawn = counts, drawn
