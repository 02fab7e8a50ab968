"""Determinism under a lag of k: the draw of step n uses exactly the feedback of the steps up to n - k.

The reference is a sampler without a lag that is told, right before the draw of step n, the feedback of step n
- k and nothing newer. Whatever order, timing, thread or parts the feedback comes in: the draws must be the
same to the bit.
"""

from __future__ import annotations

import queue
import random
import threading
import time

import numpy as np
import pytest

from sampler import ImportanceSampler, UniformSampler, priorities

from .lagging import (
    BATCH,
    LAGS,
    OPTIONS,
    SIZE,
    STEPS,
    a_sampler,
    assert_same_draws,
    feedback,
    in_parts,
    run,
    told_exactly,
)
from .states import Unchanged, same, same_draw

# --- the same draws whatever happens


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.each_value
def test_the_draws_are_those_told_exactly(name, lag):
    expected = told_exactly(name, lag)
    for seed in range(6):
        assert_same_draws(run(a_sampler(name, lag), STEPS, random.Random(seed)), expected)


def test_the_script_is_worth_its_name():
    """Duplicates do come, and another lag gives other draws: a sampler that is off by one would be seen."""
    draws = told_exactly("many duplicates", 2)
    assert any(np.unique(draw.index).size < BATCH for draw in draws[SIZE // BATCH :])
    for lag in LAGS[1:]:
        one, other = told_exactly("as it comes", lag), told_exactly("as it comes", lag - 1)
        assert not all(map(same_draw, one, other))


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("by rank", {"store": "proportional"}),
        ("bounded draws", {"max_draws": None}),
        ("forgetting", {"forget": 0.0}),
        ("clipped", {"priority": "sqrt"}),
        ("all at once", {"max_draws": None}),
        ("all at once", {"forget": 0.0}),
    ],
)
def test_each_option_makes_a_difference_in_the_script(name, without):
    one, other = told_exactly(name, 2), told_exactly(name, 2, **without)
    assert not all(map(same_draw, one, other))


@pytest.mark.parametrize("lag", LAGS)
def test_feedback_that_comes_at_once_waits_its_time(lag):
    sampler = a_sampler(lag=lag)
    made = []
    for _ in range(STEPS):
        made.append(sampler.draw(BATCH))
        sampler.update(made[-1].index, feedback(made[-1]), step=made[-1].step)
    assert_same_draws(made, told_exactly("as it comes", lag))


@pytest.mark.parametrize("lag", LAGS)
def test_feedback_that_comes_at_the_last_moment_counts(lag):
    sampler = a_sampler(lag=lag)
    made = []
    for step in range(STEPS):
        made.append(sampler.draw(BATCH))
        if step + 1 >= lag:
            draw = made[step + 1 - lag]
            sampler.update(draw.index, feedback(draw), step=draw.step)
    assert_same_draws(made, told_exactly("as it comes", lag))


