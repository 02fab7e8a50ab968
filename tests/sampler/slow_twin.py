"""The slow, obvious twin of the priority store: a list of numbers, whole-number arithmetic, no tree.

Every float is a fraction, and the priorities have powers of two below the line, so the masses here are exact
whole numbers in proportion to p = (1-λ) q/Σq + λ/N. What the fast store may differ in is rounding, and the
twin says how far a position lies from the sample that was found under it.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import accumulate

import numpy as np

SMALLEST = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)
CERTAIN = 1 - Fraction(1, 10**12)  # from here on the store takes a sample for certain


def clamped(priority: float) -> float:
    """A positive priority in float32's normal range, rounded to float32."""
    return float(np.float32(min(max(priority, SMALLEST), LARGEST))) if priority > 0 else 0.0


class SlowStore:
    def __init__(self, size: int, priority: float = 1.0) -> None:
        self.leaves = [clamped(priority)] * size

    def fill(self, priorities) -> None:
        self.leaves = [clamped(priority) for priority in priorities]

    def set(self, index, priorities) -> None:
        for sample, priority in zip(index, priorities, strict=True):
            self.leaves[sample] = clamped(priority)

    def record(self, newest, index, steps, priorities, smoothing) -> int:
        new = 0
        for sample, step, priority in zip(index, steps, priorities, strict=True):
            if newest[sample] < 0:
                new += 1
            else:
                priority = smoothing * self.leaves[sample] + (1.0 - smoothing) * priority
            self.leaves[sample] = clamped(priority)
            newest[sample] = step
        return new

    def masses(self, uniform_fraction: float) -> list[int]:
        """Whole numbers in proportion to p."""
        above, below = uniform_fraction.as_integer_ratio()
        units = [int(math.ldexp(leaf, 149)) for leaf in self.leaves]  # every float32 is a whole number of 2^-149
        total = sum(units)
        if total == 0:
            return [1] * len(units)
        return [(below - above) * len(units) * unit + above * total for unit in units]

    def probabilities(self, uniform_fraction: float) -> list[float]:
        masses = self.masses(uniform_fraction)
        total = sum(masses)
        return [mass / total for mass in masses]

    def distance(self, index, positions, uniform_fraction: float) -> float:
        """How far the positions in [0, 1] are, at most, from the samples' own shares of the cumulative p."""
        masses = self.masses(uniform_fraction)
        return _distance(masses, index, [Fraction(position) * sum(masses) for position in positions])

    def inclusion(self, count: int, uniform_fraction: float) -> list[float]:
        """π = min(1, c p) with Σπ = count."""
        chances, whole = self._inclusion(count, uniform_fraction)
        return [chance / whole for chance in chances]

    def _inclusion(self, count: int, uniform_fraction: float) -> tuple[list[int], int]:
        """π as whole numbers of a common part: the k heaviest are certain, for the least k with π ≤ 1."""
        masses = self.masses(uniform_fraction)
        heaviest = sorted(range(len(masses)), key=masses.__getitem__, reverse=True)
        rest, places = sum(masses), count
        for sample in heaviest:
            if places * masses[sample] < CERTAIN * rest or places == 0:
                break
            rest -= masses[sample]
            places -= 1
        certain = set(heaviest[: count - places])
        if places == 0:
            return [int(sample in certain) for sample in range(len(masses))], 1
        return [rest if sample in certain else places * mass for sample, mass in enumerate(masses)], rest

    def distinct_distance(self, index, count: int, offset: float, uniform_fraction: float) -> float:
        """How far the positions offset, 1 + offset, ... of the cumulative π are from the samples ``index``.

        Certain samples take no part in it. Infinite where ``index`` is not made of ``count`` different
        samples, all the certain ones among them.
        """
        chances, whole = self._inclusion(count, uniform_fraction)
        certain = {sample for sample, chance in enumerate(chances) if chance == whole}
        if len(set(index)) != count or not certain <= set(index):
            return math.inf
        rest = sorted(set(index) - certain)
        chances = [0 if sample in certain else chance for sample, chance in enumerate(chances)]
        positions = [(place + Fraction(offset)) * whole for place in range(len(rest))]
        return _distance(chances, rest, positions) * sum(chances) / whole


def merged(index, losses, steps, newest) -> tuple[dict[int, tuple[float, int]], int]:
    """``{sample: (mean of its finite losses that are in time, their newest step)}``, and how many are not."""
    kept: dict[int, list[tuple[Fraction, int]]] = {}
    late = 0
    for sample, loss, step in zip(index, losses, steps, strict=True):
        if not np.isfinite(loss):
            continue
        if step < newest[sample]:
            late += 1
            continue
        kept.setdefault(int(sample), []).append((Fraction(float(loss)), int(step)))
    means = {
        sample: (float(sum(loss for loss, _ in seen) / len(seen)), max(step for _, step in seen))
        for sample, seen in kept.items()
    }
    return means, late


def _distance(masses: list[int], index, positions) -> float:
    """How far the positions are, at most, from the shares that lie under them, as a part of the whole."""
    ends = list(accumulate(masses))
    worst = Fraction(0)
    for sample, position in zip(index, positions, strict=True):
        worst = max(worst, ends[sample] - masses[sample] - position, position - ends[sample])
    return float(worst / ends[-1]) if worst else 0.0
