"""Rents from a table of numbers and categories, with importance sampling in the training.

Without the lines marked ``added``, and with those after ``was:`` in their place, this is the script as it would be
without importance sampling. ``priority="sqrt"`` suits squared errors: the gradient of e² grows with e, not with e².
"""

import keras
import numpy as np
import tensorflow as tf

from pipeline import LossFeedback, importance_sampling  # added
from sampler import ImportanceSampler  # added

keras.utils.set_random_seed(0)
PER_METRE = np.array([8, 10, 11, 13, 14, 16, 19, 22])  # by district


def flats(count, rng):
    """Columns by name, and the rent in hundreds; 3 % of the flats have a terrace, which costs more the higher it is."""
    area, floor = rng.uniform(20, 120, count), rng.integers(0, 15, count)
    district, terrace = rng.integers(0, len(PER_METRE), count), rng.random(count) < 0.03
    rent = (area * PER_METRE[district] + terrace * (500 + 100 * floor) + rng.normal(0, 20, count)) / 100
    numbers = np.stack([area, floor, terrace], axis=1).astype("float32")
    return {"numbers": numbers, "district": district}, rent.astype("float32")


rng = np.random.default_rng(0)
x_train, y_train = flats(6000, rng)
train = tf.data.Dataset.from_tensor_slices((x_train, y_train))
test = tf.data.Dataset.from_tensor_slices(flats(2000, rng)).batch(200)

numbers, district = keras.Input((3,), name="numbers"), keras.Input((), name="district", dtype="int32")
scale = keras.layers.Normalization()
scale.adapt(x_train["numbers"])
x = keras.layers.Concatenate()([scale(numbers), keras.layers.Embedding(len(PER_METRE), 4)(district)])
x = keras.layers.Dense(32, activation="relu")(x)
x = keras.layers.Dense(32, activation="relu")(x)
model = keras.Model({"numbers": numbers, "district": district}, keras.layers.Dense(1)(x))
model.compile(keras.optimizers.Adam(3e-3), loss="mse", metrics=["mae"])

sampler = ImportanceSampler(len(train), priority="sqrt", seed=0)  # added
# was: train = train.shuffle(len(train)).batch(32)
train = train.apply(importance_sampling(sampler, batch_size=32))  # added
history = model.fit(
    train,
    epochs=6,
    validation_data=test,
    callbacks=[LossFeedback(model, sampler)],  # added
    shuffle=False,  # which is for arrays; Keras warns where a dataset comes without it
    verbose=0,
)

print("last epoch:", ", ".join(f"{name} {values[-1]:.3f}" for name, values in history.history.items()))
