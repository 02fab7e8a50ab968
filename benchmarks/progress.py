"""How far a benchmark is: a bar with the time that remains, or a line for each thing that begins, on standard error.

    with parts(12.5) as advance:
        advance("N=1,000", 0.0)                     # what is being done
        advance("N=1,000", 0.5)                     # and how much of it since the last call

    with things(7) as begin:
        begin("a store of 4 shards")                # what was begun before is done

Nothing is drawn but in these calls, so nothing computes in the middle of somebody's turn. ``pipeline.progress`` would
bring in TensorFlow with its package: seconds, and memory beside what is measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[str, float], None]
Begin = Callable[[str], None]


@contextmanager
def parts(total: float) -> Iterator[Advance]:
    """Gives a function that is told what is being done, and how much of ``total`` was done since the last call."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(total)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task("starting", total=total)
        yield lambda what, part: bar.update(task, advance=part, description=what, refresh=True)


@contextmanager
def things(total: int) -> Iterator[Begin]:
    """Gives a function to call when one of ``total`` things begins."""
    doing: list[str] = []

    def begin(what: str) -> None:
        if doing:
            advance(doing[-1], 1.0)
        doing.append(what)
        advance(what, 0.0)

    with parts(total) as advance:
        yield begin


def _lines(total: float) -> Advance:
    """A line when something else begins: how much is done, and how long the rest will take."""
    start, done, doing = time.monotonic(), 0.0, ""

    def advance(what: str, part: float) -> None:
        nonlocal done, doing
        if what != doing:
            doing = what
            left = "" if done <= 0.0 else f", {_words((time.monotonic() - start) * (total - done) / done)} left"
            print(f"[{done / total:.0%}{left}] {what}", file=sys.stderr, flush=True)
        done += part

    return advance


def _words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
