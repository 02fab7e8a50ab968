"""The peers, each behind the same two verbs, in whatever form of it is the quickest.

    from benchmarks.peers.systems import PEERS

    store = PEERS["tianshou"](priorities)          # (N,) float64 > 0; imports the peer
    draw, update = store.batch(losses)              # (64, B) float32, used in turn
    given = store.given(uniforms)                   # (B,) float64, made anew for each step, outside the clock
    drawn = draw(given)
    update(drawn)

A *raw tree* is given uniforms in [0, 1): it scales them by its own total, finds the samples under them, and
writes the new priorities. No random number is made and no weight computed while it is timed. A *public* system
does what its user calls, random numbers, weights and checks included; the uniforms are not used.

What is converted beforehand (dtypes, tensors) is in the peer's favour, and so is that a raw tree is filled at once
where its state can be set at once. Nothing here is imported but NumPy until a store is made.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Draw = Callable[[Any], Any]
Update = Callable[[Any], None]

BELOW_ONE = 1.0 - 1e-6  # uniforms stop here: past the last sample some trees find one that does not exist


class Store:
    """What every peer has in common: ``batch`` gives the two verbs for one batch size."""

    raw = True  # takes uniforms
    packages: tuple[str, ...] = ()  # whose versions are told

    def __init__(self, priorities: Any) -> None:
        raise NotImplementedError

    def batch(self, losses: Any) -> tuple[Draw, Update]:
        """``draw`` and ``update`` over ``losses`` (64, B) float32, row after row."""
        raise NotImplementedError

    def given(self, uniforms: Any) -> Any:
        """The uniforms (B,) float64 as ``draw`` wants them."""
        return uniforms

    def nbytes(self) -> int:
        """Bytes held, where the peer can tell; 0: measure the process."""
        return 0

    def close(self) -> None:
        """Let go of what outlives the object."""


def rows(array: Any, convert: Callable[[Any], Any] = np.ascontiguousarray) -> Iterator[Any]:
    """The rows of an array, converted beforehand, over and over again."""
    made: list[Any] = [convert(row) for row in array]
    return itertools.cycle(made)


# --- raw trees --------------------------------------------------------------------------------


class TorchRLTree(Store):
    """TorchRL's compiled sum tree, float32: called with NumPy arrays, which cost it less than tensors do."""

    packages = ("torchrl", "torch")
    name = "SumSegmentTreeFp32"
    dtype: Any = np.float32

    def __init__(self, priorities: Any) -> None:
        kind = getattr(torchrl_extension(), self.name)
        self._size = priorities.size
        self._tree = kind.__new__(kind)
        self._tree.__setstate__((priorities.astype(self.dtype),))  # as unpickling does: one pass over the tree

    def batch(self, losses: Any) -> tuple[Draw, Update]:
        """Scale, scan, update."""
        tree, size, dtype = self._tree, self._size, self.dtype
        scan, write, query = tree.scan_lower_bound, tree.update, tree.query
        loss = rows(losses.astype(dtype))
        return (
            lambda given: scan(given * dtype(query(0, size))),
            lambda index: write(index, next(loss)),
        )

    def given(self, uniforms: Any) -> Any:
        """In the tree's own precision."""
        return uniforms.astype(self.dtype)

    def nbytes(self) -> int:
        """Two numbers for each sample of the next power of two."""
        return int(2 * self._tree.capacity * np.dtype(self.dtype).itemsize)


class TorchRLTree64(TorchRLTree):
    """The same in float64."""

    name, dtype = "SumSegmentTreeFp64", np.float64


class Tianshou(Store):
    """tianshou's sum tree: the compiled loops of its ``SegmentTree``, without the assertions of its methods."""

    packages = ("tianshou", "numba")

    def __init__(self, priorities: Any) -> None:
        self._module = alone("tianshou", "data/utils/segtree.py")
        self._tree = self._module.SegmentTree(priorities.size)
        self._tree[np.arange(priorities.size)] = priorities

    def batch(self, losses: Any) -> tuple[Draw, Update]:
        """Scale, find, set."""
        find, write = self._module._get_prefix_sum_idx, self._module._setitem
        values, bound = self._tree._value, self._tree._bound
        loss = rows(losses.astype(np.float64))
        return (
            lambda given: find(given * values[1], bound, values),
            lambda index: write(values, index + bound, next(loss)),
        )

    def nbytes(self) -> int:
        """Of its one array."""
        return int(self._tree._value.nbytes)


