"""Draws by rank: the formula and the weights, and that it is the ranked store with its own exponent."""

from __future__ import annotations

import numpy as np
import pytest

from sampler import ImportanceSampler, RankedSampler, RankedStore, weights

from .lagging import SIZE
from .resuming import assert_resumes_at_every_moment
from .states import same_draw

LOSSES = np.array([0.1, 50.0, 7.0, -3.0, 1e30])
RANKS = np.array([4, 2, 3, 5, 1])


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_formula(alpha, share):
    sampler = RankedSampler(5, alpha=alpha, losses=LOSSES, uniform_fraction=share, seed=0)
    p = RANKS**-alpha / (RANKS**-alpha).sum()
    np.testing.assert_allclose(sampler.probabilities(), (1 - share) * p + share / 5, rtol=1e-9)


def test_unbiased_by_default():
    sampler = RankedSampler(5, losses=LOSSES, seed=0)
    assert sampler.fully_corrected
    p = sampler.probabilities()
    draw = sampler.draw(400)
    np.testing.assert_allclose(draw.weight, 1 / (5 * p[draw.index]), rtol=1e-6)
    assert (p * (1 / (5 * p)) * LOSSES).sum() == pytest.approx(LOSSES.mean())


def test_the_schedule_of_the_paper():
    sampler = RankedSampler(5, beta=weights.linear(0.4, 1.0, 2), losses=LOSSES, seed=0)
    assert not sampler.fully_corrected
    p = sampler.probabilities()
    for beta in (0.4, 0.7, 1.0, 1.0):
        draw = sampler.draw(3)
        np.testing.assert_allclose(draw.weight, weights.importance_weight(p[draw.index], 5, beta), rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 0.7])
def test_without_a_uniform_share_no_weight_is_large(alpha):
    """Rank N has p near (1-α)/N, as the docstring says."""
    sampler = RankedSampler(100_000, alpha=alpha, losses=np.arange(1.0, 100_001.0), uniform_fraction=0.0)
    largest = 1 / (100_000 * sampler.probabilities()[0])
    assert largest == pytest.approx(1 / (1 - alpha), rel=0.05)


def test_one_in_a_hundred_gets_a_quarter_of_the_draws():
    sampler = RankedSampler(100_000, losses=np.arange(1.0, 100_001.0), uniform_fraction=0.0)
    assert sampler.probabilities()[-1000:].sum() == pytest.approx(0.25, abs=0.02)


def test_it_is_an_importance_sampler_with_another_store():
    ours = RankedSampler(30, alpha=0.5, smoothing=0.3, seed=1)
    theirs = ImportanceSampler(30, store=RankedStore(30, alpha=0.5), smoothing=0.3, seed=1)
    for step in range(30):
        draws = [sampler.draw(4) for sampler in (ours, theirs)]
        assert same_draw(*draws)
        for sampler in (ours, theirs):
            sampler.update(draws[0].index, draws[0].index % 7 + 0.5, step=step)


@pytest.mark.parametrize("lag", [1, 3])
def test_killed_and_resumed_at_every_moment(lag):
    assert_resumes_at_every_moment(lambda **more: RankedSampler(SIZE, **more), lag)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 10\], got -1"):
        RankedSampler(5, alpha=-1)
    with pytest.raises(TypeError, match="store"):
        RankedSampler(5, store="proportional")
    state = RankedSampler(5, alpha=0.5).state_dict()
    with pytest.raises(ValueError, match=r"alpha=0.5.*alpha=0.7"):
        RankedSampler(5).load_state_dict(state)
