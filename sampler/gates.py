"""The gate: whether draws by priority are worth it, judged from the batches themselves.

A gate is told of every weighted batch, and is open where priorities pay. It knows nothing of samplers::

    from sampler.gates import VarianceGate
    gate = VarianceGate()
    gate.observe(score, weight, priority_weight, mean_gradient_norm)    # after each step
    gate.open, gate.gain                                                # False, 1.04

======================  =========  ==========================================================================
``score``               (B,) a     a proxy of the norm of each sample's gradient, never the raw loss: that
                                   judges itself, and flatters
``weight``              (B,) w     1/(N p), p the probability the sample was really drawn with
``priority_weight``     (B,) v     1/(N p') with the p' that the priorities gave it at the time of the draw; w
                                   itself where it was drawn by them
``mean_gradient_norm``  g          the norm of the batch's gradient (1/B) Σ w ∇ℓ, in the units of the scores
======================  =========  ==========================================================================

With these, whatever p was, without bias and at no extra pass::

    U = E[a²], uniform second moment          mean(w a²)
    P = E[a² / (N p')], that by priority      mean(w v a²)      while the gate is closed, too: so it can open
    M, that of the draws made                 mean(w² a²)
    G², squared norm of the mean gradient     (g² - M/B) / (1 - 1/B),       as E[g²] = G² + (M - G²)/B

The squared norm of a batch's gradient is G² + (U - G²)/B under uniform draws, G² + (P - G²)/B under draws by priority,
and ``gain`` is the first over the second. So it is near 1 where the batch is so large that gradient noise does not
bind, whatever U/P is (the gradient noise scale: McCandlish, Kaplan, Amodei et al., 2018, *An empirical model of
large-batch training*). Without ``mean_gradient_norm`` G² = 0 is taken, and the gain is U/P: an upper bound of it.

G² is that of independent draws. Passes and systematic draws vary less, so it comes out a little low and the gain a
little high, by a few percent at large gains.

What no gate here can see: samples that were easy when they were last looked at and are not any more are rarely drawn
while it is open, and by the time they have moved the averages they have done their harm. And what it sees is the
variance of a step, not whether training on the hard samples generalises.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from sampler import batches, checks

Float64s = npt.NDArray[np.float64]

LEAST_BATCHES = 32  # before a first decision, so that the standard error is one
SCALE_BATCHES = 31  # whose median tells what size is usual
USUAL_BATCHES = 9  # before that median is one
LARGEST = 100.0  # so many times the usual size a batch can count at most


@runtime_checkable
class Gate(Protocol):
    """What a sampler needs of a gate; any object that has these will do."""

    @property
    def open(self) -> bool:
        """Whether draws shall be by priority."""

    @property
    def gain(self) -> float:
        """How many times better draws by priority are estimated to be than uniform ones."""

    def observe(
        self,
        score: Float64s,
        weight: Float64s,
        priority_weight: Float64s,
        mean_gradient_norm: float | None = None,
    ) -> None:
        """Take in one batch, in the order of the steps. Scores that are not finite are to be left out."""

    def state_dict(self) -> dict[str, Any]:
        """All that was learnt, as a dict of numbers, strings, arrays and dicts of these."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave; ``ValueError``, ``TypeError`` or ``KeyError``, and no change, else."""


class Moments(NamedTuple):
    """What one batch tells of the squared norm of a batch's gradient; the third is common to both."""

    uniform: float  # U/B
    priority: float  # P/B
    common: float  # G² (1 - 1/B), which a single batch may put below zero


def moments(
    score: Float64s, weight: Float64s, priority_weight: Float64s, mean_gradient_norm: float | None = None
) -> Moments | None:
    """Unbiased estimates from one batch (B,), or None where nothing of it is finite. O(B).

    Samples whose score is not finite are left out, and the whole batch where its ``mean_gradient_norm`` is not.
    """
    count, uniform, priority, drawn = batches.second_moments(score, weight, priority_weight)
    if count == 0:
        return None
    common = 0.0 if mean_gradient_norm is None else mean_gradient_norm * mean_gradient_norm - drawn / count
    found = Moments(uniform / count, priority / count, common)
    return found if all(map(math.isfinite, found)) else None


