"""The named models, and the loss that goes with a data set.

    from pipeline.data import load_data
    from pipeline.models import build_model, loss_for

    data = load_data("digits")
    model = build_model("auto", data)           # an uncompiled keras.Model
    model.compile("adam", loss=loss_for(data))

| name              | what it is |
|-------------------|------------|
| `auto`            | `cnn` for images, (N, H, W, C); `mlp` for everything else |
| `mlp`             | two layers of 64 with ReLU, on flattened inputs or the mean of tokens' embeddings |
| `cnn`             | two 3x3 convolutions (32, 64), each halved by max pooling, then a layer of 64 |
| `lstm`            | an LSTM of 32 over sequences, (N, T) or (N, T, C) |
| `linear`          | a single layer on flattened inputs, no activation |
| `module:function` | your own function; it is called with the ``Data`` and returns a Keras model |

Every model ends in plain numbers, (B, K) logits for K classes or (B, D) quantities, without
softmax, because the losses of ``loss_for`` want them so: the logits are what gradients are well
behaved on.

Siblings share one signature, ``(data: Data) -> keras.Model``. The first weights come from Keras's
global seed: call ``pipeline.training.make_reproducible(seed)`` before.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import keras

from pipeline.data import Data, unknown

WIDTH = 64
EMBEDDING = 32
MEMORY = 32  # units of the LSTM


def build_model(name: str, data: Data) -> keras.Model:
    """The model called ``name`` for the shape of ``data``, built and uncompiled.

    Args:
        name: ``auto``, ``mlp``, ``cnn``, ``lstm``, ``linear`` or ``module:function``.
        data: the task; its shapes and number of classes decide the first and the last layer.

    Raises ``ValueError`` for an unknown name, for a model that does not fit the data's shape, and
    for a function that cannot be found or whose model does not end in ``outputs(data)`` units.
    """
    if ":" in name:
        return _own_model(name, data)
    if name not in NAMED:
        raise ValueError(unknown("model", name, [*NAMED, "module:function"]))
    return NAMED[name](data)


def loss_for(data: Data, **options: Any) -> keras.losses.Loss:
    """The loss of the task: cross-entropy on logits for classes, squared error for quantities.

    ``options`` go to the Keras loss; ``reduction="sum"`` or ``None``, say.
    """
    if data.num_classes is None:
        return keras.losses.MeanSquaredError(**options)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def outputs(data: Data) -> int:
    """The units of the last layer: K for classes, D for quantities."""
    return int(data.y.shape[1]) if data.num_classes is None else data.num_classes


# --- the named ones -------------------------------------------------------------------------------


def auto(data: Data) -> keras.Model:
    """``cnn`` for (N, H, W, C) inputs, else ``mlp``."""
    return cnn(data) if data.x.ndim == 4 else mlp(data)


def mlp(data: Data) -> keras.Model:
    """Two layers of 64 with ReLU."""
    first = _embedding(data) if data.x.dtype.kind in "iu" else [keras.layers.Flatten()]
    hidden = [keras.layers.Dense(WIDTH, activation="relu") for _ in range(2)]
    return _sequence("mlp", data, [*first, *hidden])


def cnn(data: Data) -> keras.Model:
    """Two convolutions, (N, H, W, C) or (N, H, W) inputs."""
    shape = data.x.shape[1:]
    if len(shape) not in (2, 3) or data.x.dtype.kind in "iu":
        raise ValueError(
            f"the model 'cnn' needs images, (N, H, W, C), but the inputs of {data.name!r} are "
            f"{data.x.shape} {data.x.dtype}; use the model 'mlp' or 'auto'"
        )
    channel = [] if len(shape) == 3 else [keras.layers.Reshape((*shape, 1))]
    blocks = [layer for filters in (32, 64) for layer in _convolution(filters)]
    dense = [keras.layers.Flatten(), keras.layers.Dense(WIDTH, activation="relu")]
    return _sequence("cnn", data, [*channel, *blocks, *dense])


def lstm(data: Data) -> keras.Model:
    """An LSTM over (N, T, C) or (N, T) sequences, or over rows of tokens."""
    shape = data.x.shape[1:]
    if data.x.dtype.kind in "iu":
        embedding = keras.layers.Embedding(_vocabulary(data), EMBEDDING, mask_zero=True)
        return _sequence("lstm", data, [embedding, keras.layers.LSTM(MEMORY)])
    if len(shape) not in (1, 2):
        raise ValueError(
            f"the model 'lstm' needs sequences, (N, T, C) or (N, T), but the inputs of {data.name!r} are "
            f"{data.x.shape}; use the model 'auto'"
        )
    channel = [] if len(shape) == 2 else [keras.layers.Reshape((*shape, 1))]
    return _sequence("lstm", data, [*channel, keras.layers.LSTM(MEMORY)])


def linear(data: Data) -> keras.Model:
    """One layer, whose outputs are linear in the inputs."""
    if data.x.dtype.kind in "iu":
        raise ValueError(
            f"the model 'linear' needs quantities, but the inputs of {data.name!r} are {data.x.dtype}; "
            "use the model 'mlp', or give them as float32"
        )
    return _sequence("linear", data, [keras.layers.Flatten()])


def _convolution(filters: int) -> list[keras.layers.Layer]:
    # padding="same" in both, so that images of a single pixel pass as well.
    return [
        keras.layers.Conv2D(filters, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(padding="same"),
    ]


def _embedding(data: Data) -> list[keras.layers.Layer]:
    """Rows of tokens (N, T) to the mean of their embeddings (N, 32); padding, 0, does not count."""
    vocabulary = _vocabulary(data)
    if not (data.x.any(axis=1).all() and data.x_test.any(axis=1).all()):
        raise ValueError(
            f"{data.name!r} has rows of padding (0) alone, of which there is no mean embedding; "
            "drop them, or begin every row with a token"
        )
    return [
        keras.layers.Embedding(vocabulary, EMBEDDING, mask_zero=True),
        keras.layers.GlobalAveragePooling1D(),
    ]


def _vocabulary(data: Data) -> int:
    """How many tokens there are, padding among them."""
    low = int(min(data.x.min(), data.x_test.min()))
    if data.x.ndim != 2 or low < 0:
        raise ValueError(
            f"integer inputs are rows of tokens, (N, T) and at least 0, but those of {data.name!r} "
            f"have the shape {data.x.shape} and begin at {low}; give other numbers as float32"
        )
    return int(max(data.x.max(), data.x_test.max())) + 1


def _sequence(name: str, data: Data, layers: list[keras.layers.Layer]) -> keras.Model:
    first = keras.Input(data.x.shape[1:], dtype=data.x.dtype.name)
    return keras.Sequential([first, *layers, keras.layers.Dense(outputs(data))], name=name)


NAMED: dict[str, Callable[[Data], keras.Model]] = {
    "auto": auto,
    "mlp": mlp,
    "cnn": cnn,
    "lstm": lstm,
    "linear": linear,
}


# --- the user's own -------------------------------------------------------------------------------


def _own_model(name: str, data: Data) -> keras.Model:
    function = _find(name)
    try:
        model = function(data)
    except Exception as error:
        # Not a mistake in the options: the traceback of the user's own code is what helps.
        raise RuntimeError(f"the model function {name} raised {type(error).__name__}: {error}") from error
    if not isinstance(model, keras.Model):
        raise ValueError(f"{name} must return a keras.Model, it returned {type(model).__name__}")
    shape = tuple(model(data.x[:1]).shape)
    if shape != (1, outputs(data)):
        raise ValueError(
            f"{name} gives {shape} for one sample of {data.name!r}, needed is (1, {outputs(data)}): "
            + ("one logit a class, without softmax" if data.num_classes else "the quantities of y")
        )
    return model


def _find(name: str) -> Callable[[Data], Any]:
    """The function that ``module:function`` names; modules of the current folder are found too."""
    module_name, _, function_name = name.partition(":")
    try:
        module = _import(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise ValueError(
            f"no module {module_name!r} for the model {name!r}, neither installed nor in the current "
            "folder; the form is module:function, for example my_models:small for my_models.py"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        near = difflib.get_close_matches(function_name, known, n=1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        raise ValueError(f"the module {module_name!r} has no function {function_name!r}{hint}")
    return function


def _import(module_name: str) -> Any:
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(
            f"{module_name!r} is not the name of a module; the form is module:function, with dots "
            "between folders and without .py, for example my_models:small"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(module_name)
