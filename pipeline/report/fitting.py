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

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.evaluation import by_slices
from pipeline.feedback import LossFeedback
from pipeline.losses import loss_of, unreduced
from pipeline.recording import Clock
from pipeline.report.writing import report
from pipeline.results import to_csv, to_json, write_whole
from pipeline.samples import Samples, columns_of
from sampler import UniformSampler

ACCURACIES = (*("accuracy", "acc", "sparse_categorical_accuracy", "categorical_accuracy", "binary_accuracy"),)
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

    For models with one input and one output. The losses of samples are what the compiled loss says of each, that of a
    sequence by the mean over its steps that no mask leaves out. The test loss is Keras's ``val_loss``, regularisers
    included: without ``validation_data`` the page has none. Seconds are those of training, validation left out. A
    second ``fit`` goes on where the first ended. After one that was interrupted, ``write()`` writes what is known.

    Raises ``ValueError`` where ``feedback`` has no ``dynamics``, x and y are not N, or, before anything is trained,
    ``feedback`` does not stand before it in the list, or the model has several inputs, an output that is not one
    tensor, or no loss; ``TypeError`` where x or y is no array, ``OSError`` where the folder cannot be made, and
    ``ImportError`` without the extra ``report``. What goes wrong at the end is a ``RuntimeWarning``, as the model is
    trained all the same, and ``path`` stays None; ``write()`` says it as an error.
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
        self._steps = self._begun_at = 0

    # --- Keras calls these ---

    def set_model(self, model: keras.Model) -> None:
        """Refuse what cannot be reported of before anything is trained."""
        if self._feedback.model is not model:
            raise ValueError("callbacks must have the LossFeedback before its TrainingReport: [feedback, page]")
        inputs, outputs = (len(getattr(model, name, None) or [0]) for name in ("inputs", "outputs"))
        nested = isinstance(getattr(model, "output", None), dict | list | tuple)
        if inputs > 1 or outputs > 1 or nested or isinstance(model.loss, dict | list | tuple):
            raise ValueError(
                f"TrainingReport takes models with one input and one output, which is a tensor; {model.name!r} has "
                f"{inputs} and {outputs}: leave this callback out, or report of one with TrainingDynamics"
            )
        loss_of(model)  # says what is wrong with the loss
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"the folder of the report, {self._folder}, cannot be made: {error}; name another") from error
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._clock.skip()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._clock.lap()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._clock.skip()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._begun_at = self._steps

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._steps = self._begun_at + batch + 1  # several, with steps_per_execution

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        logs, step, seconds = logs or {}, self._steps, self._clock.lap()
        row = {"epoch": len(self._history) + 1, "step": step, "seconds": seconds, "loss": float(logs["loss"])}
        tested = {"test_loss": logs.get("val_loss"), "test_accuracy": _accuracy(logs)}
        self._history.append({**row, **tested, **self._feedback.of_epoch()})
        self._dynamics.look(step)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        try:
            self.write()
        except Exception as error:  # the model is trained, whatever becomes of its report
            said = f"there is no report in {self._folder}: {type(error).__name__}: {error}"
            warnings.warn(said, RuntimeWarning, stacklevel=2)

    def write(self) -> Path:
        """Write the report of the training so far, and give its path; ``OSError`` where that fails."""
        for name in ("comparison.json", "curve.csv"):  # of another program that wrote here
            (self._folder / name).unlink(missing_ok=True)
        samples = self._samples()
        samples.write(self._folder / "samples.npz")
        write_whole(self._folder / "history.csv", to_csv(self._history))
        write_whole(self._folder / "losses.csv", to_csv(self._dynamics.looks))
        write_whole(self._folder / "summary.json", to_json(self._summary(samples)))
        self.path = report(self._folder)
        return self.path

    # --- what is known at the end ---

    def _samples(self) -> Samples:
        losses_of = unreduced(self.model.loss)

        def of_slice(x: Array, y: Array) -> tuple[Array, Array]:
            output = self.model(tf.convert_to_tensor(x), training=False)
            losses = _of_samples(losses_of(tf.convert_to_tensor(y), output), getattr(output, "_keras_mask", None))
            return np.asarray(losses, np.float32), _likeliest(y, np.asarray(tf.cast(output, tf.float32)))

        losses, outputs = by_slices(of_slice, self._x, self._y)
        y, predictions, classes = as_classes(self._y, outputs, self.model.loss)
        columns = columns_of(self._dynamics, self._feedback.sampler.ages())
        return Samples.at_end(self._x, y, classes, losses, predictions, columns)

    def _summary(self, samples: Samples) -> dict[str, Any]:
        tested: dict[str, Any] = next((row for row in reversed(self._history) if row["test_loss"] is not None), {})
        sampler = self._feedback.sampler
        return {
            "program": "fit",
            "sampling": "uniform" if isinstance(sampler, UniformSampler) else "importance",
            "dataset": self._name,
            "model": self.model.name,
            "parameters": self.model.count_params(),
            "learning_rate": float(self.model.optimizer.learning_rate),
            "epochs": len(self._history),
            "steps": self._steps,
            "seconds": self._clock.seconds,
            "train_loss": float(samples.loss.mean(dtype=np.float64)),
            "test_loss": tested.get("test_loss"),
            "test_accuracy": tested.get("test_accuracy"),
            "sampler": sampler.summary(),
        }


