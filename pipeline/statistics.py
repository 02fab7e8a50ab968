"""Means over seeds, and which differences between methods are beyond chance.

    mean, half = t_interval([0.061, 0.066, 0.063])      # 95 %: mean - half to mean + half
    p = paired_p_value(log_ratios)                      # two-sided, of no difference
    holm([0.01, 0.04])                                  # [0.02, 0.04]

Runs of one seed share their first weights, so methods are compared seed by seed: the spread of the differences counts,
not that of the results. Both tests take the differences for normal; logarithms of losses and of times are nearer to
that than these themselves, which is why ratios are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95


def t_interval(values: npt.ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The mean of (n,) values, and half the width of Student's interval around it: NaN for a single value.

    The interval is ``mean ± t · s/√n`` with t the quantile of n - 1 degrees of freedom.
    """
    given = np.asarray(values, np.float64)
    if given.size < 2:
        return (float(given.mean()) if given.size else math.nan), math.nan
    quantile = float(stdtrit(given.size - 1, (1.0 + confidence) / 2.0))
    return float(given.mean()), quantile * float(given.std(ddof=1)) / math.sqrt(given.size)


def paired_p_value(differences: npt.ArrayLike) -> float:
    """How likely a mean at least so far from zero is, in either direction, were it zero: NaN for fewer than two.

    Differences that are all the same leave no doubt: 1 where they are zero, else 0.
    """
    given = np.asarray(differences, np.float64)
    if given.size < 2:
        return math.nan
    mean, error = float(given.mean()), float(given.std(ddof=1)) / math.sqrt(given.size)
    if error == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return 2.0 * float(stdtr(given.size - 1, -abs(mean) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values after Holm's correction for their number m, in their order; NaN stays, and does not count.

    The k-th smallest, from 0, is multiplied by m - k, and none is below a smaller one's (Holm, 1979, *A simple
    sequentially rejective multiple test procedure*). To call those below 5 % real is then wrong about any one of them
    in at most 5 % of comparisons, however the tests depend on each other.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = list(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted
