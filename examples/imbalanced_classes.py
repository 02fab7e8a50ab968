"""What per-sample losses make possible: class weights and focal loss on imbalanced classes.

The digits with class frequencies that fall to 1:50 in training, and a balanced test set. Three losses, each
one number per sample, aggregated by their mean:

plain       ℓ
weighted    w_y ℓ, with w_y one over the class's frequency, scaled to mean 1 over the training set
focal       (1 - p_y)^γ ℓ with p_y = e^-ℓ (Lin et al., 2017, *Focal loss for dense object detection*)
"""

import keras
import numpy as np
import tensorflow as tf

from pipeline import per_sample_loss
from pipeline.data import load_data

cross_entropy = per_sample_loss(keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def plain(y, logits):
    """The cross-entropy of each sample, (B,)."""
    return cross_entropy(y, logits)


def class_weighted(class_weight):
    """A loss that multiplies each sample's by the weight of its class."""
    table = tf.constant(class_weight, tf.float32)
    return lambda y, logits: tf.gather(table, y) * cross_entropy(y, logits)


def focal(y, logits, gamma: float = 2.0):
    """Samples that are classified well already count less."""
    losses = cross_entropy(y, logits)
    return (1.0 - tf.exp(-losses)) ** gamma * losses


def balanced_weights(y, num_classes: int) -> np.ndarray:
    """One over the frequency of each class, scaled so that the mean over the samples is 1."""
    counts = np.bincount(y, minlength=num_classes)
    return len(y) / (num_classes * counts)


def train(data, losses_of, steps: int, batch_size: int) -> np.ndarray:
    """Train with ``mean(losses_of(y, logits))``; returns the test accuracy of each class."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    )
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps))
    batches = tf.data.Dataset.from_tensor_slices((data.x, data.y))
    model(data.x[:1])

    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(losses_of(y, model(x, training=True)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    for x, y in batches.shuffle(len(data.x), seed=0).repeat().batch(batch_size).take(steps):
        train_step(x, y)
    right = np.argmax(model(data.x_test), axis=1) == data.y_test
    return np.array([right[data.y_test == label].mean() for label in range(10)])


def main(steps: int = 600, batch_size: int = 32) -> dict[str, np.ndarray]:
    """Train with each loss and print what became of the classes."""
    data = load_data("digits-longtail")
    losses = {
        "plain": plain,
        "weighted": class_weighted(balanced_weights(data.y, 10)),
        "focal": focal,
    }
    print("training samples a class:", *np.bincount(data.y))
    results = {}
    for name, losses_of in losses.items():
        accuracy = results[name] = train(data, losses_of, steps, batch_size)
        print(f"{name:9} test accuracy {accuracy.mean():.3f}, worst class {accuracy.min():.3f}")
    return results


if __name__ == "__main__":
    main()
