"""A bound on how often a sample is drawn in an epoch, without a bias.

    bound = DrawBound(num_samples=50_000, max_draws=5, uniform_fraction=0.3)
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

from sampler import batches, checks
from sampler.stores import PriorityStore

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


class DrawBound:
    """Counts draws (one byte a sample), and keeps the priorities of the samples that are held down.

    Args:
        num_samples: N ≥ 1.
        max_draws: 1 to 255.
        uniform_fraction: λ of the draws; ``ValueError`` for 0, since a sample held down could not be drawn at all.
    """

    def __init__(self, num_samples: int, max_draws: int, uniform_fraction: float) -> None:
        self.max_draws = checks.whole("max_draws", max_draws, least=1, most=255)
        if uniform_fraction == 0.0:
            raise ValueError(
                "max_draws leaves a sample its uniform share alone, and with uniform_fraction=0 it has none, which "
                "would bias the estimate; set uniform_fraction above 0, or max_draws=None"
            )
        self._counts = np.zeros(num_samples, np.uint8)
        self._held: dict[int, float] = {}
        self._drawn = 0  # samples in this epoch

    @property
    def nbytes(self) -> int:
        """Bytes of the counts."""
        return self._counts.nbytes

    def begin(self, store: PriorityStore) -> None:
        """A draw follows; where it begins an epoch, nobody is held down any more."""
        if self._drawn >= self._counts.size:
            self.release_all(store)
            self._counts[:] = 0
            self._drawn = 0

    def count(self, store: PriorityStore, index: Int64s) -> None:
        """The samples ``index`` (B,) were drawn; those that come to the bound are held down."""
        self._drawn += index.size
        reached = np.empty(index.size, np.int64)
        found = batches.tally(self._counts, index, self.max_draws, reached)
        if found:
            self.hold(store, reached[:found])

    def release(self, store: PriorityStore, index: Int64s) -> None:
        """Give those of the distinct samples ``index`` that are held down their priority back, for the time being."""
        down = self._down(index)
        if down.size:
            store.set(down, np.array([self._held.pop(sample) for sample in down.tolist()]))

    def release_all(self, store: PriorityStore) -> None:
        """Give all that are held down their priority back."""
        self.release(store, np.array(list(self._held), np.int64))

    def hold(self, store: PriorityStore, index: Int64s) -> None:
        """Hold those of the distinct samples ``index`` down that have come to the bound."""
        down = self._down(index)
        if down.size:
            self._held.update(zip(down.tolist(), store.get(down).tolist(), strict=True))
            store.set(down, np.zeros(down.size))

    def keep_down(self, store: PriorityStore, first: int, last: int) -> None:
        """Put those of the samples ``first`` to ``last - 1`` that are held down, and have been raised, back to 0."""
        down = first + np.flatnonzero(self._counts[first:last] == self.max_draws)
        store.set(down, np.zeros(down.size))

    def mean_held(self) -> float:
        """What the priorities held down add to the mean over all N samples."""
        return sum(priority / self._counts.size for priority in self._held.values())

    def put_back(self, priorities: Float64s) -> Float64s:
        """``priorities`` (N,) of the store with those of the samples held down in their places, in place."""
        priorities[list(self._held)] = list(self._held.values())
        return priorities

    def _down(self, index: Int64s) -> Int64s:
        down: Int64s = index[self._counts[index] == self.max_draws]
        return down

    def state_dict(self) -> dict[str, Any]:
        """The counts, and who is held down, as plain arrays."""
        return {
            "counts": self._counts.copy(),
            "drawn": self._drawn,
            "held": np.array(list(self._held), np.int64),
            "priorities": np.array(list(self._held.values()), np.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave; nothing is changed where it is refused."""
        counts = checks.array("counts", state["counts"], self._counts)
        drawn = checks.whole("drawn", state["drawn"], least=0)
        held = checks.indices(state["held"], counts.size)
        priorities = checks.per_sample("priorities", state["priorities"], held.size)
        if counts.max() > self.max_draws or not np.isfinite(priorities).all():
            raise ValueError(f"counts must be at most {self.max_draws}, and the priorities held finite numbers")
        if sorted(held.tolist()) != np.flatnonzero(counts == self.max_draws).tolist():
            raise ValueError(f"the samples held down are not those drawn {self.max_draws} times")
        self._counts, self._drawn = counts, drawn
        self._held = dict(zip(held.tolist(), priorities.tolist(), strict=True))
