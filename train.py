"""Train a Keras model on batches drawn by loss, or uniformly, from one command line.

    python train.py                                         # digits, drawn by loss
    python train.py --sampling uniform --dataset checker
    python train.py --dataset npz:mine.npz --model my_models:small --output runs/mine
    python train.py --epochs 50 --print-config > long.yaml; python train.py --config long.yaml

    python train.py --dataset checker --compare uniform,importance,pruning --seeds 5 --budget 120s
    python train.py --workers 2                             # processes on Ray that train one model
    python train.py --scorers 2                             # processes on Ray that keep priorities fresh

It writes ``report.html`` (a page for people), ``summary.json`` (the result), ``history.csv`` (a row an epoch) and
``config.yaml`` (all options, for ``--config``) into the output folder; ``samples.npz``, ``suspects.csv`` and
``losses.csv`` have what is known of each sample; with ``--evaluate-every`` there is ``curve.csv`` as well. A comparison
writes ``report.html``, ``comparison.csv`` (a row a run), ``curves.csv``, ``comparison.json``, ``comparison.png`` and
``config.yaml``.

From Python::

    from train import Config, run

    outcome = run(Config(sampling="importance", dataset="checker", epochs=4))

What it is made of is in ``trainer``: options, samplings, what is built from them, comparisons, snapshots and signals,
several processes; the loop is :mod:`pipeline.training`. TensorFlow takes seconds to import, so it is imported
after the options are known to be right. Exit status: 0 done, 1 the training failed, 2 a mistake in the options, 130 or
143 interrupted (SIGINT, SIGTERM): the step is finished, a snapshot saved, and the same command with ``--resume`` goes
on.

Where ``TF_CONFIG`` names other processes, all of them train one model, each on a part of the samples (docs/scale.md).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.comparison import execute_comparison
from trainer.config import KEYS as KEYS
from trainer.config import PROGRAM
from trainer.config import Config as Config
from trainer.config import OptionError as OptionError
from trainer.config import to_yaml as to_yaml
from trainer.options import check, check_for_several, without_effect
from trainer.options import parse as parse
from trainer.plan import Plan, in_steps, prepare, with_scorers
from trainer.saving import (
    Interrupted,
    beginning,
    caught,
    check_folder,
    check_unfinished,
    going_on,
    is_finished,
    saving_of,
    write_report,
)
from trainer.telling import advice as advice
from trainer.telling import close, progress
from trainer.telling import say as say
from trainer.workers import launch

if TYPE_CHECKING:
    import keras

    from pipeline.dynamics import TrainingDynamics
    from pipeline.training import Outcome
    from pipeline.workers import Workers

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130  # exit status
OF_TIMING = ("step", "in_flight")  # of a sampler's summary: how far it is ahead of training
OF_SAMPLES = ("losses.csv", "samples.npz", "suspects.csv")  # files that an earlier run may have left


class TrainingError(RuntimeError):
    """The training itself failed, said in words; the program prints them and ends with status 1."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with ``arguments`` (None: the command line's) and give its exit status."""
    open_streams()
    try:
        arguments = sys.argv[1:] if arguments is None else list(arguments)
        config = parse(arguments)
        if config.print_config:
            print(to_yaml(config), end="")
        elif config.workers > 1 and not config.dry_run and not os.environ.get("TF_CONFIG"):
            return launch(config, arguments)
        else:
            _execute(config)
    except BrokenPipeError:  # nobody reads the help any more
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # as long as the program
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
    from pipeline.progress import silence

    workers = workers_of(config)
    if workers is not None and workers.rank > 0:
        config = replace(config, quiet=True)  # the first one speaks for all
    with silence(config.quiet):
        if config.compare is not None:
            execute_comparison(config)
        else:
            _execute_training(config, workers)


def _execute_training(config: Config, workers: Workers | None) -> None:
    first = workers is None or workers.rank == 0
    if not config.dry_run:
        check_unfinished(config, workers)
    plan = prepare(config if config.dry_run else in_steps(config), workers=workers)
    if config.dry_run or not config.quiet:
        _announce(plan)
    if config.dry_run:
        return
    check_folder(config.folder)
    dynamics = dynamics_of(plan)
    plan, outcome = _train(plan, dynamics)
    if not first:
        return
    write_results(plan, outcome, dynamics)
    missing = write_report(config.folder) if config.report else None
    if not config.quiet:
        close(plan, outcome, missing)


def _announce(plan: Plan) -> None:
    """What is trained, in a line, and what of the options is worth a word."""
    config = plan.config
    say(str(plan))
    if unused := without_effect(config):
        print(f"{', '.join(unused)}: without effect on --sampling {config.sampling}", file=sys.stderr)
    if config.seeds != Config.seeds:
        print(f"--seeds {config.seeds}: without effect without --compare; --seed chooses one", file=sys.stderr)
    if config.resume:
        say(going_on(config))
    elif is_finished(config):
        say(f"{config.folder} holds a finished run, whose place this one takes")


