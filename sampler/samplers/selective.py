"""Selective Backprop: passes that keep each sample the more likely, the higher its loss is among all."""

from __future__ import annotations

import numpy as np

from sampler import checks
from sampler.base import Float32s, Float64s, Int64s
from sampler.passes import PartialPasses


class SelectiveSampler(PartialPasses):
    """Shorter epochs of the harder samples, at weight 1: biased on purpose.

    As each pass over the data begins, every sample is kept by a coin of its own (Jiang et al., 2019, *Accelerating
    deep learning by focusing on the biggest losers*)::

        π = (percentile of its newest loss among those of all samples) ** selectivity      w = 1

    The percentile is the share of losses below it, and half of those equal to it, itself included: above 0, so that
    nobody is left out for good. Its mean is ½, so about 1/(1 + selectivity) of the samples are in a pass.

    The paper runs every sample forward, and compares its loss with a window of the losses just seen. Here the newest
    loss known stands for the forward pass, and the newest of all samples for the window: what comes back are the losses
    of the samples kept alone, and a window of these would take hard for usual.

    **The estimate is biased** (``fully_corrected`` is False): training minimises a loss in which sample i counts
    N p_i times, p = π/Σπ, more where its loss is high. The ``probability`` of a draw is that p, so what
    ``LossFeedback`` reports is of the whole data set all the same.

    Args:
        num_samples: N ≥ 1.
        selectivity: ≥ 0, the paper's β. 0 keeps everything, 1 half of the samples, 2 a third.
        feedback_lag, feedback_timeout, max_nonfinite_updates, seed: as for ``ImportanceSampler``.

    A sample that has had no finite loss yet is always kept, so the first pass is over all samples. 16 bytes a
    sample and 8 for each that is in the pass; O(B) a draw, and O(N log N) where a pass begins.

    Not where labels are wrong or outliers cannot be learnt: they are kept in every pass, and nothing corrects for it;
    nor where the probabilities that a model gives shall be calibrated. ``PruningSampler`` saves as many steps without
    a bias.

    Raises ``TypeError`` or ``ValueError`` for arguments outside these ranges.
    """

    fully_corrected = False
    _corrected = False

    def __init__(
        self,
        num_samples: int,
        *,
        selectivity: float = 1.0,
        feedback_lag: int | None = None,
        feedback_timeout: float = 60.0,
        max_nonfinite_updates: int = 10,
        seed: int | None = None,
    ) -> None:
        self.selectivity = checks.number("selectivity", selectivity, 0.0, np.inf, top_open=True)
        super().__init__(
            num_samples,
            feedback_lag=feedback_lag,
            feedback_timeout=feedback_timeout,
            max_nonfinite_updates=max_nonfinite_updates,
            seed=seed,
        )

    def _select(self, left: int, count: int) -> tuple[Float64s, Int64s]:
        known = np.isfinite(self._losses)
        chance = np.ones(self._size)
        # The least is kept above 0, or a large exponent would leave samples out for good.
        chance[known] = np.maximum(percentiles(self._losses[known]) ** self.selectivity, np.finfo(np.float64).tiny)
        kept = np.flatnonzero(self._generator.random(self._size) < chance)
        if kept.size == 0:  # of a handful of samples: one, by the same p
            kept = self._generator.choice(self._size, 1, p=chance / chance.sum())
        return chance, kept


def percentiles(values: Float32s) -> Float64s:
    """The share of ``values`` (n,) below each, of equal ones half: (n,) float64 in (0, 1), mean ½. O(n log n)."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    shares: Float64s = below / (2.0 * max(1, values.size))
    return shares
