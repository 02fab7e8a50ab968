"""How ``train.py --scorers K`` trains: on a store that K processes of Ray keep fresh by forward passes.

    python train.py --scorers 2                             # a Ray of this machine, for this run alone
    RAY_ADDRESS=head:6379 python train.py --scorers 8       # a cluster that this machine is a node of

Draws are by priority as with ``--sampling importance``, from a ``ShardedSampler`` of K shards, one for each scorer to
keep fresh; see docs/ray.md for what that has not: a feedback lag, a gate. Ray and TensorFlow are imported on use.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampler.shard_options import check_fraction, made_alike

if TYPE_CHECKING:
    import keras

    from pipeline.scorers import PublishWeights, ScoredSampler, Scorers
    from trainer.config import Config

SHARDS = "shards"  # in the output folder: their snapshots, while the run goes on
LAG, GATE = 4, "variance"  # what the options are where nobody gave them

logger = logging.getLogger("train")


def check_scorers(config: Config) -> None:
    """Raise ``ValueError`` for what does not go together with ``--scorers``."""
    if not config.scorers:
        return
    several = config.workers > 1 or bool(os.environ.get("TF_CONFIG"))
    for wrong, given, instead in (
        (config.compare is not None, "--compare", "compare without them"),
        (several, "several workers", "train in one process"),
        (
            config.sampling != "importance",
            f"--sampling {config.sampling}",
            "they are for importance, whose priorities a shared store holds",
        ),
        (config.refresh > 0, f"--refresh {config.refresh:g}", "they score the stalest samples in its place"),
        (
            config.feedback_lag not in (None, LAG),
            f"--feedback-lag {config.feedback_lag}",
            "when a loss reaches the shared store depends on timing, and draws use those that have; leave it out",
        ),
        (config.gate not in ("none", GATE), f"--gate {config.gate}", "a shared store has no gate; leave it out"),
        (config.finish is not None, f"--finish {config.finish}", "a shared store draws alike to the end; leave it out"),
    ):
        if wrong:
            raise ValueError(f"--scorers does not go together with {given}: {instead}")
    check_fraction(config.uniform_fraction)
    options = store_of(config, config.scorers, "checked", None)
    for name in ("name", "snapshots", "uniform_fraction", "beta"):
        del options[name]
    made_alike(options.pop("num_samples"), options.pop("shards"), initial_priority=1.0, losses=None, **options)


def store_of(config: Config, num_samples: int, name: str, snapshots: Path | None) -> dict[str, Any]:
    """The options of the ``ShardedSampler`` that the trainer and the scorers share."""
    return {
        "num_samples": num_samples,
        "shards": config.scorers,
        "name": name,
        "snapshots": snapshots,
        "priority": config.priority,
        "uniform_fraction": config.uniform_fraction,
        "smoothing": config.smoothing,
        "beta": config.beta,
        "scheme": config.scheme,
        "first_pass": config.first_pass > 0,
        "warmup": config.warmup,
        "seed": config.seed,
    }


def recipe(config: Config) -> tuple[keras.Model, Any, Any]:
    """What a scorer scores by: the model, whose weights come later, the samples, and the loss."""
    from pipeline.data import load_data
    from pipeline.models import build_model
    from pipeline.training import trained_loss

    data = load_data(config.dataset)
    return build_model(config.model, data), (data.x, data.y), trained_loss(config.loss, data)


class Scoring:
    """The scorers of a run, and in the end what they came to.

    Attributes:
        sampler: the store, as the trainer draws from it.
        callback: publishes the weights.
        figures: after ``measure()``: those of ``Scorers.summary`` and ``mean_age``, how stale what is known of a sample
            is on average, in draws, or None.
    """

    def __init__(self, sampler: ScoredSampler, scorers: Scorers, callback: PublishWeights) -> None:
        self.sampler, self.callback = sampler, callback
        self.figures: dict[str, int | float | None] = {}
        self._scorers = scorers

    def measure(self) -> None:
        """Take the figures, as the training is over and the scorers are still there."""
        try:
            age = float(self.sampler.ages().mean())
        except (OSError, RuntimeError) as error:  # the training is done, and shall have its results
            logger.warning("the age of the priorities is not known: %.300s", error)
            age = None
        self._scorers.end()
        self.figures = {**self._scorers.summary(), "mean_age": age}

    def sentence(self) -> str:
        """What they did, in words."""
        found = self.figures
        who = f"{found['scorers']} scorer{'' if found['scorers'] == 1 else 's'}"
        age = found["mean_age"]
        old = "" if age is None else f"; at the end the priorities were {age:,.1f} steps old on average"
        return f"{who} scored {found['scored']:,} samples, {found['scored_per_second']:,.0f} a second{old}."


@contextlib.contextmanager
def scoring(config: Config, num_samples: int, folder: Path | None) -> Iterator[Scoring]:
    """The store that ``--scorers`` asks for, with the scorers at work as long as this lasts.

    The shards keep snapshots of their own in ``folder``, so that one that dies goes on; None: they keep none. All ends
    with this, and what the store has learnt is in the run's own snapshots.

    Raises ``ValueError``, ``ImportError`` and ``PermissionError``: what ``ShardedSampler`` and ``Scorers`` do.
    """
    from pipeline.scorers import PublishWeights, ScoredSampler, Scorers

    name = f"train-{uuid.uuid4().hex[:12]}"  # of its own, so that nobody else's is gone on with
    snapshots = None if folder is None else folder.absolute() / SHARDS / name
    store = store_of(config, num_samples, name, snapshots)
    with ExitStack() as stack:
        sampler = ScoredSampler(**store)
        stack.callback(_remove, sampler, snapshots)
        own = replace(config, output=None, config=None)
        scorers = stack.enter_context(Scorers(store, functools.partial(recipe, own), count=config.scorers))
        one = Scoring(sampler, scorers, PublishWeights(sampler, scorers.publish))
        yield one
        one.measure()
    if snapshots is not None:  # what runs before it that were killed have left; a store of the user's stays
        for left in snapshots.parent.glob("train-" + 12 * "[0-9a-f]"):
            shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):
            snapshots.parent.rmdir()


def _remove(sampler: ScoredSampler, snapshots: Path | None) -> None:
    """End the shards; that they cannot be reached any more breaks nothing now."""
    try:
        sampler.remove()
    except Exception as error:
        logger.warning("the shards of %r could not be ended: %.300s", sampler.name, error)
    if snapshots is not None:
        shutil.rmtree(snapshots, ignore_errors=True)
        with contextlib.suppress(OSError):  # another run's are there
            snapshots.parent.rmdir()
