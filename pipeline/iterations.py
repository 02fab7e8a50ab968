"""Iterations over a sampler's draws: which one is the current, how it ended, and how many batches it has.

    iterations = iterations_over(sampler)
    with iterations.lock:
        if iterations.broken_off(updates):
            sampler.rewind()
        number = iterations.begin(updates)

A sampler is drawn from by one dataset or several; what is known belongs to the sampler, not to them.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

LENGTHS_KEPT = 100  # of the iterations begun last; without a feedback_lag several can go on at a time


class Iterations:
    """What is known of the iterations over one sampler's draws; the current one is the one that began last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.current = 0
        self.complete = False  # whether the consumer took the last batch of the current iteration,
        self.ended = False  # and whether it asked on after that
        self.updates = 0  # the sampler's count when the iteration began
        self.lengths: dict[int, int] = {}  # where they vary: the batches of the last iterations whose last is drawn
        self.warned = False

    def begin(self, updates: int) -> int:
        """A new iteration; returns its number, from 1 on."""
        self.current += 1
        self.complete, self.ended, self.updates = False, False, updates
        return self.current

    def is_drawn(self, iteration: int, batches: int) -> None:
        """So many batches are all of ``iteration``: the last is drawn."""
        self.lengths[iteration] = batches
        self.lengths.pop(iteration - LENGTHS_KEPT, None)

    def broken_off(self, updates: int) -> bool:
        """Whether the consumer left before it was done: before the last batch, or with it in its hands.

        Keras takes the last batch and does not ask on. Where no loss ever came back nobody trains, and that is taken
        for the end.
        """
        return self.current > 0 and not self.ended and (not self.complete or updates > 0)

    def without_feedback(self, updates: int) -> bool:
        """Whether the consumer took all batches and no loss came back."""
        return self.complete and updates == self.updates


_ITERATIONS: weakref.WeakKeyDictionary[Any, Iterations] = weakref.WeakKeyDictionary()  # by sampler


def iterations_over(sampler: Any) -> Iterations:
    """The iterations over the draws of ``sampler``, whatever the dataset."""
    return _ITERATIONS.setdefault(sampler, Iterations())


def iterations_begun(sampler: Any) -> int | None:
    """How many iterations over the draws of ``sampler`` have begun; None where no dataset was ever wrapped with it."""
    iterations = _ITERATIONS.get(sampler)
    return None if iterations is None else iterations.current
