"""The sections about the samples: which training looked at, which are hard, which labels may be wrong."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.report import plots
from pipeline.report.findings import REGIONS, Group, regions, suspects
from pipeline.report.page import Item, Section, Table, image, text
from pipeline.report.words import number, percent, picture
from pipeline.samples import Samples, hardest

SUSPECTS = "suspects.csv"
GALLERY, LISTED = 24, 20  # samples that are shown, and that are listed
MOST_SUSPECTS = 1_000_000  # rows of a file of suspects
ATTENTION = 1.2  # times as often as uniformly: from there on it is worth a word

Array = npt.NDArray[Any]


def of_groups(samples: Samples, found: Sequence[Group]) -> Section:
    """Losses and draws by class, or by tenths: which training looked at, and that weights correct for it."""
    what = "class" if samples.num_classes else "tenth of the samples by mean loss"
    worst = max(found, key=lambda group: group.loss)
    said = [f"The highest mean loss at the end is {number(worst.loss)}, of {_named(worst, samples)}."]
    rare = [group for group in found if group.rare]
    if rare:
        of_rare = np.average([group.loss for group in rare], weights=[group.count for group in rare])
        others = [group for group in found if not group.rare]
        of_others = np.average([group.loss for group in others], weights=[group.count for group in others])
        attention = sum(group.drawn for group in rare) / sum(group.share for group in rare)
        said.append(
            f"Rare are the classes {', '.join(f'{group.name} ({group.count:,})' for group in rare)}: each has fewer "
            "than half of the samples that even classes would have. Their mean loss is "
            f"{number(of_rare)}, that of the others {number(of_others)}, and they were drawn {attention:.2f} times as "
            "often as uniformly."
        )
    looked = [group for group in found if group.attention >= ATTENTION]
    if looked and not rare:
        names = ", ".join(group.name for group in sorted(looked, key=lambda group: -group.attention)[:5])
        said.append(f"Training looked most at {names}.")
    shown = f" The {plots.MOST_GROUPS} of the highest losses are drawn." if len(found) > plots.MOST_GROUPS else ""
    off = sum(abs(group.weighted - group.share) > 3.0 * group.error for group in found)
    pictures = [
        picture(
            "group-losses",
            functools.partial(plots.losses_by_group, found),
            f"Bar plot of the mean loss at the end by {what}. Highest: {worst.name} with {number(worst.loss)}.",
            f"Mean loss at the end by {what}.{shown}",
        ),
        picture(
            "group-draws",
            functools.partial(plots.draws_by_group, found),
            f"For each {what} a dot for how often its samples were drawn over uniform draws, and a square for what "
            f"they counted for once weighted; {len(found) - off} of {len(found)} squares lie within three standard "
            "errors of one.",
            "Drawn against expected: how often samples were drawn, in uniform draws, and what they counted for by "
            "their weights, with two standard errors. Weights bring all back to 1, so that training stays unbiased.",
        ),
    ]
    rows = [
        [
            group.name,
            f"{group.count:,}",
            f"{group.share:.2%}",
            f"{group.drawn:.2%}",
            f"{group.weighted:.2%}",
            number(group.loss),
            *([] if group.accuracy is None else [percent(group.accuracy)]),
        ]
        for group in found
    ]
    columns = [
        "class" if samples.num_classes else "by mean loss",
        "samples",
        "of the data",
        "of the draws",
        "weighted",
        "mean loss",
    ]
    if samples.num_classes:
        columns.append("accuracy")
    table = Table("Samples, draws and losses by " + what, columns, rows, [one.rare for one in found])
    after = ["Losses and accuracies are those of training samples, under the model at the end."]
    return Section("classes", "What did training look at?", said, pictures, tables=[table], after=after)


def _named(group: Group, samples: Samples) -> str:
    return f"class {group.name}" if samples.num_classes else group.name


def of_map(samples: Samples) -> Section:
    """The data map."""
    region = regions(samples.mean, samples.deviation)
    count = {name: int((region == place).sum()) for place, name in enumerate(REGIONS)}
    parts = ", ".join(f"{count[name]:,} {name}" for name in REGIONS)
    said = [
        f"By what their losses did in the course of the training there are {parts} samples. Easy: the mean loss is "
        "below that of all. Of the others, ambiguous: the loss rose and fell by more than its mean, so the sample was "
        "learnt late, or forgotten in between. Hard: it stayed high."
    ]
    if region.max() >= 0 and not count["ambiguous"]:
        said.append(
            f"None is ambiguous: a sample was trained on {samples.drawn.mean():.1f} times on average, and it takes "
            "more to show one that is learnt late."
        )
    if unknown := int((region < 0).sum()):
        said.append(f"{unknown:,} samples were trained on fewer than two times, and are left out.")
    shown = picture(
        "data-map",
        functools.partial(plots.data_map, samples.mean, samples.deviation, region),
        f"Scatter plot of the samples by the standard deviation and the mean of their losses: {parts}.",
        "A data map (Swayamdipta et al., 2020, with the loss in place of the probability of the label). "
        + (f"{plots.MOST_POINTS:,} samples at random." if (region >= 0).sum() > plots.MOST_POINTS else ""),
    )
    return Section("data-map", "Easy, ambiguous, hard", said, [shown])


def of_suspects(samples: Samples) -> Section:
    """The first of those whose label may be wrong."""
    listed = suspect_rows(samples, LISTED)
    said = [
        f"{SUSPECTS}, beside this page, lists the samples by the mean of their losses in the course of the training: a "
        "model learns a wrong label last, if at all. Hard samples whose label is right stand among them; look before "
        "you change one.",
        f"Of the first {len(listed)} the model at the end predicts {_same(listed)} as they are labelled: those it has "
        "learnt, by heart or because they are right.",
    ]
    cells = [
        [*(str(row[name]) for name in ("rank", "index", "label", "prediction")), *map(number, list(row.values())[4:])]
        for row in listed
    ]
    names = ["rank", "sample", "label", "prediction", "mean loss", "loss"]
    table = Table(f"The first {len(cells)} suspects", names, cells)
    gallery = _items(samples, np.array([row["index"] for row in listed]))
    return Section("suspects", "Labels that may be wrong", said, gallery=gallery, tables=[table])


def _same(listed: Sequence[dict[str, Any]]) -> str:
    return str(sum(row["label"] == row["prediction"] for row in listed) or "none")


def suspect_rows(samples: Samples, most: int = MOST_SUSPECTS) -> list[dict[str, Any]]:
    """The samples, the likeliest to have a wrong label first; ``most`` at most."""
    order = suspects(samples)[:most]
    columns = (column[order].tolist() for column in (samples.y, samples.prediction, samples.mean, samples.loss))
    return [
        {
            "rank": rank,
            "index": index,
            "label": label,
            "prediction": prediction,
            "mean_loss": None if math.isnan(mean) else mean,
            "loss": loss,
        }
        for rank, (index, label, prediction, mean, loss) in enumerate(
            zip(order.tolist(), *columns, strict=True), start=1
        )
    ]


def of_hardest(samples: Samples) -> Section:
    """Those of the highest loss at the end, to be looked at."""
    order = hardest(samples.loss)[:GALLERY]
    said = [f"The {len(order)} samples of the highest loss at the end of the training, the highest first."]
    return Section("hardest", "The hardest samples", said, gallery=_items(samples, order))


def _items(samples: Samples, order: Array) -> list[Item]:
    at = {index: place for place, index in enumerate(samples.shown.tolist())}
    return [
        Item(
            index=index,
            label=_value(samples.y[index]),
            prediction=_value(samples.prediction[index]),
            loss=number(samples.loss[index]),
            image=(drawn := image(samples.shown_x[at[index]])),
            text=None if drawn is not None else text(samples.shown_x[at[index]]),
        )
        for index in order.tolist()
        if index in at
    ]


def _value(value: Array) -> str:
    return f"{value}" if value.ndim == 0 else ", ".join(number(part) for part in value.reshape(-1)[:4])


def of_ages(samples: Samples) -> Section:
    """How stale what is known of them is."""
    age = samples.age
    old, oldest = np.quantile(age, 0.95), age.max()
    shown = picture(
        "ages",
        functools.partial(plots.ages, age),
        f"Histogram of the ages of the losses, in steps: 95 percent are at most {old:.0f}, the oldest {oldest:.0f}.",
        "How many steps before the end the loss of each sample was last seen.",
    )
    said = [
        f"Half of the priorities were {np.median(age):.0f} steps old at the end or less, 95 % at most {old:.0f}. What "
        "is old is drawn by what it was then; --refresh and --scorers keep priorities fresh."
    ]
    return Section("ages", "How old are the priorities?", said, [shown])
