"""The input pipelines of others that live in an interpreter of their own: torch's DataLoader, and Grain.

    from benchmarks.peers.pipelines import PIPELINES

    pipeline = PIPELINES["grain"](data, batch=256, seed=0, cores=1)     # imports the peer
    iterator = pipeline.begin()                                         # endless batches (x, y)

Each samples at random from the whole data set and gives batches of B as its library makes them: tensors of torch, or
arrays. ``ahead`` says how many batches may lie ready. A data set is one of :mod:`benchmarks.pipeline_data`.

====================  =====================================================================================
pipeline              what it is
====================  =====================================================================================
``torch``             ``DataLoader(TensorDataset(x, y), B, sampler=WeightedRandomSampler(weights, N))``, the weights
                      random
``torch_batches``     the same sampler, and a data set that gathers a whole batch at once (``__getitems__``)
``torch_workers``     the same with two worker processes
``grain``             ``MapDataset.source(...).shuffle().repeat()``, ``batch(B)`` and ``to_iter_dataset()``
``grain_records``     the same over an ArrayRecord file, records found at random, a group of one record each
====================  =====================================================================================

Grain reads elements with sixteen threads of its own by default. For data in memory its authors recommend none, and then
it can find a whole batch at once. Both are tried, and it gets whichever is the quicker; ``told`` says which.

Runs in the peer's interpreter, which may be Python 3.10: imports NumPy and the standard library, nothing else until a
pipeline is made.
"""

from __future__ import annotations

import importlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipeline_data import Data

WORKERS = 2  # processes of torch
PREFETCHED = 2  # batches that each of them holds ready, torch's default
FORMS = ((16, False), (0, True))  # of Grain: threads, and whether it batches before it reads
ELEMENTS_READY = 500  # that its threads hold, its default
TRIAL_SAMPLES = 2048  # to find out which is quicker


class Pipeline:
    """What every peer has in common: ``begin`` gives an endless iterator over batches (x, y)."""

    packages: tuple[str, ...] = ()  # whose versions are told

    def __init__(self, data: Data, batch: int, seed: int, cores: int) -> None:
        self.data, self.batch, self.seed, self.cores = data, batch, seed, cores
        self.ahead = 0
        self.told: dict[str, Any] = {}
        self.open()

    def open(self) -> None:
        """Make whatever can be made once."""
        raise NotImplementedError

    def begin(self) -> Iterator[Any]:
        """A new endless iterator."""
        raise NotImplementedError


# --- torch ------------------------------------------------------------------------------------


class Torch(Pipeline):
    """torch's DataLoader with its sampler by weight, samples one by one."""

    packages = ("torch",)
    workers = 0

    def open(self) -> None:
        """Make the loader."""
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(self.cores)
        self.torch.manual_seed(self.seed)
        loading = importlib.import_module("torch.utils.data")
        weights = np.random.default_rng(self.seed).standard_exponential(len(self.data))
        sampler = loading.WeightedRandomSampler(self.torch.from_numpy(weights), len(self.data))
        self.ahead = self.workers * PREFETCHED
        self.loader = loading.DataLoader(
            self.samples(loading),
            self.batch,
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            **self.options(),
        )

    def samples(self, loading: Any) -> Any:
        """The data set as torch holds it. It has no strings, so these are objects of Python."""
        if self.data.x.dtype.kind == "O":
            return list(zip(self.data.x.tolist(), self.data.y.tolist()))  # noqa: B905  # Python 3.10, equal lengths
        return loading.TensorDataset(self.torch.from_numpy(self.data.x), self.torch.from_numpy(self.data.y))

    def options(self) -> dict[str, Any]:
        """More options of the loader."""
        return {}

    def begin(self) -> Iterator[Any]:
        """Epoch after epoch."""
        return itertools.chain.from_iterable(itertools.repeat(self.loader))


