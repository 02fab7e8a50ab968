"""Train a Keras model on batches drawn by loss, or uniformly, from one command line.

    python train.py                                         # digits, drawn by loss
    python train.py --sampling uniform --dataset checker
    python train.py --dataset npz:mine.npz --model my_models:small --output runs/mine
    python train.py --epochs 50 --print-config > long.yaml; python train.py --config long.yaml

    python train.py --dataset checker --compare uniform,importance,pruning --seeds 5 --budget 120s
    python train.py --workers 2                             # processes on Ray that train one model
    python train.py --scorers 2                             # processes on Ray that keep priorities fresh

It writes ``summary.json`` (the result), ``history.csv`` (a row an epoch) and ``config.yaml`` (all
options, for ``--config``) into the output folder; with ``--evaluate-every``, ``curve.csv`` as well. A
comparison writes ``comparison.csv`` (a row a run), ``curves.csv``, ``comparison.json``,
``comparison.png`` and ``config.yaml``.

From Python::

    from train import Config, run

    outcome = run(Config(sampling="importance", dataset="checker", epochs=4))

Options live in ``train_options``, the samplings in ``train_samplings``, snapshots and signals in ``train_saving``,
several processes in ``train_workers`` and ``train_scorers``, the loop in :mod:`pipeline.training`, what a comparison
says in :mod:`pipeline.comparing`. TensorFlow takes seconds to import, so it is imported after the options are known to
be right. Exit status: 0 done, 1 the training failed, 2 a mistake in the options, 130 or 143 interrupted (SIGINT,
SIGTERM): the step is finished, a snapshot saved, and the same command with ``--resume`` goes on.

Where ``TF_CONFIG`` names other processes, all of them train one model, each on a part of the samples (docs/scale.md).
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from train_options import KEYS as KEYS
from train_options import PROGRAM, Budget, check, check_for_several, methods_of, without_effect
from train_options import Config as Config
from train_options import OptionError as OptionError
from train_options import parse as parse
from train_options import to_yaml as to_yaml
from train_samplings import Task, make_sampler
from train_saving import Interrupted, beginning, caught, going_on, saving_of
from train_scorers import scoring
from train_workers import launch

if TYPE_CHECKING:
    from pathlib import Path

    import keras
    import numpy as np
    import numpy.typing as npt

    from pipeline.comparing import Comparison
    from pipeline.data import Data
    from pipeline.saving import Saving
    from pipeline.training import Outcome
    from pipeline.workers import Workers
    from train_scorers import Scoring

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130  # exit status
TRIAL_STEPS, TRIAL_SHARE = 300, 0.1  # the most steps, and share of a budget in seconds, that a trial takes
CURVE_POINTS = 40  # of a comparison's runs
OF_TIMING = ("step", "in_flight")  # of a sampler's summary: how far it is ahead of training
BY_HEART = 10  # times the training loss: a test loss above that is no matter of optimisation
WIDTH = 120  # of its table where the output is no terminal


class TrainingError(RuntimeError):
    """The training itself failed, said in words; the program prints them and ends with status 1."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with ``arguments`` (None: the command line's) and give its exit status."""
    try:
        arguments = sys.argv[1:] if arguments is None else list(arguments)
        config = parse(arguments)
        if config.print_config:
            print(to_yaml(config), end="")
        elif config.workers > 1 and not config.dry_run and not os.environ.get("TF_CONFIG"):
            return launch(config, arguments)
        else:
            _execute(config)
    except SystemExit as stop:  # tyro has printed help (0) or an error (2)
        return stop.code if isinstance(stop.code, int) else MISTAKE
    except OptionError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return MISTAKE
    except TrainingError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return FAILED
    except Interrupted as stop:
        print(f"{PROGRAM}: {stop}", file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt as error:
        print(f"{PROGRAM}: interrupted; no result was written", file=sys.stderr)
        return 128 + int(error.args[0]) if error.args else INTERRUPTED
    return 0


def run(config: Config, *, callbacks: Sequence[keras.callbacks.Callback] = ()) -> Outcome:
    """Train as ``config`` says; nothing is printed or written.

    Raises ``OptionError`` for options that are wrong or do not fit the data.
    """
    check(config)
    with ExitStack() as stack:
        return with_scorers(prepare(in_steps(config)), stack).train(callbacks)


def _execute(config: Config) -> None:
    import_tensorflow()
    from pipeline.checkpoints import SnapshotError
    from pipeline.saving import Stopped
    from sampler import DivergedError
    from sampler.ray_calls import ShardLost

    workers = workers_of(config)
    if config.compare is not None:
        _execute_comparison(config)
        return
    if workers is not None and workers.rank > 0:
        config = replace(config, quiet=True)  # the first one speaks for all
    plan = prepare(config if config.dry_run else in_steps(config), workers=workers)
    if config.dry_run or not config.quiet:
        print(plan, flush=True)
        if unused := without_effect(config):
            print(f"{', '.join(unused)}: without effect on --sampling {config.sampling}", file=sys.stderr)
        if config.resume:
            print(going_on(config), flush=True)
    if config.dry_run:
        return
    _check_folder(config.folder)
    with ExitStack() as stack:
        plan = with_scorers(plan, stack, config.folder)  # before signals are caught: Ray asks for them too
        callbacks = [] if config.quiet else [stack.enter_context(progress(plan))]
        signals = stack.enter_context(caught())
        try:
            saving = saving_of(plan.config, plan.data, lambda: bool(signals))
            if workers is None or workers.rank == 0:
                callbacks.append(beginning(plan.config))
            try:
                outcome = plan.train(callbacks, saving)
            except Stopped:
                _all_are_here(workers)
                raise
            _all_are_here(workers)
        except Stopped as stop:
            number = signals[0] if signals else signal.SIGTERM  # another worker was told
            raise Interrupted(number, stop.step, config.folder) from None
        except SnapshotError as error:
            raise OptionError(error) from error
        except (DivergedError, ShardLost, OSError) as error:
            raise TrainingError(error) from error
        except Exception as error:
            raise lost_worker(error, config) if workers is not None else error from error
    if workers is not None and workers.rank > 0:
        return
    write_results(plan, outcome)
    if not config.quiet:
        found = [] if plan.scoring is None else [plan.scoring.sentence()]
        said = " ".join(found + [said for said in [advice(plan, outcome)] if said])
        print(f"{sentence(outcome)}; written to {config.folder}" + (f". {said}" if said else ""))


# --- building -------------------------------------------------------------------------------------


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

    def train(self, callbacks: Sequence[keras.callbacks.Callback] = (), saving: Saving | None = None) -> Outcome:
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
            callbacks=callbacks if self.scoring is None else [self.scoring.callback, *callbacks],
        )

    def __str__(self) -> str:
        config, data = self.config, self.data
        budget = Budget.of(config)
        kind = "regression" if data.num_classes is None else f"{data.num_classes} classes"
        if budget.unit == "seconds":
            length = f"{budget.count:g} s of steps of {config.batch_size}"
        else:
            also = f" ({config.epochs} epochs)" if config.budget is None else ""
            by = "" if self.workers is None else f" on each of {self.workers.world} workers"
            length = f"{self.steps:,} steps of {config.batch_size}{by}{also}"
        return (
            f"{config.sampling} on {data.name}: {length}, {len(data):,} samples to train on, {len(data.x_test):,} to "
            f"test, {kind}, {self.model.name} with {self.model.count_params():,} parameters, seed {config.seed}"
            + (f"; scorers: {config.scorers}, so no feedback lag and no gate" if config.scorers else "")
        )


