"""Draw schemes: siblings with one signature, so that choosing is a swap of a name.

    from sampler.draws import systematic
    index, probability = systematic(store, 32, uniform_fraction=0.3, generator=rng)

Each takes a store, the number of draws B, the uniform fraction λ and a generator, and returns ``index`` (B,) int64,
ascending, and ``probability`` (B,) float64: the expected number of times a sample is in such a batch, over B.
For all but the last that is p = (1-λ) q/Σq + λ/N.

======================  ===================  =======================================================
scheme                  random numbers       how often sample i is in a batch
======================  ===================  =======================================================
``multinomial``         B + 1                a binomial count with mean B p: independent draws
``stratified``          B                    one draw in each of B equal strata of the cumulative p
``systematic``          1                    floor(B p) or ceil(B p) times: the least variance
``without_replacement`` 1                    at most once; π = min(1, c p), Σπ = B
======================  ===================  =======================================================

All cost O(B log N). "In order" means the order of the store: of the index in a ``ProportionalStore``, of the rank
in a ``RankedStore``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sampler import batches, checks
from sampler.stores import PriorityStore, ProportionalStore

Drawn = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
Scheme = Callable[..., Drawn]


def multinomial(store: PriorityStore, count: int, *, uniform_fraction: float, generator: np.random.Generator) -> Drawn:
    """Independent draws.

    Their positions in ascending order, without a sort: the partial sums of B + 1 exponential
    spacings over their total are distributed as B sorted uniforms (Devroye, 1986, *Non-uniform random
    variate generation*, chapter V).
    """
    sums = np.cumsum(generator.standard_exponential(count + 1))
    return _ascending(store, sums[:-1] / sums[-1], uniform_fraction)


def stratified(store: PriorityStore, count: int, *, uniform_fraction: float, generator: np.random.Generator) -> Drawn:
    """One draw in each of B equal parts of the cumulative p."""
    return _ascending(store, (np.arange(count) + generator.random(count)) / count, uniform_fraction)


def systematic(store: PriorityStore, count: int, *, uniform_fraction: float, generator: np.random.Generator) -> Drawn:
    """B positions at equal distances along the cumulative p, from one random start (Madow, 1949)."""
    return _ascending(store, batches.spaced(count, generator.random()), uniform_fraction)


def without_replacement(
    store: PriorityStore, count: int, *, uniform_fraction: float, generator: np.random.Generator
) -> Drawn:
    """B distinct samples with exact inclusion probabilities π; the probability given is π / B."""
    checks.distinct(count, len(store))
    index, inclusion = store.find_distinct(count, generator.random(), uniform_fraction)
    return index, inclusion / count


def _ascending(store: PriorityStore, positions: npt.NDArray[np.float64], uniform_fraction: float) -> Drawn:
    # The positions are nobody else's, and a store that is just this one need not copy them.
    find = store.find_owned if type(store) is ProportionalStore else store.find
    index, probability = find(positions, uniform_fraction)
    if store.in_index_order:
        return index, probability
    order = np.argsort(index, kind="stable")
    return index[order], probability[order]


NAMED: dict[str, Scheme] = {
    "multinomial": multinomial,
    "systematic": systematic,
    "stratified": stratified,
    "without_replacement": without_replacement,
}


def resolve(scheme: str) -> Scheme:
    """The function that ``scheme`` names."""
    if not isinstance(scheme, str) or scheme not in NAMED:
        raise ValueError(f"scheme must be one of {', '.join(map(repr, NAMED))}, got {scheme!r}")
    return NAMED[scheme]
