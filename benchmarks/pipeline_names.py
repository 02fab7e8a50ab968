"""What the measured pipelines are called, in results, tables and pictures.

    from benchmarks.pipeline_names import KERAS, TENSORS

Apart from the pipelines themselves, so that results can be looked at without TensorFlow.
"""

from __future__ import annotations

# This project, at its defaults.
TENSORS = "this project, tensors"
ARRAYS = "this project, arrays in place"
MAPPED = "this project, memory map"
CACHED = "this project, disk cache"
WAYS = (TENSORS, ARRAYS, MAPPED, CACHED)

# Its variants, and the same in a loop in Python.
FEEDBACK = f"{TENSORS}, feedback"
EAGER = f"{TENSORS}, eager"

KERAS = "Keras fit(X, y)"
KERAS_EAGER = f"{KERAS}, eager"
KERAS_BATCHES = "Keras PyDataset"

SHUFFLED = "tf.data shuffle"
SHUFFLED_CACHE = "tf.data cache, shuffle"
ELEMENTS = "tf.data from_generator, elements"
BATCHES = "tf.data from_generator, batches"
REJECTING = "tf.data rejection_resample"
BY_CLASS = "tf.data sample_from_datasets"
RECORDS = "tf.data TFRecord, shuffle"

TORCH = "torch DataLoader, WeightedRandomSampler"
TORCH_BATCHES = "torch DataLoader, whole batches"
TORCH_WORKERS = "torch DataLoader, two workers"
GRAIN = "Grain shuffle, repeat, batch"
GRAIN_RECORDS = "Grain ArrayRecord, random access"

INDEXED = "numpy X[idx]"
FLOOR = "floor: numpy take, one buffer"

# Groups.
OURS, OTHERS, TOUCHING = "this project", "others", "floor"
