"""The slow twin of each sampler: what the contract says, in plain arrays, over the whole of them at every step.

A twin is told what its sampler did, and says whether that can be::

    twin = TWINS["as it comes"](size, seed)         # the seed is the sampler's
    draw = sampler.draw(4)
    twin.drawn(draw)                                # AssertionError, if the sampler may not have drawn this
    sampler.update(index, losses, step=step)
    twin.told(index, losses, step)
    twin.agree(sampler)                             # priorities, p, steps, counts, summary: all that can be looked at

It knows neither tree nor ledger nor kernel. A pass is the set of samples still to come; p is laid out whole
(twin_shares.py); what is in flight is a list of losses for each draw. The generator is a copy that is asked for as
many numbers as the method is documented to take, so a draw by priority is known position by position; of a pass, whose
order is chance, it is known which samples are left.

Priorities are compared, up to one unit of float32 (of a mean in float64 by rank: 1e-12), and then taken over, so that
what is compared at the next step is one step.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from .slow_twin import LARGEST, SMALLEST
from .twin_shares import ExactShares

KEYS = 12  # random numbers that name the order of a pass
FLOAT64 = float(np.finfo(np.float64).max)
ROWS_P, ROWS_WEIGHTS = "p in float32", "weights by p in float32"  # what several draws in one call give


def wide_sum(values) -> float:
    return float(np.sum(values, dtype=np.longdouble))


class Flight:
    """A draw under a lag, and which losses have come back for it."""

    def __init__(self, draw) -> None:
        self.draw = draw
        self.reopen()

    def reopen(self) -> None:
        self.capacity = Counter(self.draw.index.tolist())
        self.index: list[int] = []
        self.losses: list[float] = []

    @property
    def complete(self) -> bool:
        return len(self.index) == self.draw.index.size

    def take(self, index, losses) -> int:
        """Takes what there is room for; returns how many losses that is."""
        if not self.index and np.array_equal(index, self.draw.index):
            self.index, self.losses = index.tolist(), losses.tolist()
            self.capacity.clear()
            return len(self.index)
        before = len(self.index)
        for sample, loss in zip(index.tolist(), losses.tolist(), strict=True):
            if self.capacity[sample] > 0:
                self.capacity[sample] -= 1
                self.index.append(sample)
                self.losses.append(loss)
        return len(self.index) - before


class Twin:
    """What all samplers share; by itself the twin of ``UniformSampler``."""

    scored = False
    distinct = False  # whether a batch holds distinct samples, N at most
    rounding = 2e-14  # of the cumulative p: some ten additions in float64
    loose = False  # whether several steps were taken since priorities were compared: then p is known to float32

    def __init__(self, size, seed, *, lag=None, shares=ExactShares) -> None:
        self.size, self.lag, self.shares = size, lag, shares
        self.off: dict[str, float] = {}  # the largest deviation of each kind so far
        self.generator = np.random.default_rng(seed)
        self.step = self.passes = 0
        self.left = np.ones(size, np.bool_)  # samples of the pass that are still to come
        self.new_keys()
        self.newest = np.full(size, -1)
        self.newest_step = -1
        self.counts = {"seen": 0, "updates": 0, "nonfinite": 0, "late": 0}
        self.in_a_row = 0
        self.recent: dict[int, tuple] = {}  # B, Σw, Σw² and the largest w of the last hundred draws
        self.flights: dict[int, Flight] = {}
        self.again: list[int] = []

    def new_keys(self) -> None:
        self.generator.integers(0, 2**64, KEYS, dtype=np.uint64, endpoint=False)

    # --- draws

    def next_again(self):
        """The flight that must be handed out next, before any new draw."""
        self.again = [step for step in self.again if step in self.flights and not self.flights[step].complete]
        return self.flights[self.again[0]] if self.again else None

    def must_wait(self, count) -> bool:
        due = [step for step, flight in self.flights.items() if step <= self.step - self.lag and not flight.complete]
        return bool(due) and self.next_again() is None and not self.never_waits(count)

    def never_waits(self, count) -> bool:
        return self.passes == 0 and count <= self.left.sum()

    def drawn(self, draw) -> None:
        flight = self.next_again()
        if flight is not None:
            for one, other in zip(draw, flight.draw, strict=True):
                assert np.array_equal(one, other), "what is in flight must be handed out again unchanged"
            self.again.pop(0)
            flight.reopen()
            return
        count = draw.index.size
        assert draw.step == self.step
        assert draw.index.dtype == np.int64
        assert draw.index.shape == draw.probability.shape == draw.weight.shape
        assert draw.index.min() >= 0
        assert draw.index.max() < self.size
        self.chosen(draw.index, draw.probability, draw.weight, count)
        weight = draw.weight.astype(np.longdouble)
        self.recent[self.step] = count, weight.sum(), (weight**2).sum(), float(weight.max())
        self.recent.pop(self.step - 100, None)
        if self.lag is not None:
            self.flights[self.step] = Flight(draw)
        self.step += 1
        self.count_what_is_due()

    def chosen(self, index, probability, weight, count) -> None:
        """Whether this batch can be."""
        filled = 0
        while filled < count:
            filled += self.of_pass(index[filled:])
        assert (probability == np.full(count, 1.0 / self.size, probability.dtype)).all()
        assert (weight == 1.0).all()

    def of_pass(self, index) -> int:
        """The front of ``index`` must go on with the pass, or begin one; gives how many of it that are."""
        if not self.left.any():
            self.left[:] = True
            self.passes += 1
            self.new_keys()
        before = int(self.left.sum())
        part = index[:before]
        assert self.left[part].all(), "not left in this pass"
        self.left[part] = False
        assert self.left.sum() == before - part.size, "twice in one pass"
        return part.size

    def close(self, one, other, rtol, what) -> None:
        """Whether each of ``one`` is within ``rtol`` of that of ``other``; 0 only where the other is."""
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        size = np.abs(other)
        off = np.abs(one - other) / np.where(size > 0, size, 1.0)
        worst = float(off.max(initial=0.0))
        place = int(off.argmax()) if off.size else 0
        words = f"{what}: {one.flat[place]} instead of {other.flat[place]}" if off.size else what
        assert worst <= max(rtol, 1e-6 if self.loose else 0.0), words
        assert not one[size == 0].any(), f"{what}: {one[size == 0].max()} instead of 0"
        if not self.loose:
            self.off[what] = max(self.off.get(what, 0.0), worst)

    def in_place(self, distance, bound) -> None:
        assert distance <= (1e-6 if self.loose else bound), f"a position lies {distance} beside its sample"
        if not self.loose:
            self.off["position"] = max(self.off.get("position", 0.0), float(distance))

    # --- updates

    def diverges(self, losses) -> bool:
        return np.size(losses) > 0 and not np.isfinite(losses).any() and self.in_a_row == 9

    def told(self, index, losses, step=None, score=None) -> None:
        """An update that was taken. ``step`` is None, or as many as there are losses, or one."""
        index, losses = np.asarray(index, np.int64), np.asarray(losses, np.float64)
        if index.size == 0:
            return
        if self.scored:
            losses = np.where(np.isfinite(losses), score, losses)
        finite = np.isfinite(losses)
        self.in_a_row = 0 if finite.any() else self.in_a_row + 1
        self.counts["updates"] += 1
        self.counts["nonfinite"] += int((~finite).sum())
        if step is None:  # newer than all that is known
            self.learn(index, losses, np.full(index.size, max(self.step, self.newest_step + 1)))
            return
        steps = np.broadcast_to(step, index.shape)
        self.newest_step = max(self.newest_step, int(steps.max()))
        if self.lag is None:
            self.learn(index, losses, steps)
            return
        for number in np.unique(steps):
            which = steps == number
            flight = self.flights.get(int(number))
            taken = 0 if flight is None else flight.take(index[which], losses[which])
            self.counts["late"] += int(which.sum()) - taken
        self.count_what_is_due()

    def count_what_is_due(self) -> None:
        """Under a lag of k the draw of step n knows exactly the steps up to n - k."""
        for number in sorted(self.flights):
            flight = self.flights[number]
            if number > self.step - self.lag or not flight.complete:
                return
            del self.flights[number]
            self.learn(np.array(flight.index), np.array(flight.losses), np.full(len(flight.index), number))

    def learn(self, index, losses, steps) -> None:
        """The mean of each sample's finite losses, of those that are not older than what is known of it."""
        finite = np.isfinite(losses)
        late = finite & (steps < self.newest[index])
        self.counts["late"] += int(late.sum())
        index, losses, steps = (given[finite & ~late] for given in (index, losses, steps))
        if index.size == 0:
            return
        order = np.argsort(index, kind="stable")
        samples, first, times = np.unique(index[order], return_index=True, return_counts=True)
        means = (np.add.reduceat(losses[order].astype(np.longdouble), first) / times).astype(np.float64)
        stamps = np.maximum.reduceat(steps[order], first)
        self.learnt(samples, means, self.newest[samples] < 0)
        self.counts["seen"] += int((self.newest[samples] < 0).sum())
        self.newest[samples] = stamps

    def learnt(self, samples, means, first) -> None:
        """What becomes of the mean losses; ``first`` says which samples had none before."""

    def loaded(self) -> None:
        """Its sampler's state went out and into another one, or ``rewind`` was called."""
        self.again = [step for step, flight in sorted(self.flights.items()) if not flight.complete]

    # --- looking inside

    def priorities(self):
        return np.ones(self.size)

    def probabilities(self):
        return np.full(self.size, 1.0 / self.size)

    def take_over(self, sampler) -> None:
        assert (sampler.priorities() == 1.0).all()

    def agree(self, sampler) -> None:
        """Whether all that can be looked at is as it must be."""
        self.take_over(sampler)
        self.loose = False
        probabilities = sampler.probabilities()
        assert abs(wide_sum(probabilities) - 1.0) < 1e-11
        self.close(probabilities, self.probabilities(), 1e-11, "probabilities")
        state = sampler.state_dict()
        assert np.array_equal(state["newest"], self.newest)
        assert (state["step"], state["passes"]) == (self.step, self.passes)
        assert state["nonfinite_updates"] == self.in_a_row
        assert state["generator"] == self.generator.bit_generator.state, "another number of random numbers was taken"
        assert np.array_equal(sampler.ages(), np.maximum(self.step - 1 - self.newest, 0))
        if hasattr(sampler, "_store") and (self.size < 1000 or self.step % 8 == 0):  # by rank it takes a sort
            sampler._store.check()
        self.agree_on_summary(sampler.summary())

    def agree_on_summary(self, summary) -> None:
        expected = {"step": self.step, **self.counts, "in_flight": len(self.flights)}
        assert {name: summary[name] for name in expected} == expected
        self.close(summary["mean_priority"], wide_sum(self.priorities() / self.size), 1e-11, "mean_priority")
        open_ = [step for step, flight in self.flights.items() if not flight.complete]
        end = min(open_, default=self.step)
        recent = [self.recent[step] for step in range(max(0, end - 64), end)]
        drawn, total, squares = (sum(draw[part] for draw in recent) for part in range(3))
        effective = float(total**2 / squares) if recent else 0.0
        self.close(summary["effective_sample_size"], effective, 1e-11, "effective_sample_size")
        self.close(summary["effective_fraction"], effective / drawn if recent else 1.0, 1e-11, "effective_fraction")
        assert summary["max_weight"] == max([draw[3] for draw in recent], default=0.0)


