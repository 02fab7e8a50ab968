"""Exact at scale: ten million samples here, and a hundred million with ``pytest -m soak tests/sampler``.

Independent draws are judged sample by sample, by a statistic like Pearson's whose expectation is exact, and by groups
(halves, ends, blocks, the index mod 8 and mod 16: the widths of the tree). Systematic draws are judged
without chance: in every batch each sample, and each run of neighbours, comes as often as it must.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from sampler import draws, kernels
from sampler.stores import ProportionalStore

from .chance import suspects

BATCH = 1_000_000
TEN_MILLION = 10_000_000
# Of a sum of N terms that depend on each other by no more than the total: as good as normal, and this many standard
# deviations come by chance less than once in 1e11.
LIMIT = 7.0

KINDS = {
    "exponential": lambda generator, size: generator.standard_exponential(size, dtype=np.float32),
    "equal": lambda generator, size: np.full(size, 0.1, np.float32),
    "1 : 1e12": lambda generator, size: (10.0 ** (12.0 * generator.random(size, dtype=np.float32))).astype(np.float32),
    "all in one": lambda generator, size: one_of(size, size // 3),
    "all in the last": lambda generator, size: one_of(size, size - 1),
}


def one_of(size: int, sample: int) -> np.ndarray:
    priorities = np.zeros(size, np.float32)
    priorities[sample] = 3.0
    return priorities


def make(kind: str, size: int) -> tuple[ProportionalStore, np.ndarray]:
    """A store, and p = q/Σq by the plainest sum."""
    priorities = KINDS[kind](np.random.default_rng(size), size)
    store = ProportionalStore(size)
    store.fill(priorities)
    return store, priorities


def formula(priorities: np.ndarray, share: float = 0.0) -> np.ndarray:
    p = priorities.astype(np.float64)
    p *= (1.0 - share) / p.sum()  # NumPy adds pairwise: exact to some 1e-15
    p += share / p.size
    return p


def count(find, size: int, batches: int) -> np.ndarray:
    """How often each sample comes in independent batches of ``find(generator)``."""
    generator = np.random.default_rng(17)
    counts = np.zeros(size, np.int32)
    for _ in range(batches):
        index = find(generator)
        counts += np.bincount(index, minlength=size).astype(np.int32)
    return counts


def from_store(store, share: float = 0.0):
    return lambda generator: draws.multinomial(store, BATCH, uniform_fraction=share, generator=generator)[0]


def deviation(counts: np.ndarray, p: np.ndarray) -> float:
    """Σ ((c - n p)² - n p (1 - p)) / max(n p, 1) in standard deviations; its expectation is exactly 0.

    Dividing by n p alone, as Pearson does, would leave everything to the samples that hardly ever come.
    """
    draws_made = counts.sum(dtype=np.int64)
    mean = draws_made * p
    variance = mean * (1.0 - p)
    weight = 1.0 / np.maximum(mean, 1.0)
    statistic = (weight * (np.square(counts - mean) - variance)).sum()
    fourth = variance * (1.0 + 3.0 * (draws_made - 2) * p * (1.0 - p))  # central moment of a binomial count
    spread = math.sqrt(float((np.square(weight) * (fourth - np.square(variance))).sum()))
    return float(statistic) / spread if spread > 1e-3 else float(statistic)


def groups(size: int) -> list[np.ndarray | slice]:
    blocks = np.linspace(0, size, 101).astype(int)
    ends = [
        slice(0, 1),
        slice(0, 16),
        slice(16, 32),
        slice(size - 16, size),
        slice(size - 3, size),
        slice(size - 1, size),
    ]
    halves = [slice(0, size // 2), slice(size // 2, size)]
    residues = [slice(rest, size, width) for width in (8, 16, 128) for rest in range(width)]
    return [slice(*block) for block in pairwise(blocks)] + ends + halves + residues


def wrong_groups(counts: np.ndarray, p: np.ndarray) -> bool:
    """Whether a group comes too often or too seldom: Bernstein, a false alarm once in 1e8 (see chance.py)."""
    n = int(counts.sum(dtype=np.int64))
    shares = np.array([p[group].sum() for group in groups(p.size)])
    seen = np.array([counts[group].sum(dtype=np.int64) for group in groups(p.size)])
    return suspects(seen, n * shares, n * shares * (1.0 - np.minimum(shares, 1.0))).size > 0


def is_as_it_should(counts: np.ndarray, p: np.ndarray) -> bool:
    return bool(abs(deviation(counts, p)) < LIMIT) and not wrong_groups(counts, p) and not counts[p == 0.0].any()


@pytest.mark.parametrize(
    ("kind", "size", "share"),
    [
        ("exponential", TEN_MILLION, 0.0),
        ("exponential", TEN_MILLION + 3, 0.3),
        ("equal", TEN_MILLION + 3, 0.0),
        ("1 : 1e12", TEN_MILLION, 0.0),
        ("all in one", TEN_MILLION, 0.3),
        ("all in the last", TEN_MILLION + 3, 0.0),
        ("equal", 1, 0.0),
    ],
)
@pytest.mark.every(3)
def test_independent_draws_come_as_often_as_the_formula_says(kind, size, share):
    store, priorities = make(kind, size)
    p = formula(priorities, share)
    assert store.total == pytest.approx(priorities.sum(dtype=np.float64), rel=1e-13)
    assert is_as_it_should(count(from_store(store, share), size, 8), p)


def test_planted_faults_are_seen():
    _, priorities = make("exponential", TEN_MILLION)
    p = formula(priorities)
    ends = np.cumsum(priorities)  # in float32, as it comes
    assert ends.dtype == np.float32
    exact = np.cumsum(priorities, dtype=np.float64)

    def by(ends):
        def find(generator):
            return np.minimum(np.searchsorted(ends, np.sort(generator.random(BATCH)) * ends[-1]), TEN_MILLION - 1)

        return find

    as_it_should = count(by(exact), TEN_MILLION, 2)
    assert is_as_it_should(as_it_should, p)
    assert not is_as_it_should(np.roll(as_it_should, 1), p)
    assert not is_as_it_should(count(by(ends), TEN_MILLION, 2), p)
    assert not is_as_it_should(count(lambda generator: generator.integers(0, p.size, BATCH), TEN_MILLION, 2), p)


# --- systematic draws


def systematic_is_exact(store, priorities, batches: int, batch: int) -> None:
    """Floor or ceiling of B p for each sample, and for each run of neighbours, in every batch.

    A position that lies closer to an edge than the rounding of the sums, 1e-9 of a draw, may go either way.
    """
    p = formula(priorities)
    expected, ends = batch * p, batch * np.cumsum(p)
    generator = np.random.default_rng(3)
    for _ in range(batches):
        index, probability = draws.systematic(store, batch, uniform_fraction=0.0, generator=generator)
        assert (np.diff(index) >= 0).all()
        np.testing.assert_allclose(probability, p[index], rtol=1e-12)
        counts = np.bincount(index, minlength=p.size)
        assert (counts >= np.floor(expected - 1e-6)).all()
        assert (counts <= np.ceil(expected + 1e-6)).all()
        assert np.abs(np.cumsum(counts) - ends).max() <= 1.0 + 1e-6  # so any run is within 2 of what is expected


@pytest.mark.parametrize("kind", ["exponential", "1 : 1e12", "all in the last"])
def test_systematic_draws_come_as_often_as_they_must(kind):
    systematic_is_exact(*make(kind, TEN_MILLION + 3), batches=2, batch=BATCH)


def test_systematic_draws_of_every_sample_once():
    store, _ = make("equal", TEN_MILLION)
    index, _ = draws.systematic(store, TEN_MILLION, uniform_fraction=0.0, generator=np.random.default_rng(4))
    assert np.array_equal(index, np.arange(TEN_MILLION))


# --- no drift


def updates_do_not_drift(size: int, updates: int) -> None:
    """After random updates of very different size every sum is that of its leaves, to the bit.

    In the end all become small. A sum adjusted by the differences would show what it has gathered by then.
    """
    generator = np.random.default_rng(5)
    leaves, sums = kernels.allocate(size)
    rebuilt, adjusted = np.zeros_like(sums), 0.0

    def write(index, value, *, adjust):
        nonlocal adjusted
        before = leaves[index].sum(dtype=np.float64) if adjust else 0.0
        kernels.write(leaves, sums, index, value)
        adjusted += leaves[index].sum(dtype=np.float64) - before if adjust else 0.0

    indices = np.array([generator.permutation(size)[:4096] for _ in range(20)])  # distinct in each update
    values = 10.0 ** generator.uniform(-6, 6, (50, 4096))
    batches = -(-updates // 4096)
    for step in range(batches):
        index = (indices[step % 20] + step * 7919) % size
        write(index, values[step * 3 % 50] * (1.0 + step % 97), adjust=step < 2500)
    kernels.rebuild(leaves, rebuilt)
    assert np.array_equal(sums, rebuilt)
    assert sums[-1] == pytest.approx(math.fsum(leaves.tolist()), rel=1e-14)
    for first in range(0, size, 4096):
        index = np.arange(first, min(first + 4096, size))
        write(index, np.full(index.size, 1e-6), adjust=True)
    kernels.rebuild(leaves, rebuilt)
    assert np.array_equal(sums, rebuilt)
    assert sums[-1] == pytest.approx(size * float(np.float32(1e-6)), rel=1e-13)
    if batches <= 2500:  # the fault that is avoided
        assert abs(adjusted / sums[-1] - 1.0) > 1e-6


def test_half_of_ten_million_distinct_samples():
    """A million of them certain, so that rounding carries some of the others' positions onto a certain one."""
    store, priorities = make("exponential", TEN_MILLION)
    number, offset = TEN_MILLION // 2, 0.37
    index, inclusion = store.find_distinct(number, offset, 0.3)
    assert (np.diff(index) > 0).all()
    p = formula(priorities, 0.3)
    rest = np.flatnonzero(inclusion < 1.0)
    factor = inclusion[rest[0]] / p[index[rest[0]]]
    expected = np.minimum(factor * p, 1.0)
    assert np.count_nonzero(expected == 1.0) > 1e6
    assert expected.sum() == pytest.approx(number, rel=1e-9)
    np.testing.assert_allclose(inclusion, expected[index], rtol=1e-9)
    assert (expected[np.delete(np.arange(TEN_MILLION), index)] < 1.0).all()  # all that are certain were taken
    expected[expected == 1.0] = 0.0
    ends = np.cumsum(expected)[index[rest]]
    positions = np.arange(rest.size) + offset
    # So many positions are laid beside the nodes, and the plain sum here beside the samples, with a rounding for each.
    assert (positions <= ends + 1e-4).all()
    assert (positions >= ends - inclusion[rest] - 1e-4).all()
    store.check()
    assert np.array_equal(store.priorities(), priorities)


def test_ten_million_updates_do_not_drift():
    updates_do_not_drift(1_000_003, 2500 * 4096)


# --- minutes and gigabytes


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["exponential", "equal", "1 : 1e12"])
def test_a_hundred_million_samples(kind):
    size = 100_000_003
    store, priorities = make(kind, size)
    p = formula(priorities)
    assert is_as_it_should(count(from_store(store), size, 100), p)
    systematic_is_exact(store, priorities, batches=2, batch=10 * BATCH)


@pytest.mark.soak
def test_a_thousand_million_updates_do_not_drift():
    updates_do_not_drift(10_000_003, 1_000_000_000)
