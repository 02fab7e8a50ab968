"""Uniform draws, in passes: what every other sampler is compared with."""

from __future__ import annotations

import numpy as np

from sampler.base import Float32s, Float64s, Int64s, Sampler


class UniformSampler(Sampler):
    """Reshuffled passes over all samples, each at weight 1: the baseline, with the same methods.

    Args:
        num_samples: N ≥ 1.
        feedback_lag, feedback_timeout, max_nonfinite_updates, seed: as for ``ImportanceSampler``.

    A batch that crosses the end of a pass goes on with the next one, so that every batch has exactly B samples.
    ``update`` counts and checks what comes back; it changes no draw. With a ``feedback_lag`` draws wait for it
    after the first pass all the same, so that a run can be resumed exactly; a baseline without feedback takes None.
    """

    uses_feedback = False

    def __init__(
        self,
        num_samples: int,
        *,
        feedback_lag: int | None = None,
        feedback_timeout: float = 60.0,
        max_nonfinite_updates: int = 10,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            num_samples,
            feedback_lag=feedback_lag,
            feedback_timeout=feedback_timeout,
            max_nonfinite_updates=max_nonfinite_updates,
            seed=seed,
        )

    def _choose(self, count: int) -> tuple[Int64s, Float64s, Float32s]:
        index = np.empty(count, np.int64)
        filled = 0
        while filled < count:
            filled += self._go_on_with_pass(index[filled:])
        probability = np.full(count, 1.0 / self._size)
        return index, probability, self._weigh(probability, 1.0)
