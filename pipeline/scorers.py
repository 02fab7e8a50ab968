"""Workers that keep priorities fresh: each scores the stalest samples with the newest model, beside the training.

    store = {"num_samples": len(data), "shards": 2, "name": "mine"}     # options of a ShardedSampler
    sampler = ScoredSampler(**store)
    with Scorers(store, recipe, count=2) as scorers:                    # recipe() gives (model, source, loss)
        fresh = PublishWeights(sampler, scorers.publish)
        model.fit(train, callbacks=[LossFeedback(model, sampler), fresh], shuffle=False)
    scorers.summary()

As in Alain et al. (2015), *Variance Reduction in SGD by Distributed Importance Sampling*: the trainer publishes its
weights, a scorer looks at what nobody has looked at for longest, and what it finds goes to the store that the trainer
draws from::

    trainer ── weights, every second ──▶ board ── the newest ──▶ scorer k: the stalest of its shards, a forward pass
       ▲                                                           │
       └──── draws ──── shards ◀──── losses, with the step of the weights that made them

A loss counts where it is newer than what is known of the sample, whoever sends it, and weights are 1/(N p) of the p
that was drawn with: a scorer that is slow, or dead, makes priorities older, and no estimate biased. Ray is imported on
use.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

import keras
import numpy as np
import numpy.typing as npt

from pipeline.refresh import Scorer
from sampler import ShardedSampler, checks
from sampler.base import Int64s
from sampler.board import Board, News, Report, Tally
from sampler.ray_cluster import connect

BATCH = 512  # samples a forward pass
REST = 0.2  # seconds before a scorer that has nothing to do looks again
SHARE = 0.1  # of the trainer's time, the most that publishing takes
NICENESS = 15  # of a scorer, so that on a busy machine the trainer goes first
LAST_WORD = 10.0  # seconds in which scorers may end by themselves
AS_IT_IS = ("address", "snapshots", "snapshot_every", "max_restarts")  # of the store, which a scorer does not name
GONE = 60.0  # seconds for the board to answer, and for killed actors to be no more

Recipe = Callable[[], tuple[keras.Model, Any, Any]]
Weights = Sequence[npt.NDArray[Any]]
Losses = Callable[[Int64s], tuple[npt.NDArray[Any], npt.NDArray[Any] | None]]

logger = logging.getLogger("pipeline")


class ScoredSampler(ShardedSampler):
    """A ``ShardedSampler`` that knows which model its losses are of.

    Args and errors are those of ``ShardedSampler``.
    """

    model_step = 0  # of the next draw that the model, as it is, has not learnt from

    def update(
        self,
        index: npt.ArrayLike,
        losses: npt.ArrayLike,
        step: npt.ArrayLike | None = None,
        score: npt.ArrayLike | None = None,
        mean_gradient_norm: npt.ArrayLike | None = None,
    ) -> None:
        """As of every sampler."""
        super().update(index, losses, step, score, mean_gradient_norm)
        if step is not None and np.size(step):
            self.model_step = max(self.model_step, int(np.max(step)) + 1)

    def state_dict(self) -> dict[str, Any]:
        """As of a ``ShardedSampler``, and which model it is."""
        return {**super().state_dict(), "model_step": self.model_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As of a ``ShardedSampler``."""
        given = state.get("model_step") if isinstance(state, dict) else None
        try:
            step = checks.whole("model_step", 0 if given is None else given, least=0, most=checks.LARGEST_STEP)
        except TypeError as error:
            raise ValueError(f"the state is damaged ({error}); load another, or start again") from error
        super().load_state_dict(state)
        self.model_step = step


# --- the trainer's side ---


