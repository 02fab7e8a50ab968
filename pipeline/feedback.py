"""The losses of every training step, back to the sampler, from a compiled Keras model.

    model.compile("adam", loss="sparse_categorical_crossentropy")
    model.fit(train, epochs=5, callbacks=[LossFeedback(model, sampler)])

How it gets at the loss of each sample: the compiled loss is linear in the sample weights, and its gradient with
respect to them gives it, for next to nothing (:mod:`pipeline.steps`).

How it gets out of the compiled step: the step writes losses, index and step into small variables
(:mod:`pipeline.ring`), and the callback reads them after each batch. That works in graph mode, with XLA, several steps
per execution, mixed precision and eagerly, and over several replicas.

The methods in ``HOOKS`` are replaced on the instance while ``fit`` runs and put back when it ends; so are the compiled
losses (:mod:`pipeline.compiled`). A ``fit`` that died of an exception leaves them there until the next one begins.

In a loop of one's own, ``feed_back(sampler, sampling, losses)`` does the same in one line.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf

from pipeline import user_weights
from pipeline.advice import Advice
from pipeline.compiled import build_from_spec, is_a_sum, kind_of_loss, restore, rowwise, weigh_metrics, with_axis
from pipeline.dataset import iterations_begun
from pipeline.dynamics import TrainingDynamics
from pipeline.epochs import end_epoch, epoch_samples
from pipeline.figures import Figures
from pipeline.ring import Ring
from pipeline.scores import SCORES, GradientNorm, Watched
from pipeline.steps import Step

HOOKS = (
    "train_step",
    "test_step",
    "compute_loss",
    "compute_metrics",
    "_get_metrics_result_or_logs",
    "evaluate",
    "fit",
    "train_on_batch",
)
logger = logging.getLogger("pipeline")

TOGETHER = 8  # steps whose losses are read in one look, where draws do not wait for them
SHARE = 10  # and at most such a part of an epoch, as many as are drawn ahead


class LossFeedback(keras.callbacks.Callback):
    """Feeds the unweighted loss of each sample back to ``sampler``, and puts the weights into the loss.

    Args:
        model: the model that will be fitted, compiled with any loss that is linear in the sample weights.
        sampler: the sampler of the dataset that is passed to ``fit``.
        class_weight: ``{class: weight}``, as Keras's argument of that name, which it refuses beside a dataset with
            weights; for one output with labels (B,), (B, 1) or one-hot (B, K). A class without one has 1.
        score: what is fed back beside each loss, for a sampler with ``priority="gradient_norm"`` or with a gate:
            ``"gradient_norm"``, the norm of the loss's gradient with respect to the pre-activations of the last layer,
            or ``"last_layer"``, with respect to that layer's weights, where it is a dense one on (B, d); the same as
            the first elsewhere. None: ``"last_layer"`` where the sampler wants scores and the layer can be told; with
            ``priority="auto"``, which becomes that, or else ``"bounded"`` for cross-entropies, ``"sqrt"`` for
            squared errors and ``"loss"`` for others. With the score comes the norm of the batch's mean gradient, for
            the gate.
        at: the layer whose pre-activations are meant, or its name: for subclassed models, and models of several
            outputs. A layer without an activation is taken by its output.
        dynamics: is told every step's index, losses and weights 1/(N p), and keeps what each sample's loss did.

    The loss that comes back is without importance weights, and without the user's own sample and class weights:
    how hard a sample is does not depend on how much it shall count. ``fit`` trains on the product of all of them.
    Regularisers and ``add_loss`` are part of the training, not of a sample's loss.

    What ``fit`` reports estimates the whole data set, not the batches drawn: the loss, and all compiled metrics, are
    weighted by 1/(N p), whatever β the sampler trains with. A metric that is a mean is the ratio Σ w m / Σ w, whose
    bias falls with the number of batches. A metric that takes no weights, and what a ``train_step`` of the user's own
    tracks by itself, is that of the batches drawn; so is, with β < 1, the loss of a single output.

    The history and the logs of every epoch have, beside these,

    ===============================  ==================================================================================
    ``sampling/effective_fraction``  effective sample size of the recent draws over their number, 0 to 1
    ``sampling/max_weight``          the largest importance weight of the recent draws
    ``sampling/gain``                what the epoch's draws were worth: the second moment of the gradient's proxy
                                     under uniform draws over that under the draws made; the proxy is the score where
                                     there is one, else 1 - e^-ℓ for cross-entropies and √ℓ for other losses
    ``sampling/unseen``              the share of samples without a finite loss yet, 0 to 1
    ``sampling/milliseconds``        that draws and updates took the sampler, a step
    ``sampling/gate_open``           of a sampler with a gate: 1 while draws are by priority, else 0
    ``sampling/gate_gain``           what the gate estimates them to be worth, over uniform ones
    ``sampling/gate_changed``        the step of its last change, -1 before any
    ===============================  ==================================================================================

    Raises ``ValueError``, before the first step is done, for a loss that ignores weights, that gives one number for the
    whole batch or that divides by the sum of the weights; for a ``feedback_lag`` smaller than
    ``steps_per_execution``; for a dataset whose batches carry no ``sampling``; and where no layer's pre-activations can
    be told. After the first step: for batches of another sampler, and losses that the priority cannot take.
    """

    def __init__(
        self,
        model: keras.Model,
        sampler: Any,
        *,
        class_weight: dict[int, float] | None = None,
        score: str | None = None,
        at: str | keras.layers.Layer | None = None,
        dynamics: TrainingDynamics | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, keras.Model) or isinstance(sampler, keras.Model):
            raise TypeError(
                f"LossFeedback takes the model and then the sampler, got {type(model).__name__} and "
                f"{type(sampler).__name__}"
            )
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                f"LossFeedback needs Keras's TensorFlow backend, found {keras.backend.backend()!r}; set "
                "KERAS_BACKEND=tensorflow"
            )
        if score is not None and score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(map(repr, SCORES))} or None, got {score!r}")
        self._fitted = model
        self.sampler = sampler
        self.dynamics = dynamics
        self._class_weight = None if class_weight is None else user_weights.class_table(class_weight)
        self._originals: dict[str, Callable[..., Any]] = {}
        self._before: dict[str, Any] = {}  # of them, what the user had set on the instance
        self._own = threading.local()  # the step that is being traced or run; each replica has a thread
        self._ring: Ring | None = None
        self._checked = False  # whether a first step is over
        self._ended = 0  # calls of ``on_train_batch_end`` in this fit
        self._together = 1  # of them there is one look at the ring in so many
        self._begun: int | None = None  # iterations over the sampler's draws, before this fit
        self._evaluating = 0  # how deep in ``evaluate``
        self._figures = Figures(sampler)
        self._asked = score is not None or getattr(sampler, "_scored", False)  # else what has no score goes without
        self._gradient_norm = None
        if self._asked or getattr(sampler, "wants_score", False) or getattr(sampler, "auto", False):
            self._gradient_norm = GradientNorm(model, at, weights=score != "gradient_norm")
        build_from_spec(model)

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
        self._figures.bounded = kind_of_loss(model) == "cross-entropy"  # it may be compiled since this was made
        if getattr(self.sampler, "auto", False):
            self.sampler.suit(self._suitable())

    def set_params(self, params: dict[str, Any]) -> None:
        """Let the history say how its metrics are weighted."""
        super().set_params(params)
        if params is not None:
            params["metrics_weighted_by"] = "1/(N p)"

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the hooks in place; ``fit`` has made its training function just before, which is made anew."""
        self._install()
        self._build_optimizer()
        self._begun = iterations_begun(self.sampler)
        self._fitted.make_train_function(force=True)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin to count."""
        self._figures.begin()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Hand over the losses of the steps just done, several at a time; those of the first step at once."""
        if self._ended % self._together == 0:
            self._drain()
        self._ended += 1
        end_epoch(self._fitted, self.sampler, batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Hand over what an interrupted group of steps left."""
        self._drain()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the model back as it was."""
        self._drain()
        self._remove()

    def state_dict(self) -> dict[str, Any]:
        """What this epoch has counted so far, for the logs, and the advice: numbers and arrays."""
        self._drain()
        return self._figures.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave, after the epoch has begun; before it, only the advice stays."""
        self._figures.load_state_dict(state)

    def of_epoch(self) -> dict[str, float]:
        """What the draws of the epoch so far were worth, by the steps trained on alone: see ``Figures.of_epoch``."""
        self._drain()
        return self._figures.of_epoch()

    @property
    def advice(self) -> Advice:
        """What draws by some other priorities would have been worth, so far, where scores came with the losses."""
        return self._figures.advice

    # --- the hooks ---

    def _check_lag(self) -> None:
        lag, together = self.sampler.feedback_lag, self._fitted.steps_per_execution
        if lag is not None and lag < together:
            raise ValueError(
                f"feedback_lag={lag} is smaller than steps_per_execution={together}: a draw would wait for losses that "
                f"come back only after it; raise feedback_lag to {together} or more"
            )

    def _suitable(self) -> str:
        """The priority for ``"auto"``: the gradient's norm where it can be had, else what is nearest to it."""
        assert self._gradient_norm is not None
        kind = kind_of_loss(self._fitted)
        if kind is not None and self._gradient_norm.can_be_told():
            self._asked = True
            return "gradient_norm"
        return {"cross-entropy": "bounded", "squared error": "sqrt"}.get(kind or "", "loss")

    def _install(self) -> None:
        self._remove()
        model = self._fitted
        if isinstance(getattr(vars(model).get("train_step"), "__self__", None), LossFeedback):
            raise ValueError("another LossFeedback is at work on this model; give fit one of them")
        self._originals = {name: getattr(model, name) for name in HOOKS}
        self._before = {name: vars(model)[name] for name in HOOKS if name in vars(model)}
        if self._ring is not None:
            self._ring.forget()
        self._checked = False
        self._ended = 0
        hooks: dict[str, Callable[..., Any]] = {
            "train_step": self._train_step,
            "test_step": _axis_given(self._originals["test_step"]),  # which Keras may keep compiled
            "compute_loss": self._compute_loss,
            "compute_metrics": self._compute_metrics,
            "_get_metrics_result_or_logs": self._logs,
            "evaluate": self._evaluate,
            "fit": functools.partial(self._begin_anew, "fit"),
            "train_on_batch": functools.partial(self._begin_anew, "train_on_batch"),
        }
        for name, hook in hooks.items():  # past Keras's own __setattr__, which would track what is set
            object.__setattr__(model, name, hook)
        rowwise(model, self._importance)
        weigh_metrics(model, self._importance)
        if self._tracks_loss():
            object.__setattr__(model._loss_tracker, "update_state", self._track_loss)
        if self._gradient_norm is not None:
            try:
                self._gradient_norm.attach()
            except ValueError as error:
                self._go_without_scores(error)

    def _build_optimizer(self) -> None:
        """So that its variables are not made inside the trace of the first step, which would then be traced twice."""
        model, optimizer = self._fitted, self._fitted.optimizer
        plain = type(model).train_step is keras.Model.train_step  # else nobody knows what it optimizes
        if plain and model.built and optimizer is not None and not optimizer.built:
            with model.distribute_strategy.scope():
                optimizer.build(model.trainable_variables)

    def _remove(self) -> None:
        if self._originals:
            for name in HOOKS:
                self._fitted.__dict__.pop(name, None)
            vars(self._fitted).update(self._before)
            restore(self._fitted)
            if self._tracks_loss():
                self._fitted._loss_tracker.__dict__.pop("update_state", None)
            if self._gradient_norm is not None:
                self._gradient_norm.detach()
            self._fitted.train_function = None
        self._originals = {}

    def _begin_anew(self, name: str, *args: Any, **options: Any) -> Any:
        """``fit`` begins while the hooks are there: the last one died of an exception and left them."""
        if _is_running(type(self._fitted).fit, self._fitted):
            raise RuntimeError(
                f"{name} was called while fit with LossFeedback is at work on the same model; train another model "
                "there, or after fit"
            )
        self._remove()
        return getattr(self._fitted, name)(*args, **options)

    def _train_step(self, data: Any) -> Any:
        """The model's own train step, on the product of the weights; the losses go into the ring."""
        x, y, sampling = keras.utils.unpack_x_y_sample_weight(data)
        if sampling is None and isinstance(y, dict) and "index" in y and "weight" in y:
            y, sampling = None, y  # (x, sampling): inputs alone
        if not isinstance(sampling, dict) or not {"index", "weight", "probability", "step"} <= sampling.keys():
            raise ValueError(
                "the batches carry no sampling with index, weight, probability and step; wrap the dataset with "
                "dataset.apply(importance_sampling(sampler, batch_size)), or leave LossFeedback out"
            )
        if sampling["index"].shape.rank not in (None, 1):
            raise ValueError(
                f"sampling['index'] must have shape (B,), got {sampling['index'].shape}: the dataset is batched once "
                "more after importance_sampling, which gives batches already; remove batch(), and say batch_size there"
            )
        before = self._weights_before()
        with self._watching() as watched:
            self._own.step = step = Step(sampling, self._own_weight(sampling, y), self._unbiased(sampling), watched)
            try:
                logs = self._originals["train_step"]((x, y, step.weight))
            finally:
                self._own.step = None
        if step.losses is None:
            for variable, value in before:
                variable.assign(value)
            raise ValueError(
                "the model's train_step never called compute_loss, so the losses of its samples cannot be had; call "
                "self.compute_loss(x, y, y_pred, sample_weight) there, or use a custom loop with per_sample_loss"
            )
        self._write(step)
        return with_axis(logs)

    def _compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """The model's own loss; in a train step its gradient by the weights is kept."""
        step = self._current
        if step is None or step.losses is not None:
            return self._own_loss(x, y, y_pred, sample_weight, training)
        if sample_weight is None:
            raise ValueError(
                "the model's train_step called compute_loss without sample_weight, so the importance weights would be "
                "lost; pass it on: self.compute_loss(x, y, y_pred, sample_weight)"
            )
        loss = step.differentiated(
            lambda: self._own_loss(x, y, y_pred, sample_weight, training), sample_weight, lambda: is_a_sum(self._fitted)
        )
        if step.watched is not None:
            self._score(step, step.watched)
        return loss

    def _go_without_scores(self, error: ValueError) -> None:
        """Where nobody asked for them, and a gate is told."""
        if self._asked:
            raise error
        if getattr(self.sampler, "gated", False):
            logger.warning("the sampler's gate gets no scores, so draws stay uniform: %s", error)

    def _score(self, step: Step, watched: Watched) -> None:
        try:
            score = watched.norms(step.losses)
        except ValueError as error:
            self._go_without_scores(error)
            return
        step.scores = {"score": score}
        if getattr(self.sampler, "gated", False):
            step.scores["mean_norm"] = tf.fill(tf.shape(score), watched.mean_norm(step.unbiased))

    def _own_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool) -> tf.Tensor:
        options = {"training": training} if getattr(self._fitted, "_compute_loss_has_training_arg", True) else {}
        return self._originals["compute_loss"](x, y, y_pred, sample_weight, **options)

    def _compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The model's own metrics; weighted ones are given weights that estimate those of the whole data set."""
        step, own = self._current, self._originals["compute_metrics"]
        if step is None:
            return own(x, y, y_pred, sample_weight)
        return own(x, y, y_pred, step.for_report())

    def _track_loss(self, values: Any, *args: Any, **options: Any) -> Any:
        """The loss for the report, with what a partial correction, β < 1, leaves out."""
        step, tracker = self._current, self._fitted._loss_tracker
        if step is not None and step.losses is not None:
            values = values + tf.cast(step.left_out(), values.dtype)
        return type(tracker).update_state(tracker, values, *args, **options)

    def _logs(self, logs: Any) -> Any:
        """What ``fit`` reports of an epoch, for every callback whatever its place in the list."""
        logs = self._originals["_get_metrics_result_or_logs"](logs)
        if self._evaluating:
            return logs
        self._drain()
        return {**logs, **self._figures.logs()}

    def _evaluate(self, *args: Any, **options: Any) -> Any:
        self._evaluating += 1
        try:
            return self._originals["evaluate"](*args, **options)
        finally:
            self._evaluating -= 1

    @property
    def _current(self) -> Step | None:
        return getattr(self._own, "step", None)

    def _importance(self) -> tf.Tensor | None:
        return None if self._current is None else self._current.unbiased

    def _tracks_loss(self) -> bool:
        """Whether the loss that is reported needs a correction."""
        partial = not getattr(self.sampler, "fully_corrected", False)
        return partial and getattr(self._fitted, "_loss_tracker", None) is not None

    def _watching(self) -> contextlib.AbstractContextManager[Watched | None]:
        norm = self._gradient_norm
        return contextlib.nullcontext() if norm is None or not norm.attached else norm.watching()

    def _own_weight(self, sampling: dict[str, tf.Tensor], y: Any) -> tf.Tensor | None:
        """(B,) the user's own sample weights times the class weights, or None where there are neither."""
        own = user_weights.of_samples(sampling)
        if self._class_weight is None:
            return own
        classes = user_weights.of_classes(self._class_weight, y)
        return classes if own is None else own * classes

    def _unbiased(self, sampling: dict[str, tf.Tensor]) -> tf.Tensor:
        """(B,) 1/(N p), whatever β."""
        if getattr(self.sampler, "fully_corrected", False):
            return tf.stop_gradient(sampling["weight"])  # of which the loss's derivative is taken
        return 1.0 / (len(self.sampler) * tf.cast(sampling["probability"], tf.float32))

    def _weights_before(self) -> list[tuple[Any, Any]]:
        """The model's variables and their values, in the first step of an eager run: there a step that turns out to
        be of no use has been done already.
        """
        if self._checked or not tf.executing_eagerly():
            return []
        self._checked = True
        return [(variable, variable.numpy()) for variable in self._fitted.variables]

    # --- the way out of the compiled step ---

    def _write(self, step: Step) -> None:
        batch = step.losses.shape[0]
        if batch is None:
            raise ValueError(
                "the batch size is not known when the training step is compiled; give batches of one size, as "
                "importance_sampling does: no unbatch(), filter() or batch() without drop_remainder after it"
            )
        columns = {"losses": step.losses, "weight": step.unbiased, **step.scores}
        replicas = tf.distribute.get_replica_context()
        execution = max(self._fitted.steps_per_execution, 1)
        self._together = self._executions_together(execution, batch * replicas.num_replicas_in_sync)
        kind = (execution * self._together, tuple(columns), batch)
        if self._ring is None or self._ring.kind != kind:
            if self._ring is not None and tf.executing_eagerly():
                self._drain()  # batches of another size came before
            self._ring = replicas.merge_call(self._new_ring, args=kind)
        self._ring.write(columns, step.sampling["index"], step.sampling["step"])

    def _executions_together(self, execution: int, batch: int) -> int:
        """After how many executions, of so many steps each, the ring is looked at.

        A look takes as long as what is done with what it shows, so one for several steps halves the cost. Losses that
        come some steps later cost nothing: the draws of those steps are made already. Under a lag draws wait for them.
        """
        if self.sampler.feedback_lag is not None:
            return 1
        epoch = epoch_samples(self.sampler, len(self.sampler)) // batch
        return max(min(TOGETHER, epoch // SHARE) // execution, 1)

    def _new_ring(self, strategy: tf.distribute.Strategy, rows: int, columns: tuple[str, ...], batch: int) -> Ring:
        """Made by another thread: a variable that is made inside a trace has TensorFlow trace the step once more."""

        def make() -> Ring:
            with strategy.scope():
                return Ring(rows, columns, batch)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(make).result()

    def _drain(self) -> None:
        if self._ring is None:
            return
        for index, step, columns in self._ring.read():
            if step[0] >= self.sampler.step or self._begun == iterations_begun(self.sampler) is not None:
                raise ValueError(
                    f"the batch is of draw {step[0]}, but the sampler that LossFeedback was given has "
                    f"{len(self.sampler)} samples and has made {self.sampler.step} draws, none of them for this fit; "
                    "give it the sampler that the dataset was wrapped with"
                )
            score, norm = columns.get("score"), columns.get("mean_norm")
            more = {} if norm is None else {"mean_gradient_norm": norm[0]}
            self.sampler.update(index, columns["losses"], step=step, score=score, **more)
            self._figures.add(columns["losses"], columns["weight"], score)
            if self.dynamics is not None:
                self.dynamics.add(index, columns["losses"], columns["weight"])


def _axis_given(step: Callable[..., Any]) -> Callable[..., Any]:
    return lambda data: with_axis(step(data))


def _is_running(method: Any, owner: Any) -> bool:
    """Whether ``method`` of ``owner`` is on this thread's stack."""
    code, frame = inspect.unwrap(method).__code__, inspect.currentframe()
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("self") is owner:
            return True
        frame = frame.f_back
    return False
