"""What sampling was worth, epoch by epoch, as plain numbers for Keras's logs.

figures = Figures(sampler)
figures.begin()                                     # an epoch
figures.add(losses, weight, score=None)             # of each step
figures.logs()                                      # {"sampling/gain": 1.7, ...}
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray


class Figures:
    """Sums over the steps of an epoch, in float64."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.bounded = False  # whether 1 - e^-ℓ is the proxy where there is no score
        self.begin()

    def begin(self) -> None:
        """Forget the epoch before."""
        self._steps, self._uniform, self._drawn = 0, 0.0, 0.0
        self._seconds = self._spent()

    def add(self, losses: Array, weight: Array, score: Array | None = None) -> None:
        """Count one step: (B,) unweighted losses, weights 1/(N p) and, where there are any, scores.

        Σ w a² estimates the second moment of a under uniform draws, Σ w² a² that under the draws made.
        """
        self._steps += 1
        proxy = score
        if proxy is None:
            positive = np.maximum(losses, 0.0, dtype=np.float64)
            proxy = -np.expm1(-positive) if self.bounded else np.sqrt(positive)
        counted = weight * np.square(proxy, dtype=np.float64)
        uniform = float(counted.sum())
        if np.isfinite(uniform):
            self._uniform += uniform
            self._drawn += float((weight * counted).sum())

    def logs(self) -> dict[str, float]:
        """The figures of the epoch so far."""
        summary = self.sampler.summary()
        steps = max(self._steps, 1)
        return {
            "sampling/effective_fraction": float(summary["effective_fraction"]),
            "sampling/max_weight": float(summary["max_weight"]),
            "sampling/gain": self._uniform / self._drawn if self._drawn > 0.0 else 1.0,
            "sampling/unseen": 1.0 - summary["seen"] / len(self.sampler),
            "sampling/milliseconds": 1e3 * (self._spent() - self._seconds) / steps,
        }

    def _spent(self) -> float:
        return float(getattr(self.sampler, "seconds", 0.0))
