"""The input pipelines that are measured, each of them a way from a data set to batches.

    from benchmarks.pipelines import PIPELINES, Setting

    made = PIPELINES["this project, tensors"].build(Setting(data, batch=256, seed=0, cores=1))
    made.batches         # an endless tf.data.Dataset, or a function that begins an endless iterator

=========================================  ================================================================
pipeline                                   what it is
=========================================  ================================================================
``this project, tensors``                  ``from_tensor_slices((x, y)).apply(importance_sampling(...))``
``this project, tensors, prefetch=...``    the same, so many batches drawn ahead
``this project, tensors, feedback``        the same; each batch's losses, made beforehand, are fed back
``this project, tensors, eager``           the same, consumed by a loop in Python
``this project, arrays in place``          ``importance_dataset((x, y), ...)`` over NumPy arrays
``this project, memory map``               the same over ``.npy`` files, mapped
``this project, disk cache``               ``importance_sampling(..., cache=DIRECTORY)``
``Keras fit(X, y)``                        what ``fit(X, y)`` makes of arrays, shuffled: the measure of the ratios
``Keras fit(X, y), eager``                 the same, consumed by a loop in Python
``Keras PyDataset``                        a ``PyDataset`` of whole batches, as ``fit`` consumes it, one thread
``tf.data shuffle``                        ``from_tensor_slices.shuffle(N).batch(B).prefetch``
``tf.data cache, shuffle``                 the same behind ``cache()``
``tf.data from_generator, elements``       one element at a time, then ``batch(B).prefetch``
``tf.data from_generator, batches``        whole batches, then ``prefetch``
``tf.data rejection_resample``             uneven to even classes, from a shuffled stream
``tf.data sample_from_datasets``           ten classes, each shuffled, drawn evenly
``tf.data TFRecord, shuffle``              the records of a file, ``shuffle(N).batch(B)``, decoded by batches
``numpy X[idx]``                           a loop over a permutation, and no pipeline at all
``floor: numpy take, one buffer``          the same into memory that is used over and over
=========================================  ================================================================

Those of others that live in environments of their own are in :mod:`benchmarks.peers.pipelines`.

This project's sampler knows all losses at the start, exponential ones, so it is past its first pass and draws
by priority; weights and probabilities come with every batch. The others draw uniformly, or by class, and give no
weights; that is in their favour, and left so. Where a data set can be given in several forms the quickest is
taken: Keras gets strings as a tensor, the one form of bytes that it takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

from benchmarks import pipeline_files as files
from benchmarks import pipeline_names as names
from benchmarks.pipeline_data import CLASSES, Array, Data, mapped
from pipeline import importance_dataset, importance_sampling
from sampler import ImportanceSampler

LOSSES_MADE = 64  # batches of losses made beforehand, used over and over
AHEAD = 64  # batches drawn ahead by default, at most


@dataclass(frozen=True)
class Setting:
    """What a pipeline is built for."""

    data: Data
    batch: int
    seed: int
    cores: int = 1


@dataclass(frozen=True)
class Made:
    """A pipeline: endless batches, how many of them it may hold ready, and its sampler if it has one."""

    batches: tf.data.Dataset | Callable[[], Iterator[Any]]
    ahead: int = 0
    feed_back: Callable[[Any], Any] | None = None  # of a batch, inside the graph


Build = Callable[[Setting], Made]


@dataclass(frozen=True)
class Entry:
    """How to build a pipeline, whose it is, and where it is measured.

    ``group`` is one of ``this project``, ``others`` and ``floor``. It is measured on the data sets ``only``, or on all;
    ``cold`` gives the files whose pages are dropped before it is measured once more.
    """

    build: Build
    group: str = names.OTHERS
    eager: bool = False
    only: tuple[str, ...] = ()
    cold: Callable[[Data], list[Path]] | None = None


# --- this project -----------------------------------------------------------------------------


def known_losses(setting: Setting) -> Array:
    """(N,) float64 > 0: every loss is known at the start, so that there is no first pass."""
    generator = np.random.default_rng([setting.seed, 1])
    return generator.standard_exponential(len(setting.data)) + np.finfo(np.float32).tiny


def sampler_for(setting: Setting) -> ImportanceSampler:
    """The sampler, past its first pass."""
    return ImportanceSampler(len(setting.data), losses=known_losses(setting), seed=setting.seed)


def over_tensors(setting: Setting, feedback: bool = False, **options: Any) -> Made:
    """An existing dataset, wrapped."""
    sampler = sampler_for(setting)
    sliced = tf.data.Dataset.from_tensor_slices(tensors(setting.data))
    dataset = sliced.apply(importance_sampling(sampler, setting.batch, **options))
    return Made(dataset.repeat(), AHEAD, feeding(sampler, setting) if feedback else None)


def over_arrays(setting: Setting) -> Made:
    """NumPy arrays as they are."""
    source = (setting.data.x, setting.data.y)
    return Made(importance_dataset(source, sampler_for(setting), setting.batch).repeat(), AHEAD)


def over_maps(setting: Setting) -> Made:
    """Memory maps of the files."""
    return Made(importance_dataset(mapped(setting.data), sampler_for(setting), setting.batch).repeat(), AHEAD)


def over_cache(setting: Setting) -> Made:
    """Files of this project's own; written the first time, found again afterwards."""
    return over_tensors(setting, cache=files.cache_folder(setting.data))


