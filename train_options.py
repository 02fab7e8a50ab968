"""The options of ``train.py``: what there are, where they come from, and which are wrong.

    from train_options import Config, parse

    config = parse(["--sampling", "uniform", "--config", "mine.yaml"])      # over the file's, over the defaults

One dataclass is the command line (``tyro`` makes it) and the yaml file. TensorFlow is not imported here, so a mistake
in the options is told at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
import yaml

from train_samplings import SAMPLINGS, check_samplers
from train_scorers import check_scorers

PROGRAM = "train.py"


class OptionError(ValueError):
    """A mistake in the options, said in words; the program prints them and ends with status 2."""


@dataclass(frozen=True)
class Config:
    """Train a Keras model on batches drawn by loss, or uniformly.

    Options given here go before those of a --config file, and those before the defaults.
    """

    sampling: Literal[
        "uniform", "importance", "ranked", "pruning", "selective", "reducible", "presampled", "class-balanced"
    ] = "importance"
    """How batches are drawn: uniform in reshuffled passes, importance by loss with weights that correct for it,
    ranked by the rank of the loss, pruning in passes without a part of the learnt samples, selective in passes of
    the harder ones (biased), reducible by loss over that of a reference, presampled out of a larger uniform batch
    by a forward pass, class-balanced with rare classes more often."""
    dataset: str = "digits"
    """digits, digits-longtail, digits-noisy, digits-pixels, checker, peaks, heavy-rows, heavy-linear, teacher,
    gaussians, clusters, countries, npz:PATH or keras:NAME.
    PATH holds the arrays x, y and perhaps x_test, y_test.
    NAME is mnist, fashion_mnist, cifar10, cifar100 or imdb."""
    model: str = "auto"
    """auto (cnn for images, else mlp), mlp, cnn, lstm, linear or module:function.
    A function of your own gets the data and returns a Keras model."""
    epochs: int = 20
    """Length of the training; an epoch is as many batches as cover the data set once, for every sampling."""
    budget: str | None = None
    """Length in place of --epochs: 20epochs, 3000steps or 120s. For seconds a short trial tells how many steps that
    is, after compiling; each sampling has a trial of its own."""
    batch_size: int = 32
    """Samples a batch."""
    learning_rate: float = 0.003
    """The highest learning rate that is reached."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or gradient descent without momentum."""
    loss: Literal["auto", "focal"] = "auto"
    """What is trained on: auto is cross-entropy for classes and the squared error for quantities; focal is the focal
    loss. What is reported is always that of auto."""
    decay: Literal["cosine", "none"] = "cosine"
    """What becomes of the learning rate: down to 0 at the end of the training, or constant."""
    warmup_steps: int = 0
    """Steps over which the learning rate first rises from 0."""
    seed: int = 0
    """Fixes the first weights and all draws. The data are the same for every seed."""
    priority: Literal["loss", "sqrt", "bounded", "clipped", "gradient_norm", "auto"] = "loss"
    """Priority of a sample with loss l: l, sqrt(l) for squared errors, 1-exp(-l) for cross-entropy, l up to the 95 %
    quantile of the recent losses for labels that may be wrong, the norm of the gradient at the last layer, or auto,
    what suits the loss function. Used by importance alone, as is the next."""
    gate: Literal["variance", "speedup", "none"] = "variance"
    """Draws are by priority only while that pays: by the variance of the gradient that batches show, by the criterion
    of Katharopoulos & Fleuret, or none: always."""
    uniform_fraction: float = 0.3
    """Share of the draws that is uniform: 0 by priority alone, 1 uniformly.
    No weight exceeds its inverse. Used by importance, ranked and reducible, as are the four that follow."""
    smoothing: float = 0.5
    """Share of its old priority that a sample keeps at a new loss: 0 none, near 1 almost all."""
    beta: float = 1.0
    """Exponent of the importance weights: 1 corrects for the draws fully, 0 not at all (biased)."""
    scheme: Literal["systematic", "multinomial", "stratified", "without_replacement"] = "systematic"
    """How a batch is drawn from the probabilities."""
    first_pass: float = 0.3
    """Share of the samples that are looked at once before priorities are used; the rest then start with the mean."""
    warmup: int = 0
    """Epochs of uniform draws before priorities are used, beside the first, which is then a whole one."""
    finish: float | None = None
    """Share of the training, at its end, on uniform data, for pruning as well. None: an eighth for pruning, nothing
    for others."""
    refresh: float = 0.0
    """Samples not seen for long whose loss is looked at by a forward pass, for each sample trained on."""
    prune: float = 0.5
    """Share of the samples below the mean loss that pruning leaves out of a pass."""
    selectivity: float = 1.0
    """How much selective prefers the harder samples: 0 not at all, 1 keeps half of the samples, 2 a third."""
    presample: float = 3.0
    """Samples that presampled scores for each that it trains on."""
    balance: float = 0.999
    """How far class-balanced evens out the classes: 0 not at all, 1 fully."""
    reference: str | None = None
    """For reducible: a .npy file of the loss of each sample under another model, or auto: two models like the one
    trained, each on a half of the data, score the half they did not see. That takes as long as a training."""
    feedback_lag: int | None = 4
    """A draw uses exactly the losses of the steps up to so many before it, so that a seed fixes all.
    None: the losses that have arrived, which depends on timing."""
    evaluate_every: int | None = None
    """Steps between evaluations on the test set, for curve.csv.
    None: at the end of each epoch, for history.csv, alone."""
    save_every: str | None = "300s"
    """How often a snapshot of the whole training is saved: like 500steps or 60s. None: at its end, and when it is
    interrupted, alone."""
    resume: bool = False
    """Go on from the newest snapshot in the output folder, with the options of its config.yaml; from the beginning
    where there is none."""
    workers: int = 1
    """Processes that train one model together, on Ray: each on a part of the samples, with --batch-size of its own."""
    scorers: int = 0
    """Processes on Ray that score the samples not seen for longest with the newest model, beside a training by
    importance. Losses then count as they arrive (--feedback-lag None, --gate none), and the first pass is whole, or
    none."""
    compare: str | None = None
    """Several samplings, compared over --seeds: uniform,importance,pruning. Options of their own stand behind:
    uniform,importance:priority=sqrt:learning_rate=0.01. The first is what the others are held against."""
    seeds: int = 5
    """Of a comparison: how many, from --seed on."""
    output: Path | None = None
    """Folder for the results. None: runs/DATASET-SAMPLING-SEED, or runs/DATASET-comparison."""
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
        which = "comparison" if self.compare else f"{self.sampling}-{self.seed}"
        return self.output or Path("runs") / f"{plain}-{which}"


