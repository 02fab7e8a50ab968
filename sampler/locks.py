"""A folder that one process at a time writes into: the lock of a file in it.

    with Lock(folder / "lock"):                 # LockError with the number of the process that has it
        ...

The lock ends with its process, however that ends. Without locks of the system (Windows) nothing is held.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO


class LockError(ValueError):
    """Another process has the lock, or the file can be none: said in words."""


class Lock:
    """A lock that knows whether it is still that of the file of its name.

    Args:
        path: made where it is not there; the number of the process that has it stands in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> Lock:
        self.take()
        return self

    def __exit__(self, *raised: object) -> None:
        self.release()

    def take(self) -> None:
        """Take it, or nothing where it is this one's already; again, where the file has gone or is another one.

        ``LockError`` where another has it, or where the file cannot be opened: a link is not followed.
        """
        while not self._is_its_own():
            self.release()
            self._file = _taken(self.path)
            if self._file is None:
                return

    def release(self) -> None:
        """Give it back; the file stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _is_its_own(self) -> bool:
        with contextlib.suppress(OSError):
            return self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), os.lstat(self.path))
        return False


def check_free(path: Path) -> None:
    """``LockError`` where a process has the lock of that file; nothing is made where there is none."""
    if path.exists():
        with Lock(path):
            pass


def _taken(path: Path) -> IO[str] | None:
    """The locked file with the number of this process in it; None where the system has no locks."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover
        return None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:  # a link, a folder, another user's
        raise LockError(f"{path} cannot be locked: {error}; remove it, or name another folder") from error
    file = open(descriptor, "r+", encoding="ascii")  # noqa: SIM115  # it stays open as long as it is held
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read(20).strip() or "unknown"
        file.close()
        raise LockError(
            f"{path.parent} is in use by another run, process {holder}; wait for it, end it, or name another folder"
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
