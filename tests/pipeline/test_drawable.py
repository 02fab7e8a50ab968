"""What may be meant otherwise of a dataset that can be drawn from, and is warned of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import importance_sampling, num_samples
from sampler import ImportanceSampler


def noisy(x: tf.Tensor) -> tf.Tensor:
    return x + tf.random.normal(tf.shape(x), seed=1)  # a seed of its own: others set the global one


def noisy_inside(x: tf.Tensor) -> tf.Tensor:
    return tf.cond(x[0] > 0.5, lambda: noisy(x), lambda: x)


@pytest.mark.parametrize("augment", [noisy, noisy_inside], ids=["random", "in a branch"])
def test_random_numbers_before_the_wrap_are_warned_of(augment: Any) -> None:
    """They are drawn once, when the dataset is read, and would be the same in every epoch."""
    dataset = tf.data.Dataset.from_tensor_slices(np.zeros((8, 3), np.float32)).map(augment).map(lambda x: 2 * x)
    with pytest.warns(RuntimeWarning, match="would be the same in every epoch: augment after the draw, with map_fn="):
        dataset.apply(importance_sampling(ImportanceSampler(8), 4))


def test_random_numbers_after_the_wrap_are_not() -> None:
    dataset = tf.data.Dataset.from_tensor_slices(np.zeros((8, 3), np.float32)).map(lambda x: 2 * x)
    next(iter(dataset.apply(importance_sampling(ImportanceSampler(8), 4, map_fn=noisy))))


def test_batches_that_are_taken_for_samples_are_warned_of() -> None:
    """Their number is that of the samples, where ``num_samples`` counted them."""
    dataset = tf.data.Dataset.from_tensor_slices(np.zeros((8, 3), np.float32)).batch(2)
    with pytest.warns(RuntimeWarning, match="each of its batches is taken for one sample; remove batch"):
        dataset.apply(importance_sampling(ImportanceSampler(num_samples(dataset)), 4))
