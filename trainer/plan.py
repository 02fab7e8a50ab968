"""What a training of ``train.py`` needs, built: the data, the model and the sampler, from the options.

    from trainer.config import Config
    from trainer.plan import in_steps, prepare

    plan = prepare(in_steps(Config(dataset="checker", budget="60s")))      # seconds become steps, by a trial
    outcome = plan.train()

A single training and each run of a comparison are built alike. TensorFlow is imported on use.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import Budget, Config, OptionError
from trainer.samplings import Task, make_sampler
from trainer.scorers import Scoring, scoring

if TYPE_CHECKING:
    import keras
    import numpy as np
    import numpy.typing as npt

    from pipeline.data import Data
    from pipeline.dynamics import TrainingDynamics
    from pipeline.saving import Saving
    from pipeline.training import Outcome
    from pipeline.workers import Workers

TRIAL_STEPS, TRIAL_SHARE = 300, 0.1  # the most steps, and share of a budget in seconds, that a trial takes


@dataclass(frozen=True)
class Plan:
    """All that a run needs, built."""

    config: Config
    data: Data
    model: keras.Model
    sampler: Any
    workers: Workers | None = None
    scoring: Scoring | None = None

    @property
    def steps(self) -> int:
        """Of the whole training; of a trial where the budget is in seconds."""
        return Budget.of(self.config).steps(self.epoch_samples, self.config.batch_size) or TRIAL_STEPS

    @property
    def epoch_samples(self) -> int:
        """Drawn in an epoch: N, or by each of several workers so many as the largest block has."""
        return -(-len(self.data) // (1 if self.workers is None else self.workers.world))

    @property
    def block(self) -> range:
        """The samples that this process draws: all, or of several workers its part."""
        return getattr(self.sampler, "block", range(len(self.data)))

    def train(
        self,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        saving: Saving | None = None,
        dynamics: TrainingDynamics | None = None,
    ) -> Outcome:
        """Train the model."""
        from pipeline.training import train

        config = self.config
        return train(
            self.data,
            self.model,
            self.sampler,
            steps=self.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            decay=config.decay,
            warmup_steps=config.warmup_steps,
            optimizer=config.optimizer,
            loss=config.loss,
            refresh=config.refresh,
            evaluate_every=config.evaluate_every,
            saving=saving,
            workers=self.workers,
            dynamics=dynamics,
            callbacks=callbacks if self.scoring is None else [self.scoring.callback, *callbacks],
        )

    def __str__(self) -> str:
        from pipeline.results import counted

        config, data = self.config, self.data
        budget = Budget.of(config)
        kind = "regression" if data.num_classes is None else f"{data.num_classes} classes"
        if budget.unit == "seconds":
            length = f"{budget.count:g} s of steps of {config.batch_size}"
        else:
            also = f" ({counted(config.epochs, 'epoch')})" if config.budget is None else ""
            by = "" if self.workers is None else f" on each of {self.workers.world} workers"
            length = f"{counted(self.steps, 'step')} of {config.batch_size}{by}{also}"
        return (
            f"{config.sampling} on {data.name}: {length}, {len(data):,} samples to train on, {len(data.x_test):,} to "
            f"test, {kind}, {self.model.name} with {self.model.count_params():,} parameters, seed {config.seed}"
            + (f"; scorers: {config.scorers}, so no feedback lag and no gate" if config.scorers else "")
        )


def prepare(config: Config, *, trial: bool = False, workers: Workers | None = None) -> Plan:
    """Load the data, build model and sampler; ``OptionError`` where the options do not fit them.

    A ``trial`` measures how long a step takes, and has a reference of zeros where one would have to be trained.
    """
    from pipeline.data import load_data
    from pipeline.models import build_model
    from pipeline.training import make_reproducible, trained_loss
    from sampler import checks

    try:
        data = load_data(config.dataset)
        trained_loss(config.loss, data)
        make_reproducible(config.seed)
        with contextlib.nullcontext() if workers is None else workers.strategy.scope():
            model = build_model(config.model, data)
        plan = Plan(config, data, model, sampler=None, workers=workers)
        reference = functools.partial(reference_losses, config, data, plan.steps, trial)
        labels = None if data.num_classes is None else data.y
        task = Task(len(data), plan.steps, labels, model, None if config.reference is None else reference)
        if not config.scorers:  # whose sampler needs Ray, which a dry run does not start
            plan = replace(plan, sampler=make_sampler(config, task, workers))
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise OptionError(error) from error
    if config.scheme == "without_replacement" and config.batch_size > len(data):
        raise OptionError(
            f"--scheme without_replacement cannot draw --batch-size {config.batch_size} different samples "
            f"out of {len(data)}; take a batch size of {len(data)} or less, or another scheme"
        )
    if plan.steps >= checks.LARGEST_STEP:
        raise OptionError(f"{plan.steps:,} steps are more than {checks.LARGEST_STEP - 1:,}; lower --epochs or --budget")
    if config.warmup_steps >= plan.steps:
        raise OptionError(f"--warmup-steps must be below the {plan.steps} steps, got {config.warmup_steps}")
    return plan


def with_scorers(plan: Plan, stack: ExitStack, folder: Path | None = None) -> Plan:
    """The plan with the store and the scorers that ``--scorers`` asks for, until ``stack`` is closed; else as it is."""
    if not plan.config.scorers:
        return plan
    try:
        found = stack.enter_context(scoring(plan.config, len(plan.data), folder))
        return replace(plan, sampler=found.sampler, scoring=found)
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise OptionError(error) from error


def reference_losses(config: Config, data: Data, steps: int, trial: bool) -> npt.NDArray[np.floating[Any]]:
    """(N,) losses under other models: those of ``--reference``, a file or models trained for it."""
    import numpy as np

    from pipeline.models import build_model
    from pipeline.reference import held_out_losses

    if config.reference != "auto":
        return np.load(str(config.reference), allow_pickle=False)
    if trial:
        return np.zeros(len(data))
    return held_out_losses(
        data,
        lambda half: build_model(config.model, half),
        steps=max(1, steps // 2),
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        optimizer=config.optimizer,
        seed=config.seed,
    )


def in_steps(config: Config) -> Config:
    """The same with the budget in steps, where it is in seconds: a trial measures how many they are.

    A schedule has to know where it ends. The trial is of the same sampling, and its first step, most of which is
    compilation, does not count; so a run takes about the seconds asked for, and how many it took is reported.
    """
    budget = Budget.of(config)
    if budget.unit != "seconds":
        return config
    import keras

    plan = prepare(replace(config, warmup_steps=0, decay="none", evaluate_every=None), trial=True)
    with ExitStack() as stack:
        trial = with_scorers(plan, stack).train([_end_after(TRIAL_SHARE * budget.count)])
    keras.utils.clear_session()
    a_step = (trial.seconds - trial.first_step_seconds) / max(1, trial.steps - 1)
    steps = max(1, round(budget.count / a_step)) if a_step > 0 else 1
    return replace(config, budget=f"{steps}steps")


def _end_after(seconds: float) -> keras.callbacks.Callback:
    """Ends a training some seconds after its first step, but not before its second."""
    import time

    import keras

    class EndAfter(keras.callbacks.Callback):
        began: float | None = None

        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            if self.began is None:
                self.began = time.perf_counter()
            elif time.perf_counter() - self.began > seconds:
                self.model.stop_training = True

    return EndAfter()
