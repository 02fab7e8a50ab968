"""A worker of tests/pipeline/test_workers.py: the gradient by batches of its own, then a ``fit``; says what it saw."""

from __future__ import annotations

import json

import keras
import numpy as np
import tensorflow as tf

from pipeline import LossFeedback, importance_dataset
from pipeline.losses import per_sample_loss, weighted_mean
from pipeline.workers import Workers
from sampler import ImportanceSampler

FEW, N, B, BATCHES = 7, 103, 8, 200  # few samples for the gradient, since their blocks are of the most unequal sizes


def data(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets whose scale grows along the indices, so that the blocks differ."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(count, 3)).astype(np.float32)
    noise = generator.normal(size=count) * np.linspace(0.1, 3.0, count)
    return x, (x @ [1.0, -2.0, 0.5] + noise).astype(np.float32)[:, None]


def linear() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])


def main() -> None:
    workers = Workers.here()
    assert workers is not None
    x, y = data(FEW)
    sampler = workers.shard(FEW, lambda block: ImportanceSampler(len(block), feedback_lag=8, seed=block.start))
    with workers.strategy.scope():
        model = linear()
    loss_of = per_sample_loss("mse")
    unscaled = FEW / (workers.world * len(sampler.block))

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor, weight: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The losses here, and the mean over the workers of the gradients: as it is, and by the weights of blocks."""

        def here(x: tf.Tensor, y: tf.Tensor, weight: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
            with tf.GradientTape(persistent=True) as tape:
                losses = loss_of(y, model(x))
                loss, wrong = weighted_mean(losses, weight), weighted_mean(losses, unscaled * weight)
            kernel = model.trainable_variables[0]
            gradients = [tape.gradient(each, kernel)[:, 0] for each in (loss, wrong)]
            return losses, tf.distribute.get_replica_context().all_reduce("MEAN", gradients)

        return workers.strategy.run(here, args=(x, y, weight))

    drawn: set[int] = set()
    seen = []
    for x_batch, y_batch, sampling in importance_dataset((x, y), sampler, B).repeat().take(BATCHES):
        losses, gradients = step(x_batch, y_batch, sampling["weight"])
        sampler.update(sampling["index"], losses, step=sampling["step"])
        drawn.update(sampling["index"].numpy().tolist())
        seen.append([gradient.numpy().tolist() for gradient in gradients])

    x, y = data(N)
    with workers.strategy.scope():
        model = linear()
        model.compile(keras.optimizers.SGD(0.02), "mse", metrics=["mae"])
    other = workers.shard(N, lambda block: ImportanceSampler(len(block), feedback_lag=8, seed=block.start))
    train = importance_dataset((x, y), other, B)
    validation = tf.data.Dataset.from_tensor_slices((x, y)).batch(B)
    fitted = model.fit(
        workers.batches(train.repeat(3)),
        steps_per_epoch=int(train.cardinality()),
        epochs=3,
        shuffle=False,
        verbose=0,
        validation_data=validation,
        callbacks=[LossFeedback(model, other)],
    )
    print(
        json.dumps(
            {
                "rank": workers.rank,
                "world": workers.world,
                "drawn": sorted(drawn),
                "gradients": seen,
                "any": [workers.any([workers.rank == 1, False]), workers.any([False, True])],
                "epoch": int(train.cardinality()),
                "losses": [fitted.history[name] for name in ("loss", "mae", "val_loss")],
                "unseen": fitted.history["sampling/unseen"],
                "weights": [value.ravel().tolist() for value in model.get_weights()],
                "updates": other.summary()["updates"],
                "seen": (other.block.start + np.flatnonzero(other.ages() <= other.step)).tolist(),
            }
        )
    )


if __name__ == "__main__":
    main()
