"""States that are damaged inside, as the fuzzer of tests/fuzz found them: refused in words, and nothing is changed."""

from __future__ import annotations

import numpy as np
import pytest

from sampler import ImportanceSampler, RankedSampler, gates, priorities

from .states import Unchanged


def refused(sampler, state, words):
    with Unchanged(sampler), pytest.raises(ValueError, match=words):
        sampler.load_state_dict(state)


@pytest.mark.parametrize("value", ["1", None, [1], {}])
def test_a_format_that_is_no_number(value):
    sampler = ImportanceSampler(7, seed=0)
    refused(sampler, {**sampler.state_dict(), "format": value}, "damaged .*TypeError")


@pytest.mark.parametrize("sizes", [[2**62, 2**62, 2**62, 2**62 + 6], [2**63 - 1, 2**63 - 1, 7, 1]])
def test_draws_in_flight_so_large_that_their_sum_wraps(sizes):
    """To six, in int64, and there are six indices."""
    sampler = ImportanceSampler(7, feedback_lag=2, seed=0)
    for _ in range(2):
        sampler.draw(3)
    state = sampler.state_dict()
    state["step"], state["in_flight"]["step"] = 4, np.arange(4)
    state["in_flight"]["size"] = np.array(sizes)
    assert state["in_flight"]["size"].sum() == 6
    refused(sampler, state, r"damaged .*sizes be in \[1, 6\]")


@pytest.mark.parametrize("inner", ["loss", "sqrt", "bounded"])
def test_recent_losses_that_the_priority_does_not_take(inner):
    """Or each update would be refused, whose losses are cut at one of them."""
    sampler = ImportanceSampler(7, priority=priorities.clipped(0.8, inner), seed=0)
    state = sampler.state_dict()
    for values in ([-1.0], [2.0, -1.0], [[-1.0]], [np.nan]):
        refused(sampler, {**state, "priority": {"values": np.array(values)}}, "damaged")
    sampler.load_state_dict({**state, "priority": {"values": np.array([2.0, 0.0])}})
    sampler.update([0], [1.0])


def test_recent_losses_below_zero_where_they_may_be():
    by_rank = RankedSampler(7, priority=priorities.clipped(0.8), seed=0)
    related = ImportanceSampler(7, priority=priorities.clipped(0.8, priorities.relative(np.zeros(7))), seed=0)
    for sampler in (by_rank, related):
        state = sampler.state_dict()
        state["priority"]["values"] = np.array([-1.0, 2.0])
        sampler.load_state_dict(state)
        sampler.update([0], [1.0])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("probability", 0.0, r"probabilities of draws must be in \(0, 1\], got 0"),
        ("probability", np.nan, r"probabilities of draws must be in \(0, 1\], got nan"),
        ("probability", 1.5, r"probabilities of draws must be in \(0, 1\], got 1.5"),
        ("weight", 0.0, "weights of draws must be above 0, got 0"),
    ],
)
def test_draws_in_flight_that_no_sampler_has_made(name, value, words):
    """Their losses would come back to a gate as not a number, and then no state of the sampler could be loaded."""
    sampler = ImportanceSampler(7, gate="speedup", feedback_lag=2, seed=0)
    sampler.draw(3)
    state = sampler.state_dict()
    state["in_flight"][name][1] = value
    refused(sampler, state, f"damaged .*{words}")


def test_weights_beyond_all_numbers_are_nothing_to_a_gate():
    gate = gates.SpeedupGate(smoothing=0.0)
    gate.observe(np.ones(2), np.array([np.inf, 1.0]), np.ones(2))
    assert gate.state_dict() == {"tau": 0.0}
    gate.observe(np.ones(2), np.ones(2), np.ones(2))
    assert gate.state_dict() == {"tau": 1.0}
