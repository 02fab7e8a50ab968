"""For all tests: what TensorFlow, Keras and numba keep for good is not searched for cycles again and again."""

from __future__ import annotations

import gc

COLLECT_AFTER = 50_000, 20, 20  # objects; the default 700 has a fifth of the time go into searching graphs


def pytest_collection_finish() -> None:
    """By now everything is imported. What a test says of memory it says after ``gc.collect()``, as before."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
