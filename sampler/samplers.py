"""Samplers: draw a batch of sample indices, learn from the losses that come back.

    from sampler import ImportanceSampler

    sampler = ImportanceSampler(num_samples=50_000, seed=0)
    draw = sampler.draw(batch_size=32)              # step, index, probability, weight
    losses = ...                                    # (32,) unweighted losses of those samples
    sampler.update(draw.index, losses, step=draw.step)

Every sampler has the same methods, so that choosing is a swap of a name. The two verbs are ``draw`` and
``update``; ``probabilities``, ``priorities`` and ``summary`` look inside; ``state_dict`` and ``load_state_dict``
carry everything over a restart, the random generator and the draws in flight included.

The batch loss is (1/B) Σ w ℓ with the ``weight`` of the draw. Its expectation is the mean loss over all N samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import checks, draws, kernels, priorities
from sampler.base import DivergedError, Float32s, Float64s, Int64s, Sampler, logger
from sampler.ledger import Draw
from sampler.stores import PriorityStore, ProportionalStore

__all__ = ["DivergedError", "Draw", "ImportanceSampler", "UniformSampler"]


class ImportanceSampler(Sampler):
    """Draws samples in proportion to their priority, and weighs them so that training stays unbiased.

    p = (1-λ) q/Σq + λ/N with the priorities q learnt from the losses and λ the ``uniform_fraction``
    (Needell, Srebro & Ward, 2014, *Stochastic gradient descent, weighted sampling, and the randomized Kaczmarz
    algorithm*), and w = (1 / (N p)) ** β.

    Args:
        num_samples: N ≥ 1, the samples of the data set.
        priority: ``"loss"``, ``"sqrt"``, ``"bounded"`` (1 - e^-ℓ), or a function (B,) losses -> (B,) priorities.
        uniform_fraction: λ in [0, 1]. 0 draws by priority alone, 1 uniformly; no weight exceeds 1/λ.
        smoothing: in [0, 1), the share of a sample's old priority kept at an update; its first counts whole.
        scheme: ``"systematic"``, ``"multinomial"``, ``"stratified"`` or ``"without_replacement"``. In the batch that
            ends the first pass it rules the priority draws alone, so a sample of the pass can be among them again.
        store: ``"proportional"``, or an object with the methods of ``PriorityStore``.
        beta: β in [0, 1], or a function of the step. 1 corrects fully, 0 not at all.
        first_pass: first every sample once, in shuffled order at weight 1, before priorities are used.
        initial_priority: ≥ 0, of a sample that has had no finite loss yet.
        losses: (N,) known losses to start from; then there is no first pass.
        feedback_lag: None: feedback counts as it comes. k ≥ 1: the draw of step n uses exactly the feedback of the
            steps up to n - k, and the same seed gives the same draws whatever the threads do.
        feedback_timeout: seconds a draw waits for feedback under a lag.
        max_nonfinite_updates: so many updates in a row without a finite loss are an error.
        ascending: give the draws of a batch in ascending order instead of shuffled.
        seed: fixes everything. None takes one from the operating system.

    About 8.6 bytes a sample. ``draw`` and ``update`` may be called from different threads.

    Raises ``ValueError`` or ``TypeError`` for arguments outside these ranges.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        priority: str | priorities.Priority = "loss",
        uniform_fraction: float = 0.3,
        smoothing: float = 0.0,
        scheme: str = "systematic",
        store: str | PriorityStore = "proportional",
        beta: float | Callable[[int], float] = 1.0,
        first_pass: bool = True,
        initial_priority: float = 1.0,
        losses: npt.ArrayLike | None = None,
        feedback_lag: int | None = None,
        feedback_timeout: float = 60.0,
        max_nonfinite_updates: int = 10,
        ascending: bool = False,
        seed: int | None = None,
    ) -> None:
        self._priority = priorities.resolve(priority)
        self.uniform_fraction = checks.number("uniform_fraction", uniform_fraction, 0.0, 1.0)
        self.smoothing = checks.number("smoothing", smoothing, 0.0, 1.0, top_open=True)
        self._scheme = draws.resolve(scheme)
        self._beta = beta if callable(beta) else checks.number("beta", beta, 0.0, 1.0)
        first = checks.number("initial_priority", initial_priority, 0.0, np.inf, top_open=True)
        super().__init__(
            num_samples,
            feedback_lag=feedback_lag,
            feedback_timeout=feedback_timeout,
            max_nonfinite_updates=max_nonfinite_updates,
            seed=seed,
        )
        self._ascending = ascending
        self._store = _store(store, self._size, first)
        if losses is not None:
            self._start_from(checks.per_sample("losses", losses, self._size))
        if losses is not None or not first_pass:
            self._taken = self._size
        self._said_uniform = False

    def _choose(self, count: int) -> tuple[Int64s, Float64s, Float32s]:
        """What is left of the first pass, then draws by priority."""
        beta = self._beta_now()
        if self._scheme is draws.without_replacement:  # say so at once, not when the first pass is over
            draws.check_distinct(count, self._size)
        index = np.empty(count, np.int64)
        probability = np.full(count, 1.0 / self._size)
        left = min(count, self._size - self._taken)
        if left < count:
            index[left:], probability[left:] = self._by_priority(count - left)
        weight = self._weigh(probability, beta)
        if left:
            self._from_pass(index[:left])
            weight[:left] = 1.0
        return index, probability, weight

    def _by_priority(self, count: int) -> draws.Drawn:
        if self._store.total <= 0.0:
            self._say_uniform()
        index, probability = self._scheme(
            self._store, count, uniform_fraction=self.uniform_fraction, generator=self._generator
        )
        if not self._ascending:
            kernels.shuffle(self._generator.random(count), index, probability)
        return index, probability

    def _beta_now(self) -> float:
        if callable(self._beta):
            return checks.number(f"beta({self._step})", self._beta(self._step), 0.0, 1.0)
        return self._beta

    def _say_uniform(self) -> None:
        if not self._said_uniform:
            self._said_uniform = True
            logger.warning("all priorities are zero; draws are uniform until one is not")

    def _start_from(self, losses: Float64s) -> None:
        finite = np.isfinite(losses)
        known = np.flatnonzero(finite)
        if known.size < losses.size:
            self._count_nonfinite(np.flatnonzero(~finite))
        values = self._store.priorities()
        values[known] = self._priorities_of(losses[known])
        self._store.fill(values)
        self._newest[known] = 0
        self._counts["seen"] = int(known.size)

    def _priorities_of(self, losses: Float64s) -> Float64s:
        return priorities.apply(self._priority, losses)

    def _remember(self, index: Int64s, values: Float64s, steps: Int64s) -> int:
        return self._store.record(self._newest, index, steps, values, self.smoothing)

    def probabilities(self) -> Float64s:  # noqa: D102
        with self._changed:
            return self._store.probabilities(self.uniform_fraction)

    def priorities(self) -> Float64s:  # noqa: D102
        with self._changed:
            return self._store.priorities()

    def _mean_priority(self) -> float:
        return self._store.total / self._size

    def _own_state(self) -> dict[str, Any]:
        return {"store": self._store.state_dict()}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self._store.load_state_dict(state["store"])


