"""States as bytes, taken apart and sealed again: what a fuzzer changes inside gets past the checksum.

    plain, arrays = unseal(data)                    # the JSON, and the arrays as they lie in the file
    data = seal(plain, arrays)                      # with the checksum that belongs to them
    data = changed(data, random.Random(0))          # one random change, mostly inside

Written from the description of the format, not with the code that is tested, which refuses to write most of this.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import random
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

METADATA = "tf-importance-sampling"
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "U64": "<u8", "I32": "<i4", "U32": "<u4", "I16": "<i2",
    "U16": "<u2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1", "C64": "<c8",
}  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 3, 6, 7, 8, 255, 256, 2**31 - 2, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30,
    -(2**63), 0.5, -0.0, 1e-45, 1e-320, 3.4e38, 3.5e38, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
OTHERS: list[Any] = [None, True, False, "", "a", "PCG64", [], {}, [[]], [0] * 7, {"array": "/newest"}, {"array": "?"}]


class Array(NamedTuple):
    name: str
    dtype: str
    shape: list[int]
    data: bytes


def seal(plain: str, arrays: list[Array], version: Any = 1) -> bytes:
    total = zlib.crc32(plain.encode(errors="replace"))
    for array in sorted(arrays):
        total = zlib.crc32(f"{array.name}:{DTYPES.get(array.dtype)}:{tuple(array.shape)}".encode(), total)
        total = zlib.crc32(array.data, total)
    whole = json.dumps({"format": version, "crc32": total, "state": plain})
    header: dict[str, Any] = {"__metadata__": {METADATA: whole}}
    begin = 0
    for array in arrays:
        end = begin + len(array.data)
        header[array.name] = {"dtype": array.dtype, "shape": array.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(array.data for array in arrays)


@functools.lru_cache(maxsize=512)
def unseal(data: bytes) -> tuple[str, list[Array]] | None:
    """None for what is not of the format. What it gives is not to be changed: a fuzzer asks for the same again."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        plain = json.loads(header.pop("__metadata__")[METADATA])["state"]
        body = data[8 + length :]
        arrays = [
            Array(name, str(entry["dtype"]), list(entry["shape"]), body[slice(*entry["data_offsets"])])
            for name, entry in header.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError, OverflowError):
        return None
    return (plain, arrays) if isinstance(plain, str) else None


def bytes_changed(data: bytes, source: random.Random) -> bytes:
    """A few bytes flipped, set, cut out, doubled, or the end missing."""
    changed = bytearray(data)
    for _ in range(source.choice([1, 1, 2, 8])):
        place = source.randrange(len(changed) + 1)
        kind = source.randrange(5)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            del changed[place : place + source.randrange(9)]
        elif kind == 2:
            changed[place:place] = changed[place : place + source.randrange(17)]
        elif place < len(changed):
            changed[place] = source.randrange(256) if kind == 3 else changed[place] ^ 1 << source.randrange(8)
    return bytes(changed)


def changed(data: bytes, source: random.Random, mutate=None) -> bytes:
    """One change: of a value in the tree, of an array, of the JSON's text, or of the bytes as they are.

    ``mutate`` changes bytes; a fuzzer's own knows what was worth it before.
    """
    mutate = mutate or (lambda given: bytes_changed(given, source))
    parts, kind = unseal(data), source.random()
    if parts is None or kind < 0.1:
        return mutate(data)
    plain, arrays = parts
    if kind < 0.2:
        return seal(mutate(plain.encode(errors="replace")).decode(errors="ignore"), arrays)
    if kind < 0.22:
        return seal(plain, arrays, source.choice([*NUMBERS, *OTHERS]))
    if kind < 0.6 and arrays:
        return seal(plain, _array_changed(arrays, source, mutate))
    with contextlib.suppress(ValueError, RecursionError):
        return seal(json.dumps(_tree_changed(json.loads(plain), source)), arrays)
    return mutate(data)


def _places(part: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every place of a tree, as what holds it and the key there."""
    if isinstance(part, (dict, list)):
        for key in part if isinstance(part, dict) else range(len(part)):
            found.append((part, key))
            _places(part[key], found)
    return found


def _tree_changed(tree: Any, source: random.Random) -> Any:
    places = _places(tree, [])
    if not places:
        return source.choice(OTHERS)
    holder, key = source.choice(places)
    kind = source.randrange(6)
    if kind == 0:
        holder[key] = source.choice(NUMBERS)
    elif kind == 1:
        holder[key] = source.choice(OTHERS)
    elif kind == 2:
        del holder[key]
    elif kind == 3 and isinstance(holder[key], int):
        holder[key] += source.choice([-2, -1, 1, 2, 2**31])
    elif kind == 4 and isinstance(holder, dict):
        holder[source.choice(["array", "", key + "x"])] = holder.pop(key)
    else:
        other, name = source.choice(places)
        with contextlib.suppress(KeyError, IndexError):
            holder[key] = json.loads(json.dumps(other[name]))  # a copy, so that no tree holds itself
    return tree


def _array_changed(arrays: list[Array], source: random.Random, mutate) -> list[Array]:
    place = source.randrange(len(arrays))
    array, kind = arrays[place], source.randrange(7)
    size = np.dtype(DTYPES.get(array.dtype, "|u1")).itemsize
    if kind == 0:
        other = array._replace(data=mutate(array.data)[: len(array.data)].ljust(len(array.data), b"\0"))
    elif kind <= 2:
        other = array._replace(data=_entry_changed(array, size, source))
    elif kind == 3:  # another dtype of the same size
        alike = [name for name, dtype in DTYPES.items() if np.dtype(dtype).itemsize == size]
        other = array._replace(dtype=source.choice(alike))
    elif kind == 4:
        count = len(array.data) // size
        other = array._replace(shape=source.choice([[count], [1, count], [count, 1], [], [count + 1], [2**40]]))
    elif kind == 5:  # shorter or longer
        count = max(0, len(array.data) // size + source.choice([-3, -1, 1]))
        other = array._replace(data=array.data[: count * size].ljust(count * size, b"\0"), shape=[count])
    else:
        other = source.choice(arrays)._replace(name=array.name)
    return [*arrays[:place], other, *arrays[place + 1 :]]


def _entry_changed(array: Array, size: int, source: random.Random) -> bytes:
    count = len(array.data) // size
    if count == 0:
        return array.data
    begin = source.randrange(count) * size
    with np.errstate(all="ignore"):
        number = source.choice(NUMBERS)
        dtype = np.dtype(DTYPES.get(array.dtype, "|u1"))
        if dtype.kind in "iub":  # wrapped, as a cast does it
            whole = int(number) if math.isfinite(number) else 0
            entry = (whole % 2 ** (8 * size)).to_bytes(size, "little")
        else:
            entry = np.array(float(number)).astype(dtype).tobytes()
    return array.data[:begin] + entry + array.data[begin + size :]
