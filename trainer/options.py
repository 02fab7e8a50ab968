"""The options of ``train.py``: where they come from, and which are wrong.

    from trainer.options import parse

    config = parse(["--sampling", "uniform", "--config", "mine.yaml"])      # over the file's, over the defaults

One dataclass, :class:`trainer.config.Config`, is the command line (``tyro`` makes it) and the yaml file. TensorFlow is
not imported here, so a mistake in the options is told at once.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro
import yaml

from trainer.config import GROUPS, KEYS, PROGRAM, Budget, Config, OptionError, amount
from trainer.samplings import SAMPLINGS, check_samplers
from trainer.scorers import check_scorers

MOST = 10_000  # seeds of a comparison, and processes
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


def parse(arguments: list[str]) -> Config:
    """The options of the command line over those of its ``--config`` file, checked."""
    _check_words(arguments)
    file = _config_file(arguments)
    values = [] if file is None else _file_arguments(file)
    config = _parse(values + arguments)
    if config.resume and (config.folder / "config.yaml").is_file():
        begun = _file_arguments(config.folder / "config.yaml")
        config = _parse(begun + values + arguments)
        if Budget.of(config).unit == "seconds":  # by now it is known how many steps these are
            before = _parse(begun)
            if Budget.of(before).unit != "steps":
                length = f"--epochs {before.epochs}" if before.budget is None else f"--budget {before.budget}"
                raise OptionError(f"the run in {config.folder} is one of {length}, not of --budget {config.budget}")
            config = dataclasses.replace(config, budget=before.budget)
    check(config)
    return config


def _parse(arguments: list[str]) -> Config:
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    found = tyro.cli(_grouped(), args=arguments, prog=PROGRAM, config=markers, description=inspect.getdoc(Config))
    return Config(**{name: value for group in vars(found).values() for name, value in vars(group).items()})


@functools.cache
def _grouped() -> Any:
    """``Config`` with its options in groups, for --help; what is said of each becomes one paragraph."""
    (class_of,) = ast.parse(inspect.getsource(Config)).body
    lines = list(ast.iter_child_nodes(class_of))
    said = {
        line.target.id: " ".join(below.value.value.split())
        for line, below in itertools.pairwise(lines)
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }
    kinds, groups = get_type_hints(Config), []
    for title, names in GROUPS.items():
        fields = [
            (name, Annotated[kinds[name], tyro.conf.arg(help=said[name])], getattr(Config, name)) for name in names
        ]
        group = dataclasses.make_dataclass(title.capitalize(), fields, frozen=True)
        groups.append((title, group, dataclasses.field(default_factory=group)))
    return dataclasses.make_dataclass("Options", groups)


def _check_words(arguments: list[str]) -> None:
    """``OptionError`` that names the nearest for a word that an option does not take; the parser would list all."""
    for name, kind in get_type_hints(Config).items():
        option, words = f"--{name.replace('_', '-')}", get_args(kind)
        given = _given(option, arguments)
        if get_origin(kind) is not Literal or given is None or given in words:
            continue
        if hint := _hint(given, words):
            raise OptionError(f"{option} must be one of {', '.join(words)}, got {given!r}.{hint}")


def _hint(given: str, words: Iterable[str]) -> str:
    """Which of these may have been meant, to be put behind a sentence; nothing where none is near."""
    near = difflib.get_close_matches(given, words, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _given(option: str, arguments: list[str]) -> str | None:
    """The value that an option is given last, as ``--option value`` or ``--option=value``; None where it is not."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument.startswith(f"{option}="):
            found = argument.partition("=")[2]
        elif argument == option and not following.startswith("--"):
            found = following
    return found


def _config_file(arguments: list[str]) -> Path | None:
    """The file of ``--config``; where FILE is missing, the parser says so."""
    found = _given("--config", arguments)
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
        raise OptionError(f"unknown option {key!r} in --config {path}.{_hint(name, KEYS)} There are: {', '.join(KEYS)}")
    if isinstance(value, bool) and not isinstance(getattr(Config, name), bool):
        raise OptionError(f"{key} in --config {path} is {value} to yaml; put a word like on or yes into quotes")
    if isinstance(value, dict | list):
        raise OptionError(f"{key} in --config {path} must be a single value, got {value!r:.60}")
    return f"--{name.replace('_', '-')}={value}"


def _other_yaml(path: Path) -> str:
    found = sorted(str(file) for file in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), found, n=1)
    return f". Did you mean {near[0]}?" if near else ""


def check(config: Config) -> None:
    """Raise ``OptionError`` for values that are wrong whatever the data are."""
    output = config.output
    _require(config, "output", output is None or not re.match(r"[a-z0-9+.-]{2,}:/", str(output)), "a folder on a disk")
    _require(config, "epochs", config.epochs >= 1, "at least 1")
    _require(config, "batch_size", 1 <= config.batch_size < 2**31, "in 1..2147483647")
    _require(config, "learning_rate", 0 < config.learning_rate < math.inf, "above 0 and finite")
    _require(config, "warmup_steps", config.warmup_steps >= 0, "at least 0")
    _require(config, "seed", 0 <= config.seed < 2**32, "in 0..4294967295")
    every = config.evaluate_every
    _require(config, "evaluate_every", every is None or every >= 1, "at least 1, or None")
    _require(config, "warmup", config.warmup >= 0, "at least 0")
    _require(config, "refresh", 0 <= config.refresh < math.inf, "at least 0 and finite")
    _require(config, "presample", 1 <= config.presample < math.inf, "at least 1 and finite")
    _require(config, "seeds", 1 <= config.seeds <= MOST, f"in 1..{MOST}")
    _require(config, "workers", 1 <= config.workers <= MOST, f"in 1..{MOST}")
    _require(config, "scorers", 0 <= config.scorers <= MOST, f"in 0..{MOST}")
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
        ("tensorboard", config.tensorboard, "leave it out; there is the report"),
    ):
        if given:
            value = getattr(config, name)
            raise OptionError(f"--{name} {value} is for one process, and here are several; {instead}")


def without_effect(config: Config) -> list[str]:
    """The options that were given and that the sampling has no use for, as they are written."""
    default = Config()
    changed = [name for name in USED_BY if getattr(config, name) != getattr(default, name)]
    return [f"--{name.replace('_', '-')}" for name in changed if config.sampling not in USED_BY[name]]


def _is_interval(text: str) -> bool:
    found = amount(text)
    return found is not None and found[1] != "epochs"


def _require(config: Config, name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise OptionError(f"--{name.replace('_', '-')} must be {rule}, got {getattr(config, name)}")


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
        known = ", ".join(SAMPLINGS)
        raise OptionError(f"unknown sampling {name!r} in --compare.{_hint(name, SAMPLINGS)} There are: {known}")
    arguments = []
    for option in options:
        key, equals, value = option.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in METHOD_KEYS:
            raise OptionError(
                f"{text!r} in --compare must be a sampling with option=value behind colons, got {option!r}."
                f"{_hint(key, METHOD_KEYS)} A method's own can be: {', '.join(METHOD_KEYS)}"
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