NOT_SAVED = ("config", "print_config", "dry_run", "quiet", "resume")  # what to do, not what to train
WEIGHTED = ("importance", "ranked", "reducible")
USED_BY = {  # the samplings that an option is for; the others are for all
    **dict.fromkeys(("priority", "gate"), ("importance",)),
    **dict.fromkeys(("uniform_fraction", "smoothing", "beta", "first_pass", "warmup"), WEIGHTED),
    "scheme": (*WEIGHTED, "class-balanced"),
    "finish": (*WEIGHTED, "pruning"),
    "prune": ("pruning",),
    "selectivity": ("selective",),
    "presample": ("presampled",),
    "balance": ("class-balanced",),
    "reference": ("reducible",),
}
METHOD_KEYS = (  # what a method of --compare may have for itself
    *("budget", "learning_rate", "decay", "warmup_steps", "loss", *USED_BY, "refresh", "feedback_lag"),
)
UNITS = {"epochs": "epochs", "epoch": "epochs", "steps": "steps", "step": "steps", "s": "seconds"}
KEYS = tuple(field.name for field in dataclasses.fields(Config) if field.name not in NOT_SAVED)


def parse(arguments: list[str]) -> Config:
    """The options of the command line over those of its ``--config`` file, checked."""
    file = _config_file(arguments)
    values = [] if file is None else _file_arguments(file)
    config = _parse(values + arguments)
    if config.resume and (config.folder / "config.yaml").is_file():
        begun = _file_arguments(config.folder / "config.yaml")
        config = _parse(begun + values + arguments)
        if Budget.of(config).unit == "seconds":  # by now it is known how many steps these are
            config = dataclasses.replace(config, budget=_parse(begun).budget)
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
    _require(config, "warmup", config.warmup >= 0, "at least 0")
    _require(config, "refresh", 0 <= config.refresh < math.inf, "at least 0 and finite")
    _require(config, "presample", 1 <= config.presample < math.inf, "at least 1 and finite")
    _require(config, "seeds", config.seeds >= 1, "at least 1")
    _require(config, "workers", config.workers >= 1, "at least 1")
    finish = config.finish
    _require(config, "finish", finish is None or 0 <= finish <= 1, "in 0..1, or None")
    Budget.of(config)
    if config.save_every is not None:
        _require(config, "save_every", _is_interval(config.save_every), "like 500steps or 60s, or None")
    if config.refresh and config.sampling == "presampled":
        raise OptionError(
            "--refresh is for samplings that remember losses; presampled scores what it draws from anyway"
        )
    if config.workers > 1:
        check_for_several(config)
    if config.resume and config.compare is not None:
        raise OptionError("--resume is for a single training; a comparison begins anew")
    try:
        check_scorers(config)
        check_samplers(config)  # the samplers check what is theirs, whichever is chosen
    except (ValueError, TypeError) as error:
        raise OptionError(error) from error
    if config.compare is not None:
        for method in methods_of(config).values():
            check(method)


