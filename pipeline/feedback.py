"""The losses of every training step, back to the sampler, from a compiled Keras model.

    model.compile("adam", loss="sparse_categorical_crossentropy")
    model.fit(train, epochs=5, callbacks=[LossFeedback(model, sampler)])

How it gets at the loss of each sample: the compiled loss is linear in the sample weights, L = (1/B) Σ w ℓ, so its
gradient with respect to the weights, times B, *is* the unweighted loss of each sample, whatever the loss and however it is
put together. One tape around ``compute_loss`` gives it, for next to nothing.

How it gets out of the compiled step: the step writes losses, index and step into small variables, and the
callback reads them after each batch. That works in graph mode, with XLA, several steps per execution, mixed
precision and eagerly.

``train_step`` and ``compute_loss`` are replaced on the instance while ``fit`` runs and put back when it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from pipeline.losses import unreduced

HOOKS = ("train_step", "compute_loss")


class LossFeedback(keras.callbacks.Callback):
    """Feeds the unweighted loss of each sample back to ``sampler``, and puts the weights into the loss.

    Args:
        model: the model that will be fitted, compiled with any loss that is linear in the sample weights.
        sampler: the sampler of the dataset that is passed to ``fit``.

    The loss that comes back is without importance weights and without the user's own sample weights. ``fit``
    trains on their product. Regularisers and ``add_loss`` are part of the training, not of a sample's loss.

    Raises ``ValueError``, before the first step is done, for a loss that ignores weights, that gives one number for the
    whole batch or that divides by the sum of the weights; for a ``feedback_lag`` smaller than
    ``steps_per_execution``; and for a dataset whose batches carry no ``sampling``.
    """

    def __init__(self, model: keras.Model, sampler: Any) -> None:
        super().__init__()
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                f"LossFeedback needs Keras's TensorFlow backend, found {keras.backend.backend()!r}; set "
                "KERAS_BACKEND=tensorflow"
            )
        self._fitted = model
        self.sampler = sampler
        self._originals: dict[str, Callable[..., Any]] = {}
        self._current: dict[str, Any] | None = None  # of the step that is being traced or run
        self._ring: _Ring | None = None

    # --- Keras calls these ---

    def set_model(self, model: keras.Model) -> None:
        """Called by ``fit`` before it makes its training function."""
        if model is not self._fitted:
            raise ValueError(
                f"LossFeedback was made for the model {self._fitted.name!r}, but {model.name!r} is fitted; make it "
                "with the model that is fitted"
            )
        super().set_model(model)
        self._check_lag()
        self._install()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Hand over the losses of the steps just done."""
        self._drain()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Hand over what an interrupted group of steps left."""
        self._drain()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the model back as it was."""
        self._drain()
        self._remove()

    # --- the hooks ---

    def _check_lag(self) -> None:
        lag, together = self.sampler.feedback_lag, self._fitted.steps_per_execution
        if lag is not None and lag < together:
            raise ValueError(
                f"feedback_lag={lag} is smaller than steps_per_execution={together}: a draw would wait for losses that "
                f"come back only after it; raise feedback_lag to {together} or more"
            )

    def _install(self) -> None:
        self._remove()
        model = self._fitted
        self._originals = {name: getattr(model, name) for name in HOOKS}
        self._ring = None
        # Past Keras's own __setattr__, which would track what is set.
        object.__setattr__(model, "train_step", self._train_step)
        object.__setattr__(model, "compute_loss", self._compute_loss)
        model.train_function = None

    def _remove(self) -> None:
        for name in HOOKS:
            if self._fitted.__dict__.get(name) in (self._train_step, self._compute_loss):
                object.__delattr__(self._fitted, name)
                self._fitted.train_function = None

    def _train_step(self, data: Any) -> Any:
        """The model's own train step, on the product of the weights; the losses go into the ring."""
        x, y, sampling = keras.utils.unpack_x_y_sample_weight(data)
        if sampling is None and isinstance(y, dict) and "index" in y and "weight" in y:
            y, sampling = None, y  # (x, sampling): inputs alone
        if not isinstance(sampling, dict) or "index" not in sampling:
            raise ValueError(
                "the batches carry no sampling with index and weight; wrap the dataset with "
                "dataset.apply(importance_sampling(sampler, batch_size)), or leave LossFeedback out"
            )
        weight = sampling["weight"]
        if "sample_weight" in sampling:
            weight = weight * tf.cast(tf.reshape(sampling["sample_weight"], tf.shape(weight)), weight.dtype)
        self._current = {"losses": None}
        try:
            logs = self._originals["train_step"]((x, y, weight))
            losses = self._current["losses"]
        finally:
            self._current = None
        if losses is None:
            raise ValueError(
                "the model's train_step never called compute_loss, so the losses of its samples cannot be had; call "
                "self.compute_loss(x, y, y_pred, sample_weight) there, or use a custom loop with per_sample_loss"
            )
        self._write(losses, sampling)
        return logs

    def _compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """The model's own loss; in a train step its gradient by the weights is kept."""
        if self._current is None or self._current["losses"] is not None:
            return self._own_loss(x, y, y_pred, sample_weight, training)
        if sample_weight is None:
            raise ValueError(
                "the model's train_step called compute_loss without sample_weight, so the importance weights would be "
                "lost; pass it on: self.compute_loss(x, y, y_pred, sample_weight)"
            )
        own = type(self._fitted).compute_loss is not keras.Model.compute_loss
        # (B, 1) meets losses (B, T) row by row; (B,) would be laid along T. A loss of the user's own gets (B,).
        loss, gradient = self._loss_and_gradient(x, y, y_pred, sample_weight, training, 1 if own else 2)
        if not own:
            ranks = _check_compiled_losses(self._fitted, y, y_pred)
            if max(ranks, default=0) > 2:
                loss, gradient = self._loss_and_gradient(x, y, y_pred, sample_weight, training, max(ranks))
        if gradient is None:
            raise ValueError(
                "the loss does not depend on the sample weights, so importance weights would have no effect and training "
                "would be biased; let compute_loss, or the loss, use sample_weight"
            )
        assert self._current is not None
        self._current["losses"] = tf.cast(gradient, tf.float32) * _batch_factor(self._fitted, sample_weight)
        return loss

    def _own_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool) -> tf.Tensor:
        arguments = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight}
        if getattr(self._fitted, "_compute_loss_has_training_arg", True):
            arguments["training"] = training
        return self._originals["compute_loss"](**arguments)

    def _loss_and_gradient(
        self, x: Any, y: Any, y_pred: Any, weight: tf.Tensor, training: bool, rank: int
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weight)
            shaped = tf.reshape(weight, [-1] + [1] * (rank - 1))
            loss = self._own_loss(x, y, y_pred, shaped, training)
        return loss, tape.gradient(loss, weight)

    # --- the way out of the compiled step ---

    def _write(self, losses: tf.Tensor, sampling: dict[str, tf.Tensor]) -> None:
        batch = losses.shape[0]
        if batch is None:
            raise ValueError(
                "the batch size is not known when the training step is compiled; give batches of one size, as "
                "importance_sampling does: no unbatch(), filter() or batch() without drop_remainder after it"
            )
        if self._ring is None or self._ring.batch != batch:
            with tf.init_scope():
                self._ring = _Ring(max(self._fitted.steps_per_execution, 1), batch)
        self._ring.write(losses, sampling["index"], sampling["step"])

    def _drain(self) -> None:
        if self._ring is not None:
            for index, losses, step in self._ring.read():
                self.sampler.update(index, losses, step=step)


