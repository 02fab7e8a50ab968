"""Prioritized experience replay by rank: how far losses lie apart does not count, only their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sampler.ranked import RankedStore
from sampler.samplers.importance import ImportanceSampler


class RankedSampler(ImportanceSampler):
    """Draws by the rank of the loss: P ∝ 1/rank^α, rank 1 the highest, and w = (1/(N p)) ** β.

    p = (1-λ) P + λ/N, as of every ``ImportanceSampler``, of which this is one with another store (Schaul, Quan,
    Antonoglou & Silver, 2016, *Prioritized experience replay*). An outlier is drawn as often as any sample of
    rank 1 would be, and losses may be negative.

    Args:
        num_samples: N ≥ 1, up to about 1e6.
        alpha: α in [0, 10]. 0 is uniform, 1 in proportion to 1/rank; the paper takes 0.7.
        beta: β in [0, 1], or a function of the step. 1, the default, keeps the estimate unbiased from the first step
            on. The paper's, for targets that move anyway, is ``weights.linear(0.4, 1.0, steps)``; its division
            by the largest weight is left out, as it biases.
        options: as for ``ImportanceSampler``, without ``store``. The paper has no ``uniform_fraction``, and for α < 1
            no weight needs it: rank N has p = (1-α)/N, nearly. But a loss of exactly 0 has no rank, and with λ = 0
            its sample would never come again to show that it has risen; so λ is 0.3 here too.

    140 bytes a sample; O(B log N) a draw and an update, over Python objects: see ``RankedStore`` for how long.

    Not where the losses' size says how much a sample has to teach, since α alone decides how often the
    highest ranks come: 1 % of the samples get 25 % of the draws at α = 0.7, whether they need them or not.
    """

    def __init__(
        self, num_samples: int, *, alpha: float = 0.7, beta: float | Callable[[int], float] = 1.0, **options: Any
    ) -> None:
        super().__init__(num_samples, store=RankedStore(num_samples, alpha=alpha), beta=beta, **options)
