"""Selective Backprop: percentiles, the frequency of each sample in closed form, no weights; resuming."""

from __future__ import annotations

import numpy as np
import pytest

from sampler import SelectiveSampler
from sampler.quantiles import Window
from sampler.samplers.selective import percentiles

from .chance import suspects
from .lagging import SIZE
from .resuming import assert_resumes_at_every_moment

LOSSES = np.array([0.5, 3.0, -1.0, 0.5, 7.0, 2.0, 0.5, 1e30])
PERCENTILES = np.array([5, 11, 1, 5, 13, 9, 5, 15]) / 16  # below it, and half of those equal
PASSES = 3000


def told(losses=LOSSES, **options):
    """A sampler that knows these losses, at the beginning of its second pass."""
    sampler = SelectiveSampler(len(losses), seed=0, **options)
    draw = sampler.draw(len(losses))
    sampler.update(draw.index, np.asarray(losses)[draw.index], step=draw.step)
    return sampler


def counts_of(sampler, passes=PASSES):
    """How often each sample was kept in so many passes that a draw of one sample each begins."""
    counts = np.zeros(len(sampler))
    for _ in range(passes):
        draw = sampler.draw(1)
        counts[sampler._kept] += 1
        while not sampler.ends_epoch(draw.step):
            draw = sampler.draw(1)
    return counts


def test_percentiles_are_those_of_the_window_of_recent_losses():
    assert percentiles(LOSSES).tolist() == PERCENTILES.tolist()
    window = Window(100)
    window.push(LOSSES)
    np.testing.assert_array_equal(percentiles(LOSSES), window.percentile_of(LOSSES))
    assert percentiles(np.random.default_rng(0).integers(0, 9, 1000)).mean() == pytest.approx(0.5)


@pytest.mark.parametrize("selectivity", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_the_chance_is_a_power_of_the_percentile(selectivity):
    sampler = told(selectivity=selectivity)
    draw = sampler.draw(1)
    chance = PERCENTILES**selectivity
    np.testing.assert_allclose(sampler.priorities(), chance)
    np.testing.assert_allclose(sampler.probabilities(), chance / chance.sum())
    np.testing.assert_allclose(draw.probability, (chance / chance.sum())[draw.index])


def kept_as_expected(sampler, selectivity=1.0):
    """Each sample's count is a sum of independent coins; the false-alarm rate is that of chance.py."""
    chance = PERCENTILES**selectivity
    return suspects(counts_of(sampler), PASSES * chance, PASSES * chance * (1 - chance)).size == 0


@pytest.mark.parametrize("selectivity", [0.0, 1.0, 2.0])
def test_each_sample_is_kept_as_often_as_that(selectivity):
    assert kept_as_expected(told(selectivity=selectivity), selectivity)


@pytest.mark.parametrize("fault", ["another exponent", "another sample", "uniform"])
def test_the_test_of_frequencies_sees_planted_faults(fault):
    losses = {"another sample": np.roll(LOSSES, 1), "uniform": np.ones(8)}.get(fault, LOSSES)
    assert not kept_as_expected(told(losses, selectivity=1.3 if fault == "another exponent" else 1.0))


def test_who_is_kept_is_drawn_once_in_a_pass():
    sampler = told(np.arange(50.0))
    for _ in range(10):
        drawn = [sampler.draw(1)]
        kept = sampler._kept.tolist()
        while not sampler.ends_epoch(drawn[-1].step):
            drawn.append(sampler.draw(1))
        assert sorted(draw.index.item() for draw in drawn) == kept


def test_biased_on_purpose_and_says_so():
    sampler = told(selectivity=2.0)
    assert sampler.fully_corrected is False
    for _ in range(20):
        assert sampler.draw(3).weight.tolist() == [1.0, 1.0, 1.0]
    assert sampler.summary()["max_weight"] == 1.0


def test_a_sample_without_a_loss_is_kept():
    losses = LOSSES.copy()
    losses[[0, 2]] = np.nan
    sampler = told(losses, selectivity=3.0)
    counts = counts_of(sampler, 50)
    assert counts[[0, 2]].tolist() == [50, 50]
    assert counts[1] < 50


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("selectivity", [1.0, 100.0, 1e6])
def test_somebody_is_in_every_pass(size, selectivity):
    sampler = told(np.arange(float(size)), selectivity=selectivity)
    counts = counts_of(sampler, 100)
    assert counts.max() > 0
    assert (sampler.priorities() > 0).all()
    assert (sampler.draw(7).probability > 0).all()


def test_the_share_kept_is_near_that_of_the_docstring():
    for selectivity in (1.0, 2.0):
        sampler = told(np.arange(2000.0), selectivity=selectivity)
        sampler.draw(1)
        assert sampler.summary()["mean_priority"] == pytest.approx(1 / (1 + selectivity), rel=1e-3)
        assert sampler.summary()["kept_fraction"] == pytest.approx(1 / (1 + selectivity), abs=0.07)


@pytest.mark.parametrize("lag", [1, 3])
def test_killed_and_resumed_at_every_moment(lag):
    draws = assert_resumes_at_every_moment(lambda **more: SelectiveSampler(SIZE, **more), lag)
    assert any((draw.probability != 1 / SIZE).any() for draw in draws)


@pytest.mark.parametrize("selectivity", [-1.0, np.inf, np.nan])
def test_arguments_are_checked(selectivity):
    with pytest.raises(ValueError, match=r"selectivity must be in \[0, inf\), got"):
        SelectiveSampler(8, selectivity=selectivity)