class Averages:
    """Exponential averages of ``Moments``, their ratio and its standard error.

    Args:
        window: how many batches count; one that is so many batches old counts 1/e.

    Each batch is divided by the *usual size*, the median over the batches just before it. It is known before the batch
    is, so the ratio stays that of the means; a loss that falls does not let old batches outweigh new ones; and what is
    more than 100 times the usual counts as 100 times, so that one astronomical score is forgotten after a few windows.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._sizes: deque[float] = deque(maxlen=SCALE_BATCHES)
        self._weight = 0.0  # Σ ρ^k over the batches counted
        self._squares = 0.0  # Σ ρ^2k
        self._sums = [0.0] * 3  # Σ ρ^k m
        self._products = [0.0] * 6  # Σ ρ^k m mᵀ: the squares, then uniform·priority, uniform·common, priority·common

    def add(self, found: Moments) -> None:
        """Count a batch."""
        size = found.uniform + found.priority + max(found.common, 0.0)
        usual = self._usual()
        self._sizes.append(size)
        if usual <= 0.0:
            return
        unit = max(usual, size / LARGEST)
        u, p, c = found.uniform / unit, found.priority / unit, found.common / unit
        kept = 1.0 - 1.0 / self.window
        self._weight = kept * self._weight + 1.0
        self._squares = kept * kept * self._squares + 1.0
        self._sums = _faded(self._sums, kept, (u, p, c))
        self._products = _faded(self._products, kept, (u * u, p * p, c * c, u * p, u * c, p * c))

    def _usual(self) -> float:
        """The median size of the batches before; 0 as long as they are too few, or say nothing."""
        if len(self._sizes) < USUAL_BATCHES:
            return 0.0
        usual = sorted(self._sizes)[len(self._sizes) // 2]
        return usual if usual > 0.0 else sum(self._sizes) / len(self._sizes)

    def gain(self) -> tuple[float, float]:
        """(U/B + G²)/(P/B + G²) and its standard error, with G² (1 - 1/B) for G²; (1, ∞) where nothing is known.

        Of a ratio X/Y of means the error is that of the mean of x - (X/Y) y, over Y: the fluctuations that both have
        in common, such as those of the size, cancel.
        """
        uniform, priority, common = self._sums
        noise_only = common <= 0.0  # clipped now, not batch by batch, which would bias it
        common = max(common, 0.0)
        if priority + common <= 0.0:
            return 1.0, math.inf
        ratio = (uniform + common) / (priority + common)
        share = 0.0 if noise_only else 1.0 - ratio  # of the common part in x - (X/Y) y
        uu, pp, cc, up, uc, pc = self._products
        squared = uu + ratio * (ratio * pp - 2.0 * up) + share * (share * cc + 2.0 * (uc - ratio * pc))
        variance = squared / self._weight * self._squares
        return ratio, math.sqrt(max(variance, 0.0)) / (priority + common)

    def state_dict(self) -> dict[str, Any]:
        """The sums, as numbers and arrays."""
        return {
            "sizes": np.array(self._sizes, np.float64),
            "weight": self._weight,
            "squares": self._squares,
            "sums": np.array(self._sums),
            "products": np.array(self._products),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave; nothing is changed where it is refused."""
        sizes = checks.array("sizes", state["sizes"], np.empty(len(state["sizes"])), least=0.0)
        weight = checks.number("weight", state["weight"], 0.0, float(self.window))
        squares = checks.number("squares", state["squares"], 0.0, weight)
        sums, products = (
            checks.array(name, state[name], np.empty(size)) for name, size in (("sums", 3), ("products", 6))
        )
        if not (np.isfinite(sums).all() and np.isfinite(products).all() and np.isfinite(sizes).all()):
            raise ValueError("the sums of a gate must be finite")
        self._sizes = deque(sizes.tolist(), maxlen=SCALE_BATCHES)
        self._weight, self._squares, self._sums, self._products = weight, squares, sums.tolist(), products.tolist()


