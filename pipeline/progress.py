"""How far a long reading or training is: shown only to those who wait.

    with counting("reading the dataset into memory", 50_000) as tell:
        tell(1_024)                                 # so many elements are done
        ...

Nothing for two seconds after the first call. Then a bar with the time that remains, where the standard error stream is
a terminal and ``rich`` is installed; else a line every five seconds, or every twentieth of what is expected in all::

    reading the dataset into memory: 12,288 of 50,000 elements, about 14 s left
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 2.0  # seconds in which nothing is shown
EVERY = 5.0  # seconds between two lines, at least
PART = 0.05  # of the seconds that are expected in all, between two lines
SOON, LONG = 0.1, 30.0  # of all, or seconds, before which nothing is said of what remains: the first steps compile
AGAIN = 0.1  # seconds between two looks of a bar


_hidden = contextvars.ContextVar("_hidden", default=False)


@contextlib.contextmanager
def counting(what: str | Callable[[], str], total: int, unit: str = "elements") -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the number of elements, or of what ``unit`` says, done so far, of ``total``.

    What is done may change meanwhile: then ``what`` is a function, which is asked when it is shown. A call that shows
    nothing looks at the clock and no more, so it may come with every step. What is counted inside is not shown: it is a
    part of this.
    """
    if _hidden.get():
        yield lambda count: None
        return
    shown = _Shown(what, total, unit)
    try:
        with silence():
            yield shown.tell
    finally:
        shown.close()


@contextlib.contextmanager
def silence(wanted: bool = True) -> Iterator[None]:
    """Nothing is shown inside, where that is ``wanted``."""
    before = _hidden.set(wanted or _hidden.get())
    try:
        yield
    finally:
        _hidden.reset(before)


class _Shown:
    """What is on the screen."""

    def __init__(self, what: str | Callable[[], str], total: int, unit: str) -> None:
        self.what: Callable[[], str] = what if callable(what) else lambda: what
        self.total, self.unit = total, unit
        self.begin: tuple[float, int] | None = None  # when first so many were done: what comes before is no measure
        self.next = time.monotonic() + PATIENCE
        self.bar: Any = None
        self.asked = False  # whether it is known if there is a bar

    def tell(self, count: int) -> None:
        now = time.monotonic()
        if self.begin is None:
            self.begin, self.next = (now, count), max(self.next, now + PATIENCE)
        began, before = self.begin
        if now < self.next:
            return
        with contextlib.suppress(OSError, ValueError):  # a screen that is gone is no reason to stop reading
            if not self.asked:
                self.asked, self.bar = True, _bar(self.what, self.total)
            each = (now - began) / (count - before) if count > before else 0.0
            left = ""
            if count - before >= SOON * self.total or (each and now - began >= LONG):
                left = f"about {_words(each * (self.total - count))} left"
            if self.bar is not None:
                self.next = now + AGAIN if count < self.total else now
                self.bar.update(self.bar.task_ids[0], completed=count, description=self.what(), left=left)
            elif count < self.total and sys.stderr is not None:
                line = ", ".join(filter(None, [f"{self.what()}: {count:,} of {self.total:,} {self.unit}", left]))
                self.next = now + max(EVERY, PART * each * self.total)
                print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self.bar.stop()


def on_terminal() -> bool:
    """Whether what is shown goes to a terminal, and not into a file or nowhere."""
    return sys.stderr is not None and sys.stderr.isatty()


def _bar(what: Callable[[], str], total: int) -> Any:
    """A bar that has begun, None where there is no terminal or no ``rich``."""
    if not on_terminal():
        return None
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        return None
    text = TextColumn("{task.description}", markup=False)  # a name may hold brackets
    columns = (text, BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(what(), total=total, left="")
    bar.start()
    return bar


def _words(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
