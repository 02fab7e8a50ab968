"""What the losses of the samples say: of classes, of regions, of labels that may be wrong.

    groups(samples)                             # a Group a class: how often it is there and drawn, how high its loss
    regions(samples.mean, samples.deviation)    # (N,) 0 easy, 1 ambiguous, 2 hard
    suspects(samples)                           # (N,) samples, the likeliest to have a wrong label first

Arrays in, arrays out: nothing is drawn or written here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.samples import Samples, hardest

RARE = 0.5  # of what a class would have if all were as frequent
PARTS = 10  # that quantities are cut into, by their mean loss
REGIONS = ("easy", "ambiguous", "hard")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Group:
    """Some samples, and how training met them.

    Attributes:
        name: of the class, or of the part.
        count: how many.
        share: of all samples.
        drawn: of all draws.
        weighted: of all weights 1/(N p): unbiased draws have it near ``share``.
        error: the standard error of ``weighted``.
        loss: the mean at the end.
        accuracy: at the end, of a class.
        rare: whether a class has fewer than half of the samples that it would have if all that occur had the same.
    """

    name: str
    count: int
    share: float
    drawn: float
    weighted: float
    error: float
    loss: float
    accuracy: float | None = None
    rare: bool = False

    @property
    def attention(self) -> float:
        """How many times as often as uniformly a sample of these was drawn."""
        return self.drawn / self.share


def groups(samples: Samples) -> list[Group]:
    """The classes in their order, or for quantities tenths by mean loss, the easiest first."""
    if samples.num_classes:
        classes = np.unique(samples.y)
        rare = RARE * len(samples) / len(classes)
        return [_group(samples, f"{k}", samples.y == k, rare=(samples.y == k).sum() < rare) for k in classes]
    order = hardest(samples.mean)[::-1]
    parts = np.array_split(order, min(PARTS, len(order)))
    found = []
    for number, part in enumerate(parts, start=1):
        chosen = np.zeros(len(samples), bool)
        chosen[part] = True
        found.append(_group(samples, f"tenth {number}" if len(parts) == PARTS else f"part {number}", chosen))
    return found


def _group(samples: Samples, name: str, chosen: Array, *, rare: bool = False) -> Group:
    draws, weight = max(float(samples.drawn.sum()), 1.0), max(float(samples.weight.sum(dtype=np.float64)), 1e-30)
    count = int(chosen.sum())
    return Group(
        name=name,
        count=count,
        share=count / len(samples),
        drawn=float(samples.drawn[chosen].sum()) / draws,
        weighted=float(samples.weight[chosen].sum(dtype=np.float64)) / weight,
        error=float(np.sqrt(samples.weight_squares[chosen].sum(dtype=np.float64))) / weight,
        loss=float(samples.loss[chosen].mean(dtype=np.float64)),
        accuracy=float((samples.prediction[chosen] == samples.y[chosen]).mean()) if samples.num_classes else None,
        rare=rare,
    )


def regions(mean: Array, deviation: Array) -> Array:
    """Where each sample lies on the data map: (N,) int, the place in ``REGIONS``; -1 where too little is known.

    Easy are those whose mean loss is below the mean of all. Of the others those are hard whose loss stayed high: its
    deviation is below its mean; where it rose and fell by more than that they are ambiguous: learnt late, or forgotten.
    """
    known = np.isfinite(mean) & np.isfinite(deviation)
    average = mean[known].mean() if known.any() else 0.0
    found = np.where(mean <= average, 0, np.where(deviation < mean, 2, 1))
    return np.where(known, found, -1)


def suspects(samples: Samples) -> Array:
    """(N,) the samples by how likely their label is wrong: by the mean of their losses in the course of the training.

    A model learns what a wrong label says last, if it does, so that the loss of such a sample is high for longest
    (Huang et al., 2019, *O2U-Net*).
    """
    return hardest(samples.mean)
