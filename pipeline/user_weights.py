"""The weights that are the user's own: of samples and of classes. They multiply the importance weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from sampler import checks


def of_samples(sampling: dict[str, tf.Tensor]) -> tf.Tensor | None:
    """(B,) the user's own sample weights, where there are any."""
    own, weight = sampling.get("sample_weight"), sampling["weight"]
    if own is None:
        return None
    shapes = {tuple(part.shape) for part in tf.nest.flatten(own)}
    if tf.nest.is_nested(own) or shapes - {tuple(weight.shape), (*weight.shape, 1)}:
        raise ValueError(
            f"the data set's own sample weights must be one number for each sample, got shape "
            f"{' and '.join(map(str, sorted(shapes)))} for a batch of {weight.shape[0]}; weights for steps, pixels or "
            "outputs go into the loss, or into a custom loop with per_sample_loss"
        )
    return tf.cast(tf.reshape(own, tf.shape(weight)), weight.dtype)


def class_table(class_weight: dict[int, float]) -> Any:
    """(classes,) float32; 1 for those that are not named."""
    if not isinstance(class_weight, dict) or not class_weight:
        raise TypeError(f"class_weight must be a dict of a weight for each class, got {class_weight!r}")
    classes = [checks.whole("a class of class_weight", name, least=0) for name in class_weight]
    table = np.ones(max(classes) + 1, np.float32)
    for name, weight in zip(classes, class_weight.values(), strict=True):
        table[name] = checks.number(f"class_weight[{name}]", weight, 0.0, np.inf, top_open=True)
    return table


def of_classes(table: Any, y: Any) -> tf.Tensor:
    """(B,) the weight of each sample's class."""
    if tf.nest.is_nested(y) and len(tf.nest.flatten(y)) == 1:
        (y,) = tf.nest.flatten(y)
    if tf.nest.is_nested(y) or y is None or y.shape.rank not in (1, 2):
        what = "no labels" if y is None else "several" if tf.nest.is_nested(y) else f"labels of shape {y.shape}"
        raise ValueError(
            f"class_weight needs one output with labels (B,), (B, 1) or one-hot (B, K), got {what}; multiply the data "
            "set's own sample weights instead"
        )
    one_hot = y.shape.rank == 2 and y.shape[1] != 1
    labels = tf.argmax(y, axis=1) if one_hot else tf.reshape(y, [-1])
    labels = tf.cast(tf.round(labels) if labels.dtype.is_floating else labels, tf.int64)  # soft labels as Keras does
    known = (labels >= 0) & (labels < len(table))
    return tf.where(known, tf.gather(tf.constant(table), tf.where(known, labels, 0)), 1.0)
