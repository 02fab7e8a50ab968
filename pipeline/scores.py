"""The norm of the gradient of each sample's loss at the last layer's pre-activations.

    norms = GradientNorm(model)
    norms.attach()                              # the layer tells its pre-activations, until ``detach``
    with norms.watching() as watched:           # around the model's own training step
        ...
        watched.norms(losses)                   # (B,): of losses (B,) that depend on what was watched

It is what the variance of importance sampling depends on, up to the rest of the network (Katharopoulos & Fleuret,
2018, *Not all samples are created equal: deep learning with importance sampling*): ‖softmax(z) - y‖ for softmax
cross-entropy, ‖σ(z) - y‖ over the outputs' number for the binary one, 2 ‖z - y‖ over it for the squared error. One
derivative of the loss's last operations gives it, so it is exact for these and whatever else is compiled.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

ACTIVATIONS = tuple(getattr(keras.layers, name) for name in ("Softmax", "ReLU", "LeakyReLU", "PReLU", "ELU"))
SHAPES = tuple(
    getattr(keras.layers, name) for name in ("Reshape", "Flatten", "Permute", "Identity", "Dropout", "InputLayer")
)


class GradientNorm:
    """Finds the layer of ``model``: ``at``, a layer or its name, or the last one of a model with one output.

    Several replicas do the same step in threads of their own; each watches for itself.
    """

    def __init__(self, model: keras.Model, at: str | keras.layers.Layer | None = None) -> None:
        self._model, self._at = model, at
        self._attached: keras.layers.Layer | None = None
        self._own = threading.local()

    def attach(self) -> None:
        """Have the layer tell. ``ValueError`` where it cannot be found."""
        self.detach()
        layer = self._layer()
        # Its ``call`` is no part of what is saved of a layer, as its activation is.
        object.__setattr__(layer, "call", self._telling(layer, layer.call))
        self._attached = layer

    def detach(self) -> None:
        """Leave the layer as it was."""
        if self._attached is not None:
            self._attached.__dict__.pop("call", None)
            self._attached = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watched]:
        """While this lasts, what the layer tells is watched."""
        assert self._attached is not None
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            self._own.watched = Watched(tape, self._attached.name)
            try:
                yield self._own.watched
            finally:
                self._own.watched = None

    def _see(self, values: tf.Tensor) -> tf.Tensor:
        watched = getattr(self._own, "watched", None)
        return values if watched is None else watched.see(values)

    def _telling(self, layer: keras.layers.Layer, call: Callable[..., Any]) -> Callable[..., Any]:
        """The layer's ``call``, which shows what its activation is given, or else what it gives itself."""
        if isinstance(layer, ACTIVATIONS):
            return functools.wraps(call)(lambda z, *args, **options: call(self._see(z), *args, **options))
        if not callable(getattr(layer, "activation", None)) or isinstance(_class_attribute(layer), property):
            return functools.wraps(call)(lambda *args, **options: self._see(call(*args, **options)))

        @functools.wraps(call)
        def telling(*args: Any, **options: Any) -> Any:
            activation = layer.activation
            shown = lambda z, *more, **others: activation(self._see(z), *more, **others)  # noqa: E731
            object.__setattr__(layer, "activation", shown)
            try:
                return call(*args, **options)
            finally:
                object.__setattr__(layer, "activation", activation)

        return telling

    def _layer(self) -> keras.layers.Layer:
        at = self._at
        if isinstance(at, keras.layers.Layer):
            return at
        if at is not None:
            named = [layer for layer in self._model._flatten_layers() if layer.name == at]
            if not named:
                names = ", ".join(repr(layer.name) for layer in self._model._flatten_layers(include_self=False))
                raise ValueError(f"the model has no layer named {at!r}; at= must be a layer or one of {names}")
            return named[0]
        return _last(self._model)


def _last(model: keras.Model) -> keras.layers.Layer:
    """The layer whose activation the output of ``model`` is, past what only gives it another shape."""
    if isinstance(model, keras.Sequential):
        layers = [layer for layer in model.layers if not _passes_on(layer)]
    else:
        outputs = getattr(model, "outputs", None) or []
        if len(outputs) != 1:
            kind = f"a model of {len(outputs)} outputs" if outputs else "a subclassed model"
            raise ValueError(
                f"score='gradient_norm' cannot tell which layer of {kind} is the last; name it: "
                "LossFeedback(..., at=layer), one whose pre-activations the loss depends on"
            )
        layers = [outputs[0]._keras_history.operation]
        while _passes_on(layers[-1]) and len(layers[-1]._inbound_nodes) == 1:
            layers.append(layers[-1]._inbound_nodes[0].input_tensors[0]._keras_history.operation)
    layer = layers[-1]
    if isinstance(layer, keras.Model):
        return _last(layer)
    if isinstance(layer, keras.layers.TimeDistributed) or isinstance(_class_attribute(layer), property):
        raise ValueError(
            f"score='gradient_norm' cannot tell the pre-activations of the layer {layer.name!r}, a "
            f"{type(layer).__name__}, which has many; end the model in a layer such as Dense, which takes (B, T, K) as "
            "well, or name another layer: LossFeedback(..., at=layer)"
        )
    return layer


def _passes_on(layer: Any) -> bool:
    """Whether the layer gives what it is given, in another shape or with a part left out."""
    linear = isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.linear
    return isinstance(layer, SHAPES) or linear


def _class_attribute(layer: keras.layers.Layer) -> Any:
    return getattr(type(layer), "activation", None)


class Watched:
    """The pre-activations of one training step."""

    def __init__(self, tape: tf.GradientTape, name: str) -> None:
        self._tape, self._name = tape, name
        self._seen: list[tf.Tensor] = []

    def see(self, values: tf.Tensor) -> tf.Tensor:
        """Watch ``values``, and give them back."""
        self._tape.watch(values)
        self._seen.append(values)
        return values

    def norms(self, losses: tf.Tensor) -> tf.Tensor:
        """(B,) float32 ≥ 0: the norm of the gradient of each of the ``losses`` (B,), by its own row of z."""
        seen = [values for values in self._seen if _of_one_graph(values, losses)]
        if len(seen) != 1:
            how = "was not called" if not seen else f"was called {len(seen)} times"
            raise ValueError(
                f"the layer {self._name!r} {how} in the training step, so its pre-activations cannot be told; name "
                "another: LossFeedback(..., at=layer)"
            )
        (values,) = seen
        gradient = self._tape.gradient(losses, values)  # of their sum
        if gradient is None or gradient.shape.rank == 0 or not gradient.shape[:1].is_compatible_with(losses.shape):
            raise ValueError(
                f"the loss does not depend on the pre-activations of the layer {self._name!r}, one row for each "
                "sample; name another: LossFeedback(..., at=layer)"
            )
        return tf.norm(tf.reshape(tf.cast(gradient, tf.float32), [tf.shape(gradient)[0], -1]), axis=1)


def _of_one_graph(one: tf.Tensor, other: tf.Tensor) -> bool:
    """Whether both belong to one computation; to build a layer Keras calls it in a graph that is thrown away."""
    if not (tf.is_symbolic_tensor(one) and tf.is_symbolic_tensor(other)):
        return tf.is_symbolic_tensor(one) == tf.is_symbolic_tensor(other)
    return one.graph is other.graph
