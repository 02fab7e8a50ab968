"""Files that are never half written.

    from sampler.files import write_whole

    write_whole(folder / "summary.json", b"{}")                                                   # all, or the old one
    write_whole(folder / "00000007.safetensors", data, part=folder / "snapshot.part", lasting=True)

The bytes go into a file beside it, which then takes the name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write_whole(path: Path, data: bytes, *, part: Path | None = None, lasting: bool = False) -> None:
    """Write a file so that whoever reads it sees the old one or the new one, never a part.

    Args:
        path: the file, in a folder that is there.
        data: all that it will hold.
        part: the file in the same folder that the bytes go into at first; one that a killed process left is written
            over, so there is never more than one, and only one process may write at a time. None: one of its own each
            time, so that several may.
        lasting: whether all is on the disk when this returns, so that it outlasts a machine that stops; it waits for
            the disk.

    Raises ``OSError`` where writing fails; the old file is then as it was, and the part is gone.
    """
    if part is None:
        mode, part = "xb", path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    else:
        mode = "wb"
    try:
        with open(part, mode) as file:
            file.write(data)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
        if lasting:
            _names_to_disk(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _names_to_disk(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
