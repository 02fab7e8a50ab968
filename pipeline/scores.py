"""The norm of the gradient of each sample's loss at the last layer.

    norms = GradientNorm(model)
    norms.attach()                              # the layer tells its pre-activations, until ``detach``
    with norms.watching() as watched:           # around the model's own training step
        ...
        watched.norms(losses)                   # (B,): of losses (B,) that depend on what was watched
        watched.mean_norm(weight)               # a number: of the batch's mean gradient, weighted

It is what the variance of importance sampling depends on, up to the rest of the network (Katharopoulos & Fleuret,
2018, *Not all samples are created equal: deep learning with importance sampling*): ‖softmax(z) - y‖ for softmax
cross-entropy, ‖σ(z) - y‖ over the outputs' number for the binary one, 2 ‖z - y‖ over it for the squared error. One
derivative of the loss's last operations gives it, so it is exact for these and whatever else is compiled.

With ``weights=True`` it is that of the gradient with respect to the layer's own weights, as far as they are those of a
dense layer, W h + b on rows (B, d): ‖∂ℓ/∂z‖ √(‖h‖² + 1), for the gradient with respect to W is the outer product of h
and ∂ℓ/∂z. Where samples come in very different sizes, as in regression, ‖∂ℓ/∂z‖ alone misses most of it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from pipeline.workers import apart

SCORES = ("gradient_norm", "last_layer")  # by the pre-activations, by the layer's weights
ACTIVATIONS = tuple(getattr(keras.layers, name) for name in ("Softmax", "ReLU", "LeakyReLU", "PReLU", "ELU"))
SHAPES = tuple(
    getattr(keras.layers, name) for name in ("Reshape", "Flatten", "Permute", "Identity", "Dropout", "InputLayer")
)


class GradientNorm:
    """Finds the layer of ``model``: ``at``, a layer or its name, or the last one of a model with one output.

    Several replicas do the same step in threads of their own; each watches for itself.
    """

    def __init__(
        self, model: keras.Model, at: str | keras.layers.Layer | None = None, *, weights: bool = False
    ) -> None:
        self._model, self._at, self._weights = model, at, weights
        self._attached: keras.layers.Layer | None = None
        self._before: Any = None  # its ``call``, where that was set on the instance
        self._own = threading.local()

    def attach(self) -> None:
        """Have the layer tell. ``ValueError`` where it cannot be found."""
        self.detach()
        layer = self._layer()
        # Its ``call`` is no part of what is saved of a layer, as its activation is.
        self._before = vars(layer).get("call")
        object.__setattr__(layer, "call", self._telling(layer, layer.call))
        self._attached = layer

    def detach(self) -> None:
        """Leave the layer as it was."""
        if self._attached is not None:
            del self._attached.__dict__["call"]
            if self._before is not None:
                object.__setattr__(self._attached, "call", self._before)
            self._attached = None

    def can_be_told(self) -> bool:
        """Whether the layer can be found."""
        try:
            self._layer()
        except ValueError:
            return False
        return True

    @property
    def attached(self) -> bool:
        """Whether the layer tells."""
        return self._attached is not None

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watched]:
        """While this lasts, what the layer tells is watched."""
        assert self._attached is not None
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            dense = self._attached if self._weights and isinstance(self._attached, keras.layers.Dense) else None
            self._own.watched = Watched(tape, self._attached.name, dense)
            try:
                yield self._own.watched
            finally:
                self._own.watched = None

    def _see(self, values: tf.Tensor, inputs: Any = None) -> tf.Tensor:
        watched = getattr(self._own, "watched", None)
        return values if watched is None else watched.see(values, inputs)

    def _telling(self, layer: keras.layers.Layer, call: Callable[..., Any]) -> Callable[..., Any]:
        """The layer's ``call``, which shows what its activation is given, or else what it gives itself."""
        if isinstance(layer, ACTIVATIONS):
            return functools.wraps(call)(lambda z, *args, **options: call(self._see(z), *args, **options))
        if not callable(getattr(layer, "activation", None)) or isinstance(_class_attribute(layer), property):
            return functools.wraps(call)(lambda *args, **options: self._see(call(*args, **options)))

        @functools.wraps(call)
        def telling(*args: Any, **options: Any) -> Any:
            activation = layer.activation
            shown = lambda z, *more, **others: activation(self._see(z, args[0] if args else None), *more, **others)  # noqa: E731
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
    """The pre-activations of one training step; and the inputs of ``dense``, where its weights are meant."""

    def __init__(self, tape: tf.GradientTape, name: str, dense: keras.layers.Dense | None = None) -> None:
        self._tape, self._name, self._dense = tape, name, dense
        self._bias = dense is not None and dense.use_bias
        self._seen: list[tuple[tf.Tensor, Any]] = []
        self._rows: tf.Tensor | None = None  # (B, K) of the gradient, and the inputs (B, d) where they matter
        self._inputs: tf.Tensor | None = None

    def see(self, values: tf.Tensor, inputs: Any = None) -> tf.Tensor:
        """Watch ``values``, made of ``inputs``, and give them back."""
        self._tape.watch(values)
        self._seen.append((values, inputs))
        return values

    def norms(self, losses: tf.Tensor) -> tf.Tensor:
        """(B,) float32 ≥ 0: the norm of the gradient of each of the ``losses`` (B,), by its own row of z."""
        seen = [pair for pair in self._seen if _of_one_graph(pair[0], losses)]
        if len(seen) != 1:
            how = "was not called" if not seen else f"was called {len(seen)} times"
            raise ValueError(
                f"the layer {self._name!r} {how} in the training step, so its pre-activations cannot be told; name "
                "another: LossFeedback(..., at=layer)"
            )
        ((values, inputs),) = seen
        gradient = self._tape.gradient(losses, values)  # of their sum
        if gradient is None or gradient.shape.rank == 0 or not gradient.shape[:1].is_compatible_with(losses.shape):
            raise ValueError(
                f"the loss does not depend on the pre-activations of the layer {self._name!r}, one row for each "
                "sample; name another: LossFeedback(..., at=layer)"
            )
        self._rows = tf.reshape(tf.cast(gradient, tf.float32), [tf.shape(gradient)[0], -1])
        norms = tf.norm(self._rows, axis=1)
        if self._dense is None or values.shape.rank != 2 or not tf.is_tensor(inputs):
            return norms
        self._inputs = tf.cast(inputs, tf.float32)
        return norms * tf.sqrt(tf.reduce_sum(tf.square(self._inputs), axis=1) + float(self._bias))

    def mean_norm(self, weight: tf.Tensor) -> tf.Tensor:
        """The norm of (1/B) Σ w g over the batch, g the gradients of the ``norms`` taken before; () float32.

        Over replicas that share a batch it is that of them all. The gradient of W is one more product, of B x d by
        B x K.
        """
        assert self._rows is not None
        rows = weight[:, None] * self._rows
        parts = [] if self._inputs is None else [tf.matmul(self._inputs, rows, transpose_a=True)]
        if self._inputs is None or self._bias:
            parts.append(tf.reduce_sum(rows, axis=0))
        parts = [part / tf.cast(tf.shape(weight)[0], part.dtype) for part in parts]
        replicas = tf.distribute.get_replica_context()
        if replicas.num_replicas_in_sync > 1 and not apart(replicas.strategy):
            parts = replicas.all_reduce(tf.distribute.ReduceOp.MEAN, parts)
        return tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(part)) for part in parts]))


def _of_one_graph(one: tf.Tensor, other: tf.Tensor) -> bool:
    """Whether both belong to one computation; to build a layer Keras calls it in a graph that is thrown away."""
    if not (tf.is_symbolic_tensor(one) and tf.is_symbolic_tensor(other)):
        return tf.is_symbolic_tensor(one) == tf.is_symbolic_tensor(other)
    return one.graph is other.graph
