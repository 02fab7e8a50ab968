"""Loss → priority: siblings with one signature, ``(B,) losses -> (B,) priorities``.

    from sampler import priorities
    priorities.bounded(np.array([0.0, 1.0, 50.0]))          # array([0., 0.632..., 1.])
    priorities.power(0.6)(np.array([0.0, 1.0, 50.0]))       # array([0., 1., 10.456...])
    ImportanceSampler(50_000, priority=priorities.clipped(0.95, "sqrt"))

A sample is drawn in proportion to its priority, a number ≥ 0, or by the rank of it, any number. Which function suits
which loss:

========================  ====================  ======================================================
loss                      priority              why
========================  ====================  ======================================================
any                       ``loss``              in proportion to the loss itself
squared error             ``sqrt``              the gradient's norm goes with √ℓ; in proportion to ℓ itself
                                                the variance is that of uniform draws
softmax cross-entropy     ``bounded``           the norm of the last layer's gradient lies between
                          (1 - e^-ℓ)            (1 - e^-ℓ)·√(K/(K-1)) and √2·(1 - e^-ℓ): bounded under outliers
temporal differences      ``power(alpha)``      (ℓ + ε)^α, the habit of reinforcement learning, α = 0.6; between
                                                uniform draws (α = 0) and ``loss`` (α = 1)
some without measure,     ``clipped(...)``      another priority of min(ℓ, a quantile of the recent losses): an
labels that may be wrong                        outlier counts no more than the hardest of the rest
any, where it is told     ``gradient_norm``     the norm itself, given to ``update`` as the ``score`` of each loss
one that a reference      ``relative(...)``     max(0, ℓ - reference): what can still be learnt, without what is
model has too                                   too noisy for any model to learn
========================  ====================  ======================================================

The variance of the gradient's estimate is least when p is in proportion to the norm of each sample's gradient
(Zhao & Zhang, 2015, *Stochastic optimization with importance sampling for regularized loss
minimization*; Alain et al., 2015, *Variance reduction in SGD by distributed importance sampling*).

All but ``relative`` need losses ≥ 0. For losses that can be negative (a likelihood, a custom loss) draw by
rank (``store="ranked"``), which takes ``loss`` as it is, or pass a function of your own, for instance ``lambda losses:
np.exp(losses)``.

A priority is any callable; it is given copies, so it may work in place. What else a sampler looks for in one:
``keyed``, it is called with the losses and their samples' index; ``scored``, it is called with the scores
of ``update`` in place of the losses; the methods of ``Remembering``, it is told of the
losses that were accepted and has a state; ``check_size``, it refuses a number of samples that does not suit it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from sampler import batches, checks
from sampler.quantiles import Window

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Priority = Callable[..., npt.ArrayLike]


@runtime_checkable
class Remembering(Protocol):
    """A priority with a memory of its own: told of the losses that were accepted, and part of the sampler's state."""

    def observe(self, losses: Float64s) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def loss(losses: Float64s) -> Float64s:
    """The loss itself: q = ℓ, (B,). ``apply`` refuses negative ones where the store cannot take them."""
    return losses


def sqrt(losses: Float64s) -> Float64s:
    """Its square root: q = √ℓ. Losses (B,) ≥ 0; else ``ValueError``."""
    return np.sqrt(_nonnegative(losses, "'sqrt'"))


def bounded(losses: Float64s) -> Float64s:
    """A bounded measure in [0, 1]: q = 1 - e^-ℓ. Losses (B,) ≥ 0; else ``ValueError``."""
    return -np.expm1(-_nonnegative(losses, "'bounded'"))


def gradient_norm(scores: Float64s) -> Float64s:
    """The score that ``update`` is given beside each loss, a norm of the sample's gradient: q = the score, (B,) ≥ 0."""
    return _nonnegative(scores, "'gradient_norm'")


gradient_norm.scored = True  # type: ignore[attr-defined]


def power(alpha: float, epsilon: float = 0.0) -> Power:
    """A power of it: q = (ℓ + ε)^α. Losses (B,) ≥ 0; else ``ValueError``.

    Args:
        alpha: α ≥ 0. 1 is the loss itself, ½ its square root, 0 makes all samples equal, those of loss 0 too (0 ** 0
            is 1).
        epsilon: ε ≥ 0, which gives samples of loss 0 a chance; the habit of Schaul et al., 2016, *Prioritized
            experience replay*. The samplers' ``uniform_fraction`` gives them one without bending the others.

    Raises ``TypeError`` or ``ValueError`` for numbers outside these ranges.
    """
    return Power(
        checks.number("alpha", alpha, 0.0, np.inf, top_open=True),
        checks.number("epsilon", epsilon, 0.0, np.inf, top_open=True),
    )


