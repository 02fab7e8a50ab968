"""Importance sampling by loss: the priority store, the draw schemes, the samplers.

    from sampler import ImportanceSampler

    sampler = ImportanceSampler(num_samples=50_000, seed=0)
    draw = sampler.draw(batch_size=32)
    sampler.update(draw.index, losses, step=draw.step)

This package knows NumPy and numba, not TensorFlow; :mod:`pipeline` joins it to ``tf.data`` and Keras. Open
:mod:`sampler.samplers` first.
"""

from sampler.samplers import (
    ClassBalancedSampler,
    DivergedError,
    Draw,
    ImportanceSampler,
    PruningSampler,
    RankedSampler,
    ReducibleSampler,
    SelectiveSampler,
    UniformSampler,
    class_balanced_weights,
)
from sampler.shard import Shard
from sampler.sharded import ShardedSampler
from sampler.stores import PriorityStore, ProportionalStore, RankedStore

__all__ = [
    "ClassBalancedSampler",
    "DivergedError",
    "Draw",
    "ImportanceSampler",
    "PriorityStore",
    "ProportionalStore",
    "PruningSampler",
    "RankedSampler",
    "RankedStore",
    "ReducibleSampler",
    "SelectiveSampler",
    "Shard",
    "ShardedSampler",
    "UniformSampler",
    "class_balanced_weights",
]
