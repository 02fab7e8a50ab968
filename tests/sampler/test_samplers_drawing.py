"""The contract of the samplers, one table of tests over all siblings: what a draw is, and the first pass."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from sampler import ImportanceSampler, UniformSampler, weights

from .chance import chi_square_rejects
from .siblings import HAS_PASSES, SIBLINGS, learner, train
from .states import Unchanged, same_draw


@pytest.fixture(params=SIBLINGS)
def make(request):
    return SIBLINGS[request.param]


# --- what every sampler does


def test_it_knows_its_size(make):
    assert len(make(7)) == 7


def test_what_a_draw_is(make):
    sampler = make(50, seed=1)
    for step, draw in enumerate(train(sampler, 30)):
        assert draw._fields == ("step", "index", "probability", "weight")
        assert type(draw.step) is int
        assert draw.step == step
        assert draw.index.dtype == np.int64
        assert draw.probability.dtype == np.float64
        assert draw.weight.dtype == np.float32
        for column in draw[1:]:
            assert column.shape == (4,)
            assert not column.flags.writeable
        assert draw.index.min() >= 0
        assert draw.index.max() < 50
        assert (draw.probability > 0).all()
        assert (draw.probability <= 1).all()
        assert (draw.weight > 0).all()
    assert sampler.step == 30


@pytest.mark.fault(30)
def test_a_draw_is_frozen_while_the_sampler_moves_on(make):
    sampler = make(20, seed=2)
    first = sampler.draw(4)
    kept = tuple(np.copy(column) for column in first)
    sampler.update(first.index, [1, 2, 3, 4], step=first.step)
    train(sampler, 10)
    assert all(np.array_equal(old, new) for old, new in zip(kept, first, strict=True))


@pytest.mark.parametrize("batch", [1, 4, 19, 20])
def test_every_batch_has_its_size(make, batch):
    assert all(draw.index.size == batch for draw in train(make(20, seed=3), 12, batch))


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        (0, ValueError),
        (-3, ValueError),
        (2.0, TypeError),
        ("4", TypeError),
        (True, TypeError),
        (None, TypeError),
    ],
)
def test_a_batch_size_that_is_none(make, batch, error):
    sampler = make(20, seed=3)
    with Unchanged(sampler), pytest.raises(error, match="batch_size must be"):
        sampler.draw(batch)


@pytest.mark.parametrize("size", [1, 2, 17, 300])
def test_probabilities_and_priorities(make, size):
    sampler = make(size, seed=4)
    for _ in range(5):
        probabilities, priorities = sampler.probabilities(), sampler.priorities()
        for values in (probabilities, priorities):
            assert values.shape == (size,)
            assert values.dtype == np.float64
            assert (values >= 0).all()
        assert probabilities.sum() == pytest.approx(1.0, rel=1e-12)
        probabilities[:], priorities[:] = 7.0, 7.0  # copies: nothing happens
        train(sampler, 3, batch=1)
    assert sampler.probabilities().sum() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.fault(10)
def test_a_single_sample_has_weight_one(make):
    for draw in train(make(1, seed=5), 6, batch=1):
        assert draw.index.tolist() == [0]
        assert draw.probability.tolist() == [1.0]
        assert draw.weight.tolist() == [1.0]


def test_summary(make):
    sampler = make(20, seed=6)
    empty = sampler.summary()
    assert all(type(value) in (int, float) for value in empty.values())
    assert {
        "step",
        "seen",
        "nonfinite",
        "effective_sample_size",
        "max_weight",
        "mean_priority",
    } <= empty.keys()
    assert empty["step"] == empty["nonfinite"] == empty["updates"] == 0
    draws = train(sampler, 10)
    summary = sampler.summary()
    assert summary.keys() == empty.keys()
    assert summary["step"] == summary["updates"] == 10
    assert summary["mean_priority"] == pytest.approx(sampler.priorities().mean(), rel=1e-9)
    weight = np.concatenate([draw.weight for draw in draws]).astype(float)
    assert summary["max_weight"] == pytest.approx(weight.max(), rel=1e-6)
    assert summary["effective_sample_size"] == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), rel=1e-6)
    assert summary["effective_fraction"] == pytest.approx(summary["effective_sample_size"] / 40, rel=1e-9)


def test_seen_are_the_samples_with_a_finite_loss(make):
    sampler = make(20, seed=7)
    known = sampler.summary()["seen"]
    assert known in (0, 20)
    draw = sampler.draw(4)
    sampler.update(draw.index, [1.0, np.nan, 2.0, np.inf], step=None)
    seen = {index for index, loss in zip(draw.index.tolist(), [1, 0, 2, 0], strict=True) if loss}
    assert sampler.summary()["seen"] == (known or len(seen))
    sampler.update(draw.index, [1.0, 1.0, 1.0, 1.0])
    assert sampler.summary()["seen"] == (known or len(set(draw.index.tolist())))
    assert sampler.summary()["nonfinite"] == 2


# --- the first pass


@pytest.mark.parametrize("name", HAS_PASSES)
@pytest.mark.parametrize(("size", "batch"), [(12, 4), (13, 4), (50, 7), (257, 16), (4, 4), (3, 1)])
def test_first_every_sample_once_in_shuffled_order_at_weight_one(name, size, batch):
    draws = train(SIBLINGS[name](size, seed=8), -(-size // batch), batch)
    whole = slice(0, size // batch)
    for draw in draws[whole]:
        assert draw.probability.tolist() == [1 / size] * batch
        assert draw.weight.tolist() == [1.0] * batch
    order = np.concatenate([draw.index for draw in draws])[:size]
    assert sorted(order) == list(range(size))
    if size > 10:
        assert order.tolist() != sorted(order)


@pytest.mark.parametrize("name", [name for name in HAS_PASSES if hasattr(SIBLINGS[name](1), "_beta_at")])
def test_the_batch_that_ends_the_first_pass(name):
    sampler = SIBLINGS[name](10, seed=9)
    before = np.concatenate([draw.index for draw in train(sampler, 2, 4)])
    beta = sampler._beta_at(sampler.step)
    draw = sampler.draw(4)
    assert sorted([*before, *draw.index[:2]]) == list(range(10))
    assert draw.weight[:2].tolist() == [1.0, 1.0]
    assert draw.probability[:2].tolist() == [0.1, 0.1]
    expected = weights.importance_weight(draw.probability[2:], 10, beta)
    np.testing.assert_allclose(draw.weight[2:], expected, rtol=2e-7)
    if name == "distinct, half corrected":
        assert draw.index[2] != draw.index[3]


@pytest.mark.parametrize("name", [name for name in HAS_PASSES if not name.startswith(("uniform", "distinct"))])
@pytest.mark.fault(11)
def test_a_batch_larger_than_the_data_set(name):
    sampler = SIBLINGS[name](5, seed=10)
    first, second = train(sampler, 2, 12)
    assert sorted(first.index[:5]) == list(range(5))
    assert first.weight[:5].tolist() == [1.0] * 5
    assert first.index.size == second.index.size == 12


@pytest.mark.fault(11)
def test_a_batch_larger_than_the_data_set_without_replacement():
    sampler = ImportanceSampler(5, scheme="without_replacement", seed=10)
    with (
        Unchanged(sampler),
        pytest.raises(ValueError, match="6 samples cannot be drawn without replacement from 5"),
    ):
        sampler.draw(6)
    assert np.unique(sampler.draw(5).index).size == 5
    assert np.unique(sampler.draw(5).index).size == 5


def test_the_first_pass_can_be_left_out():
    sampler = ImportanceSampler(3, first_pass=False, initial_priority=2.0, uniform_fraction=0.0, seed=0)
    sampler.update([0], [100.0])
    counts = np.bincount(np.concatenate([sampler.draw(10).index for _ in range(100)]), minlength=3)
    assert counts[0] > 900
    assert sampler.priorities().tolist() == [100.0, 2.0, 2.0]


@pytest.mark.parametrize("name", ["as it comes", "uniform"])
def test_each_sample_comes_first_alike(name):
    """Chi-square over the first sample of a pass, 4,000 seeds."""
    first = [SIBLINGS[name](7, seed=seed).draw(1).index.item() for seed in range(4000)]
    assert not chi_square_rejects(np.bincount(first, minlength=7), np.full(7, 4000 / 7), 6)


def test_uniform_passes_are_whole_and_each_in_an_order_of_its_own():
    sampler = UniformSampler(10, seed=11)
    drawn = np.concatenate([sampler.draw(4).index for _ in range(25)]).reshape(10, 10)
    assert (np.sort(drawn) == np.arange(10)).all()
    assert len({tuple(one_pass) for one_pass in drawn.tolist()}) == 10


def test_a_uniform_batch_can_span_several_passes():
    sampler = UniformSampler(3, seed=12)
    draw = sampler.draw(11)
    assert (np.sort(draw.index[:9].reshape(3, 3)) == np.arange(3)).all()
    assert draw.weight.tolist() == [1.0] * 11
    assert np.unique([*draw.index[9:], *sampler.draw(1).index]).size == 3


def test_feedback_changes_no_uniform_draw():
    told, untold = UniformSampler(10, seed=13), UniformSampler(10, seed=13)
    train(told, 20)
    for _ in range(20):
        untold.draw(4)
    assert same_draw(told.draw(4), untold.draw(4))
    assert told.priorities().tolist() == [1.0] * 10
    assert told.probabilities().tolist() == [0.1] * 10


# --- weights


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scheme", ["systematic", "multinomial", "stratified", "without_replacement"])
def test_weights_are_those_of_the_formula(scheme, beta):
    losses = np.random.default_rng(0).pareto(1.0, 100)
    sampler = ImportanceSampler(100, losses=losses, scheme=scheme, beta=beta, seed=0)
    probabilities = sampler.probabilities()
    np.testing.assert_allclose(probabilities, 0.7 * losses / losses.sum() + 0.003, rtol=1e-6)
    for _ in range(20):
        draw = sampler.draw(8)
        np.testing.assert_allclose(draw.weight, (1 / (100 * draw.probability)) ** beta, rtol=2e-7)
        if scheme != "without_replacement":
            np.testing.assert_allclose(draw.probability, probabilities[draw.index], rtol=1e-12)


def test_beta_can_be_a_schedule_of_the_step():
    asked = []

    def schedule(step):
        asked.append(step)
        return min(step / 4, 1.0)

    sampler = ImportanceSampler(3, losses=[1.0, 2.0, 5.0], beta=schedule, seed=0)
    for step in range(6):
        draw = sampler.draw(5)
        expected = (1 / (3 * draw.probability)) ** min(step / 4, 1.0)
        np.testing.assert_allclose(draw.weight, expected, rtol=2e-7)
    assert asked == list(range(6))


@pytest.mark.parametrize(
    ("value", "error"), [(-0.1, ValueError), (1.1, ValueError), (np.nan, ValueError), ("1", TypeError)]
)
def test_a_schedule_that_leaves_its_range(value, error):
    sampler = ImportanceSampler(3, losses=[1.0, 2.0, 5.0], beta=lambda step: value, seed=0)
    with Unchanged(sampler), pytest.raises(error, match=r"beta\(0\) must be"):
        sampler.draw(2)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("scheme", ["systematic", "multinomial", "stratified", "without_replacement"])
def test_no_weight_exceeds_one_over_the_uniform_fraction(scheme, share):
    losses = np.zeros(64)
    losses[::16] = [1e30, 1.0, 1e308, 1e3]
    sampler = ImportanceSampler(64, losses=losses, uniform_fraction=share, scheme=scheme, seed=0)
    largest = max(sampler.draw(16).weight.max() for _ in range(50))
    assert largest <= 1 / share * (1 + 1e-6)
    if share < 1 and scheme == "multinomial":
        assert largest >= 1 / share * (1 - 1e-6)  # and it is reached


# --- no priorities at all


@pytest.mark.fault(4)
def test_all_zero_means_uniform_and_is_said_once(caplog):
    sampler = learner(4, initial_priority=0.0)
    with caplog.at_level(logging.WARNING, logger="sampler"):
        counts = np.bincount(np.concatenate([sampler.draw(8).index for _ in range(10)]), minlength=4)
    assert counts.tolist() == [20] * 4
    assert sampler.probabilities().tolist() == [0.25] * 4
    assert sampler.draw(2).weight.tolist() == [1.0, 1.0]
    assert [record.getMessage() for record in caplog.records] == [
        "all priorities are zero; draws are uniform until one is not"
    ]
    sampler.update([2], [5.0])
    assert set(sampler.draw(8).index.tolist()) == {2}


def test_zero_priorities_are_not_drawn_without_a_floor_and_positive_ones_can_be():
    losses = np.zeros(300)
    positive = np.array([1, 17, 255, 256, 299])
    losses[positive] = [1.0, 2.0, 3.0, 4.0, 5.0]
    for scheme in ("systematic", "multinomial", "stratified", "without_replacement"):
        sampler = ImportanceSampler(300, losses=losses, uniform_fraction=0.0, scheme=scheme, seed=0)
        drawn = np.concatenate([sampler.draw(4).index for _ in range(100)])
        assert np.unique(drawn).tolist() == positive.tolist()


def test_more_distinct_samples_than_have_a_chance():
    sampler = ImportanceSampler(4, losses=[0, 1, 0, 1], uniform_fraction=0.0, scheme="without_replacement", seed=0)
    assert sorted(sampler.draw(2).index) == [1, 3]
    with pytest.raises(ValueError, match=r"3 distinct samples .* only 2 have a priority.*uniform_fraction above 0"):
        sampler.draw(3)
    assert sampler.priorities().tolist() == [0, 1, 0, 1]
    assert sorted(sampler.draw(2).index) == [1, 3]


def test_ascending_batches():
    losses = np.random.default_rng(1).random(500)
    ascending = ImportanceSampler(500, losses=losses, ascending=True, seed=0)
    shuffled = ImportanceSampler(500, losses=losses, seed=0)
    one, other = ascending.draw(64), shuffled.draw(64)
    assert (np.diff(one.index) >= 0).all()
    assert (np.diff(other.index) < 0).any()
    assert np.array_equal(np.sort(other.index), one.index)
    np.testing.assert_allclose(other.probability, ascending.probabilities()[other.index], rtol=1e-12)