def _faded(sums: list[float], kept: float, values: tuple[float, ...]) -> list[float]:
    return [kept * old + new for old, new in zip(sums, values, strict=True)]


class VarianceGate:
    """Opens where draws by priority make the batch's gradient less noisy, beyond doubt: ``gate="variance"``.

    Args:
        window: ≥ 10, batches in the averages. 200: long enough for a standard error of a few percent with batches of
            32, short beside most trainings, in which the gain drifts.
        confidence: ≥ 0, in standard errors. 3, not 2: it is asked after every batch, and squared gradients have heavy
            tails.
        margin: ≥ 0. Less than a gain of 1 + margin is not worth stale priorities. It is also what keeps a
            gain of exactly 1 from being taken for one by chance.
        dwell: ≥ 0 batches that the gate stays as it is after its first change, twice as many after its second, and
            so on.

    It starts closed. It *opens* when the gain is above 1 + margin by ``confidence`` standard errors, after
    32 batches at the earliest. It *closes* when the gain is below by as many, or its estimate has been below for a
    whole window, batch after batch. So at a gain near 1 + margin it mostly stays what it is.

    In simulations with batches of 32 and λ = 0.3 (``tests/sampler/test_gates.py``) it opens within a hundred batches
    at a gain of 1.9 and within 300 at 1.3, in the median, and never did in 120,000 batches at gains of 0.9 and 1.
    Where a handful of the samples makes up the second moment, no window says what it is: what a batch counts is
    bounded (``Averages``), so the estimate is that of the others, and the gate can err either way.
    """

    def __init__(self, *, window: int = 200, confidence: float = 3.0, margin: float = 0.05, dwell: int = 100) -> None:
        self.window = checks.whole("window", window, least=10)
        self.confidence = checks.number("confidence", confidence, 0.0, np.inf, top_open=True)
        self.margin = checks.number("margin", margin, 0.0, np.inf, top_open=True)
        self.dwell = checks.whole("dwell", dwell, least=0)
        self._averages = Averages(self.window)
        self._open = False
        self._changes = 0
        self._since = 0  # batches since the last change
        self._below = 0  # batches in a row with an estimate below 1 + margin

    def __repr__(self) -> str:
        return (
            f"VarianceGate(window={self.window}, confidence={self.confidence:g}, margin={self.margin:g}, "
            f"dwell={self.dwell})"
        )

    @property
    def open(self) -> bool:
        """Whether priorities pay."""
        return self._open

    @property
    def gain(self) -> float:
        """The expected squared norm of a batch's gradient under uniform draws, over that under draws by priority."""
        return self._averages.gain()[0]

    @property
    def error(self) -> float:
        """The standard error of ``gain``; infinite where nothing is known."""
        return self._averages.gain()[1]

    def observe(
        self,
        score: Float64s,
        weight: Float64s,
        priority_weight: Float64s,
        mean_gradient_norm: float | None = None,
    ) -> None:
        """Take in one batch, (B,) each; what is not finite is left out. O(B)."""
        found = moments(score, weight, priority_weight, mean_gradient_norm)
        if found is None:
            return
        self._averages.add(found)
        self._since += 1
        gain, error = self._averages.gain()
        least = 1.0 + self.margin
        self._below = self._below + 1 if gain < least else 0
        if self._since < max(LEAST_BATCHES, self.dwell * self._changes):
            return
        if self._open:
            change = gain + self.confidence * error < least or self._below >= self.window
        else:
            change = gain - self.confidence * error > least
        if change:
            self._open = not self._open
            self._changes += 1
            self._since = 0

    def state_dict(self) -> dict[str, Any]:
        """All that was learnt, as a dict of numbers, arrays and dicts of these."""
        return {
            "open": int(self._open),
            "changes": self._changes,
            "since": self._since,
            "below": self._below,
            "averages": self._averages.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave; nothing is changed where it is refused."""
        open_ = bool(checks.whole("open", state["open"], least=0, most=1))
        changes, since, below = (checks.whole(name, state[name], least=0) for name in ("changes", "since", "below"))
        self._averages.load_state_dict(state["averages"])
        self._open, self._changes, self._since, self._below = open_, changes, since, below


class SpeedupGate:
    """Katharopoulos & Fleuret's own criterion: ``gate="speedup"``.

    Open while τ > (R + 3)/3, where τ² = B Σ ĝ² with the scores ĝ of B uniform samples that sum to one, smoothed from
    batch to batch (Katharopoulos & Fleuret, 2018, *Not all samples are created equal: deep learning with importance
    sampling*, equation 26 and algorithm 1). As B Σ ĝ² = mean(a²)/mean(a)², a weighted batch estimates it by mean(w a²)
    / mean(w a)²; ``gain`` is τ², the ratio of the second moments for p in proportion to the score.

    Args:
        ratio: R = B/b ≥ 0, uniform samples scored by a forward pass to draw a batch of b; a backward pass is taken to
            cost two forward ones. A priority store scores none, R = 0, and then the criterion always holds; 1, the
            default, asks for what a store of priorities as stale as an epoch must win back: τ > 4/3.
        smoothing: in [0, 1), the share kept of the old τ. It starts from 0, as in the paper.

    It has no margin of error, asks neither how good the priorities are (it judges draws in proportion to the scores
    themselves) nor whether noise binds, and so is open far more often than ``VarianceGate``.
    """

    def __init__(self, *, ratio: float = 1.0, smoothing: float = 0.9) -> None:
        self.ratio = checks.number("ratio", ratio, 0.0, np.inf, top_open=True)
        self.smoothing = checks.number("smoothing", smoothing, 0.0, 1.0, top_open=True)
        self._tau = 0.0

    def __repr__(self) -> str:
        return f"SpeedupGate(ratio={self.ratio:g}, smoothing={self.smoothing:g})"

    @property
    def open(self) -> bool:
        """Whether τ is above (R + 3)/3."""
        return self._tau > (self.ratio + 3.0) / 3.0

    @property
    def gain(self) -> float:
        """τ²."""
        return self._tau * self._tau

    def observe(
        self,
        score: Float64s,
        weight: Float64s,
        priority_weight: Float64s,
        mean_gradient_norm: float | None = None,
    ) -> None:
        """Take in one batch, (B,) each; what is not finite is left out, and what is all zero says nothing. O(B)."""
        kept = np.isfinite(score)
        score, weight = score[kept], weight[kept]
        largest = float(score.max(initial=0.0))
        if largest > 0.0:
            score = score / largest  # whose squares cannot overflow
            tau = math.sqrt(float((weight * score * score).mean())) / float((weight * score).mean())
            if math.isfinite(tau):  # and weights may be infinite
                self._tau = self.smoothing * self._tau + (1.0 - self.smoothing) * tau

    def state_dict(self) -> dict[str, Any]:
        """τ."""
        return {"tau": self._tau}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave; nothing is changed where it is refused."""
        self._tau = checks.number("tau", state["tau"], 0.0, np.inf, top_open=True)


NAMED: dict[str, type[VarianceGate] | type[SpeedupGate]] = {"variance": VarianceGate, "speedup": SpeedupGate}


def resolve(gate: str | Gate | None) -> Gate | None:
    """A new gate of the kind that ``gate`` names, or ``gate`` itself; ``ValueError`` for anything else."""
    if gate is None or (isinstance(gate, Gate) and not isinstance(gate, type)):
        return gate
    if isinstance(gate, str) and gate in NAMED:
        return NAMED[gate]()
    raise ValueError(
        f"gate must be one of {', '.join(map(repr, NAMED))}, None, or an object with the methods of sampler.gates.Gate "
        f"such as VarianceGate(margin=0.1), got {gate!r}"
    )


def describe(gate: Gate | None) -> str | None:
    """How ``gate`` is written, the same in every process: with its options, or the name of a user's class."""
    if gate is None:
        return None
    return repr(gate) if isinstance(gate, (VarianceGate, SpeedupGate)) else type(gate).__name__
