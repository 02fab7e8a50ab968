"""``cache.json``: what a cache on disk says of itself, written, read and not believed.

    raw = dumped(Manifest(mark, columns, files))    # bytes
    manifest = load(directory)                      # None where there is nothing yet

It holds the format's version, the fingerprint of the dataset (``Mark``), for each component its kind with the name,
dtype and shape of its arrays, for each file its bytes and checksums, and a checksum of all that. It names files of its
own directory and nothing else; numbers in it are compared with each other and with the files before anything is made of
them.

What is refused with a ``ValueError`` is left as it is. ``Damaged`` means that the cache was whole once, and can be
written anew.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipeline import blobs
from pipeline.blobs import Damaged, Summed, Written
from pipeline.reading import Dense, Parts, Ragged, Sparse

NAME = "cache.json"
FORMAT = "tf-importance-sampling cache"
VERSION = 1
LARGEST = 1 << 24  # bytes of cache.json; the checksums of 60 TB take that much
ARRAY = re.compile(r"[0-9]{1,6}-[a-z]{1,20}[0-9]{0,3}", re.ASCII)
FILE = re.compile(ARRAY.pattern + r"(-offsets)?\.bin", re.ASCII)
KINDS: dict[str, type[Parts]] = {"dense": Dense, "ragged": Ragged, "sparse": Sparse}
ADVICE = "name another directory, or delete this one"


class Mark(NamedTuple):
    """By what a dataset is known again: its length, its components, a hash of its first elements."""

    elements: int
    spec: str
    first: str


class Manifest(NamedTuple):
    """What is in ``cache.json``; the arrays of ``columns`` are ``Written``."""

    mark: Mark
    columns: list[Parts]
    files: dict[str, Summed]


def dumped(manifest: Manifest) -> bytes:
    """The text of ``cache.json``."""
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION, **manifest.mark._asdict()}
    content["columns"] = [
        {"kind": type(parts).__name__.lower()} | {name: _plain(array) for name, array in parts._asdict().items()}
        for parts in manifest.columns
    ]
    content["files"] = {name: summed._asdict() for name, summed in manifest.files.items()}
    content["crc32"] = _checksum(content)
    return json.dumps(content, indent=1).encode()


def _plain(array: Any) -> Any:
    return array._asdict() if isinstance(array, Written) else [_plain(one) for one in array]


def _checksum(content: dict[str, Any]) -> int:
    rest = {name: value for name, value in content.items() if name != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def arrays(columns: list[Parts]) -> list[Written]:
    """All arrays of these columns."""
    fields = [field for parts in columns for field in parts]
    return [array for field in fields for array in (field if isinstance(field, list) else [field])]


def load(directory: Path) -> Manifest | None:
    """What the cache in ``directory`` says of itself, None where the directory is absent or empty.

    ``ValueError`` where it holds anything else than a cache, a link, or a cache of a newer version, and where
    ``cache.json`` contradicts itself or names what it must not; ``Damaged`` where that was cut short or altered.
    """
    try:
        entries = {entry.name: entry for entry in os.scandir(directory)}
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise ValueError(f"{directory} is no directory; a cache needs one that is absent, empty, or a cache") from None
    if not entries:
        return None
    _refuse_strange(directory, set(entries) if NAME not in entries else {n for n in entries if not is_ours(n)})
    for name, entry in entries.items():
        if not entry.is_file(follow_symlinks=False):
            raise ValueError(f"{directory / name} is a link or no plain file; nothing was read; {ADVICE}")
    with blobs.opened(directory / NAME) as file:
        raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ValueError(f"{directory / NAME} has more than {LARGEST:,} bytes, which no cache needs; {ADVICE}")
    if len(entries) == 1 and FORMAT.encode() not in raw:
        _refuse_strange(directory, {NAME})
    try:
        manifest = _parsed(raw)
    except ValueError as error:
        raise ValueError(f"{directory / NAME}: {error}; {ADVICE}") from None
    _refuse_strange(directory, entries.keys() - manifest.files.keys() - {NAME})
    return manifest


def is_ours(name: str) -> bool:
    """Whether a file of this name can belong to a cache."""
    return name == NAME or FILE.fullmatch(name) is not None


def _refuse_strange(directory: Path, names: set[str]) -> None:
    if names:
        some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f"{directory} holds something else than a cache ({some}), and nothing of it was touched; name a directory "
            "that is absent, empty, or a cache"
        )


# --- what is not believed -------------------------------------------------------------------------


def _parsed(raw: bytes) -> Manifest:
    """The manifest; ``ValueError`` for what nobody wrote by accident, ``Damaged`` for the rest."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise Damaged(f"{NAME} is cut short or altered") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"this is no {FORMAT}")
    version = content.get("version")
    if version != VERSION:
        raise ValueError(f"it has version {version!r:.20}, this program reads {VERSION}; bring this package up to date")
    whole = content.get("crc32") == _checksum(content)
    try:
        mark = Mark(_size("elements", content["elements"]), str(content["spec"]), str(content["first"]))
        columns = [_column(entry) for entry in content["columns"]]
        files = {_file(name): _summed(name, entry) for name, entry in content["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        if whole:
            raise ValueError(f"it is not made as a cache's is ({error})") from None
        raise Damaged(f"{NAME} is altered") from None
    _refuse_contradictions(columns, files)
    if not whole:
        raise Damaged(f"{NAME} is altered")
    return Manifest(mark, columns, files)


def _column(entry: dict[str, Any]) -> Parts:
    kind: Any = KINDS[entry["kind"]]
    fields = [entry[name] for name in kind._fields]
    return kind(*([_array(one) for one in field] if isinstance(field, list) else _array(field) for field in fields))


def _array(entry: dict[str, Any]) -> Written:
    name, dtype = entry["name"], entry["dtype"]
    if not isinstance(name, str) or not ARRAY.fullmatch(name):
        raise ValueError(f"it names the array {name!r:.60}, which would not lie in this directory")
    if not isinstance(dtype, str) or not _known(dtype):
        raise ValueError(f"it names the dtype {dtype!r:.60}, which is none of numbers or strings")
    shape = tuple(_size(f"a size of {name}", size) for size in entry["shape"])
    if not shape:
        raise ValueError(f"the array {name} has no axis")
    _size(f"the number of values of {name}", math.prod(shape))
    return Written(name, dtype, shape)


def _known(dtype: str) -> bool:
    try:
        known = tf.as_dtype(dtype)
    except TypeError:
        return False
    return known == tf.string or (known.size > 0 and not np.dtype(known.as_numpy_dtype).hasobject)


def _file(name: str) -> str:
    if not FILE.fullmatch(name):
        raise ValueError(f"it names the file {name!r:.60}, which would not lie in this directory")
    return name


def _summed(name: str, entry: dict[str, Any]) -> Summed:
    size, sums = _size(f"the size of {name}", entry["bytes"]), entry["crc32"]
    if not isinstance(sums, list) or len(sums) != -(-size // blobs.BLOCK):
        raise ValueError(f"{name} has {size:,} bytes, and not as many checksums as belong to them")
    return Summed(size, sums)


def _size(what: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 60:
        raise ValueError(f"{what} is {value!r:.60}, which is no size")
    return value


def _refuse_contradictions(columns: list[Parts], files: dict[str, Summed]) -> None:
    needed = {name: size for array in arrays(columns) for name, size in array.files().items()}
    if needed.keys() != files.keys():
        raise ValueError("its files are not those of its arrays")
    for name, size in needed.items():
        if size is not None and size != files[name].bytes:
            raise ValueError(f"{name} has {files[name].bytes:,} bytes, but its array needs {size:,}")
