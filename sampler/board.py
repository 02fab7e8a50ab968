"""The board between a trainer and its scorers: the newest weights, and what has been scored.

    board = Board()
    board.publish(step=120, weights=reference)              # the trainer
    news = board.ask(Report(scorer=0, process=4711))        # a scorer, between two batches
    news.step, news.weights, news.over

:mod:`pipeline.scorers` runs one in an actor of Ray; here is nothing of that, nor of TensorFlow, so that it starts at
once.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple


class Report(NamedTuple):
    """What a scorer says as it asks for news: in one call, or of all calls so far.

    Attributes:
        scorer: which one.
        process: the number of its process.
        step: of the weights that it has, or -1.
        scored: samples, since it last asked.
        seconds: that this took it.
    """

    scorer: int
    process: int
    step: int = -1
    scored: int = 0
    seconds: float = 0.0


class News(NamedTuple):
    """What a scorer is told: ``weights`` newer than its own, and their step, or None; and whether all is over."""

    step: int
    weights: Any
    over: bool


class Tally(NamedTuple):
    """What all scorers have done.

    Attributes:
        reports: of each scorer that has asked, what all its reports come to, in order.
        again: how many processes of theirs were not a scorer's first.
        seconds: since the first of them asked for the first time, or 0.
    """

    reports: list[Report]
    again: int
    seconds: float


class Board:
    """Holds the newest weights, or what stands for them, and adds up what scorers report."""

    def __init__(self) -> None:
        self._step, self._weights, self._over = -1, None, False
        self._reports: dict[int, Report] = {}
        self._processes: dict[int, set[int]] = {}
        self._start: float | None = None

    def publish(self, step: int, weights: Any) -> None:
        """Put up weights, in place of those before them unless these are newer."""
        if step >= self._step:
            self._step, self._weights = step, weights

    def ask(self, report: Report) -> News:
        """Take a scorer's report, and tell it what is new to it."""
        self._start = time.monotonic() if self._start is None else self._start
        before = self._reports.get(report.scorer, Report(report.scorer, report.process))
        scored, seconds = before.scored + report.scored, before.seconds + report.seconds
        self._reports[report.scorer] = report._replace(scored=scored, seconds=seconds)
        self._processes.setdefault(report.scorer, set()).add(report.process)
        return News(self._step, self._weights if self._step > report.step else None, self._over)

    def end(self) -> None:
        """Have the scorers end."""
        self._over, self._weights = True, None

    def tally(self) -> Tally:
        """What they have done so far."""
        again = sum(len(processes) - 1 for processes in self._processes.values())
        seconds = 0.0 if self._start is None else time.monotonic() - self._start
        return Tally([self._reports[scorer] for scorer in sorted(self._reports)], again, seconds)
