"""What all samplers share: the lock, the step, the passes, feedback and its lag, the state.

A sampler is a subclass of ``Sampler`` that says how a batch is chosen (``_choose``), and, where it learns, what
becomes of the losses (``_priorities_of`` and ``_remember``)::

    draw   ── hand out again what is in flight, or wait for feedback ──▶ _choose ──▶ ledger
    update ── check everything ──▶ ledger, until it is due ──▶ merge ──▶ _priorities_of ──▶ _remember

The samplers themselves are in :mod:`sampler.samplers`, and what their state is in :mod:`sampler.state`.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sampler import batches, checks, weights
from sampler.ledger import Draw, Flight, Ledger, Told, frozen
from sampler.state import Stateful

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


class Learnt(NamedTuple):
    """What feedback comes to: one mean loss and its priority for each sample, and how many losses came late."""

    index: Int64s  # type: ignore[assignment]  # hides tuple.index, on purpose
    losses: Float64s
    priorities: Float64s
    steps: Int64s
    late: int


RECENT_DRAWS = 100  # whose weights are kept
SUMMED_DRAWS = 64  # of them, what ``summary`` means by recent; the others may be draws ahead of training

logger = logging.getLogger("sampler")


class DivergedError(ValueError):
    """Too many updates in a row held no finite loss."""


class CountsNonfinite:
    """Losses that are not finite: they are counted and logged, and too many updates without any other are an error."""

    max_nonfinite_updates: int
    _nonfinite_updates: int  # in a row
    _counts: dict[str, int]

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
        logger.warning("%d losses were not finite; their samples keep their priorities: index %s", index.size, shown)


class Sampler(CountsNonfinite, Stateful):
    """What all samplers share: the lock, the step, passes over all samples, feedback and its lag, the state."""

    uses_feedback = True  # whether draws depend on what ``update`` is told
    seconds = 0.0  # spent in draws and updates so far, waiting left out
    fully_corrected = True  # whether every weight is 1/(N p)
    epochs_vary = False  # whether an epoch is what ``ends_epoch`` says, or always N samples rounded up to batches
    auto = False  # whether ``suit`` may name the priority
    gated = False  # whether a gate asks for scores, and for the norm of the mean gradient
    _scored = False  # whether scores take the place of losses

    def __init__(
        self,
        num_samples: int,
        *,
        feedback_lag: int | None,
        feedback_timeout: float,
        max_nonfinite_updates: int,
        seed: int | None,
        all_known: bool = False,
    ) -> None:
        self._size = checks.whole("num_samples", num_samples, least=1)
        self.feedback_lag = None if feedback_lag is None else checks.whole("feedback_lag", feedback_lag, least=1)
        self.feedback_timeout = checks.number("feedback_timeout", feedback_timeout, 0.0, np.inf)
        self.max_nonfinite_updates = checks.whole("max_nonfinite_updates", max_nonfinite_updates, least=1)
        if seed is not None:
            checks.whole("seed", seed, least=0)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._generator = np.random.default_rng(seed)
        self._ledger = self._new_ledger()
        self._step = 0
        self._taken = 0  # samples taken from the current pass over all of them
        self._passes = 0  # whole passes before it
        self._keys = self._new_keys()
        # The newest step known of each sample, or -1. Zeros cost nothing until they are looked at.
        self._newest = np.zeros(self._size, np.int32) if all_known else np.full(self._size, -1, np.int32)
        self._newest_step = -1  # that an update has named
        self._counts = {"seen": 0, "updates": 0, "nonfinite": 0, "late": 0}
        self._nonfinite_updates = 0  # in a row
        self._recent = np.zeros((RECENT_DRAWS, 4), np.float64)  # B, Σw, Σw², max w of recent draws
        self._waiting_since: float | None = None
        self._said_ahead = False

    def __len__(self) -> int:
        return self._size

    @property
    def wants_score(self) -> bool:
        """Whether ``update`` has a use for scores."""
        return self._scored

    @property
    def step(self) -> int:
        """How many draws were made; the step of the next one."""
        return self._step

    # --- draw ---------------------------------------------------------------------------------

    def draw(self, batch_size: int) -> Draw:
        """The next batch: exactly ``batch_size`` ≥ 1 samples. O(B log N).

        With a ``feedback_lag`` it waits for the feedback it must know, at most ``feedback_timeout`` seconds
        (then ``TimeoutError``). Raises ``TypeError`` or ``ValueError`` for a batch size that is none,
        ``OverflowError`` after 2^31 - 1 draws, as many as there are steps, and under a lag what the priority raises
        where it refuses the mean of several losses of a sample; nothing is changed then.
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
        with self._lock:
            if not self._feedback_is_there(count, seconds):
                return None
            again = self._hand_out_again(count)
            if again is not None:
                return again
            start = time.perf_counter()
            if self._step >= checks.LARGEST_STEP:
                raise _no_step_left(self._step)
            if self._ledger is not None:
                self._record_what_is_due()  # mostly nothing, as all that could count does already
            columns = self._choose(count)
            draw = frozen(self._step, *columns)
            self._step += 1
            self._hand_out(draw)
            if self._ledger is not None:
                self._record_what_can_count()  # feedback that came early counts from the next draw on
            self.seconds += time.perf_counter() - start
            return draw

    def suit(self, priority: str) -> None:
        """Name the priority that ``priority="auto"`` stands for. ``ValueError`` for a sampler that was not made so."""
        raise ValueError(
            f"{priority!r} cannot suit a {type(self).__name__}; only one made with priority='auto' is told its priority"
        )

    def poll_rows(self, index: Int64s, weight: Float32s, probability: Float32s, step: Int64s, *, seconds: float) -> int:
        """Fill rows of these (m, B) arrays with one draw each, the next m, as many as need not wait; returns how many.

        They are the draws that as many calls of ``poll`` would give. Only the first waits for feedback, for ``seconds``
        at most. Raises what ``poll`` does.
        """
        with self._lock:
            for row in range(len(index)):
                draw = self.poll(index.shape[1], seconds=0.0 if row else seconds)
                if draw is None:
                    return row
                index[row], weight[row], probability[row] = draw.index, draw.weight, draw.probability
                step[row] = draw.step
            return len(index)

    def rewind(self) -> None:
        """Have the draws that were never fed back handed out again, unchanged, before any new one.

        For an iteration that was broken off. Without a ``feedback_lag`` draws in flight are not kept, and nothing
        happens.
        """
        with self._lock:
            if self._ledger is not None:
                self._ledger.rewind()
            self._waiting_since = None
            self._changed.notify_all()

    def _choose(self, count: int) -> tuple[Int64s, Float64s, Float32s]:
        raise NotImplementedError

    def _weigh(self, probability: Float64s, beta: float) -> Float32s:
        weight = np.empty(probability.size, np.float32)
        batches.weigh(probability, self._size, beta, weight, self._recent[self._step % RECENT_DRAWS])
        return weight

    def _hand_out(self, draw: Draw) -> None:
        """A new draw leaves."""
        if self._ledger is not None:
            self._ledger.hand_out(draw)

    def _go_on_with_pass(self, index: Int64s) -> int:
        """Fill ``index`` from its front with what is left of the pass, or with a new one; returns how many that are."""
        if self._taken == self._size:
            self._taken, self._passes, self._keys = 0, self._passes + 1, self._new_keys()
        part = index[: self._size - self._taken]
        batches.permuted(self._keys, self._size, self._taken, part)
        self._taken += part.size
        return part.size

    def _new_keys(self) -> npt.NDArray[np.uint64]:
        return self._generator.integers(0, 2**64, 2 * batches.MIXING_ROUNDS, dtype=np.uint64, endpoint=False)

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
        mean_gradient_norm: npt.ArrayLike | None = None,
    ) -> None:
        """Learn the unweighted losses of the samples drawn. O(B log N).

        Args:
            index: (B,) integers in [0, N).
            losses: (B,) losses, before any weight and any reduction.
            step: of the draw they belong to, an integer or (B,) integers; None means now, newer than all that
                is known, and it counts at once, under a lag too.
            score: (B,) norms of the samples' gradients or a proxy of them, ≥ 0. A priority that asks for them
                (``"gradient_norm"``) takes them in place of the losses, and a gate judges by them; where there is
                neither, they are checked and left alone. A sample whose loss is not finite has no score either.
            mean_gradient_norm: one number ≥ 0, the norm of the gradient of the batch's weighted mean loss, in the units
                of the scores: for a gate. Of several for one step the last counts; one that is not finite keeps the
                step from the gate.

        A sample given twice counts with the mean of its finite losses. A loss that is NaN or infinite
        leaves its sample's priority as it was, is counted and logged. A loss older than what is known of its sample is
        passed over. Raises ``TypeError``, ``ValueError`` or ``IndexError`` for anything else; nothing is
        changed then.
        """
        indices = checks.indices(index, self._size)
        values = checks.per_sample("losses", losses, indices.size)
        scores = None if score is None else checks.per_sample("score", score, indices.size)
        norm = checks.norm(mean_gradient_norm)
        told = None if step is None else self._what_is_told(values, scores, norm)  # a gate judges known draws
        if self._scored:
            values = self._scores(values, scores)
        steps = checks.steps(step, indices.size)
        if indices.size == 0:
            return
        with self._lock:
            start = time.perf_counter()
            self._learn(indices, values, steps, told)
            if self._ledger is not None:
                self._changed.notify_all()
            self.seconds += time.perf_counter() - start

    @staticmethod
    def _scores(losses: Float64s, scores: Float64s | None) -> Float64s:
        """What is learnt of losses (B,) by a priority that asks for their scores (B,)."""
        if scores is None:
            raise ValueError(
                "priority='gradient_norm' draws by a score for each loss, and update was given none; pass score=..., "
                "or use LossFeedback(model, sampler)"
            )
        return scores if batches.count_finite(losses) == losses.size else np.where(np.isfinite(losses), scores, losses)

    def _what_is_told(self, losses: Float64s, scores: Float64s | None, norm: float) -> Told | None:
        """What a gate is told beside losses (B,); None where there is no gate."""
        return None

    def _learn(self, index: Int64s, losses: Float64s, steps: Int64s | None, told: Told | None) -> None:
        finite = batches.count_finite(losses)
        matched = None  # where the losses wait, if they wait
        if self._ledger is not None and steps is not None:
            self._check_all(index, losses, finite)
            matched = self._ledger.match(index, steps, self._step)
        else:
            learnt = self._prepare(index, losses, self._now() if steps is None else steps)
            if learnt.index.size < finite:  # some were merged or late: the means do not show every loss
                self._check_all(index, losses, finite)
        self._check_nonfinite_updates(finite > 0)
        # Everything is checked; from here on things change.
        if steps is not None:
            newest = int(steps[0] if steps.size == 1 else steps.max())
            self._warn_of_steps_ahead(newest)
            self._newest_step = max(self._newest_step, newest)
        self._counts["updates"] += 1
        if finite < losses.size:
            self._count_nonfinite(index[~np.isfinite(losses)])
        if self._ledger is not None and matched is not None:
            self._ledger.report(matched, losses, told)
            self._counts["late"] += index.size - sum(match.count for match in matched)
            self._record_what_can_count()
        else:
            self._record(learnt)
            if told is not None and steps is not None:
                self._tell_recent(index, steps, told)

    def _tell_recent(self, index: Int64s, steps: Int64s, told: Told) -> None:
        """Without a lag: tell the gate of the samples ``index``."""

    def _tell(self, flight: Flight) -> None:
        """Tell the gate of a draw whose feedback is complete, and counts from now on."""

    def _check_all(self, index: Int64s, losses: Float64s, finite: int) -> None:
        """Refuse losses (B,), of which so many are finite, that the priority cannot take."""
        if finite == losses.size:
            self._priorities_of(losses, index)
        else:
            kept = np.isfinite(losses)
            self._priorities_of(losses[kept], index[kept])

    def _warn_of_steps_ahead(self, step: int) -> None:
        if step >= self._step and not self._said_ahead:
            self._said_ahead = True
            logger.warning(
                "feedback for step %d, but only %d draws were made: until draws come that far, all other losses of "
                "these samples count as late; pass the step that came with the draw, or none",
                step,
                self._step,
            )

    def _record_what_can_count(self) -> None:
        """Let the feedback count that the next draw uses; what is refused waits for that draw, which says so.

        Each loss was taken by the priority when it came, but the mean of several may not be, or not by a priority
        that has changed. The draw or the update that comes before cannot be taken back any more.
        """
        try:
            self._record_what_is_due()
        except Exception:
            return

    def _record_what_is_due(self) -> None:
        """Let the feedback count that the next draw uses; what is refused stays in the ledger."""
        assert self._ledger is not None
        for flight in self._ledger.due(self._step):
            step = np.array([flight.draw.step], np.int64)
            learnt = self._prepare(flight.draw.index, flight.losses, step)
            self._tell(flight)
            self._record(learnt)

    def _now(self) -> Int64s:
        # At most LARGEST_STEP: one more than a draw or an update can name, and the largest that ``newest`` holds.
        return np.array([max(self._step, self._newest_step + 1)], np.int64)

    def _prepare(self, index: Int64s, losses: Float64s, steps: Int64s) -> Learnt:
        """The newest mean loss of each sample as a priority, and how many losses came late. Changes nothing."""
        size = index.size
        samples, means, stamps = np.empty(size, np.int64), np.empty(size), np.empty(size, np.int64)
        count, late = batches.merge(index, losses, steps, self._newest, samples, means, stamps)
        samples, means = samples[:count], means[:count]
        return Learnt(samples, means, self._priorities_of(means, samples), stamps[:count], late)

    def _record(self, learnt: Learnt) -> None:
        self._counts["late"] += learnt.late
        if learnt.index.size:
            self._counts["seen"] += self._remember(learnt)

    def _priorities_of(self, losses: Float64s, index: Int64s) -> Float64s:
        """The priorities of finite losses (B,) of the samples ``index`` (B,); ``ValueError`` for what it refuses."""
        return losses

    def _remember(self, learnt: Learnt) -> int:
        """Take in what distinct samples have learnt; returns how many of them were new."""
        new = int((self._newest[learnt.index] < 0).sum())
        self._newest[learnt.index] = learnt.steps
        return new

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

    def ages(self) -> Int64s:
        """How stale what is known of each sample is, in draws: (N,) int64, ≥ 0. O(N).

        The draws made since the one that its newest loss belongs to; of a sample that has had no finite loss yet, all.
        """
        with self._lock:
            ages = np.subtract(self._step - 1, self._newest, dtype=np.int64)
        return np.maximum(ages, 0, out=ages)

    def stalest(self, count: int) -> Int64s:
        """The ``count`` samples of the greatest age, the oldest first: (count,) int64, at most all N. O(N)."""
        count = min(checks.whole("count", count, least=1), self._size)
        with self._lock:
            newest = self._newest.copy()
        oldest = np.argpartition(newest, count - 1)[:count]
        return oldest[np.lexsort((oldest, newest[oldest]))].astype(np.int64)

    def _mean_priority(self) -> float:
        return 1.0

    def summary(self) -> dict[str, int | float]:
        """Where the sampler stands. O(1); with ``store="ranked"`` O(N), for the mean.

        ``step`` draws made; ``seen`` samples with a finite loss; ``updates``; ``nonfinite`` and ``late``
        losses passed over; of the recent draws (the last 64; under a lag, before the oldest one that is not completely
        fed back, so that timing does not matter) ``effective_sample_size``, (Σw)²/Σw², from 1 to the
        number of samples in them, ``effective_fraction``, the same over that number, and ``max_weight``;
        ``mean_priority``; ``in_flight``, draws under a lag whose feedback does not count yet.
        """
        with self._lock:
            recent = self._recent_draws()
            drawn, total, squares, _ = recent.sum(axis=0)
            effective = weights.effective(float(total), float(squares))
            return {
                "step": self._step,
                **self._counts,
                "effective_sample_size": effective,
                "effective_fraction": effective / float(drawn) if drawn else 1.0,
                "max_weight": float(recent[:, 3].max(initial=0.0)),
                "mean_priority": self._mean_priority(),
                "in_flight": 0 if self._ledger is None else len(self._ledger),
            }

    def _recent_draws(self) -> Float64s:
        """(≤ 64, 4) B, Σw, Σw² and the largest w of each."""
        ahead = None if self._ledger is None else self._ledger.oldest_open()
        end = self._step if ahead is None else ahead
        return self._recent[np.arange(max(0, end - SUMMED_DRAWS), end) % RECENT_DRAWS]

    def _new_ledger(self) -> Ledger | None:
        return None if self.feedback_lag is None else Ledger(self.feedback_lag)


def _no_step_left(step: int) -> OverflowError:
    return OverflowError(
        f"{step} draws were made, and feedback could not name the step of another; go on with a new sampler, which "
        "losses= starts from the losses known"
    )
