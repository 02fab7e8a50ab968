"""Kill and resume, and iterations that were broken off: nobody sees a difference."""

from __future__ import annotations

import random
import threading

import pytest

from sampler import ImportanceSampler

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
from .resuming import unfed
from .states import Unchanged, same, same_draw


@pytest.mark.parametrize("name", OPTIONS)
def test_killed_and_resumed_at_every_moment_of_a_run(name):
    """After each draw and each part of feedback a new sampler takes over, and nobody sees a difference."""
    steps, lag, source = 16, 3, random.Random(1)
    expected = told_exactly(name, lag, steps)
    sampler = a_sampler(name, lag)
    made, pending, moments = 0, [], []
    while made < steps or pending:
        draw = sampler.poll(BATCH, seconds=0.0) if made < steps and source.random() < 0.6 else None
        if draw is not None:
            made += 1
            pending.extend(in_parts(draw, source))
        elif pending:
            sampler.update(*pending.pop(source.randrange(len(pending))))
        moments.append(sampler.state_dict())
    assert sum(len(unfed(state)) > 1 for state in moments) > 5  # there was something to lose
    for number, state in enumerate(moments):
        resumed = a_sampler(name, lag, seed=1000 + number)
        resumed.load_state_dict(state)
        again = unfed(state)
        draws = run(resumed, len(again) + steps - state["step"], random.Random(number))
        assert [draw.step for draw in draws] == [*again, *range(state["step"], steps)]
        assert_same_draws(draws, [expected[draw.step] for draw in draws])


def test_killed_a_second_time_before_all_was_handed_out_again():
    expected = told_exactly("as it comes", 4)
    sampler = a_sampler(lag=4)
    for step in range(10):
        draw = sampler.draw(BATCH)
        if step < 7:
            sampler.update(draw.index, feedback(draw), step=draw.step)
    for seed in (50, 51):
        state = sampler.state_dict()
        sampler = a_sampler(lag=4, seed=seed)
        sampler.load_state_dict(state)
        assert same_draw(sampler.draw(BATCH), expected[7])
    source = random.Random(0)
    pending = list(in_parts(expected[7], source))
    assert_same_draws(run(sampler, 12, source, expected[:8], pending), expected[:12])


def test_half_of_the_feedback_is_asked_for_anew():
    sampler = a_sampler("no first pass", lag=1)
    draw = sampler.draw(BATCH)
    sampler.update(draw.index[:4], [100.0] * 4, step=0)  # lost: the model it came from is lost too
    resumed = a_sampler("no first pass", lag=1, seed=77)
    resumed.load_state_dict(sampler.state_dict())
    assert same_draw(resumed.draw(BATCH), draw)
    assert resumed.poll(BATCH, seconds=0.0) is None
    resumed.update(draw.index, feedback(draw), step=0)
    assert same_draw(resumed.draw(BATCH), told_exactly("no first pass", 1, 2)[1])


def test_another_batch_size_cannot_take_over_what_is_in_flight():
    sampler = a_sampler("no first pass", lag=2)
    sampler.draw(BATCH)
    resumed = a_sampler("no first pass", lag=2)
    resumed.load_state_dict(sampler.state_dict())
    with (
        Unchanged(resumed),
        pytest.raises(ValueError, match="in flight have 6 samples each, got batch_size=5; go on with 6"),
    ):
        resumed.draw(5)
    assert resumed.draw(6).step == 0


@pytest.mark.parametrize("lag", LAGS)
def test_rewind_after_an_iteration_that_was_broken_off(lag):
    """What was prefetched and not trained on goes out again, first and unchanged; the rest is as expected."""
    expected = told_exactly("as it comes", lag)
    for fed in range(0, 20, 3):
        sampler = a_sampler(lag=lag)
        made = []
        while (draw := sampler.poll(BATCH, seconds=0.0)) is not None and len(made) < fed + lag:
            made.append(draw)
            if draw.step < fed:
                sampler.update(draw.index, feedback(draw), step=draw.step)
        made += [draw] if draw is not None else []
        sampler.rewind()
        again = run(sampler, STEPS - fed, random.Random(fed))
        assert_same_draws(again, expected[fed:])
        assert_same_draws(made, expected[: len(made)])


def test_rewind_twice_and_in_the_middle():
    sampler = a_sampler("no first pass", lag=4)
    draws = [sampler.draw(BATCH) for _ in range(4)]
    sampler.rewind()
    assert same_draw(sampler.draw(BATCH), draws[0])
    sampler.rewind()
    sampler.update(draws[1].index, feedback(draws[1]), step=1)
    assert [sampler.draw(BATCH).step for _ in range(3)] == [0, 2, 3]
    assert sampler.poll(BATCH, seconds=0.0) is None


def test_rewind_without_a_lag_does_nothing():
    sampler = ImportanceSampler(SIZE, seed=0)
    sampler.draw(BATCH)
    with Unchanged(sampler):
        sampler.rewind()
    assert sampler.draw(BATCH).step == 1


def test_a_draw_that_waits_takes_what_is_rewound_meanwhile():
    sampler = a_sampler("no first pass", lag=1, feedback_timeout=60.0)
    first = sampler.draw(BATCH)
    made = []
    waiting = threading.Thread(target=lambda: made.append(sampler.draw(BATCH)))
    waiting.start()
    sampler.rewind()
    waiting.join(60)
    assert same_draw(made[0], first)


def test_a_state_taken_while_feedback_waits_says_so():
    sampler = a_sampler("no first pass", lag=3)
    draws = [sampler.draw(BATCH) for _ in range(3)]
    sampler.update(draws[1].index, feedback(draws[1]), step=1)
    state = sampler.state_dict()
    assert unfed(state) == [0, 2]
    other = a_sampler("no first pass", lag=3, seed=8)
    other.load_state_dict(state)
    assert same(other.state_dict(), state)
    assert other.summary()["in_flight"] == 3
