"""A loop of your own for a model of two outputs: their losses are added sample by sample, then averaged by weight.

Without the lines marked ``added``, and with those after ``was:`` in their place, this is the loop as it would be
without importance sampling. The model sees a digit and says which one it is, and how many of its pixels are inked.
"""

import keras
import tensorflow as tf

# was: from pipeline import per_sample_loss
from pipeline import feed_back, importance_sampling, per_sample_loss, weighted_mean  # added
from pipeline.data import load_data
from sampler import ImportanceSampler  # added

keras.utils.set_random_seed(0)
EPOCHS = 6


def ink(images):
    """(N, 1) the share of pixels that are not white."""
    return (images > 0).mean(axis=(1, 2), dtype="float32")


data = load_data("digits")
train = tf.data.Dataset.from_tensor_slices((data.x, {"digit": data.y, "ink": ink(data.x)}))
sampler = ImportanceSampler(len(train), seed=0)  # added
# was: train = train.shuffle(len(train)).batch(32)
train = train.apply(importance_sampling(sampler, batch_size=32))  # added

image = keras.Input((8, 8, 1))
hidden = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(image))
model = keras.Model(image, {"digit": keras.layers.Dense(10)(hidden), "ink": keras.layers.Dense(1)(hidden)})
optimizer = keras.optimizers.Adam(3e-3)
digit_loss = per_sample_loss(keras.losses.SparseCategoricalCrossentropy(from_logits=True))
ink_loss = per_sample_loss("mse")


@tf.function
# was: def train_step(x, y):
def train_step(x, y, sampling):  # added
    """One step of the optimizer; the sum over outputs comes before the weights, so a sample has one loss."""
    with tf.GradientTape() as tape:
        outputs = model(x, training=True)
        losses = digit_loss(y["digit"], outputs["digit"]) + 10.0 * ink_loss(y["ink"], outputs["ink"])  # (B,)
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

outputs = model(data.x_test)
accuracy = (outputs["digit"].numpy().argmax(axis=1) == data.y_test).mean()
print(f"test accuracy {accuracy:.3f}, error of ink {abs(outputs['ink'] - ink(data.x_test)).numpy().mean():.3f}")
