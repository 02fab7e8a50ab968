"""The reference of RHO-LOSS: the loss of each sample under a model that was not trained on it.

    losses = held_out_losses(data, lambda half: build_model("auto", half), steps=3_000, batch_size=32, seed=0)
    sampler = ReducibleSampler(len(data), reference=losses)

Mindermann et al., 2022, *Prioritized training on points that are learnable, worth learning, and not yet learnt*, who
train one model on data held out. Where there are none, each half of the data serves the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from pipeline.data import Data
from pipeline.progress import counting
from pipeline.recording import telling_steps
from pipeline.refresh import score_all
from pipeline.training import make_reproducible, train
from sampler import UniformSampler


def held_out_losses(
    data: Data,
    build: Callable[[Data], keras.Model],
    *,
    steps: int,
    batch_size: int,
    seed: int,
    **options: Any,
) -> npt.NDArray[np.float32]:
    """(N,) float32: of each sample the loss under the model that was trained on the half it is not in.

    Args:
        data: N ≥ 2 samples.
        build: a new model for a half.
        steps: that each of the two is trained for, on uniform draws.
        batch_size, options: as for ``train``.
        seed: fixes the halves, the first weights and the draws.

    Takes 2 · steps steps of training and a forward pass over the data, and tells how far it is. ``ValueError`` for a
    single sample.
    """
    if len(data) < 2:
        raise ValueError("a reference needs at least 2 samples, one for each half, got 1")
    halves = np.array_split(np.random.default_rng(seed).permutation(len(data)), 2)
    losses = np.empty(len(data), np.float32)
    with counting("training a reference on each half of the data", 2 * steps, unit="steps") as tell:
        progress = telling_steps(tell)
        for place, (seen, unseen) in enumerate((halves, halves[::-1])):
            make_reproducible(seed)
            half = replace(data, x=data.x[seen], y=data.y[seen])
            model = build(half)
            sampler = UniformSampler(len(half), feedback_lag=4, seed=seed + place)
            train(half, model, sampler, steps=steps, batch_size=batch_size, callbacks=[progress], **options)
            losses[unseen] = score_all(model, (data.x[unseen], data.y[unseen]))
    return losses