class UniformSampler(Sampler):
    """Reshuffled passes over all samples, each at weight 1: the baseline, with the same methods.

    Args:
        num_samples: N ≥ 1.
        feedback_lag, feedback_timeout, max_nonfinite_updates, seed: as for ``ImportanceSampler``.

    A batch that crosses the end of a pass goes on with the next one, so that every batch has exactly B samples.
    ``update`` counts and checks what comes back; it changes no draw. With a ``feedback_lag`` draws wait for it
    after the first pass all the same, so that a run can be resumed exactly; a baseline without feedback takes None.
    """

    uses_feedback = False

    def __init__(
        self,
        num_samples: int,
        *,
        feedback_lag: int | None = None,
        feedback_timeout: float = 60.0,
        max_nonfinite_updates: int = 10,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            num_samples,
            feedback_lag=feedback_lag,
            feedback_timeout=feedback_timeout,
            max_nonfinite_updates=max_nonfinite_updates,
            seed=seed,
        )

    def _choose(self, count: int) -> tuple[Int64s, Float64s, Float32s]:
        index = np.empty(count, np.int64)
        filled = 0
        while filled < count:
            if self._taken == self._size:
                self._taken, self._passes, self._keys = 0, self._passes + 1, self._new_keys()
            part = index[filled : filled + self._size - self._taken]
            self._from_pass(part)
            filled += part.size
        probability = np.full(count, 1.0 / self._size)
        return index, probability, self._weigh(probability, 1.0)


def _store(store: str | PriorityStore, size: int, initial_priority: float) -> PriorityStore:
    """The store that ``store`` names, or ``store`` itself where it is one of ``size`` samples."""
    if isinstance(store, str):
        if store != "proportional":
            raise ValueError(f"store must be 'proportional' or a PriorityStore, got {store!r}")
        return ProportionalStore(size, initial_priority=initial_priority)
    if len(store) != size:
        raise ValueError(f"store must hold {size} samples, got one of {len(store)}")
    return store
