"""What ``update`` learns from the losses, and what it refuses."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest

from sampler import ImportanceSampler, UniformSampler

from .siblings import SIBLINGS, learner, train
from .slow_twin import SMALLEST
from .states import Unchanged


@pytest.fixture(params=SIBLINGS)
def make(request):
    return SIBLINGS[request.param]


# --- what update learns


@pytest.mark.parametrize(
    ("priority", "formula"),
    [
        ("loss", lambda x: x),
        ("sqrt", math.sqrt),
        ("bounded", lambda x: 1 - math.exp(-x)),
        (lambda x: x**2, lambda x: x * x),
    ],
)
def test_a_loss_becomes_a_priority(priority, formula):
    sampler = learner(priority=priority)
    sampler.update([4, 2], [3.0, 0.25])
    expected = [1, 1, formula(0.25), 1, formula(3.0), 1]
    np.testing.assert_allclose(sampler.priorities(), expected, rtol=1e-7)
    np.testing.assert_allclose(sampler.probabilities(), np.array(expected) / sum(expected), rtol=1e-7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_update_takes_what_asarray_takes(dtype, kind):
    sampler = learner()
    sampler.update(kind(np.array([5, 0], np.int32)), kind(np.array([2, 8], dtype)), step=np.int32(3))
    assert sampler.priorities().tolist() == [8, 1, 1, 1, 1, 2]


def test_an_empty_update_is_none(make):
    sampler = make(6, seed=0)
    with Unchanged(sampler):
        sampler.update([], [])
        sampler.update([], [], step=0)
        sampler.update([], [], step=[], score=[])
        with pytest.raises(TypeError, match="step must be an integer"):
            sampler.update([], [], "x")
        with pytest.raises(ValueError, match="step must be in"):
            sampler.update([], [], -1)


@pytest.mark.fault(6)
def test_a_sample_given_twice_counts_with_the_mean_of_its_finite_losses():
    sampler = learner()
    sampler.update([3, 1, 3, 3, 1], [2.0, np.nan, 4.0, np.inf, 5.0])
    assert sampler.priorities().tolist() == [1, 5, 1, 3, 1, 1]
    assert sampler.summary()["nonfinite"] == 2


def test_the_mean_is_of_losses_not_of_priorities():
    sampler = learner(priority="sqrt")
    sampler.update([0, 0], [1.0, 7.0])
    assert sampler.priorities()[0] == 2.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.fault(1)
def test_a_loss_that_is_not_finite_leaves_the_priority_and_is_said_with_its_index(make, bad, caplog):
    sampler = make(40, seed=1)
    draw = train(sampler, 10)[-1]
    draw = sampler.draw(4)
    before = sampler.priorities()
    losses = np.array([1.0, bad, 1.0, bad])
    losses[draw.index == draw.index[1]] = losses[draw.index == draw.index[3]] = bad
    with caplog.at_level(logging.WARNING, logger="sampler"):
        sampler.update(draw.index, losses, step=None)
    after = sampler.priorities()
    assert (after[draw.index[[1, 3]]] == before[draw.index[[1, 3]]]).all()
    assert np.isfinite(after).all()
    (record,) = caplog.records
    assert record.name == "sampler"
    assert str(draw.index[1]) in record.getMessage().split("index")[1]
    assert str(draw.index[3]) in record.getMessage().split("index")[1]
    assert sampler.summary()["nonfinite"] == np.count_nonzero(~np.isfinite(losses))


def test_many_losses_that_are_not_finite_are_said_in_one_short_line(caplog):
    sampler = learner(1000)
    sampler.update(np.arange(1000), np.full(1000, np.nan))
    (record,) = caplog.records
    assert "1000 losses were not finite" in record.getMessage()
    assert record.getMessage().endswith("9, ...")


@pytest.mark.fault(1)
def test_ten_updates_in_a_row_without_a_finite_loss_are_an_error(make):
    sampler = make(40, seed=2)
    for _ in range(9):
        draw = sampler.draw(1)
        sampler.update(draw.index, [np.nan], step=draw.step)
    sampler.update(draw.index, [1.0])  # one finite loss, and counting begins anew
    for _ in range(9):
        draw = sampler.draw(2)
        sampler.update(draw.index, [np.inf, np.nan], step=draw.step)
    for _ in range(2):
        with (
            Unchanged(sampler),
            pytest.raises(ValueError, match=r"10 updates in a row held no finite loss.*diverged"),
        ):
            sampler.update([0, 1], [np.nan, np.nan])
    sampler.update([0], [1.0])
    sampler.update([0], [np.nan])


def test_how_many_updates_in_a_row_is_an_option():
    sampler = ImportanceSampler(5, max_nonfinite_updates=1)
    with Unchanged(sampler), pytest.raises(ValueError, match=r"1 updates in a row.*max_nonfinite_updates"):
        sampler.update([0], [np.nan])


def test_a_function_of_the_user_is_not_asked_about_no_losses():
    sampler = learner(priority=lambda losses: losses / losses.max())
    sampler.update([0], [np.nan])
    sampler.update([1], [4.0], step=7)
    sampler.update([1], [9.0], step=6)
    assert sampler.priorities().tolist() == [1.0] * 6


@pytest.mark.parametrize("value", [1e308, 3.5e38, 1e-45, 5e-324, 1e-300])
@pytest.mark.fault(2)
def test_priorities_are_clamped_into_float32(value):
    sampler = learner(3, priority=lambda losses: losses)
    sampler.update([0, 1, 2], [value, value, 0.0])
    priorities = sampler.priorities()
    assert priorities[0] == (float(np.finfo(np.float32).max) if value > 1 else SMALLEST)
    assert priorities[2] == 0.0
    assert sampler.probabilities().tolist() == [0.5, 0.5, 0.0]
    draw = sampler.draw(8)
    assert np.bincount(draw.index, minlength=3).tolist() == [4, 4, 0]
    assert np.isfinite(sampler.summary()["mean_priority"])


@pytest.mark.fault(2)
def test_a_priority_of_infinity_is_the_largest():
    sampler = learner(2, priority=lambda losses: losses * np.inf)
    sampler.update([0], [1.0])
    assert sampler.priorities()[0] == float(np.finfo(np.float32).max)


# --- smoothing


def test_smoothing_keeps_a_share_of_the_old_and_lets_the_first_count_whole():
    sampler = learner(smoothing=0.75)
    sampler.update([0, 1], [8.0, 16.0])
    assert sampler.priorities().tolist() == [8, 16, 1, 1, 1, 1]
    sampler.update([0, 2], [4.0, 4.0])
    assert sampler.priorities().tolist() == [0.75 * 8 + 0.25 * 4, 16, 4, 1, 1, 1]


def test_a_first_loss_that_is_not_finite_is_no_first_loss():
    sampler = learner(smoothing=0.5)
    sampler.update([0], [np.nan])
    sampler.update([0], [9.0])
    assert sampler.priorities()[0] == 9.0


def test_known_losses_are_smoothed_from_the_start():
    sampler = learner(3, losses=[8.0, np.nan, 2.0], smoothing=0.5, initial_priority=5.0)
    assert sampler.priorities().tolist() == [8, 5, 2]
    assert sampler.summary()["seen"] == 2
    assert sampler.summary()["nonfinite"] == 1
    sampler.update([0, 1], [4.0, 4.0])
    assert sampler.priorities().tolist() == [6, 4, 2]
    assert sampler.draw(1).probability[0] < 1  # no first pass


# --- steps: what is late


@pytest.mark.fault(30)
def test_a_late_loss_is_passed_over():
    sampler = learner()
    sampler.update([3, 4], [5.0, 5.0], step=10)
    sampler.update([3, 2], [9.0, 2.0], step=8)  # late for 3 alone
    assert sampler.priorities().tolist() == [1, 1, 2, 5, 5, 1]
    assert sampler.summary()["late"] == 1
    sampler.update([3], [6.0], step=10)  # as new as what is known
    sampler.update([2], [3.0], step=9)
    assert sampler.priorities().tolist() == [1, 1, 3, 6, 5, 1]
    assert sampler.summary()["late"] == 1


def test_steps_of_each_report():
    sampler = learner()
    sampler.update([0, 1, 2], [5.0, 5.0, 5.0], step=[3, 5, 7])
    sampler.update([0, 1, 2], [8.0, 8.0, 8.0], step=[4, 4, 8])
    assert sampler.priorities().tolist() == [8, 5, 8, 1, 1, 1]
    sampler.update([5, 5], [2.0, 4.0], step=[1, 9])
    sampler.update([5], [100.0], step=8)
    assert sampler.priorities()[5] == 3.0


def test_no_step_means_newer_than_all():
    sampler = learner()
    sampler.update([0, 1], [5.0, 5.0], step=10)
    sampler.update([0], [7.0])  # although but few draws were made
    sampler.update([0, 1], [1.0, 6.0], step=10)
    assert sampler.priorities()[:2].tolist() == [7, 6]
    sampler.update([0], [8.0])
    sampler.update([0], [9.0], step=11)
    assert sampler.priorities()[0] == 9.0


def test_no_step_is_older_than_a_draw_made_after_it():
    sampler = learner()
    early = sampler.draw(2)
    sampler.update(early.index, [4.0, 4.0])
    later = sampler.draw(2)
    sampler.update(early.index, [9.0, 9.0], step=early.step)  # late: made before what is known
    assert (sampler.priorities()[early.index] == 4.0).all()
    sampler.update(later.index, [3.0, 3.0], step=later.step)
    assert (sampler.priorities()[later.index] == 3.0).all()


def test_a_late_loss_that_is_not_finite_is_counted_as_such():
    sampler = learner()
    sampler.update([0], [5.0], step=10)
    sampler.update([0, 0], [np.nan, 7.0], step=9)
    assert sampler.priorities()[0] == 5.0
    assert (sampler.summary()["late"], sampler.summary()["nonfinite"]) == (1, 1)


# --- what update refuses, and then nothing is changed

NEVER = [
    ({"index": [0, 20], "losses": [1, 1]}, IndexError, r"index must be in \[0, 20\), got 20 at position 1"),
    ({"index": [-1], "losses": [1]}, IndexError, "got -1 at position 0"),
    ({"index": [0.0, 1.0], "losses": [1, 1]}, TypeError, r"astype\(np.int64\)"),
    ({"index": [True] * 20, "losses": [1] * 20}, TypeError, "np.flatnonzero"),
    ({"index": [[0], [1]], "losses": [1, 1]}, ValueError, "index must have shape"),
    ({"index": 0, "losses": 1.0}, ValueError, "index must have shape"),
    ({"index": [0, 1], "losses": [1.0]}, ValueError, "each of 2 indices, got 1"),
    ({"index": [0, 1], "losses": [1.0, 2.0, 3.0]}, ValueError, "each of 2 indices, got 3"),
    ({"index": [0, 1], "losses": 1.5}, ValueError, "reduced already"),
    ({"index": [0, 1], "losses": [[1.0], [2.0]]}, ValueError, r"mean\(axis=1\)"),
    ({"index": [0, 1], "losses": np.ones((2, 2))}, ValueError, r"mean\(axis=1\)"),
    ({"index": [0, 1], "losses": ["a", "b"]}, TypeError, "losses must be real numbers"),
    ({"index": [0, 1], "losses": [1j, 2j]}, TypeError, "losses must be real numbers"),
    ({"index": [0, 1], "losses": [1.0, None]}, TypeError, "losses must be real numbers"),
    ({"index": [0, 1], "losses": [1, 1], "step": 1.0}, TypeError, "step must be an integer"),
    ({"index": [0, 1], "losses": [1, 1], "step": [1, 2, 3]}, ValueError, "step must be one integer or have"),
    ({"index": [0, 1], "losses": [1, 1], "step": -1}, ValueError, "step must be in"),
    ({"index": [0, 1], "losses": [1, 1], "score": [1.0]}, ValueError, "score must have one number for each"),
    ({"index": [0, 1], "losses": [1, 1], "score": ["a", "b"]}, TypeError, "score must be real numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "error", "words"), NEVER)
@pytest.mark.fault(5)
@pytest.mark.fault(7)
@pytest.mark.fault(8)
@pytest.mark.fault(9)
def test_what_update_refuses_changes_nothing(make, given, error, words):
    sampler = make(20, seed=3)
    train(sampler, 5)
    with Unchanged(sampler), pytest.raises(error, match=words):
        sampler.update(**given)


@pytest.mark.parametrize("priority", ["loss", "sqrt", "bounded"])
@pytest.mark.parametrize("lag", [None, 1])
@pytest.mark.parametrize(
    ("index", "losses"),
    [([0], [-1.0]), ([0, 1], [2.0, -1e-9]), ([0, 0], [-1.0, 3.0]), ([0, 1], [np.nan, -1.0])],
)
@pytest.mark.fault(3)
def test_a_negative_loss_is_refused_where_the_priority_cannot_take_it(priority, lag, index, losses):
    sampler = ImportanceSampler(3, priority=priority, feedback_lag=lag, seed=0)
    sampler.draw(3)
    for step in (0, None):
        if step == 0 and lag and index == [0, 0]:
            continue
        with (
            Unchanged(sampler),
            pytest.raises(ValueError, match=r"needs losses ≥ 0, got -.*function of your own"),
        ):
            sampler.update(index, losses, step=step)


def test_a_negative_loss_is_refused_though_it_comes_late():
    sampler = learner()
    sampler.update([0], [1.0], step=5)
    with Unchanged(sampler), pytest.raises(ValueError, match="needs losses ≥ 0, got -1"):
        sampler.update([0, 1], [-1.0, 1.0], step=4)


def test_a_function_of_the_user_can_take_negative_losses():
    sampler = learner(priority=lambda losses: np.exp(losses))
    sampler.update([0, 1], [-1.0, 1.0])
    np.testing.assert_allclose(sampler.priorities()[:2], np.exp([-1.0, 1.0]), rtol=1e-7)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda losses: -losses, "priorities must be numbers ≥ 0, got -2.0 for a loss of 2.0"),
        (lambda losses: losses * np.nan, "priorities must be numbers ≥ 0, got nan"),
        (lambda losses: losses.mean(), r"got shape \(\)"),
        (lambda losses: losses[:, None], r"got shape \(2, 1\)"),
        (lambda losses: None, r"got shape \(\)"),
    ],
)
@pytest.mark.parametrize("lag", [None, 2])
def test_a_function_that_gives_no_priorities(function, words, lag):
    sampler = ImportanceSampler(2, priority=function, feedback_lag=lag, seed=0)
    draw = sampler.draw(2)
    with Unchanged(sampler), pytest.raises(ValueError, match=words):
        sampler.update(draw.index, [2.0, 2.0], step=draw.step)


def test_a_step_that_was_not_drawn_yet_is_said_once(caplog):
    sampler = ImportanceSampler(4, first_pass=False, seed=0)
    sampler.update([0], [5.0], step=1000)
    sampler.update([1], [5.0], step=1001)
    assert [record.getMessage().startswith("feedback for step 1000") for record in caplog.records] == [True]


def test_the_newest_step_of_an_update_is_the_largest_wherever_it_stands():
    for steps in ([3, 9, 5], [9, 3, 5], [3, 5, 9]):
        sampler = ImportanceSampler(4, seed=0)
        sampler.update([0, 1, 2], [1.0, 1.0, 1.0], step=steps)
        assert sampler.state_dict()["newest_step"] == 9
        sampler.update([0], [2.0])  # now: newer than all that is known
        assert sampler.state_dict()["newest"].tolist() == [10, *steps[1:], -1]


def test_what_is_recent_are_the_last_64_draws():
    sampler = UniformSampler(10, seed=0)
    empty = sampler.summary()
    assert (empty["effective_sample_size"], empty["effective_fraction"], empty["max_weight"]) == (0.0, 1.0, 0.0)
    for step in range(150):
        sampler.draw(2)
        assert sampler.summary()["effective_sample_size"] == 2 * min(step + 1, 64)
