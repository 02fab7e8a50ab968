"""One priority store in several processes, on one machine or several, which trainers and scorers share by its name.

    from sampler import ShardedSampler

    sampler = ShardedSampler(50_000, shards=4, name="mine", snapshots="runs/mine/shards")
    draw = sampler.draw(batch_size=32)                              # as of every sampler
    sampler.update(draw.index, losses, step=draw.step)

    scorer = ShardedSampler(50_000, shards=4, name="mine", ...)     # in another process: the same store
    index = scorer.stalest(1_000)
    scorer.update(index, losses, step=step_of_the_model)

Each of S actors of Ray holds the priorities of its block of the samples (:mod:`sampler.shard_server`). A draw chooses
shards by the totals of their priorities, as they were last told, and every shard draws its part; p is what the draw was
made with, so that no staleness biases anything (:mod:`sampler.shard_plan`)::

    draw   ── from what was drawn ahead ── meanwhile the next draws are asked for, one call a shard for several batches
    update ── everything is checked ── one call a shard, for whose answer nobody waits

A shard that does not answer is asked again, until it does or ``timeout`` is over: what is its to draw is drawn by
no other, or the estimates would be biased. Losses reach a shard that has died when it is back; what it had learnt since
its last snapshot is lost, which is logged and counted.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sampler import batches, checks, priorities, ray_calls, ray_cluster
from sampler.base import RECENT_DRAWS, CountsNonfinite, Float32s, Float64s, Int64s, Sampler, _no_step_left
from sampler.ledger import Draw, frozen
from sampler.priorities import Priority
from sampler.shard_calls import Call, Calls, Patient
from sampler.shard_options import (
    Kept,
    Made,
    check_ahead,
    check_fraction,
    check_lag,
    check_name,
    check_priority,
    check_seconds,
    difference,
    made_alike,
    named,
    unlike,
)
from sampler.shard_plan import Group, Pool, ShardPlan, assembled, orders_of
from sampler.shard_server import Status, Welcome
from sampler.shard_standing import Standing
from sampler.shard_views import ShardedViews
from sampler.sharded_state import ShardedState

LOOKED = 8  # updates of a shard on their way before there is a look at which have come
PENDING = 64  # at most; then an update waits for the oldest

logger = logging.getLogger("sampler")


class ShardedSampler(CountsNonfinite, ShardedViews, ShardedState):
    """Draws in proportion to priority as an ``ImportanceSampler`` does, from a store that several share.

    p is that of one store, p = (1-λ) q/Σq + λ/N, but for how old the totals of the shards are by which they are chosen;
    weights are exactly 1/(N p) of the p that was used, and never above 1/λ.

    Args:
        num_samples: N ≥ 1.
        shards: S in [1, N], how many actors.
        name: of the store. Who comes with the same name and the same options shares it; with others it is refused.
        namespace: of Ray, in which the name is looked up.
        address: of a Ray cluster, as ``ray.init`` takes it; None: the Ray that this process has joined, or else a new
            one for this machine alone. See :func:`sampler.ray_cluster.connect`.
        snapshots: the folder in which the shards write theirs, one all nodes can reach; what is there is gone on with.
            None: as the store has it; where it is made here, none are written, and a shard that dies has lost all.
        snapshot_every: > 0, seconds between them; None: as the store has it, and 60 where it is made here.
        prefetch: ≥ 0, batches drawn ahead, so that a step waits for no call. Their priorities are as old as that.
        max_restarts: ≥ 0, how often a shard is started again; None: as the store has it, and 10 where it is made here.
        timeout: > 0, seconds that a call waits for a shard that does not answer.
        priority, smoothing, beta, initial_priority, warmup, losses, max_nonfinite_updates: as of ``ImportanceSampler``
            (known losses are of step 0, and the first draw is then of step 1);
            ``priority`` is no ``"auto"`` and none that asks for the samples' index, and one with a memory, as
            ``"clipped"``, remembers in each shard the losses of that shard.
        uniform_fraction: λ in (0, 1].
        scheme: ``"multinomial"``, ``"systematic"`` or ``"stratified"``.
        first_pass: whether first every sample is drawn once at weight 1; where several draw, together.
        seed: ≥ 0, of the shards where they are made here, and of this client, who chooses among them. Of one who joins
            it need not be that of the store: its choices are others than those of all before it, whatever theirs. With
            several shards the draws depend on timing all the same.
        calls: what carries the calls in place of Ray; for tests.

    The first passes of a shard that has lost them are not made again once this client's are over. ``draw`` and
    ``update`` may be called from different threads. Raises ``ValueError`` or ``TypeError`` for arguments outside these
    ranges, and what :func:`sampler.ray_cluster.connect` does.
    """

    feedback_lag = None
    uses_feedback = True
    epochs_vary = False
    auto = False
    gated = False

    def __init__(
        self,
        num_samples: int,
        *,
        shards: int = 4,
        name: str = "importance",
        namespace: str = "importance-sampling",
        address: str | None = None,
        snapshots: str | os.PathLike[str] | None = None,
        snapshot_every: float | None = None,
        prefetch: int = 4,
        max_restarts: int | None = None,
        timeout: float = 300.0,
        priority: str | Priority = "loss",
        uniform_fraction: float = 0.3,
        smoothing: float = 0.0,
        scheme: str = "systematic",
        beta: float | Callable[[int], float] = 1.0,
        first_pass: bool = True,
        warmup: int = 0,
        initial_priority: float = 1.0,
        losses: npt.ArrayLike | None = None,
        max_nonfinite_updates: int = 10,
        feedback_lag: None = None,
        seed: int = 0,
        calls: Callable[[list[Made]], Calls] | None = None,
    ) -> None:
        self._size = checks.whole("num_samples", num_samples, least=1)
        self.shards = checks.whole("shards", shards, least=1, most=self._size)
        self.name, namespace = check_name("name", name), check_name("namespace", namespace)
        self.prefetch = checks.whole("prefetch", prefetch, least=0)
        self.max_nonfinite_updates = checks.whole("max_nonfinite_updates", max_nonfinite_updates, least=1)
        self._beta = beta if callable(beta) else checks.number("beta", beta, 0.0, 1.0)
        self.uniform_fraction = check_fraction(uniform_fraction)
        check_lag(feedback_lag)
        self._priority = check_priority(priority)
        known = None if losses is None else checks.numbers("losses", losses, self._size)
        self._mades = made_alike(
            self._size,
            self.shards,
            priority=priority,
            smoothing=smoothing,
            scheme=scheme,
            initial_priority=initial_priority,
            first_pass=first_pass,
            warmup=warmup,
            losses=known,
            seed=seed,
        )
        timeout = check_seconds("timeout", timeout)
        kept = named(snapshots, snapshot_every, max_restarts)
        if calls is None:
            ray_cluster.connect(address)
            carrier: Calls = ray_calls.RayCalls(self._mades, name=name, namespace=namespace, kept=kept)
        else:
            carrier = calls(self._mades)
        self._patient = Patient(carrier, name=name, timeout=timeout)
        self._plan = ShardPlan(
            self._size,
            self.shards,
            uniform_fraction=self.uniform_fraction,
            scheme=scheme,
            passes=1 + warmup,
            generator=np.random.default_rng(seed),
        )
        self._drawing, self._updating, self._telling = threading.RLock(), threading.RLock(), threading.Lock()
        self._standing = Standing(self.shards, name=name)
        self._counts = {"updates": 0, "nonfinite": 0}
        self.seconds = 0.0  # spent in draws and updates, waiting left out
        self._step = 0
        self._drawn = 0  # draws handed out
        self._stamp = -1  # of the last update that named no step
        self._nonfinite_updates = 0  # in a row
        self._recent = np.zeros((RECENT_DRAWS, 4))  # B, Σw, Σw², max w of recent draws
        self._pool = Pool()
        self._groups: deque[Group] = deque()
        self._pending: list[deque[Call]] = [deque() for _ in range(self.shards)]  # updates, by shard
        self._join(known, kept)

    def _join(self, losses: npt.NDArray[Any] | None, kept: Kept) -> None:
        """Meet the shards: refuse those made otherwise, and begin where the others stand."""
        welcome = self._met(kept)
        if losses is not None:
            parts = np.split(losses, self._plan.first[1:])
            asked = [Call(shard, "begin", parts[shard]) for shard, own in enumerate(welcome) if not own.begun]
            for call, status in zip(asked, self._patient.answers(asked), strict=True):
                self._tell(call, status)
        joined = [own.joined for own in welcome]  # together no two have had the same, so each who joins draws otherwise
        generator = np.random.default_rng([self._mades[0].seed, *joined])
        statuses = self._standing.all()
        self._plan.begin(sum(status.done for status in statuses), generator)
        self._step = max(max(status.step, status.newest + 1) for status in statuses)

    def _met(self, kept: Kept) -> list[Welcome]:
        """The welcome of every shard. One that is there is asked first, the others only where it is as is wanted here:
        those that are not there are made by being asked, and made as it is.
        """
        carrier = self._patient.calls
        on_ray = carrier if isinstance(carrier, ray_calls.RayCalls) else None
        first = on_ray.there() if on_ray else 0
        welcome = self._greeted([first], kept)
        if on_ray:
            on_ray.kept = welcome[first].kept
        welcome |= self._greeted([shard for shard in range(self.shards) if shard != first], kept)
        return [welcome[shard] for shard in range(self.shards)]

    def _greeted(self, shards: list[int], kept: Kept) -> dict[int, Welcome]:
        calls = [Call(shard, "hello") for shard in shards]
        welcome: dict[int, Welcome] = {}
        for call, own in zip(calls, self._patient.answers(calls), strict=True):
            differs = difference(own.made, self._mades[call.shard].described()) or unlike(own.kept, kept)
            if differs:
                raise ValueError(
                    f"the store {self.name!r} is there, made {differs}; make it alike, or choose another name, or call "
                    "remove() of the other one first"
                )
            welcome[call.shard] = own
            self._tell(call, own.status)
        return welcome

    def __len__(self) -> int:
        return self._size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self.close()
        except Exception as unsent:
            if error is None:
                raise
            logger.warning("the last updates of %r may not have reached their shards: %s", self.name, unsent)

    @property
    def step(self) -> int:
        """The step of the next draw: how many were made, by this client or by the one that has made the most."""
        return self._step

    @property
    def fully_corrected(self) -> bool:
        """Whether every weight is 1/(N p)."""
        return not callable(self._beta) and self._beta == 1.0

    @property
    def wants_score(self) -> bool:
        """Whether ``update`` has a use for scores."""
        return self._scored

    @property
    def _scored(self) -> bool:
        return bool(getattr(self._priority, "scored", False))

    # --- draw ---------------------------------------------------------------------------------

    def draw(self, batch_size: int) -> Draw:
        """The next batch: exactly ``batch_size`` ≥ 1 samples, mostly drawn ahead. O(B).

        Waits where nothing is, for a shard that does not answer too. Raises ``TypeError`` or ``ValueError`` for a batch
        size that is none, ``TimeoutError`` for a shard that has not answered for ``timeout`` seconds, ``ShardLost`` (a
        ``RuntimeError``) for one that is not started again, and ``OverflowError`` after 2^31 - 1 draws.
        """
        while True:
            draw = self.poll(batch_size, seconds=1.0)
            if draw is not None:
                return draw

    def poll(self, batch_size: int, *, seconds: float) -> Draw | None:
        """As ``draw``, but gives None where nothing is there after ``seconds``."""
        return self._poll(checks.whole("batch_size", batch_size, least=1), seconds, 1)

    def poll_rows(self, index: Int64s, weight: Float32s, probability: Float32s, step: Int64s, *, seconds: float) -> int:
        """As of every sampler: fill rows of (m, B) arrays with a draw each, and give how many."""
        rows, count = index.shape
        for row in range(rows):
            draw = self._poll(count, 0.0 if row else seconds, rows - row)
            if draw is None:
                return row
            index[row], weight[row], probability[row], step[row] = draw.index, draw.weight, draw.probability, draw.step
        return int(rows)

    def rewind(self) -> None:
        """Nothing: draws in flight are not kept."""

    def _poll(self, count: int, seconds: float, rows: int) -> Draw | None:
        with self._drawing:
            start, waited = time.perf_counter(), self._patient.waited
            if self._step >= checks.LARGEST_STEP:
                raise _no_step_left(self._step)
            self._order_ahead(count, rows)
            draw = self._hand_out(count) if self._is_there(count, seconds) else None
            if draw is not None:
                self._order_ahead(count, 0)  # what comes while the batch is trained on
            self.seconds += max(0.0, time.perf_counter() - start - (self._patient.waited - waited))
            return draw

    def _order_ahead(self, count: int, rows: int) -> None:
        """Ask the shards for what is missing of ``rows`` batches, or where half of what may be ahead is gone."""
        ahead = self._pool.size + sum(group.count for group in self._groups)
        if (ahead >= count * rows and 2 * ahead > count * self.prefetch) or not max(rows, self.prefetch):
            return
        missing = -(-(count * max(rows, self.prefetch) - ahead) // count)
        with self._telling:
            ordered = [part for _ in range(missing) for part in self._plan.order(count)]
        asked = {shard: orders_of(shard, ordered, self._plan) for shard in range(self.shards)}
        calls = [Call(shard, "draw", orders, self._step) for shard, orders in asked.items() if orders]
        self._groups.append(Group(ordered, calls, {}, sum(int(part.counts.sum()) for part in ordered)))
        for call in calls:
            self._patient.send(call)

    def _is_there(self, count: int, seconds: float) -> bool:
        """Whether ``count`` draws are in the pool, after ``seconds`` at most."""
        deadline = time.monotonic() + seconds
        while self._pool.size < count:
            group = self._groups[0]
            for call in group.calls:
                if call.shard not in group.answers:
                    drawn = self._patient.answer(call, deadline - time.monotonic())
                    if drawn is None:
                        return False
                    self._tell(call, drawn.status)
                    group.answers[call.shard] = drawn.index, drawn.probability
            for index, probability in assembled(group.ordered, group.answers, self._plan):
                self._pool.put(index, probability)
            self._groups.popleft()
        return True

    def _collect(self) -> None:
        """Wait for all draws that are on their way."""
        while self._groups:
            self._is_there(self._pool.size + 1, 1.0)

    def _hand_out(self, count: int) -> Draw:
        beta = self._beta
        if callable(beta):
            beta = checks.number(f"beta({self._step})", beta(self._step), 0.0, 1.0)
        index, probability = self._pool.take(count)
        weight = np.empty(count, np.float32)
        batches.weigh(probability, self._size, beta, weight, self._recent[self._drawn % RECENT_DRAWS])
        with self._telling:  # which may take the step further
            draw = frozen(self._step, index, probability, weight)
            self._step += 1
        self._drawn += 1
        return draw

    # --- update -------------------------------------------------------------------------------

    def update(
        self,
        index: npt.ArrayLike,
        losses: npt.ArrayLike,
        step: npt.ArrayLike | None = None,
        score: npt.ArrayLike | None = None,
        mean_gradient_norm: npt.ArrayLike | None = None,
    ) -> None:
        """Send the unweighted losses of samples to their shards, and wait for no answer. O(B).

        As of every sampler, and raises what they raise, before anything is sent. ``step`` is that of the model which
        made the losses: of a sample the newest counts, whoever sends it, and one that is as old or older than what is
        known changes nothing, so that an update may be sent twice. None means newer than all that this client knows of.
        ``ValueError`` for one that no draw can have come to: 2^28 or more ahead.

        Where 64 updates of a shard are on their way, waits for the oldest: ``TimeoutError`` and ``ShardLost`` as
        ``draw``. What a shard refuses is raised by a later call.
        """
        indices = checks.indices(index, self._size)
        values = checks.per_sample("losses", losses, indices.size)
        scores = None if score is None else checks.per_sample("score", score, indices.size)
        checks.norm(mean_gradient_norm)
        if self._scored:
            values = Sampler._scores(values, scores)
        steps = check_ahead(checks.steps(step, indices.size), self._step)
        if indices.size == 0:
            return
        finite = np.isfinite(values)
        priorities.apply(self._priority, values[finite], indices[finite])
        with self._updating:
            start, waited = time.perf_counter(), self._patient.waited
            self._check_nonfinite_updates(bool(finite.any()))
            steps = np.broadcast_to(self._now() if steps is None else steps, indices.shape)
            self._counts["updates"] += 1
            if not finite.all():
                self._count_nonfinite(indices[~finite])
            self._send_updates(indices[finite], values[finite], steps[finite])
            self.seconds += max(0.0, time.perf_counter() - start - (self._patient.waited - waited))

    def _send_updates(self, index: Int64s, values: Float64s, steps: Int64s) -> None:
        shard_of = self._plan.shard_of(index)
        for shard in np.unique(shard_of).tolist():
            which = shard_of == shard
            call = Call(shard, "update", index[which] - self._plan.first[shard], values[which], steps[which])
            self._settle(shard, PENDING - 1)
            self._pending[shard].append(call)
            self._patient.send(call)

    def _settle(self, shard: int, most: int) -> None:
        """Take the answers to updates that have come, and wait while more than ``most`` are on their way."""
        pending = self._pending[shard]
        while len(pending) > min(most, LOOKED):
            call = pending[0]
            try:
                status = self._patient.answer(call, 1.0 if len(pending) > most else 0.0)
            except (TimeoutError, ray_calls.ShardLost):
                raise
            except Exception:
                pending.popleft()  # what a shard refuses is refused once
                raise
            if status is not None:
                pending.popleft()
                self._tell(call, status)
            elif len(pending) <= most:
                return

    def flush(self) -> None:
        """Wait until every update has reached its shard; raises what ``update`` does."""
        with self._updating:
            for shard in range(self.shards):
                self._settle(shard, 0)

    def _now(self) -> Int64s:
        newest = max(status.newest for status in self._standing.all())
        self._stamp = min(max(self._step, newest + 1, self._stamp + 1), checks.LARGEST_STEP)
        return np.array([self._stamp], np.int64)

    # --- the shards ---------------------------------------------------------------------------

    def _tell(self, call: Call, status: Status) -> None:
        """Take in where a shard stands, as its answer to a call tells."""
        with self._telling:
            if not self._standing.take(call.shard, status, call.sent):
                return
            self._plan.total[call.shard] = status.total
            self._step = max(self._step, status.step)
            done = [status.done for status in self._standing.all()]
            if self._standing.complete and bool(np.all(np.array(done) >= self._plan.passes * self._plan.size)):
                self._plan.over()

    # --- the state, and the end ---------------------------------------------------------------

    def snapshot(self) -> None:
        """Have every shard write a snapshot now; ``OSError`` where one cannot."""
        self.flush()
        self._patient.ask_all("snapshot", shards=self.shards)

    def close(self) -> None:
        """Send what is to be sent. The shards stay, for others and for later; see ``remove``."""
        self.flush()

    def remove(self) -> None:
        """End the shards, for all who share them. Their snapshots stay."""
        with self._drawing, self._updating:
            self._patient.calls.remove()
            self._groups.clear()
            for pending in self._pending:
                pending.clear()
