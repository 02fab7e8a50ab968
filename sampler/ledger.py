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

A ledger that is *watching* keeps, for a gate, the p that the priorities gave each sample, and the scores that come
back with the losses. ``Recent`` keeps no more than that, where there is no lag and nothing waits.
"""

from __future__ import annotations

import math
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
WATCHED: dict[str, type] = {"prior": np.float64, "scores": np.float64}  # and what one that watches keeps beside it
RECENT = 1024  # draws whose feedback may still come where there is no lag


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


class Told(NamedTuple):
    """What a gate is told beside the losses."""

    scores: Float64s  # (B,), NaN where there is none
    norm: float  # of the batch's mean gradient; NaN where none was given, infinite where it was not finite


class Flight:
    """A draw on its way, and what has come back for it.

    Where it is watched, ``prior`` (B,) is the p that the priorities gave the samples, NaN where there were none yet.
    """

    __slots__ = ("draw", "losses", "missing", "norm", "prior", "reported", "scores")

    def __init__(self, draw: Draw, prior: Float64s | None = None) -> None:
        self.draw, self.prior = draw, prior
        self.losses = np.zeros(draw.index.size, np.float64)
        self.scores = None if prior is None else np.full(draw.index.size, np.nan)
        self.open()

    def open(self) -> None:
        """None of its draws is reported."""
        self.reported = np.zeros(self.draw.index.size, np.bool_)
        self.missing = self.reported.size
        self.norm = np.nan

    def report(self, places: Places, losses: Float64s, told: Told | None = None) -> None:
        """The losses, and what else is ``told``, of the draws at the unreported ``places``."""
        self.losses[places] = losses
        if self.scores is not None:
            self.scores[places] = np.nan if told is None else told.scores
            if told is not None and not math.isnan(told.norm):  # of several parts the last one counts
                self.norm = told.norm
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

    def __init__(self, lag: int, *, watching: bool = False) -> None:
        self.lag, self.watching = lag, watching
        self._flights: dict[int, Flight] = {}
        self._again: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    def hand_out(self, draw: Draw, prior: Float64s | None = None) -> None:
        """Enter a draw that leaves the sampler; ``prior`` as in ``Flight``, for one that is watching."""
        self._flights[draw.step] = Flight(draw, prior)

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
        whole = self._whole(index, steps)
        if whole is not None:
            return [Match(whole, slice(None), slice(None), index.size)]
        matched = []
        same = (steps == steps[0]).all()
        for step in steps[:1] if same else np.unique(steps):
            flight = self._flights.get(int(step))
            if flight is not None:
                which = np.arange(index.size) if same else np.flatnonzero(steps == step)
                places, known = _places(flight, index[which])
                matched.append(Match(flight, places, which[known], places.size))
        return matched

    def _whole(self, index: Int64s, steps: Int64s) -> Flight | None:
        """The flight that the reports are of, all of it and in its order, as they nearly always are."""
        flight = self._flights.get(int(steps[0]))
        if flight is None or flight.missing != index.size or not np.array_equal(flight.draw.index, index):
            return None
        return flight if steps.size == 1 or (steps == steps[0]).all() else None

    def report(self, matched: list[Match], losses: Float64s, told: Told | None = None) -> None:
        """Write the losses, and what else was told, where ``match`` said they belong."""
        for match in matched:
            part = None if told is None else Told(told.scores[match.which], told.norm)
            match.flight.report(match.places, losses[match.which], part)

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

    def oldest_open(self) -> int | None:
        """The step of the oldest draw that is not completely fed back; None where all are."""
        return next((step for step, flight in self._flights.items() if not flight.complete), None)

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
        state = {
            "step": np.array([draw.step for draw in draws], np.int64),
            "size": np.array([draw.index.size for draw in draws], np.int64),
            "index": _joined([draw.index for draw in draws], "index"),
            "probability": _joined([draw.probability for draw in draws], "probability"),
            "weight": _joined([draw.weight for draw in draws], "weight"),
            "losses": _joined([flight.losses for flight in flights], "losses"),
            "reported": _joined([flight.reported for flight in flights], "reported"),
        }
        if self.watching:
            for name in WATCHED:
                state[name] = _joined([getattr(flight, name) for flight in flights], name)
            state["norm"] = np.array([flight.norm for flight in flights], np.float64)
        return state

    def load_state_dict(self, state: dict[str, Any], *, next_step: int) -> None:
        """Take back what ``state_dict`` gave; what is not fed back will be handed out again.

        Raises ``ValueError``, ``TypeError`` or ``KeyError`` where the arrays do not fit together; nothing is
        changed then.
        """
        steps, sizes = _checked_steps(state, next_step)
        names = {**COLUMNS, **(WATCHED if self.watching else {})}
        columns = [checks.array(name, state[name], np.empty(sizes.sum(), dtype)) for name, dtype in names.items()]
        checks.drawn_with(columns[1])  # what no draw has would not be seen before its losses come back
        if not (columns[2] > 0.0).all():
            raise ValueError(f"weights of draws must be above 0, got {columns[2].min():g}")
        norms = (
            checks.array("norm", state["norm"], np.empty(steps.size)) if self.watching else np.full(steps.size, np.nan)
        )
        flights = {}
        for step, end, size, norm in zip(steps.tolist(), np.cumsum(sizes), sizes, norms.tolist(), strict=True):
            index, probability, weight, losses, reported, *watched = (
                column[end - size : end].copy() for column in columns
            )
            prior, scores = watched or (None, None)
            told = None if scores is None else Told(scores[reported], norm)
            flights[step] = Flight(frozen(step, index, probability, weight), prior)
            flights[step].report(reported, losses[reported], told)
        self._flights = flights
        self.rewind()


class Recent(Ledger):
    """The newest draws, 1,024 at most, of a sampler without a lag: so that what comes back finds how it was drawn."""

    def __init__(self) -> None:
        super().__init__(1, watching=True)

    def hand_out(self, draw: Draw, prior: Float64s | None = None) -> None:
        """Enter a draw that leaves the sampler; the oldest makes room."""
        super().hand_out(draw, prior)
        if len(self._flights) > RECENT:
            del self._flights[next(iter(self._flights))]

    def tell(self, index: Int64s, steps: Int64s, told: Told) -> list[Flight]:
        """Take what was told of the samples ``index``; gives the flights that this completes, which leave.

        ``steps`` is (B,), or (1,) where all have the same. Nothing is refused: what is of no draw known here is left
        out.
        """
        whole = self._whole(index, steps)
        if whole is not None:
            whole.report(slice(None), told.scores, told)
            return [self._flights.pop(whole.draw.step)]
        steps = np.broadcast_to(steps, index.shape)
        done = []
        for step in np.unique(steps).tolist():
            flight = self._flights.get(step)
            if flight is not None:
                which = np.flatnonzero(steps == step)
                which = which[np.isin(index[which], flight.draw.index)]
                places, known = _places(flight, index[which])
                scores = told.scores[which[known]]
                flight.report(places, scores, Told(scores, told.norm))
                if flight.complete:
                    done.append(self._flights.pop(step))
        return done


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
    return np.concatenate(parts) if parts else np.empty(0, {**COLUMNS, **WATCHED}[name])


def _checked_steps(state: dict[str, Any], next_step: int) -> tuple[Int64s, Int64s]:
    """The steps of a state, ascending and below ``next_step``, and the batch size of each."""
    steps = checks.array("step", state["step"], np.empty(len(state["step"]), np.int64))
    sizes = checks.array("size", state["size"], steps)
    drawn = len(state["index"])
    if (np.diff(steps, prepend=-1, append=next_step) <= 0).any() or (sizes < 1).any() or (sizes > drawn).any():
        raise ValueError(f"steps must ascend from 0 on and stay below {next_step}, and sizes be in [1, {drawn}]")
    if sizes.sum() != drawn:
        raise ValueError(f"sizes add up to {sizes.sum()}, but there are {drawn} indices")
    return steps, sizes
