"""The page of one training, and its sections about the run: does it learn, what were the draws worth?"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from pipeline.report import plots
from pipeline.report.findings import groups
from pipeline.report.folder import Row, Run
from pipeline.report.page import Page, Section, Table
from pipeline.report.samples import of_ages, of_groups, of_hardest, of_map, of_suspects
from pipeline.report.words import loss_pictures, number, percent, picture
from pipeline.samples import Samples

OF_SAMPLING = ("effective_fraction", "max_weight", "gain", "by_priority")  # columns of the history


def of_run(run: Run, uniform: Run | None) -> Page:
    """The page of one training."""
    summary = run.summary
    fitted = summary.get("program") == "fit"
    sections = [_of_test_loss(run, uniform)] if _tested(run) else []
    if run.history and {*OF_SAMPLING} <= run.history[-1].keys():
        sections.append(_of_sampling(run))
    if run.losses:
        sections.append(_of_losses(run))
    if run.samples is not None:
        sections += _of_samples(run.samples)
    facts = {
        "val_loss" if fitted else "test loss": number(summary.get("test_loss")),
        "test accuracy": percent(summary.get("test_accuracy")),
        "worst class": percent(summary.get("worst_class_accuracy")),
        "mean loss of the samples" if fitted else "training loss": number(summary.get("train_loss")),
        "steps": f"{summary['steps']:,}",
        "training took": f"{summary['seconds']:.1f} s",
    }
    return Page(
        title=f"{summary['sampling']} sampling on {summary['dataset']}",
        subtitle=_subtitle(summary),
        facts={name: value for name, value in facts.items() if value != "-"},
        sections=sections,
    )


def _of_samples(samples: Samples) -> list[Section]:
    """What there is to say of single samples; of those that were never drawn only their losses at the end."""
    if not samples.drawn.any():
        return [of_hardest(samples)]
    suspected = [of_suspects(samples)] if samples.num_classes else []
    return [
        of_groups(samples, groups(samples)),
        of_map(samples),
        *suspected,
        of_hardest(samples),
        of_ages(samples),
    ]


def _subtitle(summary: dict[str, Any]) -> str:
    said = [f"{summary['model']} with {summary['parameters']:,} parameters"]
    if "batch_size" in summary:
        said.append(f"batches of {summary['batch_size']}")
    said.append(f"learning rate {number(summary.get('learning_rate'))}")
    if "seed" in summary:
        said.append(f"seed {summary['seed']}")
    return ", ".join(said)


def _tested(run: Run) -> list[Row]:
    """The rows with a test loss: of a ``fit`` without validation there are none."""
    return [row for row in run.curve if "test_loss" in row]


def _of_test_loss(run: Run, uniform: Run | None) -> Section:
    curves: dict[str, Sequence[Row]] = {str(run.summary["sampling"]): _tested(run)}
    said = []
    if uniform is not None:
        name = str(uniform.summary["sampling"])
        curves[name if name not in curves else f"{name} ({uniform.folder.name})"] = _tested(uniform)
        ours, theirs = run.summary.get("test_loss"), uniform.summary.get("test_loss")
        said.append(
            f"At the end the test loss was {number(ours)}, and {number(theirs)} in the {name} run beside it. One run "
            "of each shows no more than that; whether it is chance, train.py --compare tells over several seeds."
        )
    elif run.summary.get("program") != "fit":
        said.append(
            "There is no uniform run beside it to hold it against. train.py --compare uniform,importance trains both, "
            "over several seeds."
        )
    return Section("test-loss", "Does it learn?", said, loss_pictures(curves, "with the compiling of the first step"))


def _of_sampling(run: Run) -> Section:
    last = run.history[-1]
    most = sum(row.get("by_priority", 0.0) > 0.5 for row in run.history)
    said = [
        f"In the last epoch a draw was worth {last['gain']:.2f} uniform ones by its gain (above 1 the "
        f"gradient was less noisy than under uniform draws), the weighted samples were worth "
        f"{last['effective_fraction']:.0%} of as many equally weighted ones, and no weight was above "
        f"{last['max_weight']:.2f}.",
        f"In {most} of {len(run.history)} epochs most steps were drawn by priority, in the others uniformly: in a "
        "first pass, and where the gate is closed, since by its estimate draws by priority would not pay.",
    ]
    gate = run.summary.get("sampler") or {}
    if {"gate_open", "gate_gain"} <= gate.keys():
        state = "open" if gate["gate_open"] else "closed"
        said.append(
            f"At the end the gate was {state}, and held a draw by priority to be worth "
            f"{number(gate['gate_gain'])} uniform ones."
        )
    rows = [[f"{row['epoch']:.0f}", *(number(row.get(name)) for name in OF_SAMPLING)] for row in run.history]
    shown = picture(
        "sampling",
        functools.partial(plots.sampling, run.history),
        f"Three line plots over the epochs: the effective share of the samples, at the end "
        f"{last['effective_fraction']:.2f}, the largest weight, {last['max_weight']:.2f}, and the gain, "
        f"{last['gain']:.2f}.",
        "Effective sample size over the number of draws, the largest importance weight, and the gain over uniform "
        "draws. Shaded: epochs most of whose steps were drawn by priority.",
    )
    table = Table("Sampling by epoch", ["epoch", *(name.replace("_", " ") for name in OF_SAMPLING)], rows, folded=True)
    return Section("sampling", "What were the draws worth?", said, [shown], tables=[table])


def _of_losses(run: Run) -> Section:
    first, last = run.losses[0], run.losses[-1]
    shown = picture(
        "losses",
        functools.partial(plots.losses_over_time, run.losses),
        f"The distribution of the losses of all samples after each epoch: the median goes from "
        f"{number(first['loss_0.5'])} to {number(last['loss_0.5'])}, the 95 percent quantile from "
        f"{number(first['loss_0.95'])} to {number(last['loss_0.95'])}, the highest to {number(last['loss_1'])}.",
        "The newest loss that is known of each sample, after each epoch. Where the mean lies far above the median, few "
        "samples make up most of the loss.",
    )
    return Section("losses", "How did the losses fall?", pictures=[shown])
