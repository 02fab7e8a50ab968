"""The samplers by name, and what the tests of them share."""

from __future__ import annotations

import numpy as np

from sampler import (
    ClassBalancedSampler,
    ImportanceSampler,
    ProportionalStore,
    PruningSampler,
    RankedSampler,
    ReducibleSampler,
    SelectiveSampler,
    UniformSampler,
    priorities,
    weights,
)

SIBLINGS = {
    "as it comes": lambda n, **options: ImportanceSampler(n, **options),
    "multinomial, bounded, smoothed": lambda n, **options: ImportanceSampler(
        n, scheme="multinomial", priority="bounded", smoothing=0.5, **options
    ),
    "stratified, no floor, no first pass": lambda n, **options: ImportanceSampler(
        n, scheme="stratified", uniform_fraction=0.0, first_pass=False, **options
    ),
    "distinct, half corrected": lambda n, **options: ImportanceSampler(
        n, scheme="without_replacement", priority="sqrt", beta=0.5, **options
    ),
    "known losses, ascending": lambda n, **options: ImportanceSampler(
        n, losses=np.arange(n) % 7, ascending=True, **options
    ),
    "a schedule, a function": lambda n, **options: ImportanceSampler(
        n, priority=lambda losses: np.exp(losses), beta=weights.linear(0.4, 1.0, 20), **options
    ),
    "a store of one's own": lambda n, **options: ImportanceSampler(n, store=ProportionalStore(n), **options),
    "under a lag": lambda n, **options: ImportanceSampler(n, feedback_lag=2, feedback_timeout=0.2, **options),
    "by rank": lambda n, **options: ImportanceSampler(n, store="ranked", **options),
    "bounded draws, forgetting": lambda n, **options: ImportanceSampler(n, max_draws=2, forget=0.5, **options),
    "clipped, losses kept": lambda n, **options: ImportanceSampler(
        n, priority=priorities.clipped(0.8, "sqrt", window=25), keep_losses=True, smoothing=0.3, **options
    ),
    "uniform": lambda n, **options: UniformSampler(n, **options),
    "uniform under a lag": lambda n, **options: UniformSampler(n, feedback_lag=3, feedback_timeout=0.2, **options),
    "ranked": lambda n, **options: RankedSampler(n, alpha=0.5, **options),
    "reducible": lambda n, **options: ReducibleSampler(n, reference=np.arange(n) % 3, **options),
    "class-balanced": lambda n, **options: ClassBalancedSampler(n, labels=np.arange(n) % 7 // 3, **options),
    "pruning": lambda n, **options: PruningSampler(n, epochs=20, **options),
    "pruning under a lag": lambda n, **options: PruningSampler(
        n, finish=0.0, feedback_lag=2, feedback_timeout=0.2, **options
    ),
    "selective": lambda n, **options: SelectiveSampler(n, selectivity=2.0, **options),
}
HAS_PASSES = [
    name
    for name in SIBLINGS
    if name not in ("stratified, no floor, no first pass", "known losses, ascending", "class-balanced")
]


def losses_of(index, step=0):
    """Some loss for each sample, above 0 and different from step to step."""
    return (np.asarray(index) * 7919 % 101 + 1.0) / 10.0 + step % 3


def train(sampler, batches, batch=4):
    """Draw and feed back, one after the other; gives the draws."""
    made = []
    for _ in range(batches):
        draw = sampler.draw(batch)
        sampler.update(draw.index, losses_of(draw.index, draw.step), step=draw.step)
        made.append(draw)
    return made


def learner(size=6, **options):
    options = {"first_pass": False, "uniform_fraction": 0.0, "seed": 0, **options}
    return ImportanceSampler(size, **options)


def wander(sampler, generator, moves):
    """A random script of draws and updates; gives what came out."""
    made = []
    for _ in range(moves):
        draw = sampler.draw(4)
        made.append(draw)
        losses = generator.exponential(size=4)
        losses[generator.random(4) < 0.1] = np.nan
        parts = np.array_split(generator.permutation(4), generator.integers(1, 4))
        for part in parts:
            sampler.update(draw.index[part], losses[part], step=draw.step)
        if generator.random() < 0.2:
            sampler.update(generator.integers(0, 30, 3), generator.exponential(size=3))
    return made