def can_be_told(plan: Plan) -> bool:
    """Whether losses come back with an index: those of a stream have none."""
    return plan.config.sampling != "presampled"


def dynamics_of(plan: Plan) -> TrainingDynamics | None:
    """What will know what the loss of each sample does that this process draws; None where nobody asks."""
    from pipeline.dynamics import TrainingDynamics

    wanted = plan.config.report or plan.config.tensorboard
    return TrainingDynamics(len(plan.data), plan.block) if wanted and can_be_told(plan) else None


def _train(plan: Plan, dynamics: TrainingDynamics | None) -> tuple[Plan, Outcome]:
    """Train, with scorers, progress, snapshots and signals; the plan comes back with what the scorers came to.

    Raises ``Interrupted``, ``OptionError`` for snapshots that are another run's, and ``TrainingError``.
    """
    from pipeline.checkpoints import SnapshotError
    from pipeline.samples import columns_of, write_arrays
    from pipeline.saving import Stopped
    from sampler import DivergedError
    from sampler.ray_calls import ShardLost

    config, workers = plan.config, plan.workers
    with ExitStack() as stack:
        plan = with_scorers(plan, stack, config.folder)  # before signals are caught: Ray asks for them too
        callbacks = [] if config.quiet else [stack.enter_context(progress(plan))]
        signals = stack.enter_context(caught())
        try:
            saving = saving_of(config, plan.data, lambda: bool(signals))
            if workers is None or workers.rank == 0:
                callbacks.append(beginning(config))
            if config.tensorboard and dynamics is not None:
                callbacks.append(board(plan, dynamics))
            try:
                outcome = plan.train(callbacks, saving, dynamics)
            except Stopped:
                _all_are_here(workers)
                raise
            if workers is not None and dynamics is not None and outcome.ages is not None:
                write_arrays(_part(config, workers.rank, workers.world), columns_of(dynamics, outcome.ages))
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
    return plan, outcome


# --- several workers ------------------------------------------------------------------------------


def workers_of(config: Config) -> Workers | None:
    """Which of those that ``TF_CONFIG`` names this is; ``OptionError`` where they cannot train as ``config`` says."""
    from pipeline.workers import Workers, check_number, task

    try:
        check_number(config.workers)
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


# --- TensorFlow -----------------------------------------------------------------------------------


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


# --- what is read by somebody, or by nobody ---


def open_streams() -> None:
    """Where standard input, output or error is closed, open it upon nothing: else the next file would take its number,
    and what TensorFlow says would be written into that.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115  # as long as the program


# --- results --------------------------------------------------------------------------------------


def board(plan: Plan, dynamics: TrainingDynamics) -> keras.callbacks.Callback:
    """What writes event files; ``OptionError`` without TensorBoard."""
    from pipeline.report.page import image
    from pipeline.tensorboard import SamplingBoard

    x = plan.data.x
    images = x if image(x[0]) is not None else None
    try:
        return SamplingBoard(plan.config.folder / "tensorboard", plan.sampler, dynamics=dynamics, images=images)
    except ImportError as error:
        raise OptionError(f"--tensorboard: {error}") from error


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


def write_results(plan: Plan, outcome: Outcome, dynamics: TrainingDynamics | None = None) -> None:
    """Write the files of a result; summary.json last, as the sign that it is whole."""
    from pipeline.results import to_csv, to_json, write_whole

    folder = plan.config.folder
    write_whole(folder / "config.yaml", to_yaml(plan.config))
    write_whole(folder / "history.csv", to_csv(outcome.history))
    if outcome.curve:
        write_whole(folder / "curve.csv", to_csv(outcome.curve))
    else:
        (folder / "curve.csv").unlink(missing_ok=True)  # of an earlier run
    for name in OF_SAMPLES:
        (folder / name).unlink(missing_ok=True)
    if dynamics is not None:
        _write_samples(plan, outcome, dynamics)
    write_whole(folder / "summary.json", to_json(summary(plan, outcome)))


def _write_samples(plan: Plan, outcome: Outcome, dynamics: TrainingDynamics) -> None:
    """What is known of each sample; of several workers the first puts together what each has written of its own."""
    from pipeline.results import to_csv, write_whole
    from pipeline.samples import Samples, columns_of, joined

    folder, workers = plan.config.folder, plan.workers
    assert outcome.each is not None
    assert outcome.ages is not None
    if workers is None:
        columns = columns_of(dynamics, outcome.ages)
        write_whole(folder / "losses.csv", to_csv(dynamics.looks))
    else:  # how the losses lay in between each knows of its own samples alone
        parts = [_part(plan.config, rank, workers.world) for rank in range(workers.world)]
        columns = joined(parts)
        for part in parts:
            part.unlink(missing_ok=True)
    Samples.of(plan.data, outcome.each, columns).write(folder / "samples.npz")


def _part(config: Config, rank: int, world: int) -> Path:
    return config.folder / f"samples-{rank}-of-{world}.npz"


if __name__ == "__main__":
    sys.exit(main())
