"""Losses by extra forward passes: of all samples, or of those that were not seen for longest.

    losses = score_all(model, (x, y))                               # (N,) float32, in inference mode
    sampler = ImportanceSampler(len(losses), losses=losses)         # starts from them, without a first pass

    refresh = RefreshStalest(model, sampler, (x, y), batch_size=128, budget=0.1)
    model.fit(train, callbacks=[LossFeedback(model, sampler), refresh], shuffle=False)

A sampler learns the losses of what it draws, so a sample that once was easy is seldom looked at again, and what is
known of it is of a model long gone. ``RefreshStalest`` looks at such samples within a budget: with 0.1, one forward
pass over a batch for every ten steps, some 3 % more work, as a step is worth about three.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.forward import Float32s, Forward
from pipeline.losses import Loss
from pipeline.progress import counting
from pipeline.scores import SCORES
from pipeline.sources import as_source
from sampler import checks


class Scorer:
    """The losses of any samples of a source: ``Scorer(model, source)(index)``.

    Args:
        model: as it is at each call.
        source: what ``importance_dataset`` takes, of (x, y) or (x, y, sample_weight); the weights are not looked at.
            A ``tf.data.Dataset`` is read into memory here; to share that with the dataset that is trained on, make one
            source of it, ``as_source(dataset)``, and pass it to both.
        loss: what ``per_sample_loss`` takes; None is the loss that the model was compiled with.
        map_fn: called with each element, as that of ``importance_dataset``, to decode it.
        score: None, or the gradient norms that are wanted as well: ``"gradient_norm"`` or ``"last_layer"``, as for
            ``LossFeedback``.
        at: for these, the layer whose pre-activations are meant, or its name.

    Raises what ``as_source`` and ``Forward`` raise.
    """

    def __init__(
        self,
        model: keras.Model,
        source: Any,
        loss: str | keras.losses.Loss | Loss | None = None,
        *,
        map_fn: Callable[..., Any] | None = None,
        score: str | None = None,
        at: str | keras.layers.Layer | None = None,
    ) -> None:
        self._source = as_source(source)
        first = tf.data.Dataset.from_tensor_slices(self._packed(np.zeros(1, np.int64)))
        self._mapped = None if map_fn is None else _each(map_fn, first)
        spec = (first if map_fn is None else first.map(map_fn)).batch(1).element_spec
        self._forward = Forward(model, spec, loss, score=score, at=at)

    def __len__(self) -> int:
        return len(self._source)

    def __call__(self, index: npt.NDArray[np.int64]) -> tuple[Float32s, Float32s | None]:
        """``(losses, norms)`` of the samples ``index`` (m,), (m,) float32 each; norms None unless ``scored``."""
        batch = self._packed(index)
        return self._forward(*(batch if self._mapped is None else self._mapped(batch))[:2])

    def _packed(self, index: npt.NDArray[np.int64]) -> Any:
        """The elements ``index`` of the source, as a batch."""
        taken = [tf.constant(part) for part in self._source.take(index)]
        return self._source.pack(taken, tf.constant(index))


def _each(map_fn: Callable[..., Any], elements: tf.data.Dataset) -> Callable[[Any], Any]:
    """A compiled function that maps the elements of a batch one by one."""
    mapped = elements.map(map_fn).element_spec
    call = (lambda element: map_fn(*element)) if type(elements.element_spec) is tuple else map_fn
    signature = [elements.batch(1).element_spec]
    return tf.function(lambda batch: tf.map_fn(call, batch, fn_output_signature=mapped), input_signature=signature)


def score_all(
    model: keras.Model,
    source: Any,
    loss: str | keras.losses.Loss | Loss | None = None,
    *,
    batch_size: int = 512,
    map_fn: Callable[..., Any] | None = None,
) -> Float32s:
    """The loss of every sample in inference mode: (N,) float32, in the order of the index.

    Args:
        model, source, loss, map_fn: as for ``Scorer``.
        batch_size: samples a forward pass, ≥ 1.

    For the reference of ``priorities.relative``, by a model that was trained on other data; and for ``losses=`` of a
    sampler. One forward pass over the data, whose progress is told where it is long. A loss that is not
    finite is given as it is.
    """
    checks.whole("batch_size", batch_size, least=1)
    scorer = Scorer(model, source, loss, map_fn=map_fn)
    losses = np.empty(len(scorer), np.float32)
    with counting("scoring all samples", len(losses)) as tell:
        for first in range(0, len(losses), batch_size):
            index = np.arange(first, min(first + batch_size, len(losses)))
            losses[index] = scorer(index)[0]
            tell(int(index[-1]) + 1)
    return losses


class RefreshStalest(keras.callbacks.Callback):
    """Scores the samples that were not seen for longest, and tells the sampler, within a budget.

    Args:
        model: the model that is fitted, compiled or with ``loss`` given.
        sampler: of the dataset that is passed to ``fit``.
        source: the samples in the order of its index, as for ``importance_dataset``.
        batch_size: B ≥ 1, that of the training, and of a forward pass here.
        budget: ≥ 0, samples scored here for each that is trained on: after s steps floor(budget · (s - start)) batches
            were scored in all.
        start: steps before anything is scored; None: ceil(N / B), as the first pass sees every sample itself. 0 is for
            a sampler that has no first pass, or has it behind.
        loss, map_fn: as for ``Scorer``.
        score: ``"gradient_norm"`` or ``"last_layer"`` tells the sampler gradient norms too, as ``LossFeedback`` does;
            None is ``"last_layer"`` where the sampler's priority asks for them. It must be the same as that one's.
        at: the layer whose pre-activations these are of, or its name.

    Put it behind ``LossFeedback``, so that the losses of the step just done are known when the stalest are chosen. What
    it tells counts at once, under a ``feedback_lag`` too. When it scores depends on the number of steps alone; which
    samples are the stalest then, and which draws know of it, also on how many were drawn ahead. For a run that
    comes out the same bit for bit let nothing be drawn ahead: ``importance_dataset(..., prefetch=0)``.

    ``scored`` is the number of samples scored so far. Raises ``ValueError`` where the source is not of the sampler's
    size, and, when ``fit`` begins, what ``Scorer`` raises.
    """

    def __init__(
        self,
        model: keras.Model,
        sampler: Any,
        source: Any,
        *,
        batch_size: int,
        budget: float = 0.1,
        start: int | None = None,
        loss: str | keras.losses.Loss | Loss | None = None,
        map_fn: Callable[..., Any] | None = None,
        score: str | None = None,
        at: str | keras.layers.Layer | None = None,
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.scored = 0
        self._batch_size = checks.whole("batch_size", batch_size, least=1)
        self._budget = checks.number("budget", budget, 0.0, np.inf, top_open=True)
        epoch = math.ceil(len(sampler) / batch_size)
        self._start = epoch if start is None else checks.whole("start", start, least=0)
        if score is not None and score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(map(repr, SCORES))} or None, got {score!r}")
        self._source = as_source(source)
        if len(self._source) != len(sampler):
            raise ValueError(
                f"the source has {len(self._source)} elements, the sampler {len(sampler)} samples; they must be the "
                "same, in the same order"
            )
        self._score = score
        self._make_scorer = functools.partial(Scorer, model, self._source, loss, map_fn=map_fn, at=at)
        self._steps, self._batches = 0, 0  # done in all
        self._last = -1  # the number of the last step of this epoch

    @functools.cached_property
    def _scorer(self) -> Scorer:
        wanted = "last_layer" if getattr(self.sampler, "_scored", False) else None
        return self._make_scorer(score=self._score or wanted)

    def set_model(self, model: keras.Model) -> None:
        """Compile the forward pass, before the training begins; by now the sampler knows its priority."""
        super().set_model(model)
        self._scorer  # noqa: B018  # made here

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin to count the steps of an epoch."""
        self._last = -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Score what is due; ``batch`` is the number of the last step of a group of ``steps_per_execution``.

        The last group of an epoch may be cut short, and Keras counts it whole.
        """
        last = min(batch, (self.params.get("steps") or np.inf) - 1)
        self._steps += int(last) - self._last
        self._last = int(last)
        # The little on top makes floor(0.29 * 100) 29.
        due = math.floor(self._budget * max(self._steps - self._start, 0) + 1e-9)
        while self._batches < due:
            self._batches += 1
            self.refresh()

    def state_dict(self) -> dict[str, int]:
        """How far it is."""
        return {"steps": self._steps, "batches": self._batches, "scored": self.scored}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take back what ``state_dict`` gave."""
        names = ("steps", "batches", "scored")
        self._steps, self._batches, self.scored = (checks.whole(name, state[name], least=0) for name in names)

    def refresh(self) -> None:
        """Score the stalest batch now."""
        index = self.sampler.stalest(self._batch_size)
        losses, norms = self._scorer(index)
        self.sampler.update(index, losses, score=norms)
        self.scored += index.size
