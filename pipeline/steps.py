"""One training step: the weights it trains with, and the loss of each of its samples, by one tape.

    step = Step(sampling, own=None, unbiased=unbiased, watched=None)
    loss = step.differentiated(lambda: compute_loss(x, y, y_pred, step.weight), step.weight, lambda: False)
    step.losses                                 # (B,) the loss of each sample, without any weights

How it gets at the loss of each sample: the compiled loss is linear in the sample weights, L = (1/B) Σ w ℓ, so its
gradient with respect to the weights, times B, *is* the unweighted loss of each sample, whatever the loss and however
it is put together. One tape around ``compute_loss`` gives it, for next to nothing; a second one around that shows
where the loss is not linear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from pipeline.scores import Watched


class Step:
    """What is known of the training step that is traced or run.

    Attributes:
        sampling: what came with the batch, (B,) each.
        own: (B,) the user's own weights, or None where there are none.
        unbiased: (B,) 1/(N p).
        watched: the last layer, for scores; None where there are none.
        weight: (B,) what is trained on, the importance weights times the user's own.
        losses: (B,) float32, None until ``differentiated``.
        scores: (B,) each, where there are any.
    """

    def __init__(
        self, sampling: dict[str, tf.Tensor], own: tf.Tensor | None, unbiased: tf.Tensor, watched: Watched | None
    ) -> None:
        self.sampling, self.own, self.unbiased, self.watched = sampling, own, unbiased, watched
        self.weight = sampling["weight"] if own is None else sampling["weight"] * own
        self.losses: Any = None
        self.scores: dict[str, tf.Tensor] = {}
        self._divisor: Any = None  # of the sum over the batch, in the loss

    def differentiated(
        self, loss_of: Callable[[], tf.Tensor], sample_weight: tf.Tensor, summed: Callable[[], bool]
    ) -> tf.Tensor:
        """The loss that ``loss_of()`` computes with ``sample_weight`` (B,); of it ``losses`` are taken.

        ``summed`` says whether it is a sum over the batch, not a mean; it is asked when the loss has been computed.

        Raises ``ValueError`` for a loss that is not linear in the weights, or does not depend on them.
        """
        with tf.GradientTape(watch_accessed_variables=False) as again:
            again.watch(sample_weight)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sample_weight)
                loss = loss_of()
            gradient = tape.gradient(loss, sample_weight)
        is_sum = summed()
        if gradient is not None and again.gradient(gradient, sample_weight) is not None:
            raise ValueError(
                "the loss is not linear in the sample weights, so its derivative by them is not the loss of each "
                "sample, and weighted training would be biased; let compute_loss, or the loss, end in the sum or the "
                "mean of losses times weights, not divided by the sum of the weights"
            )
        if gradient is None:
            raise ValueError(
                "the loss does not depend on the sample weights, so importance weights would have no effect and "
                "training would be biased; let compute_loss, or the loss, use sample_weight"
            )
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        known = sample_weight.shape[0]  # as good as always; then nothing is to be computed in every step
        batch = tf.cast(tf.shape(sample_weight)[0], tf.float32) if known is None else float(known)
        self._divisor = 1.0 / replicas if is_sum else batch
        self.losses = tf.cast(gradient, tf.float32)
        if not is_sum:
            self.losses *= batch * replicas
        return loss

    def for_report(self) -> tf.Tensor:
        """(B,) the weights that estimate the whole data set, with the user's own."""
        return self.unbiased if self.own is None else self.unbiased * self.own

    def left_out(self) -> tf.Tensor:
        """What a partial correction, β < 1, leaves out of the loss; only after ``differentiated``."""
        missing = self.unbiased - self.sampling["weight"]
        if self.own is not None:
            missing *= self.own
        return tf.reduce_sum(tf.math.multiply_no_nan(self.losses, missing)) / self._divisor
