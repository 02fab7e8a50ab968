"""Data that have grown at their end: what was known of the first samples stays, the new ones come to it."""

from __future__ import annotations

import numpy as np
import pytest

from sampler import ClassBalancedSampler, ImportanceSampler, PruningSampler, UniformSampler
from tests.sampler.siblings import SIBLINGS

BEFORE, AFTER, B = 40, 47, 8


def learnt(name: str, steps: int):
    """A sampler of ``BEFORE`` samples after so many steps; the loss of sample i is i mod 5."""
    sampler = SIBLINGS[name](BEFORE, seed=0)
    for _ in range(steps):
        draw = sampler.draw(B)
        sampler.update(draw.index, draw.index % 5, step=draw.step)
    return sampler


@pytest.mark.fault(13)
@pytest.mark.parametrize("steps", [3, 30])  # in the first pass, and long after it
@pytest.mark.parametrize("name", SIBLINGS)
def test_every_sampler_goes_on_with_more_samples(name, steps):
    sampler = learnt(name, steps)
    grown = SIBLINGS[name](AFTER, seed=1)
    with pytest.raises(ValueError, match=r"of 40 samples, the sampler has 47; .*extend=True"):
        grown.load_state_dict(sampler.state_dict())
    grown.load_state_dict(sampler.state_dict(), extend=True)
    if "class" not in name:  # whose priorities follow from how many there are of each
        np.testing.assert_array_equal(grown.priorities()[:BEFORE], sampler.priorities())
    assert grown.summary()["seen"] == sampler.summary()["seen"] + (7 if "known" in name else 0)
    assert grown.step == steps
    assert grown.probabilities().sum() == pytest.approx(1.0)
    seen = np.zeros(AFTER, np.int64)
    for _ in range(60):
        draw = grown.draw(B)
        np.add.at(seen, draw.index, 1)
        grown.update(draw.index, draw.index % 5, step=draw.step)
    assert (seen[BEFORE:] > 0).all() or getattr(grown, "uniform_fraction", 1.0) == 0.0
    if grown.uses_feedback:
        assert grown.summary()["seen"] == AFTER


def test_after_the_first_pass_the_new_ones_have_the_mean_priority():
    sampler, grown = learnt("as it comes", 30), ImportanceSampler(AFTER, seed=1)
    grown.load_state_dict(sampler.state_dict(), extend=True)
    draw = grown.draw(B)
    np.testing.assert_allclose(grown.priorities()[BEFORE:], sampler.priorities().mean(), rtol=1e-6)
    np.testing.assert_allclose(draw.weight, 1 / (AFTER * draw.probability), rtol=1e-6)
    np.testing.assert_allclose(draw.probability, grown.probabilities()[draw.index])


def test_before_its_end_it_begins_anew():
    grown = ImportanceSampler(AFTER, seed=1)
    grown.load_state_dict(learnt("as it comes", 3).state_dict(), extend=True)
    drawn = np.concatenate([grown.draw(B).index for _ in range(5)])
    assert len(set(drawn)) == 5 * B
    assert grown.draw(B).weight.tolist()[:7] == [1.0] * 7


def test_a_pass_begins_with_all_of_them():
    for make in (UniformSampler, PruningSampler):
        sampler = make(BEFORE, seed=0)
        sampler.draw(B)
        grown = make(AFTER, seed=1)
        grown.load_state_dict(sampler.state_dict(), extend=True)
        assert sorted(grown.draw(AFTER).index) == list(range(AFTER))


def test_draws_in_flight_are_handed_out_as_they_were():
    sampler, grown = (ImportanceSampler(n, feedback_lag=3, seed=n) for n in (BEFORE, AFTER))
    draws = [sampler.draw(B) for _ in range(3)]
    sampler.update(draws[0].index, draws[0].index, step=0)
    grown.load_state_dict(sampler.state_dict(), extend=True)
    for draw in draws[1:]:
        again = grown.draw(B)
        for one, other in zip(draw, again, strict=True):
            np.testing.assert_array_equal(one, other)


def test_class_balanced_by_the_labels_there_are_now():
    labels = np.arange(AFTER) % 3 // 2
    grown = ClassBalancedSampler(AFTER, labels=labels, seed=1)
    fresh = grown.probabilities()
    grown.load_state_dict(ClassBalancedSampler(BEFORE, labels=labels[:BEFORE], seed=0).state_dict(), extend=True)
    np.testing.assert_array_equal(grown.probabilities(), fresh)


def test_what_cannot_be_extended():
    state = learnt("as it comes", 30).state_dict()
    used = ImportanceSampler(AFTER)
    used.draw(1)
    with pytest.raises(ValueError, match="this one has drawn or learnt"):
        used.load_state_dict(state, extend=True)
    with pytest.raises(ValueError, match="of 40 samples, the sampler has 30"):
        ImportanceSampler(30).load_state_dict(state, extend=True)
    fresh = ImportanceSampler(AFTER, seed=1)
    before = fresh.probabilities()
    for damaged in (
        {**state, "store": {"priorities": np.ones(3)}},
        {key: state[key] for key in ("format", "sampler", "num_samples")},
    ):
        with pytest.raises(ValueError, match="damaged"):
            fresh.load_state_dict(damaged, extend=True)
    np.testing.assert_array_equal(fresh.probabilities(), before)
    same = ImportanceSampler(BEFORE)
    same.load_state_dict(state, extend=True)  # nothing to extend
    assert same.step == 30
