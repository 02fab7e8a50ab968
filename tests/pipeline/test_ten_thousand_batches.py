"""The contract of every kind of source: each index gives exactly its own element, in 10^4 random batches among the soak
tests, in a tenth of them here.

The loop runs in one graph, which compares as it goes; what it compares with is the whole data set as one batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.sources import as_source

from .kinds import KINDS, B, N, drawn, ragged, rebatched, varying

BATCHES, MANY, A_CALL = 400, 10_000, 10
EVERY = {**KINDS, "of varying shape": lambda: (varying(), varying())}


def plain(part: Any) -> tuple[Any, ...]:
    """A component as dense and ragged tensors that can be gathered."""
    return (tf.sparse.to_dense(part),) if isinstance(part, tf.SparseTensor) else (part,)


def same(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Whether two tensors are of one shape and value."""
    alike = tf.reduce_all(tf.equal(tf.shape(one), tf.shape(other)))
    least = tf.minimum(tf.size(one), tf.size(other))  # as many as there are in both; a tf.cond would cost more
    return alike & tf.reduce_all(tf.equal(tf.reshape(one, [-1])[:least], tf.reshape(other, [-1])[:least]))


def strangers(source: Any, whole: list[Any], index: np.ndarray) -> int:
    """How many of the batches ``index`` (m, B) are not those of ``whole``, the data set as one batch.

    Each is taken and packed by itself; a call into Python, which costs most of it, takes several one after another.
    """

    def take(rows: np.ndarray) -> list[Any]:
        return [array for row in rows for array in source.take(row)]

    @tf.function(autograph=False)  # traced once, however many are in a call
    def wrong(taken: list[tf.Tensor], row: tf.Tensor) -> tf.Tensor:
        ours = [part for leaf in tf.nest.flatten(source.pack(taken, row)) for part in plain(leaf)]
        right = tf.constant(True)
        for one, everything in zip(ours, whole, strict=True):
            theirs = tf.gather(everything, row)
            pairs = zip(*(tf.nest.flatten(part, expand_composites=True) for part in (one, theirs)), strict=True)
            for left, other in pairs:
                right = tf.logical_and(right, same(left, other))
        return tf.cast(tf.logical_not(right), tf.int32)

    @tf.function
    def count(index: tf.Tensor) -> tf.Tensor:
        found = tf.constant(0)
        for rows in index:
            taken = iter(tf.numpy_function(take, [rows], source.dtypes * A_CALL) if source.dtypes else [])
            found += tf.add_n([wrong([next(taken) for _ in source.dtypes], row) for row in tf.unstack(rows)])
        return found

    return int(count(index.reshape(-1, A_CALL, B)))


def whole_of(dataset: tf.data.Dataset) -> list[Any]:
    batch = next(iter(dataset.ragged_batch(N)))
    return [part for leaf in tf.nest.flatten(batch) for part in plain(leaf)]


@pytest.mark.parametrize("batches", [BATCHES, pytest.param(MANY, marks=pytest.mark.soak)])
@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.fault(16)
@pytest.mark.each_value
def test_every_index_gives_exactly_its_own_element(kind: str, where: str, batches: int, tmp_path: Path) -> None:
    data, dataset = EVERY[kind]()
    on_disk = where == "disk"
    if on_disk:
        as_source(dataset, size=N, cache=tmp_path / "cache")
    source = as_source(dataset, size=N, cache=tmp_path / "cache") if on_disk else as_source(data)  # opened again
    index = np.random.default_rng(2).integers(0, N, (batches, B))
    if kind in KINDS and on_disk:
        assert drawn(source, index[:1]).element_spec == rebatched(dataset, index[:1]).element_spec
    assert strangers(source, whole_of(dataset), index) == 0


@pytest.mark.parametrize("data", [np.arange(N, dtype=np.float32), ragged(2)], ids=["dense", "ragged"])
def test_the_contract_fails_where_one_element_is_anothers(data: Any) -> None:
    """Two samples of 23 are wrong in about a third of the batches; ragged ones are of another shape, too."""
    moved = np.arange(N)
    moved[[4, 5]] = moved[[5, 4]]
    index = np.random.default_rng(2).integers(0, N, (1000, B))
    expected = int(np.isin(index, [4, 5]).any(axis=1).sum())
    dataset = tf.data.Dataset.from_tensor_slices
    whole = whole_of(dataset(data))
    assert strangers(as_source(dataset(tf.gather(data, moved))), whole, index) == expected > 0
    assert strangers(as_source(dataset(data)), whole, index) == 0