def feeding(sampler: ImportanceSampler, setting: Setting) -> Callable[[Any], Any]:
    """What takes the place of training: losses made beforehand go to ``sampler.update``, batch after batch."""
    generator = np.random.default_rng([setting.seed, 2])
    losses = itertools.cycle(generator.standard_exponential((LOSSES_MADE, setting.batch), np.float32) + 1e-6)

    def update(index: Array, step: Array) -> np.int64:
        sampler.update(index, next(losses), step=step)
        return np.int64(0)

    def feed_back(batch: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(update, [batch[2]["index"], batch[2]["step"]], tf.int64), ())

    return feed_back


@lru_cache(maxsize=1)
def tensors(data: Data) -> tuple[tf.Tensor, tf.Tensor]:
    """The arrays as tensors, made once for all pipelines of a data set."""
    return tf.constant(data.x), tf.constant(data.y)


# --- Keras ------------------------------------------------------------------------------------


def keras_arrays(setting: Setting) -> Made:
    """The adapter that ``fit(X, y)`` puts around arrays."""
    data = setting.data
    x = tensors(data)[0] if data.x.dtype.kind in "OS" else data.x
    adapter = ArrayDataAdapter(x, data.y, batch_size=setting.batch, shuffle=True)
    return Made(adapter.get_tf_dataset().repeat())


