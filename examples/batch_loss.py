"""How the loss of a batch is usually computed: one number, the mean over the batch.

A Keras ``Loss`` object reduces by itself (``reduction="sum_over_batch_size"``), so what each sample contributed is
no longer to be seen. ``per_sample_losses.py`` shows how to see it.
"""

import keras
import tensorflow as tf

from pipeline.data import load_data


def main(steps: int = 200, batch_size: int = 32) -> float:
    """Train on the handwritten digits with the batch loss; returns the last one."""
    data = load_data("digits")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    )
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(1e-3)
    batches = tf.data.Dataset.from_tensor_slices((data.x, data.y))
    batches = batches.shuffle(len(data.x), seed=0).repeat().batch(batch_size).take(steps)
    model(data.x[:1])  # makes its variables

    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))  # a scalar
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    for x, y in batches:
        loss = train_step(x, y)
    print(f"loss of the last batch after {steps} steps: {float(loss):.4f}")
    return float(loss)


if __name__ == "__main__":
    main()
