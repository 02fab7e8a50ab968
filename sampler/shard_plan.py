"""Which shard a draw is made in, and with which probability it was made in the end.

    plan = ShardPlan(50_000, shards=4, uniform_fraction=0.3, generator=rng)
    plan.total[:] = ...                                 # as far as it is known
    ordered = plan.order(32)                            # one batch: how many draws of which shard
    index, probability = assembled(ordered, answers, plan, rng)

With the totals T̂ of the shards' priorities, as they were last told, and the number n of their samples,

    P_s = (1-λ) T̂_s/ΣT̂ + λ n_s/N            the chance of shard s
    λ_s = λ n_s/(N P_s)                      the uniform share within it
    p_i = P_s ((1-λ_s) q_i/T_s + λ_s/n_s)    of a sample i of shard s

T_s is the total at the moment of the draw. However old T̂ is, p is what the draw was made with, so 1/(N p) corrects it
exactly; p_i ≥ λ/N, so no weight exceeds 1/λ; and with T̂ = T it is p = (1-λ) q/Σq + λ/N of one store.

While the first passes last, P_s = n_s/N whatever the totals are. The shards are then those of a permutation of all
samples, so that N draws are n_s of each shard, and together every sample once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sampler import batches
from sampler.base import Float64s, Int64s
from sampler.shard import block_of
from sampler.shard_calls import Call
from sampler.shard_server import Order


class Part(NamedTuple):
    """Draws that are made alike.

    Attributes:
        counts: (S,) int64, so many of each shard.
        chance: (S,) float64, P of each shard.
        passes: whether they are of the first passes.
    """

    counts: Int64s
    chance: Float64s
    passes: bool


class Group(NamedTuple):
    """Draws on their way.

    Attributes:
        ordered: the parts they are of.
        calls: that ask for them, one a shard.
        answers: by shard, as far as they have come: index (m,) within the block and p (m,) within it.
        count: so many draws.
    """

    ordered: list[Part]
    calls: list[Call]
    answers: dict[int, tuple[Int64s, Float64s]]
    count: int  # type: ignore[assignment]  # hides tuple.count, on purpose


class ShardPlan:
    """Chooses shards.

    Args:
        num_samples: N ≥ 1.
        shards: S in [1, N].
        uniform_fraction: λ in (0, 1].
        scheme: ``"multinomial"`` chooses a shard for every draw independently; else the number of draws of each
            is rounded up or down (Madow, 1949).
        passes: ≥ 0, first passes over all samples.
        generator: of the random numbers.
    """

    def __init__(
        self,
        num_samples: int,
        shards: int,
        *,
        uniform_fraction: float,
        scheme: str = "systematic",
        passes: int = 1,
        generator: np.random.Generator,
    ) -> None:
        self.first = np.array([block_of(num_samples, shard, shards).start for shard in range(shards)], np.int64)
        self.size = np.diff(self.first, append=num_samples)
        self.uniform = self.size / num_samples
        self.total = self.size.astype(np.float64)  # T̂; nothing is known, so all samples are alike
        self.uniform_fraction = uniform_fraction
        self.generator = generator
        self.done = 0  # draws made of the first passes
        self.passes = passes
        self._samples = num_samples
        self._scheme = scheme
        self.keys = self._new_keys()

    def begin(self, done: int, generator: np.random.Generator) -> None:
        """Begin where others have come to: so many draws of the first passes are made."""
        self.done, self.generator = min(done, self.passes * self._samples), generator
        self.keys = self._new_keys()

    @property
    def left(self) -> int:
        """How many draws of the first passes there are still to make."""
        return max(0, self.passes * self._samples - self.done)

    def chance(self) -> Float64s:
        """P of each shard by the totals: (S,) float64, sums to 1."""
        whole = self.total.sum()
        share = self.total / whole if whole > 0.0 else self.uniform
        chance: Float64s = (1.0 - self.uniform_fraction) * share + self.uniform_fraction * self.uniform
        return chance

    def fraction(self, part: Part) -> Float64s:
        """λ of each shard: (S,) float64 in (0, 1]."""
        return np.minimum(1.0, self.uniform_fraction * self.uniform / part.chance)

    def order(self, count: int) -> list[Part]:
        """The parts of one batch: what is left of the first passes, then draws by priority. O(S + B)."""
        parts = []
        while count > 0 and self.left:
            some = min(count, self._samples - self.done % self._samples)
            parts.append(Part(self._of_pass(some), self.uniform, passes=True))
            count -= some
        if count:
            chance = self.chance()
            parts.append(Part(self._chosen(count, chance), chance, passes=False))
        return parts

    def _of_pass(self, count: int) -> Int64s:
        """The shards of the next ``count`` samples of a permutation of all."""
        places = np.empty(count, np.int64)
        batches.permuted(self.keys, self._samples, self.done % self._samples, places)
        self.done += count
        if self.done % self._samples == 0:
            self.keys = self._new_keys()
        return np.bincount(self.shard_of(places), minlength=self.size.size)

    def _chosen(self, count: int, chance: Float64s) -> Int64s:
        """How many of ``count`` draws each shard makes: ``count`` times its chance on average."""
        if self._scheme == "multinomial":
            return self.generator.multinomial(count, chance / chance.sum()).astype(np.int64)
        ends = np.cumsum(chance)
        positions = batches.spaced(count, self.generator.random()) * ends[-1]
        return np.bincount(np.searchsorted(ends[:-1], positions, side="right"), minlength=chance.size)

    def shard_of(self, index: Int64s) -> Int64s:
        """The shard of each sample: (B,) int64 in [0, S)."""
        return np.searchsorted(self.first, index, side="right") - 1

    def over(self) -> None:
        """The first passes are over, or somebody else has made them."""
        self.done = max(self.done, self.passes * self._samples)

    def _new_keys(self) -> npt.NDArray[np.uint64]:
        return self.generator.integers(0, 2**64, 2 * batches.MIXING_ROUNDS, dtype=np.uint64, endpoint=False)


def orders_of(shard: int, ordered: Sequence[Part], plan: ShardPlan) -> list[Order]:
    """What of these parts the shard is asked for."""
    return [
        Order(int(part.counts[shard]), float(plan.fraction(part)[shard]), part.passes)
        for part in ordered
        if part.counts[shard]
    ]


def assembled(
    ordered: Sequence[Part],
    answers: dict[int, tuple[Int64s, Float64s]],
    plan: ShardPlan,
) -> list[tuple[Int64s, Float64s]]:
    """The draws of each part, shuffled: global samples (B,) int64, and their p (B,) float64.

    ``answers`` has for every shard asked the draws of all its orders, in their order.
    """
    made, places = [], dict.fromkeys(answers, 0)
    for part in ordered:
        count = int(part.counts.sum())
        index, probability, filled = np.empty(count, np.int64), np.empty(count), 0
        for shard in np.flatnonzero(part.counts).tolist():
            number, place = int(part.counts[shard]), places[shard]
            here, there = slice(filled, filled + number), slice(place, place + number)
            index[here] = answers[shard][0][there] + plan.first[shard]
            probability[here] = answers[shard][1][there] * part.chance[shard]
            places[shard], filled = place + number, filled + number
        batches.shuffle(plan.generator.random(), index, probability)
        made.append((index, probability))
    return made


class Pool:
    """Draws made ahead, in order: any number can be taken, whatever the batches they were made for.

    That the first are taken of a shuffled batch, and not all, leaves their p what it was.
    """

    def __init__(self) -> None:
        self._parts: deque[tuple[Int64s, Float64s]] = deque()
        self.size = 0

    def put(self, index: Int64s, probability: Float64s) -> None:
        """Append draws (m,)."""
        self._parts.append((index, probability))
        self.size += index.size

    def take(self, count: int) -> tuple[Int64s, Float64s]:
        """The next ``count`` ≤ ``size`` draws, which are the caller's."""
        taken, missing = [], count
        while missing:
            index, probability = self._parts.popleft()
            if index.size > missing:
                self._parts.appendleft((index[missing:].copy(), probability[missing:].copy()))
                index, probability = index[:missing].copy(), probability[:missing].copy()
            taken.append((index, probability))
            missing -= index.size
        self.size -= count
        if len(taken) == 1:
            return taken[0]
        index, probability = (np.concatenate(column) for column in zip(*taken, strict=True))
        return index, probability

    def all(self) -> tuple[Int64s, Float64s]:
        """Copies of all draws, which stay."""
        index = np.concatenate([np.empty(0, np.int64), *(part[0] for part in self._parts)])
        return index, np.concatenate([np.empty(0), *(part[1] for part in self._parts)])
