"""Probability → importance weight, and what the weights say about a batch.

    from sampler import weights
    weights.importance_weight(np.array([0.1, 0.4]), num_samples=10)     # array([1. , 0.25])

The estimate (1/B) Σ w ℓ of the mean loss over N samples is unbiased for every distribution p that gives
each sample a chance, if ``w = 1 / (N p)`` with the p of the moment the sample was drawn. Dividing by Σw, or by
the largest weight, would bias it; nothing here does.

β makes the correction partial: ``w = (1 / (N p)) ** β``; 1 corrects fully, 0 not at all (Schaul et al.,
2015, *Prioritized experience replay*, anneal it from 0.4 to 1). A schedule is a plain function of the step:

    ImportanceSampler(n, beta=weights.linear(0.4, 1.0, steps=10_000))
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Schedule = Callable[[int], float]


def importance_weight(probability: npt.ArrayLike, num_samples: int, beta: float = 1.0) -> npt.NDArray[np.float64]:
    """``(1 / (N p)) ** beta`` for probabilities (B,) in (0, 1]; (B,) float64, > 0."""
    return (1.0 / (num_samples * np.asarray(probability, dtype=np.float64))) ** beta


def effective_sample_size(weight: npt.ArrayLike) -> float:
    """(Σw)² / Σw²: how many equally weighted samples the weights (B,) are worth; 1 to B.

    Kong, 1992, *A note on importance sampling using standardized weights*.
    """
    values = np.asarray(weight, dtype=np.float64)
    return effective(float(values.sum()), float(np.square(values).sum()))


def effective(total: float, squares: float) -> float:
    """(Σw)² / Σw² from the two sums; 0 where there are no weights yet."""
    return total * total / squares if squares > 0.0 else 0.0


def linear(first: float, last: float, steps: int) -> Schedule:
    """A schedule from ``first`` at step 0 to ``last`` at step ``steps`` and after it."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return lambda step: first + (last - first) * min(step / steps, 1.0)
