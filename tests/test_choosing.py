"""The cases chosen leave no value of a parameter out."""

from __future__ import annotations

import itertools

from tests.choosing import showing_all


def test_a_square_needs_its_side() -> None:
    cases = [{"a": a, "b": b} for a, b in itertools.product(range(5), range(5))]
    places = showing_all(cases)
    assert len(places) == 5
    assert {cases[place]["a"] for place in places} == {cases[place]["b"] for place in places} == set(range(5))


def test_a_value_in_one_case_alone_is_not_left_out() -> None:
    cases = [{"a": 0, "b": 0}, {"a": 1, "b": 0}, {"a": 0, "b": 0}, {"a": 0, "b": [7]}]
    assert {1, 3} <= showing_all(cases) < {0, 1, 2, 3}
