"""Which priority would have suited a training best, told by the scores of its own batches.

    advice = Advice(uniform_fraction=0.3)
    advice.add(losses, weight, score)           # of some hundreds of samples or more, as often as there are any
    advice.gains()                              # {"loss": 0.9, "sqrt": 1.4, "bounded": 1.3, "gradient_norm": 1.5}
    advice.sentence("loss")                     # "draws by priority='sqrt' would have been ..."

With the score a (the norm of a sample's gradient, or near it) and the weights w = 1/(N p) of the draws made, the second
moment under uniform draws is E[a²] ≈ mean(w a²), and under draws by a priority f it is mean(w a² / (N p_f)), where
N p_f = (1-λ) f / mean(w f) + λ: nothing but what the batches bring. The quotient of the two is the gain. All priorities
are taken as they are at this moment, as fresh as the losses; in a training all of them are older.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import checks

Array = npt.NDArray[np.float64]

CLEARLY = 1.1  # a gain so many times another is worth a sentence

PRIORITIES: dict[str, Callable[[Array, Array], Array]] = {
    "loss": lambda losses, score: losses,
    "sqrt": lambda losses, score: np.sqrt(losses),
    "bounded": lambda losses, score: -np.expm1(-losses),
    "gradient_norm": lambda losses, score: score,
}


class Advice:
    """The gains of some priorities, averaged over a training: of their logarithms, so no part outweighs the others.

    Args:
        uniform_fraction: λ in [0, 1] of the draws that are compared.
    """

    def __init__(self, uniform_fraction: float) -> None:
        self.uniform_fraction = uniform_fraction
        self._parts = 0
        self._logs = dict.fromkeys(PRIORITIES, 0.0)

    def add(self, losses: Array, weight: Array, score: Array) -> None:
        """Take in (B,) unweighted losses, weights 1/(N p) and scores; samples that are not finite are left out."""
        finite = np.isfinite(losses) & np.isfinite(score)
        losses, weight, score = np.maximum(losses[finite], 0.0), weight[finite], score[finite]
        moments = weight * np.square(score)
        uniform, total = float(moments.sum()), float(weight.sum())
        gains = {name: self._gain(f(losses, score), weight, moments, total) for name, f in PRIORITIES.items()}
        if 0.0 < uniform < np.inf and all(0.0 < gain < np.inf for gain in gains.values()):
            self._parts += 1
            for name, gain in gains.items():
                self._logs[name] += math.log(gain)

    def _gain(self, priority: Array, weight: Array, moments: Array, total: float) -> float:
        mean = float((weight * priority).sum()) / total if total > 0.0 else 0.0
        if mean <= 0.0:
            return 1.0  # all priorities zero: uniform draws
        likely = (1.0 - self.uniform_fraction) * priority / mean + self.uniform_fraction
        with np.errstate(divide="ignore", invalid="ignore"):
            by_priority = float(np.where(moments > 0.0, moments / likely, 0.0).sum())
        return float(moments.sum()) / by_priority if by_priority > 0.0 else np.inf

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return {"parts": self._parts, "logs": dict(self._logs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        self._parts = checks.whole("parts", state["parts"], least=0)
        self._logs = {name: checks.number(name, state["logs"][name], -np.inf, np.inf) for name in PRIORITIES}

    def gains(self) -> dict[str, float]:
        """What draws by each priority are worth, over uniform ones; nothing where nothing was added."""
        return {name: float(np.exp(log / self._parts)) for name, log in self._logs.items()} if self._parts else {}

    def sentence(self, priority: str) -> str | None:
        """In words what would have paid more than draws by ``priority``; None where nothing would by a tenth.

        ``priority`` is a name of these, or another, which is then compared with uniform draws.
        """
        gains = self.gains()
        if not gains:
            return None
        ours = gains.get(priority, 1.0)
        best = max(gains, key=gains.__getitem__)
        if gains[best] < CLEARLY * max(ours, 1.0):
            return None
        made = f", those by {priority!r} {ours:.2f}" if priority in gains else ""
        return (
            f"draws by priority={best!r} would have been worth {gains[best]:.2f} uniform ones{made} (by the second "
            "moment of the gradient, with priorities as fresh as the losses)"
        )