class Batches(keras.utils.PyDataset):
    """Whole batches by one fancy index each."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(workers=1, use_multiprocessing=False)
        self._setting, self._generator = setting, np.random.default_rng(setting.seed)
        self._order = self._generator.permutation(len(setting.data))

    def __len__(self) -> int:
        """Batches an epoch, the last of them smaller."""
        return -(-len(self._setting.data) // self._setting.batch)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        """One batch."""
        data, index = self._setting.data, self._order[number * self._setting.batch : (number + 1) * self._setting.batch]
        if data.x.dtype.kind == "O":  # it takes no arrays of bytes
            return tf.gather(tensors(data)[0], index), data.y[index]
        return data.x[index], data.y[index]


def keras_py_dataset(setting: Setting) -> Made:
    """The adapter that ``fit`` puts around a ``PyDataset``. Only the order of the batches changes with the epoch."""
    return Made(PyDatasetAdapter(Batches(setting), shuffle=True).get_tf_dataset().repeat())


# --- tf.data ----------------------------------------------------------------------------------


def shuffled(setting: Setting, cached: bool = False) -> Made:
    """Slices, shuffled whole."""
    dataset = tf.data.Dataset.from_tensor_slices(tensors(setting.data))
    if cached:
        dataset = dataset.cache()
    dataset = dataset.shuffle(len(setting.data), seed=setting.seed)
    return Made(dataset.batch(setting.batch).prefetch(tf.data.AUTOTUNE).repeat())


def signature(data: Data, *batch: Any) -> tuple[tf.TensorSpec, tf.TensorSpec]:
    """What a generator gives."""
    dtype = tf.string if data.x.dtype.kind in "OS" else tf.as_dtype(data.x.dtype)
    return tf.TensorSpec((*batch, *data.x.shape[1:]), dtype), tf.TensorSpec(batch, tf.int64)


def generated(setting: Setting, by_batches: bool = False) -> Made:
    """A Python generator over a new permutation each epoch, of elements or of whole batches."""
    data, batch = setting.data, setting.batch
    generator = np.random.default_rng(setting.seed)

    def elements() -> Iterator[Any]:
        for i in generator.permutation(len(data)):
            yield data.x[i], data.y[i]

    def batches() -> Iterator[Any]:
        for index in slices(generator.permutation(len(data)), batch):
            yield data.x[index], data.y[index]

    if by_batches:
        dataset = tf.data.Dataset.from_generator(batches, output_signature=signature(data, None))
    else:
        dataset = tf.data.Dataset.from_generator(elements, output_signature=signature(data)).batch(batch)
    return Made(dataset.prefetch(tf.data.AUTOTUNE).repeat())


def slices(index: Array, batch: int) -> Iterator[Array]:
    """An index in pieces of a batch."""
    for start in range(0, len(index), batch):
        yield index[start : start + batch]


def rejecting(setting: Setting) -> Made:
    """Throws samples of frequent classes away until all classes are as frequent."""
    data = setting.data
    found = np.bincount(data.y, minlength=CLASSES) / len(data)
    dataset = tf.data.Dataset.from_tensor_slices(tensors(data)).shuffle(len(data), seed=setting.seed).repeat()
    dataset = dataset.rejection_resample(
        lambda x, y: tf.cast(y, tf.int32), target_dist=[1.0 / CLASSES] * CLASSES, initial_dist=found.astype(np.float32)
    )
    return Made(dataset.map(lambda _, sample: sample).batch(setting.batch).prefetch(tf.data.AUTOTUNE))


def by_class(setting: Setting) -> Made:
    """One endless, shuffled dataset a class, drawn from with equal chances."""
    data = setting.data
    x, y = tensors(data)
    classes = []
    for label in range(CLASSES):
        (own,) = np.nonzero(data.y == label)
        sliced = tf.data.Dataset.from_tensor_slices((tf.gather(x, own), tf.gather(y, own)))
        classes.append(sliced.shuffle(max(1, own.size), seed=setting.seed).repeat())
    dataset = tf.data.Dataset.sample_from_datasets(classes, [1.0 / CLASSES] * CLASSES, seed=setting.seed)
    return Made(dataset.batch(setting.batch).prefetch(tf.data.AUTOTUNE))


def from_records(setting: Setting) -> Made:
    """A TFRecord file, read from one end to the other and shuffled whole in memory."""
    data = setting.data
    dataset = tf.data.TFRecordDataset(str(files.write_records(data))).shuffle(len(data), seed=setting.seed)
    dataset = dataset.batch(setting.batch).map(partial(files.parse_records, data), num_parallel_calls=tf.data.AUTOTUNE)
    return Made(dataset.prefetch(tf.data.AUTOTUNE).repeat())


# --- no pipeline ------------------------------------------------------------------------------


def indexed(setting: Setting) -> Made:
    """A new array for each batch, as one writes it by hand. Of strings only references are copied."""
    data, generator = setting.data, np.random.default_rng(setting.seed)

    def begin() -> Iterator[Any]:
        while True:
            for index in slices(generator.permutation(len(data)), setting.batch):
                yield data.x[index], data.y[index]

    return Made(begin)


def taken(setting: Setting) -> Made:
    """B rows copied to the same place over and over: what no pipeline can avoid."""
    data, generator = setting.data, np.random.default_rng(setting.seed)
    x, y = (np.empty((setting.batch, *each.shape[1:]), each.dtype) for each in (data.x, data.y))

    def begin() -> Iterator[Any]:
        while True:
            for index in slices(generator.permutation(len(data)), setting.batch):
                here = x[: len(index)], y[: len(index)]
                for all_of_them, out in zip((data.x, data.y), here, strict=True):
                    all_of_them.take(index, axis=0, out=out, mode="clip")  # "raise" would go through a buffer
                yield here

    return Made(begin)


PIPELINES: Mapping[str, Entry] = {
    names.TENSORS: Entry(over_tensors, names.OURS),
    f"{names.TENSORS}, prefetch=2": Entry(partial(over_tensors, prefetch=2), names.OURS),
    f"{names.TENSORS}, prefetch=64": Entry(partial(over_tensors, prefetch=64), names.OURS),
    names.FEEDBACK: Entry(partial(over_tensors, feedback=True), names.OURS),
    names.EAGER: Entry(over_tensors, names.OURS, eager=True),
    names.ARRAYS: Entry(over_arrays, names.OURS),
    names.MAPPED: Entry(over_maps, names.OURS, cold=files.map_files),
    names.CACHED: Entry(over_cache, names.OURS, cold=lambda data: files.files_below(files.cache_folder(data))),
    names.KERAS: Entry(keras_arrays),
    names.KERAS_EAGER: Entry(keras_arrays, eager=True),
    names.KERAS_BATCHES: Entry(keras_py_dataset),
    names.SHUFFLED: Entry(shuffled),
    names.SHUFFLED_CACHE: Entry(partial(shuffled, cached=True)),
    names.ELEMENTS: Entry(generated),
    names.BATCHES: Entry(partial(generated, by_batches=True)),
    names.REJECTING: Entry(rejecting),
    names.BY_CLASS: Entry(by_class),
    names.RECORDS: Entry(from_records, only=("images",), cold=lambda data: [files.records_path(data)]),
    names.INDEXED: Entry(indexed, names.TOUCHING),
    names.FLOOR: Entry(taken, names.TOUCHING),
}
