"""Importance sampling in ``tf.data`` and Keras.

    from pipeline import LossFeedback, importance_sampling, num_samples
    from sampler import ImportanceSampler

    sampler = ImportanceSampler(num_samples(dataset))
    train = dataset.apply(importance_sampling(sampler, batch_size=128))
    model.fit(train, epochs=5, callbacks=[LossFeedback(model, sampler)], shuffle=False)

:mod:`sampler` draws; this package brings its draws to TensorFlow, and the losses back.
"""

from pipeline.dataset import importance_dataset, importance_sampling
from pipeline.dynamics import TrainingDynamics
from pipeline.feedback import LossFeedback
from pipeline.loops import feed_back
from pipeline.losses import SparseCategoricalFocalCrossentropy, per_sample_loss, weighted_mean
from pipeline.presampling import Presampler
from pipeline.refresh import RefreshStalest, score_all
from pipeline.sources import num_samples
from pipeline.workers import Workers

__all__ = [
    "LossFeedback",
    "Presampler",
    "RefreshStalest",
    "SparseCategoricalFocalCrossentropy",
    "TrainingDynamics",
    "Workers",
    "feed_back",
    "importance_dataset",
    "importance_sampling",
    "num_samples",
    "per_sample_loss",
    "score_all",
    "weighted_mean",
]
