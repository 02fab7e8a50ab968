"""Per-sample losses, and their weighted mean.

    from pipeline import per_sample_loss, weighted_mean

    loss_of = per_sample_loss("sparse_categorical_crossentropy")
    losses = loss_of(y, model(x))                               # (B,)
    loss = weighted_mean(losses, sampling["weight"])            # a scalar, unbiased

A Keras loss reduces its result to one number by default. To see what it says of each sample it must be
made, or as here copied, with ``reduction=None``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Loss = Callable[[Any, Any], tf.Tensor]
REDUCTIONS: dict[str, Callable[..., tf.Tensor]] = {"mean": tf.reduce_mean, "sum": tf.reduce_sum}


def per_sample_loss(loss: str | keras.losses.Loss | Loss, *, reduce: str | None = None) -> Loss:
    """A function ``(y, y_pred) -> (B,) losses`` from any Keras loss, its name, or a function.

    Args:
        loss: ``"mse"``, ``keras.losses.SparseCategoricalCrossentropy(from_logits=True)``, ``my_loss``, ...
        reduce: how a loss with further axes, (B, T) or (B, H, W), becomes one number per sample: ``"mean"`` or
            ``"sum"`` over them. None refuses such a loss.

    The loss given is left as it is. The function raises ``ValueError`` where the loss gives a single number for the
    whole batch, or has further axes and ``reduce`` is None.
    """
    if reduce is not None and reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be 'mean', 'sum' or None, got {reduce!r}")
    unreduced_loss = unreduced(loss)

    def losses_of(y: Any, y_pred: Any) -> tf.Tensor:
        losses = tf.convert_to_tensor(unreduced_loss(y, y_pred))
        if losses.shape.rank == 0:
            raise ValueError(
                f"the loss {_name(loss)} gives one number for the whole batch; per-sample losses need one for each "
                "sample: let it end in a mean over the last axis, ops.mean(..., axis=-1), not over all"
            )
        if losses.shape.rank == 1:
            return losses
        if reduce is None:
            raise ValueError(
                f"the loss {_name(loss)} has shape {tuple(losses.shape)}, one number for each step or pixel; say how "
                "a sample's are put together: per_sample_loss(..., reduce='mean') or reduce='sum'"
            )
        return REDUCTIONS[reduce](losses, axis=list(range(1, losses.shape.rank)))

    return losses_of


def weighted_mean(losses: Any, weight: Any) -> tf.Tensor:
    """(1/B) Σ w ℓ: a scalar, an unbiased estimate of the data set's mean loss.

    Divides by the batch size B, not by the sum of the weights, which would bias it.

    Args:
        losses: (B,) float.
        weight: (B,) float; the importance weights, times sample weights of the user's own where there are any.

    Raises ``ValueError`` for other shapes: (B, 1) times (B,) would silently become (B, B), and (1,) times (B,) one
    weight for all.
    """
    losses = tf.convert_to_tensor(losses)
    weight = tf.cast(weight, losses.dtype)
    if losses.shape.rank != 1 or weight.shape.rank != 1 or not losses.shape.is_compatible_with(weight.shape):
        raise ValueError(
            f"losses and weight must both have shape (B,), got {tuple(losses.shape)} and {tuple(weight.shape)}"
        )
    return tf.reduce_mean(losses * weight)


def unreduced(loss: str | keras.losses.Loss | Loss) -> Loss:
    """The loss without its reduction: a Keras loss is copied with ``reduction=None``, a function stays."""
    resolved = keras.losses.get(loss) if isinstance(loss, str) else loss
    if isinstance(resolved, type) and issubclass(resolved, keras.losses.Loss):
        resolved = resolved()
    if isinstance(resolved, keras.losses.Loss):
        return _copy_without_reduction(resolved)
    if not callable(resolved):
        raise TypeError(f"loss must be a Keras loss, its name or a function, got {loss!r}")
    return _Function(resolved, name=_name(resolved))


def _copy_without_reduction(loss: keras.losses.Loss) -> Loss:
    """A shallow copy; ``copy.copy`` would go through Keras's serialisation, which knows no class of the user's own."""
    copied = object.__new__(type(loss))
    copied.__dict__.update(loss.__dict__)
    copied.reduction = None
    return copied


class _Function(keras.losses.Loss):
    """A function as a loss without reduction; y (B,) meets y_pred (B, 1) as in ``compile(loss=function)``."""

    def __init__(self, function: Loss, name: str) -> None:
        super().__init__(name=name, reduction=None)
        self.function = function

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        if not tf.nest.is_nested(y_pred) and y_pred.shape.rank is not None:
            if y_true.shape.rank == y_pred.shape.rank - 1 and y_pred.shape[-1] == 1:
                y_true = tf.expand_dims(y_true, -1)
            elif y_true.shape.rank == 2 and y_pred.shape.rank == 1 and y_true.shape[-1] == 1:
                y_pred = tf.expand_dims(y_pred, -1)
        return self.function(y_true, y_pred)


def _name(loss: Any) -> str:
    return str(getattr(loss, "name", None) or getattr(loss, "__name__", None) or loss)
