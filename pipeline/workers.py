"""Several processes that train one model, each on samples of its own (``MultiWorkerMirroredStrategy``).

    workers = Workers.here()                            # by TF_CONFIG; None in a training of one process
    sampler = workers.shard(50_000, lambda block: ImportanceSampler(len(block), seed=block.start))
    with workers.strategy.scope():
        model = ...; model.compile("adam", loss="sparse_categorical_crossentropy")
    train = workers.batches(dataset.apply(importance_sampling(sampler, batch_size=32)))
    model.fit(train, steps_per_epoch=..., callbacks=[LossFeedback(model, sampler)])

TensorFlow averages the gradients, and there is no other message in a step: every worker draws from its own block of the
indices and weighs by W/(N p), so the average is that of the whole data (:mod:`sampler.shard`). ``TF_CONFIG`` is what
Kubernetes operators, Vertex AI and Slurm's scripts set::

    {"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}}

A process is one replica: with several GPUs in a machine, one process for each.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from sampler import Shard, checks
from sampler.base import Sampler

KINDS = ("chief", "worker")  # of tasks, in the order of their ranks


@dataclass(frozen=True)
class Workers:
    """Which of the processes that train together is this one.

    Attributes:
        rank: of this process, in [0, world). The first one speaks for all.
        world: W ≥ 1, how many there are.
        strategy: under whose ``scope()`` model and optimizer are made.
    """

    rank: int
    world: int
    strategy: Any

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Workers | None:
        """As ``TF_CONFIG`` says; None where it names no other process. To be called before TensorFlow has computed
        anything; it waits until all workers are there.

        Raises ``ValueError`` for a ``TF_CONFIG`` that cannot be read, or names tasks that do not train.
        """
        found = task(environment)
        if found is None:
            return None
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        if strategy.num_replicas_in_sync != found[1]:
            raise ValueError(
                f"{found[1]} processes have {strategy.num_replicas_in_sync} replicas; start one process for each GPU, "
                "with CUDA_VISIBLE_DEVICES"
            )
        return cls(*found, strategy)

    def shard(self, num_samples: int, make: Callable[[range], Sampler]) -> Shard:
        """The sampler of this worker's block, see ``Shard``."""
        return Shard(num_samples, rank=self.rank, world=self.world, make=make)

    def batches(self, train: tf.data.Dataset) -> Any:
        """The batches of this worker, ``train``, as ``fit`` must be given them, with ``steps_per_epoch``.

        ``fit`` would hand every W-th batch of a plain dataset to each worker. A loop of one's own needs none of this:
        it iterates over ``train`` and calls ``strategy.run`` on each batch.
        """
        # Of a dataset that may end TensorFlow forgets the size of the batches, since one worker's may end before.
        endless = train.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        options = tf.distribute.InputOptions(experimental_fetch_to_device=False)  # else it draws ahead by itself
        return self.strategy.distribute_datasets_from_function(lambda _: endless, options)

    def any(self, flags: Sequence[bool]) -> tuple[bool, ...]:
        """Of each flag, whether any worker holds it up: the same answer in all. To be asked by all; a message."""
        summed = self._sum(tf.constant(flags, tf.float32))
        return tuple(bool(count) for count in summed.numpy() > 0.0)

    @functools.cached_property
    def _sum(self) -> Any:
        def of_all(flags: tf.Tensor) -> tf.Tensor:
            return tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(flags))

        return tf.function(lambda flags: self.strategy.run(of_all, args=(flags,)))


def task(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """``(rank, world)`` by ``TF_CONFIG``; None where it names no other process. Nothing of TensorFlow is started.

    Raises ``ValueError`` as ``Workers.here``.
    """
    text = environment.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        given = json.loads(text)
        cluster = {kind: _addresses(kind, those) for kind, those in given.get("cluster", {}).items()}
        own = given.get("task", {})
        kind, index = own.get("type", "worker"), own.get("index", 0)
        index = checks.whole("the index of the task", int(index) if isinstance(index, str) else index, least=0)
        every = [address for those in cluster.values() for address in those]
        if len(set(every)) < len(every):
            raise ValueError("an address is there twice")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"TF_CONFIG cannot be read: {error}; it is {text!r:.200}") from error
    if sum(map(len, cluster.values())) <= 1:
        return None
    strange = sorted({*cluster, kind} - set(KINDS))
    if strange:
        raise ValueError(
            f"TF_CONFIG has tasks of type {', '.join(strange)}; workers and a chief alone train here, without "
            "parameter servers and evaluators"
        )
    if not 0 <= index < len(cluster.get(kind, [])):
        raise ValueError(f"TF_CONFIG says this is {kind} {index}, of which there are {len(cluster.get(kind, []))}")
    before = len(cluster.get("chief", [])) if kind == "worker" else 0
    return before + index, sum(map(len, cluster.values()))


def _addresses(kind: str, given: Any) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(address, str) for address in given):
        raise TypeError(f"the tasks of type {kind} must be a list of addresses, host:port each, got {given!r:.80}")
    return given


def check_number(wanted: int, environment: Mapping[str, str] = os.environ) -> None:
    """Raise ``ValueError`` where ``wanted`` processes, more than one, are not as many as ``TF_CONFIG`` names.

    Where it is set none are started: that was done by whoever set it, as ``train.py --workers`` does.
    """
    if wanted <= 1 or not environment.get("TF_CONFIG"):
        return
    found = task(environment)
    named = 1 if found is None else found[1]
    if named != wanted:
        alone = "this process alone" if named == 1 else f"{named} processes"
        raise ValueError(
            f"--workers {wanted} does not go together with a TF_CONFIG that names {alone}: as many train as it names. "
            "Give --workers 1 beside it, also to go on with a run that had more, or unset it and have them started"
        )


def apart(strategy: Any) -> bool:
    """Whether the replicas of ``strategy`` are processes that have batches of their own, not parts of one."""
    workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return workers and strategy.extended._in_multi_worker_mode()