def _accuracy(logs: dict[str, Any]) -> float | None:
    """The accuracy of the validation, by the names that Keras gives it."""
    return next((float(logs[f"val_{name}"]) for name in ACCURACIES if f"val_{name}" in logs), None)


def _of_samples(losses: tf.Tensor, mask: Any) -> tf.Tensor:
    """(B,) of (B, ...) losses the mean over what the mask does not leave out, where Keras has put 0."""
    if losses.shape.rank == 1:
        return losses
    means = tf.reduce_mean(losses, axis=list(range(1, losses.shape.rank)))
    if mask is None:
        return means
    counted = tf.reduce_mean(tf.cast(mask, means.dtype), axis=list(range(1, mask.shape.rank)))
    return tf.math.divide_no_nan(means, counted)


def _likeliest(y: Array, output: Array) -> Array:
    """Of sequences or pictures of classes the likeliest at each place; else the output as it is."""
    places = y.ndim > 1 and y.shape == output.shape[:-1] and output.shape[-1] > 1
    return output.argmax(axis=-1).astype(np.float32) if places else output


def as_classes(y: Array, outputs: Array, loss: Any) -> tuple[Array, Array, int]:
    """Labels (N,) int64 and predictions (N,) int64 with the number of classes; of quantities (N, D) float32, and 0.

    Classes are integers where the model has an output for each, under a sparse cross-entropy any whole numbers; one-hot
    labels; and 0 and 1, or -1 and 1, under a loss of two classes.
    """
    labels = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    width = outputs.shape[1] if outputs.ndim == 2 else int(outputs.ndim == 1)
    sparse = any("sparsecategoricalcrossentropy" in name for name in _names(loss))
    sparse = sparse or (labels.dtype.kind in "iu" and labels.min() >= 0)
    if labels.ndim == 1 and width > 1 and sparse and (labels == np.floor(labels)).all() and labels.max() < width:
        return labels.astype(np.int64), outputs.argmax(axis=1), width
    if labels.ndim == 1 and width == 1 and (middle := _middle(loss)) is not None:
        found = set(np.unique(labels).tolist())
        if found <= {0, 1} or found <= {-1, 1}:
            return (labels > 0).astype(np.int64), (outputs.reshape(-1) > middle).astype(np.int64), 2
    if labels.ndim == 2 and y.shape == outputs.shape and ((y == 1).sum(axis=1) == 1).all() and (y != 0).sum() == len(y):
        return y.argmax(axis=1), outputs.argmax(axis=1), width
    return y.astype(np.float32).reshape(len(y), -1), outputs.reshape(len(outputs), -1), 0


def _middle(loss: Any) -> float | None:
    """From which output on a loss of two classes takes a sample for the second; None for other losses."""
    names = _names(loss)
    if names & {"hinge", "squaredhinge"}:
        return 0.0
    if names & {"binarycrossentropy", "binaryfocalcrossentropy"}:
        return 0.0 if getattr(loss, "from_logits", False) else 0.5
    return None


def _names(loss: Any) -> set[str]:
    """A loss's name and those of its bases, alike for classes and functions: ``binarycrossentropy``."""
    resolved = keras.losses.get(loss) if isinstance(loss, str) else loss
    own = getattr(resolved, "__name__", None)
    found = [kind.__name__ for kind in type(resolved).__mro__] if own is None else [own]
    return {name.lower().replace("_", "") for name in found}
