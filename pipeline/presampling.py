"""Presampling: score a larger uniform batch by a forward pass, and draw the batch to train on from it.

    presampler = Presampler(model, batch_size=128)                  # of a compiled model
    train = stream.apply(presampler)                                # any unbatched dataset of (x, y), endless ones too
    model.fit(train, steps_per_epoch=100, callbacks=[LossFeedback(model, presampler)], shuffle=False)

Katharopoulos & Fleuret, 2018, *Not all samples are created equal: deep learning with importance sampling*, algorithm 1
without its switch, which trains on plain uniform batches until scoring seems to pay: here every batch is scored.

1. Take M = presample · B samples as they come; the stream is their order, so a dataset should be shuffled before.
2. Score each by a forward pass: ĝ, the norm of its loss's gradient at the last layer's pre-activations.
3. Draw B of them with p = (1-λ) ĝ/Σĝ + λ/M, each with weight w = 1/(M p).

Then E[(1/B) Σ w ℓ] = (1/M) Σ ℓ for any scores, so the weighted batch is an unbiased estimate of what the whole of the M
would have given. Nothing is remembered of a sample, so it needs no index, no second look and no store: it is the way
for streams, and for augmentation at random, which is done before and is part of what is scored.

What it costs is the forward pass of M samples a step, beside the step's own of B and the backward pass, which takes
about two. With ``presample=3`` a step takes about twice as long as one of B uniform samples; it pays where the
estimate's variance falls by more. A sampler with a store pays nothing of that and knows older losses.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.forward import Forward
from pipeline.losses import Loss
from pipeline.memory import Array, weakly
from pipeline.worker import inside
from sampler import checks, draws, priorities, weights
from sampler.stores import ProportionalStore

SCHEMES = ("systematic", "stratified", "multinomial")
RECENT_DRAWS = 100  # what ``summary`` means by recent

Float64s = npt.NDArray[np.float64]


class Presampler:
    """Draws from a stream: the transformation for ``dataset.apply``, and what ``LossFeedback`` is given as the sampler.

    Args:
        model: the model that is trained, or another one that scores for it. It is read each time a batch is made, in
            inference mode, and is not changed.
        batch_size: B ≥ 1, samples trained on a step.
        presample: M / B ≥ 1, how many are scored for each that is trained on. The greater, the less variance, and the
            longer the forward pass.
        loss: what ``per_sample_loss`` takes. None: the loss that the model was compiled with, before this is applied.
        priority: the score. ``"gradient_norm"`` is the paper's ĝ, exact for any loss; ``"loss"``, ``"sqrt"``,
            ``"bounded"``, ``"clipped"`` or a function of the losses as for ``ImportanceSampler``.
        at: for ``"gradient_norm"`` the layer whose pre-activations are meant, or its name; subclassed models need it.
        uniform_fraction: λ in [0, 1]. No weight exceeds 1/λ. The scores are fresh, so it may be less than where they
            are remembered; 0 is the paper's.
        scheme: ``"systematic"``, ``"stratified"`` or ``"multinomial"``, the paper's independent draws.
        seed: fixes the draws. With the model's own seed the whole training is reproduced, as long as nothing is made
            ahead of it (no ``prefetch``, and one step an execution).

    Elements of the result are ``(x, y, sampling)`` as those of ``importance_sampling``. ``index`` is the sample's place
    in this iteration over the stream, ``probability`` that of a draw within the M, and N stands for M: ``len`` of this
    object is M, so that w = 1/(N p).

    An epoch over a dataset of N samples is ceil(N / M) batches: all N are scored, about 1/presample of them are trained
    on. The last batch is drawn from what is left of the N, with weights that make its mean that of the rest. With
    ``dataset.repeat()`` before, no rest comes up. An endless dataset stays endless.

    A batch is made when it is asked for, by the model as it then is, so scores are never old; ``prefetch(k)`` on the
    result makes k of them ahead, on other cores while the step is done, with scores up to k steps old. The probability
    is that of the draw made, so neither biases.

    A score that is not finite counts as the mean of the others. Applying it raises ``ValueError`` for elements that are
    not (x, y) or (x, y, sample_weight), and for a model or a loss of several outputs; ``TypeError`` for sparse tensors.
    """

    # What ``LossFeedback`` asks of a sampler.
    uses_feedback = False
    wants_score = False
    fully_corrected = True
    feedback_lag = None

    def __init__(
        self,
        model: keras.Model,
        batch_size: int,
        *,
        presample: float = 3.0,
        loss: str | keras.losses.Loss | Loss | None = None,
        priority: str | priorities.Priority = "gradient_norm",
        at: str | keras.layers.Layer | None = None,
        uniform_fraction: float = 0.1,
        scheme: str = "systematic",
        seed: int | None = None,
    ) -> None:
        self.batch_size = checks.whole("batch_size", batch_size, least=1)
        self._candidates = round(checks.number("presample", presample, 1.0, np.inf, top_open=True) * batch_size)
        self._priority = priorities.resolve(priority)
        if getattr(self._priority, "keyed", False):
            raise ValueError(
                f"a stream has no index, which priority={priorities.describe(self._priority)} needs; use "
                "importance_sampling with a sampler"
            )
        self._uniform_fraction = checks.number("uniform_fraction", uniform_fraction, 0.0, 1.0)
        if scheme not in SCHEMES:  # the last batch may have fewer than B candidates: none without replacement
            raise ValueError(f"scheme must be one of {', '.join(map(repr, SCHEMES))}, got {scheme!r}")
        self._scheme = draws.resolve(scheme)
        if seed is not None:
            checks.whole("seed", seed, least=0)
        self._entropy = np.random.SeedSequence(seed).entropy
        self._scored = bool(getattr(self._priority, "scored", False))
        self._model, self._loss, self._at = model, loss, at
        self._lock = threading.RLock()
        self._counts = {"step": 0, "scored": 0, "updates": 0, "nonfinite": 0}
        self._recent: deque[tuple[float, ...]] = deque(maxlen=RECENT_DRAWS)  # B, Σw, Σw², max w, mean priority
        self.seconds = 0.0  # spent in scoring and drawing so far

    def __len__(self) -> int:
        return self._candidates

    @property
    def step(self) -> int:
        """How many batches were drawn; the step of the next one."""
        return self._counts["step"]

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """The dataset of batches. Builds the model where that was not done, and compiles the forward pass."""
        if any(isinstance(part, tf.SparseTensorSpec) for part in tf.nest.flatten(dataset.element_spec)):
            raise TypeError("samples cannot be chosen out of a batch of sparse tensors; map them by tf.sparse.to_dense")
        batches = dataset.batch(self._candidates)
        score = "gradient_norm" if self._scored else None
        forward = Forward(self._model, batches.element_spec, self._loss, score=score, at=self._at)
        stream = _Stream(self, forward, batches.element_spec[:2])
        train = batches.enumerate().map(
            lambda place, *element: stream.drawn(place, element[0] if len(element) == 1 else element)
        )
        count = int(batches.cardinality())
        if count != tf.data.UNKNOWN_CARDINALITY:
            train = train.apply(tf.data.experimental.assert_cardinality(count))
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False  # or scores would be older than said
        train = train.with_options(options)
        train.stream = stream  # which the functions in the graph do not keep alive
        return train

    def choose(self, losses: Array, norms: Array | None) -> tuple[Array, Array, Array, int]:
        """``(places, probability, weight, step)`` of B draws among m ≤ M samples.

        Args:
            losses: (m,) float.
            norms: (m,) float, their gradients' norms, for a priority that asks for them.

        places is (B,) int64 in [0, m); probability (B,) float64, times m/M, so that w = 1/(M p) is 1/(m p) of what is
        left at the end of a stream.
        """
        with self._lock:
            store = ProportionalStore(losses.size)
            store.fill(self._scores(losses, norms))
            key = np.random.SeedSequence(self._entropy, spawn_key=(self._counts["step"],))
            generator = np.random.default_rng(key)
            places, probability = self._scheme(
                store, self.batch_size, uniform_fraction=self._uniform_fraction, generator=generator
            )
            order = generator.permutation(self.batch_size)  # replicas take parts of a batch
            places, probability = places[order], probability[order] * (losses.size / self._candidates)
            weight = weights.importance_weight(probability, self._candidates)
            self._recent.append((weight.size, weight.sum(), np.square(weight).sum(), weight.max(), store.mean()))
            self._counts["scored"] += losses.size
            self._counts["step"] += 1
            return places, probability, weight, self._counts["step"] - 1

    def _scores(self, losses: Array, norms: Array | None) -> Float64s:
        """(m,) priorities, ≥ 0."""
        values = np.asarray(losses if norms is None else norms, np.float64)
        finite = np.isfinite(values) & np.isfinite(losses)
        scores = np.ones(values.size)
        if finite.any():
            scores[finite] = priorities.apply(self._priority, values[finite])
            scores[~finite] = scores[finite].mean()
        if isinstance(self._priority, priorities.Remembering):
            self._priority.observe(values[finite])
        return scores

    def update(
        self,
        index: npt.ArrayLike,
        losses: npt.ArrayLike,
        step: npt.ArrayLike | None = None,
        score: npt.ArrayLike | None = None,
        mean_gradient_norm: float | None = None,
    ) -> None:
        """Count what was trained on; nothing else is learnt from it."""
        with self._lock:
            self._counts["updates"] += 1
            self._counts["nonfinite"] += int((~np.isfinite(np.asarray(losses))).sum())

    def state_dict(self) -> dict[str, Any]:
        """The counts, the seed and the recent draws, as plain things. Where the stream is, is not known here: whoever
        goes on gives a stream that does, ``stream.skip(step * len(presampler))`` say.
        """
        with self._lock:
            return {
                "counts": dict(self._counts),
                "entropy": int(self._entropy),  # type: ignore[arg-type]
                "recent": np.reshape(np.array(self._recent, np.float64), (-1, 5)),
                "priority": self._priority.state_dict() if isinstance(self._priority, priorities.Remembering) else None,
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave; ``ValueError``, ``TypeError`` or ``KeyError``, and no change, else."""
        counts = {name: checks.whole(name, state["counts"][name], least=0) for name in self._counts}
        recent = checks.array("recent", state["recent"], np.empty((len(state["recent"]), 5)))
        entropy = checks.whole("entropy", state["entropy"], least=0)
        with self._lock:
            if isinstance(self._priority, priorities.Remembering):
                self._priority.load_state_dict(state["priority"])
            self._counts, self._entropy = counts, entropy
            self._recent = deque(map(tuple, recent.tolist()), maxlen=RECENT_DRAWS)

    def summary(self) -> dict[str, int | float]:
        """As a plain dict: the counts, ``scored`` the samples that went through the forward pass, ``seen`` those of the
        M that a batch is drawn from, and of the recent draws the figures that samplers give.
        """
        with self._lock:
            size, total, squares, largest, mean = np.reshape(self._recent, (-1, 5)).T
            effective = weights.effective(float(total.sum()), float(squares.sum()))
            return {
                **self._counts,
                "seen": self._candidates if self.step else 0,
                "effective_sample_size": effective / max(size.size, 1),
                "effective_fraction": effective / max(float(size.sum()), 1.0),
                "max_weight": float(largest.max(initial=0.0)),
                "mean_priority": float(mean.mean()) if mean.size else 1.0,
            }