class WholeBatches:
    """A data set that gathers a batch at once."""

    def __init__(self, torch: Any, data: Data) -> None:
        text = data.x.dtype.kind == "O"
        self.x = data.x if text else torch.from_numpy(data.x)
        self.y = torch.from_numpy(data.y)

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, index: list[int]) -> tuple[Any, Any]:
        return self.x[index], self.y[index]


def as_it_is(batch: Any) -> Any:
    """Nothing to collate."""
    return batch


class TorchBatches(Torch):
    """The same, a whole batch at once."""

    def samples(self, loading: Any) -> Any:
        """Gathered by ``__getitems__``."""
        return WholeBatches(self.torch, self.data)

    def options(self) -> dict[str, Any]:
        """What is gathered is a batch already."""
        return {"collate_fn": as_it_is}


class TorchWorkers(TorchBatches):
    """The same, in worker processes."""

    workers = WORKERS


# --- Grain ------------------------------------------------------------------------------------


class Arrays:
    """A source of Grain over arrays."""

    def __init__(self, data: Data) -> None:
        self.x, self.y = data.x, data.y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.x[i], self.y[i]


class Grain(Pipeline):
    """Grain over arrays in memory."""

    packages = ("grain", "array_record")

    def open(self) -> None:
        """Make the dataset, and find out which form of it is the quicker."""
        self.grain: Any = importlib.import_module("grain")
        seconds = {}
        for form in FORMS:
            self._form(*form)
            seconds[form] = self._try()
        threads, before = min(FORMS, key=lambda form: seconds[form])
        self._form(threads, before)
        self.told = {"threads": threads, "batched": "before reading" if before else "after reading"}

    def _form(self, threads: int, before: bool) -> None:
        elements = self.samples().shuffle(seed=self.seed).repeat()
        buffer = ELEMENTS_READY if threads else 0
        options = self.grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        if before:
            self._dataset = elements.batch(self.batch).to_iter_dataset(options)
        else:
            self._dataset = elements.to_iter_dataset(options).batch(self.batch)
        self.ahead = -(-buffer // self.batch)

    def samples(self) -> Any:
        """The elements, found by index."""
        return self.grain.MapDataset.source(Arrays(self.data))

    def begin(self) -> Iterator[Any]:
        """A new iterator; it never ends, since the dataset repeats."""
        iterator: Iterator[Any] = iter(self._dataset)
        return iterator

    def _try(self) -> float:
        iterator, count = self.begin(), -(-TRIAL_SAMPLES // self.batch)
        for _ in range(self.ahead + 1):
            next(iterator)
        start = time.perf_counter()
        for _ in range(count):
            next(iterator)
        return (time.perf_counter() - start) / count


class GrainRecords(Grain):
    """Grain over an ArrayRecord file, whose records are found by their numbers."""

    def samples(self) -> Any:
        """Records, taken apart."""
        path = self._written()
        shape, dtype, width = self.data.x.shape[1:], self.data.x.dtype, self.data.x[0].nbytes

        def parse(record: bytes) -> tuple[Any, Any]:
            x = np.frombuffer(record, dtype, count=width // dtype.itemsize).reshape(shape)
            return x, np.frombuffer(record, np.int64, offset=width)[0]

        source = self.grain.sources.ArrayRecordDataSource([str(path)])
        return self.grain.MapDataset.source(source).map(parse)

    def _written(self) -> Path:
        """The file, written once."""
        path = self.data.folder / f"{self.data.name}.array_record"
        if not path.exists():
            module: Any = importlib.import_module("array_record.python.array_record_module")
            part = path.with_name(path.name + ".part")
            writer = module.ArrayRecordWriter(str(part), "group_size:1")
            for x, y in zip(self.data.x, self.data.y):  # noqa: B905  # Python 3.10, equal lengths
                writer.write(x.tobytes() + y.tobytes())
            writer.close()
            os.replace(part, path)
        return path


PIPELINES: dict[str, type[Pipeline]] = {
    "torch": Torch,
    "torch_batches": TorchBatches,
    "torch_workers": TorchWorkers,
    "grain": Grain,
    "grain_records": GrainRecords,
}
