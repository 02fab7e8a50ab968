"""What sampling was worth, epoch by epoch, as plain numbers for Keras's logs.

figures = Figures(sampler)
figures.begin()                                     # an epoch
figures.add(losses, weight, score=None)             # of each step
figures.logs()                                      # {"sampling/gain": 1.7, ...}
figures.of_epoch()                                  # of the steps trained on alone, however far draws are ahead
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.advice import Advice
from sampler import checks

Array = np.ndarray
TOGETHER = 64  # steps summed up at a time
ROUNDED = 1e-6  # a weight of 1 may be off by so much
WEIGHTS = ("count", "sum", "squares", "largest", "by_priority")  # of those trained with
GATE = ("gate_open", "gate_gain", "gate_changed")  # of the summary of a sampler with a gate


class Figures:
    """Sums over the steps of an epoch, in float64."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.bounded = False  # whether 1 - e^-ℓ is the proxy where there is no score
        self.advice = Advice(float(getattr(sampler, "uniform_fraction", 0.3)))
        self.begin()

    def begin(self) -> None:
        """Forget the epoch before."""
        self._steps, self._uniform, self._drawn = 0, 0.0, 0.0
        self._weights = dict.fromkeys(WEIGHTS, 0.0)
        self._waiting: list[tuple[Array, Array, Array | None]] = []
        self._seconds = self._spent()

    def add(self, losses: Array, weight: Array, score: Array | None = None) -> None:
        """Count one step: (B,) unweighted losses, weights 1/(N p) and, where there are any, scores."""
        self._steps += 1
        self._waiting.append((losses, weight, score))
        if len(self._waiting) == TOGETHER:
            self._sum_up()

    def _sum_up(self) -> None:
        """Σ w a² estimates the second moment of the proxy a under uniform draws, Σ w² a² that under the draws made.

        Several steps at a time: NumPy's calls take longer than what they do here. What is not finite is left out.
        """
        if not self._waiting:
            return
        losses, weight = (np.concatenate([step[part] for step in self._waiting]) for part in (0, 1))
        self._weigh(weight)
        if self._waiting[0][2] is not None:
            proxy = np.concatenate([step[2] for step in self._waiting])
            self.advice.add(losses, weight, proxy)
        else:
            positive = np.maximum(losses, 0.0)
            proxy = -np.expm1(-positive) if self.bounded else np.sqrt(positive)
        self._waiting.clear()
        counted = weight * np.square(proxy)
        finite = np.isfinite(counted)
        self._uniform += float(counted[finite].sum())
        self._drawn += float((weight * counted)[finite].sum())

    def _weigh(self, weight: Array) -> None:
        sums = self._weights
        sums["count"] += weight.size
        sums["sum"] += float(weight.sum())
        sums["squares"] += float(np.square(weight).sum())
        sums["largest"] = max(sums["largest"], float(weight.max(initial=0.0)))
        sums["by_priority"] += sum(bool((np.abs(step[1] - 1.0) > ROUNDED).any()) for step in self._waiting)

    def of_epoch(self) -> dict[str, float]:
        """The figures of the steps that the epoch has trained on so far; equal in equal runs.

        ``effective_fraction`` and ``max_weight`` by the weights 1/(N p), ``gain``, and ``by_priority``, the share of
        the steps in which a weight was not 1: draws of a first pass, and those behind a closed gate, are uniform.
        """
        self._sum_up()
        sums = self._weights
        whole = sums["count"] * sums["squares"]
        return {
            "effective_fraction": sums["sum"] ** 2 / whole if whole > 0.0 else 1.0,
            "max_weight": sums["largest"],
            "gain": self._gain(),
            "by_priority": sums["by_priority"] / max(self._steps, 1),
        }

    def _gain(self) -> float:
        return self._uniform / self._drawn if self._drawn > 0.0 else 1.0

    def logs(self) -> dict[str, float]:
        """The figures of the epoch so far."""
        self._sum_up()
        summary = self.sampler.summary()
        steps = max(self._steps, 1)
        gate = {f"sampling/{name}": float(summary[name]) for name in GATE if name in summary}
        return {
            "sampling/effective_fraction": float(summary["effective_fraction"]),
            "sampling/max_weight": float(summary["max_weight"]),
            "sampling/gain": self._gain(),
            "sampling/unseen": 1.0 - summary["seen"] / len(getattr(self.sampler, "block", self.sampler)),
            "sampling/milliseconds": 1e3 * (self._spent() - self._seconds) / steps,
            **gate,
        }

    def state_dict(self) -> dict[str, Any]:
        """The sums of the epoch so far and the steps that are not summed up yet; not the seconds."""
        names = ("losses", "weight", "score")
        return {
            "steps": self._steps,
            "uniform": self._uniform,
            "drawn": self._drawn,
            "weights": dict(self._weights),
            "waiting": [dict(zip(names, step, strict=True)) for step in self._waiting],
            "advice": self.advice.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave, in the middle of an epoch."""
        waiting = [(step["losses"], step["weight"], step["score"]) for step in state["waiting"]]
        steps = checks.whole("steps", state["steps"], least=0)
        uniform, drawn = (checks.number(name, state[name], 0.0, np.inf) for name in ("uniform", "drawn"))
        given = state.get("weights", {})  # which snapshots of the first versions have not
        weights = {name: checks.number(name, given.get(name, 0.0), 0.0, np.inf) for name in WEIGHTS}
        self.advice.load_state_dict(state["advice"])
        self._weights = weights
        self._steps, self._uniform, self._drawn, self._waiting = steps, uniform, drawn, waiting

    def _spent(self) -> float:
        return float(getattr(self.sampler, "seconds", 0.0))
