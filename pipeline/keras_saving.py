"""A sampler that travels with its Keras model: in ``.keras`` and ``.weights.h5`` files, and with ``BackupAndRestore``.

    carry(model, sampler)                           # before fit
    model.save_weights("run.weights.h5")            # holds the sampler's state as well

    model.load_weights("run.weights.h5")            # a model that carries a sampler gives it its state back
    plain.load_weights("run.weights.h5")            # a model that carries none loads its weights alone

``keras.models.load_model`` makes a new model, which carries nothing; ``carried("run.keras")`` reads the state alone.
What Keras does not save is the middle of an epoch: ``pipeline.checkpoints`` goes on from any step.
"""

from __future__ import annotations

import os
import zipfile
from typing import Any

import h5py
import keras
import numpy as np

from sampler.state_bytes import State, from_bytes, to_bytes

NAME, KEY = "sampler_state", "state"


def carry(model: keras.Model, sampler: Any) -> None:
    """Have ``model`` save and load the state of ``sampler`` with its weights, under the attribute ``sampler_state``.

    Args:
        model: of any kind, built or not.
        sampler: anything with ``state_dict`` and ``load_state_dict``; None has the model carry nothing any more.

    Loading raises ``ValueError`` for a state that is damaged or another sampler's; the sampler is as it was then, and
    what Keras has loaded before it, the weights, is that of the file: look at ``carried(path)`` first where that would
    be a loss. The older ``.h5`` files of ``model.save`` hold layers alone, and no sampler. The model's layers stay the
    same.
    """
    if sampler is None:
        vars(model).pop(NAME, None)
    else:
        # Past Keras's own __setattr__, which refuses new layers in a model that is built.
        object.__setattr__(model, NAME, _SamplerState(sampler))


def carried(path: str | os.PathLike[str]) -> State:
    """The sampler's state in a ``.keras`` or ``.weights.h5`` file, for ``sampler.load_state_dict``.

    ``KeyError`` where the model carried no sampler, ``ValueError`` for a damaged state.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file, h5py.File(file) as weights:
            return _state_in(weights, path)
    with h5py.File(path) as weights:
        return _state_in(weights, path)


def _state_in(weights: Any, path: Any) -> State:
    place = f"{NAME}/vars/{KEY}"
    if place not in weights:
        raise KeyError(f"{path} holds no state of a sampler: the model that was saved carried none")
    return _decoded(weights[place])


def _decoded(values: Any) -> State:
    return from_bytes(np.asarray(values, np.uint8).tobytes())


class _SamplerState(keras.layers.Layer):
    """No layer of the network: Keras saves and loads what is a layer and an attribute of the model."""

    def __init__(self, sampler: Any) -> None:
        super().__init__(trainable=False, dtype="float32")
        self.sampler = sampler
        self.built = True

    def save_own_variables(self, store: Any) -> None:
        store[KEY] = np.frombuffer(to_bytes(self.sampler.state_dict()), np.uint8)

    def load_own_variables(self, store: Any) -> None:
        if KEY in store:
            self.sampler.load_state_dict(_decoded(store[KEY]))
