"""The way out of a compiled training step: variables it writes, which Python reads when the step is done.

    ring = Ring(rows=steps_per_execution, columns=("losses", "weight"), batch=128)
    ring.write({"losses": losses, "weight": weight}, index, step)       # inside the step, compiled by XLA or not
    for feedback in ring.read(): ...                                    # outside, oldest first

A Python function inside the step would stop XLA, and what a step returns is averaged over replicas. With several
replicas each one's part of the batch is gathered first, so that the whole batch is in one row.
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
    columns: dict[str, Array]  # (B,) float32 each


class Ring:
    """As many rows as steps are done before they are read; (B,) of each column and of index and step in a row."""

    def __init__(self, rows: int, columns: Sequence[str], batch: int) -> None:
        self.rows, self.columns, self.batch = rows, tuple(columns), batch
        self.taken = 0
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA  # they all hold the same
        self.values = tf.Variable(
            tf.zeros([rows, len(self.columns), batch], tf.float32), trainable=False, aggregation=first
        )
        self.origin = tf.Variable(tf.zeros([rows, 2, batch], tf.int64), trainable=False, aggregation=first)
        self.written = tf.Variable(0, dtype=tf.int64, trainable=False, aggregation=first)

    def write(self, columns: Mapping[str, tf.Tensor], index: tf.Tensor, step: tf.Tensor) -> None:
        """Add a row, over the oldest one. For the inside of a step."""
        values = tf.stack([tf.cast(columns[name], tf.float32) for name in self.columns])
        origin = tf.stack([index, step])
        replicas = tf.distribute.get_replica_context()
        if replicas.num_replicas_in_sync > 1:
            self.values.assign(replicas.all_gather(values, axis=1)[None])
            self.origin.assign(replicas.all_gather(origin, axis=1)[None])
        else:
            row = tf.reshape(self.written % self.rows, [1, 1])
            self.values.scatter_nd_update(row, values[None])
            self.origin.scatter_nd_update(row, origin[None])
        self.written.assign_add(1)

    def read(self) -> list[Feedback]:
        """What was written since the last call, oldest first."""
        written = int(self.written.numpy())
        if written == self.taken:
            return []
        values, origin = self.values.numpy(), self.origin.numpy()
        rows = [step % self.rows for step in range(max(self.taken, written - self.rows), written)]
        self.taken = written
        return [
            Feedback(origin[row, 0], origin[row, 1], dict(zip(self.columns, values[row], strict=True))) for row in rows
        ]
