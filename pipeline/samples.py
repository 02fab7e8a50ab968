"""What a training came to know of each of its samples, as one file of plain arrays.

    samples = Samples.of(data, outcome.each, columns_of(dynamics, sampler.ages()))
    samples.write(Path("runs/mine/samples.npz"))
    Samples.read(Path("runs/mine/samples.npz")).mean

Nothing in the file is run when it is read: no pickle.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sampler import files

if TYPE_CHECKING:
    from pipeline.data import Data
    from pipeline.dynamics import TrainingDynamics
    from pipeline.evaluation import Each

SHOWN = 48  # samples by each order whose inputs are kept, to be looked at
KNOWN = ("drawn", "mean", "deviation", "weight", "weight_squares", "age")  # of each by the process that draws it alone
WHOLE, REAL, ANY = "biu", "f", "biufU"  # kinds of dtypes
COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {  # of which kinds, with how many axes
    **dict.fromkeys(("y", "prediction"), (WHOLE + REAL, (1, 2))),
    **dict.fromkeys(("loss", "mean", "deviation", "weight", "weight_squares"), (REAL, (1,))),
    **dict.fromkeys(("drawn", "age", "shown"), (WHOLE, (1,))),
    **{"shown_x": (ANY, tuple(range(1, 33))), "num_classes": (WHOLE, (0,))},
}
Array = npt.NDArray[Any]
Columns = dict[str, Array]


class NotSamples(ValueError):
    """A file that holds something else than samples of a training, and what."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"{path} holds no samples of a training: {why}")


@dataclass(frozen=True)
class Samples:
    """N samples of a training set at the end of a training.

    Attributes:
        y: (N,) int64 classes, or (N, D) float32 quantities.
        loss: (N,) float32, of the final model in inference mode.
        prediction: (N,) int64 the likeliest class, or (N, D) float32.
        drawn: (N,) int32, how often each was trained on.
        mean, deviation: (N,) float32 of a sample's losses in the course of the training; NaN where there were none, or
            fewer than two.
        weight, weight_squares: (N,) float32, the sums of 1/(N p) over a sample's draws, and of its square.
        age: (N,) int64, draws since the newest loss.
        shown: (M,) int64, the hardest samples.
        shown_x: (M, ...) their inputs.
        num_classes: K, or 0 where y is a quantity.
    """

    y: Array
    loss: Array
    prediction: Array
    drawn: Array
    mean: Array
    deviation: Array
    weight: Array
    weight_squares: Array
    age: Array
    shown: Array
    shown_x: Array
    num_classes: int

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def of(cls, data: Data, each: Each, columns: Columns) -> Samples:
        """What is known at the end of a training on ``data``, with the ``columns`` of all its samples."""
        return cls.at_end(data.x, data.y, data.num_classes or 0, each.losses, each.predictions, columns)

    @classmethod
    def at_end(cls, x: Array, y: Array, num_classes: int, loss: Array, prediction: Array, columns: Columns) -> Samples:
        """The same of arrays: the inputs (N, ...), and the others as the attributes have them."""
        shown = np.union1d(hardest(loss)[:SHOWN], hardest(columns["mean"])[:SHOWN])
        of_model: dict[str, Any] = {"y": y, "loss": loss, "prediction": prediction}
        kept: dict[str, Any] = {"shown": shown, "shown_x": as_text(x[shown]), "num_classes": num_classes}
        return cls(**of_model, **kept, **dict[str, Any](columns))

    def write(self, path: Path) -> None:
        """Write it as a NumPy ``.npz`` file, whole or not at all; ``OSError`` where that fails."""
        write_arrays(path, {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)})

    @classmethod
    def read(cls, path: Path) -> Samples:
        """Read what ``write`` has written; ``NotSamples`` for another file, ``OSError`` where there is none."""
        arrays: dict[str, Any] = read_arrays(path, [field.name for field in fields(cls)])
        for name, (kinds, axes) in COLUMNS.items():
            if arrays[name].dtype.kind not in kinds or arrays[name].ndim not in axes:
                raise NotSamples(path, f"{name} is {arrays[name].dtype} of shape {arrays[name].shape}")
        samples = cls(**{**arrays, "num_classes": int(arrays["num_classes"])})
        sizes = {name: len(arrays[name]) for name in COLUMNS.keys() - {"shown", "shown_x", "num_classes"}}
        if set(sizes.values()) != {len(samples)} or not len(samples) or len(samples.shown) != len(samples.shown_x):
            raise NotSamples(path, f"its columns are empty or of different lengths, {sizes}")
        if not all(0 <= index < len(samples) for index in samples.shown):
            raise NotSamples(path, f"it shows samples outside 0 to {len(samples) - 1}")
        labels = (samples.y, samples.prediction)
        if samples.num_classes and not all(part.ndim == 1 and part.dtype.kind in WHOLE for part in labels):
            raise NotSamples(path, f"of {samples.num_classes} classes, but y is {samples.y.dtype} {samples.y.shape}")
        return samples


def as_text(x: Array) -> Array:
    """Texts in NumPy's own type where they are bytes, or objects as those of any length are; others as they are."""
    if x.dtype.kind not in "OS":
        return x
    words = [part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part) for part in x.reshape(-1)]
    return np.array(words, str).reshape(x.shape)


def columns_of(dynamics: TrainingDynamics, age: Array) -> Columns:
    """Of the n samples of a process what only it knows, (n,) each; ``age`` is that of these samples."""
    return {
        "drawn": dynamics.drawn,
        "mean": dynamics.mean.astype(np.float32),
        "deviation": dynamics.deviation.astype(np.float32),
        "weight": dynamics.weight.astype(np.float32),
        "weight_squares": dynamics.weight_squares.astype(np.float32),
        "age": age.astype(np.int64),
    }


def joined(paths: Sequence[Path]) -> Columns:
    """The columns that several workers have written with ``write_arrays``, in the order of their blocks."""
    parts = [read_arrays(path, KNOWN) for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in KNOWN}


def write_arrays(path: Path, arrays: Columns) -> None:
    """Write a NumPy ``.npz`` file, whole or not at all; ``OSError`` where that fails."""
    buffer = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez_compressed(buffer, **named)
    files.write_whole(path, buffer.getvalue())


def read_arrays(path: Path, names: Sequence[str]) -> Columns:
    """These arrays of a file; ``NotSamples`` where it has them not, ``OSError`` where there is none. No pickle."""
    buffer = io.BytesIO(path.read_bytes())
    try:
        with np.load(buffer, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except Exception as error:  # NumPy and zipfile raise a dozen kinds for bytes that are no arrays
        raise NotSamples(path, f"{type(error).__name__}: {error}") from error


def hardest(losses: Array) -> npt.NDArray[np.int64]:
    """(N,) the samples by their loss, the highest first; those without one (NaN) last."""
    return np.argsort(-np.nan_to_num(losses, nan=-np.inf), kind="stable").astype(np.int64)
