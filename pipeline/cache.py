"""A finite ``tf.data.Dataset`` kept in files, read once and used again by every later run.

    from pipeline.cache import cached_source
    source = cached_source(dataset, size=50_000, directory="/data/photos-cache")

The directory is the cache. It is absent or empty at first; then it looks like this, here for elements
``(image, words)``::

    photos-cache
    ├── cache.json              what the files hold, their sizes and checksums
    ├── 0-values.bin            all images, one after the other, as they stand in memory
    ├── 1-splits0.bin           where the words of each element begin
    ├── 1-values.bin            the bytes of all words
    └── 1-values-offsets.bin    where each word begins in them

Files are named after the component's place among the flattened components, and after the part of it. Numbers are mapped
into memory and gathered from there inside the graph, so what is used often stays in the page cache, and nothing else
takes memory.

**Written once.** The files are made in a directory beside it, ``.photos-cache.<host>-<process>-<number>.tmp``, brought
to the disk, and renamed in one step. So there is a whole cache or none; what a killed process left behind is removed by
the next one. Of several processes that write at the same time, all but the first to be done use that one's.

**Known again.** A cache is used again only for a dataset with the same number of elements, the same components, and the
same first 16 elements, which are read each time. Another dataset that begins with the same elements is not told apart.

**Verified.** When a cache is opened, the sizes of all files are compared, and the checksums (CRC-32 of every 64 MiB) of
up to 1 GiB of blocks: all of a small cache, the first, the last and evenly spread ones of a large one. Where something
differs, the cache is written anew, with a warning. That finds accidents, not malice; but nothing that is read is
executed, and nothing outside the directory is read. Do not change the files while they are in use.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import manifest
from pipeline.blobs import Damaged, Files, check_splits, mapped, verify
from pipeline.columns import ColumnSource, dtype_of
from pipeline.drawable import refuse
from pipeline.manifest import ADVICE, Manifest, Mark
from pipeline.progress import counting
from pipeline.reading import Dense, Parts, Ragged, known_bytes, naming, read, source_of

FIRST = 16  # elements that are compared

_HOST = re.sub("[^A-Za-z0-9]", "", socket.gethostname())[:32]
_NUMBERS = itertools.count()
_ACTIVE: set[str] = set()  # temporary directories of this process


def cached_source(dataset: tf.data.Dataset, *, size: int, directory: str | os.PathLike[str]) -> ColumnSource:
    """The elements of a finite, unbatched dataset of ``size`` elements, in files under ``directory``.

    The first call reads the first 16 elements twice, to see that they stay the same, and then the dataset, a part of
    some 32 MiB at a time. It writes about as many bytes as its values take, 8 more for every element of varying shape
    and for every string. Later calls read the first 16 elements and up to 1 GiB of the files.

    Raises ``ValueError`` for a dataset that cannot be drawn from or differs from pass to pass, where ``directory``
    holds something else than a cache, a cache of another dataset or of a newer version, or one that was tampered with;
    then nothing is changed. ``OSError`` where the disk is full or cannot be written to, with the bytes that are needed.
    What the dataset raises is raised again with the elements named that were being read. In all these cases nothing new
    is left on the disk, and an earlier cache stays as it is.

    Warns (``RuntimeWarning``) where a cache was cut short or altered, and writes it anew.
    """
    refuse(dataset, size)
    path = _path(directory)
    mark, each = _fingerprint(dataset, size)
    _remove_abandoned(path)
    try:
        found = _opened(path, dataset, mark)
    except Damaged as damage:
        message = f"the cache in {path} is not what was written: {damage}; it is written anew"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        found = None
    if found is not None:
        return found
    if _fingerprint(dataset, size)[0] != mark:  # else the next run alone would be refused, after a long first one
        raise ValueError(
            "the dataset gives other elements each time it is read, so a cache would not hold what it was taken for; "
            "put what is random after the draw, as map_fn, and remove a shuffle"
        )
    return _Writer(path, dataset, mark, each).write()


def _path(directory: str | os.PathLike[str]) -> Path:
    if not isinstance(directory, (str, os.PathLike)) or not os.fspath(directory):
        raise TypeError(f'cache must be "memory" or the path of a directory, got {directory!r}')
    path = Path(os.path.realpath(Path(os.fsdecode(directory)).expanduser()))
    if os.path.ismount(path):
        raise ValueError(
            f"{path} is where a disk is mounted, and cannot be put in place in one step; name a "
            f"directory in it, such as {path / 'cache'}"
        )
    return path


# --- known again ----------------------------------------------------------------------------------


def _fingerprint(dataset: tf.data.Dataset, size: int) -> tuple[Mark, int]:
    """What the dataset is known by, and how many bytes one of its first elements takes on average."""
    digest, total, count = hashlib.sha256(), 0, 0
    elements = iter(dataset.take(FIRST))
    while True:
        with naming(0, min(FIRST, size) - 1):
            element = next(elements, None)
        if element is None:
            break
        count += 1
        for tensor in tf.nest.flatten(element, expand_composites=True):
            digest.update(f"{tensor.dtype.name} {tensor.shape};".encode())
            for part in _bytes_of(tensor):
                digest.update(part)
                total += len(part)
    mark = Mark(size, _described(dataset.element_spec), digest.hexdigest())
    return mark, total // max(count, 1)


def _bytes_of(tensor: tf.Tensor) -> Iterator[bytes]:
    if tensor.dtype != tf.string:
        yield tensor.numpy().tobytes()
        return
    for string in np.array(tensor.numpy(), object).reshape(-1):
        yield len(string).to_bytes(8, "little")
        yield string


def _described(spec: Any) -> str:
    """The components in words: ``(uint8 (32, 32, 3), int64 ())``."""
    if isinstance(spec, Mapping):
        return "{" + ", ".join(f"{name!r}: {_described(spec[name])}" for name in sorted(spec)) + "}"
    if isinstance(spec, tuple):
        name = type(spec).__name__ if hasattr(spec, "_fields") else ""
        return f"{name}({', '.join(map(_described, spec))})"
    if isinstance(spec, tf.RaggedTensorSpec):
        return f"ragged {spec.dtype.name} {spec.shape} with {spec.row_splits_dtype.name} splits"
    kind = "sparse " if isinstance(spec, tf.SparseTensorSpec) else ""
    return f"{kind}{spec.dtype.name} {spec.shape}"


def _refuse_another(path: Path, there: Mark, here: Mark) -> None:
    differ = [
        f"{words.format(one)}, the dataset {other}"
        for words, one, other in zip(("it has {} elements", "its elements are {}"), there, here, strict=False)
        if one != other
    ]
    if not differ and there.first != here.first:
        differ = [
            f"the first {FIRST} elements are others (or random: then put what is random after the draw, as map_fn)"
        ]
    if differ:
        raise ValueError(f"the cache in {path} is that of another dataset: {'; '.join(differ)}. {ADVICE.capitalize()}")


# --- opened ---------------------------------------------------------------------------------------


def _opened(path: Path, dataset: tf.data.Dataset, mark: Mark) -> ColumnSource | None:
    """The source in a directory, None where that is absent or empty."""
    found = manifest.load(path)
    if found is None:
        return None
    _refuse_another(path, found.mark, mark)
    verify(path, found.files)
    return _source(path, dataset, found)


def _source(path: Path, dataset: tf.data.Dataset, found: Manifest) -> ColumnSource:
    columns = [_mapped(path, parts) for parts in found.columns]
    leaves = tf.nest.flatten(dataset.element_spec)
    fit = [_fits(spec, parts, found.mark.elements) for spec, parts in zip(leaves, columns, strict=False)]
    if len(columns) != len(leaves) or not all(fit):
        raise ValueError(f"the arrays in {path} are not those of its elements; {ADVICE}")
    return source_of(dataset, columns)


def _mapped(path: Path, parts: Parts) -> Parts:
    """The same parts with their arrays."""
    kind: Any = type(parts)
    return kind(
        *([mapped(path, one) for one in part] if isinstance(part, list) else mapped(path, part) for part in parts)
    )


def _fits(spec: Any, parts: Parts, size: int) -> bool:
    """Whether dtypes and shapes are those of the component; ``Damaged`` where rows do not begin where rows can."""
    values = parts.values
    if dtype_of(values) != spec.dtype:
        return False
    if isinstance(parts, Dense):
        dense = isinstance(spec, tf.TensorSpec) and len(values) == size
        return dense and spec.shape.is_compatible_with(values.shape[1:])
    splits = parts.splits if isinstance(parts, Ragged) else [parts.splits]
    sizes = list(spec.shape[: len(splits)]) if isinstance(parts, Ragged) else [None]
    counts = [size, *(len(level) - 1 for level in splits[1:]), len(values)]
    if len(sizes) != len(splits) or not splits:
        return False
    for level, count, total, each in zip(splits, counts[:-1], counts[1:], sizes, strict=True):
        if level.dtype != np.int64 or level.shape != (count + 1,):
            return False
        check_splits("the rows' beginnings", level, total, each)
    if isinstance(parts, Ragged):
        dense = not isinstance(spec, tf.SparseTensorSpec)
        return dense and spec.shape[len(splits) :].is_compatible_with(values.shape[1:])
    rank, integers = spec.shape.rank, parts.coordinates.dtype == parts.shapes.dtype == np.int64
    shapes = parts.coordinates.shape, values.shape, parts.shapes.shape
    sparse = isinstance(spec, tf.SparseTensorSpec) and integers
    return sparse and shapes == ((len(values), rank), (len(values),), (size, rank))


# --- written --------------------------------------------------------------------------------------


class _Writer:
    """Reads the dataset into files, and puts them in place."""

    def __init__(self, path: Path, dataset: tf.data.Dataset, mark: Mark, each: int) -> None:
        self.path = path
        self.dataset = dataset
        self.mark = mark
        self.each = each  # bytes an element, by the first ones
        self.count = self.written = 0  # elements and bytes so far

    def write(self) -> ColumnSource:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            each, exact = known_bytes(self.dataset)
            if exact and each * self.mark.elements > shutil.disk_usage(self.path.parent).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with _temporary(self.path) as temporary:
                source = self._fill(temporary)
                return self._put_in_place(temporary, source)
        except OSError as error:
            raise OSError(error.errno or errno.EIO, self._words(error)) from error

    def _fill(self, temporary: Path) -> ColumnSource:
        files, size = Files(temporary), self.mark.elements
        with contextlib.closing(files), counting(f"writing the cache in {self.path}", size) as progress:

            def tell(count: int) -> None:
                self.count, self.written = count, files.written
                progress(count)

            columns = read(self.dataset, size, files.rows, tell, self.each)
            files.keep({name for array in manifest.arrays(columns) for name in array.files()})
        found = Manifest(self.mark, columns, files.summed())
        with open(temporary / manifest.NAME, "xb") as file:
            file.write(manifest.dumped(found))
            file.flush()
            os.fsync(file.fileno())
        _to_disk(temporary)
        return _source(temporary, self.dataset, found)  # its maps stay when the directory is renamed

    def _put_in_place(self, temporary: Path, source: ColumnSource) -> ColumnSource:
        """Rename; where another was quicker, use what that one wrote if it is whole."""
        while True:
            try:
                os.rename(temporary, self.path)  # takes the place of an empty directory, and of nothing else
                _to_disk(self.path.parent)
                return source
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            try:
                found = _opened(self.path, self.dataset, self.mark)
            except Damaged:
                found = None
                _put_away(self.path)
            if found is not None:
                return found

    def _words(self, error: OSError) -> str:
        """What went wrong, the bytes that are needed, and how to mend it."""
        each, exact = known_bytes(self.dataset)
        size = self.mark.elements
        if exact:
            needed = f"{each * size:,} bytes are needed"
        elif self.count:
            needed = f"about {self.written * size // self.count:,} bytes are needed, by what was read"
        else:
            needed = f"about {self.each * size:,} bytes are needed, by the first elements"
        with contextlib.suppress(OSError):
            needed += f", {shutil.disk_usage(self.path.parent).free:,} are free there now"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "free some space, or name a directory on another disk" if full else "name one that can be written to"
        return (
            f"the cache of {size:,} elements could not be written to {self.path}: {error.strerror or error}, after "
            f"{self.count:,} elements and {self.written:,} bytes; {needed}; {mend}. What was written is removed again"
        )


def _to_disk(directory: Path) -> None:
    """Bring the names in a directory to the disk, where the file system has a way to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- temporary directories ------------------------------------------------------------------------


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new directory beside ``path``, removed in the end if it is still there."""
    temporary = _beside(path)
    _ACTIVE.add(temporary.name)
    try:
        temporary.mkdir()
        yield temporary
    finally:
        _remove(temporary)
        _ACTIVE.discard(temporary.name)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{next(_NUMBERS)}.tmp")


def _put_away(path: Path) -> None:
    """Remove a damaged cache, in one step to the eyes of others."""
    away = _beside(path)
    with contextlib.suppress(FileNotFoundError):  # another did it
        os.rename(path, away)
    _remove(away)


def _remove(directory: Path) -> None:
    """Delete a directory and the files of a cache in it, and nothing else."""
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            if manifest.is_ours(name):
                (directory / name).unlink()
        directory.rmdir()


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary directories of processes of this host that are no more."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{_HOST}-([0-9]{{1,7}})-[0-9]+\.tmp")
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            found = pattern.fullmatch(name)
            if found and name not in _ACTIVE and not _alive(int(found[1])) and not (path.parent / name).is_symlink():
                _remove(path.parent / name)


def _alive(process: int) -> bool:
    """Whether another process has this number."""
    if process == os.getpid():
        return False  # the number was another's before
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
