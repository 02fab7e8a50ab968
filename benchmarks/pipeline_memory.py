"""The program that tells what an input pipeline takes of memory, one pipeline in one process.

    python -m benchmarks.pipeline_memory '{"system": "this project, tensors", ...}'      # the fields of Task, as JSON

Writes one line of JSON, ``{"row": ...}``. A row of kind ``memory`` has the resident memory of the process at four
times:

============  ========================================================================================
``start``     everything is imported, and a pipeline of the same sort has run over a few samples
``loaded``    the data are there: arrays or tensors; of a memory map nothing is read yet
``wrapped``   the pipeline is built; a disk cache is written for that, and mapped
``epoch``     an epoch was taken from it, and its iterator is still open
============  ========================================================================================

``anon_bytes`` is anonymous memory (``RssAnon``), which nothing but swapping can free; ``rss_bytes`` all of it, pages of
files included, which the system takes back when it needs them. ``anon_over_data`` and ``rss_over_data`` are what was
added since ``start``, over the bytes of the data: 1.0 after loading is the data themselves.

The disk cache is made of a dataset that holds no data, slices of a memory map given by a generator. Over tensors
``tf.data`` itself would keep a second copy of them as soon as the dataset is read.

A row of kind ``slope`` has the memory while ``batches`` batches are drawn, ten times, and what it grows by in 10,000
batches: the slope of a straight line through all but the first of them.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import pipelines
from benchmarks.pipeline_children import emitter
from benchmarks.pipeline_data import Data, load, mapped, paths
from benchmarks.pipeline_files import cache_folder, map_files, unmap
from benchmarks.pipeline_names import ARRAYS, CACHED, FEEDBACK, KERAS, MAPPED, TENSORS
from benchmarks.pipeline_turns import compiled, epoch_of
from benchmarks.pipelines import PIPELINES, Made, Setting
from pipeline import importance_sampling

SYSTEMS = (TENSORS, ARRAYS, MAPPED, CACHED, KERAS)
SLOPES = (TENSORS, FEEDBACK, KERAS)
FEW = 64  # samples of the pipeline that runs before anything is counted
TIMES = 10  # that the memory is looked at while many batches are drawn
PER = 10_000  # batches of a slope
FIELDS = {"anon": "RssAnon", "rss": "VmRSS"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """Which pipeline over which data; with ``batches`` the slope over so many."""

    system: str
    data: str
    folder: str
    batch: int
    seed: int
    batches: int = 0


def measure(task: Task) -> Row:
    """The row."""
    path = Path(task.folder)
    try_few(task, path)
    read = {"start": resident()}
    data = opened(task.system, path, task.data)
    read["loaded"] = resident()
    shutil.rmtree(cache_folder(data), ignore_errors=True)  # so that it is written, as in a first run
    setting = Setting(data, task.batch, task.seed)
    made = build(task.system, setting)
    read["wrapped"] = resident()
    iterator, take = iter(made.batches), compiled(made.feed_back)  # type: ignore[arg-type]  # all are datasets here
    row = {
        "system": task.system,
        "kind": "slope" if task.batches else "memory",
        "group": PIPELINES[task.system].group,
        "data": task.data,
        "num_samples": len(data),
        "batch_size": task.batch,
    }
    if task.batches:
        return {**row, **slope(lambda count: take(iterator, tf.constant(count)), task.batches)}
    take(iterator, tf.constant(epoch_of(data, task.batch)))
    read["epoch"] = resident()
    return {**row, **multiples(read, data.nbytes)}


def try_few(task: Task, folder: Path) -> None:
    """Run a pipeline of the same sort over a few samples, so that what TensorFlow takes by itself is there."""
    below = folder / "few"
    below.mkdir(exist_ok=True)
    for whole, part in zip(paths(folder, task.data), paths(below, task.data), strict=True):
        np.save(part, np.load(whole, mmap_mode="r")[:FEW])
    data = opened(task.system, below, task.data)
    made = build(task.system, Setting(data, min(task.batch, FEW), task.seed))
    compiled(made.feed_back)(iter(made.batches), tf.constant(2))  # type: ignore[arg-type]  # all are datasets here


def opened(system: str, folder: Path, name: str) -> Data:
    """The data as the pipeline is given them; tensors are made of a memory map, so that no array is held beside."""
    if system in (ARRAYS, KERAS):
        data = load(folder, name)
        if system == ARRAYS or data.x.dtype.kind != "O":
            return data
    data = Data(name, *mapped(Data(name, np.empty(0), np.empty(0), folder)), folder)
    if system not in (MAPPED, CACHED):
        pipelines.tensors(data)
        for path in map_files(data):
            unmap(path)
    return data


def build(system: str, setting: Setting) -> Made:
    """The pipeline."""
    if system != CACHED:
        return PIPELINES[system].build(setting)
    data, chunk = setting.data, 1024

    def chunks() -> Iterator[Any]:
        for start in range(0, len(data), chunk):
            yield data.x[start : start + chunk], data.y[start : start + chunk]

    dataset = tf.data.Dataset.from_generator(chunks, output_signature=pipelines.signature(data, None)).unbatch()
    sampling = importance_sampling(pipelines.sampler_for(setting), setting.batch, cache=cache_folder(data))
    return Made(dataset.apply(tf.data.experimental.assert_cardinality(len(data))).apply(sampling).repeat())


def slope(take: Callable[[int], Any], batches: int) -> Row:
    """Draw ``batches`` batches; the memory on the way, and what it grows by."""
    part = max(1, batches // TIMES)
    read, drawn = [], []
    for number in range(1, TIMES + 1):
        take(part)
        drawn.append(number * part)
        read.append(resident())
    told: Row = {"batches": drawn[-1], "per_batches": PER}
    for name in FIELDS:
        megabytes = np.array([each[name] for each in read]) / 1e6
        line = np.polyfit(np.array(drawn[1:]) / PER, megabytes[1:], 1)
        told |= {f"{name}_mb": megabytes.round(2).tolist(), f"{name}_mb_per_{PER}": round(float(line[0]), 4)}
    return told


def multiples(read: dict[str, dict[str, int]], data_bytes: int) -> Row:
    """Bytes at each time, and what was added since the start over the bytes of the data."""
    told: Row = {"data_bytes": data_bytes}
    for name in FIELDS:
        told[f"{name}_bytes"] = {when: each[name] for when, each in read.items()}
        told[f"{name}_over_data"] = {
            when: round((each[name] - read["start"][name]) / data_bytes, 3)
            for when, each in read.items()
            if when != "start"
        }
    return told


def resident() -> dict[str, int]:
    """Resident bytes of this process: anonymous ones, and all."""
    gc.collect()
    tf.zeros(1)  # arrays that became tensors are let go of by the operation that comes next
    with open("/proc/self/status") as status:
        told = dict(line.split(":", 1) for line in status if ":" in line)
    return {name: int(told[field].split()[0]) * 1024 for name, field in FIELDS.items()}


def main(arguments: Sequence[str]) -> int:
    """Measure what the argument asks for."""
    (asked,) = arguments
    emit = emitter()
    warnings.simplefilter("ignore")  # nobody trains here, which this project says once
    emit({"row": measure(Task(**json.loads(asked)))})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
