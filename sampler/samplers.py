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

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import checks, draws, kernels, priorities, weights
from sampler.ledger import Draw, Ledger, frozen
from sampler.stores import PriorityStore, ProportionalStore

__all__ = ["DivergedError", "Draw", "ImportanceSampler", "UniformSampler"]

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Prepared = tuple[Int64s, Float64s, Int64s, int]  # samples, priorities, steps, how many came late

STATE_FORMAT = 1
RECENT_DRAWS = 100  # what ``summary`` means by recent

logger = logging.getLogger("sampler")


class DivergedError(ValueError):
    """Too many updates in a row held no finite loss."""


class _Sampler:
    """What all samplers share: the lock, the step, passes over all samples, feedback and its lag, the state."""

    uses_feedback = True  # whether draws depend on what ``update`` is told

    def __init__(
        self,
        num_samples: int,
        *,
        feedback_lag: int | None,
        feedback_timeout: float,
        max_nonfinite_updates: int,
        seed: int | None,
    ) -> None:
        self._size = checks.whole("num_samples", num_samples, least=1)
        self.feedback_lag = (
            None if feedback_lag is None else checks.whole("feedback_lag", feedback_lag, least=1)
        )
        self.feedback_timeout = checks.number("feedback_timeout", feedback_timeout, 0.0, np.inf)
        self.max_nonfinite_updates = checks.whole("max_nonfinite_updates", max_nonfinite_updates, least=1)
        self._changed = threading.Condition()
        self._generator = np.random.default_rng(seed)
        self._ledger = None if self.feedback_lag is None else Ledger(self.feedback_lag)
        self._step = 0
        self._taken = 0  # samples taken from the current pass over all of them
        self._passes = 0  # whole passes before it
        self._keys = self._new_keys()
        self._newest = np.full(self._size, -1, np.int32)  # newest step known of each sample
        self._newest_step = -1  # that an update has named
        self._counts = {"seen": 0, "updates": 0, "nonfinite": 0, "late": 0}
        self._nonfinite_updates = 0  # in a row
        self._recent = np.zeros((RECENT_DRAWS, 4), np.float64)  # B, Σw, Σw², max w of recent draws
        self._waiting_since: float | None = None

    def __len__(self) -> int:
        return self._size

    @property
    def step(self) -> int:
        """How many draws were made; the step of the next one."""
        return self._step

    # --- draw ---------------------------------------------------------------------------------

    def draw(self, batch_size: int) -> Draw:
        """The next batch: exactly ``batch_size`` ≥ 1 samples. O(B log N).

        With a ``feedback_lag`` it waits for the feedback it must know, at most ``feedback_timeout`` seconds
        (then ``TimeoutError``). Raises ``TypeError`` or ``ValueError`` for a batch size that is none.
        """
        while True:
            draw = self.poll(batch_size, seconds=1.0)
            if draw is not None:
                return draw

    def poll(self, batch_size: int, *, seconds: float) -> Draw | None:
        """As ``draw``, but gives None where the feedback is still missing after ``seconds``.

        For callers that must not block for long. The time-out runs from the first poll that found feedback missing.
        """
        count = checks.whole("batch_size", batch_size, least=1)
        with self._changed:
            if not self._feedback_is_there(count, seconds):
                return None
            again = self._hand_out_again(count)
            if again is not None:
                return again
            columns = self._choose(count)
            draw = frozen(self._step, *columns)
            self._step += 1
            if self._ledger is not None:
                self._ledger.hand_out(draw)
                self._record_what_is_due()  # feedback that came early counts from the next draw on
            return draw

    def rewind(self) -> None:
        """Have the draws that were never fed back handed out again, unchanged, before any new one.

        For an iteration that was broken off. Without a ``feedback_lag`` draws in flight are not kept, and nothing
        happens.
        """
        with self._changed:
            if self._ledger is not None:
                self._ledger.rewind()
            self._waiting_since = None
            self._changed.notify_all()

    def _choose(self, count: int) -> tuple[Int64s, Float64s, npt.NDArray[np.float32]]:
        raise NotImplementedError

    def _weigh(self, probability: Float64s, beta: float) -> npt.NDArray[np.float32]:
        weight = np.empty(probability.size, np.float32)
        sums = kernels.weigh(probability, self._size, beta, weight)
        self._recent[self._step % RECENT_DRAWS] = (probability.size, *sums)
        return weight

    def _from_pass(self, index: Int64s) -> None:
        """Fill ``index`` with the next samples of the current pass; they must not be more than are left."""
        kernels.permuted(self._keys, self._size, self._taken, index)
        self._taken += index.size

    def _new_keys(self) -> npt.NDArray[np.uint64]:
        return self._generator.integers(0, 2**64, 2 * kernels.MIXING_ROUNDS, dtype=np.uint64, endpoint=False)

    def _hand_out_again(self, count: int) -> Draw | None:
        draw = None if self._ledger is None else self._ledger.again()
        if draw is None or self._ledger is None:
            return None
        if draw.index.size != count:
            raise ValueError(
                f"the draws still in flight have {draw.index.size} samples each, got batch_size={count}; "
                f"go on with {draw.index.size}, or start with a new sampler"
            )
        self._ledger.handed_again()
        return draw

    # --- waiting for feedback -----------------------------------------------------------------

    def _must_wait(self, count: int) -> bool:
        """Whether the next draw of ``count`` samples depends on feedback at all."""
        return self._passes > 0 or self._taken + count > self._size

    def _feedback_is_there(self, count: int, seconds: float) -> bool:
        if self._ledger is None or not self._must_wait(count):
            return True
        deadline = time.monotonic() + seconds
        while (missing := self._missing()) is not None:
            now = time.monotonic()
            if self._waiting_since is None:
                self._waiting_since = now
            if now - self._waiting_since >= self.feedback_timeout:
                self._waiting_since = None
                raise TimeoutError(self._why_it_waits(*missing))
            if now >= deadline:
                return False
            self._changed.wait(min(deadline, self._waiting_since + self.feedback_timeout) - now)
        self._waiting_since = None
        return True

    def _missing(self) -> tuple[int, int, int] | None:
        """What the next draw waits for; nothing while there are draws to hand out again."""
        if self._ledger is None or self._ledger.again() is not None:
            return None
        return self._ledger.missing(self._step)

    def _why_it_waits(self, step: int, reported: int, size: int) -> str:
        cause = (
            f"{reported} of its {size} losses came back: was a part of the batch dropped after the draw?"
            if reported
            else "none of its losses came back: is LossFeedback(model, sampler) among fit's callbacks, or does "
            "the loop call sampler.update(index, losses, step=step)?"
        )
        return (
            f"the draw of step {self._step} waited {self.feedback_timeout:g} s for the feedback of step {step}; "
            f"{cause} If more than {self.feedback_lag} steps are in flight (steps_per_execution, prefetch), "
            "raise feedback_lag; if steps are slow, raise feedback_timeout; feedback_lag=None does not wait"
        )

    # --- update -------------------------------------------------------------------------------

    def update(
        self,
        index: npt.ArrayLike,
        losses: npt.ArrayLike,
        step: npt.ArrayLike | None = None,
        score: npt.ArrayLike | None = None,
    ) -> None:
        """Learn the unweighted losses of the samples drawn. O(B log N).

        Args:
            index: (B,) integers in [0, N).
            losses: (B,) losses, before any weight and any reduction.
            step: of the draw they belong to, an integer or (B,) integers; None means now, newer than all that
                is known, and it counts at once, under a lag too.
            score: (B,) norms of the samples' gradients or a proxy of them. No priority of this version
                asks for one; it is checked and left alone.

        A sample given twice counts with the mean of its finite losses. A loss that is NaN or infinite
        leaves its sample's priority as it was, is counted and logged. A loss older than what is known of its sample is
        passed over. Raises ``TypeError``, ``ValueError`` or ``IndexError`` for anything else; nothing is
        changed then.
        """
        indices = checks.indices(index, self._size)
        values = checks.per_sample("losses", losses, indices.size)
        if score is not None:
            checks.per_sample("score", score, indices.size)
        if indices.size == 0:
            return
        steps = checks.steps(step, indices.size)
        with self._changed:
            self._learn(indices, values, steps)
            self._changed.notify_all()

    def _learn(self, index: Int64s, losses: Float64s, steps: Int64s | None) -> None:
        finite = kernels.count_finite(losses)
        waits = self._ledger is not None and steps is not None
        if self._ledger is not None and steps is not None:
            self._priorities_of(losses[np.isfinite(losses)])  # refuses what it cannot take
            matched = self._ledger.match(index, steps, self._step)
        else:
            prepared = self._prepare(index, losses, self._now(index.size) if steps is None else steps)
            if prepared[0].size < finite:  # some were merged or late: the means do not show every loss
                self._priorities_of(losses[np.isfinite(losses)])
        self._check_nonfinite_updates(finite > 0)
        # Everything is checked; from here on things change.
        if steps is not None:
            self._newest_step = max(self._newest_step, int(steps.max()))
        self._counts["updates"] += 1
        if finite < losses.size:
            self._count_nonfinite(index[~np.isfinite(losses)])
        if self._ledger is not None and waits:
            self._ledger.report(matched, losses)
            self._counts["late"] += index.size - sum(which.size for _, _, which in matched)
            self._record_what_is_due()
        else:
            self._record(*prepared)

    def _record_what_is_due(self) -> None:
        """Let the feedback count that the next draw uses."""
        assert self._ledger is not None
        for flight in self._ledger.due(self._step):
            steps = np.full(flight.losses.size, flight.draw.step, np.int64)
            # The losses of a sample drawn twice may have come in either order, and a mean rounds by the order.
            order = np.lexsort((flight.losses, flight.draw.index))
            self._record(*self._prepare(flight.draw.index[order], flight.losses[order], steps))

    def _now(self, count: int) -> Int64s:
        return np.full(count, max(self._step, self._newest_step + 1), np.int64)

    def _prepare(self, index: Int64s, losses: Float64s, steps: Int64s) -> Prepared:
        """The newest mean loss of each sample as a priority, and how many losses came late. Changes nothing."""
        size = index.size
        samples, means, stamps = np.empty(size, np.int64), np.empty(size), np.empty(size, np.int64)
        count, late = kernels.merge(index, losses, steps, self._newest, samples, means, stamps)
        return samples[:count], self._priorities_of(means[:count]), stamps[:count], late

    def _record(self, index: Int64s, values: Float64s, steps: Int64s, late: int) -> None:
        self._counts["late"] += late
        if index.size:
            self._counts["seen"] += self._remember(index, values, steps)

    def _priorities_of(self, losses: Float64s) -> Float64s:
        """The priorities of finite losses (B,); ``ValueError`` for losses that this sampler cannot take."""
        return losses

    def _remember(self, index: Int64s, values: Float64s, steps: Int64s) -> int:
        """Take in the priorities of distinct samples; returns how many samples were new."""
        new = int((self._newest[index] < 0).sum())
        self._newest[index] = steps
        return new

    def _check_nonfinite_updates(self, any_finite: bool) -> None:
        in_a_row = 0 if any_finite else self._nonfinite_updates + 1
        if in_a_row >= self.max_nonfinite_updates:
            raise DivergedError(
                f"{in_a_row} updates in a row held no finite loss; the training has diverged: lower the learning "
                "rate, look at the data, or raise max_nonfinite_updates"
            )
        self._nonfinite_updates = in_a_row

    def _count_nonfinite(self, index: Int64s) -> None:
        self._counts["nonfinite"] += index.size
        shown = ", ".join(map(str, index[:10])) + (", ..." if index.size > 10 else "")
        logger.warning(
            "%d losses were not finite; their samples keep their priorities: index %s", index.size, shown
        )

    # --- looking inside -----------------------------------------------------------------------

    def probabilities(self) -> Float64s:
        """Give p of every sample, what an independent draw by the priorities would use now. O(N).

        (N,) float64, sums to 1. Feedback that still waits under a lag is left out; the order of the first
        pass, in which priorities are not used yet, is left out too.
        """
        return np.full(self._size, 1.0 / self._size)

    def priorities(self) -> Float64s:
        """The priority of every sample, a copy: (N,) float64, ≥ 0. O(N)."""
        return np.ones(self._size)

    def _mean_priority(self) -> float:
        return 1.0

    def summary(self) -> dict[str, int | float]:
        """Where the sampler stands. O(1).

        ``step`` draws made; ``seen`` samples with a finite loss; ``updates``; ``nonfinite`` and ``late``
        losses passed over; of the recent draws (the last 100) ``effective_sample_size``, (Σw)²/Σw², from 1 to the
        number of samples in them, ``effective_fraction``, the same over that number, and ``max_weight``;
        ``mean_priority``; ``in_flight``, draws under a lag whose feedback does not count yet.
        """
        with self._changed:
            drawn, total, squares, _ = self._recent.sum(axis=0)
            effective = weights.effective(float(total), float(squares))
            return {
                "step": self._step,
                **self._counts,
                "effective_sample_size": effective,
                "effective_fraction": effective / float(drawn) if drawn else 1.0,
                "max_weight": float(self._recent[:, 3].max()),
                "mean_priority": self._mean_priority(),
                "in_flight": 0 if self._ledger is None else len(self._ledger),
            }

    # --- state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything, as a dict of numbers, strings, arrays and dicts of these; copies throughout. O(N).

        Loaded into a sampler made with the same arguments, the draws go on as if nothing had happened; those in flight
        under a lag are handed out again first.
        """
        with self._changed:
            return {
                "format": STATE_FORMAT,
                "sampler": type(self).__name__,
                "num_samples": self._size,
                "step": self._step,
                "taken": self._taken,
                "passes": self._passes,
                "keys": self._keys.copy(),
                "newest": self._newest.copy(),
                "newest_step": self._newest_step,
                "counts": dict(self._counts),
                "nonfinite_updates": self._nonfinite_updates,
                "recent": self._recent.copy(),
                "generator": self._generator.bit_generator.state,
                "in_flight": None if self._ledger is None else self._ledger.state_dict(),
                **self._own_state(),
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave.

        Raises ``ValueError`` for the state of another kind of sampler, another number of samples or a newer
        format, and for one that is damaged; nothing is changed then.
        """
        self._check_state(state)
        with self._changed:
            try:
                attributes = self._read_state(state)
                self._load_own_state(state)  # the last thing that can be refused
            except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
                raise ValueError(
                    f"the state is damaged ({type(error).__name__}: {error}); load another, or start again"
                ) from error
            vars(self).update(attributes)
            self._changed.notify_all()

    def _read_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The attributes that ``state`` describes, each checked; changes nothing."""
        generator = np.random.default_rng()
        generator.bit_generator.state = state["generator"]
        step = checks.whole("step", state["step"], least=0)
        return {
            "_step": step,
            "_taken": checks.whole("taken", state["taken"], least=0, most=self._size),
            "_passes": checks.whole("passes", state["passes"], least=0),
            "_keys": checks.array("keys", state["keys"], self._keys),
            "_newest": checks.array("newest", state["newest"], self._newest, least=-1),
            "_newest_step": checks.whole("newest_step", state["newest_step"], least=-1),
            "_counts": {name: checks.whole(name, state["counts"][name], least=0) for name in self._counts},
            "_nonfinite_updates": checks.whole("nonfinite_updates", state["nonfinite_updates"], least=0),
            "_recent": checks.array("recent", state["recent"], self._recent),
            "_generator": generator,
            "_ledger": self._read_ledger(state["in_flight"], step),
            "_waiting_since": None,
        }

    def _read_ledger(self, in_flight: dict[str, Any] | None, step: int) -> Ledger | None:
        if self.feedback_lag is None:
            return None
        ledger = Ledger(self.feedback_lag)
        if in_flight is not None:
            checks.indices(in_flight["index"], self._size)
            ledger.load_state_dict(in_flight, next_step=step)
        return ledger

    def _check_state(self, state: dict[str, Any]) -> None:
        if state.get("format", 0) > STATE_FORMAT:
            raise ValueError(
                f"the state has format {state['format']}, this version reads up to {STATE_FORMAT}; install a newer "
                "version of tf-importance-sampling"
            )
        if state.get("sampler") != type(self).__name__:
            raise ValueError(f"the state of a {state.get('sampler')} was given to a {type(self).__name__}")
        if state.get("num_samples") != self._size:
            raise ValueError(
                f"the state is of {state.get('num_samples')} samples, the sampler has {self._size}; was the data set "
                "changed? Load it into a sampler of that size, or start again"
            )

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        pass


class ImportanceSampler(_Sampler):
    """Draws samples in proportion to their priority, and weighs them so that training stays unbiased.

    p = (1-λ) q/Σq + λ/N with the priorities q learnt from the losses and λ the ``uniform_fraction``
    (Needell, Srebro & Ward, 2014, *Stochastic gradient descent, weighted sampling, and the randomized Kaczmarz
    algorithm*), and w = (1 / (N p)) ** β.

    Args:
        num_samples: N ≥ 1, the samples of the data set.
        priority: ``"loss"``, ``"sqrt"``, ``"bounded"`` (1 - e^-ℓ), or a function (B,) losses -> (B,) priorities.
        uniform_fraction: λ in [0, 1]. 0 draws by priority alone, 1 uniformly; no weight exceeds 1/λ.
        smoothing: in [0, 1), the share of a sample's old priority kept at an update; its first counts whole.
        scheme: ``"systematic"``, ``"multinomial"``, ``"stratified"`` or ``"without_replacement"``.
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

    def _choose(self, count: int) -> tuple[Int64s, Float64s, npt.NDArray[np.float32]]:
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


class UniformSampler(_Sampler):
    """Reshuffled passes over all samples, each at weight 1: the baseline, with the same methods.

    Args:
        num_samples: N ≥ 1.
        feedback_lag, feedback_timeout, max_nonfinite_updates, seed: as for ``ImportanceSampler``.

    A batch that crosses the end of a pass goes on with the next one, so that every batch has exactly B samples.
    ``update`` counts and checks what comes back; it changes no draw.
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

    def _choose(self, count: int) -> tuple[Int64s, Float64s, npt.NDArray[np.float32]]:
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
