"""The ledger: which draws are in flight, and whose feedback still waits.

Prefetching draws ahead of training, so what a draw knows would depend on timing unless it is ruled. With a lag
of k, the draw of step n uses exactly the feedback of the steps up to n - k::

    lag 2      draw 0   draw 1   draw 2   draw 3   ...
    uses         -        -       ≤ 0      ≤ 1

Feedback that comes earlier waits here; a draw for which some is missing has to wait (the sampler does the waiting).
Draws that were never fed back stay here too: after a restart, or when an iteration was broken off, they are
handed out again, unchanged.

    ledger = Ledger(lag=2)
    ledger.hand_out(draw)                        # a batch leaves
    matched = ledger.match(index, steps, next_step)
    ledger.report(matched, losses)               # its feedback, whole or in parts
    for flight in ledger.due(next_step): ...     # complete, in order of step
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sampler import checks

Float64s = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Places = Int64s | npt.NDArray[np.bool_] | slice


# What a state keeps of every sample in flight.
COLUMNS: dict[str, type] = {
    "index": np.int64,
    "probability": np.float64,
    "weight": np.float32,
    "losses": np.float64,
    "reported": np.bool_,
}


class Draw(NamedTuple):
    """One batch of draws, frozen when it was made.

    Attributes:
        step: which draw of the sampler this is, counted from 0.
        index: (B,) int64, the samples.
        probability: (B,) float64 in (0, 1], expected number of times the sample is in the batch, over B.
        weight: (B,) float32 > 0, the importance weight (1 / (N p)) ** β.
    """

    step: int
    index: Int64s  # type: ignore[assignment]  # hides tuple.index, on purpose
    probability: Float64s
    weight: Float32s


class Flight:
    """A draw on its way, and the losses that have come back for it."""

    __slots__ = ("draw", "losses", "missing", "reported")

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.losses = np.zeros(draw.index.size, np.float64)
        self.open()

    def open(self) -> None:
        """None of its draws is reported."""
        self.reported = np.zeros(self.draw.index.size, np.bool_)
        self.missing = self.reported.size

    def report(self, places: Places, losses: Float64s) -> None:
        """The losses of the draws at the unreported ``places``."""
        self.losses[places] = losses
        self.reported[places] = True
        self.missing -= losses.size

    @property
    def complete(self) -> bool:
        """Whether each of its B draws has been reported."""
        return self.missing == 0


class Match(NamedTuple):
    """Where reports belong."""

    flight: Flight
    places: Places  # in the flight
    which: Places  # of the reports
    count: int  # type: ignore[assignment]  # hides tuple.count, on purpose


class Ledger:
    """Draws in flight, ascending by step, for a lag of ``lag`` ≥ 1 steps."""

    def __init__(self, lag: int) -> None:
        self.lag = lag
        self._flights: dict[int, Flight] = {}
        self._again: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    def hand_out(self, draw: Draw) -> None:
        """Enter a draw that leaves the sampler."""
        self._flights[draw.step] = Flight(draw)

    def match(self, index: Int64s, steps: Int64s, next_step: int) -> list[Match]:
        """Where each report belongs; changes nothing.

        ``steps`` is (B,), or (1,) where all have the same. Reports of steps that were complete before are left out.
        Raises ``ValueError`` for a step that was not drawn yet and for a sample that was not in the draw of its step.
        """
        if steps.size and steps.max() >= next_step:
            raise ValueError(
                f"feedback for step {steps.max()}, but only {next_step} draws were made (steps 0 to "
                f"{next_step - 1}); pass the step that came with the draw"
            )
        matched = []
        same = (steps == steps[0]).all()  # nearly always, and then there is nothing to sort
        for step in steps[:1] if same else np.unique(steps):
            flight = self._flights.get(int(step))
            if flight is not None:
                if same and flight.missing == index.size and np.array_equal(flight.draw.index, index):
                    return [Match(flight, slice(None), slice(None), index.size)]  # as it mostly is
                which = np.arange(index.size) if same else np.flatnonzero(steps == step)
                places, known = _places(flight, index[which])
                matched.append(Match(flight, places, which[known], places.size))
        return matched

    def report(self, matched: list[Match], losses: Float64s) -> None:
        """Write the losses where ``match`` said they belong."""
        for match in matched:
            match.flight.report(match.places, losses[match.which])

    def due(self, next_step: int) -> Iterator[Flight]:
        """The flights that the draw of ``next_step`` uses, in order, up to the first incomplete.

        Each is taken out when the next one is asked for, and stays where what is done with it fails.
        """
        while self._flights:
            step = next(iter(self._flights))
            if step > next_step - self.lag or not self._flights[step].complete:
                return
            yield self._flights[step]
            del self._flights[step]

    def missing(self, next_step: int) -> tuple[int, int, int] | None:
        """``(step, reported, B)`` of the oldest draw that the draw of ``next_step`` still waits for."""
        for step, flight in self._flights.items():
            if step > next_step - self.lag:
                return None
            if not flight.complete:
                return step, flight.reported.size - flight.missing, flight.reported.size
        return None

    def rewind(self) -> None:
        """Have every draw that is not completely fed back handed out again, oldest first."""
        self._again = deque(step for step, flight in self._flights.items() if not flight.complete)

    def again(self) -> Draw | None:
        """The next draw to hand out again, or None."""
        while self._again:
            flight = self._flights.get(self._again[0])
            if flight is not None and not flight.complete:
                return flight.draw
            self._again.popleft()  # its feedback came after all
        return None

    def handed_again(self) -> None:
        """The draw that ``again`` named has left; what was reported of it so far will be reported anew."""
        self._flights[self._again.popleft()].open()

    def state_dict(self) -> dict[str, Any]:
        """Everything in flight as plain arrays, one entry for each draw in flight or each of its samples."""
        flights = list(self._flights.values())
        draws = [flight.draw for flight in flights]
        return {
            "step": np.array([draw.step for draw in draws], np.int64),
            "size": np.array([draw.index.size for draw in draws], np.int64),
            "index": _joined([draw.index for draw in draws], "index"),
            "probability": _joined([draw.probability for draw in draws], "probability"),
            "weight": _joined([draw.weight for draw in draws], "weight"),
            "losses": _joined([flight.losses for flight in flights], "losses"),
            "reported": _joined([flight.reported for flight in flights], "reported"),
        }

    def load_state_dict(self, state: dict[str, Any], *, next_step: int) -> None:
        """Take back what ``state_dict`` gave; what is not fed back will be handed out again.

        Raises ``ValueError``, ``TypeError`` or ``KeyError`` where the arrays do not fit together; nothing is
        changed then.
        """
        steps, sizes = _checked_steps(state, next_step)
        columns = [checks.array(name, state[name], np.empty(sizes.sum(), dtype)) for name, dtype in COLUMNS.items()]
        flights = {}
        for step, end, size in zip(steps.tolist(), np.cumsum(sizes), sizes, strict=True):
            index, probability, weight, losses, reported = (column[end - size : end].copy() for column in columns)
            flights[step] = Flight(frozen(step, index, probability, weight))
            flights[step].report(reported, losses[reported])
        self._flights = flights
        self.rewind()


def frozen(step: int, index: Int64s, probability: Float64s, weight: Float32s) -> Draw:
    """A draw whose arrays cannot be written."""
    for column in (index, probability, weight):
        column.flags.writeable = False
    return Draw(step, index, probability, weight)


def _places(flight: Flight, index: Int64s) -> tuple[Int64s, Int64s]:
    """The unreported places of ``flight`` that ``index`` fills, and which of ``index`` fill them."""
    drawn = flight.draw.index
    strangers = np.flatnonzero(~np.isin(index, drawn))
    if strangers.size:
        raise ValueError(
            f"sample {index[strangers[0]]} was not in the draw of step {flight.draw.step}; pass the index "
            "and the step that came with the draw"
        )
    open_places = np.flatnonzero(~flight.reported)
    open_places = open_places[np.argsort(drawn[open_places], kind="stable")]
    order = np.argsort(index, kind="stable")
    # The r-th report of a sample fills its r-th open place.
    repeat = np.arange(index.size) - np.searchsorted(index[order], index[order])
    place = np.searchsorted(drawn[open_places], index[order]) + repeat
    fits = place < np.searchsorted(drawn[open_places], index[order], side="right")
    return open_places[place[fits]], order[fits]


def _joined(parts: list[npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, COLUMNS[name])


def _checked_steps(state: dict[str, Any], next_step: int) -> tuple[Int64s, Int64s]:
    """The steps of a state, ascending and below ``next_step``, and the batch size of each."""
    steps = checks.array("step", state["step"], np.empty(len(state["step"]), np.int64))
    sizes = checks.array("size", state["size"], steps)
    if (np.diff(steps, prepend=-1, append=next_step) <= 0).any() or (sizes < 1).any():
        raise ValueError(f"steps must ascend from 0 on and stay below {next_step}, and sizes be at least 1")
    if sizes.sum() != len(state["index"]):
        raise ValueError(f"sizes add up to {sizes.sum()}, but there are {len(state['index'])} indices")
    return steps, sizes
