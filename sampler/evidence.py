"""What joins a sampler to its gate: it finds for every score how its sample was drawn, and says when the gate moved.

    evidence = Evidence(gate, num_samples=50_000, recent=Recent())
    evidence.hand_out(draw, prior)                      # a batch leaves
    evidence.tell_recent(index, steps, told, step)      # its scores come back: the gate observes
    evidence.open                                       # what the next draw goes by

Under a lag the ledger keeps the draws instead of ``Recent``, and the sampler calls ``tell`` when their feedback counts.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import batches, checks, gates
from sampler.gates import Gate
from sampler.ledger import Draw, Flight, Recent, Told

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

LEAST_CHANCE = 1e-9  # of N p' for the gate, so that a sample that priorities would never draw counts against them

logger = logging.getLogger("sampler")


class Evidence:
    """A gate, the draws it has not heard of yet, and when it changed last.

    Args:
        gate: judges.
        num_samples: N ≥ 1.
        recent: keeps the draws where there is no lag; None where a ledger does.
    """

    def __init__(self, gate: Gate, num_samples: int, recent: Recent | None) -> None:
        self.gate = gate
        self.recent = recent
        self.changed = -1  # the step from which on the last change counts
        self._size = num_samples
        self._said_missing = False

    @property
    def open(self) -> bool:
        """Whether draws shall be by priority."""
        return bool(self.gate.open)

    def hand_out(self, draw: Draw, prior: Float64s) -> None:
        """Keep a draw, and the p (B,) that the priorities gave its samples, where no ledger does."""
        if self.recent is not None:
            self.recent.hand_out(draw, prior)

    def told(self, losses: Float64s, scores: Float64s | None, norm: float) -> Told:
        """What the gate is told of a batch (B,): no score where no loss is finite. ``ValueError`` for one below 0."""
        if scores is None:
            self._say_missing()
            return Told(np.full(losses.size, np.nan), norm)
        if batches.least(scores) >= 0.0 and batches.count_finite(losses) == losses.size:
            return Told(scores, norm)
        if (scores < 0.0).any():
            raise ValueError(
                f"score must be numbers ≥ 0, norms of gradients, for a gate; got {scores[scores < 0.0][0]}; pass "
                "np.abs(...) of it, or make the sampler with gate=None"
            )
        return Told(np.where(np.isfinite(losses), scores, np.nan), norm)

    def tell_recent(self, index: Int64s, steps: Int64s, told: Told, step: int) -> None:
        """Tell the gate of the draws that are complete with what was ``told`` of the samples ``index`` (B,)."""
        assert self.recent is not None
        for flight in self.recent.tell(index, steps, told):
            self.tell(flight, step)

    def tell(self, flight: Flight, step: int) -> None:
        """Tell the gate of a complete draw, for the draws from ``step`` on; not of those of the first pass. O(B)."""
        assert flight.prior is not None
        assert flight.scores is not None
        if batches.count_finite(flight.prior) < flight.prior.size or batches.count_finite(flight.scores) == 0:
            return
        was = self.open
        weight = 1.0 / (self._size * flight.draw.probability)
        by_priority = 1.0 / np.maximum(self._size * flight.prior, LEAST_CHANCE)
        self.gate.observe(flight.scores, weight, by_priority, None if math.isnan(flight.norm) else flight.norm)
        if self.open != was:
            self.changed = step
            logger.info(
                "from step %d on draws are %s: the gate %s at a gain of %.3g",
                step,
                "by priority" if self.open else "uniform",
                "opened" if self.open else "closed",
                self.gate.gain,
            )

    def _say_missing(self) -> None:
        if not self._said_missing:
            self._said_missing = True
            logger.warning(
                "the gate judges by scores, and update was given none, so it stays as it is (%s); pass score=..., the "
                "norms of the samples' gradients, or make the sampler with gate=None",
                "open" if self.open else "closed: draws are uniform",
            )

    def summary(self) -> dict[str, int | float]:
        """State, gain and last change, for the sampler's own."""
        return {"gate_open": self.open, "gate_gain": float(self.gate.gain), "gate_changed": self.changed}

    def describe(self) -> str | None:
        """How the gate is written."""
        return gates.describe(self.gate)

    def state_dict(self) -> dict[str, Any]:
        """All of it, as a dict of plain numbers, arrays and dicts of these."""
        return {
            "gate": self.gate.state_dict(),
            "changed": self.changed,
            "recent": None if self.recent is None else self.recent.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave; nothing is changed where it is refused."""
        changed = checks.whole("changed", state["changed"], least=-1, most=checks.LARGEST_STEP)
        recent = None
        if self.recent is not None:
            recent = Recent()
            if state["recent"] is not None:
                checks.indices(state["recent"]["index"], self._size)
                recent.load_state_dict(state["recent"], next_step=checks.LARGEST_STEP)
        self.gate.load_state_dict(state["gate"])
        self.recent, self.changed = recent, changed
