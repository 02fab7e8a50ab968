"""Per-sample losses, and their weighted mean.

    from pipeline import per_sample_loss, weighted_mean

    loss_of = per_sample_loss("sparse_categorical_crossentropy")
    losses = loss_of(y, model(x))                               # (B,)
    loss = weighted_mean(losses, sampling["weight"])            # a scalar, unbiased

A Keras loss reduces its result to one number by default. To see what it says of each sample it must be
made, or as here copied, with ``reduction=None``.

``SparseCategoricalFocalCrossentropy`` is the focal loss for integer labels, which Keras has for other labels only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sampler import checks

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


def loss_of(model: keras.Model, loss: str | keras.losses.Loss | Loss | None = None) -> Loss:
    """A function ``(y, y_pred) -> (B,) losses``, as ``fit`` of a model with one output counts them.

    Args:
        model: compiled, where ``loss`` is None.
        loss: what ``per_sample_loss`` takes; None is the loss that the model was compiled with.

    A loss of (B, T) or (B, H, W) counts by its mean over the further axes, or by its sum where that is its reduction;
    the mean under a mask is the sum over a sample's steps that count, over the mean number of such steps in the batch.
    Raises ``ValueError`` for a model that is not compiled, and for one of several losses.
    """
    given = getattr(model, "loss", None) if loss is None else loss
    if isinstance(given, (dict, list, tuple)):
        parts = [part for part in (given.values() if isinstance(given, dict) else given) if part is not None]
        if len(parts) != 1:
            raise ValueError(
                f"the model has losses for {len(parts)} outputs, and one is needed here; pass a function of all of "
                "them, which gives (B,) numbers: loss=lambda y, y_pred: ..."
            )
        (given,) = parts
    if given is None:
        raise ValueError("the model was not compiled with a loss; compile it first, or pass loss=...")
    summed = getattr(given, "reduction", "mean") in ("sum", "none", None)
    losses_of = per_sample_loss(given, reduce="sum" if summed else "mean")

    def counted(y: Any, y_pred: Any) -> tf.Tensor:
        losses, mask = losses_of(y, y_pred), getattr(y_pred, "_keras_mask", None)
        if summed or mask is None:
            return losses
        return tf.math.divide_no_nan(losses, tf.reduce_mean(tf.cast(mask, losses.dtype)))

    return counted


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
        super().__init__(name=name.strip("<>"), reduction=None)  # <lambda> is no name in a graph
        self.function = function

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        if not tf.nest.is_nested(y_pred) and y_pred.shape.rank is not None:
            if y_true.shape.rank == y_pred.shape.rank - 1 and y_pred.shape[-1] == 1:
                y_true = tf.expand_dims(y_true, -1)
            elif y_true.shape.rank == 2 and y_pred.shape.rank == 1 and y_true.shape[-1] == 1:
                y_pred = tf.expand_dims(y_pred, -1)
        return self.function(y_true, y_pred)


@keras.saving.register_keras_serializable(package="tf_importance_sampling")
class SparseCategoricalFocalCrossentropy(keras.losses.SparseCategoricalCrossentropy):
    """The focal loss for integer labels: α (1 - p_y)^γ ℓ, where ℓ is the cross-entropy and p_y = e^-ℓ.

    Args:
        gamma: γ ≥ 0. 0 is the cross-entropy; the greater, the less counts what is known already.
        alpha: α ≥ 0, a factor of every loss. Keras's own focal losses have 0.25, which does what a quarter of the
            learning rate does; weights that differ from class to class are ``LossFeedback(class_weight=...)``.
        from_logits, ignore_class, reduction, axis, name, dtype: as of ``SparseCategoricalCrossentropy``.

    Lin, Goyal, Girshick, He & Dollár, 2017, *Focal loss for dense object detection*, equation 5. It is another aim than
    the mean cross-entropy, and importance sampling estimates its mean without bias as it does that of any loss.
    ``ValueError`` or ``TypeError`` for γ and α outside these ranges.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float = 1.0,
        name: str = "sparse_categorical_focal_crossentropy",
        **options: Any,
    ) -> None:
        super().__init__(name=name, **options)
        self.gamma = checks.number("gamma", gamma, 0.0, np.inf, top_open=True)
        self.alpha = checks.number("alpha", alpha, 0.0, np.inf, top_open=True)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """(B,) losses, or (B, ...) for labels with further axes."""
        losses = super().call(y_true, y_pred)
        # The slope of a power at 0 may be infinite: what is known that well counts as if it were a little less.
        unknown = keras.ops.maximum(-keras.ops.expm1(-losses), keras.config.epsilon())
        focal = self.alpha * unknown**self.gamma * losses
        mask = getattr(losses, "_keras_mask", None)  # of labels that are not of ``ignore_class``
        if mask is not None:
            focal._keras_mask = mask
        return focal

    def get_config(self) -> dict[str, Any]:
        """What makes the same loss again."""
        return {**super().get_config(), "gamma": self.gamma, "alpha": self.alpha}


def _name(loss: Any) -> str:
    return str(getattr(loss, "name", None) or getattr(loss, "__name__", None) or loss)
