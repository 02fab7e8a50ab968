"""InfoBatch: passes that leave out a part of the samples that are learnt, without a bias."""

from __future__ import annotations

import math

import numpy as np

from sampler import checks
from sampler.base import Float64s, Int64s, logger
from sampler.passes import PartialPasses


class PruningSampler(PartialPasses):
    """Shorter epochs: of the samples whose loss is below the mean only a share is kept, at a higher weight.

    As each pass over the data begins, the n samples whose newest loss is below the mean of all that are known are
    *easy*. k of them, drawn uniformly, stay in the pass; the h others all do (Qin et al., 2024, *InfoBatch: lossless
    training speed up by unbiased dynamic data pruning*)::

        k = (1 - r) n, rounded to the nearest, at least 1       M = h + k samples in the pass
        w = M/N          of the others                          p = 1/M
        w = M/N · n/k    of the easy ones                       p = 1/M · k/n

    n/k, not 1/(1-r), is what keeps the estimate unbiased at any count kept: three easy samples of which one is kept
    count three times. M/N makes the mean over a *batch* an estimate of the mean loss, as it is of every sampler:
    the learning rate stays what it was, and an epoch has fewer steps. The paper leaves M/N out, so that its steps are
    N/M times as long and an epoch of fewer steps goes as far as a whole one; multiply the learning rate by N/M
    (1 / ``summary()["kept_fraction"]``) for that.

    Args:
        num_samples: N ≥ 1.
        prune: r in [0, 1), the share of the easy samples that a pass leaves out. 0 leaves none out; the paper takes ½.
        finish: in [0, 1], the last share of training that uses everything; 1 never prunes. In whole passes, so that it
            is this share at least. It needs ``epochs`` or ``steps``, and without them there is none, with a warning.
        epochs: passes in all, ≥ 1: the ``epochs`` of ``fit``.
        steps: draws in all, ≥ 1, of one batch size, where training is planned in steps.
        feedback_lag, feedback_timeout, max_nonfinite_updates, seed: as for ``ImportanceSampler``.

    A sample that has had no finite loss yet is always kept, so the first pass is over all samples. After ``epochs`` or
    ``steps`` everything is used. 16 bytes a sample and 8 for each that is in the pass; O(B) a draw, and O(N) where a
    pass begins.

    Not for a training of few passes, of which the first and the last are whole; nor where most of the losses are
    near their mean, since what is left out then is not learnt. The variance of a batch is higher than that of
    uniform draws wherever gradients do not go with losses: what is saved is steps.

    Raises ``TypeError`` or ``ValueError`` for arguments outside these ranges, and for ``epochs`` beside ``steps``.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        prune: float = 0.5,
        finish: float = 0.125,
        epochs: int | None = None,
        steps: int | None = None,
        feedback_lag: int | None = None,
        feedback_timeout: float = 60.0,
        max_nonfinite_updates: int = 10,
        seed: int | None = None,
    ) -> None:
        self.prune = checks.number("prune", prune, 0.0, 1.0, top_open=True)
        self.finish = checks.number("finish", finish, 0.0, 1.0)
        if epochs is not None and steps is not None:
            raise ValueError(f"give epochs or steps, not both, got epochs={epochs} and steps={steps}")
        # The first pass, and the first draw, of the finish.
        self._first_pass = None if epochs is None else _first("epochs", epochs, self.finish)
        self._first_step = None if steps is None else _first("steps", steps, self.finish)
        super().__init__(
            num_samples,
            feedback_lag=feedback_lag,
            feedback_timeout=feedback_timeout,
            max_nonfinite_updates=max_nonfinite_updates,
            seed=seed,
        )
        if self.finish and epochs is None and steps is None:
            logger.warning(
                "finish=%g cannot begin where the length of training is not known, so all of it is pruned; pass "
                "epochs= or steps=, or finish=0",
                self.finish,
            )

    def _select(self, left: int, count: int) -> tuple[Float64s, Int64s]:
        mean = np.float32(np.nanmean(self._losses, dtype=np.float64)) if self._counts["seen"] else np.nan
        easy = np.flatnonzero(self._losses < mean)  # NaN is below nothing
        kept = min(easy.size, max(1, int((1.0 - self.prune) * easy.size + 0.5)))
        if kept == easy.size or self._finishes(self._size - easy.size + kept, left, count):
            return self._everything()
        return part(self._size, easy, self._generator.choice(easy, kept, replace=False, shuffle=False))

    def _finishes(self, length: int, left: int, count: int) -> bool:
        """Whether the pass that begins uses everything: else it would take ``length`` samples, and end too late."""
        if self._first_pass is not None:
            return self._passes + 1 >= self._first_pass
        if self._first_step is not None:
            last = self._step + max(0, math.ceil((length - left) / count))
            return last >= self._first_step
        return False


def part(size: int, easy: Int64s, kept: Int64s) -> tuple[Float64s, Int64s]:
    """The chances of all samples, and those in the pass: all but the ``easy`` (n,), of which ``kept`` (k,) stay."""
    chance = np.ones(size)
    chance[easy] = kept.size / easy.size
    stay = np.ones(size, np.bool_)
    stay[easy] = False
    stay[kept] = True
    return chance, np.flatnonzero(stay)


def _first(name: str, total: int, share: float) -> int:
    """The first of ``total`` that is in their last ``share``, rounded so that the share is this large at least."""
    total = checks.whole(name, total, least=1)
    return total - math.ceil(share * total - 1e-9)  # 0.07 · 100 is above 7
