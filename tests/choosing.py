"""Which cases of a test with several parameters are tried where all would take too long.

showing_all([{"mode": "graph", "lag": 1}, {"mode": "graph", "lag": 2}, {"mode": "jit", "lag": 1}])      # {1, 2}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def showing_all(cases: Sequence[Mapping[str, Any]]) -> set[int]:
    """The places of few cases in which every value of every parameter comes that comes in any.

    One after the other the case that shows most of what is missing.
    """
    values = [{(name, repr(value)) for name, value in case.items()} for case in cases]
    places, missing = set(), set().union(*values)
    while missing:
        shows_most = max(range(len(cases)), key=lambda place: len(missing & values[place]))
        places.add(shows_most)
        missing -= values[shows_most]
    return places
