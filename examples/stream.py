"""Importance sampling over a stream: endless, without an index, each sample seen once.

A sampler remembers the loss of every sample, which a stream does not allow. ``Presampler`` looks at three times as many
samples as a batch has, scores them by a forward pass, and draws the batch from them; weights keep the training unbiased
(Katharopoulos & Fleuret, 2018, *Not all samples are created equal*). Here one sample in ten is near the border between
two classes, and the others say nothing new. The steps are as many with both; one with presampling takes longer, by the
forward pass.
"""

import keras
import tensorflow as tf

from pipeline import LossFeedback, Presampler


def border(across: tf.Tensor) -> tf.Tensor:
    """How high the border between the classes is."""
    return tf.sin(6.0 * across) / 2.0


def sample(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A point x (2,), and its class: whether it is above the border. Nine in ten are far from it."""
    across, apart, far, above = tf.unstack(tf.random.stateless_uniform([4], [seed, 0]))
    distance = tf.where(far < 0.9, 1.0 + apart, 0.2 * apart)
    height = border(across) + tf.where(above < 0.5, distance, -distance)
    return tf.stack([across, height]), tf.cast(above < 0.5, tf.int64)


def stream(start: int = 0) -> tf.data.Dataset:
    """Without an end; others from another start."""
    return tf.data.Dataset.counter(start).map(sample, num_parallel_calls=2, deterministic=True)


def main(steps: int = 600, batch_size: int = 32) -> dict[str, float]:
    """Train on both; returns the accuracy near the border of each, by name."""
    x_test, y_test = next(iter(stream(start=1 << 40).batch(5000)))
    near = tf.abs(x_test[:, 1] - border(x_test[:, 0])) < 0.2
    results = {}
    for name in ("uniform", "presampled"):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((2,)), *(keras.layers.Dense(32, "relu") for _ in range(2)), keras.layers.Dense(2)]
        )
        model.compile(
            keras.optimizers.Adam(0.01),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        if name == "uniform":
            train, callbacks = stream().batch(batch_size), []
        else:
            presampler = Presampler(model, batch_size, presample=3, seed=0)
            train, callbacks = stream().apply(presampler), [LossFeedback(model, presampler)]
        model.fit(train, steps_per_epoch=steps, callbacks=callbacks, shuffle=False, verbose=0)
        results[name] = model.evaluate(x_test[near], y_test[near], verbose=0)[1]
    summary = presampler.summary()
    print(f"{summary['step']} batches of {batch_size} drawn, {summary['scored']} samples scored")
    print(f"the largest of the recent weights is {summary['max_weight']:.2f}")
    for name, accuracy in results.items():
        print(f"accuracy near the border, {name}: {accuracy:.1%}")
    return results


if __name__ == "__main__":
    main()
