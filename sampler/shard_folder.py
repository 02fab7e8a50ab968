"""The folder of a shard's snapshots belongs to one store at a time: who comes second is refused.

    file = taken(Path("snapshots/importance-1"), owner="3fa9")      # hold on to it
    file.close()                                                    # or the end of the process

The owner is the shard, not its process: one that was started again may come before the process that it had is gone, as
where that one's node cannot be reached, and is let in.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import time
from pathlib import Path

LOCK = "lock"
PATIENCE = 20.0  # seconds in which a shard that was removed may end
PAUSE = 0.1  # seconds between two looks


def taken(folder: Path, owner: str) -> io.FileIO | None:
    """The open file that holds the folder; None where nothing can be locked, or an earlier process of the owner has it.

    ``ValueError`` where a shard of another store has it still after 20 s.
    """
    try:
        import fcntl
    except ImportError:  # pragma: no cover  # Windows
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError:  # nor can snapshots be written, which will be told
        return None
    file = io.FileIO(descriptor, "r+")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _signed(file, owner)
        except BlockingIOError:
            holder = _holder(file)
        except OSError:  # a file system without locks
            holder = owner
        if holder.split(",")[0] == owner:
            file.close()
            return None
        if time.monotonic() > deadline:
            file.close()
            raise ValueError(
                f"the folder {folder} is in use by a shard of another store: {holder or 'unknown'}. Name another "
                "folder for the snapshots, or remove that store"
            )
        time.sleep(PAUSE)


def _holder(file: io.FileIO) -> str:
    file.seek(0)
    return file.read(300).decode(errors="replace").strip()


def _signed(file: io.FileIO, owner: str) -> io.FileIO:
    with contextlib.suppress(OSError):  # a full disk: it is held all the same
        file.truncate(0)
        file.seek(0)
        file.write(f"{owner}, process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file
