"""What ``model.compile`` made: its losses and metrics, given weights that lie along the batch.

    rowwise(model, importance)                  # until ``restore(model)``: weights (B,) for losses of any rank
    weigh_metrics(model, importance)            # the same for metrics=

Keras lays weights (B,) along T for values (B, T), silently where B = T, and gives what is in ``metrics=`` no weights at
all. Both are mended from outside; nothing of the user's model is changed for good.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from pipeline.losses import unreduced
from pipeline.workers import apart

logger = logging.getLogger("pipeline")

Importance = Callable[[], tf.Tensor | None]
MEANS = ("sum_over_batch_size", "mean")


class _RowWise:
    """A compiled loss that lays weights (B,) along the batch, whatever the rank of its values.

    Of a prediction with a mask Keras takes the mean over what counts in the batch. Draws that prefer samples of many
    steps have more of these than the data set has, so here their number is weighted as well.
    """

    def __init__(self, loss: Any, name: str, importance: Importance) -> None:
        self.loss, self.name, self.importance = loss, name, importance
        self.reduction = getattr(loss, "reduction", None)
        self.rank: int | None = None  # of its values before reduction, once they were seen

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        if isinstance(sample_weight, dict):
            raise ValueError(
                "the model is evaluated on batches that carry sampling; validation_data and evaluate take the dataset "
                "as it was before it was wrapped, batched"
            )
        if sample_weight is not None and sample_weight.shape.rank == 1:
            if self.rank is None:
                self.rank = unreduced(self.loss)(y_true, y_pred).shape.rank
            if self.rank == 0:
                raise ValueError(
                    f"the loss {self.name!r} gives one number for the whole batch, so its samples cannot be told "
                    "apart; let it end in a mean over the last axis, ops.mean(..., axis=-1), or be made with "
                    "reduction=None inside"
                )
            sample_weight = _along_batch(sample_weight, self.rank)
        value, share = self.loss(y_true, y_pred, sample_weight), self._of_those_that_count(y_pred)
        return value if share is None else value * tf.cast(share, value.dtype)

    def _of_those_that_count(self, y_pred: Any) -> tf.Tensor | None:
        """The number of steps in the batch that count, over their weighted number, which Keras should divide by."""
        weight, mask = self.importance(), getattr(y_pred, "_keras_mask", None)
        if weight is None or mask is None or self.reduction not in MEANS:
            return None
        counted = tf.reduce_sum(tf.cast(mask, weight.dtype), axis=list(range(1, mask.shape.rank)))
        return tf.math.divide_no_nan(tf.reduce_sum(counted), tf.reduce_sum(weight * counted))


def _along_batch(weight: tf.Tensor, rank: int) -> tf.Tensor:
    """(B,) as (B, 1, ..., 1)."""
    return tf.reshape(weight, [-1] + [1] * (rank - 1))


def rowwise(model: keras.Model, importance: Importance) -> None:
    """Make every compiled loss row-wise, at once or as soon as Keras has built them.

    ``importance`` gives the weights 1/(N p) of the batch at hand, (B,), or None outside a training step.
    """
    compiled = getattr(model, "_compile_loss", None)
    if compiled is None:
        return
    if compiled.built:
        compiled._flat_losses = [
            entry._replace(loss=_RowWise(entry.loss, entry.name, importance)) for entry in compiled._flat_losses
        ]
        return

    def build(*args: Any) -> None:
        del compiled.build
        compiled.build(*args)
        rowwise(model, importance)

    compiled.build = build


def restore(model: keras.Model) -> None:
    """Put the losses and metrics back that Keras made."""
    metrics = getattr(model, "_compile_metrics", None)
    if metrics is not None:
        metrics.__dict__.pop("build", None)
        if metrics.built:
            for entry in filter(None, [*metrics._flat_metrics, *metrics._flat_weighted_metrics]):
                entry.__dict__.pop("update_state", None)
    compiled = getattr(model, "_compile_loss", None)
    if compiled is None:
        return
    compiled.__dict__.pop("build", None)
    compiled._flat_losses = [
        entry._replace(loss=entry.loss.loss) if isinstance(entry.loss, _RowWise) else entry
        for entry in compiled._flat_losses or []
    ] or compiled._flat_losses


def flat_losses(model: keras.Model) -> list[Any]:
    """The losses of all outputs, as Keras keeps them; none where ``compute_loss`` is the user's own."""
    return list(getattr(getattr(model, "_compile_loss", None), "_flat_losses", None) or [])


def is_a_sum(model: keras.Model) -> bool:
    """Whether the loss of a batch is the sum over its samples, not their mean; ``ValueError`` where that is unclear."""
    reductions = {getattr(entry.loss, "reduction", None) for entry in flat_losses(model)}
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
    return bool(sums)


def kind_of_loss(model: keras.Model) -> str | None:
    """``"cross-entropy"`` or ``"squared error"`` where that is what all compiled losses are, by their names; else None.

    A focal loss is neither: it weighs a cross-entropy by something of its own.
    """
    given = getattr(getattr(model, "_compile_loss", None), "_user_loss", None)
    kinds = {_kind(loss) for loss in tf.nest.flatten(given)}
    return kinds.pop() if len(kinds) == 1 else None