class Flashbax(Store):
    """flashbax's sum tree, compiled by JAX; the update may overwrite the nodes it is given."""

    packages = ("flashbax", "jax")

    def __init__(self, priorities: Any) -> None:
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)  # on one core a thread more only waits
        self._jax = jax
        self._module = alone("flashbax", "buffers/sum_tree.py")
        depth = self._module.get_tree_depth(priorities.size)
        levels = [np.zeros(2**depth, np.float32)]
        levels[0][: priorities.size] = priorities
        while levels[-1].size > 1:
            levels.append(levels[-1][0::2] + levels[-1][1::2])
        nodes = jax.numpy.asarray(np.concatenate(levels[::-1]))
        self._state = self._module.SumTreeState(
            nodes=nodes,
            max_recorded_priority=jax.numpy.float32(priorities.max()),
            tree_depth=depth,
            capacity=priorities.size,
        )

    def batch(self, losses: Any) -> tuple[Draw, Update]:
        """``sample`` over a batch of uniforms, then its scan of updates, which is its faster one on a CPU."""
        jax, module = self._jax, self._module
        sample = jax.jit(jax.vmap(lambda state, uniform: module.sample(state, None, uniform), in_axes=(None, 0)))
        write = jax.jit(module.set_batch_scan, donate_argnums=0)
        loss = rows(losses.astype(np.float32), jax.numpy.asarray)

        def update(index: Any) -> None:
            self._state = write(self._state, index, next(loss))
            self._state.nodes.block_until_ready()

        return lambda given: sample(self._state, given).block_until_ready(), update

    def given(self, uniforms: Any) -> Any:
        """As an array of JAX."""
        return self._jax.numpy.asarray(uniforms.astype(np.float32)).block_until_ready()

    def nbytes(self) -> int:
        """Of its nodes."""
        return int(self._state.nodes.nbytes)


class Dopamine(Store):
    """Dopamine's sum tree, which is NumPy alone."""

    packages = ("dopamine-rl",)

    def __init__(self, priorities: Any) -> None:
        # The file asks for a base class from a module that would bring JAX and more; an empty one serves.
        checkpointers = types.ModuleType("dopamine.jax.checkpointers")
        checkpointers.Checkpointable = object  # type: ignore[attr-defined]
        package = types.ModuleType("dopamine.jax")
        package.checkpointers = checkpointers  # type: ignore[attr-defined]
        stand_ins = {"dopamine": types.ModuleType("dopamine"), "dopamine.jax": package}
        tree = alone("dopamine", "jax/replay_memory/sum_tree.py", stand_ins).SumTree(priorities.size)
        tree.set(np.arange(priorities.size), priorities)
        self._tree = tree

    def batch(self, losses: Any) -> tuple[Draw, Update]:
        """Scale, query, set."""
        tree = self._tree
        loss = rows(losses.astype(np.float64))
        return lambda given: tree.query(given * tree.root), lambda index: tree.set(index, next(loss))

    def nbytes(self) -> int:
        """Of its one array."""
        return int(self._tree._nodes.nbytes)


# --- public systems ---------------------------------------------------------------------------


class TorchRLBuffer(Store):
    """TorchRL's ``ReplayBuffer`` with a ``PrioritizedSampler`` (α = β = 1) over one float32 a sample."""

    raw, packages = False, ("torchrl", "torch")

    def __init__(self, priorities: Any) -> None:
        torchrl_extension()
        import torch
        from torchrl.data.replay_buffers import LazyTensorStorage, PrioritizedSampler, ReplayBuffer

        size = priorities.size
        self._torch = torch
        self._buffer = ReplayBuffer(
            storage=LazyTensorStorage(size), sampler=PrioritizedSampler(size, alpha=1.0, beta=1.0), batch_size=32
        )
        logging.getLogger("torchrl").setLevel(logging.WARNING)
        self._buffer.extend(torch.zeros(size))
        self._buffer.update_priority(torch.arange(size), torch.from_numpy(priorities.astype(np.float32)))

    def batch(self, losses: Any) -> tuple[Draw, Update]:
        """``sample`` with its information, then ``update_priority``."""
        buffer, size = self._buffer, losses.shape[1]
        loss = rows(losses, self._torch.from_numpy)
        return (
            lambda given: buffer.sample(size, return_info=True)[1]["index"],
            lambda index: buffer.update_priority(index, next(loss)),
        )


class Cpprb(Store):
    """cpprb's ``PrioritizedReplayBuffer`` (α = β = 1) over one float32 a sample."""

    raw, packages = False, ("cpprb",)

    def __init__(self, priorities: Any) -> None:
        import cpprb

        size = priorities.size
        self._buffer = cpprb.PrioritizedReplayBuffer(size, {"value": {"dtype": np.float32}}, alpha=1.0)
        self._buffer.add(value=np.zeros(size, np.float32), priorities=priorities.astype(np.float32))

    def batch(self, losses: Any) -> tuple[Draw, Update]:
        """``sample``, then ``update_priorities``."""
        buffer, size = self._buffer, losses.shape[1]
        loss = rows(losses.astype(np.float32))
        return (
            lambda given: buffer.sample(size, beta=1.0)["indexes"],
            lambda index: buffer.update_priorities(index, next(loss)),
        )


