"""A convolutional network on images of digits, with importance sampling in its training.

Without the lines marked ``added``, and with those after ``was:`` in their place, this is the script as it would be
without importance sampling. Data, model, loss and metrics are the same in both.
"""

import keras
import tensorflow as tf

from pipeline import LossFeedback, importance_sampling  # added
from pipeline.data import load_data
from sampler import ImportanceSampler  # added

keras.utils.set_random_seed(0)

# 1,347 real digits of 8x8 pixels, enlarged; load_data("keras:mnist") downloads the 60,000 of MNIST.
data = load_data("digits")
x_train, x_test = tf.image.resize(data.x, (28, 28)), tf.image.resize(data.x_test, (28, 28))
train = tf.data.Dataset.from_tensor_slices((x_train, data.y))
test = tf.data.Dataset.from_tensor_slices((x_test, data.y_test)).batch(128)

model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
        keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(keras.optimizers.Adam(2e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])

sampler = ImportanceSampler(len(train), seed=0)  # added
# was: train = train.shuffle(len(train)).batch(32)
train = train.apply(importance_sampling(sampler, batch_size=32))  # added
history = model.fit(
    train,
    epochs=5,
    validation_data=test,
    callbacks=[LossFeedback(model, sampler)],  # added
    shuffle=False,  # which is for arrays; Keras warns where a dataset comes without it
    verbose=0,
)

print("last epoch:", ", ".join(f"{name} {values[-1]:.3f}" for name, values in history.history.items()))
