"""Encoded images in a TFRecord file: drawn as they are, decoded and augmented after the draw.

What is held in memory is the raw records, as small as in the file. ``map_fn`` makes a sample of each one that is drawn,
in several threads, so random augmentation is another each time, while an index means the same image.
"""

import os
import tempfile

import keras
import numpy as np
import tensorflow as tf

from pipeline import LossFeedback, importance_sampling, num_samples
from pipeline.data import load_data
from sampler import ImportanceSampler

FEATURES = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}


def write_records(path: str, images: np.ndarray, labels: np.ndarray) -> None:
    """A TFRecord file of ``tf.train.Example`` with a PNG and a label each; images are (N, H, W, 1) in 0 ... 1."""
    with tf.io.TFRecordWriter(path) as writer:
        for image, label in zip(images, labels, strict=True):
            png = tf.io.encode_png(np.uint8(255 * image)).numpy()
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[png])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


def parse_and_augment(record):
    """The image of a record, moved by up to a pixel, and its label."""
    example = tf.io.parse_single_example(record, FEATURES)
    image = tf.cast(tf.io.decode_png(example["image"], channels=1), tf.float32) / 255.0
    image = tf.image.random_crop(tf.pad(image, [[1, 1], [1, 1], [0, 0]]), [8, 8, 1])
    return image, example["label"]


def main(epochs: int = 2, batch_size: int = 32) -> float:
    """Write the handwritten digits to a file and train from it; returns the test accuracy."""
    data = load_data("digits")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "digits.tfrecord")
        write_records(path, data.x.reshape(-1, 8, 8, 1), data.y)

        records = tf.data.TFRecordDataset(path)
        sampler = ImportanceSampler(num_samples(records), smoothing=0.5, seed=0)
        train = records.apply(importance_sampling(sampler, batch_size, map_fn=parse_and_augment, num_parallel_calls=2))
        model.fit(train, epochs=epochs, callbacks=[LossFeedback(model, sampler)], shuffle=False, verbose=0)

    accuracy = model.evaluate(data.x_test.reshape(-1, 8, 8, 1), data.y_test, verbose=0)[1]
    print(f"{len(sampler)} records, test accuracy after {epochs} epochs: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
