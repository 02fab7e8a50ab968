"""Snapshots in a folder: written whole or not at all, the newest few kept, the newest whole one read.

    write_snapshot(Path("snapshots/importance-1"), {"step": 7, "state": sampler.state_dict()})
    content = newest_snapshot(Path("snapshots/importance-1"))

A snapshot is one file of :mod:`sampler.state_bytes`, so nothing in it is run. One process may write into a folder.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from sampler.files import write_whole
from sampler.state_bytes import NewerFormatError, State, from_bytes, to_bytes

FORMAT = 1
KEEP = 2  # snapshots in a folder
ENDING = ".safetensors"
PART = "snapshot.part"  # what is being written

logger = logging.getLogger("sampler")


def write_snapshot(folder: Path, content: State) -> Path:
    """Write a snapshot whole or not at all, and remove all but the newest ``KEEP``; ``OSError`` where it fails."""
    data = to_bytes({"format": FORMAT, **content})
    folder.mkdir(parents=True, exist_ok=True)
    before = _snapshots(folder)
    number = int(before[-1].stem) + 1 if before else 1
    path = folder / f"{number:08}{ENDING}"
    try:
        write_whole(path, data, part=folder / PART, lasting=True)
    except OSError as error:
        raise OSError(f"{path} takes {len(data)} bytes and could not be written: {error}") from error
    for old in _snapshots(folder)[:-KEEP]:
        with contextlib.suppress(OSError):
            old.unlink()
    return path


def newest_snapshot(folder: Path) -> State | None:
    """What the newest whole snapshot in ``folder`` holds, or None where there is none.

    A damaged one is passed over, with a warning. ``ValueError`` where none is whole, and for one of a newer version,
    which is no reason to take an older one.
    """
    paths = _snapshots(folder)
    for path in reversed(paths):
        try:
            if path.is_symlink():
                raise ValueError("it is a link")
            content = from_bytes(path.read_bytes())
        except NewerFormatError as error:
            raise NewerFormatError(f"{path} cannot be read: {error}") from error
        except (OSError, ValueError) as error:
            logger.warning("the snapshot %s is passed over: %s", path, error)
            continue
        if content.get("format") != FORMAT:
            raise NewerFormatError(
                f"{path} has format {content.get('format')}, this version reads {FORMAT}; install a newer version of "
                "tf-importance-sampling"
            )
        return content
    if paths:
        raise ValueError(f"none of the snapshots in {folder} is whole; remove them, or name another folder")
    return None


def _snapshots(folder: Path) -> list[Path]:
    """The snapshots in ``folder``, the oldest first."""
    return sorted(path for path in folder.glob(f"*{ENDING}") if path.stem.isdecimal())
