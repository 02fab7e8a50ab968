"""The losses of every training step, back to the sampler, from a training loop of one's own."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import tensorflow as tf


def feed_back(sampler: Any, sampling: dict[str, tf.Tensor], losses: tf.Tensor, score: tf.Tensor | None = None) -> None:
    """Tell ``sampler`` the losses of a batch, in a training loop of one's own, inside ``tf.function`` too.

    Args:
        sampler: of the dataset.
        sampling: what came with the batch.
        losses: (B,) float, unweighted, of its samples.
        score: (B,) float, for a sampler with ``priority="gradient_norm"``.

    Eagerly this is ``sampler.update``. In a graph it is one Python call a step, some 100 µs; XLA cannot compile it, so
    a step with ``jit_compile=True`` returns the losses instead, and they are fed back outside. What
    ``sampler.update`` refuses ends the step with the same words.
    """
    given = [sampling["index"], tf.stop_gradient(losses), sampling["step"]]
    given += [] if score is None else [tf.stop_gradient(score)]
    if tf.executing_eagerly():
        sampler.update(*(part.numpy() for part in given))
        return
    held = weakref.ref(sampler)  # TensorFlow keeps the function as long as the process runs

    def update(*arrays: Any) -> np.int64:
        known = held()
        if known is None:
            raise RuntimeError("the sampler was dropped while a training step still feeds it; keep it")
        known.update(*arrays)
        return np.int64(0)

    tf.numpy_function(update, given, tf.int64)
