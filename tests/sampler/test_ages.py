"""How stale what is known of a sample is: ``ages`` and ``stalest``, and ``forget``, which pulls old priorities down."""

from __future__ import annotations

import numpy as np
import pytest

from sampler import ImportanceSampler, UniformSampler

from .siblings import SIBLINGS, train
from .states import same

SIZE = 64


@pytest.fixture(params=SIBLINGS)
def make(request):
    return SIBLINGS[request.param]


# --- ages


def test_ages_are_the_draws_since_the_newest_loss(make):
    sampler = make(SIZE, seed=0)
    newest = sampler.state_dict()["newest"].copy()
    lag = sampler.feedback_lag or 0
    assert sampler.ages().tolist() == [0] * SIZE
    for draw in train(sampler, 40):
        assert sampler.ages().dtype == np.int64
        if draw.step <= 40 - max(lag, 1):  # newer feedback waits
            newest[draw.index] = draw.step
    assert sampler.step == 40
    np.testing.assert_array_equal(sampler.ages(), 39 - newest)


def test_a_sample_never_heard_of_is_as_old_as_the_sampler():
    sampler = UniformSampler(4, seed=0)
    draws = [sampler.draw(1) for _ in range(3)]
    sampler.update(draws[1].index, [1.0], step=1)
    expected = np.full(4, 3)
    expected[draws[1].index] = 1
    assert sampler.ages().tolist() == expected.tolist()
    sampler.update(draws[0].index, [np.nan], step=0)  # not finite: still unheard of
    assert sampler.ages().tolist() == expected.tolist()
    sampler.update(draws[2].index, [1.0])  # now: newer than all draws
    assert sampler.ages()[draws[2].index].item() == 0


@pytest.mark.parametrize("count", [1, 5, SIZE - 1, SIZE, SIZE + 10])
def test_the_stalest_are_those_of_the_greatest_age(make, count):
    sampler = make(SIZE, seed=0)
    train(sampler, 40)
    ages, stalest = sampler.ages(), sampler.stalest(count)
    assert stalest.dtype == np.int64
    assert stalest.shape == (min(count, SIZE),)
    assert np.unique(stalest).size == stalest.size
    assert ages[stalest].tolist() == np.sort(ages)[::-1][:count].tolist()
    for age in np.unique(ages):  # of equal age the lower index comes first
        assert (np.diff(stalest[ages[stalest] == age]) > 0).all()


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (None, TypeError)])
def test_a_count_that_is_none_is_refused(make, count, error):
    with pytest.raises(error, match="count must be"):
        make(SIZE).stalest(count)


# --- forget


