"""The report of a training by Keras's ``fit``: a callback, which writes it at the end.

    feedback = LossFeedback(model, sampler, dynamics=TrainingDynamics(len(sampler)))
    page = TrainingReport("runs/mine", feedback, x, y)
    model.fit(train, validation_data=(x_test, y_test), callbacks=[feedback, page], shuffle=False)
    page.path                                                       # runs/mine/report.html

Beside the page it writes the files that ``train.py`` writes: ``summary.json``, ``history.csv``, ``losses.csv`` and
``samples.npz``, so that ``python -m pipeline.report runs/mine`` writes the page anew. The extra ``report`` brings what
it needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.evaluation import SLICE
from pipeline.feedback import LossFeedback
from pipeline.losses import per_sample_loss
from pipeline.recording import Clock
from pipeline.report.writing import report
from pipeline.results import to_csv, to_json, write_whole
from pipeline.samples import Samples, columns_of
from sampler import UniformSampler

Array = npt.NDArray[Any]


class TrainingReport(keras.callbacks.Callback):
    """Writes the report of a ``fit`` into a folder at its end; stands behind the feedback in the list.

    Costs one forward pass over x at the end, O(N) memory, and some seconds for the pictures.

    Args:
        folder: where to write; it is made where it is not there, and files of an earlier report are replaced.
        feedback: that of the training, with ``dynamics``.
        x: (N, ...) the samples in the order of their indices, as the model takes them: what is drawn from, before
            any augmentation.
        y: (N,) or (N, 1) int classes, (N, K) one-hot, or quantities.
        name: of the data set, for the title. None: the folder's.

    For models with one input and one output. The test loss is Keras's ``val_loss``: without ``validation_data`` the
    page has none. Seconds are those of training, validation left out. Raises ``ValueError`` where ``feedback`` has no
    ``dynamics``, x and y are not N, or the model has several inputs or outputs, ``TypeError`` where x or y is no array,
    and ``ImportError`` without the extra ``report``.
    """

    def __init__(self, folder: str | Path, feedback: LossFeedback, x: Any, y: Any, *, name: str | None = None) -> None:
        super().__init__()
        import jinja2 as jinja2
        import matplotlib as matplotlib

        if feedback.dynamics is None:
            raise ValueError(
                "a report is made from what the loss of each sample did: give LossFeedback "
                "dynamics=TrainingDynamics(len(sampler))"
            )
        if isinstance(x, dict | list | tuple) or isinstance(y, dict | list | tuple):
            raise TypeError(
                "TrainingReport takes models with one input and one output, x and y as one array each, got "
                f"{type(x).__name__} and {type(y).__name__}"
            )
        self.path: Path | None = None
        self._folder, self._feedback, self._dynamics = Path(folder), feedback, feedback.dynamics
        self._x, self._y = np.asarray(x), np.asarray(y)
        count = len(feedback.sampler)
        if not len(self._x) == len(self._y) == count:
            raise ValueError(f"x and y must be the {count} samples drawn from, got {len(self._x)} and {len(self._y)}")
        self._name = self._folder.resolve().name if name is None else name
        self._clock = Clock()
        self._history: list[dict[str, Any]] = []

    # --- Keras calls these ---

    def set_model(self, model: keras.Model) -> None:
        """Refuse a model of several inputs or outputs before anything is trained."""
        inputs, outputs = (len(getattr(model, name, None) or [0]) for name in ("inputs", "outputs"))
        if inputs > 1 or outputs > 1 or isinstance(model.loss, dict | list | tuple):
            raise ValueError(
                f"TrainingReport takes models with one input and one output; {model.name!r} has {inputs} and "
                f"{outputs}: leave this callback out, or report of one with TrainingDynamics"
            )
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._clock, self._history = Clock(), []

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._clock.lap()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._clock.skip()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        logs = logs or {}
        step = int(self.model.optimizer.iterations.value.numpy())
        seconds = self._clock.lap()
        row = {"epoch": epoch + 1, "step": step, "seconds": seconds, "loss": float(logs["loss"])}
        tested = {"test_loss": logs.get("val_loss"), "test_accuracy": _accuracy(logs)}
        self._history.append({**row, **tested, **self._feedback.of_epoch()})
        self._dynamics.look(step)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._folder.mkdir(parents=True, exist_ok=True)
        samples = self._samples()
        samples.write(self._folder / "samples.npz")
        write_whole(self._folder / "history.csv", to_csv(self._history))
        write_whole(self._folder / "losses.csv", to_csv(self._dynamics.looks))
        (self._folder / "curve.csv").unlink(missing_ok=True)
        write_whole(self._folder / "summary.json", to_json(self._summary(samples)))
        self.path = report(self._folder)

    # --- what is known at the end ---

    def _samples(self) -> Samples:
        losses_of = per_sample_loss(self.model.loss)
        losses, outputs = [], []
        for first in range(0, len(self._x), SLICE):
            output = self.model.predict_on_batch(tf.convert_to_tensor(self._x[first : first + SLICE]))
            losses.append(np.asarray(losses_of(self._y[first : first + SLICE], output), np.float32))
            outputs.append(np.asarray(output, np.float32))
        y, predictions, classes = as_classes(self._y, np.concatenate(outputs), self.model.loss)
        columns = columns_of(self._dynamics, self._feedback.sampler.ages())
        return Samples.at_end(self._x, y, classes, np.concatenate(losses), predictions, columns)

    def _summary(self, samples: Samples) -> dict[str, Any]:
        last = self._history[-1] if self._history else {}
        sampler = self._feedback.sampler
        return {
            "program": "fit",
            "sampling": "uniform" if isinstance(sampler, UniformSampler) else "importance",
            "dataset": self._name,
            "model": self.model.name,
            "parameters": self.model.count_params(),
            "learning_rate": float(self.model.optimizer.learning_rate),
            "epochs": len(self._history),
            "steps": last.get("step", 0),
            "seconds": self._clock.seconds,
            "train_loss": float(samples.loss.mean(dtype=np.float64)),
            "test_loss": last.get("test_loss"),
            "test_accuracy": last.get("test_accuracy"),
            "sampler": sampler.summary(),
        }


def _accuracy(logs: dict[str, Any]) -> float | None:
    """The first accuracy of the validation, whatever it is called."""
    return next((float(value) for name, value in logs.items() if name.startswith("val_") and "acc" in name), None)


def as_classes(y: Array, outputs: Array, loss: Any) -> tuple[Array, Array, int]:
    """Labels (N,) int64 and predictions (N,) int64 with the number of classes; of quantities as they are, and 0."""
    squeezed = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if squeezed.ndim == 1 and np.issubdtype(squeezed.dtype, np.integer) and outputs.ndim == 2:
        if outputs.shape[1] > 1:
            return squeezed.astype(np.int64), outputs.argmax(axis=1), outputs.shape[1]
        middle = 0.0 if getattr(loss, "from_logits", False) else 0.5
        return squeezed.astype(np.int64), (outputs[:, 0] > middle).astype(np.int64), 2
    if y.ndim == 2 and y.shape == outputs.shape and y.shape[1] > 1 and set(np.unique(y)) <= {0, 1}:
        return y.argmax(axis=1), outputs.argmax(axis=1), y.shape[1]
    return y.astype(np.float32).reshape(len(y), -1), outputs.reshape(len(outputs), -1), 0
