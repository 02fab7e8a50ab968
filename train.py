"""Train a Keras model on batches drawn by loss, or uniformly, from one command line.

    python train.py                                         # digits, drawn by loss
    python train.py --sampling uniform --dataset checker
    python train.py --dataset npz:mine.npz --model my_models:small --output runs/mine
    python train.py --epochs 50 --print-config > long.yaml; python train.py --config long.yaml

It writes ``summary.json`` (the result), ``history.csv`` (a row an epoch) and ``config.yaml`` (all
options, for ``--config``) into the output folder; with ``--evaluate-every``, ``curve.csv`` as well.

From Python::

    from train import Config, run

    outcome = run(Config(sampling="importance", dataset="checker", epochs=4))

Options live here, the loop in :mod:`pipeline.training`. TensorFlow takes seconds to import, so it is
imported after the options are known to be right. Exit status: 0 done, 2 a mistake in the options,
130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
import yaml

if TYPE_CHECKING:
    import keras

    from pipeline.data import Data
    from pipeline.training import Outcome

PROGRAM = "train.py"
FAILED, MISTAKE, INTERRUPTED = 1, 2, 130  # exit status


@dataclass(frozen=True)
class Config:
    """Train a Keras model on batches drawn by loss, or uniformly.

    Options given here go before those of a --config file, and those before the defaults.
    """

    sampling: Literal["uniform", "importance"] = "importance"
    """How batches are drawn: in reshuffled passes, or by loss with importance weights."""
    dataset: str = "digits"
    """digits, digits-longtail, checker, peaks, npz:PATH or keras:NAME.
    PATH holds the arrays x, y and perhaps x_test, y_test.
    NAME is mnist, fashion_mnist, cifar10, cifar100 or imdb."""
    model: str = "auto"
    """auto (cnn for images, else mlp), mlp, cnn or module:function.
    A function of your own gets the data and returns a Keras model."""
    epochs: int = 20
    """Length of the training; an epoch is as many batches as cover the data set once."""
    batch_size: int = 32
    """Samples a batch."""
    learning_rate: float = 0.003
    """Adam's highest learning rate."""
    decay: Literal["cosine", "none"] = "cosine"
    """What becomes of the learning rate: down to 0 at the end of the training, or constant."""
    warmup_steps: int = 0
    """Steps over which the learning rate first rises from 0."""
    seed: int = 0
    """Fixes the first weights and all draws. The data are the same for every seed."""
    priority: Literal["loss", "sqrt", "bounded", "clipped"] = "loss"
    """Priority of a sample with loss l: l, sqrt(l) for squared errors, 1-exp(-l) for cross-entropy,
    or l up to the 95 % quantile of the recent losses, for labels that may be wrong.
    Used by importance alone, as are the four that follow."""
    uniform_fraction: float = 0.3
    """Share of the draws that is uniform: 0 by priority alone, 1 uniformly.
    No weight exceeds its inverse."""
    smoothing: float = 0.5
    """Share of its old priority that a sample keeps at a new loss: 0 none, near 1 almost all."""
    beta: float = 1.0
    """Exponent of the importance weights: 1 corrects for the draws fully, 0 not at all (biased)."""
    scheme: Literal["systematic", "multinomial", "stratified", "without_replacement"] = "systematic"
    """How a batch is drawn from the probabilities."""
    feedback_lag: int | None = 4
    """A draw uses exactly the losses of the steps up to so many before it, so that a seed fixes all.
    None: the losses that have arrived, which depends on timing."""
    evaluate_every: int | None = None
    """Steps between evaluations on the test set, for curve.csv.
    None: at the end of each epoch, for history.csv, alone."""
    output: Path | None = None
    """Folder for the results. None: runs/DATASET-SAMPLING-SEED."""
    config: Path | None = None
    """A yaml file of options, as --print-config prints it and every run writes it."""
    print_config: bool = False
    """Print all options as yaml and stop."""
    dry_run: bool = False
    """Build data, sampler and model, print the plan and stop; nothing is written."""
    quiet: bool = False
    """Print nothing but errors."""

    @property
    def folder(self) -> Path:
        """Where the results go."""
        plain = re.sub(r"[^\w.-]+", "-", self.dataset).strip("-")
        return self.output or Path("runs") / f"{plain}-{self.sampling}-{self.seed}"


