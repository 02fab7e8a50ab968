"""A loop of your own over sequences (B, T) of different lengths: one loss of a sample, from those of its steps.

Without the lines marked ``added``, and with those after ``was:`` in their place, this is the loop as it would be
without importance sampling. The model reads numbers from 1 to 9, and says at each of them which was the largest so far.
"""

import keras
import numpy as np
import tensorflow as tf

# was: from pipeline import per_sample_loss
from pipeline import feed_back, importance_sampling, per_sample_loss, weighted_mean  # added
from sampler import ImportanceSampler  # added

keras.utils.set_random_seed(0)
LENGTH, EPOCHS = 20, 5


def sequences(count, rng):
    """(N, T) numbers, 5 to 20 in a row and 0 behind them; and (N, T) the largest so far."""
    numbers = rng.integers(1, 10, (2, count, LENGTH)).min(axis=0)  # large ones are rare
    kept = np.arange(LENGTH) < rng.integers(5, LENGTH + 1, (count, 1))
    return kept * numbers, kept * np.maximum.accumulate(numbers, axis=1)


x_test, y_test = sequences(500, np.random.default_rng(1))
train = tf.data.Dataset.from_tensor_slices(sequences(2000, np.random.default_rng(0)))
sampler = ImportanceSampler(len(train), seed=0)  # added
# was: train = train.shuffle(len(train)).batch(32)
train = train.apply(importance_sampling(sampler, batch_size=32))  # added

tokens = keras.Input((LENGTH,), dtype="int32")
hidden = keras.layers.GRU(32, return_sequences=True)(keras.layers.Embedding(10, 8, mask_zero=True)(tokens))
model = keras.Model(tokens, keras.layers.Dense(10)(hidden))
optimizer = keras.optimizers.Adam(1e-2)
# The logits carry the mask, so padding adds nothing to the sum. reduce="mean" would divide it by T, and a short sample
# would pass for an easy one; divided by the sample's own length, as below, it is the mean over its steps.
sum_over_steps = per_sample_loss(keras.losses.SparseCategoricalCrossentropy(from_logits=True), reduce="sum")


@tf.function
# was: def train_step(x, y):
def train_step(x, y, sampling):  # added
    """One step of the optimizer, on the mean over the steps that are no padding."""
    with tf.GradientTape() as tape:
        losses = sum_over_steps(y, model(x, training=True)) / tf.math.count_nonzero(x, axis=1, dtype=tf.float32)  # (B,)
        # was: loss = tf.reduce_mean(losses)
        loss = weighted_mean(losses, sampling["weight"])  # added
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    # XLA cannot call Python. With jit_compile=True return losses instead, and call in the loop
    # sampler.update(sampling["index"], losses, step=sampling["step"]).
    feed_back(sampler, sampling, losses)  # added


for _ in range(EPOCHS):
    for batch in train:
        train_step(*batch)
right = np.argmax(model(x_test), axis=-1) == y_test
print(f"test accuracy of steps {right[x_test != 0].mean():.3f}")
