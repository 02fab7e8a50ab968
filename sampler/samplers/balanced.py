"""Class-balanced draws: rare classes more often than the data have them, whatever their losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import checks
from sampler.base import Float64s, Int64s
from sampler.samplers.importance import ImportanceSampler
from sampler.state import Part


def class_balanced_weights(labels: npt.ArrayLike, beta: float = 0.999) -> dict[int, float]:
    """The weight of each class by the effective number of its samples: v_c = (1-β)/(1-β^n_c), with mean 1.

    ``LossFeedback(model, sampler, class_weight=class_balanced_weights(labels))`` trains on the class-balanced loss of
    Cui et al., 2019, *Class-balanced loss based on effective number of samples*. O(N log N).

    Args:
        labels: (N,) integers ≥ 0, N ≥ 1.
        beta: β in [0, 1]. 0 weighs all classes alike, 1 by 1/n_c; the paper takes .9 to .9999.

    Gives ``{class: weight}``, the classes ascending, whose weights have the mean 1 over the classes that occur.
    Raises ``TypeError`` or ``ValueError`` for labels that are none.
    """
    classes, counts = np.unique(_labels(labels), return_counts=True)
    weight = _by_count(counts, checks.number("beta", beta, 0.0, 1.0))
    return dict(zip(classes.tolist(), (weight / weight.mean()).tolist(), strict=True))


class ClassBalancedSampler(ImportanceSampler):
    """Draws a sample of class c in proportion to v_c = (1-β)/(1-β^n_c), at weight 1: another objective, on purpose.

    So class c has n_c v_c / Σ n v of the draws: its share of the data for β = 0, the same share as every other class
    for β = 1, and between these for the classes whose n_c is near 1/(1-β) or below (Cui et al., 2019, *Class-balanced
    loss based on effective number of samples*). v_c is the inverse of the effective number of samples: the
    more there are, the more alike the next one is to one of them.

    **The estimate is that of the class-balanced loss**, Σ v ℓ / Σ v, not of the mean loss (``fully_corrected`` is
    False). With uniform draws and ``class_weight=class_balanced_weights(labels)`` it is the same objective at a
    higher variance for the rare classes. What ``LossFeedback`` reports is of the data set as it is.

    Args:
        num_samples: N ≥ 1.
        labels: (N,) integers ≥ 0, the class of each sample.
        beta: the paper's β in [0, 1], which says how far classes are evened out; not that of the importance
            weights, which are 1.
        scheme, ascending, feedback_lag, feedback_timeout, max_nonfinite_updates, seed: as for ``ImportanceSampler``.

    ``update`` counts and checks what comes back; it changes no draw. Draws are with replacement, from the first on.
    About 17 bytes a sample; O(B log N) a draw.

    Not where classes are as rare in use as in the data and their probabilities matter: what the model gives is that of
    balanced classes. A class of a few samples is drawn again and again, and learnt by heart.

    Raises ``TypeError`` or ``ValueError`` for arguments outside these ranges.
    """

    uses_feedback = False

    def __init__(
        self,
        num_samples: int,
        *,
        labels: npt.ArrayLike,
        beta: float = 0.999,
        scheme: str = "systematic",
        ascending: bool = False,
        feedback_lag: int | None = None,
        feedback_timeout: float = 60.0,
        max_nonfinite_updates: int = 10,
        seed: int | None = None,
    ) -> None:
        balance = _Balance(labels, checks.number("beta", beta, 0.0, 1.0))
        super().__init__(
            num_samples,
            priority=balance,
            uniform_fraction=0.0,
            scheme=scheme,
            beta=0.0,
            first_pass=False,
            ascending=ascending,
            feedback_lag=feedback_lag,
            feedback_timeout=feedback_timeout,
            max_nonfinite_updates=max_nonfinite_updates,
            seed=seed,
        )
        self._store.fill(balance.values)

    def _joined(self, parts: Sequence[Part], mine: dict[str, Any]) -> dict[str, Any]:
        return {**super()._joined(parts, mine), "store": mine["store"], "cut": 0}


class _Balance:
    """A priority that is the weight of the sample's class, whatever its loss."""

    keyed = True  # called with the samples' index as well

    def __init__(self, labels: npt.ArrayLike, beta: float) -> None:
        _, place, counts = np.unique(_labels(labels), return_inverse=True, return_counts=True)
        self.values: Float64s = _by_count(counts, beta)[place]
        self.__name__ = f"class_balanced(beta={beta:g}, counts={counts.tolist()})"  # how a state writes it

    def __call__(self, losses: Float64s, index: Int64s) -> Float64s:
        return self.values[index]

    def check_size(self, num_samples: int) -> None:
        """``ValueError`` unless there is one label for each of ``num_samples`` samples."""
        if self.values.size != num_samples:
            raise ValueError(f"labels must have one class for each of {num_samples} samples, got {self.values.size}")


def _labels(labels: npt.ArrayLike) -> npt.NDArray[Any]:
    given = np.asarray(labels)
    if given.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got dtype {given.dtype}; use .astype(np.int64)")
    if given.ndim != 1 or given.size == 0:
        hint = "; use labels.argmax(axis=1) for one-hot ones, .reshape(-1) for a column" if given.ndim == 2 else ""
        raise ValueError(f"labels must have shape (N,) with N at least 1, got shape {given.shape}{hint}")
    if given.min() < 0:
        raise ValueError(f"labels must be at least 0, got {given.min()}")
    return given


def _by_count(counts: Int64s, beta: float) -> Float64s:
    """(1-β)/(1-β^n) of each class's count n ≥ 1: 1 for β = 0, 1/n for β = 1."""
    if beta == 1.0:
        return 1.0 / counts
    if beta == 0.0:
        return np.ones(counts.size)
    weight: Float64s = (1.0 - beta) / -np.expm1(counts * np.log(beta))
    return weight
