"""RHO-LOSS: draws by what of a loss can still be learnt, with another model's losses as the measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from sampler import priorities
from sampler.samplers.importance import ImportanceSampler


class ReducibleSampler(ImportanceSampler):
    """Draws by the reducible loss: q = max(0, ℓ - reference[i]), and w = (1/(N p)) ** β.

    The reference is the loss of each sample under a model that was trained on other data. What it could not learn
    either (wrong labels, noise) has a high loss in both, and is passed over; so is what is learnt already (Mindermann
    et al., 2022, *Prioritized training on points that are learnable, worth learning, and not yet learnt*).
    p = (1-λ) q/Σq + λ/N, as of every ``ImportanceSampler``, of which this is one with another priority.

    The paper takes the top of a larger uniform batch by the current model's q, unweighted: a bias on purpose. Here
    samples are drawn in proportion to their newest q, with the weights that correct for it.

    Args:
        num_samples: N ≥ 1.
        reference: (N,) finite numbers, in the order of the samples' index.
        beta: β in [0, 1], or a function of the step. 1, the default, keeps the estimate unbiased: the reference then
            changes how fast, not what is learnt. 0 is nearest to the paper: no weights, so that noise counts
            less in what is learnt, too.
        options: as for ``ImportanceSampler``, without ``priority``.

    16.6 bytes a sample; O(B log N) a draw and an update.

    Not without data held out to train the reference on; and with β = 1 not against wrong labels, whose weights undo
    that they are drawn less.
    Raises ``TypeError`` or ``ValueError`` for a reference that is none.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        reference: npt.ArrayLike,
        beta: float | Callable[[int], float] = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(num_samples, priority=priorities.relative(reference), beta=beta, **options)
