"""A priority that is made of scores: they take the place of the losses, which only tell what is finite."""

from __future__ import annotations

import numpy as np
import pytest

from sampler import ImportanceSampler, priorities

from .states import Unchanged, same, same_draw

N = 8


def scored(**options):
    options = {"first_pass": False, "uniform_fraction": 0.0, "seed": 0, **options}
    return ImportanceSampler(N, priority="gradient_norm", **options)


def test_the_score_is_the_priority():
    sampler = scored()
    sampler.update(np.arange(N), np.full(N, 100.0), score=np.arange(1.0, N + 1))
    np.testing.assert_array_equal(sampler.priorities(), np.arange(1.0, N + 1))
    np.testing.assert_allclose(sampler.probabilities(), np.arange(1.0, N + 1) / 36)


def test_scores_of_one_sample_are_averaged():
    sampler = scored()
    sampler.update([3, 3, 4], [1.0, 1.0, 1.0], score=[2.0, 6.0, 5.0])
    assert sampler.priorities()[[3, 4]].tolist() == [4.0, 5.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["loss", "score"])
def test_what_is_not_finite_changes_nothing(bad, where):
    sampler = scored()
    losses, scores = [1.0, 1.0], [2.0, 3.0]
    (losses if where == "loss" else scores)[0] = bad
    sampler.update([0, 1], losses, score=scores)
    assert sampler.priorities()[:2].tolist() == [1.0, 3.0]
    assert sampler.summary()["nonfinite"] == 1


def test_a_negative_loss_is_no_matter_but_a_negative_score_is():
    sampler = scored()
    sampler.update([0], [-1.0], score=[2.0])
    assert sampler.priorities()[0] == 2.0
    with Unchanged(sampler), pytest.raises(ValueError, match="gradient_norm"):
        sampler.update([1], [1.0], score=[-2.0])


def test_scores_must_be_given():
    sampler = scored()
    with Unchanged(sampler), pytest.raises(ValueError, match=r"draws by a score for each loss.*pass score=\.\.\."):
        sampler.update([0], [1.0])


def test_other_priorities_leave_the_score_alone():
    sampler = ImportanceSampler(N, seed=0)
    sampler.update([0, 1], [2.0, 3.0], score=[5.0, 7.0])
    assert sampler.priorities()[:2].tolist() == [2.0, 3.0]


def test_under_a_lag_and_over_a_restart():
    one, other = (scored(feedback_lag=2) for _ in range(2))
    for _ in range(6):
        draws = [sampler.draw(4) for sampler in (one, other)]
        assert same_draw(*draws)
        for sampler, draw in zip((one, other), draws, strict=True):
            sampler.update(draw.index, np.ones(4), step=draw.step, score=draw.index + 1.0)
        resumed = scored(feedback_lag=2)
        resumed.load_state_dict(other.state_dict())
        other = resumed
    assert same(one.state_dict(), other.state_dict())
    assert one.priorities().max() > 1.0


def test_a_state_of_another_priority_is_refused():
    with pytest.raises(ValueError, match="priority"):
        scored().load_state_dict(ImportanceSampler(N, first_pass=False, seed=0).state_dict())


def test_what_needs_losses_is_refused():
    with pytest.raises(ValueError, match="keep_losses=True keeps losses"):
        scored(keep_losses=True)
    sampler = ImportanceSampler(N, keep_losses=True, seed=0)
    with Unchanged(sampler), pytest.raises(ValueError, match="cannot be derived from losses"):
        sampler.set_priority("gradient_norm")


def test_by_rank_and_with_smoothing():
    ranked = scored(store="ranked")
    ranked.update(np.arange(N), np.ones(N), score=np.arange(1.0, N + 1))
    assert ranked.probabilities().argmax() == N - 1
    smoothed = scored(smoothing=0.5)
    smoothed.update([0], [1.0], score=[4.0])
    smoothed.update([0], [1.0], score=[2.0])
    assert smoothed.priorities()[0] == 3.0


def test_a_function_of_ones_own_may_ask_for_scores():
    def squared(scores):
        return scores**2

    squared.scored = True
    sampler = ImportanceSampler(N, priority=squared, seed=0)
    sampler.update([0], [9.0], score=[3.0])
    assert sampler.priorities()[0] == 9.0
    assert priorities.describe(priorities.gradient_norm) == "'gradient_norm'"


def test_the_time_it_takes_is_counted():
    sampler = scored()
    assert sampler.seconds == 0.0
    draw = sampler.draw(4)
    drawn = sampler.seconds
    assert drawn > 0.0
    sampler.update(draw.index, np.ones(4), step=draw.step, score=np.ones(4))
    assert sampler.seconds > drawn
