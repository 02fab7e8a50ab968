"""What it costs that every worker draws from a block of its own: second moment and variance, exact and by real draws.

    data = made("shuffled", num_samples=100_000, sigma=1.0, seed=0)
    local = exact(data, workers=10, uniform_fraction=0.3)
    local.second / exact(data, workers=1, uniform_fraction=0.3).second      # 1 + CV² at a uniform fraction of 0

Sample i has a gradient g of norm ℓ, the ideal case: priorities are the norms themselves. Worker r of W draws from its
block by p = (1-λ) ℓ/T_r + λ/n and weighs by w = W/(N p) (:mod:`sampler.shard`), so

    E‖w g‖² = W/N² Σ_r Σ_{i in r} ℓ_i²/p_i                      over all workers;  at λ = 0 it is W/N² Σ_r T_r²
            = (1 + CV²) (mean ℓ)²                               with CV of the totals T_r, σ(T)/mean(T)

The mean over W workers of B draws each is a stratified sample with as many draws in each stratum, so its variance is

    1/(WB) (E‖w g‖² − W/N² Σ_r ‖G_r‖²),      G_r = Σ g of block r

and that of one store, W = 1 in the formula but as many draws, has ‖mean g‖² in place of the second term. What the
blocks add to the first term, the variance of their mean norms, can be less or more than what they take away with the
second, the variance of their mean gradients. For blocks dealt at random it is less, on average over the deals: both are
the same multiple of the variances over all samples, E ℓ² − (E ℓ)² and E ℓ² − ‖E g‖², and ‖E g‖ ≤ E ℓ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.drawing import Row
from sampler import ImportanceSampler
from sampler.shard import Shard, block_of

ARRANGEMENTS = ("shuffled", "sorted", "sorted, own directions")
CLASSES = 10
SPREAD = 1.0  # of the logarithms of the classes' mean losses
DIMENSIONS = 8
MOST_STEPS, FEWEST = 1000, 20

Floats = npt.NDArray[np.float64]


class Data(NamedTuple):
    """Samples: their gradient norms, which are their priorities too, and their gradients.

    Attributes:
        norms: (N,) float64, > 0.
        gradients: (N, D) float64.
    """

    norms: Floats
    gradients: Floats


class Exact(NamedTuple):
    """What is true of a way to draw.

    Attributes:
        second: E‖w g‖².
        one_draw: the variance of the mean over all draws, times their number.
        spread: CV² of the totals of the blocks.
    """

    second: float
    one_draw: float
    spread: float


def made(arrangement: str, *, num_samples: int, sigma: float, seed: int) -> Data:
    """Lognormal norms of ten classes of different means, shuffled or class by class.

    Directions are random around one that all share; or, with own directions, around that of the class.
    """
    if arrangement not in ARRANGEMENTS:
        raise ValueError(f"arrangement must be one of {', '.join(ARRANGEMENTS)}, got {arrangement!r}")
    generator = np.random.default_rng(seed)
    label = np.arange(num_samples) * CLASSES // num_samples
    level = np.exp(SPREAD * np.linspace(-1.5, 1.5, CLASSES))
    if arrangement == "shuffled":
        generator.shuffle(label)
    norms = level[label] * generator.lognormal(sigma=sigma, size=num_samples)
    common = 0.3 * np.eye(DIMENSIONS)[np.zeros(CLASSES, int)]
    own = 2.0 * generator.normal(size=(CLASSES, DIMENSIONS))
    middle = own if arrangement == "sorted, own directions" else common
    direction = middle[label] + generator.normal(size=(num_samples, DIMENSIONS))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return Data(norms, norms[:, None] * direction)


def exact(data: Data, *, workers: int, uniform_fraction: float) -> Exact:
    """By enumeration of all samples."""
    size = data.norms.size
    blocks = [block_of(size, rank, workers) for rank in range(workers)]
    first = np.array([block.start for block in blocks])
    count = np.array([len(block) for block in blocks])
    totals = np.add.reduceat(data.norms, first)
    share = data.norms / np.repeat(totals, count)
    probability = (1.0 - uniform_fraction) * share + uniform_fraction / np.repeat(count, count)
    second = workers / size**2 * float(np.sum(data.norms**2 / probability))
    sums = np.add.reduceat(data.gradients, first, axis=0)
    between = workers / size**2 * float(np.sum(sums**2))
    return Exact(second, second - between, float(totals.var() / totals.mean() ** 2))


def drawn(
    data: Data, *, workers: int, uniform_fraction: float, scheme: str, batch: int, steps: int, seed: int
) -> dict[str, list[float]]:
    """The same by real draws: ``second`` and ``one_draw``, each with its standard error.

    A step is ``batch`` draws of every worker. Steps are independent; so the standard error is that of their mean.
    """
    size = data.norms.size
    samplers = [
        Shard(
            size,
            rank=rank,
            world=workers,
            make=lambda block: ImportanceSampler(
                len(block),
                losses=data.norms[block.start : block.stop],
                uniform_fraction=uniform_fraction,
                scheme=scheme,
                seed=seed + 7919 * block.start,
            ),
        )
        for rank in range(workers)
    ]
    mean = data.gradients.mean(axis=0)
    seconds, squares = np.empty(steps), np.empty(steps)
    for step in range(steps):
        draws = [sampler.draw(batch) for sampler in samplers]
        index = np.concatenate([draw.index for draw in draws])
        weight = 1.0 / (size * np.concatenate([draw.probability for draw in draws]))
        seconds[step] = np.mean((weight * data.norms[index]) ** 2)
        estimate = (weight[:, None] * data.gradients[index]).mean(axis=0)
        squares[step] = workers * batch * np.sum((estimate - mean) ** 2)
    return {name: with_error(values) for name, values in (("second", seconds), ("one_draw", squares))}


def with_error(values: Floats) -> list[float]:
    """The mean and its standard error."""
    return [float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))]


def moment_rows(
    *,
    arrangement: str,
    num_samples: int,
    workers: Sequence[int],
    sigmas: Sequence[float],
    uniform_fractions: Sequence[float],
    most_calls: int,
    seed: int,
    batch: int = 32,
) -> Iterator[Row]:
    """A row for each σ, λ and W: exact, and at the middle σ by draws too, where calls suffice.

    A row is given so many calls of ``draw`` at most, for ``MOST_STEPS`` steps; for fewer than ``FEWEST`` it is exact
    alone.
    """
    measured = sorted(sigmas)[(len(sigmas) - 1) // 2]
    for sigma in sigmas:
        data = made(arrangement, num_samples=num_samples, sigma=sigma, seed=seed)
        for uniform_fraction in uniform_fractions:
            whole = exact(data, workers=1, uniform_fraction=uniform_fraction)
            for count in workers:
                local = exact(data, workers=count, uniform_fraction=uniform_fraction)
                row: Row = {
                    "kind": "moment",
                    "arrangement": arrangement,
                    "sigma": sigma,
                    "uniform_fraction": uniform_fraction,
                    "num_samples": num_samples,
                    "workers": count,
                    "one_plus_cv2": 1.0 + local.spread,
                    "second_over_one_store": local.second / whole.second,
                    "variance_over_one_store": local.one_draw / whole.one_draw,
                }
                steps = min(MOST_STEPS, most_calls // count)
                if sigma == measured and steps >= FEWEST:
                    row |= by_draws(data, count, uniform_fraction, whole, batch, steps, seed)
                yield row


def by_draws(
    data: Data, workers: int, uniform_fraction: float, whole: Exact, batch: int, steps: int, seed: int
) -> dict[str, Any]:
    """Ratios to the exact figures of one store, measured, with standard errors; the default scheme beside it."""
    columns: dict[str, Any] = {"draw_steps": steps, "draw_batch": batch}
    for scheme in ("multinomial", "systematic"):
        found = drawn(
            data,
            workers=workers,
            uniform_fraction=uniform_fraction,
            scheme=scheme,
            batch=batch,
            steps=steps,
            seed=seed,
        )
        columns |= {
            f"{scheme}_second": [value / whole.second for value in found["second"]],
            f"{scheme}_variance": [value / whole.one_draw for value in found["one_draw"]],
        }
    return columns
