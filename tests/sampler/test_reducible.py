"""RHO-LOSS: the priority, the weights, and that it is an importance sampler."""

from __future__ import annotations

import numpy as np
import pytest

from sampler import ImportanceSampler, ReducibleSampler, priorities

from .lagging import SIZE
from .resuming import assert_resumes_at_every_moment
from .states import same_draw

LOSSES = np.array([3.0, 1.0, 5.0, 0.5])
REFERENCE = np.array([1.0, 2.0, 4.5, 0.5])
REDUCIBLE = np.array([2.0, 0.0, 0.5, 0.0])


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_formula(share):
    sampler = ReducibleSampler(4, reference=REFERENCE, losses=LOSSES, uniform_fraction=share, seed=0)
    assert sampler.priorities().tolist() == REDUCIBLE.tolist()
    p = (1 - share) * REDUCIBLE / 2.5 + share / 4
    np.testing.assert_allclose(sampler.probabilities(), p)


def test_unbiased_by_default_and_the_paper_without_weights():
    corrected, plain = (
        ReducibleSampler(4, reference=REFERENCE, losses=LOSSES, seed=0, **options) for options in ({}, {"beta": 0.0})
    )
    assert corrected.fully_corrected
    assert not plain.fully_corrected
    p = corrected.probabilities()
    draw = corrected.draw(100)
    np.testing.assert_allclose(draw.weight, 1 / (4 * p[draw.index]), rtol=1e-6)
    same = plain.draw(100)
    assert same.weight.tolist() == [1.0] * 100
    np.testing.assert_array_equal(same.index, draw.index)


def test_it_is_an_importance_sampler_with_another_priority():
    reference = np.arange(30) % 4 / 2.0
    ours = ReducibleSampler(30, reference=reference, seed=1)
    theirs = ImportanceSampler(30, priority=priorities.relative(reference), seed=1)
    for step in range(30):
        draws = [sampler.draw(4) for sampler in (ours, theirs)]
        assert same_draw(*draws)
        for sampler in (ours, theirs):
            sampler.update(draws[0].index, draws[0].index % 7 + 0.5, step=step)


@pytest.mark.parametrize("lag", [1, 3])
def test_killed_and_resumed_at_every_moment(lag):
    reference = np.arange(SIZE) % 3 / 2
    assert_resumes_at_every_moment(lambda **more: ReducibleSampler(SIZE, reference=reference, **more), lag)


def test_what_is_refused():
    with pytest.raises(ValueError, match="reference must have one number for each of 5 samples, got 4"):
        ReducibleSampler(5, reference=REFERENCE)
    with pytest.raises(ValueError, match="reference must be finite numbers, got nan for sample 1"):
        ReducibleSampler(2, reference=[0.0, np.nan])
    with pytest.raises(TypeError, match="priority"):
        ReducibleSampler(4, reference=REFERENCE, priority="sqrt")
