"""Loss → priority: siblings with one signature, ``(B,) losses -> (B,) priorities``.

    from sampler import priorities
    priorities.bounded(np.array([0.0, 1.0, 50.0]))      # array([0., 0.632..., 1.])

A priority is a number ≥ 0; a sample is drawn in proportion to it. Which function suits which loss:

====================  ===========================  ==================================================
loss                  priority                     why
====================  ===========================  ==================================================
any                   ``loss``                     in proportion to the loss itself
squared error         ``sqrt``                     the gradient's norm goes with √ℓ; in proportion to ℓ itself
                                                   the variance is that of uniform draws
softmax               ``bounded`` (1 - e^-ℓ)       the norm of the last layer's gradient lies between
cross-entropy                                      (1 - e^-ℓ)·√(K/(K-1)) and √2·(1 - e^-ℓ): bounded under outliers
====================  ===========================  ==================================================

The variance of the gradient's estimate is least when p is in proportion to the norm of each sample's gradient
(Zhao & Zhang, 2015, *Stochastic optimization with importance sampling for regularized loss
minimization*; Alain et al., 2015, *Variance reduction in SGD by distributed importance sampling*).

All of these need losses ≥ 0. For losses that can be negative (a likelihood, a custom loss) pass a function of your
own, for instance ``lambda losses: np.exp(losses)``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]
Priority = Callable[[Float64s], npt.ArrayLike]


def loss(losses: Float64s) -> Float64s:
    """The loss itself: q = ℓ. Losses (B,) ≥ 0; else ``ValueError``."""
    return _nonnegative(losses, "loss")


def sqrt(losses: Float64s) -> Float64s:
    """Its square root: q = √ℓ. Losses (B,) ≥ 0; else ``ValueError``."""
    return np.sqrt(_nonnegative(losses, "sqrt"))


def bounded(losses: Float64s) -> Float64s:
    """A bounded measure in [0, 1): q = 1 - e^-ℓ. Losses (B,) ≥ 0; else ``ValueError``."""
    return -np.expm1(-_nonnegative(losses, "bounded"))


NAMED: dict[str, Priority] = {"loss": loss, "sqrt": sqrt, "bounded": bounded}


def resolve(priority: str | Priority) -> Priority:
    """The function that ``priority`` names, or ``priority`` itself where it is callable."""
    if callable(priority):
        return priority
    if priority in NAMED:
        return NAMED[priority]
    raise ValueError(
        f"priority must be one of {', '.join(map(repr, NAMED))} or a function of the losses, got {priority!r}"
    )


def apply(priority: Priority, losses: Float64s) -> Float64s:
    """``priority(losses)`` as float64 (B,), checked: one number ≥ 0 for each loss.

    Infinity is let through; the store clamps it to the largest float32. Raises ``ValueError`` for another
    shape, for a negative priority and for NaN. No losses have no priorities, and nobody is asked.
    """
    if losses.size == 0:
        return losses
    values = np.asarray(priority(losses), dtype=np.float64)
    if values.shape != losses.shape:
        raise ValueError(
            f"the priority function must give one priority for each of {losses.shape[0]} losses, "
            f"got shape {values.shape}"
        )
    if not values.min() >= 0.0:
        worst = int(np.flatnonzero(~(values >= 0.0))[0])
        raise ValueError(
            f"priorities must be numbers ≥ 0, got {values[worst]} for a loss of {losses[worst]}; "
            "mend the priority function, for instance with np.maximum(..., 0)"
        )
    return values


def _nonnegative(losses: Float64s, name: str) -> Float64s:
    if losses.size and losses.min() < 0.0:
        raise ValueError(
            f"priority={name!r} needs losses ≥ 0, got {losses.min()}; for losses that can be negative "
            "pass a function of your own, for instance priority=lambda losses: np.exp(losses)"
        )
    return losses
