"""Does it pay? The same training with uniform and with importance sampling, on two tasks.

    python -m benchmarks.uniform_vs_importance          # what `make train` runs, about a minute
    python -m benchmarks.uniform_vs_importance --seed 1

Trains what ``train.py --sampling uniform`` and ``train.py --sampling importance`` train, with the same seed, budget and
learning rate (decayed to the end of the budget), on the handwritten digits and on ``checker``, and ends with a
table and a sentence for each task. The sentence says what the figures say, whichever it is.

One seed is an impression, not evidence: on tasks as small as the digits two seeds differ by more than two samplings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

import train

if TYPE_CHECKING:
    from pipeline.training import Outcome

Sampling = Literal["uniform", "importance"]
Outcomes = dict[Sampling, "Outcome"]

POINTS = 40  # of the budget at which the test loss is looked at
TASKS = {"digits": 20, "checker": 4}  # epochs; of 43 and of 1,563 steps
SAMPLINGS: tuple[Sampling, ...] = ("uniform", "importance")
SAME = 0.05  # relative difference of test losses below which they are called the same
WIDTH = 120  # of the tables where the output is no terminal
HEADINGS = (
    "sampling",
    "steps",
    "seconds",
    "training loss",
    "test loss",
    "test accuracy",
    "worst class",
    "steps to uniform's\nfinal test loss",
)


@dataclass(frozen=True)
class Options:
    """Train with uniform and with importance sampling, and compare."""

    seed: int = 0
    """Of the first weights and the draws, the same for both samplings."""
    share: float = 1.0
    """Share of the epochs to train, for a quick look."""


def main(options: Options) -> dict[str, Outcomes]:
    """Train, print the tables, and give the outcomes by task and sampling."""
    train.import_tensorflow()
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    outcomes = {}
    for task, epochs in TASKS.items():
        base = train.Config(dataset=task, epochs=max(1, round(epochs * options.share)), seed=options.seed)
        outcomes[task] = {sampling: run(base, sampling, console) for sampling in SAMPLINGS}
    for task, of_task in outcomes.items():
        console.print(table(task, of_task))
        console.print(verdict(task, of_task), "\n", highlight=False, soft_wrap=True)
    return outcomes


def run(base: train.Config, sampling: Sampling, console: Console) -> Outcome:
    """Train as ``train.py --sampling`` does, looking at the test loss at forty points of the budget."""
    plan = train.prepare(replace(base, sampling=sampling))
    plan = replace(plan, config=replace(plan.config, evaluate_every=max(1, plan.steps // POINTS)))
    console.print(str(plan), highlight=False, soft_wrap=True)
    with train.progress(plan) as callback:
        return plan.train([callback])


def steps_to(outcome: Outcome, loss: float) -> int | None:
    """The first step at which the test loss was at most ``loss``; None: never."""
    reached = [row["step"] for row in outcome.curve if (row["test_loss"] or 0.0) <= loss]
    if not reached and outcome.test_loss <= loss:
        return outcome.steps
    return int(reached[0] or 0) if reached else None


def table(task: str, outcomes: Outcomes) -> Table:
    """One row a sampling."""
    result = Table(title=task, title_justify="left", box=box.SIMPLE)
    for heading in HEADINGS:
        result.add_column(heading, justify="left" if heading == "sampling" else "right", no_wrap=True)
    target = outcomes["uniform"].test_loss
    for sampling, outcome in outcomes.items():
        result.add_row(
            sampling,
            f"{outcome.steps:,}",
            f"{outcome.seconds:.1f}",
            f"{outcome.train_loss:.5f}",
            f"{outcome.test_loss:.5f}",
            _percent(outcome.test_accuracy),
            _percent(outcome.worst_class_accuracy),
            f"{steps:,}" if (steps := steps_to(outcome, target)) is not None else "never",
        )
    return result


def verdict(task: str, outcomes: Outcomes) -> str:
    """Whether it paid, by test loss at equal steps, and what a step cost."""
    uniform, importance = outcomes["uniform"], outcomes["importance"]
    ratio = importance.test_loss / uniform.test_loss if uniform.test_loss else math.inf
    cost = importance.seconds / uniform.seconds
    if ratio < 1 - SAME:
        steps = steps_to(importance, uniform.test_loss)
        share = f" after {steps / uniform.steps:.0%} of its steps" if steps is not None else ""
        return (
            f"On {task} importance sampling paid: it ended at {ratio:.2f} times uniform's test loss and reached "
            f"uniform's final test loss{share}, in {cost:.2f} times the seconds."
        )
    if ratio <= 1 + SAME:
        return (
            f"On {task} importance sampling did not pay: its test loss was {ratio:.2f} times uniform's, a difference "
            f"that another seed may turn round, in {cost:.2f} times the seconds."
        )
    return (
        f"On {task} importance sampling did not pay: its test loss was {ratio:.2f} times uniform's, in {cost:.2f} "
        "times the seconds."
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


if __name__ == "__main__":
    main(tyro.cli(Options))