def relative(reference: npt.ArrayLike) -> Relative:
    """How far a loss is above its sample's reference: q = max(0, ℓ - reference[i]). Any losses (B,).

    Args:
        reference: (N,) finite numbers, for instance the losses of a model trained on data held out.

    A sample that is at its reference or below is left to the uniform share of the draws (Mindermann et al., 2022,
    *Prioritized training on points that are learnable, worth learning, and not yet learnt*). 8 bytes a sample.
    Raises ``TypeError`` or ``ValueError`` for a reference that is none.
    """
    return Relative(reference)


def clipped(quantile: float = 0.95, priority: str | Priority = "loss", window: int = 10_000) -> Clipped:
    """Another priority f of the loss, cut at a quantile of the recent losses: q = f(min(ℓ, quantile)).

    Args:
        quantile: in [0, 1]. 1 cuts at the greatest of the recent losses, 0 at the least: then all are equal.
        priority: f, a name or a callable as the samplers take it.
        window: how many losses are recent, ≥ 1.

    Until a loss was observed nothing is cut. Losses that cannot be learnt (wrong labels) are the large ones, and
    would be drawn most (Hu et al., 2021, *When does loss-based prioritization fail?*). About 2 µs a call, 1.5 µs a
    loss observed, and 40 bytes a loss in the window; see :mod:`sampler.quantiles`. Raises ``TypeError`` or
    ``ValueError`` for arguments outside these ranges.
    """
    return Clipped(quantile, priority, window)


@dataclass(frozen=True)
class Power:
    """What ``power`` makes."""

    alpha: float
    epsilon: float = 0.0

    def __call__(self, losses: Float64s) -> Float64s:
        """(ℓ + ε)^α, (B,)."""
        with np.errstate(over="ignore"):  # infinity is clamped by the store
            values: Float64s = (_nonnegative(losses, repr(self)) + self.epsilon) ** self.alpha
        return values

    def __repr__(self) -> str:
        return f"power({self.alpha:g}, epsilon={self.epsilon:g})" if self.epsilon else f"power({self.alpha:g})"


class Relative:
    """What ``relative`` makes."""

    keyed = True  # called with the samples' index as well

    def __init__(self, reference: npt.ArrayLike) -> None:
        self._reference = checks.per_sample("reference", reference, np.size(reference))
        if not np.isfinite(self._reference).all():
            worst = int(np.isfinite(self._reference).argmin())
            raise ValueError(f"reference must be finite numbers, got {self._reference[worst]} for sample {worst}")

    def __call__(self, losses: Float64s, index: Int64s) -> Float64s:
        """max(0, ℓ - reference[index]), (B,); ``index`` (B,) in [0, N)."""
        with np.errstate(over="ignore"):
            return np.maximum(losses - self._reference[index], 0.0)

    def __repr__(self) -> str:
        ends = self._reference if self._reference.size <= 6 else self._reference[[0, 1, -2, -1]]
        shown = [str(number) for number in ends.tolist()]
        if ends.size < self._reference.size:
            shown.insert(2, "...")
        return f"relative([{', '.join(shown)}])"

    def check_size(self, num_samples: int) -> None:
        """``ValueError`` unless there is one reference for each of ``num_samples`` samples."""
        if self._reference.size != num_samples:
            raise ValueError(
                f"reference must have one number for each of {num_samples} samples, got {self._reference.size}; "
                "give the reference losses in the order of the samples' index"
            )


