"""Tests of chance: when counts are too far from their expectation to be an accident.

Each test here raises a false alarm with probability ``RATE`` at most, and with fixed seeds the same runs
come out the same for ever: an alarm can only appear where the code or a seed is changed. There are some
seventy such tests, and fewer than a hundred, so all together stay below 1e-6. For counts of single samples
this is a theorem (Bernstein); for Pearson's statistic it holds as well as the chi-square distribution does.
"""

from __future__ import annotations

import math

import numpy as np

RATE = 1e-8


def chi_square_limit(freedom: int, rate: float = RATE) -> float:
    """What a chi-square variable exceeds with probability ``rate`` at most.

    Laurent & Massart, 2000, *Adaptive estimation of a quadratic functional by model selection*, lemma 1.
    """
    surprise = math.log(1.0 / rate)
    return freedom + 2.0 * math.sqrt(freedom * surprise) + 2.0 * surprise


def chi_square_rejects(counts, expected, freedom: int, rate: float = RATE) -> bool:
    """Pearson's test of *independent* draws; ``expected`` should be 20 or more throughout."""
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    return float((np.square(counts - expected) / expected).sum()) > chi_square_limit(freedom, rate)


def deviation_limit(variance, rate: float):
    """How far a sum of independent numbers, each within 1 of its mean, strays, but for a chance of ``rate``.

    Bernstein's inequality: no normal approximation, so the rate holds for any number of draws.
    """
    surprise = math.log(2.0 / rate)
    return surprise / 3.0 + np.sqrt(surprise**2 / 9.0 + 2.0 * np.asarray(variance) * surprise)


def suspects(counts, mean, variance, rate: float = RATE) -> np.ndarray:
    """The samples whose counts are not those of ``mean`` and ``variance``, all within ``rate`` (Bonferroni).

    ``variance`` must be that of independent parts (see ``count_variance``); where it is 0, the count must be
    the mean.
    """
    counts, mean, variance = (np.asarray(given, float) for given in (counts, mean, variance))
    limit = np.where(variance > 1e-9, deviation_limit(variance, rate / counts.size), 0.0)
    return np.flatnonzero(np.abs(counts - mean) > limit + 1e-6 * np.maximum(mean, 1.0))


def count_variance(scheme: str, expected: np.ndarray, batch: int) -> np.ndarray:
    """The variance of each sample's count in one batch, from its expected count in it.

    Draws of one batch depend on each other, but a sample's count is a sum of independent parts, plus a
    constant: B coins (multinomial), one coin a stratum, one coin (systematic, without replacement).
    """
    if scheme == "multinomial":
        return expected * (1.0 - expected / batch)
    if scheme == "stratified":
        ends = np.cumsum(expected)[:, None]
        begins = ends - expected[:, None]
        strata = np.arange(batch)
        share = np.clip(ends - strata, 0, 1) - np.clip(begins - strata, 0, 1)
        return (share * (1.0 - share)).sum(axis=1)
    fraction = expected - np.floor(expected + 1e-9)
    return np.maximum(fraction, 0.0) * (1.0 - np.maximum(fraction, 0.0))