def workers_of(config: Config) -> Workers | None:
    """Which of those that ``TF_CONFIG`` names this is; ``OptionError`` where they cannot train as ``config`` says."""
    from pipeline.workers import Workers, task

    try:
        if task() is None:
            return None
        check_for_several(config)
        return Workers.here()
    except ValueError as error:
        raise OptionError(error) from error


def _all_are_here(workers: Workers | None) -> None:
    """Wait for the others: the first one to end would be missed by them."""
    if workers is not None:
        workers.any([False])


def lost_worker(error: Exception, config: Config) -> TrainingError:
    """What to say where TensorFlow lost another process."""
    import tensorflow as tf

    if not isinstance(error, tf.errors.OpError):
        raise error
    return TrainingError(
        f"another worker is gone ({error.message.splitlines()[0]:.200}); start all of them again, with --output "
        f"{config.folder} --resume"
    )


def prepare(config: Config, *, trial: bool = False, workers: Workers | None = None) -> Plan:
    """Load the data, build model and sampler; ``OptionError`` where the options do not fit them.

    A ``trial`` measures how long a step takes, and has a reference of zeros where one would have to be trained.
    """
    from pipeline.data import load_data
    from pipeline.models import build_model
    from pipeline.training import make_reproducible, trained_loss

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
    if config.warmup_steps >= plan.steps:
        raise OptionError(f"--warmup-steps must be below the {plan.steps} steps, got {config.warmup_steps}")
    return plan


