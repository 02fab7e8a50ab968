"""The samplings of ``train.py``: from a name to the sampler, for the options that were given.

    from trainer.config import Config
    from trainer.samplings import Task, make_sampler

    sampler = make_sampler(Config(sampling="pruning"), Task(num_samples=50_000, steps=6_000))

Siblings share one signature, ``(config, task) -> sampler``, and ``SAMPLINGS`` holds them all: to add a method is a
function and a line. TensorFlow is imported by those alone that need it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sampler import (
    ClassBalancedSampler,
    ImportanceSampler,
    PruningSampler,
    RankedSampler,
    ReducibleSampler,
    SelectiveSampler,
    UniformSampler,
)

if TYPE_CHECKING:
    from pipeline.workers import Workers
    from trainer.config import Config

PRUNING_FINISH = 0.125  # the paper's


class Task(NamedTuple):
    """What a sampler is made for.

    Attributes:
        num_samples: N.
        steps: of the whole training.
        labels: (N,) integers, the class of each sample; None where y is a quantity.
        model: that is trained, for methods that score samples themselves.
        reference: gives (N,) losses of each sample under models that were not trained on it; it may take as long as a
            training.
    """

    num_samples: int
    steps: int
    labels: npt.NDArray[Any] | None = None
    model: Any = None
    reference: Callable[[], npt.NDArray[Any]] | None = None

    def of(self, block: range) -> Task:
        """The same for a block of the samples."""
        part = slice(block.start, block.stop)
        labels, reference = self.labels, self.reference
        return self._replace(
            num_samples=len(block),
            labels=None if labels is None else labels[part],
            reference=None if reference is None else lambda: reference()[part],
        )


def make_sampler(config: Config, task: Task, workers: Workers | None = None) -> Any:
    """The sampler that ``config`` asks for, of several workers this one's; ``ValueError`` or ``TypeError`` for options
    it refuses.
    """
    make = SAMPLINGS[config.sampling]
    if workers is None:
        return make(config, task)
    own = np.random.SeedSequence([config.seed, workers.rank]).generate_state(1)
    config = replace(config, seed=int(own[0]))
    return workers.shard(task.num_samples, lambda block: make(config, task.of(block)))


def check_samplers(config: Config) -> None:
    """Raise ``ValueError`` or ``TypeError`` for options that a sampler refuses, whichever is chosen."""
    task = Task(1, 1, labels=np.zeros(1, np.int64), reference=lambda: np.zeros(1))
    for name, make in SAMPLINGS.items():
        if name != "presampled":  # whose own options are checked with the others: it needs TensorFlow
            make(config, task)


def uniform(config: Config, task: Task) -> UniformSampler:
    """Reshuffled passes."""
    return UniformSampler(task.num_samples, **_common(config))


def importance(config: Config, task: Task) -> ImportanceSampler:
    """By loss, or by what ``--priority`` makes of it, where that pays."""
    gate = None if config.gate == "none" else config.gate
    return ImportanceSampler(task.num_samples, priority=config.priority, gate=gate, **_weighted(config, task))


def ranked(config: Config, task: Task) -> RankedSampler:
    """By the rank of the loss (Schaul et al., 2016)."""
    return RankedSampler(task.num_samples, **_weighted(config, task))


def pruning(config: Config, task: Task) -> PruningSampler:
    """Passes that leave out samples of low loss (InfoBatch: Qin et al., 2024)."""
    finish = PRUNING_FINISH if config.finish is None else config.finish
    return PruningSampler(task.num_samples, prune=config.prune, finish=finish, steps=task.steps, **_common(config))


def selective(config: Config, task: Task) -> SelectiveSampler:
    """Passes over samples of high loss, biased on purpose (Jiang et al., 2019)."""
    return SelectiveSampler(task.num_samples, selectivity=config.selectivity, **_common(config))


def reducible(config: Config, task: Task) -> ReducibleSampler:
    """By loss over that of a reference model (RHO-LOSS: Mindermann et al., 2022)."""
    if task.reference is None:
        raise ValueError("--sampling reducible needs --reference: a .npy file of (N,) losses, or auto")
    return ReducibleSampler(task.num_samples, reference=task.reference(), **_weighted(config, task))


def presampled(config: Config, task: Task) -> Any:
    """The batch from a larger uniform one, by a forward pass (Katharopoulos & Fleuret, 2018)."""
    from pipeline.presampling import Presampler

    return Presampler(task.model, config.batch_size, presample=config.presample, seed=config.seed)


def class_balanced(config: Config, task: Task) -> ClassBalancedSampler:
    """Rare classes more often (Cui et al., 2019)."""
    if task.labels is None:
        raise ValueError("--sampling class-balanced needs classes, but the y of this data set is a quantity")
    return ClassBalancedSampler(
        task.num_samples, labels=task.labels, beta=config.balance, scheme=config.scheme, **_common(config)
    )


def _common(config: Config) -> dict[str, Any]:
    return {"feedback_lag": config.feedback_lag, "seed": config.seed}


def _weighted(config: Config, task: Task) -> dict[str, Any]:
    """The options of ``ImportanceSampler`` and those made of it."""
    return {
        "uniform_fraction": config.uniform_fraction,
        "smoothing": config.smoothing,
        "beta": config.beta,
        "scheme": config.scheme,
        "first_pass": config.first_pass,
        "warmup": config.warmup,
        "finish_at": None if config.finish is None else math.floor((1.0 - config.finish) * task.steps),
        **_common(config),
    }


SAMPLINGS: dict[str, Callable[[Config, Task], Any]] = {
    "uniform": uniform,
    "importance": importance,
    "ranked": ranked,
    "pruning": pruning,
    "selective": selective,
    "reducible": reducible,
    "presampled": presampled,
    "class-balanced": class_balanced,
}