def slow_forgetting(sampler, batch):
    """What ``forget`` should make of the priorities in the next draw, one sample after the other.

    ``batch`` samples are looked at, from where the last draw stopped; those heard of less than N draws ago stay.
    """
    values, newest, size = sampler.priorities(), sampler.state_dict()["newest"], len(sampler)
    place, old = sampler.state_dict()["faded"], sampler.step - -(-size // batch)
    left = batch
    while left:
        last = min(place + left, size)
        mean = values.mean()  # of all, as it stands when these are looked at
        for sample in range(place, last):
            if newest[sample] < old:
                values[sample] += sampler.forget * (mean - values[sample])
        left -= last - place
        place = last % size
    return values


@pytest.mark.parametrize("store", ["proportional", "ranked"])
@pytest.mark.parametrize("batch", [1, 5, 16, SIZE, 3 * SIZE // 2])
@pytest.mark.parametrize("forget", [0.1, 0.9])
def test_old_priorities_go_toward_the_mean_as_told(store, batch, forget):
    generator = np.random.default_rng(batch)
    losses = generator.exponential(size=SIZE)
    sampler = ImportanceSampler(SIZE, losses=losses, forget=forget, store=store, seed=0)
    moved = 0
    for _ in range(4 * SIZE // min(batch, SIZE)):
        expected = slow_forgetting(sampler, batch)
        before = sampler.priorities()
        draw = sampler.draw(batch)
        np.testing.assert_allclose(sampler.priorities(), expected, rtol=1e-6)
        sampler._store.check()
        moved += np.count_nonzero(sampler.priorities() != before)
        seen = draw.index % 3 == 0  # the others are never heard of
        sampler.update(draw.index[seen], losses[draw.index[seen]], step=draw.step)
    assert moved > SIZE


@pytest.mark.parametrize("batch", [4, 7, SIZE])
def test_once_a_pass_and_not_those_that_were_seen(batch):
    """A priority of 0 beside many of 1 comes to 1 - (1 - forget)^passes, as the mean hardly moves."""
    size = 4096
    losses = np.ones(size)
    losses[[100, 200]] = 0.0
    sampler = ImportanceSampler(size, losses=losses, forget=0.25, uniform_fraction=1.0, seed=0)
    passes = 4
    for step in range(passes * -(-size // batch) + 1):
        sampler.draw(batch)
        if step % 10 == 0:
            sampler.update([200], [0.0])
    priorities = sampler.priorities()
    assert priorities[200] == 0.0
    looked = [1 - 0.75**times for times in (passes - 2, passes - 1, passes)]  # the first pass is too young
    assert min(abs(priorities[100] - value) for value in looked[:2]) < 1e-3
    assert priorities[0] == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("store", ["proportional", "ranked"])
def test_a_mean_of_equals_changes_nothing_worth_the_name(store):
    sampler = ImportanceSampler(SIZE, losses=np.full(SIZE, 0.1), forget=0.5, store=store, seed=0)
    for _ in range(100):
        sampler.draw(SIZE)
    np.testing.assert_allclose(sampler.priorities(), 0.1, rtol=1e-5)


def test_ranks_fade_from_one_end_of_float64_to_the_other():
    """The way between them is infinite, and yet what comes out is finite."""
    losses = np.full(SIZE, 1.7e308)
    losses[:2] = -1.7e308
    sampler = ImportanceSampler(SIZE, losses=losses, forget=0.9, store="ranked", seed=0)
    for _ in range(10):
        sampler.draw(SIZE)
        sampler._store.check()
    priorities = sampler.priorities()
    assert np.isfinite(priorities).all()
    assert (priorities > 1e308).all()


def test_nothing_is_forgotten_unless_asked_for():
    sampler = ImportanceSampler(SIZE, losses=np.arange(SIZE), seed=0)
    for _ in range(20):
        sampler.draw(SIZE)
    assert sampler.priorities().tolist() == list(range(SIZE))


@pytest.mark.parametrize(
    ("forget", "error"), [(1.0, ValueError), (-0.1, ValueError), (np.nan, ValueError), ("1", TypeError)]
)
def test_a_share_that_is_none_is_refused(forget, error):
    with pytest.raises(error, match="forget must be"):
        ImportanceSampler(4, forget=forget)


@pytest.mark.parametrize("scheme", ["systematic", "multinomial", "stratified", "without_replacement"])
def test_the_weight_is_that_of_what_is_left_after_forgetting(scheme):
    losses = np.random.default_rng(0).exponential(size=SIZE)
    sampler = ImportanceSampler(SIZE, losses=losses, forget=0.5, scheme=scheme, seed=0)
    for _ in range(30):
        draw = sampler.draw(8)
        if scheme != "without_replacement":  # whose π is not B p
            np.testing.assert_allclose(draw.probability, sampler.probabilities()[draw.index], rtol=1e-11)
        np.testing.assert_allclose(draw.weight, 1 / (SIZE * draw.probability), rtol=2e-7)


def test_a_state_keeps_the_place_where_forgetting_goes_on():
    sampler = ImportanceSampler(SIZE, losses=np.arange(SIZE), forget=0.5, seed=0)
    for _ in range(9):
        sampler.draw(10)
    state = sampler.state_dict()
    assert state["faded"] == 90 % SIZE
    other = ImportanceSampler(SIZE, forget=0.5, seed=1)
    other.load_state_dict(state)
    for each in (sampler, other):
        train(each, 30)
    assert same(sampler.state_dict(), other.state_dict())


@pytest.mark.parametrize("count", [1, 2, 3, 40, 299, 300])
def test_the_stalest_of_many_are_those_of_a_sort(count):
    sampler = UniformSampler(300, seed=0)
    steps = np.random.default_rng(1).integers(0, 100, 300)
    sampler.update(np.arange(300), np.ones(300), step=steps)
    found = sampler.stalest(count)
    assert steps[found].tolist() == np.sort(steps)[:count].tolist()


def test_what_is_forgotten_begins_with_the_first_sample():
    sampler = ImportanceSampler(SIZE, forget=0.5, losses=np.ones(SIZE), seed=0)
    assert sampler.state_dict()["faded"] == 0
    sampler.draw(5)
    assert sampler.state_dict()["faded"] == 5
