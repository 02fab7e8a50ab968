"""A ``fit`` that does one epoch a turn, so that several trainings can be measured in turn.

    contestant = Fit(lambda gate: model.fit(dataset, epochs=EPOCHS, verbose=0, callbacks=[gate]))
    contestant.turn(steps)                # (µs a step, 0.0): the mean over an epoch of so many steps
    contestant.close()

Calling ``fit`` anew for each turn would trace and compile its step anew. Therefore each ``fit`` runs in a thread of its
own, and its first callback holds it at the beginning of every epoch until its turn comes. Only one of the threads
runs at a time. The clock runs from there to the moment the callback is called again: the beginning of the iterator, all
batches, and what all callbacks do at the end of the epoch. A dataset of exactly one epoch has delivered all its batches
by then, so nothing of it goes on while others have their turns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import keras

from benchmarks.measuring import Lost
from benchmarks.pipeline_turns import reason

EPOCHS = 1 << 30  # until it is closed


class _Closed(Exception):
    """Ends a ``fit`` that is held."""


class Fit:
    """``train(gate)`` calls ``fit`` with ``gate`` as the first callback; whatever it raises becomes ``Lost``."""

    def __init__(self, train: Callable[[keras.callbacks.Callback], Any]) -> None:
        self._train = train
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._took = 0
        self._closing = False
        self._ended: str | None = None  # why it can go on no longer
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def turn(self, steps: int) -> tuple[float, float]:
        """Do the next epoch, of ``steps`` steps; the mean µs of a step, and nothing for what comes after."""
        if self._ended is None:
            self._go.release()
            self._done.acquire()
        if self._ended is not None:
            raise Lost(self._ended)
        return self._took / steps / 1e3, 0.0

    def close(self) -> None:
        """End the training."""
        self._closing = True
        self._go.release()
        self._thread.join()

    def pause(self, took: int) -> None:
        """In the thread: an epoch took so many ns; wait for the next turn."""
        self._took = took
        self._done.release()
        self._wait()

    def _run(self) -> None:
        try:
            self._wait()
            self._train(_Gate(self))
            self._ended = "its training ended by itself"
        except _Closed:
            self._ended = "it is closed"
        except Exception as error:
            self._ended = reason(error)
        self._done.release()

    def _wait(self) -> None:
        self._go.acquire()
        if self._closing:
            raise _Closed


class _Gate(keras.callbacks.Callback):
    """Holds ``fit`` between two epochs. Its first one begins without a pause: the turn has begun before ``fit``."""

    def __init__(self, fit: Fit) -> None:
        super().__init__()
        self._fit = fit
        self._start: int | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """The epoch before is over with all that belongs to it."""
        if self._start is not None:
            self._fit.pause(time.perf_counter_ns() - self._start)
        self._start = time.perf_counter_ns()