def check_for_several(config: Config) -> None:
    """Raise ``OptionError`` for what several processes cannot do together."""
    for name, given, instead in (
        ("compare", config.compare is not None, "compare in one process"),
        ("budget", Budget.of(config).unit == "seconds", "give it in epochs or steps"),
        ("sampling", config.sampling == "presampled", "take another one"),
    ):
        if given:
            value = getattr(config, name)
            raise OptionError(f"--{name} {value} is for one process, and here are several; {instead}")


def without_effect(config: Config) -> list[str]:
    """The options that were given and that the sampling has no use for, as they are written."""
    default = Config()
    changed = [name for name in USED_BY if getattr(config, name) != getattr(default, name)]
    return [f"--{name.replace('_', '-')}" for name in changed if config.sampling not in USED_BY[name]]


def _amount(text: str) -> tuple[float, str] | None:
    """``20epochs`` as 20.0 and ``"epochs"``, a unit's full name; None for what cannot be read, or is none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text)
    unit = UNITS.get(found[2]) if found else None
    count = float(found[1]) if found else 0.0
    return None if unit is None or count <= 0 or (unit != "seconds" and count % 1) else (count, unit)


def _is_interval(text: str) -> bool:
    found = _amount(text)
    return found is not None and found[1] != "epochs"


def _require(config: Config, name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise OptionError(f"--{name.replace('_', '-')} must be {rule}, got {getattr(config, name)}")


@dataclass(frozen=True)
class Budget:
    """How long to train: ``count`` of ``unit``, which is ``"epochs"``, ``"steps"`` or ``"seconds"``."""

    count: float
    unit: str

    @classmethod
    def of(cls, config: Config) -> Budget:
        """Of ``--budget``, else of ``--epochs``; ``OptionError`` for one that cannot be read."""
        if config.budget is None:
            return cls(config.epochs, "epochs")
        found = _amount(config.budget)
        if found is None:
            raise OptionError(f"--budget must be like 20epochs, 3000steps or 120s, got {config.budget!r}")
        return cls(*found)

    def steps(self, num_samples: int, batch_size: int) -> int | None:
        """How many steps that is; None for seconds, which have to be tried."""
        if self.unit == "seconds":
            return None
        return int(self.count) * (math.ceil(num_samples / batch_size) if self.unit == "epochs" else 1)


def methods_of(config: Config) -> dict[str, Config]:
    """The methods of ``--compare``, each as the options of a run; ``OptionError`` for what is none."""
    names = [name.strip() for name in (config.compare or "").split(",")]
    if len(names) < 2 or len(set(names)) < len(names):
        raise OptionError(
            f"--compare must name two samplings or more, each once, like uniform,importance; got {config.compare!r}"
        )
    return {name: method_of(config, name) for name in names}


def method_of(config: Config, text: str) -> Config:
    """``name:option=value:...`` over the other options."""
    name, *options = text.split(":")
    if name not in SAMPLINGS:
        near = difflib.get_close_matches(name, SAMPLINGS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise OptionError(f"unknown sampling {name!r} in --compare.{hint} There are: {', '.join(SAMPLINGS)}")
    arguments = []
    for option in options:
        key, equals, value = option.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in METHOD_KEYS:
            raise OptionError(
                f"{text!r} in --compare must be a sampling with option=value behind colons, got {option!r}. "
                f"A method's own can be: {', '.join(METHOD_KEYS)}"
            )
        arguments.append(f"--{key.replace('_', '-')}={value.strip()}")
    base = _file_like(dataclasses.replace(config, compare=None, sampling=name))  # type: ignore[arg-type]
    try:
        return dataclasses.replace(_parse([*base, *arguments]), config=config.config, quiet=config.quiet)
    except SystemExit:
        raise OptionError(f"the value above comes from {text!r} in --compare") from None


def _file_like(config: Config) -> list[str]:
    """All options as arguments."""
    return [f"--{key.replace('_', '-')}={getattr(config, key)}" for key in KEYS]
