"""A text classifier over padded tokens, with importance sampling in its training.

Without the lines marked ``added``, and with those after ``was:`` in their place, this is the script as it would be
without importance sampling. The mask of ``Embedding(mask_zero=True)`` keeps padding out of the average that the
pooling layer takes, and ends there: a text has one prediction, one loss and one priority, however long it is.
"""

import keras
import numpy as np
import tensorflow as tf

from pipeline import LossFeedback, importance_sampling  # added
from sampler import ImportanceSampler  # added

keras.utils.set_random_seed(0)
WORDS, LENGTH = 300, 25


def texts(count, rng):
    """Padded lists of 5 to 25 tokens; 1 to 20 praise, 21 to 40 blame, and the label says which of them are more."""
    tokens, labels = [], []
    while len(tokens) < count:
        text = np.where(rng.random(LENGTH) < 0.4, rng.integers(1, 41, LENGTH), rng.integers(41, WORDS, LENGTH))
        text = text[: rng.integers(5, LENGTH + 1)]
        praise, blame = np.sum(text <= 20), np.sum((text > 20) & (text <= 40))
        if praise != blame:
            tokens.append(text)
            labels.append(praise > blame)
    return keras.utils.pad_sequences(tokens, LENGTH, padding="post"), np.array(labels, "float32")


rng = np.random.default_rng(0)
train = tf.data.Dataset.from_tensor_slices(texts(4000, rng))
test = tf.data.Dataset.from_tensor_slices(texts(1000, rng)).batch(100)

model = keras.Sequential(
    [
        keras.Input((LENGTH,), dtype="int32"),
        keras.layers.Embedding(WORDS, 16, mask_zero=True),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(1, activation="sigmoid"),
    ]
)
model.compile(keras.optimizers.Adam(1e-2), loss="binary_crossentropy", metrics=["accuracy"])

sampler = ImportanceSampler(len(train), seed=0)  # added
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
