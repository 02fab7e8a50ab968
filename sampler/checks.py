"""Input checked in words: each function gives the value back, or says what was received and what is required.

    from sampler import checks
    checks.whole("batch_size", 32, least=1)         # 32
    checks.indices([3, 1], size=10)                 # array([3, 1])

Nothing is changed by a check, so all input can be checked before anything is done with it.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import batches

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

LARGEST_STEP = int(np.iinfo(np.int32).max)  # steps are below it; a sample's newest step is kept in four bytes


def whole(name: str, value: Any, *, least: int, most: int | None = None) -> int:
    """An integer ≥ ``least`` (and ≤ ``most``); ``TypeError`` or ``ValueError`` else."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {' '.join(repr(value).split()):.100}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, got {number}")
    return number


def number(name: str, value: Any, least: float, most: float, *, top_open: bool = False) -> float:
    """A float in [least, most], or in [least, most) where ``top_open``."""
    try:
        result = None if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError):
        result = None
    if result is None:
        raise TypeError(f"{name} must be a number, got {value!r}")
    inside = least <= result < most if top_open else least <= result <= most
    if not inside:
        bracket = ")" if top_open else "]"
        raise ValueError(f"{name} must be in [{least:g}, {most:g}{bracket}, got {result:g}")
    return result


def flag(name: str, value: Any) -> bool:
    """True or False; ``TypeError`` for what would only count as one of them."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def distinct(count: int, size: int) -> None:
    """``ValueError`` where ``count`` distinct samples are more than the ``size`` there are."""
    if count > size:
        raise ValueError(
            f"{count} samples cannot be drawn without replacement from {size}; ask for at most "
            f"{size}, or choose another scheme"
        )


def indices(index: npt.ArrayLike, size: int) -> Int64s:
    """A copy of ``index`` as (B,) int64 in [0, size)."""
    try:
        given = np.asarray(index)
    except ValueError as error:
        raise no_array("index", error) from error
    if given.dtype.kind not in "iu" and given.size:
        hint = "use np.flatnonzero(mask)" if given.dtype.kind == "b" else "use .astype(np.int64)"
        raise TypeError(f"index must be integers, got dtype {given.dtype}; {hint}")
    if given.ndim != 1:
        raise ValueError(f"index must have shape (B,), got shape {given.shape}; use index.reshape(-1)")
    result = given.astype(np.int64)  # of uint64, what is too large becomes negative, and so is outside as well
    outside = batches.stranger(result, size)
    if outside >= 0:
        raise IndexError(f"index must be in [0, {size}), got {given[outside]} at position {outside}")
    return result


def positions(values: npt.ArrayLike) -> Float64s:
    """A copy of ``values`` as (B,) float64."""
    try:
        given = np.asarray(values)
    except ValueError as error:
        raise no_array("positions", error) from error
    if not is_real(given.dtype):
        raise TypeError(f"positions must be real numbers, got dtype {given.dtype}")
    if given.ndim != 1:
        raise ValueError(f"positions must have shape (B,), got shape {given.shape}; use positions.reshape(-1)")
    return given.astype(np.float64)


def per_sample(name: str, values: npt.ArrayLike, count: int) -> Float64s:
    """A copy of ``values`` as (count,) float64: one number for each index."""
    return numbers(name, values, count).astype(np.float64)


def numbers(name: str, values: npt.ArrayLike, count: int) -> npt.NDArray[Any]:
    """``values`` as an array (count,) of whatever real type it has: one number for each index."""
    try:
        given = np.asarray(values)
    except ValueError as error:
        raise no_array(name, error) from error
    if given.dtype.kind != "f" and not is_real(given.dtype):
        raise TypeError(f"{name} must be real numbers, got dtype {given.dtype}")
    if given.ndim == 0:
        raise ValueError(
            f"{name} must have one number for each of {count} indices, got a single number: it was reduced already. "
            "Ask the loss for one per sample, for instance pipeline.per_sample_loss(loss)(y, y_pred), or "
            "keras.losses.MeanSquaredError(reduction=None)(y, y_pred)"
        )
    if given.ndim != 1:
        raise ValueError(
            f"{name} must have shape ({count},), got shape {given.shape}; reduce it to one number per sample, for "
            f"instance {name}.reshape({name}.shape[0], -1).mean(axis=1)"
        )
    if given.size != count:
        raise ValueError(f"{name} must have one number for each of {count} indices, got {given.size}")
    return given


def steps(step: npt.ArrayLike | None, count: int) -> Int64s | None:
    """``step`` as int64, (count,) or (1,) where all have the same, or None."""
    if step is None:
        return None
    if type(step) is int and 0 <= step < LARGEST_STEP:  # as it mostly is
        return np.array([step], np.int64)
    try:
        given = np.asarray(step)
    except ValueError as error:
        raise no_array("step", error) from error
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"step must be an integer or (B,) integers, got dtype {given.dtype}")
    if given.ndim > 1 or given.size not in (1, count):
        raise ValueError(f"step must be one integer or have shape ({count},), got shape {given.shape}")
    if given.size and (given.min() < 0 or given.max() >= LARGEST_STEP):
        raise ValueError(f"step must be in [0, {LARGEST_STEP}), got {given.min()} to {given.max()}")
    return given.astype(np.int64).reshape(-1)


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type are real ones: booleans, integers and floats, those of other packages included."""
    if dtype.kind in "biuf":
        return True
    return dtype.kind == "V" and not issubclass(dtype.type, np.void)  # bfloat16, for one, and no structure


def no_array(name: str, error: ValueError) -> ValueError:
    """What to raise where NumPy makes no array of something, as of lists of unequal lengths."""
    return ValueError(f"{name} must make an array of numbers, and what was given makes none: {error}")


def array(name: str, value: npt.ArrayLike, like: npt.NDArray[Any], *, least: float | None = None) -> npt.NDArray[Any]:
    """A copy of ``value`` of the shape and dtype of ``like``, for arrays that come out of a state."""
    given = np.asarray(value)
    if given.shape != like.shape:
        raise ValueError(f"{name} must have shape {like.shape}, got {given.shape}")
    if not np.can_cast(given.dtype, like.dtype, "same_kind"):
        raise TypeError(f"{name} must be {like.dtype}, got {given.dtype}")
    if least is not None and (given < least).any():
        raise ValueError(f"{name} must be at least {least}, got {given.min()}")
    result = np.array(given, like.dtype)
    if like.dtype.kind in "iu" and (changed := result != given).any():  # a cast of integers wraps without a word
        raise ValueError(f"{name} must be in the range of {like.dtype}, got {given[changed][0]}")
    return result


def drawn_with(probability: Float64s) -> Float64s:
    """(B,) the probabilities of samples that were drawn: each in (0, 1], or ``ValueError``."""
    wrong = ~((probability > 0.0) & (probability <= 1.0))  # of NaN neither holds
    if wrong.any():
        raise ValueError(f"probabilities of draws must be in (0, 1], got {probability[wrong][0]:g}")
    return probability


def norm(value: npt.ArrayLike | None) -> float:
    """A ``mean_gradient_norm`` that was given, infinite where it is not finite, or NaN where none was."""
    if value is None:
        return np.nan
    given = np.asarray(value)
    if given.shape != () or not is_real(given.dtype):
        raise TypeError(
            f"mean_gradient_norm must be one number, got {given.dtype} of shape {given.shape}; it is the norm of the "
            "whole batch's gradient"
        )
    number = float(given)
    if number < 0.0:
        raise ValueError(f"mean_gradient_norm must be at least 0, got {number:g}; it is a norm")
    return number if np.isfinite(number) else np.inf
