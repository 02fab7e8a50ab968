"""The ledger of draws in flight: who is reported, who is due, who goes out again."""

from __future__ import annotations

import numpy as np
import pytest

from sampler.ledger import Ledger, frozen

from .states import same, same_draw


def a_draw(step, index):
    index = np.array(index, np.int64)
    return frozen(step, index, np.full(index.size, 0.1), np.full(index.size, 1.0 + step, np.float32))


def a_ledger(*batches, lag=2):
    ledger = Ledger(lag)
    for step, index in enumerate(batches):
        ledger.hand_out(a_draw(step, index))
    return ledger


def report(ledger, index, losses, steps, next_step=9):
    """Tell the ledger; returns how many of the reports found a place."""
    index = np.asarray(index, np.int64)
    matched = ledger.match(index, np.broadcast_to(np.asarray(steps, np.int64), index.shape), next_step)
    ledger.report(matched, np.asarray(losses, float))
    return sum(match.count for match in matched)


def due(ledger, next_step):
    return [(flight.draw.step, flight.losses.tolist()) for flight in ledger.due(next_step)]


def test_the_example_of_lag_two():
    ledger = a_ledger([0], [1], [2])
    for step in (2, 1, 0):  # it comes back in any order
        report(ledger, [step], [step * 10.0], step)
    assert due(ledger, 1) == []
    assert due(ledger, 2) == [(0, [0.0])]
    assert due(ledger, 2) == []
    assert due(ledger, 4) == [(1, [10.0]), (2, [20.0])]
    assert len(ledger) == 0


def test_what_is_due_stops_at_the_first_incomplete_draw():
    ledger = a_ledger([0], [1], [2])
    report(ledger, [1, 2], [1.0, 2.0], [1, 2])
    assert due(ledger, 9) == []
    assert ledger.missing(1) is None
    assert ledger.missing(2) == (0, 0, 1)
    report(ledger, [0], [0.0], 0)
    assert ledger.missing(9) is None
    assert [step for step, _ in due(ledger, 9)] == [0, 1, 2]


def test_reports_in_parts_and_in_any_order():
    for parts in ([[0, 1], [2, 3]], [[3, 2], [1, 0]], [[2], [0, 3], [1]], [[1, 3, 0, 2]]):
        ledger = a_ledger([40, 10, 30, 20])
        drawn = np.array([40, 10, 30, 20])
        for part in parts:
            assert ledger.missing(9) is not None
            assert report(ledger, drawn[part], drawn[part] * 1.5, 0) == len(part)
        assert due(ledger, 9) == [(0, [60.0, 15.0, 45.0, 30.0])]


def test_a_sample_drawn_twice_is_reported_twice():
    ledger = a_ledger([7, 5, 7, 7])
    assert report(ledger, [7, 7], [1.0, 2.0], 0) == 2
    assert ledger.missing(9) == (0, 2, 4)
    assert report(ledger, [5, 7], [3.0, 4.0], 0) == 2
    assert due(ledger, 9) == [(0, [1.0, 3.0, 2.0, 4.0])]


def test_more_reports_than_draws_are_passed_over():
    ledger = a_ledger([7, 5])
    assert report(ledger, [7, 7], [1.0, 2.0], 0) == 1
    assert report(ledger, [7, 5], [8.0, 3.0], 0) == 1
    assert report(ledger, [7, 5], [9.0, 9.0], 0) == 0  # complete, and still waiting
    assert due(ledger, 9) == [(0, [1.0, 3.0])]
    assert report(ledger, [7, 5], [9.0, 9.0], 0) == 0  # complete, and gone


def test_one_report_for_several_steps():
    ledger = a_ledger([0, 1], [1, 2], [0, 3])
    assert report(ledger, [1, 0, 1, 3, 0, 2], [1, 2, 3, 4, 5, 6], [0, 2, 1, 2, 0, 1]) == 6
    assert due(ledger, 9) == [(0, [5.0, 1.0]), (1, [3.0, 6.0]), (2, [2.0, 4.0])]


def test_a_step_that_was_not_drawn_yet():
    ledger = a_ledger([0], [1])
    with pytest.raises(ValueError, match=r"feedback for step 2, but only 2 draws were made \(steps 0 to 1\)"):
        report(ledger, [1], [1.0], 2, next_step=2)


