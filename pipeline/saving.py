"""When a training saves itself, and how it goes on: the callback beside ``pipeline.checkpoints``.

    saving = Saving("runs/mine/snapshots", every="500steps", resume=True)
    outcome = train(data, model, sampler, epochs=4, batch_size=32, saving=saving)

A snapshot is taken between two steps, after everything that a step brings about: its losses are with the sampler, the
batches drawn ahead are in the sampler's state, and what the epoch has counted so far is in the metrics. After the last
step of an epoch it waits until the epoch has ended, so that what is known of that is in it, too.

Of several workers each saves into a folder of its own, all after the same step: where that is a matter of seconds or of
a signal to one of them, they ask each other every ``TOGETHER`` steps.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import keras

from pipeline import going_on
from pipeline.checkpoints import Part, Seeds, Snapshots, Variables
from pipeline.feedback import LossFeedback
from pipeline.workers import Workers
from sampler.state_bytes import State

TOGETHER = 10  # steps between two questions of workers to each other


@dataclass(frozen=True)
class Saving:
    """Where, how often and for whom.

    Attributes:
        folder: of the snapshots.
        every: ``"500steps"`` or ``"60s"``; None saves when ``stop`` says so and at the end alone.
        resume: whether to go on from the newest whole snapshot in the folder; where there is none, from the beginning.
            Else the snapshots that are there are removed.
        about: facts that must be the same, see ``Snapshots``.
        keep: how many snapshots stay.
        stop: asked after each step; True saves a snapshot and ends the training with ``Stopped``.
        workers: this process among those that train together; None where it trains alone.
    """

    folder: str | Path
    every: str | None = None
    resume: bool = False
    about: State = field(default_factory=dict)
    keep: int = 3
    stop: Callable[[], bool] = lambda: False
    workers: Workers | None = None


class Stopped(Exception):
    """A training ended before its time because it was told to; ``step`` is that of its last snapshot."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}; a snapshot of it was saved")
        self.step = step


def interval(every: str | None) -> tuple[float, Literal["steps", "seconds"]] | None:
    """``"500steps"`` as ``(500, "steps")``, ``"60s"`` as ``(60, "seconds")``; ``ValueError`` for what is neither."""
    if every is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(steps?|s)\s*", every)
    if not found or float(found[1]) <= 0 or (found[2] != "s" and float(found[1]) % 1):
        raise ValueError(f"it must be like 500steps or 60s, got {every!r}")
    return float(found[1]), "seconds" if found[2] == "s" else "steps"


class Midway:
    """What the epoch in whose middle a snapshot is taken has counted so far, as a part of it.

    An epoch that begins counts from nothing, so this is put in place after it has begun again: ``put``.
    """

    def __init__(self, model: keras.Model, feedback: LossFeedback) -> None:
        self._model, self._feedback = model, feedback
        self._kept: State | None = None

    def state_dict(self) -> State:
        """The metrics' values and the feedback's sums."""
        return {"metrics": Variables.values(self._model.metrics_variables), "feedback": self._feedback.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Keep it for ``put``; of the feedback what goes beyond the epoch counts at once."""
        self._feedback.load_state_dict(state["feedback"])
        self._kept = state

    def put(self) -> None:
        """Once, after the epoch has begun."""
        if self._kept is not None:
            Variables.assign("metrics", self._model.metrics_variables, self._kept["metrics"])
            self._feedback.load_state_dict(self._kept["feedback"])
            self._kept = None


class Saver(keras.callbacks.Callback):
    """Saves at the times that ``saving`` names. Behind all callbacks whose state is in the snapshots.

    Args:
        snapshots: of this training.
        saving: when.
        midway: put in place when an epoch begins in its middle.
        steps: gives how many are done in all.
        epoch_steps: of a whole epoch.
    """

    def __init__(
        self, snapshots: Snapshots, saving: Saving, midway: Midway, steps: Callable[[], int], epoch_steps: int
    ) -> None:
        super().__init__()
        self.stopped = False
        self._snapshots, self._saving, self._midway = snapshots, saving, midway
        self._steps, self._epoch_steps = steps, epoch_steps
        self._interval = interval(saving.every)
        self._saved = self._asked = steps()
        self._since = time.monotonic()
        self._complete = 0  # snapshots saved here

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Go on in the middle of an epoch, where it is one."""
        if self._steps() % self._epoch_steps:
            self._midway.put()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save where it is time to, unless the epoch is about to end."""
        if self._steps() % self._epoch_steps and not self.model.stop_training:
            self._save_if_due()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save what had to wait."""
        if not self.stopped:
            self._save_if_due()

    def save(self) -> None:
        """Now, unless it was done after this very step."""
        step = self._steps()
        if self._saved != step:
            self._snapshots.save(step)
            self._complete += 1
            if self._complete == 2:  # by now all workers have the first
                going_on.forget_others(Path(self._saving.folder), self._saving.workers)
        self._saved, self._since = step, time.monotonic()

    def _save_if_due(self) -> None:
        stop, save = self._wanted()
        if stop:
            self.save()
            self.stopped = self.model.stop_training = True
        elif save:
            self.save()

    def _wanted(self) -> tuple[bool, bool]:
        """Whether to stop, and whether to save: the same in all workers."""
        count, unit = self._interval or (math.inf, "steps")
        since = self._steps() - self._saved if unit == "steps" else time.monotonic() - self._since
        stop, save = self._saving.stop(), since >= count
        workers = self._saving.workers
        if workers is None:
            return stop, save
        before, self._asked = self._asked, self._steps()
        if before // TOGETHER == self._asked // TOGETHER:
            return False, save and unit == "steps"
        any_stops, any_saves = workers.any([stop, save])
        return any_stops, any_saves


@contextlib.contextmanager
def saved(
    model: keras.Model,
    feedback: LossFeedback,
    parts: Mapping[str, Part],
    saving: Saving,
    steps: Callable[[], int],
    epoch_steps: int,
) -> Iterator[Saver]:
    """A training that saves itself: goes on from a snapshot where it shall, and saves the end.

    Args:
        model: compiled and built.
        feedback: that is given to ``fit``.
        parts: what else is to be saved, by name; ``parts`` are loaded on entry.
        saving: where and when.
        steps: how many are done in all, as one of the parts counts them.
        epoch_steps: of a whole epoch.

    Raises ``Stopped`` on the way out, where the training was stopped.
    """
    midway = Midway(model, feedback)
    root = Path(saving.folder)
    snapshots = Snapshots(
        going_on.folder_of(root, saving.workers),
        {"variables": Variables(model), "seeds": Seeds(), **parts, "midway": midway},
        about={**saving.about, "epoch_steps": epoch_steps},
        keep=saving.keep,
    )
    with snapshots.held():
        if saving.resume:
            going_on.go_on(snapshots, root, saving.workers)
        else:
            going_on.clear(root, snapshots, saving.workers)
        saver = Saver(snapshots, saving, midway, steps, epoch_steps)
        yield saver
        if saver.stopped:
            raise Stopped(steps())
        saver.save()
