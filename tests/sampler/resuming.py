"""Killed and resumed at every moment: for samplers of any kind, with the feedback of lagging.py."""

from __future__ import annotations

import random

import numpy as np

from .lagging import BATCH, assert_same_draws, fed_by_hand, in_parts, run


def unfed(state):
    """The steps of a state that are not completely fed back."""
    flights = state["in_flight"]
    ends = np.cumsum(flights["size"])
    parts = np.split(flights["reported"], ends[:-1]) if ends.size else []
    return [int(step) for step, part in zip(flights["step"], parts, strict=True) if not part.all()]


def assert_resumes_at_every_moment(make, lag, steps=30):
    """After each draw and each part of feedback a new sampler takes over, and nobody sees a difference.

    ``make(feedback_lag=..., seed=...)`` makes a sampler. Gives the draws.
    """
    source = random.Random(1)
    expected = fed_by_hand(make(feedback_lag=None, seed=3), lag, steps)
    sampler = make(feedback_lag=lag, seed=3)
    made, pending, moments = 0, [], []
    while made < steps or pending:
        draw = sampler.poll(BATCH, seconds=0.0) if made < steps and source.random() < 0.6 else None
        if draw is not None:
            made += 1
            pending.extend(in_parts(draw, source))
        elif pending:
            sampler.update(*pending.pop(source.randrange(len(pending))))
        moments.append(sampler.state_dict())
    assert sum(bool(unfed(state)) for state in moments) > 5  # there was something to lose
    for number, state in enumerate(moments):
        resumed = make(feedback_lag=lag, seed=1000 + number)
        resumed.load_state_dict(state)
        again = unfed(state)
        draws = run(resumed, len(again) + steps - state["step"], random.Random(number))
        assert [draw.step for draw in draws] == [*again, *range(state["step"], steps)]
        assert_same_draws(draws, [expected[draw.step] for draw in draws])
    return expected
