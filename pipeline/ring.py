"""The way out of a compiled training step: a variable it writes, which Python reads when the step is done.

    ring = Ring(rows=8, columns=("losses", "weight"), batch=128)
    ring.write({"losses": losses, "weight": weight}, index, step)       # inside the step, compiled by XLA or not
    for feedback in ring.read(): ...                                    # outside, oldest first

A Python function inside the step would stop XLA, and what a step returns is averaged over replicas. Each replica
writes a copy of its own, and those of this process are joined when they are read: no message, whether the replicas
share a batch (MirroredStrategy) or each process has its own (MultiWorkerMirroredStrategy).

Everything is in one variable of float64, which holds every index and step exactly: a look at a variable takes longer
than what is read. A row that was written since the last look is known by its step, as no draw comes twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

Array = np.ndarray


class Feedback(NamedTuple):
    """What one step left."""

    index: Array  # type: ignore[assignment]  # (B,) int64; hides tuple.index, on purpose
    step: Array  # (B,) int64
    columns: dict[str, Array]  # (B,) float64 each


class Ring:
    """As many rows as steps are done before they are read; (B,) of index, step and each column in a row.

    To be made under the strategy, by all replicas together; B is that of one of them.
    """

    def __init__(self, rows: int, columns: Sequence[str], batch: int) -> None:
        self.rows, self.columns = rows, tuple(columns)
        self.kind = (rows, self.columns, batch)
        self._taken = [-1] * rows  # the first step of each row at the last look
        own = {
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.NONE,
            "trainable": False,
        }
        nothing = tf.fill([rows, 2 + len(self.columns), batch], tf.constant(-1.0, tf.float64))
        self._values = tf.Variable(nothing, **own)
        self._row = tf.Variable(0, dtype=tf.int64, **own) if rows > 1 else None
        self._here = tf.distribute.get_strategy().experimental_local_results(self._values)

    def write(self, columns: Mapping[str, tf.Tensor], index: tf.Tensor, step: tf.Tensor) -> None:
        """Add a row, over the oldest one. For the inside of a step."""
        parts = [index, step, *(columns[name] for name in self.columns)]
        row = tf.stack([tf.cast(part, tf.float64) for part in parts])
        if self._row is None:
            self._values.assign(row[None])
            return
        if tf.distribute.has_strategy():  # whose variables cannot be scattered into
            self._values.assign(tf.tensor_scatter_nd_update(self._values.read_value(), [[self._row]], row[None]))
        else:
            self._values.scatter_update(tf.IndexedSlices(row, self._row))
        self._row.assign((self._row + 1) % self.rows)

    def forget(self) -> None:
        """Pass over what was written and not read."""
        self._taken = self._look()[:, 1, 0].tolist()

    def _look(self) -> Array:
        # Takes a third of the time of ``Variable.numpy``.
        looked = [tf.raw_ops.ReadVariableOp(resource=part.handle, dtype=tf.float64).numpy() for part in self._here]
        return looked[0] if len(looked) == 1 else np.concatenate(looked, axis=2)

    def read(self) -> list[Feedback]:
        """What was written since the last call, oldest first."""
        values = self._look()
        index, steps = values[:, 0].astype(np.int64), values[:, 1].astype(np.int64)
        firsts = steps[:, 0].tolist()
        new = sorted((first, row) for row, first in enumerate(firsts) if first != self._taken[row])
        self._taken = firsts
        return [
            Feedback(index[row], steps[row], dict(zip(self.columns, values[row, 2:], strict=True))) for _, row in new
        ]