NOT_SAVED = ("config", "print_config", "dry_run", "quiet")  # what to do, not what to train
KEYS = tuple(field.name for field in dataclasses.fields(Config) if field.name not in NOT_SAVED)


class OptionError(ValueError):
    """A mistake in the options, said in words; the program prints them and ends with status 2."""


class TrainingError(RuntimeError):
    """The training itself failed, said in words; the program prints them and ends with status 1."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with ``arguments`` (None: the command line's) and give its exit status."""
    try:
        config = parse(sys.argv[1:] if arguments is None else list(arguments))
        if config.print_config:
            print(to_yaml(config), end="")
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
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; no result was written", file=sys.stderr)
        return INTERRUPTED
    return 0


def run(config: Config, *, callbacks: Sequence[keras.callbacks.Callback] = ()) -> Outcome:
    """Train as ``config`` says; nothing is printed or written.

    Raises ``OptionError`` for options that are wrong or do not fit the data.
    """
    check(config)
    return prepare(config).train(callbacks)


def _execute(config: Config) -> None:
    import_tensorflow()
    from sampler import DivergedError

    plan = prepare(config)
    if config.dry_run or not config.quiet:
        print(plan, flush=True)
    if config.dry_run:
        return
    _check_folder(config.folder)
    with ExitStack() as stack:
        try:
            outcome = plan.train(() if config.quiet else [stack.enter_context(progress(plan))])
        except DivergedError as error:
            raise TrainingError(error) from error
    write_results(plan, outcome)
    if not config.quiet:
        print(f"{sentence(outcome)}; written to {config.folder}")


# --- options --------------------------------------------------------------------------------------


def parse(arguments: list[str]) -> Config:
    """The options of the command line over those of its ``--config`` file, checked."""
    file = _config_file(arguments)
    values = [] if file is None else _file_arguments(file)
    config = _parse(values + arguments)
    check(config)
    return config


def _parse(arguments: list[str]) -> Config:
    return tyro.cli(Config, args=arguments, prog=PROGRAM, config=(tyro.conf.FlagCreatePairsOff,))


