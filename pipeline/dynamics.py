"""What the loss of every sample did in the course of a training, and how often it was trained on.

    dynamics = TrainingDynamics(len(sampler))
    model.fit(train, epochs=5, callbacks=[LossFeedback(model, sampler, dynamics=dynamics)], shuffle=False)
    dynamics.mean, dynamics.deviation           # (N,) float64 each: the two axes of a data map

In a loop of one's own ``dynamics.add(sampling["index"], losses)`` after each step. It keeps 28 bytes a sample, and
took 25 µs of a step of 32 samples, 80 of one of 256, on a machine that did other things as well.

Samples of high mean are hard, those whose loss varies ambiguous, and the others easy (Swayamdipta et al., 2020,
*Dataset Cartography*, where the probability of the true label stands in the loss's place). Among the hard ones are
those with a wrong label (Huang et al., 2019, *O2U-Net*).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import checks

LARGEST = 1e18  # of a loss, in size: what is beyond counts as that, whose square a float32 still holds
TOGETHER = 64  # steps counted in at a time: NumPy's calls take longer than what they do here
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)  # whose quantiles ``look`` notes

Array = npt.NDArray[Any]
Float64s = npt.NDArray[np.float64]


class TrainingDynamics:
    """Running moments of the losses of N samples, merged as Chan et al. (1979) do it: no sum of squares cancels.

    Args:
        num_samples: N ≥ 1.
        block: of them those that this process draws, a range of indices; None: all. What is kept of each sample is kept
            of these alone, in their order, and ``len()`` is their number.
    """

    def __init__(self, num_samples: int, block: range | None = None) -> None:
        self._all = checks.whole("num_samples", num_samples, least=1)
        self.block = range(self._all) if block is None else block
        if not 0 <= self.block.start < self.block.stop <= self._all or self.block.step != 1:
            raise ValueError(f"block must be a range of some of the {self._all} samples, got {block}")
        size = len(self.block)
        self._columns: dict[str, Array] = {
            "drawn": np.zeros(size, np.int32),
            "count": np.zeros(size, np.int32),  # of finite losses
            "newest": np.full(size, np.nan, np.float32),
            "mean": np.zeros(size, np.float32),
            "squares": np.zeros(size, np.float32),  # Σ (ℓ - mean)²
            "weight": np.zeros(size, np.float32),  # Σ 1/(N p)
            "weight_squares": np.zeros(size, np.float32),
        }
        self._waiting: list[tuple[Array, Float64s, Float64s]] = []
        self._looks: list[dict[str, float]] = []

    def __len__(self) -> int:
        return len(self.block)

    def add(self, index: npt.ArrayLike, losses: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> None:
        """Count one step.

        Args:
            index: (B,) integers in [0, N), of the block, one that was drawn twice twice.
            losses: (B,) without weights; of those that are not finite only the draw counts.
            weight: (B,) 1/(N p), 1 where None.

        ``IndexError``, ``TypeError`` or ``ValueError`` where these do not fit; nothing is changed then.
        """
        self._waiting.append(self._checked(index, losses, weight))
        if len(self._waiting) >= TOGETHER:
            self._count_in()

    def _checked(
        self, index: npt.ArrayLike, losses: npt.ArrayLike, weight: npt.ArrayLike | None
    ) -> tuple[Array, Float64s, Float64s]:
        places = checks.indices(index, self._all)
        if places.size and not self.block.start <= places.min() <= places.max() < self.block.stop:
            raise IndexError(f"index must be of the block {self.block.start}..{self.block.stop - 1}")
        values = checks.per_sample("losses", losses, places.size)
        return (
            places,
            values,
            np.ones(places.size) if weight is None else checks.per_sample("weight", weight, places.size),
        )

    def _count_in(self) -> None:
        if not self._waiting:
            return
        index, losses, weight = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        index -= self.block.start
        self._waiting.clear()
        columns = self._columns
        samples, place = np.unique(index, return_inverse=True)
        columns["drawn"][samples] += np.bincount(place)
        columns["weight"][samples] += np.bincount(place, weight)
        columns["weight_squares"][samples] += np.bincount(place, np.square(weight))
        finite = np.isfinite(losses)
        self._merge(index[finite], np.clip(losses[finite], -LARGEST, LARGEST))

    def _merge(self, index: Array, losses: Float64s) -> None:
        columns = self._columns
        samples, place, count = np.unique(index, return_inverse=True, return_counts=True)
        if not samples.size:
            return
        mean = np.bincount(place, losses) / count
        squares = np.bincount(place, np.square(losses - mean[place]))
        before = columns["count"][samples]
        apart, total = mean - columns["mean"][samples], before + count
        columns["squares"][samples] += squares + np.square(apart) * before * (count / total)
        columns["mean"][samples] += apart * (count / total)
        columns["count"][samples] = total
        columns["newest"][index] = losses  # of a sample that is there twice the last one stays

    # --- what is known of each sample ---

    def _known(self, name: str) -> Array:
        self._count_in()
        return self._columns[name].copy()

    @property
    def drawn(self) -> npt.NDArray[np.int32]:
        """(N,) how often each sample was trained on."""
        return self._known("drawn")

    @property
    def count(self) -> npt.NDArray[np.int32]:
        """(N,) how many finite losses of each sample came."""
        return self._known("count")

    @property
    def weight(self) -> Float64s:
        """(N,) the sum of 1/(N p) over a sample's draws: each has the same expectation, the number of draws over N."""
        return self._known("weight").astype(np.float64)

    @property
    def weight_squares(self) -> Float64s:
        """(N,) the sum of (1/(N p))², of which comes how far ``weight`` may be from its expectation."""
        return self._known("weight_squares").astype(np.float64)

    @property
    def newest(self) -> Float64s:
        """(N,) the last finite loss, NaN where there was none."""
        return self._known("newest").astype(np.float64)

    @property
    def mean(self) -> Float64s:
        """(N,) the mean of a sample's losses, NaN where there was none."""
        return np.where(self._known("count") > 0, self._columns["mean"], np.nan).astype(np.float64)

    @property
    def deviation(self) -> Float64s:
        """(N,) the standard deviation of a sample's losses in the course of the training, NaN of fewer than two."""
        count = self._known("count")
        variance = self._columns["squares"].astype(np.float64) / np.maximum(count - 1, 1)
        return np.where(count > 1, np.sqrt(variance), np.nan)

    # --- in the course of time ---

    def look(self, step: int) -> None:
        """Note how the newest losses are distributed after ``step`` steps: O(N), for the end of an epoch."""
        newest = self.newest
        known = newest[np.isfinite(newest)]
        if known.size:
            quantiles = np.quantile(known, SHARES).tolist()
            names = [f"loss_{share:g}" for share in SHARES]
            self._looks.append({"step": step, "mean": float(known.mean()), **dict(zip(names, quantiles, strict=True))})

    @property
    def looks(self) -> list[dict[str, float]]:
        """A row a ``look``: ``step``, and of the newest losses ``mean`` and quantiles, ``loss_0.05`` to ``loss_1``."""
        return [dict(row) for row in self._looks]

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """All that is known, as arrays and numbers; what is not counted in yet as it came, so that a run that goes on
        counts the same steps together, and rounds alike.
        """
        names = ("index", "losses", "weight")
        return {
            "columns": {name: column.copy() for name, column in self._columns.items()},
            "looks": self.looks,
            "waiting": [dict(zip(names, step, strict=True)) for step in self._waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave.

        ``LookupError``, ``TypeError`` or ``ValueError`` where it is none, or of another number of samples; nothing is
        changed then.
        """
        columns = {name: checks.array(name, state["columns"][name], own) for name, own in self._columns.items()}
        for name, column in columns.items():
            if name not in ("newest", "mean") and not (column >= 0).all():
                raise ValueError(f"{name} must be at least 0")
        looks = [_look(row) for row in state["looks"]]
        waiting = [self._checked(step["index"], step["losses"], step["weight"]) for step in state["waiting"]]
        self._columns, self._looks, self._waiting = columns, looks, waiting


def _look(row: dict[str, Any]) -> dict[str, float]:
    """A look out of a state: the step a whole number, the others any."""
    step = checks.whole("step", row["step"], least=0)
    return {name: step if name == "step" else checks.number(name, row[name], -np.inf, np.inf) for name in row}
