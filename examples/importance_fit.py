"""Importance sampling in ``model.fit``: an existing dataset, two added lines.

The dataset, the model and the loss are as they were. ``importance_sampling`` draws the batches, in proportion to the
loss that ``LossFeedback`` brings back; the importance weights keep the training unbiased.
"""

import keras
import tensorflow as tf

from pipeline import LossFeedback, importance_sampling
from pipeline.data import load_data
from sampler import ImportanceSampler


def main(epochs: int = 5, batch_size: int = 32) -> dict[str, float]:
    """Train on the handwritten digits; returns the sampler's summary."""
    data = load_data("digits")
    keras.utils.set_random_seed(0)
    dataset = tf.data.Dataset.from_tensor_slices((data.x * 16, data.y)).map(lambda x, y: (x / 16, y))
    model = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    )
    model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    sampler = ImportanceSampler(len(data.x), smoothing=0.5, feedback_lag=4, seed=0)
    train = dataset.apply(importance_sampling(sampler, batch_size))  # instead of shuffle().batch()
    model.fit(
        train,
        epochs=epochs,
        callbacks=[LossFeedback(model, sampler)],
        shuffle=False,  # the sampler orders the samples; without this Keras warns that it will not
        verbose=0,
    )

    summary = sampler.summary()
    print(f"{summary['step']} batches drawn, {summary['seen']} of {len(sampler)} samples seen")
    print(f"a batch is worth {summary['effective_fraction']:.0%} of its size in equally weighted samples")
    print(f"test loss: {model.evaluate(data.x_test, data.y_test, verbose=0):.4f}")
    hardest = sampler.priorities().argsort()[::-1][:5]
    print("hardest samples:", *(f"{i} (a {data.y[i]})" for i in hardest))
    return summary


if __name__ == "__main__":
    main()