class Clipped:
    """What ``clipped`` makes. A call changes nothing; ``observe`` does."""

    def __init__(self, quantile: float, priority: str | Priority, window: int) -> None:
        self.quantile = checks.number("quantile", quantile, 0.0, 1.0)
        self.priority = resolve(priority)
        if isinstance(self.priority, Remembering):
            raise ValueError(f"clipped takes a priority that has no memory of its own, got {describe(self.priority)}")
        self.keyed = bool(getattr(self.priority, "keyed", False))
        self._recent = Window(checks.whole("window", window, least=1))

    def __call__(self, losses: Float64s, *index: Int64s) -> npt.ArrayLike:
        """The priorities (B,) of min(ℓ, quantile), by what was observed up to now."""
        if len(self._recent):
            losses = np.minimum(losses, self._recent.quantile(self.quantile))
        return self.priority(losses, *index)

    def __repr__(self) -> str:
        return f"clipped({self.quantile:g}, {describe(self.priority)}, window={self._recent.size})"

    def check_size(self, num_samples: int) -> None:
        """``ValueError`` where the number of samples does not suit the priority inside."""
        if hasattr(self.priority, "check_size"):
            self.priority.check_size(num_samples)

    def observe(self, losses: Float64s) -> None:
        """Take the finite ones of ``losses`` (B,) into the window, in this order."""
        self._recent.push(losses[np.isfinite(losses)])

    def check(self) -> None:
        """Raise ``AssertionError`` unless the window is sound. For tests."""
        self._recent.check()

    def state_dict(self) -> dict[str, Any]:
        """The recent losses, oldest first, as a copy."""
        return self._recent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave; nothing is changed where it is refused."""
        self._recent.load_state_dict(state)


NAMED: dict[str, Priority] = {"loss": loss, "sqrt": sqrt, "bounded": bounded, "gradient_norm": gradient_norm}
MADE: dict[str, Callable[..., Priority]] = {"clipped": clipped}  # anew for each sampler, as these have a state


def resolve(priority: str | Priority, num_samples: int | None = None) -> Priority:
    """The function that ``priority`` names, or ``priority`` itself where it is callable.

    ``ValueError`` for anything else, and where it does not suit the ``num_samples`` samples of a sampler.
    """
    resolved = _resolve(priority)
    if num_samples is not None and hasattr(resolved, "check_size"):
        resolved.check_size(num_samples)
    return resolved


def _resolve(priority: str | Priority) -> Priority:
    for maker, example in _MAKERS.items():
        if priority is maker:
            raise ValueError(f"priority must be a priority, got what makes one; call it: priority={example}")
    if callable(priority):
        return priority
    if isinstance(priority, str) and priority in NAMED:
        return NAMED[priority]
    if isinstance(priority, str) and priority in MADE:
        return MADE[priority]()
    raise ValueError(
        f"priority must be one of {', '.join(map(repr, [*NAMED, *MADE, 'auto']))}, something made such as "
        f"{' or '.join(_MAKERS.values())}, or a function of the losses, got {priority!r}"
    )


def describe(priority: Priority) -> str:
    """How ``priority`` is written: ``'loss'``, ``power(0.6)``, or the name of a user's function or of its class.

    The same in every process, so that a state can tell which it is of.
    """
    for name, function in NAMED.items():
        if priority is function:
            return repr(name)
    if isinstance(priority, (Power, Relative, Clipped)):
        return repr(priority)
    return str(getattr(priority, "__name__", type(priority).__name__))


def apply(priority: Priority, losses: Float64s, index: Int64s | None = None, *, signed: bool = False) -> Float64s:
    """``priority(losses)`` as float64 (B,), checked: one number ≥ 0 for each loss, any number where ``signed``.

    Args:
        priority: what ``resolve`` gives.
        losses: (B,) finite numbers.
        index: (B,) of their samples, for a priority that is ``keyed``.
        signed: whether the store takes negative priorities.

    Infinity is let through; the store clamps it. Raises ``ValueError`` for another shape, for NaN, for a
    negative priority that the store does not take, and where a keyed priority has no index; ``TypeError`` for what are
    no real numbers. No losses have no priorities, and nobody is asked.
    """
    if losses.size == 0:
        return losses
    given = _ask(priority, losses, index)
    try:
        values = np.asarray(given)
    except ValueError as error:
        raise checks.no_array("the priorities", error) from error
    if values.shape != losses.shape:
        raise ValueError(
            f"the priority function must give one priority for each of {losses.shape[0]} losses, "
            f"got shape {values.shape}"
        )
    if values.dtype != np.float64:
        if not checks.is_real(values.dtype):
            raise TypeError(
                f"the priority function must give real numbers, got dtype {values.dtype}; mend it, for instance with "
                "np.real(...) or .astype(float)"
            )
        values = values.astype(np.float64)
    # The least of numbers with a NaN among them is NaN, which no comparison lets pass.
    if not batches.least(values) >= (-np.inf if signed else 0.0):
        _refuse(priority, losses, values, signed)
    return values


def _ask(priority: Priority, losses: Float64s, index: Int64s | None) -> npt.ArrayLike:
    """What ``priority`` gives for a copy: it may work in place, and the losses are kept, or asked about again."""
    if priority is loss:  # mostly, and it changes nothing
        return loss(losses)
    if not getattr(priority, "keyed", False):
        return priority(losses.copy())
    if index is None:
        raise ValueError(f"priority={describe(priority)} needs the index of each loss, got none; pass index=")
    return priority(losses.copy(), index.copy())


def _refuse(priority: Priority, losses: Float64s, values: Float64s, signed: bool) -> None:
    inner = priority.priority if isinstance(priority, Clipped) else priority
    if inner is loss:
        _nonnegative(losses, describe(priority))  # in the words of the others
    worst = int(np.flatnonzero(~(values >= (-np.inf if signed else 0.0)))[0])
    hint = "" if signed else ", for instance with np.maximum(..., 0), or draw by rank with store='ranked'"
    raise ValueError(
        f"priorities must be numbers{'' if signed else ' ≥ 0'}, got {values[worst]} for a loss of {losses[worst]}; "
        f"mend the priority function{hint}"
    )


def _nonnegative(losses: Float64s, written: str) -> Float64s:
    if losses.size and losses.min() < 0.0:
        raise ValueError(
            f"priority={written} needs losses ≥ 0, got {losses.min()}; for losses that can be negative "
            "draw by rank with store='ranked' and priority='loss', take priorities.relative(reference), or "
            "pass a function of your own, for instance priority=lambda losses: np.exp(losses)"
        )
    return losses


# What makes priorities, with an example of it for messages.
_MAKERS: dict[Any, str] = {
    power: "priorities.power(0.6)",
    relative: "priorities.relative(reference)",
    clipped: "priorities.clipped(0.95, 'sqrt')",
}
