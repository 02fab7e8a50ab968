"""The commands of the pages for readers: all are known, with options that exist; the soak runs them, on a small budget.

What a command is, bash says (tests/pages.py), and what ``make`` would call, ``make``. Options go to the parser of the
program that they are for. In the soak what is ours is run for real, page by page in a folder of its own, but for what
``NOT_RUN`` names, with the reason, and for what starts a Ray, which tests/ray/test_docs.py does. A command that is none
of that fails. Ten seconds, the imports among them; the soak takes ten minutes.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import tyro

import train
from pipeline.workers import check_number, task
from tests.pages import PAGES, ROOT, Command, blocks, commands, on_ray

WITH_COMMANDS = [page for page in PAGES if blocks(page, "bash")]
NOT_RUN = {  # commands of the pages, as regular expressions, and why no test runs them as they stand
    r"python -m pytest( .*)?": "it is what runs this test",
    r"ruff (check|format) .*|mypy": "look at the sources, and `make check` is run by itself",
    r"pip install .*|python -m pip .*": "need a package index; the extras they name are looked up",
    r"python -m benchmarks\.peers\.install.*": "downloads gigabytes; tests/benchmarks/test_peers.py has it without",
    r"python -m benchmarks\.\w+ --peers": "needs what that installs",
    r"python -m tests\.mutation( .*)?": "takes an hour, and a download; tests/mutation is what it runs",
    r".*\bray start .*": "several machines; tests/ray/test_nodes.py has several nodes on one",
    r"RAY_ADDRESS=head:\d+ python train\.py .*": "several machines; without the address tests/ray/test_docs.py runs it",
    r"(?s)TF_CONFIG=.*\bhost0:.* python train\.py .*": "several machines, or Slurm; tests/pipeline/test_workers.py "
    "starts several processes on one",
}
SMALL = {  # what makes a benchmark a short one
    **dict.fromkeys(("sampler_throughput", "scale"), "--quick"),
    "pipeline_throughput": "--quick --data features --batches 32 --cores 1 --memory-batches 0",
    "step_overhead": "--quick --models tiny --losses mean_squared_error --batches 32 --jit False --cores 1",
    "learning": "--quick --tasks digits --methods pruning --seeds 1",
    "instructions": "--sizes 1000 --batches 32 --steps 2 --systems kernels",
}
REPORTS = ("comparing", "pipeline_report", "step_report")  # without options


def called(page: str, folder: Path) -> list[Command]:
    """All commands of a page, with what ``make`` calls in its place."""
    found = [command for block in blocks(page, "bash") for command in commands(block.text, folder)]
    return [each for command in found for each in expanded(command, folder)]


def expanded(command: Command, folder: Path) -> list[Command]:
    """Of ``make`` what it would call; everything is installed, it is told."""
    if command.words[0] != "make":
        return [command]
    dry = ["make", "-n", "--no-print-directory", "BIN=bin", "--old-file=.venv/installed", *command.words[1:]]
    told = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, f"{command}: {told.stderr}"
    return commands(told.stdout, folder)


def why_not_run(command: Command) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.fullmatch(pattern, str(command))), None)


# --- options ---------------------------------------------------------------------------------------


def check(command: Command) -> None:
    """Fail where the program does not take these options, or is none that is known here."""
    match command.words:
        case ("python", "train.py", *options):
            config = train.parse(options)
            check_number(config.workers, command.environment)
            assert bool(command.environment.get("TF_CONFIG")) == (task(command.environment) is not None)
        case ("python", "-m", "benchmarks.peers.install", *names):
            assert {*names} <= {path.stem for path in (ROOT / "benchmarks/peers/requirements").glob("*.txt")}
        case ("python", "-m", module, *options) if module in [f"benchmarks.{name}" for name in REPORTS]:
            assert not options
            assert importlib.util.find_spec(module)
        case ("python", "-m", module, *options) if module.split(".")[0] in ("benchmarks", "pipeline", "tests"):
            parse(module, options)
        case ("pip", "install", what):
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert {*re.fullmatch(r"[^\[]*(?:\[(.*)\])?", what)[1].split(",")} <= extras.keys()
        case ("ray", name, *options):
            pytest.importorskip("ray")
            from ray.scripts.scripts import cli

            cli.commands[name].make_context(name, options)
        case ("python", "-m", "pytest" | "pip", *_) | ("ruff" | "mypy", *_):
            assert why_not_run(command)
        case _:
            pytest.fail(f"no test knows the program of {command}")


class Parsed(Exception):
    """The options are those that there are."""


def parse(module: str, options: list[str]) -> None:
    """Begin ``python -m module options``, up to where its options are known to be right."""

    def no_further(parser: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> None:
            parser(*arguments, **named)
            raise Parsed

        return call

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        patch.setattr(tyro, "cli", no_further(tyro.cli))
        patch.setattr(argparse.ArgumentParser, "parse_args", no_further(argparse.ArgumentParser.parse_args))
        patch.setattr(sys, "argv", [module, *options])
        patch.setitem(sys.modules, "tests.mutation.mutants", MagicMock())  # needs what `make mutate` installs
        patch.chdir(ROOT)  # where the results are
        with pytest.raises(Parsed):
            runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_are_known_and_their_options_exist(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "bash"):
        assert commands(block.text, tmp_path), block
    for command in called(page, tmp_path):
        check(command)
        assert why_not_run(command) or on_ray(command) or runner(command), f"nobody runs {command}"


@pytest.mark.parametrize(
    ("line", "error", "said"),
    [
        ("python train.py --epoch 3", SystemExit, None),
        ("python train.py --sampling importanc", train.OptionError, "Did you mean 'importance'"),
        ("TF_CONFIG='{\"cluster\":' python train.py", ValueError, "cannot be read"),
        ("TF_CONFIG='{}' python train.py", AssertionError, None),
        ("python -m benchmarks.scale --report --assume.mtbf 30", SystemExit, None),
        ("python -m benchmarks.sampler_throughput --quickly", SystemExit, None),
        ("python -m benchmarks.step_report --quick", AssertionError, None),
        ("python -m pipeline.report", SystemExit, None),
        ('make mutate ARGS="--shares 1"', SystemExit, None),
        ("make trains", AssertionError, "No rule to make target"),
        ("make tests", ValueError, "Nothing to be done"),  # a folder
        ("pip install 'folder[rays]'", AssertionError, None),
        ("ray start --heads", Exception, "No such option"),
        ("python setup.py install", pytest.fail.Exception, "no test knows the program"),
        ("rm -r runs", ValueError, "rm: command not found"),
        ("python train.py --output 'runs", ValueError, "unexpected EOF"),
        ("if true; then make test", ValueError, "syntax error"),
    ],
)
def test_what_is_wrong_is_found(
    line: str, error: type[BaseException], said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):  # noqa: PT012
        for told in commands(line, tmp_path):
            for command in expanded(told, tmp_path):
                check(command)


def test_what_is_not_run_stands_on_a_page(tmp_path: Path) -> None:
    every = [str(command) for page in WITH_COMMANDS for command in called(page, tmp_path)]
    assert [pattern for pattern in NOT_RUN if not any(re.fullmatch(pattern, line) for line in every)] == []
    assert why_not_run(Command(("python", "train.py", "--epochs", "1"), {})) is None


def test_slurm_gives_each_task_a_place_of_its_own(tmp_path: Path) -> None:
    """The batch script is run by bash; of Slurm there is what it asks for, four hosts."""
    scripts = [block.text for page in WITH_COMMANDS for block in blocks(page, "bash") if "srun" in block.text]
    assert scripts
    for script in scripts:
        told = commands(script, tmp_path)
        assert [task(command.environment) for command in told] == [(rank, 4) for rank in range(4)]
        cluster = json.loads(told[0].environment["TF_CONFIG"])["cluster"]
        assert cluster == {"worker": [f"host{rank}:12345" for rank in range(4)]}


# --- for real --------------------------------------------------------------------------------------


class Interrupted(list):  # type: ignore[type-arg]
    """The signals that came to a training: SIGTERM, as it looks for the tenth time."""

    looked = 0

    def __bool__(self) -> bool:
        self.looked += 1
        if self.looked == 10:
            self.append(15)
        return len(self) > 0


def run_training(words: list[str], *, interrupted: bool) -> None:
    """``train.py`` in this process."""
    if "--compare" in words:
        words = [*words, "--budget", "1epochs", "--seeds", "1"]
    elif "--resume" not in words:
        words = [*words, "--epochs", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.report.plots.DPI", 40)
        if interrupted:
            patch.setattr("train.caught", lambda: nullcontext(Interrupted()))
        assert train.main([*words, "--quiet"]) == (128 + 15 if interrupted else 0)


def run_report(words: list[str]) -> None:
    from pipeline.report.__main__ import main

    assert main(words) == 0


def run_program(words: list[str], folder: Path) -> None:
    """Another one in a process of its own; a benchmark on the small budget, however much the page has it do."""
    name = words[1].rpartition(".")[2]
    if words[1].startswith("benchmarks.") and "--report" not in words:
        words = [*(word for word in words if word != "--quick"), *SMALL.get(name, "").split()]
    _run_once(tuple(words), folder)


@functools.cache
def _run_once(words: tuple[str, ...], folder: Path) -> None:
    """With a copy of the benchmarks, since they write beside themselves, and what they look for there."""
    if not (folder / "benchmarks").exists():
        shutil.copytree(ROOT / "benchmarks", folder / "benchmarks")
        for name in ("sampler", "pipeline", "trainer", "train.py"):
            (folder / name).symlink_to(ROOT / name)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        **{"PYTHONPATH": str(folder), "HOME": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3"},
    }
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr[-3000:]}"
    assert done.stdout.strip(), words
    print(*words)


def runner(command: Command) -> Callable[..., None] | None:
    """What runs a command for real; None where nothing does."""
    match command.words:
        case ("python", "train.py", *words):
            return lambda folder, interrupted: run_training(words, interrupted=interrupted)
        case ("python", "-m", "pipeline.report", *words):
            return lambda folder, interrupted: run_report(words)
        case ("python", "-m", module, *words) if module.startswith("benchmarks."):
            return lambda folder, interrupted: run_program(["-m", module, *words], folder)
        case ("ray", *words):
            return lambda folder, interrupted: run_program(["-m", "ray.scripts.scripts", *words], folder)
    return None


as_keras_saves = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def run_all(told: list[Command], folder: Path) -> None:
    """In their order; one that the next goes on with by ``--resume`` is interrupted."""
    for command, following in zip(told, [*told, Command((), {})][1:], strict=True):
        run = runner(command)
        assert run, command
        run(folder, interrupted="train.py" in command.words and "--resume" in following.words)


@as_keras_saves
def test_a_first_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = [command for block in blocks("docs/start.md", "bash") for command in commands(block.text, tmp_path)]
    trainings = [command for command in told if "train.py" in command.words]
    assert trainings
    run_all(trainings, tmp_path)


@pytest.mark.soak
@as_keras_saves
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    run_all([each for each in called(page, tmp_path) if not why_not_run(each) and not on_ray(each)], folder)