class ImportanceTwin(Twin):
    """Of ``ImportanceSampler`` and of those made of it."""

    def __init__(
        self,
        size,
        seed,
        *,
        priority=lambda losses, index: losses,
        share=0.3,
        smoothing=0.0,
        scheme="systematic",
        alpha=None,
        beta=lambda step: 1.0,
        first_pass=1.0,
        warmup=0,
        finish_at=None,
        initial=1.0,
        losses=None,
        forget=0.0,
        max_draws=None,
        window=None,
        ascending=False,
        scored=False,
        **options,
    ) -> None:
        super().__init__(size, seed, **options)
        self.priority, self.share, self.smoothing, self.scheme = priority, share, smoothing, scheme
        self.alpha, self.beta, self.warmup, self.finish_at = alpha, beta, warmup, finish_at
        self.forget, self.max_draws, self.ascending, self.scored = forget, max_draws, ascending, scored
        self.distinct = scheme == "without_replacement"
        self.gate_open, self.last_shares = True, None
        self.q = np.broadcast_to(self.clamped(np.asarray(initial, float)), size).copy()
        self.drawn_of = np.zeros(size, np.int64)  # draws of each sample in this epoch, where they are bounded
        self.faded = 0
        self.at_draws: list = []  # the sampler's priorities at the draws to come, where some of them fade
        self.window = window  # (quantile, size) of the losses that cut
        self.seen_losses: list[float] = []
        self.kept = np.full(size, np.nan)
        self.enough = size if warmup else math.ceil(first_pass * size)
        self.cut = 0 < self.enough < size
        if losses is not None:
            self.learnt(np.arange(size), np.asarray(losses, float), np.ones(size, np.bool_))
            self.newest[:] = 0
            self.counts["seen"] = size
        if losses is not None or first_pass == 0.0:
            self.left[:] = False
        if alpha is not None:
            self.rounding = 1e-12

    def clamped(self, values):
        if self.alpha is not None:
            return np.clip(values, -FLOAT64, FLOAT64)
        return np.where(values > 0, np.clip(values, SMALLEST, LARGEST), 0.0).astype(np.float32).astype(np.float64)

    def held(self):
        """Who was drawn so often in this epoch that the uniform share is all that is left."""
        if self.max_draws is None:
            return np.zeros(self.size, np.bool_)
        return self.drawn_of >= self.max_draws

    def now(self):
        priorities = np.where(self.held(), 0.0, self.q)
        if self.last_shares is None or not np.array_equal(priorities, self.last_shares.priorities):
            self.last_shares = self.shares(priorities, self.share, self.alpha)
        return self.last_shares

    def uniform_now(self) -> bool:
        taken = self.size - int(self.left.sum())
        warm = self.passes + (taken >= self.enough) > self.warmup
        return not warm or (self.finish_at is not None and self.step >= self.finish_at) or not self.gate_open

    def never_waits(self, count) -> bool:
        return super().never_waits(count) and self.size - self.left.sum() < self.enough

    def chosen(self, index, probability, weight, count) -> None:
        if self.max_draws is not None and self.drawn_of.sum() >= self.size:
            self.drawn_of[:] = 0
        self.cut_first_pass()
        filled = 0
        while filled < count and self.uniform_now():
            filled += self.of_pass(index[filled:])
        assert (probability[:filled] == np.full(filled, 1.0 / self.size, probability.dtype)).all()
        assert (weight[:filled] == 1.0).all()
        if filled < count:
            self.by_priority(index[filled:], probability[filled:], count - filled)
            expected = (1.0 / (self.size * probability[filled:].astype(np.float64))) ** self.beta(self.step)
            exact = probability.dtype == np.float64
            self.close(weight[filled:], expected, 1.2e-7 if exact else 3e-7, "weights" if exact else ROWS_WEIGHTS)
        self.drawn_of += np.bincount(index, minlength=self.size)

    def cut_first_pass(self) -> None:
        """Once so many samples were looked at, the others have the mean priority of those seen."""
        if not self.cut or (self.passes == 0 and self.size - self.left.sum() < self.enough):
            return
        self.cut = False
        unseen = self.newest < 0
        if unseen.any() and not unseen.all():
            self.q[unseen] = self.clamped(self.q[~unseen].mean())

    def by_priority(self, index, probability, count) -> None:
        self.left[:] = False
        if self.forget:
            self.fade(count)
            self.compare(self.at_draws.pop(0))
        shares, exact = self.now(), probability.dtype == np.float64
        if self.distinct:
            offset = self.generator.random()
            expected = shares.inclusion(count)[index] / count
            self.in_place(shares.distinct_distance(index, count, offset), count * 1e-12 + 1e-12)
        else:
            expected = shares.probability[index]
            self.in_place(shares.distance(index, self.positions(count)), self.rounding)
        assert (expected > 0).all(), "a sample without a chance"
        self.close(probability, expected, 1e-11 if exact else 1e-7, "p" if exact else ROWS_P)
        if self.ascending:
            assert (np.diff(index) >= 0).all()
        else:
            self.generator.random()  # the order in the batch

    def positions(self, count):
        """Where along the cumulative p the draws lie, ascending."""
        if self.scheme == "multinomial":
            sums = np.cumsum(self.generator.standard_exponential(count + 1))
            return sums[:-1] / sums[-1]
        offsets = self.generator.random() if self.scheme == "systematic" else self.generator.random(count)
        return (np.arange(count) + offsets) / count

    def fade(self, count) -> None:
        """Of the next ``count`` samples those not heard of for a whole pass go a share of the way to the mean."""
        before = self.step - -(-self.size // count)
        while count > 0:
            some = np.arange(self.faded, min(self.faded + count, self.size))
            stale = some[(self.newest[some] < before) & ~self.held()[some]]
            mean = wide_sum(self.q / self.size)
            self.q[stale] = self.clamped((1 - self.forget) * self.q[stale] + self.forget * mean)
            count -= some.size
            self.faded = (self.faded + some.size) % self.size

    def learnt(self, samples, means, first) -> None:
        cut = means
        if self.window is not None:
            quantile, length = self.window
            if self.seen_losses:
                cut = np.minimum(means, np.quantile(self.seen_losses, quantile))
            self.seen_losses = [*self.seen_losses, *means.tolist()][-length:]
        priority = np.asarray(self.priority(cut, samples), np.float64)
        kept = np.where(first, 0.0, self.smoothing)
        old = np.where(first, 0.0, self.q[samples])
        with np.errstate(over="ignore", invalid="ignore"):
            mixed = np.where(kept > 0, kept * old + (1 - kept) * priority, priority)
        self.q[samples] = self.clamped(mixed)
        self.kept[samples] = np.clip(means, -LARGEST, LARGEST)

    def priorities(self):
        return self.q

    def probabilities(self):
        return self.now().probability

    def compare(self, priorities) -> None:
        """And take over."""
        self.close(priorities, self.q, 1.2e-7 if self.alpha is None else 1e-12, "priorities")
        self.q = priorities

    def take_over(self, sampler) -> None:
        self.compare(sampler.priorities())
        if getattr(sampler, "_losses", None) is not None:
            np.testing.assert_allclose(sampler.losses(), self.kept.astype(np.float32), rtol=1.2e-7)


class PartialTwin(Twin):
    """Of the samplers whose passes leave samples out."""

    corrected = True

    def __init__(self, size, seed, **options) -> None:
        super().__init__(size, seed, **options)
        self.losses = np.full(size, np.nan, np.float32)
        self.chance = np.ones(size)
        self.length = size  # samples in the pass

    def never_waits(self, count) -> bool:
        return self.passes == 0 and count <= self.left.sum()

    def chosen(self, index, probability, weight, count) -> None:
        filled, exact = 0, probability.dtype == np.float64
        while filled < count:
            if not self.left.any():
                self.chance, self.left = self.select(count - filled, count)
                self.length = int(self.left.sum())
                self.passes += 1
                self.new_keys()
            size = self.of_pass(index[filled:])
            expected = self.probabilities()[index[filled : filled + size]]
            self.close(
                probability[filled : filled + size], expected, 1e-11 if exact else 1e-7, "p" if exact else ROWS_P
            )
            filled += size
        expected = 1.0 / (self.size * probability.astype(np.float64)) if self.corrected else np.ones(count)
        self.close(weight, expected, 1.2e-7 if exact else 3e-7, "weights" if exact else ROWS_WEIGHTS)

    def select(self, left, count):
        raise NotImplementedError

    def learnt(self, samples, means, first) -> None:
        self.losses[samples] = np.clip(means, -LARGEST, LARGEST)

    def priorities(self):
        return self.chance

    def probabilities(self):
        return self.chance / wide_sum(self.chance)

    def take_over(self, sampler) -> None:
        self.close(sampler.priorities(), self.chance, 1e-12, "chances")
        state = sampler.state_dict()
        np.testing.assert_allclose(state["newest_losses"], self.losses, rtol=1.2e-7)  # NaN where there is none
        self.losses = state["newest_losses"]
        assert state["kept"].sum() == self.length
        assert state["kept"][self.left].all()

    def agree_on_summary(self, summary) -> None:
        super().agree_on_summary(summary)
        assert summary["kept_fraction"] == self.length / self.size


class PruningTwin(PartialTwin):
    """Of n samples below the mean k stay: w = M/N · n/k for these, M/N for the others."""

    def __init__(self, size, seed, *, prune=0.5, last=None, **options) -> None:
        super().__init__(size, seed, **options)
        self.prune, self.last = prune, last  # the first pass from which on all are used

    def select(self, left, count):
        chance, stay = np.ones(self.size), np.ones(self.size, np.bool_)
        known = self.losses[np.isfinite(self.losses)].astype(np.float64)
        easy = np.flatnonzero(self.losses < np.float32(known.mean())) if known.size else np.empty(0, np.int64)
        kept = min(easy.size, max(1, int((1 - self.prune) * easy.size + 0.5)))
        if kept < easy.size and (self.last is None or self.passes + 1 < self.last):
            chance[easy] = kept / easy.size
            stay[easy] = False
            stay[self.generator.choice(easy, kept, replace=False, shuffle=False)] = True
        return chance, stay


class SelectiveTwin(PartialTwin):
    """Each sample is kept by a coin, by the percentile of its loss among all that are known."""

    corrected = False

    def __init__(self, size, seed, *, selectivity, **options) -> None:
        super().__init__(size, seed, **options)
        self.selectivity = selectivity

    def select(self, left, count):
        chance, known = np.ones(self.size), np.isfinite(self.losses)
        _, value, times = np.unique(self.losses[known], return_inverse=True, return_counts=True)
        below = np.cumsum(times) - times
        if known.any():
            chance[known] = ((below + times / 2) / known.sum())[value] ** self.selectivity
        stay = self.generator.random(self.size) < chance
        if not stay.any():
            stay[self.generator.choice(self.size, 1, p=chance / chance.sum())] = True
        return chance, stay
