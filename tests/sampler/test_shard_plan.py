"""Which shard, with which chance: exactly what p needs, whatever the totals were last told to be."""

from __future__ import annotations

import numpy as np
import pytest

from sampler.shard_plan import Pool, ShardPlan, assembled, orders_of

from .chance import suspects

N, SHARDS = 47, 4
TOTALS = np.array([0.0, 3.0, 40.0, 1e-3])


def plan(fraction=0.3, seed=0, **options):
    made = ShardPlan(
        N, SHARDS, uniform_fraction=fraction, generator=np.random.default_rng(seed), **{"passes": 1, **options}
    )
    made.total[:] = TOTALS
    return made


@pytest.mark.parametrize("fraction", [1e-3, 0.3, 1.0])
@pytest.mark.parametrize("totals", [TOTALS, np.zeros(4), np.ones(4), np.array([0, 0, 0, 1e300])])
def test_the_chances_leave_every_sample_its_uniform_share(fraction, totals):
    """P_s λ_s / n_s = λ/N: the least p of a sample, whatever its shard's total is by now."""
    made = plan(fraction, passes=0)
    made.total[:] = totals
    (part,) = made.order(8)
    assert part.chance.sum() == pytest.approx(1.0, rel=1e-12)
    share = made.fraction(part)
    assert (share > 0).all()
    assert (share <= 1).all()
    np.testing.assert_allclose(part.chance * share / made.size, fraction / N, rtol=1e-12)


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "multinomial"])
def test_shards_are_chosen_as_often_as_their_chance_says(scheme):
    made, batch, rounds = plan(passes=0, scheme=scheme), 10, 2000
    counts = np.array([made.order(batch)[0].counts for _ in range(rounds)])
    assert (counts.sum(axis=1) == batch).all()
    mean = batch * made.chance()
    if scheme != "multinomial":
        assert (np.abs(counts - mean) < 1).all()
    variance = rounds * mean  # more than it is
    assert not suspects(counts.sum(axis=0), rounds * mean, variance).size
    planted = rounds * batch * (TOTALS / TOTALS.sum())  # without the uniform share
    assert suspects(counts.sum(axis=0), planted, variance).size


@pytest.mark.parametrize("batch", [1, 8, 47, 100])
@pytest.mark.parametrize("passes", [1, 3])
def test_first_passes_are_of_each_shard_as_often_as_it_has_samples(batch, passes):
    made = plan(passes=passes)
    counts, left = np.zeros(SHARDS, np.int64), passes * N
    while left:
        ordered = made.order(batch)
        assert sum(part.counts.sum() for part in ordered) == batch
        of_passes = [part for part in ordered if part.passes]
        assert ordered[: len(of_passes)] == of_passes  # what is left of them comes first
        counts += sum(part.counts for part in of_passes)
        left = max(0, left - batch)
        assert made.left == left
    np.testing.assert_array_equal(counts, passes * made.size)
    assert [part.passes for part in made.order(batch)] == [False]


def test_in_a_pass_the_shards_come_in_no_order():
    """The first draw is of shard s with chance n_s/N; it is no other with a rate of 1e-8 of a false alarm."""
    first = np.array([plan(seed=seed).order(1)[0].counts for seed in range(2000)]).sum(axis=0)
    mean = 2000 * plan().uniform
    assert not suspects(first, mean, mean).size
    assert suspects(first, np.roll(mean * [1, 1, 1.5, 0.5], 1), mean).size


def test_draws_of_shards_become_batches():
    made = plan()
    made.done = N - 5
    ordered = [*made.order(8), *made.order(8)]  # 5 of the pass, 3, 8
    assert [int(part.counts.sum()) for part in ordered] == [5, 3, 8]
    asked = {shard: orders_of(shard, ordered, made) for shard in range(SHARDS)}
    answers = {}
    for shard, orders in asked.items():
        count = sum(order.count for order in orders)
        answers[shard] = np.arange(count) % made.size[shard], np.arange(count) / 1000
    parts = assembled(ordered, answers, made)
    seen = dict.fromkeys(range(SHARDS), 0)
    for part, (index, probability) in zip(ordered, parts, strict=True):
        shard_of = made.shard_of(index)
        np.testing.assert_array_equal(np.bincount(shard_of, minlength=SHARDS), part.counts)
        for shard in range(SHARDS):
            own = np.sort(probability[shard_of == shard])
            expected = (np.arange(own.size) + seen[shard]) / 1000 * part.chance[shard]
            np.testing.assert_allclose(own, expected)
            seen[shard] += own.size
    assert {shard: sum(order.count for order in orders) for shard, orders in asked.items()} == seen


def test_a_pool_gives_draws_in_order_whatever_their_batches_were():
    pool = Pool()
    for first in range(0, 30, 10):
        pool.put(np.arange(first, first + 10), np.arange(first, first + 10) / 100)
    taken = [pool.take(count) for count in (10, 3, 12, 5)]
    assert [index.size for index, _ in taken] == [10, 3, 12, 5]
    index, probability = (np.concatenate(column) for column in zip(*taken, strict=True))
    np.testing.assert_array_equal(index, np.arange(30))
    np.testing.assert_allclose(probability, np.arange(30) / 100)
    assert pool.size == 0
    assert pool.all()[0].size == 0
