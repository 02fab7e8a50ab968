"""Importance sampling in a loop of your own: three lines around a ``tf.GradientTape``.

The loss of each sample, their weighted mean, and the unweighted losses back to the sampler. The mean divides by the
batch size, not by the sum of the weights, and what comes back is without the weights: else the training
would be biased, or the sampler would unlearn what it has learnt.
"""

import keras
import tensorflow as tf

from pipeline import importance_dataset, per_sample_loss, weighted_mean
from pipeline.data import load_data
from sampler import ImportanceSampler


def main(epochs: int = 5, batch_size: int = 32) -> float:
    """Train on the handwritten digits; returns the test loss."""
    data = load_data("digits")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    )
    optimizer = keras.optimizers.Adam(1e-3)
    losses_of = per_sample_loss(keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model(data.x[:1])

    sampler = ImportanceSampler(len(data.x), smoothing=0.5, seed=0)
    train = importance_dataset((data.x, data.y), sampler, batch_size)

    @tf.function
    def train_step(x, y, weight):
        with tf.GradientTape() as tape:
            losses = losses_of(y, model(x, training=True))  # (B,)
            loss = weighted_mean(losses, weight)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return losses

    for _ in range(epochs):
        for x, y, sampling in train:
            losses = train_step(x, y, sampling["weight"])
            sampler.update(sampling["index"], losses, step=sampling["step"])

    test_loss = float(tf.reduce_mean(losses_of(data.y_test, model(data.x_test))))
    print(f"test loss: {test_loss:.4f}; largest weight {sampler.summary()['max_weight']:.2f}")
    return test_loss


if __name__ == "__main__":
    main()