class PublishWeights(keras.callbacks.Callback):
    """Hands the model's weights over as it learns, with the step of the next draw, which they are the model of.

    Args:
        sampler: the trainer's own ``ScoredSampler``.
        publish: called with that step and the list of the weights' arrays, copies.
        seconds: > 0, between two times; more where handing over takes long: a tenth of the training at most.
        steps: ≥ 1, batches between two times, in place of ``seconds``.

    Put it behind ``LossFeedback``. The step is taken from the losses that came back, so it may be older than the
    weights are, by the few steps whose losses are still to come, and is never newer.
    """

    def __init__(
        self,
        sampler: ScoredSampler,
        publish: Callable[[int, list[npt.NDArray[Any]]], None],
        *,
        seconds: float = 1.0,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        self._sampler, self._publish = sampler, publish
        self._seconds = checks.number("seconds", seconds, 0.0, np.inf, top_open=True)
        self._steps = None if steps is None else checks.whole("steps", steps, least=1)
        self._last, self._pause, self._passed = -1, 0.0, 0
        self._at = -np.inf

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Hand over the weights that the training begins with."""
        self._hand_over()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin to count the steps of an epoch."""
        self._last = -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Hand them over where it is time; ``batch`` is the last of a group of ``steps_per_execution``."""
        self._passed += int(batch) - self._last
        self._last = int(batch)
        if self._passed >= self._steps if self._steps else time.monotonic() - self._at >= self._pause:
            self._hand_over()

    def _hand_over(self) -> None:
        start = time.monotonic()
        weights = self.model.get_weights()
        if weights:  # none where the model is built in its first step
            self._publish(self._sampler.model_step, weights)
        self._at, self._passed = time.monotonic(), 0
        self._pause = max(self._seconds, (self._at - start) / SHARE)


# --- the scorer's side ---


class Asked(Protocol):
    """What answers a scorer: a ``Board``, or a call to one."""

    def __call__(self, report: Report) -> News:
        """Tell what is new."""
        ...


class StaleScorer:
    """Scores the stalest samples of some shards, with the weights that it was given last.

    Args:
        sampler: the store.
        losses: gives the losses of samples, and their scores or None, by the model as it is: a ``Scorer``.
        assign: sets the model's weights.
        shards: those that are looked at. Scorers of the same store have different ones, or they would do the same.
        batch_size: ≥ 1, samples a forward pass.

    A sample whose loss is not finite is not looked at again before there are newer weights; that a training has
    diverged the trainer finds out.
    """

    def __init__(
        self,
        sampler: ScoredSampler,
        losses: Losses,
        assign: Callable[[Weights], None],
        *,
        shards: Iterable[int],
        batch_size: int = BATCH,
    ) -> None:
        self.step = -1  # of the weights
        self._sampler, self._losses, self._assign = sampler, losses, assign
        self._shards, self._batch_size = list(shards), checks.whole("batch_size", batch_size, least=1)
        self._hopeless: set[int] = set()

    def learn(self, step: int, weights: Weights) -> None:
        """Take newer weights."""
        self._assign(weights)
        self.step = step
        self._hopeless.clear()

    def choose(self) -> Int64s:
        """The stalest samples that an older model than this one was the last to look at: (m,), m ≤ batch_size."""
        if self.step < 0:
            return np.empty(0, np.int64)
        index, known = self._sampler.oldest(self._batch_size + len(self._hopeless), self._shards)
        index = index[known < self.step]
        return index[[sample not in self._hopeless for sample in index.tolist()]][: self._batch_size]

    def score(self) -> int:
        """Score one batch and tell the store; how many there were, 0 where nothing is older than the model."""
        index = self.choose()
        if index.size:
            losses, scores = self._losses(index)
            finite = np.isfinite(losses) if scores is None else np.isfinite(losses) & np.isfinite(scores)
            self._hopeless.update(index[~finite].tolist())
            if finite.any():
                scores = None if scores is None else scores[finite]
                self._sampler.update(index[finite], losses[finite], step=self.step, score=scores)
        return int(index.size)


def keep_scoring(
    scorer: StaleScorer,
    ask: Asked,
    *,
    number: int = 0,
    fetch: Callable[[Any], Weights] = lambda weights: weights,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Score until it is over: with newer weights as soon as there are any, and resting where there is nothing to do.

    Args:
        scorer: that does it.
        ask: for news, between any two batches.
        number: which scorer it is.
        fetch: gets the weights from what the news hold.
        sleep: waits so many seconds.
    """
    report = Report(number, os.getpid())
    while not (news := ask(report)).over:
        if news.weights is not None:
            scorer.learn(news.step, fetch(news.weights))
        start = time.perf_counter()
        scored = scorer.score()
        report = report._replace(
            step=scorer.step, scored=scored, seconds=time.perf_counter() - start if scored else 0.0
        )
        if not scored:
            sleep(REST)


# --- on Ray ---


class ScorerActor:
    """A scorer in a process of its own: builds its data and model by the recipe, and scores until it is over."""

    def __init__(
        self, number: int, count: int, store: Mapping[str, Any], recipe: Recipe, board: tuple[str, str]
    ) -> None:
        self._number, self._count, self._store, self._recipe, self._board = number, count, store, recipe, board

    def run(self, batch_size: int) -> None:
        """Until the board says that it is over."""
        import ray
        import tensorflow as tf

        os.nice(max(0, NICENESS - os.nice(0)))
        tf.config.threading.set_intra_op_parallelism_threads(1)  # of the one core that it has
        tf.config.threading.set_inter_op_parallelism_threads(1)
        model, source, loss = self._recipe()
        sampler = ScoredSampler(**self._store)
        board = ray.get_actor(self._board[0], namespace=self._board[1])
        losses = Scorer(model, source, loss, score="last_layer" if sampler.wants_score else None)
        shards = range(self._number, sampler.shards, self._count)
        scorer = StaleScorer(sampler, losses, model.set_weights, shards=shards, batch_size=batch_size)

        def ask(report: Report) -> News:
            news: News = ray.get(board.ask.remote(report))
            return news

        def fetch(reference: list[Any]) -> Weights:
            arrays: Weights = ray.get(reference[0])
            return arrays

        keep_scoring(scorer, ask, number=self._number, fetch=fetch)


class Scorers:
    """K actors of Ray that score for a training, from here on until ``end``.

    Args:
        store: the options of the trainer's ``ScoredSampler``, with its ``name``, that each makes its own with; as many
            ``shards`` as scorers, at least, and these are dealt out. Where its snapshots are, how often it is started
            again and at which ``address`` it is they take as they find it.
        recipe: gives ``(model, source, loss)`` in each scorer's process, as for ``Scorer``: the samples in the order of
            the index, and a model whose weights fit. It is pickled, so it is a function that can be imported there, or
            a ``functools.partial`` of one.
        count: K ≥ 1. Each asks for a CPU; those for whom there is none wait until there is.
        batch_size: ≥ 1, samples a forward pass.
        max_restarts: ≥ 0, how often Ray starts one that has died again. One that is gone for good, or whose recipe
            fails, is a warning: the others go on, and so does the training, with older priorities in its shards.

    Scorers and the board end with the process that made them.

    Raises ``ValueError`` or ``TypeError`` for arguments outside these ranges, and what
    :func:`sampler.ray_cluster.connect` does.
    """

    def __init__(
        self,
        store: Mapping[str, Any],
        recipe: Recipe,
        *,
        count: int,
        batch_size: int = BATCH,
        max_restarts: int = 3,
    ) -> None:
        count = checks.whole("count", count, least=1)
        size = checks.whole("batch_size", batch_size, least=1)
        restarts = checks.whole("max_restarts", max_restarts, least=0)
        if int(store["shards"]) < count:
            raise ValueError(
                f"{count} scorers need as many shards, or two would score the same, got shards={store['shards']}; "
                f"give shards={count} or more"
            )
        connect(store.get("address"))
        self._ray = _ray()
        self._namespace = str(store.get("namespace", "importance-sampling"))
        name = str(store.get("name", "importance"))
        self._board_name, self._names = f"{name}-board", [f"{name}-scorer-{number}" for number in range(count)]
        self._gone: set[int] = set()
        self._told: dict[str, int | float] | None = None
        joined = {option: value for option, value in store.items() if option not in AS_IT_IS}
        own = {"namespace": self._namespace, "max_restarts": restarts, "max_task_retries": restarts}
        self._board = self._ray.remote(Board).options(name=self._board_name, num_cpus=0, **own).remote()
        actor = self._ray.remote(ScorerActor)
        self._actors = [
            actor.options(name=self._names[number], num_cpus=1, **own).remote(
                number, count, {**joined, "prefetch": 0}, recipe, (self._board_name, self._namespace)
            )
            for number in range(count)
        ]
        self._runs = [actor.run.remote(size) for actor in self._actors]
        self._say_who_waits(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def publish(self, step: int, weights: Weights) -> None:
        """Put up the newest weights, and look whether a scorer is gone. Waits for no answer."""
        self._board.publish.remote(step, [self._ray.put(list(weights))])  # in a list: the reference, not the arrays
        self._say_who_is_gone()

    def summary(self) -> dict[str, int | float]:
        """What they have done: one call, or none after ``end``.

        ``scorers``, those not gone for good; ``scored``, samples; ``scored_per_second``, of the time since the first of
        them was ready; ``scoring_seconds``, that this took all of them; ``scorer_restarts``; ``scored_step``, the
        newest step of weights that a scorer has taken, or -1.
        """
        if self._told is None:
            tally = self._tally()
            scored = sum(report.scored for report in tally.reports)
            return {
                "scorers": len(self._actors) - len(self._gone),
                "scored": scored,
                "scored_per_second": scored / tally.seconds if tally.seconds else 0.0,
                "scoring_seconds": sum((report.seconds for report in tally.reports), 0.0),
                "scorer_restarts": tally.again,
                "scored_step": max((report.step for report in tally.reports), default=-1),
            }
        return self._told

    def processes(self) -> dict[int, int]:
        """The number of the process of each scorer that has reported so far."""
        return {report.scorer: report.process for report in self._tally().reports}

    def end(self) -> None:
        """End the scorers and the board; when it returns, none sends anything more."""
        if self._told is not None:
            return
        self._say_who_is_gone()
        self._board.end.remote()
        begun = [self._runs[number] for number in self.processes() if number not in self._gone]
        if begun:  # those that are still starting are not waited for
            self._ray.wait(begun, num_returns=len(begun), timeout=LAST_WORD)
        self._told = self.summary()
        for actor in (*self._actors, self._board):
            self._ray.kill(actor)
        deadline = time.monotonic() + GONE
        while any(map(self._is_known, (*self._names, self._board_name))) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _tally(self) -> Tally:
        try:
            tally: Tally = self._ray.get(self._board.tally.remote(), timeout=GONE)
            return tally
        except self._ray.exceptions.RayError as error:
            logger.warning("what the scorers have done is not known, as the board does not answer: %.500s", error)
            return Tally([], 0, 0.0)

    def _say_who_is_gone(self) -> None:
        running = [run for number, run in enumerate(self._runs) if number not in self._gone]
        over = self._ray.wait(running, num_returns=len(running), timeout=0)[0] if running else []
        for number in [self._runs.index(run) for run in over]:
            self._gone.add(number)
            try:
                self._ray.get(self._runs[number])
            except self._ray.exceptions.RayError as error:
                why = " ".join(str(getattr(error, "cause", None) or error).split())
                logger.warning(
                    "scorer %d of %d is gone for good, and the priorities of its shards grow older: %.500s",
                    number,
                    len(self._runs),
                    why,
                )

    def _say_who_waits(self, count: int) -> None:
        there = int(self._ray.cluster_resources().get("CPU", 0))
        if there < count:
            logger.warning("%d scorers ask for a CPU each, and there are %d: the others wait for one", count, there)

    def _is_known(self, name: str) -> bool:
        try:
            self._ray.get_actor(name, namespace=self._namespace)
        except ValueError:
            return False
        return True


def _ray() -> Any:
    import ray

    return ray
