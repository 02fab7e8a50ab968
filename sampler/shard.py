"""A part of the samples for each of several workers, and all of them together unbiased, without a message.

    sampler = Shard(50_000, rank=1, world=4, make=lambda block: ImportanceSampler(len(block), seed=block.start))
    draw = sampler.draw(32)                     # of 12,500..24,999 alone
    sampler.update(draw.index, losses, step=draw.step)

Worker r of W owns the block of the indices from rN/W to (r+1)N/W, and a sampler over it. It draws its own B samples
with the probabilities p of its block, and weighs them by

    w = W / (N p)

so the mean of w ℓ over its batch is, on average, W/N times the sum of ℓ over its block; and the mean over the workers
that of the mean loss of all N samples. Exactly, whatever the sizes of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import checks
from sampler.base import Float32s, Int64s, Sampler
from sampler.ledger import Draw, frozen


def block_of(num_samples: int, rank: int, world: int) -> range:
    """The indices that worker ``rank`` of ``world`` owns: blocks in order, whose sizes differ by one at most."""
    size = checks.whole("num_samples", num_samples, least=1)
    world = checks.whole("world", world, least=1, most=size)
    rank = checks.whole("rank", rank, least=0, most=world - 1)
    return range(rank * size // world, (rank + 1) * size // world)


class Shard:
    """The sampler of one worker: that of its block, with indices, weights and probabilities of the whole.

    Args:
        num_samples: N ≥ 1, of all workers together.
        rank: of this worker, in [0, world).
        world: W in [1, N], how many workers there are.
        make: gives the sampler of a block, a range of indices: any of this package whose epochs are all of one length.
            Its seed should be another for each block, as ``block.start`` is.

    ``index`` is of the whole data, and ``len()`` is N. ``probability`` is p/W, the expected number of times that a
    sample is in the batches of all workers, over their size WB; so the weight is 1/(N probability), as of every
    sampler. With β below 1 the block's own weight is (1/(n p))**β, n its size, and times Wn/N here.

    An epoch is as many batches on every worker: as the largest block needs. Whatever else a sampler has, this one has
    too, and it is the block's: ``probabilities()``, which sum to 1 for each block, ``priorities()`` and ``ages()`` are
    (n,), in the block's order.

    Raises ``TypeError`` or ``ValueError`` for arguments outside these ranges, and for a sampler of another size.
    """

    def __init__(self, num_samples: int, *, rank: int, world: int, make: Callable[[range], Sampler]) -> None:
        self.block = block_of(num_samples, rank, world)
        self._size = int(num_samples)
        self._world = int(world)
        self.epoch_samples = -(-self._size // self._world)  # of the largest block
        self.inner = make(self.block)
        if len(self.inner) != len(self.block):
            raise ValueError(
                f"make must give a sampler of the {len(self.block)} samples of its block, it gave one of "
                f"{len(self.inner)}: use len(block)"
            )
        if self.inner.epochs_vary:
            raise ValueError(
                f"the epochs of a {type(self.inner).__name__} are of lengths that nobody knows before, and every "
                "worker must have as many batches; use another sampler"
            )
        self._scale = self._world * len(self.block) / self._size

    def __len__(self) -> int:
        return self._size

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "inner":  # not yet there, as while it is copied
            raise AttributeError(name)
        return getattr(self.inner, name)

    def draw(self, batch_size: int) -> Draw:
        """The next batch of this worker, as of every sampler."""
        return self._of_all(self.inner.draw(batch_size))

    def poll(self, batch_size: int, *, seconds: float) -> Draw | None:
        """As ``draw``, but gives None where the feedback is still missing after ``seconds``."""
        draw = self.inner.poll(batch_size, seconds=seconds)
        return None if draw is None else self._of_all(draw)

    def _of_all(self, draw: Draw) -> Draw:
        weight = (draw.weight * self._scale).astype(np.float32)
        return frozen(draw.step, draw.index + self.block.start, draw.probability / self._world, weight)

    def poll_rows(self, index: Int64s, weight: Float32s, probability: Float32s, step: Int64s, *, seconds: float) -> int:
        """As of every sampler: fill rows of (m, B) arrays with a draw each, and give how many."""
        count = self.inner.poll_rows(index, weight, probability, step, seconds=seconds)
        index[:count] += self.block.start
        weight[:count] *= self._scale
        probability[:count] /= self._world
        return count

    def update(self, index: npt.ArrayLike, losses: npt.ArrayLike, *args: Any, **options: Any) -> None:
        """As of every sampler, for samples of the block alone; ``IndexError`` for those of another's."""
        given = checks.indices(index, self._size)
        outside = (given < self.block.start) | (given >= self.block.stop)
        if outside.any():
            raise IndexError(
                f"index must be of the block {self.block.start}..{self.block.stop - 1} of this worker, got "
                f"{given[outside][0]}; the losses of a sample go to the worker that drew it"
            )
        self.inner.update(given - self.block.start, losses, *args, **options)

    def stalest(self, count: int) -> Int64s:
        """The ``count`` samples of the block of the greatest age, the oldest first."""
        return self.inner.stalest(count) + self.block.start

    def state_dict(self) -> dict[str, Any]:
        """The block, and the state of its sampler."""
        return {"num_samples": self._size, "first": self.block.start, "sampler": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave; ``ValueError``, and no change, for the state of another block."""
        state = _checked(state)
        theirs = state["num_samples"], state["first"], state["sampler"]["num_samples"]
        ours = self._size, self.block.start, len(self.block)
        if theirs != ours:
            raise ValueError(
                f"the state is of (num_samples, first, size) {theirs}, this shard has {ours}; load_shards() takes "
                "those of another number of workers"
            )
        self.inner.load_state_dict(state["sampler"])

    def load_shards(self, states: Sequence[dict[str, Any]]) -> None:
        """Take what is known of the block's samples from the states of all shards, of whatever number of workers.

        Of the same number, it is ``load_state_dict`` of the one of this block, and goes on exactly. Of another, every
        sample keeps its priority, its age and its loss; draws in flight are dropped, since they were of other blocks,
        and the pass under way ends, or begins anew where it was the first. The sampler must be a new one.

        Raises ``ValueError``, and changes nothing, where the states are not those of all N samples.
        """
        parts = sorted(map(_checked, states), key=lambda state: state["first"])
        ends = [part["first"] + part["sampler"]["num_samples"] for part in parts]
        whole = [0, *ends] == [*(part["first"] for part in parts), self._size]
        if not whole or any(part["num_samples"] != self._size for part in parts):
            there = ", ".join(f"{part['first']}..{end - 1}" for part, end in zip(parts, ends, strict=True))
            raise ValueError(f"the states of all {self._size} samples are needed, these are of {there or 'none'}")
        first, stop = self.block.start, self.block.stop
        within = [part for part, end in zip(parts, ends, strict=True) if part["first"] < stop and end > first]
        if len(within) == 1 and within[0]["first"] == first and within[0]["sampler"]["num_samples"] == stop - first:
            self.inner.load_state_dict(within[0]["sampler"])
            return
        self.inner.load_parts([(part["first"] - first, part["sampler"]) for part in within])


def _checked(state: Any) -> dict[str, Any]:
    try:
        checks.whole("first", state["first"], least=0)
        checks.whole("num_samples", state["sampler"]["num_samples"], least=1)
        checks.whole("num_samples", state["num_samples"], least=1)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"the state is damaged, or not that of a Shard ({error})") from error
    return dict(state)