def _kind(loss: Any) -> str | None:
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    name = getattr(loss, "__name__", type(loss).__name__).lower().replace("_", "")
    if "crossentropy" in name and "focal" not in name:
        return "cross-entropy"
    return "squared error" if name == "meansquarederror" else None


def weigh_metrics(model: keras.Model, importance: Importance) -> None:
    """Give the ``metrics=`` of ``compile`` the weights of ``importance``, at once or when Keras has built them."""
    compiled = getattr(model, "_compile_metrics", None)
    if compiled is None:
        return
    if compiled.built:
        for entries, weights in ((compiled._flat_metrics, importance), (compiled._flat_weighted_metrics, None)):
            for entry in filter(None, entries):
                object.__setattr__(entry, "update_state", _Weighed(entry, weights))
        return

    def build(*args: Any) -> None:
        del compiled.build
        compiled.build(*args)
        weigh_metrics(model, importance)

    object.__setattr__(compiled, "build", build)


class _Weighed:
    """``update_state`` of an output's metrics, with weights (B,) in the shape that suits each.

    Keras would lay them along T for some. A metric that takes no weights, or gives one number for the whole batch, sees
    the batch as it was drawn, and that is said once.
    """

    def __init__(self, metrics: Any, importance: Importance | None) -> None:
        self.metrics, self.importance = metrics, importance
        self.without: set[str] = set()  # the metrics that go without

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        weight = sample_weight if self.importance is None else self.importance()
        for metric in self.metrics.metrics:
            if weight is None or getattr(weight.shape, "rank", None) != 1:
                _update(metric, y_true, y_pred, weight)
            elif not self._update(metric, y_true, y_pred, weight) and metric.name not in self.without:
                self.without.add(metric.name)
                logger.warning("the metric %r takes no weights; it is that of the batches drawn", metric.name)

    def _update(self, metric: Any, y_true: Any, y_pred: Any, weight: tf.Tensor) -> bool:
        """Whether the metric took weights."""
        for laid in _laid(weight, y_pred) if _takes_weights(metric) else ():
            try:
                metric.update_state(y_true, y_pred, sample_weight=laid)
            except (ValueError, TypeError, tf.errors.InvalidArgumentError):
                continue
            return True
        metric.update_state(y_true, y_pred)
        return False


def _update(metric: Any, y_true: Any, y_pred: Any, weight: Any) -> None:
    if weight is None and not _takes_weights(metric):
        metric.update_state(y_true, y_pred)
    else:
        metric.update_state(y_true, y_pred, sample_weight=weight)


def _takes_weights(metric: Any) -> bool:
    if "int" in str(metric.dtype):  # as IoU by default: weights would be cut to whole numbers
        return False
    parameters = inspect.signature(metric.update_state).parameters
    return "sample_weight" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def _laid(weight: tf.Tensor, y_pred: tf.Tensor) -> Iterator[tf.Tensor]:
    """The shapes in which a metric may want weights (B,): of every prediction, of every number, of every sample."""
    rank = y_pred.shape.rank
    if rank is not None and rank > 2:
        along, shape = _along_batch(weight, rank), tf.shape(y_pred)
        yield tf.broadcast_to(along[..., 0], shape[:-1])
        yield tf.broadcast_to(along, shape)
    yield weight


def build_from_spec(model: keras.Model) -> None:
    """Under a distribution strategy Keras takes a batch to build the model by, knows no weights in a dict, and over
    several processes cannot do it at all.

    Here it is built by the dataset's element spec: no batch is drawn for it, and the importance weights stand for the
    dict. Nothing is changed for a model without a strategy, nor, in one process, for batches without ``sampling``.
    """
    if model._distribute_strategy is None or "_maybe_symbolic_build" in vars(model):
        return
    original = model._maybe_symbolic_build

    def build(iterator: Any = None, data_batch: Any = None) -> None:
        spec = None if iterator is None else _of_one(iterator.data_adapter.get_tf_dataset().element_spec)
        *data, last = spec if isinstance(spec, tuple) else (spec,)
        sampled = isinstance(last, dict) and "weight" in last
        if spec is None or not (sampled or apart(model.distribute_strategy)):
            original(iterator=iterator, data_batch=data_batch)
            return
        x, y, weight = (*(*data, None)[:2], last["weight"]) if sampled else (*data, last, None, None)[:3]
        with model.distribute_strategy.scope():
            model._symbolic_build(data_batch=(x, y, weight))

    object.__setattr__(model, "_maybe_symbolic_build", build)


def _of_one(spec: Any) -> Any:
    """The spec of one replica's elements."""
    return tf.nest.map_structure(lambda part: getattr(part, "_value_specs", (part,))[0], spec)


def with_axis(logs: Any) -> Any:
    """What a step returns, where Keras wants it: over several processes it takes the mean along a first axis, which
    its own steps do not give.
    """
    if not apart(tf.distribute.get_strategy()):
        return logs
    return tf.nest.map_structure(lambda value: tf.convert_to_tensor(value)[None], logs)
