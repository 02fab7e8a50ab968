"""Passes over a part of the samples, chosen anew as each pass begins, from the newest loss of every sample.

A sampler that leaves samples out says how likely each is to be in the pass that begins, and which are::

    class Halves(PartialPasses):                    # every other sample, whatever its loss
        def _select(self, left):
            chance = np.full(len(self), 0.5)
            return chance, np.flatnonzero(self._generator.random(len(self)) < chance)

With the chances π_i and M = Σπ samples expected in a pass, p_i = π_i/M is the expected number of times that sample i is
in a batch, over B; so 1/(N p_i) = (M/N)/π_i is the weight that makes every batch an unbiased estimate.

A pass is an epoch, and shorter than N samples; how long, nobody knows before it begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sampler import batches, checks, kernels
from sampler.base import Float32s, Float64s, Int64s, Learnt, Sampler
from sampler.state import Part

ENDS_KEPT = 1024  # of passes: a draw ends one at most, and no more draws than that are in flight


class PartialPasses(Sampler):
    """Reshuffled passes over the samples that ``_select`` chooses; the first over all of them.

    A batch that crosses the end of a pass goes on with the next one, which begins there, so that every batch has
    exactly B samples. 16 bytes a sample and 8 for each that is in the pass; O(B) a draw, and O(N) where a pass begins.
    """

    epochs_vary = True
    _corrected = True  # whether weights are 1/(N p); else they are 1

    def __init__(
        self,
        num_samples: int,
        *,
        feedback_lag: int | None,
        feedback_timeout: float,
        max_nonfinite_updates: int,
        seed: int | None,
    ) -> None:
        super().__init__(
            num_samples,
            feedback_lag=feedback_lag,
            feedback_timeout=feedback_timeout,
            max_nonfinite_updates=max_nonfinite_updates,
            seed=seed,
        )
        self._losses = np.full(self._size, np.nan, np.float32)  # the newest of each sample
        self._chance = np.ones(self._size)  # π of each sample in the current pass
        self._expected = float(self._size)  # their sum
        self._kept = np.arange(self._size)  # (M,) those that are in it, ascending
        self._ends = np.full(ENDS_KEPT, -1)  # the steps that ended the last passes

    def ends_epoch(self, step: int) -> bool:
        """Whether the draw of ``step``, one of the recent or in flight, took the last sample of a pass."""
        with self._lock:
            return step >= 0 and bool((self._ends == step).any())

    def poll_rows(self, index: Int64s, weight: Float32s, probability: Float32s, step: Int64s, *, seconds: float) -> int:
        """As that of every sampler, but no further than to the end of an epoch."""
        with self._lock:
            for row in range(len(index)):
                one = slice(row, row + 1)
                parts = index[one], weight[one], probability[one], step[one]
                if not super().poll_rows(*parts, seconds=0.0 if row else seconds):
                    return row
                if self.ends_epoch(int(step[row, 0])):
                    return row + 1
            return len(index)

    def _select(self, left: int, count: int) -> tuple[Float64s, Int64s]:
        """The chances (N,) in (0, 1] of all samples to be in the pass that begins, and those that are, ascending.

        These are one at least. The pass begins with ``left`` of the ``count`` places of the draw of ``self._step``.
        """
        raise NotImplementedError

    def _choose(self, count: int) -> tuple[Int64s, Float64s, Float32s]:
        index, probability = np.empty(count, np.int64), np.empty(count)
        filled = 0
        while filled < count:
            if self._taken == self._kept.size:
                self._begin(count - filled, count)
            part = index[filled : filled + self._kept.size - self._taken]
            batches.permuted(self._keys, self._kept.size, self._taken, part)
            part[:] = self._kept[part]
            probability[filled : filled + part.size] = self._chance[part] / self._expected
            self._taken += part.size
            filled += part.size
            if self._taken == self._kept.size:
                self._ends[self._passes % ENDS_KEPT] = self._step
        return index, probability, self._weigh(probability, 1.0 if self._corrected else 0.0)

    def _begin(self, left: int, count: int) -> None:
        """The next pass begins."""
        self._chance, self._kept = self._select(left, count)
        self._expected = float(self._chance.sum())
        self._taken, self._passes, self._keys = 0, self._passes + 1, self._new_keys()

    def _everything(self) -> tuple[Float64s, Int64s]:
        return np.ones(self._size), np.arange(self._size)

    def _remember(self, learnt: Learnt) -> int:
        self._losses[learnt.index] = np.clip(learnt.losses, -kernels.LARGEST, kernels.LARGEST)
        return super()._remember(learnt)

    def probabilities(self) -> Float64s:
        """As of every sampler: p of the current pass, π/Σπ, also of the samples that are left out of it."""
        with self._lock:
            return self._chance / self._expected

    def priorities(self) -> Float64s:
        """The chance of every sample to be in the current pass, a copy: (N,) float64 in (0, 1]."""
        with self._lock:
            return self._chance.copy()

    def _mean_priority(self) -> float:
        return self._expected / self._size

    def summary(self) -> dict[str, int | float]:
        """As of every sampler; ``kept_fraction`` is the share of all samples that is in the current pass. O(1)."""
        with self._lock:
            return {**super().summary(), "kept_fraction": self._kept.size / self._size}

    def _own_state(self) -> dict[str, Any]:
        kept = np.zeros(self._size, np.bool_)
        kept[self._kept] = True
        return {
            "newest_losses": self._losses.copy(),
            "chance": self._chance.copy(),
            "kept": kept,
            "ends": self._ends.copy(),
        }

    def _joined(self, parts: Sequence[Part], mine: dict[str, Any]) -> dict[str, Any]:
        joined = super()._joined(parts, mine)
        return {**joined, "taken": int(np.count_nonzero(joined["kept"]))}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        losses = checks.array("newest_losses", state["newest_losses"], self._losses)
        chance = checks.array("chance", state["chance"], self._chance, least=0.0)
        kept = np.flatnonzero(checks.array("kept", state["kept"], np.empty(self._size, np.bool_)))
        ends = checks.array("ends", state["ends"], self._ends, least=-1)
        if not (chance[kept] > 0.0).all() or not (chance <= 1.0).all() or kept.size < max(1, state["taken"]):
            raise ValueError("chances must be in (0, 1], and the samples in the pass those taken at least")
        self._losses, self._chance, self._expected = losses, chance, float(chance.sum())
        self._kept, self._ends = kept, ends
