"""Samplers: draw a batch of sample indices, learn from the losses that come back.

    from sampler import ImportanceSampler

    sampler = ImportanceSampler(num_samples=50_000, seed=0)
    draw = sampler.draw(batch_size=32)              # step, index, probability, weight
    losses = ...                                    # (32,) unweighted losses of those samples
    sampler.update(draw.index, losses, step=draw.step)

Every sampler has the same methods, so that choosing is a swap of a name. The two verbs are ``draw`` and
``update``; ``probabilities``, ``priorities`` and ``summary`` look inside; ``state_dict`` and ``load_state_dict``
carry everything over a restart, the random generator and the draws in flight included.

The batch loss is (1/B) Σ w ℓ with the ``weight`` of the draw. Its expectation is the mean loss over all N samples;
where a sampler is biased on purpose, its docstring says so and its ``fully_corrected`` is False.
"""

from sampler.base import DivergedError
from sampler.ledger import Draw
from sampler.samplers.balanced import ClassBalancedSampler, class_balanced_weights
from sampler.samplers.importance import ImportanceSampler
from sampler.samplers.pruning import PruningSampler
from sampler.samplers.ranked import RankedSampler
from sampler.samplers.reducible import ReducibleSampler
from sampler.samplers.selective import SelectiveSampler
from sampler.samplers.uniform import UniformSampler

__all__ = [
    "ClassBalancedSampler",
    "DivergedError",
    "Draw",
    "ImportanceSampler",
    "PruningSampler",
    "RankedSampler",
    "ReducibleSampler",
    "SelectiveSampler",
    "UniformSampler",
    "class_balanced_weights",
]
