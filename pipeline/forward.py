"""A forward pass in inference mode: the loss of each sample, and the norm of its gradient where that is asked for.

    forward = Forward(model, batches.element_spec)          # of (x, y), compiled once for batches of any size
    losses, norms = forward(x, y)                           # (m,) float32 each; norms None without ``score``

Nothing of the model changes: dropout is off, batch normalisation uses what it has learnt and learns nothing. It is
called from Python, not from inside another graph, so it runs where the model's variables are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.losses import Loss, loss_of
from pipeline.scores import GradientNorm

Float32s = npt.NDArray[np.float32]


class Forward:
    """The compiled pass.

    Args:
        model: any Keras model of one output; it is built where that was not done yet, if its inputs are dense.
        spec: the structure ``(x, y)`` or ``(x, y, ...)`` of ``tf.TypeSpec``, with a first axis of any size.
        loss: as for ``loss_of``.
        score: None, or which norm of each loss's gradient is wanted, ``"gradient_norm"`` or ``"last_layer"`` as for
            ``LossFeedback``, for the price of the derivative of the model's last operations.
        at: the layer of those pre-activations, or its name; needed for subclassed models.

    Raises ``ValueError`` for data without y, for a model or a loss of several outputs, and where no layer's
    pre-activations can be told.
    """

    def __init__(
        self,
        model: keras.Model,
        spec: Any,
        loss: str | keras.losses.Loss | Loss | None = None,
        *,
        score: str | None = None,
        at: str | keras.layers.Layer | None = None,
    ) -> None:
        if not isinstance(spec, tuple) or len(spec) not in (2, 3):
            raise ValueError(f"a loss needs samples of (x, y), or (x, y, sample_weight), got elements {spec}")
        self._model = model
        self._losses_of = loss_of(model, loss)
        self._norm = None if score is None else GradientNorm(model, at, weights=score != "gradient_norm")
        _build(model, spec[0])
        with self._attached():
            self._compiled = tf.function(self._pass).get_concrete_function(*spec[:2])

    def __call__(self, x: Any, y: Any) -> tuple[Float32s, Float32s | None]:
        """``(losses, norms)`` of m samples, (m,) float32 each; what is not finite is given as it is."""
        losses, *norms = self._compiled(x, y)
        return losses.numpy(), norms[0].numpy() if norms else None

    def _pass(self, x: Any, y: Any) -> tuple[tf.Tensor, ...]:
        with contextlib.nullcontext() if self._norm is None else self._norm.watching() as watched:
            options = {"training": False} if self._model._call_has_training_arg else {}
            losses = tf.cast(self._losses_of(y, self._model(x, **options)), tf.float32)
            return (losses,) if watched is None else (losses, watched.norms(losses))

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        """While the pass is traced the last layer tells its pre-activations."""
        if self._norm is not None:
            self._norm.attach()
        try:
            yield
        finally:
            if self._norm is not None:
                self._norm.detach()


def _build(model: keras.Model, spec: Any) -> None:
    """Let the layers make their variables, from shapes alone."""
    if model.built:
        return
    model(tf.nest.map_structure(lambda part: keras.KerasTensor(part.shape, part.dtype.name), spec))