@pytest.mark.parametrize("attempt", range(4))
@pytest.mark.parametrize("name", ["as it comes", "many duplicates"])
def test_a_prefetching_thread_and_two_that_feed_back(name, attempt):
    lag = 4
    sampler = a_sampler(name, lag)
    ready: queue.Queue = queue.Queue()
    made = []

    def prefetch():
        for _ in range(STEPS):
            draw = sampler.draw(BATCH)
            made.append(draw)
            for part in in_parts(draw, random.Random(draw.step)):
                ready.put(part)
        ready.put(None)
        ready.put(None)

    def feed_back(seed):
        naps = random.Random(seed)
        while (part := ready.get()) is not None:
            time.sleep(naps.random() * 0.002)
            sampler.update(*part)

    threads = [threading.Thread(target=prefetch)]
    threads += [threading.Thread(target=feed_back, args=(10 * attempt + i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert_same_draws(made, told_exactly(name, lag))
    sampler._store.check()


def test_the_mean_of_three_losses_does_not_depend_on_their_order():
    """Sums of floats do; the ledger puts them in order first."""
    priorities = set()
    losses = [0.1, 1e-17, 0.7, 1e16, 3.3, 0.2]
    for seed in range(30):
        sampler = ImportanceSampler(1, first_pass=False, feedback_lag=1, priority=lambda x: x % 1 + 1, seed=0)
        sampler.draw(6)
        order = random.Random(seed).sample(losses, 6)
        sampler.update([0] * 2, order[:2], step=0)
        sampler.update([0] * 4, order[2:], step=0)
        priorities.add(sampler.priorities().item())
    assert len(priorities) == 1


def test_a_uniform_sampler_waits_as_well_and_draws_the_same():
    free = UniformSampler(SIZE, seed=3)
    lagged = UniformSampler(SIZE, feedback_lag=2, seed=3)
    expected = [free.draw(BATCH) for _ in range(STEPS)]
    assert_same_draws(run(lagged, STEPS, random.Random(0)), expected)


# --- who waits, and for what


def test_draws_of_the_first_pass_never_wait():
    sampler = a_sampler(lag=1, feedback_timeout=0.0)
    for _ in range(SIZE // BATCH):
        sampler.draw(BATCH)
    with pytest.raises(TimeoutError, match=f"the draw of step {SIZE // BATCH} waited"):
        sampler.draw(BATCH)  # two samples of the first pass and four by priority


def test_a_first_pass_that_ends_with_a_batch_waits_after_it():
    sampler = a_sampler(lag=1, feedback_timeout=0.0)
    for _ in range(8):
        sampler.draw(5)
    with pytest.raises(TimeoutError):
        sampler.draw(5)


def test_only_what_is_due_is_waited_for():
    sampler = a_sampler("no first pass", lag=3, feedback_timeout=0.0)
    draws = [sampler.draw(BATCH) for _ in range(3)]  # 0, 1, 2 use nothing
    with pytest.raises(TimeoutError, match="the draw of step 3 waited 0 s for the feedback of step 0"):
        sampler.draw(BATCH)
    for draw in (draws[1], draws[0]):
        sampler.update(draw.index, feedback(draw), step=draw.step)
    sampler.draw(BATCH)
    sampler.draw(BATCH)
    with pytest.raises(TimeoutError, match="the draw of step 5 waited 0 s for the feedback of step 2"):
        sampler.draw(BATCH)


@pytest.mark.fault(19)
def test_a_time_out_names_cause_and_remedy_and_changes_nothing():
    sampler = a_sampler("no first pass", lag=1, feedback_timeout=0.05)
    draw = sampler.draw(BATCH)
    remedy = "LossFeedback.*sampler.update.*more than 1 steps are in flight.*feedback_lag.*feedback_timeout"
    with Unchanged(sampler), pytest.raises(TimeoutError, match=f"none of its losses came back.*{remedy}"):
        sampler.draw(BATCH)
    sampler.update(draw.index[:2], [1.0, 1.0], step=0)
    with (
        Unchanged(sampler),
        pytest.raises(TimeoutError, match=r"2 of its 6 losses came back.*dropped after the draw"),
    ):
        sampler.draw(BATCH)
    sampler.update(draw.index[2:], [1.0] * 4, step=0)
    assert sampler.draw(BATCH).step == 1  # and it goes on


def test_poll_gives_none_until_the_time_out():
    sampler = a_sampler("no first pass", lag=1, feedback_timeout=1e9)
    draw = sampler.draw(BATCH)
    with Unchanged(sampler):
        for _ in range(3):
            assert sampler.poll(BATCH, seconds=0.0) is None
    sampler.update(draw.index, feedback(draw), step=0)
    assert sampler.poll(BATCH, seconds=0.0).step == 1


def test_the_time_out_runs_from_the_first_poll_on():
    sampler = a_sampler("no first pass", lag=1, feedback_timeout=0.05)
    sampler.draw(BATCH)

    def poll_on():
        for _ in range(10_000):
            assert sampler.poll(BATCH, seconds=0.001) is None

    with pytest.raises(TimeoutError, match=r"waited 0\.05 s"):
        poll_on()


def test_a_draw_that_waits_goes_on_when_the_feedback_comes():
    sampler = a_sampler("no first pass", lag=1, feedback_timeout=60.0)
    draw = sampler.draw(BATCH)
    made = []
    waiting = threading.Thread(target=lambda: made.append(sampler.draw(BATCH)))
    waiting.start()
    sampler.update(draw.index[:3], [1.0, 2.0, 3.0], step=0)
    sampler.summary(), sampler.state_dict(), sampler.probabilities()  # the lock is not held while it waits
    assert made == []
    sampler.update(draw.index[3:], [1.0, 2.0, np.nan], step=0)
    waiting.join(60)
    assert [draw.step for draw in made] == [1]


@pytest.mark.parametrize("event", ["update", "rewind", "load_state_dict"])
def test_who_waits_is_woken(event):
    """By the event, not by looking again now and then: this one looks once and waits for an hour."""
    sampler = a_sampler("no first pass", lag=1, feedback_timeout=1e9)
    draw = sampler.draw(BATCH)
    state, made, waits = sampler.state_dict(), [], threading.Event()

    class Watched(type(sampler._changed)):
        def wait(self, timeout=None):
            waits.set()
            return super().wait(timeout)

    sampler._changed = Watched(sampler._lock)
    waiting = threading.Thread(target=lambda: made.append(sampler.poll(BATCH, seconds=3600.0)), daemon=True)
    waiting.start()
    assert waits.wait(60)
    given = {"update": (draw.index, feedback(draw), 0), "rewind": (), "load_state_dict": (state,)}[event]
    getattr(sampler, event)(*given)
    waiting.join(60)
    assert [again.step for again in made] == [1 if event == "update" else 0]


# --- a priority that fails


class FailsNow(RuntimeError):
    pass


class FailsAt:
    """√ℓ, but the call of that number fails."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, losses):
        self.left -= 1
        if self.left == 0:
            raise FailsNow
        return np.sqrt(losses)


def insist(sampler, method, *arguments):
    """Once more where it fails, and then nothing must have changed."""
    state = sampler.state_dict()
    try:
        return getattr(sampler, method)(*arguments)
    except FailsNow:
        assert same(state, sampler.state_dict())
        return getattr(sampler, method)(*arguments)


def run_insisting(failing, cut=False, **options):
    """Ten draws, whose feedback comes in halves, the newer of two steps first."""
    priority = priorities.clipped(0.7, failing, window=9) if cut else failing
    options = {"first_pass": False, "scheme": "multinomial", "priority": priority, "seed": 0, **options}
    sampler = ImportanceSampler(9, feedback_lag=2, **options)
    made = []
    for step in range(10):
        made.append(insist(sampler, "draw", BATCH))
        for draw in (made[-1], made[-2]) if step % 2 else ():
            for half in (slice(0, 3), slice(3, BATCH)):
                insist(sampler, "update", draw.index[half], feedback(draw)[half], draw.step)
    return made


@pytest.mark.parametrize("options", [{}, {"cut": True}, {"smoothing": 0.5, "max_draws": 2}])
def test_a_priority_that_fails_once_changes_nothing(options):
    """Whichever call it is: in a draw or in an update, when a loss comes or when it counts."""
    expected = run_insisting(FailsAt(0), **options)
    number, failed = 0, True
    while failed:
        number += 1
        priority = FailsAt(number)
        assert_same_draws(run_insisting(priority, **options), expected)
        failed = priority.left <= 0
    assert number > 20


def test_a_mean_that_the_priority_refuses_is_said_by_the_draw_that_needs_it():
    """Each of the losses 1 and 3 was fine; the mean of the two is not."""

    def not_two(losses):
        return np.where(losses == 2.0, np.nan, losses)

    sampler = ImportanceSampler(1, feedback_lag=1, first_pass=False, priority=not_two, keep_losses=True, seed=0)
    sampler.draw(2)
    sampler.update([0, 0], [1.0, 3.0], step=0)
    for _ in range(2):
        with Unchanged(sampler), pytest.raises(ValueError, match=r"got nan for a loss of 2\.0; mend the priority"):
            sampler.draw(2)
    assert sampler.summary()["in_flight"] == 1
    sampler.set_priority("loss")
    assert sampler.draw(2).step == 1
    assert sampler.losses().tolist() == [2.0]


def test_feedback_that_is_there_counts_after_a_change_to_a_shorter_lag():
    patient = ImportanceSampler(4, feedback_lag=3, first_pass=False, seed=0)
    draws = [patient.draw(4) for _ in range(3)]
    for draw in draws:
        patient.update(draw.index, [1.0, 1.0, 1.0, 1.0 + draw.step], step=draw.step)
    hasty = ImportanceSampler(4, feedback_lag=1, first_pass=False, seed=0)
    hasty.load_state_dict(patient.state_dict())
    assert sorted(hasty.priorities()) == [1.0, 1.0, 1.0, 1.0]  # the steps 1 and 2 still wait
    draw = hasty.draw(4)
    assert hasty.priorities()[draws[2].index[3]] == 3.0
    p = 0.7 * hasty.priorities() / hasty.priorities().sum() + 0.3 / 4
    np.testing.assert_allclose(draw.probability, p[draw.index], rtol=1e-6)


# --- what can be seen meanwhile


def test_probabilities_leave_waiting_feedback_out():
    sampler = ImportanceSampler(4, feedback_lag=2, first_pass=False, uniform_fraction=0.0, seed=0)
    first, second = sampler.draw(4), sampler.draw(4)
    assert sorted(first.index) == [0, 1, 2, 3]  # systematic, all alike
    sampler.update(second.index, [9.0] * 4, step=1)
    assert sampler.priorities().tolist() == [1.0] * 4
    sampler.update(first.index[:3], [5.0] * 3, step=0)
    assert sampler.probabilities().tolist() == [0.25] * 4
    sampler.update(first.index[3:], [5.0], step=0)
    assert sampler.priorities().tolist() == [5.0] * 4  # step 0 counts for step 2; step 1 still waits
    assert sampler.summary()["in_flight"] == 1
    sampler.draw(4)
    assert sampler.priorities().tolist() == [9.0] * 4  # what step 3 will use
    assert sampler.summary()["in_flight"] == 1


def test_feedback_without_a_step_counts_at_once_and_outlives_what_is_older():
    sampler = ImportanceSampler(4, feedback_lag=2, first_pass=False, uniform_fraction=0.0, seed=0)
    draw = sampler.draw(4)
    sampler.update([2, 2], [7.0, 9.0])
    assert sampler.priorities().tolist() == [1.0, 1.0, 8.0, 1.0]
    sampler.update(draw.index, [5.0] * 4, step=0)
    sampler.draw(4)
    assert sampler.priorities().tolist() == [5.0, 5.0, 8.0, 5.0]
    assert sampler.summary()["late"] == 1


def test_feedback_given_twice_is_late():
    sampler = ImportanceSampler(4, feedback_lag=1, first_pass=False, seed=0)
    draw = sampler.draw(4)
    sampler.update(draw.index, [5.0] * 4, step=0)
    with_first = sampler.priorities()
    sampler.update(draw.index, [9.0] * 4, step=0)
    assert np.array_equal(sampler.priorities(), with_first)
    assert sampler.summary()["late"] == 4


def test_feedback_for_what_was_not_drawn_is_refused():
    sampler = a_sampler("no first pass", lag=2)
    draw = sampler.draw(BATCH)
    stranger = np.setdiff1d(np.arange(SIZE), draw.index)[0]
    with (
        Unchanged(sampler),
        pytest.raises(ValueError, match="feedback for step 1, but only 1 draws were made"),
    ):
        sampler.update(draw.index, feedback(draw), step=1)
    with (
        Unchanged(sampler),
        pytest.raises(ValueError, match=f"sample {stranger} was not in the draw of step 0"),
    ):
        sampler.update([draw.index[0], stranger], [1.0, 1.0], step=0)
