"""A data set of Hugging Face's ``datasets``, or any other object with ``__len__`` and ``__getitem__``.

It is fetched from by index, a batch at a time through ``__getitems__``; nothing of it is held in memory. Lists and
images inside an element arrive as arrays.
"""

import keras
import tensorflow as tf

from pipeline import LossFeedback, importance_dataset
from pipeline.data import load_data
from sampler import ImportanceSampler


class Digits:
    """Stands in for ``datasets.Dataset``: an element is a dict, with lists where that has lists."""

    def __init__(self, pixels, labels):
        self.pixels, self.labels = pixels, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"pixels": self.pixels[i].tolist(), "label": int(self.labels[i])}

    def __getitems__(self, indices):
        return [self[i] for i in indices]


def pair(element):
    """What ``fit`` takes: inputs and targets."""
    return tf.cast(element["pixels"], tf.float32), element["label"]


def main(epochs: int = 2, batch_size: int = 32) -> float:
    """Train on the handwritten digits; returns the test accuracy."""
    data = load_data("digits")
    # dataset = datasets.load_dataset("ylecun/mnist", split="train")    # with "image" for "pixels"
    dataset = Digits(data.x.reshape(-1, 64), data.y)

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])

    sampler = ImportanceSampler(len(dataset), smoothing=0.5, seed=0)
    train = importance_dataset(dataset, sampler, batch_size, map_fn=pair)
    model.fit(train, epochs=epochs, callbacks=[LossFeedback(model, sampler)], shuffle=False, verbose=0)

    accuracy = model.evaluate(data.x_test.reshape(-1, 64), data.y_test, verbose=0)[1]
    print(f"{len(dataset)} elements, test accuracy after {epochs} epochs: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
