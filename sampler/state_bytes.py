"""A state as bytes, and back: numbers, strings, arrays and dicts of these, nothing that could be run.

    data = to_bytes(sampler.state_dict())
    sampler.load_state_dict(from_bytes(data))

The bytes are a file in the format safetensors: a header in JSON that names each array with its dtype, shape and place,
and then the arrays themselves. Numbers, strings and the nesting are JSON too, in the header's metadata, so there is no
pickle in it, and any program that reads safetensors reads the arrays. A checksum over all of it tells a flipped bit.

Reading takes memory in proportion to the bytes that are there, whatever they say of themselves.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

FORMAT = 1
METADATA = "tf-importance-sampling"  # the entry of the header that holds what is not an array
BEGINNING = f'{{"__metadata__":{{"{METADATA}":'.encode()  # of a header, after the 8 bytes of its length
ARRAY = "array"  # the key of a dict of one entry that stands for an array: its name

State = dict[str, Any]


class NewerFormatError(ValueError):
    """What was written by a newer version than this one."""


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """``state`` as bytes, the same for equal states of equal order. One copy of its arrays.

    ``TypeError`` for anything but None, bool, int, float, str, NumPy arrays of numbers, lists and tuples of these (both
    come back as lists), and dicts of all of them by strings, of which none may have ``"array"`` as its only key.
    """
    arrays: dict[str, np.ndarray] = {}
    plain = json.dumps(_taken_apart(state, "", arrays), separators=(",", ":"))
    whole = json.dumps({"format": FORMAT, "crc32": _checksum(plain, arrays), "state": plain})
    return bytes(save(arrays, metadata={METADATA: whole}))  # one entry: their order would be another each time


def from_bytes(data: bytes) -> State:
    """What ``to_bytes`` was given.

    ``ValueError`` for bytes that are not of this format, cut short or altered; ``NewerFormatError``, which is one, for
    those of a newer version.
    """
    try:
        arrays = load(data)
        (length,) = np.frombuffer(data[:8], "<u8")
        whole = json.loads(json.loads(data[8 : 8 + int(length)])["__metadata__"][METADATA])
        version, plain, checksum = int(whole["format"]), str(whole["state"]), int(whole["crc32"])
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"these bytes hold no state, or a damaged one ({error})") from error
    if version > FORMAT:
        raise NewerFormatError(
            f"the state is written in format {version}, this version reads up to {FORMAT}; install a newer version of "
            "tf-importance-sampling"
        )
    if checksum != _checksum(plain, arrays):
        raise ValueError("the state is damaged: its checksum is another one")
    try:
        state = _put_together(json.loads(plain), arrays)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"the state is damaged ({error})") from error
    if not isinstance(state, dict):
        raise ValueError(f"a state is a dict, these bytes hold a {type(state).__name__}")
    return state


def sought(data: bytes) -> bytes:
    """The first state that lies in ``data`` among other bytes, from its first byte to its last; ``ValueError`` where
    there is none. For a state that another program's file holds: see ``from_bytes``.
    """
    begin = data.find(BEGINNING) - 8
    if begin < 0:
        raise ValueError("these bytes hold no state")
    (length,) = np.frombuffer(data[begin : begin + 8], "<u8")
    header = data[begin + 8 : begin + 8 + int(length)]
    try:
        entries = json.loads(header)
        del entries["__metadata__"]
        size = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"these bytes hold a damaged state ({error})") from error
    return data[begin : begin + 8 + int(length) + size]


def _taken_apart(part: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """``part`` with ``{"array": name}`` where an array was, which is put among ``arrays``."""
    if isinstance(part, Mapping):
        if set(part) == {ARRAY}:
            raise TypeError(f"{name or 'the state'} has {ARRAY!r} as its only key, which stands for an array")
        return {_key(key, name): _taken_apart(value, f"{name}/{_escaped(key)}", arrays) for key, value in part.items()}
    if isinstance(part, np.ndarray):
        if part.dtype.kind not in "fiub" or part.dtype.itemsize > 8 or part.dtype.byteorder == ">":
            raise TypeError(f"{name} is an array of {part.dtype}; a state holds arrays of numbers")
        arrays[name] = np.ascontiguousarray(part).reshape(part.shape)
        return {ARRAY: name}
    if isinstance(part, list | tuple):
        return [_taken_apart(value, f"{name}/{place}", arrays) for place, value in enumerate(part)]
    if isinstance(part, np.generic):
        return part.item()
    if part is None or isinstance(part, bool | int | float | str):
        return part
    raise TypeError(f"{name} is a {type(part).__name__}; a state holds numbers, strings, arrays and dicts of these")


def _key(key: Any, name: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{name or 'the state'} has the key {key!r}; keys are strings")
    return key


def _escaped(key: str) -> str:
    """As in a JSON pointer, so that no two arrays have one name."""
    return key.replace("~", "~0").replace("/", "~1")


def _put_together(part: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(part, dict):
        if set(part) == {ARRAY}:
            return arrays[part[ARRAY]]
        return {key: _put_together(value, arrays) for key, value in part.items()}
    if isinstance(part, list):
        return [_put_together(value, arrays) for value in part]
    return part


def _checksum(plain: str, arrays: dict[str, np.ndarray]) -> int:
    total = zlib.crc32(plain.encode())
    for piece in _pieces(arrays):
        total = zlib.crc32(piece, total)
    return total


def _pieces(arrays: dict[str, np.ndarray]) -> Iterator[Any]:
    for name, array in sorted(arrays.items()):
        yield f"{name}:{array.dtype.str}:{array.shape}".encode()
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
