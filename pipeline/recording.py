"""What a training notes of itself: steps, seconds, how the model does in between, and what each sample's loss does.

    feedback = LossFeedback(model, sampler)
    recorder = Recorder(Evaluator(model, data), data, every=100, most=2_000, feedback=feedback)
    model.fit(train, callbacks=[feedback, recorder])
    recorder.history, recorder.curve, recorder.clock.seconds

It stands behind the feedback in the list, which is told first.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from pipeline.data import Data
from pipeline.dynamics import TrainingDynamics
from pipeline.evaluation import Evaluator, Score
from pipeline.feedback import LossFeedback
from sampler import checks

Row = dict[str, float | int | None]


@dataclass
class Clock:
    """A stop-watch that can be halted: what passes while it is halted does not count."""

    seconds: float = 0.0
    _since: float = field(default_factory=time.perf_counter)

    def lap(self) -> float:
        """Count up to now, and give the seconds so far."""
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now
        return self.seconds

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Count nothing until it is left."""
        self.lap()
        yield
        self.skip()

    def skip(self) -> None:
        """Count nothing of what has passed since the last lap."""
        self._since = time.perf_counter()


def steps_of(model: keras.Model) -> int:
    """The steps that its optimizer has done, whether it has one replica or several, or gathers gradients."""
    iterations = model.optimizer.iterations
    return int(getattr(iterations, "value", iterations).numpy())


def telling_steps(tell: Callable[[int], None]) -> keras.callbacks.Callback:
    """A callback that calls ``tell`` after each batch with how many there were, of all calls of ``fit`` together."""
    done = itertools.count(1)
    return keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: tell(next(done)))


class Recorder(keras.callbacks.Callback):
    """Counts steps and seconds, evaluates at the end of every epoch and every so many steps, and ends the training.

    Args:
        evaluator: of the model that is trained.
        data: the task.
        every: steps between two rows of ``curve``; None for none.
        most: steps of the whole training.
        feedback: that of the training, which knows what the draws of an epoch were worth.
        dynamics: which the feedback tells the losses; here it is saved, and looked at after each epoch.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        data: Data,
        every: int | None,
        most: int,
        feedback: LossFeedback,
        dynamics: TrainingDynamics | None = None,
    ) -> None:
        super().__init__()
        self.steps = 0
        self._begun_at = 0
        self.figures: dict[str, float] = {}
        self._most = most
        self.first_step_seconds = 0.0
        self.history: list[Row] = []
        self.curve: list[Row] = []
        self._evaluator, self._data, self._every = evaluator, data, every
        self._feedback, self._dynamics = feedback, dynamics
        self._scored: tuple[int, Score] | None = None
        self.test_score()  # compiles the evaluation before the clock starts
        self.clock = Clock()

    def test_score(self) -> Score:
        """The score on the test set now; done once a step."""
        if self._scored is None or self._scored[0] != self.steps:
            self._scored = self.steps, self._evaluator(self._data.x_test, self._data.y_test)
        return self._scored[1]

    def state_dict(self) -> dict[str, Any]:
        """How far it is, and the rows so far."""
        return {
            "steps": self.steps,
            "most": self._most,
            "seconds": self.clock.lap(),
            "first_step_seconds": self.first_step_seconds,
            "history": self.history,
            "curve": self.curve,
            "figures": self.figures,
            **({} if self._dynamics is None else {"dynamics": self._dynamics.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave. Of another number of workers, dynamics begin anew: they are by block."""
        most = checks.whole("most", state.get("most", self._most), least=1)
        self.steps = checks.whole("steps", state["steps"], least=0, most=most)
        if most != self._most:  # of another number of workers: as far as it was, of what it is now
            self.steps = self.steps * self._most // most
            self._evaluator.model.optimizer.iterations.assign(self.steps)
        elif self._dynamics is not None and "dynamics" in state:
            self._dynamics.load_state_dict(state["dynamics"])
        self.clock = Clock(checks.number("seconds", state["seconds"], 0.0, np.inf))
        self.first_step_seconds = checks.number("first_step_seconds", state["first_step_seconds"], 0.0, np.inf)
        self.history, self.curve, self.figures = list(state["history"]), list(state["curve"]), dict(state["figures"])
        self._scored = None

    # --- Keras calls these ---

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self.clock = Clock(self.clock.seconds)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._begun_at = self.steps

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        before, self.steps = self.steps, self._begun_at + batch + 1  # several, with steps_per_execution
        if before == 0:
            self.first_step_seconds = self.clock.lap()
        if self.steps == self._most:
            self.model.stop_training = True
        if self._every and self.steps // self._every > before // self._every:
            with self.clock.halted():
                self.curve.append(self._row())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        with self.clock.halted():
            row = self._row()
            rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
            loss = float((logs or {})["loss"])
            self.figures = {name: float(value) for name, value in (logs or {}).items() if name.startswith("sampling/")}
            worth = self._feedback.of_epoch()
            self.history.append({"epoch": epoch + 1, **row, "learning_rate": rate, "loss": loss, **worth})
            if self._dynamics is not None:
                self._dynamics.look(self.steps)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self.clock.lap()

    def _row(self) -> Row:
        test = self.test_score()
        return {
            "step": self.steps,
            "seconds": self.clock.seconds,
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
        }
