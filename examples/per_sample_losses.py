"""The loss of each sample, then their mean: the same gradient as the batch loss, at next to no cost.

Two forms that look right are not. A ``Loss`` object made with its default reduction gives a scalar, whatever is
done to it later; and ``from_logits`` belongs to its construction, in the call it is a ``TypeError``::

    loss = keras.losses.SparseCategoricalCrossentropy()
    loss(y, logits)                             # a scalar, and it takes the logits for probabilities
    loss(y, logits, from_logits=True)           # TypeError

The right form, by hand and with this project's helper for any Keras loss::

    keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)(y, logits)     # (B,)
    per_sample_loss(loss)(y, logits)                                                            # (B,)
"""

import statistics
import time

import keras
import tensorflow as tf

from pipeline import per_sample_loss
from pipeline.data import load_data


def main(rounds: int = 200, batch_size: int = 256) -> tuple[float, float]:
    """Compare both; returns the largest relative difference of the gradients and the ratio of their times."""
    data = load_data("digits")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(512, activation="relu"), keras.layers.Dense(10)]
    )
    batch_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses_of = per_sample_loss(batch_loss)
    x, y = tf.constant(data.x[:batch_size]), tf.constant(data.y[:batch_size])
    model(x)

    @tf.function
    def of_the_batch():
        with tf.GradientTape() as tape:
            loss = batch_loss(y, model(x))
        return loss, tape.gradient(loss, model.trainable_variables)

    @tf.function
    def of_each_sample():
        with tf.GradientTape() as tape:
            losses = losses_of(y, model(x))  # (B,)
            loss = tf.reduce_mean(losses)
        return losses, tape.gradient(loss, model.trainable_variables)

    losses, gradients = of_each_sample()
    difference = max(
        float(tf.norm(one - other) / tf.norm(one)) for one, other in zip(of_the_batch()[1], gradients, strict=True)
    )
    ratio = _time_ratio(of_each_sample, of_the_batch, rounds)
    print(f"losses of a batch: shape {tuple(losses.shape)}, from {min(losses):.3f} to {max(losses):.3f}")
    print(f"largest relative difference between the gradients: {difference:.1e}")
    print(f"time per step, per-sample losses over batch loss: {ratio:.3f} (median of {rounds} pairs)")
    return difference, ratio


def _time_ratio(one, other, rounds: int) -> float:
    """Median ratio of their times, taken in turn so that what else the machine does hits both alike."""
    ratios = []
    for _ in range(rounds):
        start = time.perf_counter()
        one()
        middle = time.perf_counter()
        other()
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