def _config_file(arguments: list[str]) -> Path | None:
    """The last ``--config FILE`` or ``--config=FILE``; where FILE is missing, the parser says so."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument.startswith("--config="):
            found = argument.partition("=")[2]
        elif argument == "--config" and not following.startswith("--"):
            found = following
    return Path(found) if found and found != "None" else None


def _file_arguments(path: Path) -> list[str]:
    """The options of a yaml file as arguments, to be read and checked as those of the command line."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--config {path} cannot be read: {error}{_other_yaml(path)}") from error
    except yaml.YAMLError as error:
        raise OptionError(f"--config {path} is not yaml: {' '.join(str(error).split())}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise OptionError(f"--config {path} must hold lines of 'option: value', got {values!r:.60}")
    arguments = [_argument(path, str(key), value) for key, value in values.items()]
    try:
        _parse(arguments)
    except SystemExit:
        raise OptionError(f"the value above comes from --config {path}") from None
    return arguments


def _argument(path: Path, key: str, value: Any) -> str:
    name = key.replace("-", "_")
    if name not in KEYS:
        near = difflib.get_close_matches(name, KEYS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise OptionError(f"unknown option {key!r} in --config {path}.{hint} There are: {', '.join(KEYS)}")
    if isinstance(value, dict | list):
        raise OptionError(f"{key} in --config {path} must be a single value, got {value!r:.60}")
    return f"--{name.replace('_', '-')}={value}"


def _other_yaml(path: Path) -> str:
    found = sorted(str(file) for file in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), found, n=1)
    return f". Did you mean {near[0]}?" if near else ""


def to_yaml(config: Config) -> str:
    """The options as yaml that ``--config`` takes."""
    values = {key: getattr(config, key) for key in KEYS}
    values["output"] = None if config.output is None else str(config.output)
    return yaml.safe_dump(values, sort_keys=False)


def check(config: Config) -> None:
    """Raise ``OptionError`` for values that are wrong whatever the data are."""
    _require(config, "epochs", config.epochs >= 1, "at least 1")
    _require(config, "batch_size", config.batch_size >= 1, "at least 1")
    _require(config, "learning_rate", 0 < config.learning_rate < math.inf, "above 0 and finite")
    _require(config, "warmup_steps", config.warmup_steps >= 0, "at least 0")
    _require(config, "seed", 0 <= config.seed < 2**32, "in 0..4294967295")
    every = config.evaluate_every
    _require(config, "evaluate_every", every is None or every >= 1, "at least 1, or None")
    # The samplers check what is theirs; importance's options are checked for uniform draws, too.
    make_sampler(dataclasses.replace(config, sampling="importance"), num_samples=1)


def _require(config: Config, name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise OptionError(f"--{name.replace('_', '-')} must be {rule}, got {getattr(config, name)}")


# --- building -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """All that a run needs, built."""

    config: Config
    data: Data
    model: keras.Model
    sampler: Any

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.config.epochs * math.ceil(len(self.data) / self.config.batch_size)

    def train(self, callbacks: Sequence[keras.callbacks.Callback] = ()) -> Outcome:
        """Train the model."""
        from pipeline.training import train

        config = self.config
        return train(
            self.data,
            self.model,
            self.sampler,
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            decay=config.decay,
            warmup_steps=config.warmup_steps,
            evaluate_every=config.evaluate_every,
            callbacks=callbacks,
        )

    def __str__(self) -> str:
        config, data = self.config, self.data
        return (
            f"{config.sampling} on {data.name}: {self.steps:,} steps of {config.batch_size} "
            f"({config.epochs} epochs), {len(data):,} samples to train on, {len(data.x_test):,} to test, "
            f"{self.model.name} with {self.model.count_params():,} parameters, seed {config.seed}"
        )


def prepare(config: Config) -> Plan:
    """Load the data, build model and sampler; ``OptionError`` where the options do not fit them."""
    from pipeline.data import load_data
    from pipeline.models import build_model
    from pipeline.training import make_reproducible

    try:
        data = load_data(config.dataset)
        make_reproducible(config.seed)
        plan = Plan(config, data, build_model(config.model, data), make_sampler(config, len(data)))
    except (ValueError, OSError, ImportError) as error:
        raise OptionError(error) from error
    if config.scheme == "without_replacement" and config.batch_size > len(data):
        raise OptionError(
            f"--scheme without_replacement cannot draw --batch-size {config.batch_size} different samples "
            f"out of {len(data)}; take a batch size of {len(data)} or less, or another scheme"
        )
    _require(config, "warmup_steps", config.warmup_steps < plan.steps, f"below the {plan.steps} steps")
    return plan


def make_sampler(config: Config, num_samples: int) -> Any:
    """The sampler that ``config`` asks for."""
    from sampler import ImportanceSampler, UniformSampler

    lag, seed = config.feedback_lag, config.seed
    if config.sampling == "uniform":
        return UniformSampler(num_samples, feedback_lag=lag, seed=seed)
    try:
        return ImportanceSampler(
            num_samples,
            priority=config.priority,
            uniform_fraction=config.uniform_fraction,
            smoothing=config.smoothing,
            beta=config.beta,
            scheme=config.scheme,
            feedback_lag=lag,
            seed=seed,
        )
    except ValueError as error:
        raise OptionError(error) from error


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


# --- progress and results -------------------------------------------------------------------------


@contextlib.contextmanager
def progress(plan: Plan) -> Iterator[keras.callbacks.Callback]:
    """A callback that shows how far the training is: a bar on a terminal, else about ten lines in all."""
    import keras
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield keras.callbacks.LambdaCallback(on_epoch_end=_line_writer(plan.config.epochs))
        return
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=plan.steps)
        yield keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.advance(task))


def _line_writer(epochs: int) -> Callable[[int, dict[str, Any]], None]:
    def write(epoch: int, logs: dict[str, Any]) -> None:
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


def summary(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """What goes into summary.json: equal for equal options, but for ``seconds``."""
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
        "sampler": plan.sampler.summary(),
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
