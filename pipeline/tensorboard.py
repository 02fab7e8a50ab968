"""What sampling does, for TensorBoard: scalars, histograms of losses and weights, the hardest images.

    dynamics = TrainingDynamics(len(sampler))
    board = SamplingBoard("logs", sampler, dynamics=dynamics, images=x)
    model.fit(train, epochs=5, callbacks=[LossFeedback(model, sampler, dynamics=dynamics), board], shuffle=False)

    tensorboard --logdir logs

It stands behind ``LossFeedback`` in the list, which is told first. Needs the extra ``tensorboard``: ``ImportError``
without it. Keras's own ``TensorBoard`` shows the scalars, too, since they are in the logs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.dynamics import TrainingDynamics
from pipeline.recording import steps_of
from pipeline.samples import hardest

SHOWN = 16  # images


class SamplingBoard(keras.callbacks.Callback):
    """Writes event files after every epoch. O(N) an epoch.

    Args:
        folder: for the event files; what is there stays, and a run that goes on adds to it.
        sampler: whose weights 1/(N p) are shown, those that draws would have now.
        dynamics: that ``LossFeedback`` was given; the newest losses are shown. None: no losses, and no images.
        images: (N, H, W) or (N, H, W, C), C of 1, 3 or 4, float in [0, 1] or uint8; the hardest are shown, by their
            newest loss. None: none.

    Scalars are the numbers of the logs, ``loss`` and ``sampling/gain`` and so on, but for those of seconds, at the
    steps of the optimizer.
    """

    def __init__(
        self,
        folder: str | Path,
        sampler: Any,
        *,
        dynamics: TrainingDynamics | None = None,
        images: npt.ArrayLike | None = None,
    ) -> None:
        super().__init__()
        try:
            import tensorboard as tensorboard
        except ImportError as error:
            raise ImportError(f"SamplingBoard needs the extra tensorboard: {error}") from error
        self._images = None if images is None else _as_images(np.asarray(images), len(sampler))
        if self._images is not None and dynamics is None:
            raise ValueError("images are shown by their losses, which dynamics has; pass those LossFeedback was given")
        self._sampler, self._dynamics = sampler, dynamics
        self._writer = tf.summary.create_file_writer(str(folder))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        step = steps_of(self.model)
        with self._writer.as_default(step=step):
            for name, value in (logs or {}).items():
                if name != "sampling/milliseconds":
                    tf.summary.scalar(name, value)
            probability = self._sampler.probabilities()
            drawable = probability[probability > 0.0]
            tf.summary.histogram("sampling/weights", 1.0 / (probability.size * drawable))
            if self._dynamics is not None:
                self._show_losses(self._dynamics.newest)
        self._writer.flush()

    def _show_losses(self, newest: npt.NDArray[np.float64]) -> None:
        known = np.flatnonzero(np.isfinite(newest))
        tf.summary.histogram("sampling/losses", newest[known])
        if self._images is not None and known.size:
            chosen = hardest(newest)[: min(SHOWN, known.size)]
            tf.summary.image("sampling/hardest", self._images[chosen], max_outputs=SHOWN)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._writer.flush()


def _as_images(images: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4) or len(images) != count:
        raise ValueError(
            f"images must be ({count}, H, W) or ({count}, H, W, C) with C of 1, 3 or 4, one for each sample, got shape "
            f"{images.shape}"
        )
    return images