def with_scorers(plan: Plan, stack: ExitStack, folder: Path | None = None) -> Plan:
    """The plan with the sampler and the scorers that ``--scorers`` asks for, until ``stack`` is closed."""
    try:
        return stack.enter_context(scoring(plan, folder))
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


def import_tensorflow() -> None:
    """Import TensorFlow without its start-up lines about CPUs and GPUs; what it says later is seen.

    They are written by C++ before logging is set up, so no level stops them: standard error is held
    back while TensorFlow loads, and shown after all where that fails. Set ``TF_CPP_MIN_LOG_LEVEL`` to
    have it as TensorFlow writes it.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    with _held_back_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()  # says here, not later, that there is no GPU


@contextlib.contextmanager
def _held_back_stderr() -> Iterator[None]:
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, open(os.dup(2), "wb") as screen:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            screen.write(held.read())
            raise
        finally:
            os.dup2(screen.fileno(), 2)


# --- comparisons ----------------------------------------------------------------------------------


def compare(config: Config) -> Comparison:
    """Train all methods of ``config.compare`` over the seeds, and compare them; nothing is printed or written.

    Raises ``OptionError`` for options that are wrong or do not fit the data.
    """
    check(config)
    from pipeline.comparing import Comparison, take_turns

    methods = {name: in_steps(method) for name, method in methods_of(config).items()}
    steps = {name: prepare(method, trial=True).steps for name, method in methods.items()}
    seeds = range(config.seed, config.seed + config.seeds)

    def train_one(method: str, seed: int, tell: Callable[[int], None]) -> Outcome:
        every = config.evaluate_every or max(1, steps[method] // CURVE_POINTS)
        return _train_one(replace(methods[method], seed=seed, evaluate_every=every), tell)

    return Comparison.of(take_turns(list(methods), seeds, train_one, steps))


def _train_one(config: Config, tell: Callable[[int], None]) -> Outcome:
    """One run of a comparison; one that diverges has losses that are not a number."""
    import keras

    from pipeline.training import diverged
    from sampler import DivergedError

    keras.utils.clear_session()
    plan = prepare(config)
    done = iter(range(1, plan.steps + 1))
    progress = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: tell(next(done)))
    try:
        return plan.train([progress])
    except DivergedError:
        return diverged(plan.steps)


def _execute_comparison(config: Config) -> None:
    if config.dry_run:
        for method in methods_of(config).values():
            print(prepare(method, trial=True))
        print(f"each with {config.seeds} seeds")
        return
    _check_folder(config.folder)
    comparison = compare(config)
    said = write_comparison(config, comparison)
    if not config.quiet:
        _print_comparison(config, comparison)
        print(f"\nwritten to {config.folder}{said}")


def _print_comparison(config: Config, comparison: Comparison) -> None:
    from rich.console import Console

    from pipeline.comparing import to_tables, verdict

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for table in to_tables(comparison, f"{config.dataset}, {config.budget or f'{config.epochs} epochs'}"):
        console.print(table)
    console.print(verdict(comparison), highlight=False, soft_wrap=True, markup=False)


def write_comparison(config: Config, comparison: Comparison) -> str:
    """Write the files of a comparison; comparison.json last. What to say where the picture is missing."""
    from pipeline.comparing import to_dict, verdict
    from pipeline.results import to_csv, to_json, write_whole

    folder, said = config.folder, ""
    write_whole(folder / "config.yaml", to_yaml(_with_steps(config, comparison)))
    write_whole(folder / "comparison.csv", to_csv(comparison.rows()))
    write_whole(folder / "curves.csv", to_csv(comparison.curve_rows()))
    try:
        from pipeline.comparison_plot import draw

        draw(comparison, folder / "comparison.png", config.dataset)
    except ImportError as error:
        said = f", without a picture ({error}; the extra plots has it)"
    write_whole(folder / "comparison.json", to_json({**to_dict(comparison), "verdict": verdict(comparison)}))
    return said


def _with_steps(config: Config, comparison: Comparison) -> Config:
    """The same comparison with the steps in place of seconds: how many they come to depends on the machine."""
    if Budget.of(config).unit != "seconds":
        return config
    steps = {run.method: run.steps for run in comparison.runs}
    return replace(config, compare=",".join(f"{name}:budget={steps[name]}steps" for name in comparison.methods))


# --- progress and results -------------------------------------------------------------------------


@contextlib.contextmanager
def progress(plan: Plan) -> Iterator[keras.callbacks.Callback]:
    """A callback that shows how far the training is: a bar on a terminal, else about ten lines in all."""
    import keras
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        epochs = -(-plan.steps // -(-plan.epoch_samples // plan.config.batch_size))
        yield keras.callbacks.LambdaCallback(on_epoch_end=_line_writer(epochs, lambda: plan.model.stop_training))
        return
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=plan.steps)
        yield keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: bar.update(task, completed=int(plan.model.optimizer.iterations)),
            on_train_batch_end=lambda batch, logs: bar.advance(task),
        )


def _line_writer(epochs: int, stopped: Callable[[], bool]) -> Callable[[int, dict[str, Any]], None]:
    def write(epoch: int, logs: dict[str, Any]) -> None:
        if stopped() and epoch + 1 < epochs:
            return  # in its middle
        if (epoch + 1) * 10 // epochs > epoch * 10 // epochs:
            print(f"epoch {epoch + 1} of {epochs}: loss {logs['loss']:.4g}", file=sys.stderr, flush=True)

    return write


def sentence(outcome: Outcome) -> str:
    """The result in a line."""
    parts = [
        f"{outcome.steps:,} steps in {outcome.seconds:.1f} s",
        f"training loss {outcome.train_loss:.4g}",
        f"test loss {outcome.test_loss:.4g}",
    ]
    if outcome.test_accuracy is not None and outcome.worst_class_accuracy is not None:
        parts.append(f"test accuracy {outcome.test_accuracy:.2%}")
        parts.append(f"worst class {outcome.worst_class_accuracy:.2%}")
    return ", ".join(parts)


def advice(plan: Plan, outcome: Outcome) -> str | None:
    """What a run that draws by loss found out about that, in sentences; None where there is nothing to say."""
    config, found, said = plan.config, plan.sampler.summary(), []
    if "gate_open" in found:
        state = "open" if found["gate_open"] else "closed, and draws uniform"
        changed = f"; it last changed at step {found['gate_changed']:,}" if found["gate_changed"] >= 0 else ""
        said.append(
            f"At the end the gate was {state}: by its estimate a draw by priority is worth {found['gate_gain']:.2f} "
            f"uniform ones{changed}."
        )
    if found.get("gate_open") and outcome.test_loss > BY_HEART * outcome.train_loss:
        said.append(
            f"But the test loss is {outcome.test_loss / max(outcome.train_loss, 1e-12):.0f} times the training loss: "
            "what binds is not the noise of the gradient, and uniform draws may generalise better; compare."
        )
    if config.sampling == "importance" and config.priority == "auto":
        said.append(f"The priority that 'auto' stood for was {plan.sampler.priority}.")
    elif config.sampling == "importance" and outcome.advice is not None:
        better = outcome.advice.sentence(config.priority)
        if better is not None:
            said.append(f"{better[0].upper()}{better[1:]}.")
    return " ".join(said) or None


def summary(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """What goes into summary.json: equal for equal options, but for ``seconds``, and where there are scorers."""
    config = plan.config
    return {
        "sampling": config.sampling,
        "dataset": config.dataset,
        "model": plan.model.name,
        "parameters": plan.model.count_params(),
        "seed": config.seed,
        "epochs": outcome.epochs,
        "steps": outcome.steps,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "seconds": outcome.seconds,
        "train_loss": outcome.train_loss,
        "test_loss": outcome.test_loss,
        "test_accuracy": outcome.test_accuracy,
        "worst_class_accuracy": outcome.worst_class_accuracy,
        "sampler": {name: value for name, value in plan.sampler.summary().items() if name not in OF_TIMING},
        **({} if plan.scoring is None else {"scorers": plan.scoring.figures}),
    }


def write_results(plan: Plan, outcome: Outcome) -> None:
    """Write the files of a result; summary.json last, as the sign that it is whole."""
    from pipeline.results import to_csv, to_json, write_whole

    folder = plan.config.folder
    write_whole(folder / "config.yaml", to_yaml(plan.config))
    write_whole(folder / "history.csv", to_csv(outcome.history))
    if outcome.curve:
        write_whole(folder / "curve.csv", to_csv(outcome.curve))
    else:
        (folder / "curve.csv").unlink(missing_ok=True)  # of an earlier run
    write_whole(folder / "summary.json", to_json(summary(plan, outcome)))


def _check_folder(folder: Path) -> None:
    """Make the folder and see that it can be written, before hours are spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OptionError(f"--output {folder} cannot be written: {error}; choose another folder") from error


if __name__ == "__main__":
    sys.exit(main())
