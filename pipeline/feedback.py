"""The losses of every training step, back to the sampler, from a compiled Keras model.

    model.compile("adam", loss="sparse_categorical_crossentropy")
    model.fit(train, epochs=5, callbacks=[LossFeedback(model, sampler)])

How it gets at the loss of each sample: the compiled loss is linear in the sample weights, L = (1/B) Σ w ℓ, so its
gradient with respect to the weights, times B, *is* the unweighted loss of each sample, whatever the loss and however
it is put together. One tape around ``compute_loss`` gives it, for next to nothing.

How it gets out of the compiled step: the step writes losses, index and step into small variables, and the
callback reads them after each batch. That works in graph mode, with XLA, several steps per execution, mixed
precision and eagerly.

``train_step`` and ``compute_loss`` are replaced on the instance while ``fit`` runs and put back when it ends; so are
the compiled losses, each by one that lays (B,) weights along the batch whatever the rank of its values. A ``fit`` that
died of an exception leaves them there until the next one begins.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from pipeline.losses import unreduced

HOOKS = ("train_step", "compute_loss", "fit", "train_on_batch")


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
        self._checked = False  # whether a first step is over

    # --- Keras calls these ---

    def set_model(self, model: keras.Model) -> None:
        """Refuse another model, and a lag that is too short, before anything is done."""
        if model is not self._fitted:
            raise ValueError(
                f"LossFeedback was made for the model {self._fitted.name!r}, but {model.name!r} is fitted; make it "
                "with the model that is fitted"
            )
        super().set_model(model)
        self._check_lag()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the hooks in place; ``fit`` has made its training function just before, which is made anew."""
        self._install()
        self._fitted.make_train_function(force=True)

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
        self._checked = False
        # Past Keras's own __setattr__, which would track what is set.
        object.__setattr__(model, "train_step", self._train_step)
        object.__setattr__(model, "compute_loss", self._compute_loss)
        for name in ("fit", "train_on_batch"):
            object.__setattr__(model, name, functools.partial(self._begin_anew, name))
        _wrap_losses(getattr(model, "_compile_loss", None))

    def _remove(self) -> None:
        if self._originals:
            for name in HOOKS:
                self._fitted.__dict__.pop(name, None)
            _unwrap_losses(getattr(self._fitted, "_compile_loss", None))
            self._fitted.train_function = None
        self._originals = {}

    def _begin_anew(self, name: str, *args: Any, **options: Any) -> Any:
        """``fit`` begins while the hooks are there: the last one died of an exception and left them."""
        self._remove()
        return getattr(self._fitted, name)(*args, **options)

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
        before = self._weights_before()
        self._current = {"losses": None}
        try:
            logs = self._originals["train_step"]((x, y, _weight(sampling)))
            losses = self._current["losses"]
        finally:
            self._current = None
        if losses is None:
            for variable, value in before:
                variable.assign(value)
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
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sample_weight)
            loss = self._own_loss(x, y, y_pred, sample_weight, training)
        gradient = tape.gradient(loss, sample_weight)
        if gradient is None:
            raise ValueError(
                "the loss does not depend on the sample weights, so importance weights would have no effect and "
                "training would be biased; let compute_loss, or the loss, use sample_weight"
            )
        assert self._current is not None
        self._current["losses"] = tf.cast(gradient, tf.float32) * _batch_factor(self._fitted, sample_weight)
        return loss

    def _own_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool) -> tf.Tensor:
        options = {"training": training} if getattr(self._fitted, "_compute_loss_has_training_arg", True) else {}
        return self._originals["compute_loss"](x, y, y_pred, sample_weight, **options)

    def _weights_before(self) -> list[tuple[Any, Any]]:
        """The model's variables and their values, in the first step of an eager run: there a step that turns out to
        be of no use has been done already.
        """
        if self._checked or not tf.executing_eagerly():
            return []
        self._checked = True
        return [(variable, variable.numpy()) for variable in self._fitted.variables]

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


def _weight(sampling: dict[str, tf.Tensor]) -> tf.Tensor:
    """(B,) the importance weights, times the user's own sample weights where there are any."""
    weight = sampling["weight"]
    own = sampling.get("sample_weight")
    if own is None:
        return weight
    shapes = {tuple(part.shape) for part in tf.nest.flatten(own)}
    if tf.nest.is_nested(own) or shapes - {tuple(weight.shape), (*weight.shape, 1)}:
        raise ValueError(
            f"the data set's own sample weights must be one number for each sample, got shape "
            f"{' and '.join(map(str, sorted(shapes)))} for a batch of {weight.shape[0]}; weights for steps, pixels or "
            "outputs go into the loss, or into a custom loop with per_sample_loss"
        )
    return weight * tf.cast(tf.reshape(own, tf.shape(weight)), weight.dtype)


# --- the compiled losses ---


class _RowWise:
    """A compiled loss that lays weights (B,) along the batch, whatever the rank of its values.

    By itself Keras would lay them along T for values (B, T).
    """

    def __init__(self, loss: Any, name: str) -> None:
        self.loss, self.name = loss, name
        self.reduction = getattr(loss, "reduction", None)
        self.rank: int | None = None  # of its values before reduction, once they were seen

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        if sample_weight is not None and sample_weight.shape.rank == 1:
            if self.rank is None:
                self.rank = unreduced(self.loss)(y_true, y_pred).shape.rank
            if self.rank == 0:
                raise ValueError(
                    f"the loss {self.name!r} gives one number for the whole batch, so its samples cannot be told "
                    "apart; let it end in a mean over the last axis, ops.mean(..., axis=-1), or be made with "
                    "reduction=None inside"
                )
            sample_weight = tf.reshape(sample_weight, [-1] + [1] * (self.rank - 1))
        return self.loss(y_true, y_pred, sample_weight)


def _wrap_losses(compiled: Any) -> None:
    """Make every compiled loss row-wise, at once or as soon as Keras has built them."""
    if compiled is None:
        return
    if compiled.built:
        compiled._flat_losses = [
            entry._replace(loss=_RowWise(entry.loss, entry.name)) for entry in compiled._flat_losses
        ]
        return

    def build(*args: Any) -> None:
        del compiled.build
        compiled.build(*args)
        _wrap_losses(compiled)

    compiled.build = build


def _unwrap_losses(compiled: Any) -> None:
    if compiled is None:
        return
    compiled.__dict__.pop("build", None)
    compiled._flat_losses = [
        entry._replace(loss=entry.loss.loss) if isinstance(entry.loss, _RowWise) else entry
        for entry in compiled._flat_losses or []
    ] or compiled._flat_losses


def _flat_losses(model: keras.Model) -> list[Any]:
    return list(getattr(getattr(model, "_compile_loss", None), "_flat_losses", None) or [])


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
            f"losses with different reductions, {sorted(map(str, reductions))}, cannot be told apart; use one "
            "for all outputs"
        )
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return tf.constant(1.0) if sums else tf.cast(tf.shape(weight)[0] * replicas, tf.float32)
