"""Draws in proportion to priority, with the weights that keep training unbiased."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import batches, checks, draws, gates, kernels, priorities, stores
from sampler.base import RECENT_DRAWS, Float32s, Float64s, Int64s, Learnt, logger
from sampler.bound import DrawBound
from sampler.evidence import Evidence
from sampler.gates import Gate
from sampler.ledger import Draw, Flight, Ledger, Recent, Told
from sampler.priorities import Priority
from sampler.samplers.importance_state import ImportanceState, memory_of
from sampler.stores import PriorityStore, ProportionalStore

PART = 2**17  # losses that are looked at together when all are known at the start: they stay in the cache


class ImportanceSampler(ImportanceState):
    """Draws samples in proportion to their priority, and weighs them so that training stays unbiased.

    p = (1-λ) q/Σq + λ/N with the priorities q learnt from the losses and λ the ``uniform_fraction``
    (Needell, Srebro & Ward, 2014, *Stochastic gradient descent, weighted sampling, and the randomized Kaczmarz
    algorithm*), and w = (1 / (N p)) ** β.

    Args:
        num_samples: N ≥ 1, the samples of the data set.
        priority: ``"loss"``, ``"sqrt"``, ``"bounded"`` (1 - e^-ℓ), ``"clipped"`` (at a quantile of the recent
            losses), ``"gradient_norm"`` (the ``score`` given to ``update``), ``"auto"`` (what ``suit`` names before the
            first loss arrives, else ``"loss"``), what :mod:`sampler.priorities` makes
            (``power(0.6)``, ``relative(reference)``), or a function (B,) losses -> (B,) priorities.
        uniform_fraction: λ in [0, 1]. 0 draws by priority alone, 1 uniformly; no weight exceeds 1/λ.
        smoothing: in [0, 1), the share of a sample's old priority kept at an update; its first counts whole.
        scheme: ``"systematic"``, ``"multinomial"``, ``"stratified"`` or ``"without_replacement"``. In the batch that
            ends the first pass it rules the priority draws alone, so a sample of the pass can be among them again.
        store: ``"proportional"``; ``"ranked"``, where P ∝ 1/rank^0.7 takes the place of q/Σq, up to N of about 1e6; or
            an object with the methods of ``PriorityStore``, such as ``RankedStore(num_samples, alpha=0.5)``.
        beta: β in [0, 1], or a function of the step. 1 corrects fully, 0 not at all.
        first_pass: first every sample once, in shuffled order at weight 1, before priorities are used; or the share
            of the samples in [0, 1] after which they are. The others then have the mean priority of those seen, until
            they are: right for a training of few epochs, where a whole pass is much of it.
        warmup: ≥ 0, further passes at weight 1 before priorities are used, which until then are learnt; the first is
            then a whole one, too.
        finish_at: the step from which on to the end draws are passes at weight 1 again, or None. What was left to the
            uniform share of the draws is so looked at once more, and the end is as it would be without priorities.
        gate: ``"variance"``, ``"speedup"`` or what :mod:`sampler.gates` makes: judges by the scores given to ``update``
            whether priorities pay. While it is closed, as at first, draws are passes at weight 1. None: they are by
            priority, whether that pays or not.
        initial_priority: ≥ 0, of a sample that has had no finite loss yet.
        losses: (N,) known losses to start from; then there is no first pass. About a second for N = 1e8.
        keep_losses: keep the newest loss of every sample: ``losses()`` gives them, and ``set_priority`` can change the
            priority later. 4 bytes more a sample.
        forget: in [0, 1), how far a sample whose loss is older than a whole pass (N draws) is pulled toward the mean
            priority, once in each pass: 0 not at all, near 1 almost all the way. A low priority that has become
            wrong is so found out sooner than by the uniform share alone.
        max_draws: a bound on the draws of a sample in an epoch (each N draws), 1 to 255. One that reaches it keeps the
            uniform share of its probability alone until the epoch ends, at most λ further draws on average; p and
            the weights are those of the draw, so nothing is biased. It is looked at between batches. 10.2 bytes more a
            sample. A draw and its update take some 4 µs more while few are held down, some 16 µs and 0.1 µs a sample
            where most are, and an epoch that begins some 10 ms for N = 1e6; by rank far more.
        feedback_lag: None: feedback counts as it comes. k ≥ 1: the draw of step n uses exactly the feedback of the
            steps up to n - k, and the same seed gives the same draws whatever the threads do.
        feedback_timeout: seconds a draw waits for feedback under a lag.
        max_nonfinite_updates: so many updates in a row without a finite loss are an error.
        ascending: give the draws of a batch in ascending order instead of shuffled.
        seed: fixes everything. None takes one from the operating system.

    About 8.6 bytes a sample (``nbytes``). ``draw`` and ``update`` may be called from different threads.

    Raises ``ValueError`` or ``TypeError`` for arguments outside these ranges.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        priority: str | Priority = "loss",
        uniform_fraction: float = 0.3,
        smoothing: float = 0.0,
        scheme: str = "systematic",
        store: str | PriorityStore = "proportional",
        beta: float | Callable[[int], float] = 1.0,
        first_pass: bool | float = True,
        warmup: int = 0,
        finish_at: int | None = None,
        gate: str | Gate | None = None,
        initial_priority: float = 1.0,
        losses: npt.ArrayLike | None = None,
        keep_losses: bool = False,
        forget: float = 0.0,
        max_draws: int | None = None,
        feedback_lag: int | None = None,
        feedback_timeout: float = 60.0,
        max_nonfinite_updates: int = 10,
        ascending: bool = False,
        seed: int | None = None,
    ) -> None:
        self.auto = isinstance(priority, str) and priority == "auto"  # whether ``suit`` may name the priority
        if self.auto and losses is not None:
            raise ValueError("priority='auto' is named later, and losses= need it now; name it: priority='sqrt'")
        self._priority = priorities.loss if self.auto else priorities.resolve(priority, num_samples)
        self._made_with = self._priority
        self._memory = memory_of(self._priority)
        self.uniform_fraction = checks.number("uniform_fraction", uniform_fraction, 0.0, 1.0)
        self.smoothing = checks.number("smoothing", smoothing, 0.0, 1.0, top_open=True)
        self._scheme = draws.resolve(scheme)
        self._beta = beta if callable(beta) else checks.number("beta", beta, 0.0, 1.0)
        self.forget = checks.number("forget", forget, 0.0, 1.0, top_open=True)
        share = checks.number("first_pass", first_pass, 0.0, 1.0)
        self._ascending = checks.flag("ascending", ascending)
        self.warmup = checks.whole("warmup", warmup, least=0)
        self.finish_at = None if finish_at is None else checks.whole("finish_at", finish_at, least=0)
        judge = gates.resolve(gate)
        self.gated = judge is not None
        keep_losses = checks.flag("keep_losses", keep_losses)
        if keep_losses and self._scored:
            raise _kept_and_scored()
        first = checks.number("initial_priority", initial_priority, 0.0, np.inf, top_open=True)
        super().__init__(
            num_samples,
            feedback_lag=feedback_lag,
            feedback_timeout=feedback_timeout,
            max_nonfinite_updates=max_nonfinite_updates,
            seed=seed,
            all_known=losses is not None,
        )
        self._store = stores.resolve(store, self._size, first if losses is None else 0.0)
        self._gate = None
        self._prior: Float64s | None = None  # the p that the priorities gave the last draw, for the gate
        if judge is not None:
            stores.check_for_gate(self._store)
            self._gate = Evidence(judge, self._size, Recent() if self._ledger is None else None)
        self._losses = np.full(self._size, np.nan, np.float32) if keep_losses else None
        self._bound = None
        if max_draws is not None:
            self._bound = DrawBound(self._size, max_draws, self.uniform_fraction, signed=self._store.signed)
        self._faded = 0  # the sample from which on old priorities are pulled to the mean next
        if losses is not None:
            self._start_from(checks.numbers("losses", losses, self._size), first)
        # Of the first pass, before priorities are used.
        self._enough = self._size if self.warmup else math.ceil(share * self._size)
        self._cut = 0 < self._enough < self._size and losses is None  # whether it is not yet, and will be, cut short
        if losses is not None or share == 0.0:
            self._taken = self._size
        self._said_uniform = False

    @property
    def priority(self) -> str:
        """How the priority is written that is in use now: with ``"auto"``, what it has become."""
        return priorities.describe(self._priority)

    @property
    def fully_corrected(self) -> bool:  # type: ignore[override]
        """Whether every weight is 1/(N p): whether β is always 1."""
        return not callable(self._beta) and self._beta == 1.0

    @property
    def wants_score(self) -> bool:
        """Whether ``update`` has a use for scores: for the priority, or for the gate."""
        return self._scored or self.gated

    @property
    def _scored(self) -> bool:  # type: ignore[override]
        return bool(getattr(self._priority, "scored", False))

    def _choose(self, count: int) -> tuple[Int64s, Float64s, Float32s]:
        """What is left of the first pass, then draws by priority."""
        beta = self._beta_at(self._step)
        if self._scheme is draws.without_replacement:  # say so at once, not when the first pass is over
            checks.distinct(count, self._size)
        if self._bound is not None:
            self._bound.begin(self._store)
        self._cut_first_pass()
        known = self._passes > 0 or self._taken >= self._enough  # whether there are priorities
        if not self._is_uniform():
            left = 0
            index, probability = self._by_priority(count)
            weight = self._weigh(probability, beta)
        else:
            index, probability = np.empty(count, np.int64), np.full(count, 1.0 / self._size)
            left = self._from_passes(index)
            if left < count:
                index[left:], probability[left:] = self._by_priority(count - left)
            weight = self._weigh(probability, beta)
            weight[:left] = 1.0
        if self._gate is not None:
            self._prior = self._prior_of(index, probability, left) if known else np.full(count, np.nan)
        if self._bound is not None:
            self._bound.count(self._store, index)
        return index, probability, weight

    def _is_uniform(self) -> bool:
        """Whether the next sample is one of a pass: the first ones, the finish, and those of a closed gate."""
        warm = self._passes + (self._taken >= self._enough) > self.warmup
        finishing = self.finish_at is not None and self._step >= self.finish_at
        return not warm or finishing or (self._gate is not None and not self._gate.open)

    def _must_wait(self, count: int) -> bool:
        return super()._must_wait(count) or self._taken >= self._enough

    def _cut_first_pass(self) -> None:
        """Once so much of it is done as was asked for, give the samples that were not seen the mean priority. O(N)."""
        if not self._cut or (self._passes == 0 and self._taken < self._enough):
            return
        self._cut = False
        unseen = self._newest < 0
        if unseen.any() and not unseen.all():
            values = self._priorities()
            values[unseen] = values[~unseen].mean()
            self._fill(values)

    def _from_passes(self, index: Int64s) -> int:
        """Fill ``index`` from its front with samples of passes, as long as draws are uniform; returns how many."""
        left = 0
        while left < index.size and self._is_uniform():
            left += self._go_on_with_pass(index[left:])
        return left

    def _prior_of(self, index: Int64s, probability: Float64s, left: int) -> Float64s:
        """The p of ``index`` by priority: of the first ``left``, of passes, what it would have been."""
        if left == 0:
            return probability
        prior = probability.copy()
        prior[:left] = self._store.probability_of(index[:left], self.uniform_fraction)
        return prior

    def poll_rows(self, index: Int64s, weight: Float32s, probability: Float32s, step: Int64s, *, seconds: float) -> int:
        """As that of every sampler. Systematic draws by priority alone are made together."""
        rows, count = index.shape
        with self._lock:
            store = self._store
            by_priority = not self._is_uniform() and self._scheme is draws.systematic
            simple = self._ledger is None and self._bound is None and not self.forget
            simple = simple and self._gate is None and self.finish_at is None
            last = self._step + rows > checks.LARGEST_STEP
            if type(store) is not ProportionalStore or not by_priority or not simple or last:
                return super().poll_rows(index, weight, probability, step, seconds=seconds)
            start = time.perf_counter()
            self._cut_first_pass()
            if store.total <= 0.0:
                self._say_uniform()
            steps = np.arange(self._step, self._step + rows)
            beta = np.array([self._beta_at(int(number)) for number in steps])
            random = self._generator.random((rows, 1 if self._ascending else 2))
            samples, likely = store.find_rows(batches.spaced_rows(count, random[:, 0]), self.uniform_fraction)
            told = np.empty((rows, 4))
            batches.finish_rows(random[:, 1:], samples, likely, self._size, beta, index, probability, weight, told)
            self._recent[steps[-RECENT_DRAWS:] % RECENT_DRAWS] = told[-RECENT_DRAWS:]
            step[...] = steps[:, None]
            self._step += rows
            self.seconds += time.perf_counter() - start
            return int(rows)

    def _by_priority(self, count: int) -> draws.Drawn:
        self._taken = self._size  # a pass that was broken off is over
        if self.forget:
            self._fade(count)
        if self._store.total <= 0.0:
            self._say_uniform()
        index, probability = self._scheme(
            self._store, count, uniform_fraction=self.uniform_fraction, generator=self._generator
        )
        if not self._ascending:
            batches.shuffle(self._generator.random(), index, probability)
        return index, probability

    def _beta_at(self, step: int) -> float:
        if callable(self._beta):
            return checks.number(f"beta({step})", self._beta(step), 0.0, 1.0)
        return self._beta

    def _say_uniform(self) -> None:
        if not self._said_uniform:
            self._said_uniform = True
            logger.warning("all priorities are zero; draws are uniform until one is not")

    def _fade(self, count: int) -> None:
        """Pull old priorities toward the mean: ``count`` samples are looked at, so that N draws look at all."""
        first, left = self._faded, count
        before = self._step - -(-self._size // count)
        while left > 0:
            last = min(first + left, self._size)
            self._store.fade(self._newest, first, last, before, self.forget, self._mean_priority())
            if self._bound is not None:
                self._bound.keep_down(self._store, first, last)
            left -= last - first
            first = last % self._size
        self._faded = first

    def _start_from(self, losses: npt.NDArray[Any], otherwise: float) -> None:
        """Take known ``losses`` (N,); a sample whose loss is not finite gets the priority ``otherwise``."""
        if self._memory is not None:  # the first priority knows all losses, as in ``set_priority``
            for first in range(0, self._size, PART):
                part = losses[first : first + PART].astype(np.float64)
                self._memory.observe(part[np.isfinite(part)])
        self._store.fill_parts(
            self._start_part(np.arange(first, min(first + PART, self._size)), losses[first : first + PART], otherwise)
            for first in range(0, self._size, PART)
        )
        unknown = np.flatnonzero(self._newest < 0)
        self._counts["seen"] = self._size - unknown.size
        if unknown.size:
            self._count_nonfinite(unknown)

    def _start_part(self, index: Int64s, losses: npt.NDArray[Any], otherwise: float) -> Float64s:
        """The priorities of the samples ``index``, which follow each other; what else their losses tell is learnt."""
        losses = losses.astype(np.float64)
        if batches.count_finite(losses) == losses.size:
            priority = self._priorities_of(losses, index)
        else:
            finite = np.isfinite(losses)
            self._newest[index[~finite]] = -1
            index, losses = index[finite], losses[finite]
            priority = np.full(finite.size, otherwise)
            priority[finite] = self._priorities_of(losses, index)
        self._keep(index, losses)
        return priority

    def _keep(self, index: Int64s, losses: Float64s) -> None:
        if self._losses is not None:
            self._losses[index] = np.clip(losses, -kernels.LARGEST, kernels.LARGEST)

    def _priorities_of(self, losses: Float64s, index: Int64s) -> Float64s:
        return priorities.apply(self._priority, losses, index, signed=self._store.signed)

    def _remember(self, learnt: Learnt) -> int:
        self._keep(learnt.index, learnt.losses)
        if self._memory is not None:  # in an order that is not that of arrival, which may be chance
            self._memory.observe(learnt.losses[np.argsort(learnt.index)])
        if self._bound is not None:
            self._bound.release(self._store, learnt.index)
        new = self._store.record(self._newest, learnt.index, learnt.steps, learnt.priorities, self.smoothing)
        if self._bound is not None:
            self._bound.hold(self._store, learnt.index)
        return new

    # --- the gate -----------------------------------------------------------------------------

    def _new_ledger(self) -> Ledger | None:
        return None if self.feedback_lag is None else Ledger(self.feedback_lag, watching=self.gated)

    def _hand_out(self, draw: Draw) -> None:
        if self._ledger is not None:
            self._ledger.hand_out(draw, self._prior)
        elif self._gate is not None and self._prior is not None:
            self._gate.hand_out(draw, self._prior)

    def _what_is_told(self, losses: Float64s, scores: Float64s | None, norm: float) -> Told | None:
        return None if self._gate is None else self._gate.told(losses, scores, norm)

    def _tell_recent(self, index: Int64s, steps: Int64s, told: Told) -> None:
        if self._gate is not None:
            self._gate.tell_recent(index, steps, told, self._step)

    def _tell(self, flight: Flight) -> None:
        if self._gate is not None:
            self._gate.tell(flight, self._step)

    def summary(self) -> dict[str, int | float]:
        """As of every sampler; with a gate also its state ``gate_open``, its estimate ``gate_gain`` of how many times
        less noisy draws by priority are, and ``gate_changed``, the step of its last change, or -1.
        """
        with self._lock:
            return {**super().summary(), **({} if self._gate is None else self._gate.summary())}

    # --- looking inside, and changing it ------------------------------------------------------

    def probabilities(self) -> Float64s:  # noqa: D102
        with self._lock:
            return self._store.probabilities(self.uniform_fraction)

    def priorities(self) -> Float64s:  # noqa: D102
        with self._lock:
            return self._priorities()

    def _priorities(self) -> Float64s:
        values = self._store.priorities()
        return values if self._bound is None else self._bound.put_back(values)

    def _fill(self, values: Float64s) -> None:
        """Have these priorities (N,), whatever the bound on draws holds down."""
        if self._bound is not None:
            self._bound.release_all(self._store)
        self._store.fill(values)
        if self._bound is not None:
            self._bound.hold(self._store, np.arange(self._size))

    def losses(self) -> Float32s:
        """The newest finite loss of every sample, a copy: (N,) float32, NaN where there was none. O(N).

        Raises ``ValueError`` without ``keep_losses=True``.
        """
        with self._lock:
            return self._kept_losses().copy()

    def suit(self, priority: str) -> None:
        """Name the priority that ``"auto"`` stands for: ``"loss"``, ``"sqrt"``, ``"bounded"`` or ``"gradient_norm"``.

        To be done before the first loss arrives, by who knows the loss function; the same again is no matter. Raises
        ``ValueError`` for another name, for another priority once there are losses, and for a sampler that was not
        made with ``priority="auto"``; nothing is changed then.
        """
        if not isinstance(priority, str) or priority not in priorities.NAMED:
            raise ValueError(f"suit takes one of {', '.join(map(repr, priorities.NAMED))}, got {priority!r}")
        named = priorities.NAMED[priority]
        with self._lock:
            ours = priorities.describe(self._priority)
            if not self.auto:
                raise ValueError(f"the sampler has priority={ours}; to have {priority!r} suit it, make it with 'auto'")
            if named is self._priority:
                return
            if self._counts["updates"]:
                raise ValueError(
                    f"losses have arrived, and priorities were made of them by {ours}; name {priority!r} before the "
                    "first update, or make a new sampler"
                )
            if named is priorities.gradient_norm and self._losses is not None:
                raise _kept_and_scored()
            self._priority = self._made_with = named
            logger.info("priority='auto' is %r", priority)

    def set_priority(self, priority: str | Priority) -> None:
        """Change the priority function, and derive every priority anew from the sample's newest loss. O(N).

        The losses are kept, not the priorities turned back, so that no function is ever applied to what another has
        made of a loss. What ``smoothing`` and ``forget`` had mixed into a priority is gone; a sample without a loss
        keeps the priority it has. Raises ``ValueError`` without ``keep_losses=True`` and for losses that ``priority``
        cannot take; nothing is changed then. A state from before is taken back with the priority the sampler was
        made with.
        """
        changed = priorities.resolve(priority, self._size)
        if getattr(changed, "scored", False):
            raise ValueError("priority='gradient_norm' cannot be derived from losses; make the sampler with it")
        with self._lock:
            losses = self._kept_losses()
            known = np.flatnonzero(np.isfinite(losses))
            given = losses[known].astype(np.float64)
            derived = priorities.apply(changed, given, known, signed=self._store.signed)
            self._check_waiting(changed, None if self._ledger is None else self._ledger.state_dict())
            memory = memory_of(changed)
            if memory is not None:
                memory.observe(given)
                derived = priorities.apply(changed, given, known, signed=self._store.signed)
            self._priority, self._memory, self.auto = changed, memory, False
            values = self._priorities()
            values[known] = derived
            self._fill(values)

    def _kept_losses(self) -> Float32s:
        if self._losses is None:
            raise ValueError("the losses were not kept; make the sampler with keep_losses=True")
        return self._losses

    @property
    def nbytes(self) -> int:
        """Bytes held in arrays, all told."""
        parts: list[Any] = [self._store, self._newest, self._recent, self._losses, self._bound]
        return sum(part.nbytes for part in parts if part is not None)

    def _mean_priority(self) -> float:
        return self._store.mean() + (0.0 if self._bound is None else self._bound.mean_held())


def _kept_and_scored() -> ValueError:
    return ValueError("keep_losses=True keeps losses, and priority='gradient_norm' learns scores; leave one out")
