"""One table over every store and every scheme, through the sampler that joins them.

What differs between the stores is a formula alone, P = q/Σq or P ∝ 1/rank^0.7; everything else is asked of all
alike. For the false-alarm rate of the frequencies see chance.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from sampler import ImportanceSampler, draws, priorities
from sampler.stores import ProportionalStore, RankedStore

from .chance import count_variance, suspects
from .siblings import losses_of, wander
from .slow_twin import SlowStore
from .states import same, same_draw

STORES = {"proportional": ProportionalStore, "ranked": RankedStore}
SCHEMES = list(draws.NAMED)
BATCH = 8
BATCHES = 2500


def some_priorities() -> np.ndarray:
    """300 samples, some of them of priority zero or equal, and two heavy ones, one of them the last."""
    generator = np.random.default_rng(5)
    values = generator.integers(1, 60, 300) / 10.0
    values[generator.random(300) < 0.1] = 0.0
    values[[33, 299]] = [100.0, 90.0]
    return values


def formula(store: str, values: np.ndarray, share: float, alpha: float = 0.7) -> np.ndarray:
    """Give p of each sample, in the plainest way."""
    size = values.size
    shares = values.astype(float)
    if store == "ranked":
        order = sorted(range(size), key=lambda sample: (-values[sample], sample))
        ranked = [sample for sample in order if values[sample] != 0]
        shares = np.zeros(size)
        shares[ranked] = (np.arange(len(ranked)) + 1.0) ** -alpha
    return (1 - share) * shares / shares.sum() + share / size if shares.any() else np.full(size, 1 / size)


def expected_counts(store: str, scheme: str, values, share: float, batch: int = BATCH, **options) -> np.ndarray:
    """How often each sample should be in a batch."""
    p = formula(store, values, share, **options)
    if scheme != "without_replacement":
        return batch * p
    slow = SlowStore(p.size)
    slow.leaves = p.tolist()  # a list of masses, whatever they came from
    slow.masses = lambda share: [round(mass * 2**80) for mass in slow.leaves]
    return np.array(slow.inclusion(batch, 0.0))


def a_store(store: str, values, **options):
    made = STORES[store](len(values), **options)
    made.fill(values)
    return made


def a_sampler(store: str, scheme: str, **options) -> ImportanceSampler:
    options = {"losses": some_priorities(), "seed": 0, **options}
    return ImportanceSampler(len(options["losses"]), store=store, scheme=scheme, **options)


@pytest.fixture(params=STORES)
def store(request):
    return request.param


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return request.param


# --- the schemes


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("batch", [1, 3, 8, 200])
def test_a_scheme_gives_ascending_samples_and_their_expected_counts(store, scheme, share, batch):
    values, generator = some_priorities(), np.random.default_rng(batch)
    made = a_store(store, values)
    expected = expected_counts(store, scheme, values, share, batch) / batch
    for _ in range(5):
        index, probability = draws.NAMED[scheme](made, batch, uniform_fraction=share, generator=generator)
        assert (index.dtype, probability.dtype) == (np.int64, np.float64)
        assert index.shape == probability.shape == (batch,)
        assert (np.diff(index) >= (scheme == "without_replacement")).all()
        assert index[0] >= 0
        assert index[-1] < 300
        np.testing.assert_allclose(probability, expected[index], rtol=1e-6)  # priorities are float32
        made.check()


def rejected(store: str, scheme: str, share: float, drawn_from, values, batch: int = BATCH) -> bool:
    """Whether batches from the store ``drawn_from`` have other frequencies than the formula for ``values``."""
    generator = np.random.default_rng(11)
    drawn = [
        draws.NAMED[scheme](drawn_from, batch, uniform_fraction=share, generator=generator)[0] for _ in range(BATCHES)
    ]
    counts = np.bincount(np.concatenate(drawn), minlength=len(values))
    expected = expected_counts(store, scheme, values, share, batch)
    if store == "ranked" and scheme == "stratified":  # the strata lie along the ranks
        order = np.lexsort((np.arange(values.size), -values, values == 0))
        variance = np.empty(values.size)
        variance[order] = count_variance(scheme, expected[order], batch)
    else:
        variance = count_variance(scheme, expected, batch)
    return suspects(counts, BATCHES * expected, BATCHES * variance).size > 0


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_frequencies_are_those_of_the_formula(store, scheme, share):
    values = some_priorities()
    assert not rejected(store, scheme, share, a_store(store, values), values)


FAULTS = {
    "uniform": lambda store, values: a_store(store, np.ones(values.size)),
    "off by one": lambda store, values: a_store(store, np.roll(values, 1)),
    "the other store": lambda store, values: a_store("ranked" if store == "proportional" else "proportional", values),
    "an exponent 10 % off": lambda store, values: (
        a_store(store, values**1.1) if store == "proportional" else a_store(store, values, alpha=0.77)
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.each_value
def test_the_test_of_frequencies_sees_planted_faults(store, scheme, fault):
    values = some_priorities()
    assert rejected(store, scheme, 0.0, FAULTS[fault](store, values), values)


def test_without_a_floor_a_sample_of_priority_zero_is_never_drawn(store, scheme):
    sampler = a_sampler(store, scheme, uniform_fraction=0.0)
    zero = some_priorities() == 0
    assert zero.sum() > 10
    for _ in range(300):
        assert not zero[sampler.draw(BATCH).index].any()


def test_with_a_floor_alone_it_is(store, scheme):
    sampler = a_sampler(store, scheme, losses=np.eye(1, 20)[0], uniform_fraction=0.5)
    drawn = np.concatenate([sampler.draw(4).index for _ in range(300)])
    assert np.unique(drawn).size == 20


def test_all_zero_is_uniform(store, scheme):
    sampler = a_sampler(store, scheme, losses=np.zeros(40))
    counts = np.zeros(40)
    for _ in range(500):
        draw = sampler.draw(BATCH)
        assert (draw.probability == 1 / 40).all()
        assert (draw.weight == 1.0).all()
        counts += np.bincount(draw.index, minlength=40)
    assert sampler.probabilities().tolist() == [1 / 40] * 40
    expected = np.full(40, BATCH / 40)
    assert suspects(counts, 500 * expected, 500 * count_variance(scheme, expected, BATCH)).size == 0


# --- the samplers made of them

OPTIONS = {
    "as it comes": dict,
    "smoothed": lambda: {"smoothing": 0.5},
    "bounded draws": lambda: {"max_draws": 2, "uniform_fraction": 0.2},
    "forgetting": lambda: {"forget": 0.3},
    "clipped": lambda: {"priority": priorities.clipped(0.8, window=30)},
    "relative": lambda: {"priority": priorities.relative(np.arange(30) % 4 / 2.0)},
    "losses kept": lambda: {"keep_losses": True, "priority": "sqrt"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_what_a_sampler_draws(store, scheme, option):
    """p sums to one and respects the floor, the weight is 1 / (N p), and p is the one that the draw was made with."""
    sampler = ImportanceSampler(30, store=store, scheme=scheme, seed=2, **OPTIONS[option]())
    named, used = sampler._scheme, []

    def watched(its_store, count, **arguments):
        used.append(its_store.probabilities(sampler.uniform_fraction))
        return named(its_store, count, **arguments)

    if scheme != "without_replacement":  # the sampler knows that one by its name
        sampler._scheme = watched
    for _ in range(40):
        draw = sampler.draw(5)
        assert draw.index.shape == draw.probability.shape == draw.weight.shape == (5,)
        assert (draw.index.dtype, draw.probability.dtype, draw.weight.dtype) == (np.int64, np.float64, np.float32)
        np.testing.assert_allclose(draw.weight, 1 / (30 * draw.probability), rtol=2e-7)
        sampler.update(draw.index, losses_of(draw.index, draw.step), step=draw.step)
        sampler._store.check()
        if used:
            p = used[-1]
            assert p.sum() == pytest.approx(1.0, rel=1e-12)
            assert p.min() >= sampler.uniform_fraction / 30 * (1 - 1e-12)
            np.testing.assert_allclose(draw.probability, p[draw.index], rtol=1e-11)
    assert len(used) == (0 if scheme == "without_replacement" else 34)  # the first pass takes six


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("moves", [0, 5, 8, 30])
def test_a_state_has_the_same_future(store, scheme, option, moves):
    def make(seed):
        return ImportanceSampler(30, store=store, scheme=scheme, seed=seed, **OPTIONS[option]())

    sampler, other = make(1), make(999)
    wander(sampler, np.random.default_rng(0), moves)
    wander(other, np.random.default_rng(5), 9)  # what it was before does not count
    state = sampler.state_dict()
    other.load_state_dict(state)
    assert same(other.state_dict(), state)
    one, two = (wander(each, np.random.default_rng(7), 25) for each in (sampler, other))
    assert all(map(same_draw, one, two))
    assert same(sampler.state_dict(), other.state_dict())
    assert sampler.summary() == other.summary()


# --- the order inside an update


def shuffled_twins(option, store, seed, repeats):
    """Two samplers told the same, one of them with every update in another order."""
    generator = np.random.default_rng(seed)
    twins = [ImportanceSampler(30, store=store, first_pass=False, seed=3, **OPTIONS[option]()) for _ in range(2)]
    for step in range(30):
        index = np.repeat(generator.permutation(30)[:10], repeats)
        losses = generator.exponential(size=index.size)
        losses[generator.random(index.size) < 0.1] = np.nan
        steps = step + generator.integers(0, 2, index.size)
        order = generator.permutation(index.size)
        for sampler in twins:
            sampler.draw(4)
        twins[0].update(index, losses, step=steps)
        twins[1].update(index[order], losses[order], step=steps[order])
    return twins


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_the_order_inside_an_update_does_not_matter(store, option, repeats):
    """To the bit, also of what is remembered of the losses, however often a sample is given."""
    for seed in range(5):
        one, other = shuffled_twins(option, store, seed, repeats)
        for sampler in (one, other):
            sampler._store.check()
        one, other = one.state_dict(), other.state_dict()
        for state in (one, other):
            if state["bound"]:  # a dict, in an order of its own
                order = np.argsort(state["bound"]["held"])
                for name in ("held", "priorities"):
                    state["bound"][name] = state["bound"][name][order]
        assert same(one, other)