class SortedRanks(Store):
    """Draws with P ~ 1/rank from sortedcontainers' ``SortedList`` of (-priority, sample)."""

    raw, packages = False, ("sortedcontainers",)

    def __init__(self, priorities: Any) -> None:
        import sortedcontainers

        self._held = (-priorities).tolist()
        self._list = sortedcontainers.SortedList(zip(self._held, range(priorities.size), strict=True))
        self._generator = np.random.default_rng(0)

    def batch(self, losses: Any) -> tuple[Draw, Update]:
        """Ranks N ** u - 1, whose chance falls as 1/rank; then each sample is taken out and put back."""
        size, held, ranked, generator = losses.shape[1], self._held, self._list, self._generator
        loss = rows(-losses.astype(np.float64), lambda row: row.tolist())

        def draw(given: Any) -> list[int]:
            ranks = (len(held) ** generator.random(size)).astype(np.int64) - 1
            return [ranked[rank][1] for rank in ranks.tolist()]

        def update(index: list[int]) -> None:
            for sample, value in zip(index, next(loss), strict=True):
                ranked.remove((held[sample], sample))
                ranked.add((value, sample))
                held[sample] = value

        return draw, update


class Reverb(Store):
    """DeepMind Reverb, a server and its client in one process: one float32 an item, exponent 1."""

    raw, packages = False, ("dm-reverb", "tensorflow")

    def __init__(self, priorities: Any) -> None:
        import reverb

        size = priorities.size
        table = reverb.Table(
            name="table",
            sampler=reverb.selectors.Prioritized(1.0),
            remover=reverb.selectors.Fifo(),
            max_size=size,
            rate_limiter=reverb.rate_limiters.MinSize(1),
        )
        self._server = reverb.Server([table], port=None)
        self._client = reverb.Client(f"localhost:{self._server.port}")
        with self._client.trajectory_writer(num_keep_alive_refs=1) as writer:
            for position, priority in enumerate(priorities.tolist()):
                writer.append([np.float32(0.0)])
                writer.create_item("table", priority, [column[-1:] for column in writer.history])
                if position % 1000 == 999:
                    writer.flush()

    def batch(self, losses: Any) -> tuple[Draw, Update]:
        """``sample``, the keys of its answers, then ``mutate_priorities``."""
        client, size = self._client, losses.shape[1]
        loss = rows(losses.astype(np.float64), lambda row: row.tolist())
        return (
            lambda given: [answer[0].info.key for answer in client.sample("table", size, emit_timesteps=True)],
            lambda keys: client.mutate_priorities("table", dict(zip(keys, next(loss), strict=True))),
        )

    def close(self) -> None:
        """Stop the server."""
        self._server.stop()


# --- this project's, for the count of instructions ----------------------------------------------


class Ours(Store):
    """A system of :mod:`benchmarks.systems`, where this program runs in this project's interpreter."""

    packages = ("numpy", "numba")
    name = ""

    def __init__(self, priorities: Any) -> None:
        from benchmarks import systems

        self._build = systems.SYSTEMS[self.name].build
        self._priorities = priorities

    def batch(self, losses: Any) -> tuple[Draw, Update]:
        """As in the process of the benchmark; its uniforms are its own."""
        system = self._build(np.asarray(self._priorities), losses.shape[1], np.random.default_rng(0))
        loss = rows(losses)
        self._ready = system.ready
        return lambda given: system.draw(), lambda drawn: system.update(drawn, next(loss))

    def given(self, uniforms: Any) -> None:
        """Its own uniforms are made ready instead."""
        self._ready()


class OurKernels(Ours):
    """The compiled loops alone."""

    name = "kernels"


class OurSampler(Ours):
    """The public sampler."""

    name = "ImportanceSampler"


PEERS: dict[str, Any] = {
    "torchrl_fp32": TorchRLTree,
    "torchrl_fp64": TorchRLTree64,
    "tianshou": Tianshou,
    "flashbax": Flashbax,
    "dopamine": Dopamine,
    "torchrl_buffer": TorchRLBuffer,
    "cpprb": Cpprb,
    "sortedcontainers": SortedRanks,
    "reverb": Reverb,
    "kernels": OurKernels,
    "importance_sampler": OurSampler,
}


# --- loading ----------------------------------------------------------------------------------


def torchrl_extension() -> Any:
    """TorchRL's compiled module, with torch on one thread; ``TORCHRL_EXTENSION`` names another build of it."""
    import torch

    torch.set_num_threads(1)
    other = os.environ.get("TORCHRL_EXTENSION")
    if other and "torchrl._torchrl" not in sys.modules:
        sys.modules["torchrl._torchrl"] = from_file("_torchrl", other)
    from torchrl import _torchrl

    return _torchrl


def alone(package: str, path: str, stand_ins: Any = None) -> Any:
    """One file of an installed package, without importing the package around it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ImportError(f"{package} is not installed")
    before = dict(sys.modules)
    sys.modules.update(stand_ins or {})
    try:
        return from_file(f"{package}_alone", os.path.join(os.path.dirname(found.origin), path))
    finally:
        for name in stand_ins or {}:
            sys.modules.pop(name) if name not in before else sys.modules.update({name: before[name]})


def from_file(name: str, path: str) -> Any:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no module in {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
