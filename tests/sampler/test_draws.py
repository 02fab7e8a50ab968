"""The draw schemes: frequencies against p = (1-λ) q/Σq + λ/N, and proof that the test sees planted faults."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sampler import draws
from sampler.stores import ProportionalStore

from .chance import chi_square_rejects, count_variance, suspects
from .slow_twin import SlowStore

SCHEMES = list(draws.NAMED)
BATCH = 8
# Enough for an exponent 2 % off to be 1.3 times the limit; independent draws scatter most.
BATCHES = {"multinomial": 20_000, "systematic": 8_000, "stratified": 8_000, "without_replacement": 8_000}
SHARES = [0.0, 0.3]


def some_priorities() -> np.ndarray:
    """2,000 light samples, a tenth of them zero, and two heavy ones, one of them the last.

    A heavy sample is in most batches of eight, where its counts tell the most; against the light ones its
    logarithm is 5.5 larger, so an exponent 2 % off changes its frequency by 9 %.
    """
    generator = np.random.default_rng(5)
    priorities = generator.uniform(0.5, 1.5, 2000)
    priorities[generator.random(2000) < 0.1] = 0.0
    priorities[[333, 1999]] = [251.3, 238.9]
    return priorities


def a_store(priorities) -> ProportionalStore:
    store = ProportionalStore(len(priorities))
    store.fill(priorities)
    return store


def expected_counts(scheme: str, priorities, uniform_fraction: float, batch: int = BATCH) -> np.ndarray:
    """How often each sample should be in a batch, from the slow twin."""
    slow = SlowStore(len(priorities))
    slow.fill(priorities)
    if scheme == "without_replacement":
        return np.array(slow.inclusion(batch, uniform_fraction))
    return batch * np.array(slow.probabilities(uniform_fraction))


def drawn_counts(scheme: str, store, uniform_fraction: float, batch: int = BATCH) -> np.ndarray:
    """How often each sample came, in independent batches."""
    generator = np.random.default_rng(11)
    drawn = [
        draws.NAMED[scheme](store, batch, uniform_fraction=uniform_fraction, generator=generator)[0]
        for _ in range(BATCHES[scheme])
    ]
    return np.bincount(np.concatenate(drawn), minlength=len(store))


def rejected(scheme: str, counts, expected) -> bool:
    """Whether ``counts`` are not those of batches with ``expected``; see chance.py for false alarms."""
    batch = round(expected.sum())
    batches = counts.sum() / batch
    return suspects(counts, batches * expected, batches * count_variance(scheme, expected, batch)).size > 0


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_frequencies_are_those_of_the_formula(scheme, share):
    priorities = some_priorities()
    counts = drawn_counts(scheme, a_store(priorities), share)
    assert counts.sum() == BATCH * BATCHES[scheme]
    assert not rejected(scheme, counts, expected_counts(scheme, priorities, share))
    if share == 0.0:
        assert not counts[priorities == 0].any()


FAULTS = {
    "uniform instead of proportional": lambda priorities, share: (np.ones(priorities.size), share),
    "a leaf off by one": lambda priorities, share: (np.roll(priorities, 1), share),
    "an exponent 2 % off": lambda priorities, share: (priorities**1.02, share),
    "the floor forgotten, or put where there is none": lambda priorities, share: (priorities, 0.3 - share),
}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.each_value
def test_the_test_of_frequencies_sees_planted_faults(fault, scheme, share):
    priorities = some_priorities()
    wrong, wrong_share = FAULTS[fault](priorities, share)
    counts = drawn_counts(scheme, a_store(wrong), wrong_share)
    assert rejected(scheme, counts, expected_counts(scheme, priorities, share))


def test_frequencies_where_some_are_certain():
    """In a batch of twenty both heavy samples are certain, and the light ones share eighteen places."""
    priorities = some_priorities()
    expected = expected_counts("without_replacement", priorities, 0.3, 20)
    assert (expected[[333, 1999]] == 1).all()
    counts = drawn_counts("without_replacement", a_store(priorities), 0.3, 20)
    assert not rejected("without_replacement", counts, expected)
    assert rejected("without_replacement", counts, expected_counts("systematic", priorities, 0.3, 20))
    others = np.where(expected < 1, 20 / 18 * expected, 1.0)  # as if the certain ones took no places
    assert rejected("without_replacement", counts, others * (20 / others.sum()))


def test_the_test_of_frequencies_sees_draws_of_another_scheme():
    """``numpy.random.Generator.choice`` without replacement has not these inclusion probabilities."""
    priorities = some_priorities()[1600:]
    generator, probability = np.random.default_rng(0), priorities / priorities.sum()
    drawn = [generator.choice(400, BATCH, replace=False, p=probability) for _ in range(4000)]
    counts = np.bincount(np.concatenate(drawn), minlength=400)
    assert rejected("without_replacement", counts, expected_counts("without_replacement", priorities, 0.0))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("batch", [1, 3, 8, 300])
def test_the_probability_given_is_the_expected_count_over_the_batch(scheme, share, batch):
    priorities = some_priorities()
    generator = np.random.default_rng(1)
    expected = expected_counts(scheme, priorities, share, batch) / batch
    for _ in range(20):
        index, probability = draws.NAMED[scheme](
            a_store(priorities), batch, uniform_fraction=share, generator=generator
        )
        assert index.dtype == np.int64
        assert probability.dtype == np.float64
        assert index.shape == probability.shape == (batch,)
        assert (np.diff(index) >= 0).all()
        np.testing.assert_allclose(probability, expected[index], rtol=1e-11)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("batch", [1, 7, 8, 300, 5000])
def test_systematic_counts_are_floor_or_ceiling(share, batch):
    priorities = some_priorities()
    store, generator = a_store(priorities), np.random.default_rng(2)
    expected = expected_counts("systematic", priorities, share, batch)
    for _ in range(300):
        index, _ = draws.systematic(store, batch, uniform_fraction=share, generator=generator)
        counts = np.bincount(index, minlength=2000)
        assert (counts >= np.floor(expected)).all()
        assert (counts <= np.ceil(expected)).all()


def test_stratified_draws_one_in_each_stratum():
    priorities = some_priorities()
    store, generator = a_store(priorities), np.random.default_rng(3)
    ends = np.cumsum(store.probabilities(0.3))
    begins = ends - store.probabilities(0.3)
    for _ in range(300):
        index, _ = draws.stratified(store, 50, uniform_fraction=0.3, generator=generator)
        assert (begins[index] <= (np.arange(50) + 1) / 50 + 1e-12).all()
        assert (ends[index] >= np.arange(50) / 50 - 1e-12).all()


def places_in_two_strata(scheme) -> np.ndarray:
    """Eight strata of five equal samples: how often each pair of places came in the third and the fourth."""
    store, generator = ProportionalStore(40), np.random.default_rng(8)
    drawn = np.array(
        [scheme(store, 8, uniform_fraction=0.0, generator=generator)[0] for _ in range(5000)]
    ) - 5 * np.arange(8)
    return np.bincount(5 * drawn[:, 2] + drawn[:, 3], minlength=25)


def test_strata_are_independent_of_each_other():
    """Chi-square over 25 pairs of places; a systematic draw has the same place in all strata."""
    expected = np.full(25, 200.0)
    assert not chi_square_rejects(places_in_two_strata(draws.stratified), expected, 24)
    assert chi_square_rejects(places_in_two_strata(draws.systematic), expected, 24)


@pytest.mark.parametrize("batch", [1, 2, 8, 1000])
def test_distinct_samples_are_distinct(batch):
    priorities = some_priorities()
    generator = np.random.default_rng(4)
    for share in (0.3, 1.0):
        for _ in range(50):
            index, _ = draws.without_replacement(
                a_store(priorities), batch, uniform_fraction=share, generator=generator
            )
            assert np.unique(index).size == batch


def test_more_distinct_samples_than_there_are():
    with pytest.raises(ValueError, match="6 samples cannot be drawn without replacement from 5; ask for at most 5"):
        draws.without_replacement(ProportionalStore(5), 6, uniform_fraction=0.3, generator=np.random.default_rng(0))


def binomial(batch: int) -> np.ndarray:
    return np.array([math.comb(batch, hits) for hits in range(batch + 1)]) / 2**batch


def hits_in_the_first_half(scheme: str, batches: int = 20_000) -> np.ndarray:
    """How many batches of eight had 0, 1, ... 8 of their samples from the first half of the mass."""
    store, generator = ProportionalStore(100), np.random.default_rng(6)
    scheme = draws.NAMED[scheme]
    drawn = [scheme(store, 8, uniform_fraction=0.0, generator=generator)[0] for _ in range(batches)]
    return np.bincount((np.array(drawn) < 50).sum(axis=1), minlength=9)


def test_multinomial_draws_are_independent_of_each_other():
    """Chi-square against the binomial distribution; the other schemes fail it, as they should."""
    expected = 20_000 * binomial(8)
    assert not chi_square_rejects(hits_in_the_first_half("multinomial"), expected, 8)
    for scheme in ("systematic", "stratified", "without_replacement"):
        assert chi_square_rejects(hits_in_the_first_half(scheme), expected, 8)


@pytest.mark.parametrize("place", [0, 3, 7])
def test_multinomial_places_are_sorted_uniforms(place):
    """The t-th of B sorted uniforms, cut at tenths: chi-square, one number from each independent batch."""
    store, generator = ProportionalStore(10), np.random.default_rng(place)
    drawn = [draws.multinomial(store, 8, uniform_fraction=0.0, generator=generator)[0][place] for _ in range(20_000)]
    tenths = np.arange(11) / 10
    below = sum(math.comb(8, k) * tenths**k * (1 - tenths) ** (8 - k) for k in range(place + 1, 9))
    expected = 20_000 * np.diff(below)
    counts = np.bincount(drawn, minlength=10)
    seldom = expected < 20  # cells too small for the chi-square distribution are put together
    counts = np.append(counts[~seldom], counts[seldom].sum())
    expected = np.append(expected[~seldom], expected[seldom].sum())
    wanted = expected > 0
    assert not chi_square_rejects(counts[wanted], expected[wanted], wanted.sum() - 1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_sample_of_priority_zero_is_never_drawn_without_a_floor(scheme):
    generator = np.random.default_rng(7)
    for size in (2, 16, 17, 257, 1000):
        priorities = np.where(generator.random(size) < 0.7, 0.0, 10.0 ** generator.uniform(-6, 6, size))
        priorities[[0, -1]] = 0.0
        priorities[size // 2] = 1.0
        store, some = a_store(priorities), min(5, np.count_nonzero(priorities))
        for _ in range(200):
            index, _ = draws.NAMED[scheme](store, some, uniform_fraction=0.0, generator=generator)
            assert (priorities[index] > 0).all()


def test_a_name_that_is_none_is_refused_with_those_there_are():
    assert draws.resolve("systematic") is draws.systematic
    with pytest.raises(ValueError, match="'multinomial', 'systematic', 'stratified', 'without_replacement', got"):
        draws.resolve("sytematic")
