"""Several workers, each with a block of the samples: together they are unbiased, and nothing is lost between them."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from sampler import ImportanceSampler, PruningSampler, Shard, UniformSampler
from sampler.shard import block_of
from tests.sampler.siblings import SIBLINGS
from tests.sampler.states import same

N, B = 47, 8
LOSSES = np.random.default_rng(0).gamma(1.0, size=N)
OF_ANY_BLOCK = [
    name for name, make in SIBLINGS.items() if not make(9).epochs_vary and name not in ("reducible", "class-balanced")
]


def shards(world, make=ImportanceSampler, **options):
    """The shards of all workers."""
    return [
        Shard(N, rank=rank, world=world, make=lambda block: make(len(block), seed=block.start, **options))
        for rank in range(world)
    ]


def train(sampler, steps):
    made = []
    for _ in range(steps):
        draw = sampler.draw(B)
        sampler.update(draw.index, LOSSES[draw.index], step=draw.step)
        made.append(draw)
    return made


@pytest.mark.parametrize("world", [1, 2, 3, 4, 46, 47])
def test_blocks_are_all_of_the_samples_once(world):
    blocks = [block_of(N, rank, world) for rank in range(world)]
    assert [index for block in blocks for index in block] == list(range(N))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


@pytest.mark.parametrize("world", [1, 2, 4])
def test_together_they_are_unbiased(world):
    """Exactly: what a worker expects of w ℓ, by the p that its draws are made with, adds up to the mean loss."""
    expected = 0.0
    for shard in shards(world):
        train(shard, 30)
        p = shard.probabilities()
        draw = shard.draw(B)
        assert set(draw.index) <= set(shard.block)
        np.testing.assert_allclose(draw.probability, p[draw.index - shard.block.start] / world, rtol=1e-12)
        np.testing.assert_allclose(draw.weight, 1 / (N * draw.probability), rtol=3e-7)
        weight = world / (N * p)  # as the two lines above found of those drawn
        expected += float((p * weight * LOSSES[shard.block]).sum()) / world
    assert expected == pytest.approx(LOSSES.mean(), rel=1e-12)


def test_the_mean_of_what_is_drawn_is_that_of_the_losses():
    """False alarms: 1 in 15,000 (4 standard errors). Weights as if all blocks were alike are found out by it."""
    workers = shards(3)
    batches = [train(shard, 4010)[10:] for shard in workers]
    for scale, right in ((1.0, True), (None, False)):
        means = [
            [(draw.weight * LOSSES[draw.index]).mean() * (scale or N / (3 * len(shard.block))) for draw in made]
            for shard, made in zip(workers, batches, strict=True)
        ]
        found = np.mean(means, axis=0)
        error = found.std(ddof=1) / np.sqrt(found.size)
        assert (abs(found.mean() - LOSSES.mean()) < 4 * error) == right


@pytest.mark.parametrize("name", OF_ANY_BLOCK)
def test_a_shard_of_any_sampler_goes_on_from_its_state(name):
    for rank in range(3):
        shard, again = (
            Shard(N, rank=rank, world=3, make=lambda block, seed=seed: SIBLINGS[name](len(block), seed=seed))
            for seed in (1, 2)
        )
        for draw in train(shard, 12):
            assert set(draw.index) <= set(shard.block)
        again.load_state_dict(shard.state_dict())
        for one, other in zip(train(again, 5), train(shard, 5), strict=True):
            np.testing.assert_array_equal(one.index, other.index)
            np.testing.assert_array_equal(one.weight, other.weight)


def test_uniform_weights_make_up_for_the_sizes_of_blocks():
    for shard in shards(4, UniformSampler):
        np.testing.assert_allclose(shard.draw(B).weight, 4 * len(shard.block) / N, rtol=1e-7)


def test_rows_are_the_draws_one_by_one():
    one, other = (shards(3)[1] for _ in range(2))
    index, step = np.empty((4, B), np.int64), np.empty((4, B), np.int64)
    weight, probability = np.empty((4, B), np.float32), np.empty((4, B), np.float32)
    assert other.poll_rows(index, weight, probability, step, seconds=0.0) == 4
    for row in range(4):
        draw = one.poll(B, seconds=0.0)
        np.testing.assert_array_equal(index[row], draw.index)
        np.testing.assert_allclose(weight[row], draw.weight, rtol=2e-7)
        np.testing.assert_allclose(probability[row], draw.probability, rtol=2e-7)
        assert (step[row] == draw.step).all()


def test_a_poll_that_must_wait_gives_none():
    shard = shards(3, feedback_lag=1)[0]
    shard.draw(16)
    assert shard.poll(16, seconds=0.0) is None


def test_losses_go_to_the_worker_that_drew_the_sample():
    shard = shards(3)[1]
    before = shard.state_dict()
    for index in ([0], [20, 46], [-1], [N]):
        with pytest.raises(IndexError):
            shard.update(index, np.ones(len(index)))
    assert same(shard.state_dict(), before)


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (3, 5), (1, 3), (5, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"feedback_lag": 3},
        {"max_draws": 2},
        {"store": "ranked"},
        {"keep_losses": True, "priority": "clipped", "gate": "variance"},
    ],
    ids=str,
)
def test_another_number_of_workers_loses_nothing(before, after, options):
    old = shards(before, **options)
    for shard in old:
        train(shard, 20)
    new = shards(after, **options)
    for shard in new:
        shard.load_shards([one.state_dict() for one in old])
    for what in ("priorities", "ages"):
        one, other = (np.concatenate([getattr(shard, what)() for shard in some]) for some in (old, new))
        np.testing.assert_array_equal(one, other)
    assert sum(shard.summary()["seen"] for shard in new) == sum(shard.summary()["seen"] for shard in old) == N
    for shard in new:
        assert shard.step == 20
        for draw in train(shard, 10):
            assert set(draw.index) <= set(shard.block)
            np.testing.assert_allclose(draw.weight, 1 / (N * draw.probability), rtol=3e-7)


def test_new_workers_draw_each_by_numbers_of_their_own():
    old = shards(1)
    train(old[0], 20)
    new = shards(3)
    for shard in new:
        shard.load_shards([old[0].state_dict()])
    assert len({str(shard.state_dict()["sampler"]["generator"]["state"]) for shard in [*new, *old]}) == 4


def test_the_same_number_of_workers_goes_on_exactly():
    old = shards(3, feedback_lag=2)
    for shard in old:
        train(shard, 9)
        shard.draw(B)  # in flight
    new = shards(3, feedback_lag=2)
    for rank, shard in enumerate(new):
        shard.load_shards([one.state_dict() for one in reversed(old)])
        assert same(shard.state_dict(), old[rank].state_dict())


def test_in_the_first_pass_it_begins_anew():
    states = [shard.state_dict() for shard in shards(2) if train(shard, 1)]
    (shard,) = shards(1)
    shard.load_shards(states)
    assert sorted(np.concatenate([shard.draw(B).index for _ in range(6)])[:N]) == list(range(N))


def test_what_is_refused():
    (first, second), one = (shard.state_dict() for shard in shards(2)), shards(1)[0]
    for states in ([], [first], [first, first], [second, {**first, "num_samples": 48}]):
        with pytest.raises(ValueError, match="the states of all 47 samples are needed"):
            one.load_shards(states)
    for state in ({}, {"first": 0}, None, {**first, "sampler": 5}):
        with pytest.raises(ValueError, match="damaged, or not that of a Shard"):
            one.load_state_dict(state)
    with pytest.raises(ValueError, match=r"is of .* \(47, 0, 23\), this shard has \(47, 0, 47\); load_shards"):
        one.load_state_dict(first)
    train(one, 1)
    with pytest.raises(ValueError, match="this one has drawn or learnt"):
        one.load_shards([first, second])
    with pytest.raises(ValueError, match=r"of the 15 samples of its block, it gave one of 47: use len\(block\)"):
        Shard(N, rank=0, world=3, make=lambda block: ImportanceSampler(N))
    with pytest.raises(ValueError, match="epochs of a PruningSampler are of lengths that nobody knows"):
        Shard(N, rank=0, world=3, make=lambda block: PruningSampler(len(block)))
    for rank, world in ((-1, 2), (2, 2), (0, 0), (0, N + 1)):
        with pytest.raises(ValueError, match="must be"):
            Shard(N, rank=rank, world=world, make=lambda block: ImportanceSampler(len(block)))


def test_what_the_sampler_has_the_shard_has():
    shard = shards(3, feedback_lag=4, gate="variance")[2]
    assert (len(shard), shard.feedback_lag, shard.gated, shard.uses_feedback) == (N, 4, True, True)
    assert shard.epoch_samples == 16
    assert shard.stalest(3).tolist() == [31, 32, 33]
    assert not hasattr(shard, "no_such_thing")
    assert copy.copy(shard).block == shard.block
