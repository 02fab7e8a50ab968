"""``update`` takes eager tensors as they come out of a training step."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from sampler import ImportanceSampler


@pytest.mark.parametrize("floating", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
@pytest.mark.parametrize("whole", [tf.int32, tf.int64])
def test_update_takes_eager_tensors(floating, whole):
    sampler = ImportanceSampler(6, first_pass=False, seed=0)
    index, losses = tf.constant([5, 0, 5], whole), tf.constant([2.0, 8.0, 4.0], floating)
    sampler.update(index, losses, step=tf.constant([3, 3, 3], whole), score=losses)
    sampler.update(index[:1], losses[:1], step=tf.constant(2, whole))  # late
    assert sampler.priorities().tolist() == [8, 1, 1, 1, 1, 3]


def test_update_takes_what_a_tape_gives():
    sampler = ImportanceSampler(4, first_pass=False, feedback_lag=1, seed=0)
    draw = sampler.draw(4)
    weights = tf.Variable([2.0])
    with tf.GradientTape() as tape:
        losses = tf.square(tf.cast(draw.index, tf.float32) - weights)
        loss = tf.reduce_mean(losses * draw.weight)
    assert tape.gradient(loss, weights) is not None
    sampler.update(tf.constant(draw.index), losses, step=tf.fill([4], tf.cast(draw.step, tf.int64)))
    np.testing.assert_allclose(sampler.priorities(), [4, 1, 0, 1])


@pytest.mark.parametrize(
    ("index", "losses", "error", "words"),
    [
        ([0.0, 1.0], [1.0, 1.0], TypeError, "index must be integers"),
        ([0, 6], [1.0, 1.0], IndexError, r"index must be in \[0, 6\)"),
        ([0, 1], 1.0, ValueError, "reduced already"),
        ([0, 1], [[1.0], [1.0]], ValueError, r"mean\(axis=1\)"),
        ([0, 1], ["a", "b"], TypeError, "losses must be real numbers"),
    ],
)
def test_what_is_refused_of_arrays_is_refused_of_tensors(index, losses, error, words):
    sampler = ImportanceSampler(6, first_pass=False, seed=0)
    with pytest.raises(error, match=words):
        sampler.update(tf.constant(index), tf.constant(losses))
    assert sampler.priorities().tolist() == [1.0] * 6
