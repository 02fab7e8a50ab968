"""How ``train.py --compare`` compares samplings: their runs over the seeds, and what is written and said of them.

    from trainer.comparison import compare
    from trainer.config import Config

    comparison = compare(Config(dataset="checker", compare="uniform,pruning", seeds=3, budget="60s"))

A comparison writes ``comparison.csv`` (a row a run), ``curves.csv``, ``comparison.json``, ``comparison.png`` and
``config.yaml``. What it says is made in :mod:`pipeline.comparing`. TensorFlow is imported on use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config import Budget, Config, to_yaml
from trainer.options import check, methods_of
from trainer.plan import in_steps, prepare
from trainer.saving import check_folder, write_report
from trainer.telling import say

if TYPE_CHECKING:
    from pipeline.comparing import Comparison
    from pipeline.training import Outcome

CURVE_POINTS = 40  # of a run
WIDTH = 120  # of the table where the output is no terminal


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

    from pipeline.recording import telling_steps
    from pipeline.training import diverged
    from sampler import DivergedError

    keras.utils.clear_session()
    plan = prepare(config)
    try:
        return plan.train([telling_steps(tell)])
    except DivergedError:
        return diverged(plan.steps)


def execute_comparison(config: Config) -> None:
    """What the program does with ``--compare``: the plans of a dry run, or the comparison, its files and its table."""
    from pipeline.results import counted, write_whole

    if config.dry_run:
        for method in methods_of(config).values():
            print(prepare(method, trial=True))
        print(f"each with {counted(config.seeds, 'seed')}")
        return
    check_folder(config.folder)
    write_whole(config.folder / "config.yaml", to_yaml(config))  # so that --resume knows that it is a comparison
    if not config.quiet:
        length = config.budget or counted(config.epochs, "epoch")
        say(f"{config.compare} on {config.dataset}: {length} each, {counted(config.seeds, 'seed')}")
    comparison = compare(config)
    said, page = write_comparison(config, comparison)
    if not config.quiet:
        _print_comparison(config, comparison)
        say(f"\nwritten to {config.folder}{said}")
        if page is not None:
            say(f"to look at {page}")


def _print_comparison(config: Config, comparison: Comparison) -> None:
    from rich.console import Console

    from pipeline.comparing import to_tables, verdict
    from pipeline.results import counted

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for table in to_tables(comparison, f"{config.dataset}, {config.budget or counted(config.epochs, 'epoch')}"):
        console.print(table)
    console.print(verdict(comparison), highlight=False, soft_wrap=True, markup=False)


def write_comparison(config: Config, comparison: Comparison) -> tuple[str, Path | None]:
    """Write the files of a comparison; comparison.json last. What to say of those that are missing, and the page."""
    from pipeline.comparing import to_dict, verdict
    from pipeline.results import to_csv, to_json, write_whole

    folder, said = config.folder, ""
    write_whole(folder / "config.yaml", to_yaml(_with_steps(config, comparison)))
    write_whole(folder / "comparison.csv", to_csv(comparison.rows()))
    write_whole(folder / "curves.csv", to_csv(comparison.curve_rows()))
    about = {"dataset": config.dataset, "model": config.model, "length": config.budget or f"{config.epochs}epochs"}
    try:
        from pipeline.comparison_plot import draw

        draw(comparison, folder / "comparison.png", config.dataset)
    except ImportError as error:
        said = f", without a picture ({error}; the extra plots has it)"
    write_whole(folder / "comparison.json", to_json({**about, **to_dict(comparison), "verdict": verdict(comparison)}))
    missing = write_report(folder) if config.report else None
    page = folder / "report.html" if config.report and missing is None else None
    return missing or said, page


def _with_steps(config: Config, comparison: Comparison) -> Config:
    """The same comparison with the steps in place of seconds: how many they come to depends on the machine."""
    if Budget.of(config).unit != "seconds":
        return config
    steps = {run.method: run.steps for run in comparison.runs}
    return replace(config, compare=",".join(f"{name}:budget={steps[name]}steps" for name in comparison.methods))