class _Ring:
    """The losses of the last steps, written inside the compiled step and read outside it."""

    def __init__(self, rows: int, batch: int) -> None:
        self.rows, self.batch = rows, batch
        self.losses = tf.Variable(tf.zeros([rows, batch], tf.float32), trainable=False)
        self.origin = tf.Variable(tf.zeros([rows, 2, batch], tf.int64), trainable=False)  # index, step
        self.written = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.taken = 0

    def write(self, losses: tf.Tensor, index: tf.Tensor, step: tf.Tensor) -> None:
        row = tf.reshape(self.written % self.rows, [1, 1])
        self.losses.scatter_nd_update(row, losses[None])
        self.origin.scatter_nd_update(row, tf.stack([index, step])[None])
        self.written.assign_add(1)

    def read(self) -> list[tuple[Any, Any, Any]]:
        """``(index, losses, step)`` of each step since the last call, oldest first."""
        written = int(self.written.numpy())
        if written == self.taken:
            return []
        losses, origin = self.losses.numpy(), self.origin.numpy()
        rows = [step % self.rows for step in range(max(self.taken, written - self.rows), written)]
        self.taken = written
        return [(origin[row, 0], losses[row], origin[row, 1]) for row in rows]


# --- what the compiled losses must be ---


def _flat_losses(model: keras.Model) -> list[Any]:
    return list(getattr(getattr(model, "_compile_loss", None), "_flat_losses", None) or [])


def _check_compiled_losses(model: keras.Model, y: Any, y_pred: Any) -> list[int]:
    """The ranks of the compiled losses before reduction; ``ValueError`` for one that gives a single number."""
    ranks = []
    for path, loss, _, name in _flat_losses(model):
        try:
            shape = unreduced(loss)(_at(path, y), _at(path, y_pred)).shape
        except (KeyError, IndexError, TypeError):
            continue  # y is laid out otherwise than y_pred; the gradient is right all the same
        if shape.rank == 0:
            raise ValueError(
                f"the loss {name!r} gives one number for the whole batch, so its samples cannot be told apart; let it end "
                "in a mean over the last axis, ops.mean(..., axis=-1), or be made with reduction=None inside"
            )
        ranks.append(shape.rank)
    if len(ranks) > 1 and max(ranks) > 2:
        raise ValueError(
            f"several outputs with losses of ranks {ranks} before reduction are not supported; reduce each to (B,) or "
            "(B, T), or use a custom loop with per_sample_loss"
        )
    return ranks


def _at(path: tuple[Any, ...], structure: Any) -> Any:
    for key in path:
        structure = structure[key]
    return structure


def _batch_factor(model: keras.Model, weight: tf.Tensor) -> tf.Tensor:
    """What the gradient is multiplied by: B where the loss is a mean over the batch, 1 where it is a sum."""
    reductions = {getattr(loss, "reduction", None) for _, loss, _, _ in _flat_losses(model)}
    if "mean_with_sample_weight" in reductions:
        raise ValueError(
            "reduction='mean_with_sample_weight' divides by the sum of the weights, which biases importance sampling; "
            "use reduction='sum_over_batch_size'"
        )
    sums = reductions & {"sum", "none", None}
    if sums and reductions - sums:
        raise ValueError(
            f"losses with different reductions, {sorted(map(str, reductions))}, cannot be told apart; use one for all outputs"
        )
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return tf.constant(1.0) if sums else tf.cast(tf.shape(weight)[0] * replicas, tf.float32)
