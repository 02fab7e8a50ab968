"""For all tests: which cases are long ones, and what is not searched for cycles again and again."""

from __future__ import annotations

import gc
from collections import Counter

import pytest

COLLECT_AFTER = 50_000, 20, 20  # objects; the default 700 has a fifth of the time go into searching graphs


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test that is marked ``every(n)`` one of n is tried, and the others are of the soak.

    Of the first n the first, of the next the second, and so on, so that no value of a parameter is left out throughout.
    """
    seen: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("every")
        if mark is None:
            continue
        test = item.nodeid.partition("[")[0]
        block, place = divmod(seen[test], mark.args[0])
        if place != block % mark.args[0]:
            item.add_marker(pytest.mark.soak)
        seen[test] += 1


def pytest_collection_finish() -> None:
    """By now everything is imported. What a test says of memory it says after ``gc.collect()``, as before."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