class _Stream:
    """A presampler at work on one dataset."""

    def __init__(self, presampler: Presampler, forward: Forward, structure: Any) -> None:
        self.presampler, self.forward, self.structure = presampler, forward, structure

    # --- in the graph ---

    def drawn(self, place: tf.Tensor, element: Any) -> Any:
        """The element made of the M samples ``element``, the batch number ``place`` of an iteration."""
        scored = tf.nest.flatten(element[:2], expand_composites=True)
        places, probability, weight, step = (
            tf.ensure_shape(part, [self.presampler.batch_size])
            for part in tf.numpy_function(_called(self.choose), scored, [tf.int64, tf.float32, tf.float32, tf.int64])
        )
        x, y, *own = tf.nest.map_structure(lambda part: tf.gather(part, places), element)
        index = place * len(self.presampler) + places
        sampling = {"index": index, "weight": weight, "probability": probability, "step": step}
        if own:
            (sampling["sample_weight"],) = own
        return x, y, sampling

    # --- outside it ---

    def choose(self, *scored: Array) -> tuple[Array, ...]:
        """Score, and draw."""
        start = time.perf_counter()
        x, y = tf.nest.pack_sequence_as(self.structure, list(map(tf.constant, scored)), expand_composites=True)
        losses, norms = self.forward(x, y)
        places, probability, weight, step = self.presampler.choose(losses, norms)
        self.presampler.seconds += time.perf_counter() - start
        return places, probability.astype(np.float32), weight.astype(np.float32), np.full_like(places, step)


def _called(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` for TensorFlow to call: it keeps no stream alive, and nobody is in it when the program ends."""
    held = weakly(method)

    def call(*arguments: Any) -> Any:
        with inside():
            return held(*arguments)

    return call
