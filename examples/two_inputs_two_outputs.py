"""A functional model of two inputs and two outputs, with importance sampling in its training.

Without the lines marked ``added``, and with those after ``was:`` in their place, this is the script as it would be
without importance sampling. The model sees a digit, is given a number, and says the digit and the total, in tens. A
sample's loss, and so its priority, is the sum over outputs that Keras trains on: 1.0 ℓ(digit) + 5.0 ℓ(total).
"""

import keras
import numpy as np
import tensorflow as tf

from pipeline import LossFeedback, importance_sampling  # added
from pipeline.data import load_data
from sampler import ImportanceSampler  # added

keras.utils.set_random_seed(0)


def dataset(images, digits, rng):
    """Inputs and targets, a dict each."""
    number = rng.integers(0, 10, (len(digits), 1)) / 10
    inputs = {"image": images, "number": number}
    return tf.data.Dataset.from_tensor_slices((inputs, {"digit": digits, "total": number + digits[:, None] / 10}))


data, rng = load_data("digits"), np.random.default_rng(0)
train = dataset(data.x, data.y, rng)
test = dataset(data.x_test, data.y_test, rng).batch(150)

image, number = keras.Input((8, 8, 1), name="image"), keras.Input((1,), name="number")
hidden = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(image))
digit = keras.layers.Dense(10, activation="softmax", name="digit")(hidden)
total = keras.layers.Dense(1, name="total")(keras.layers.Concatenate()([hidden, number]))
model = keras.Model({"image": image, "number": number}, {"digit": digit, "total": total})
model.compile(
    keras.optimizers.Adam(5e-3),
    loss={"digit": "sparse_categorical_crossentropy", "total": "mse"},
    loss_weights={"digit": 1.0, "total": 5.0},
    metrics={"digit": "accuracy", "total": "mae"},
)

sampler = ImportanceSampler(len(train), seed=0)  # added
# was: train = train.shuffle(len(train)).batch(32)
train = train.apply(importance_sampling(sampler, batch_size=32))  # added
history = model.fit(
    train,
    epochs=8,
    validation_data=test,
    callbacks=[LossFeedback(model, sampler)],  # added
    shuffle=False,  # which is for arrays; Keras warns where a dataset comes without it
    verbose=0,
)

print("last epoch:", ", ".join(f"{name} {values[-1]:.3f}" for name, values in history.history.items()))
