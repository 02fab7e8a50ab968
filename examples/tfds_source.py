"""A data source of TensorFlow Datasets: ArrayRecord files on disk, read by index while training draws from them.

``tfds.load`` gives a ``tf.data.Dataset``, which would be read once, into memory; ``tfds.data_source`` gives random
access, and needs no more memory than its batches. ArrayRecord files of your own need no TensorFlow Datasets:
``importance_dataset("train.array_record", ...)`` takes them, or a list of them, with a ``map_fn`` that parses a record.
"""

import keras
import numpy as np
import tensorflow as tf

from pipeline import LossFeedback, importance_dataset
from pipeline.data import load_data
from sampler import ImportanceSampler


class DataSource:
    """Stands in for what ``tfds.data_source`` gives: decoded elements, one by one or by lists of indices."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": self.labels[i]}

    def __getitems__(self, indices):
        return [self[i] for i in indices]


def prepare(element):
    """Numbers in 0 ... 1, with a little noise that is another each time, and the label."""
    image = tf.cast(element["image"], tf.float32) / 255.0
    return image + tf.random.normal(image.shape, stddev=0.05), element["label"]


def main(epochs: int = 2, batch_size: int = 32) -> float:
    """Train on the handwritten digits; returns the test accuracy."""
    data = load_data("digits")
    # source = tfds.data_source("mnist", split="train")
    source = DataSource(np.uint8(255 * data.x), data.y)

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])

    sampler = ImportanceSampler(len(source), smoothing=0.5, seed=0)
    train = importance_dataset(source, sampler, batch_size, map_fn=prepare)
    model.fit(train, epochs=epochs, callbacks=[LossFeedback(model, sampler)], shuffle=False, verbose=0)

    accuracy = model.evaluate(data.x_test, data.y_test, verbose=0)[1]
    print(f"{len(source)} elements, test accuracy after {epochs} epochs: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