def test_a_sample_that_was_not_in_the_draw():
    ledger = a_ledger([0, 4], [1, 2])
    with pytest.raises(ValueError, match="sample 4 was not in the draw of step 1"):
        report(ledger, [0, 4], [1.0, 2.0], [0, 1])
    assert ledger.missing(9) == (0, 0, 2)  # nothing was written, not for step 0 either


def test_losses_that_are_not_finite_count_as_reported():
    ledger = a_ledger([0, 1])
    report(ledger, [0, 1], [np.nan, np.inf], 0)
    (flight,) = ledger.due(9)
    assert np.array_equal(flight.losses, [np.nan, np.inf], equal_nan=True)


def test_draws_that_were_not_fed_back_go_out_again_in_order():
    ledger = a_ledger([0], [1, 1], [2], [3])
    report(ledger, [2, 1], [1.0, 1.0], [2, 1])  # step 2 is whole, step 1 half
    assert ledger.again() is None
    ledger.rewind()
    steps = []
    while (draw := ledger.again()) is not None:
        assert ledger.again() is draw  # asking does not hand it out
        ledger.handed_again()
        steps.append(draw.step)
    assert steps == [0, 1, 3]
    # What was half reported is to be reported anew, whole.
    report(ledger, [0], [1.0], 0)
    assert ledger.missing(9) == (1, 0, 2)


def test_feedback_that_comes_after_all_takes_a_draw_off_the_list():
    ledger = a_ledger([0], [1])
    ledger.rewind()
    report(ledger, [0], [1.0], 0)
    assert ledger.again().step == 1


def test_the_state_comes_back_and_is_a_copy():
    ledger = a_ledger([4, 4, 1], [2], [3, 0])
    report(ledger, [4, 2], [0.5, np.nan], [0, 1])
    state = ledger.state_dict()
    assert {name: column.dtype.name for name, column in state.items()} == {
        "step": "int64",
        "size": "int64",
        "index": "int64",
        "probability": "float64",
        "weight": "float32",
        "losses": "float64",
        "reported": "bool",
    }
    other = Ledger(2)
    other.load_state_dict(state, next_step=3)
    assert same(other.state_dict(), state)
    assert same_draw(other.again(), a_draw(0, [4, 4, 1]))
    for name in ("index", "probability", "weight"):
        assert not getattr(other.again(), name).flags.writeable
    report(ledger, [4, 1], [9.0, 9.0], 0)
    report(other, [1], [7.0], 0)
    assert state["losses"][:4].tolist()[:3] == [0.5, 0.0, 0.0]


def test_the_state_of_an_empty_ledger():
    state = Ledger(1).state_dict()
    other = a_ledger([1])
    other.load_state_dict(state, next_step=0)
    assert len(other) == 0
    assert same(other.state_dict(), state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", np.array([0, 0])),
        ("step", np.array([1, 0])),
        ("step", np.array([-1, 0])),
        ("step", np.array([0, 2])),  # next_step is 2
        ("step", np.array([0])),
        ("size", np.array([3])),
        ("size", np.array([2, 2])),
        ("size", np.array([0, 3])),
        ("size", np.array([4, -1])),
        ("size", np.array([2**62, 2**62])),
        ("index", np.array([1, 2])),
        ("index", np.array([[1, 2, 3]])),
        ("weight", np.array(1.0)),
        ("losses", np.array(["a", "b", "c"])),
        ("reported", np.zeros(4, bool)),
    ],
)
def test_a_state_that_does_not_fit_together_changes_nothing(name, value):
    state = a_ledger([4, 1], [2]).state_dict()
    ledger = a_ledger([5], [6])
    before = ledger.state_dict()
    with pytest.raises((ValueError, TypeError)):
        ledger.load_state_dict({**state, name: value}, next_step=2)
    assert same(ledger.state_dict(), before)
    assert ledger.again() is None


@pytest.mark.parametrize("name", ["step", "size", "index", "probability", "weight", "losses", "reported"])
def test_a_state_with_a_missing_column_changes_nothing(name):
    state = a_ledger([4, 1], [2]).state_dict()
    del state[name]
    ledger = a_ledger([5], [6])
    before = ledger.state_dict()
    with pytest.raises(KeyError, match=name):
        ledger.load_state_dict(state, next_step=2)
    assert same(ledger.state_dict(), before)
