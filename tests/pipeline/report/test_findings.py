"""What the losses say, of samples small enough to be counted by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.report.findings import groups, regions, suspects
from pipeline.report.page import text
from pipeline.samples import Samples

NAN = float("nan")


def samples(y: list[int]) -> Samples:
    """Each drawn as often as its class says, with twice the weight."""
    classes, count = np.array(y), len(y)
    drawn = classes + 1
    return Samples(
        y=classes,
        loss=np.linspace(0.0, 1.0, count, dtype=np.float32),
        prediction=np.zeros(count, np.int64),
        drawn=drawn,
        mean=np.linspace(1.0, 0.0, count, dtype=np.float32),
        deviation=np.zeros(count, np.float32),
        weight=np.ones(count, np.float32),
        weight_squares=np.full(count, 0.25, np.float32),
        age=np.zeros(count, np.int64),
        shown=np.arange(1),
        shown_x=np.zeros((1, 2)),
        num_classes=10,
    )


def test_regions() -> None:
    """Known of the first three; of the others there is no loss, or one alone."""
    mean, deviation = np.array([0.1, 0.5, 0.5, NAN, 0.5]), np.array([0.0, 0.1, 0.9, NAN, NAN])
    assert regions(mean, deviation).tolist() == [0, 2, 1, -1, -1]
    assert regions(mean[3:], deviation[3:]).tolist() == [-1, -1]


def test_groups_are_the_classes_that_occur() -> None:
    """Of ten classes three occur: eight, four and one of thirteen. Rare has fewer than half of a third of them."""
    found = groups(samples([0] * 8 + [4] * 4 + [9]))
    assert [group.name for group in found] == ["0", "4", "9"]
    assert [group.count for group in found] == [8, 4, 1]
    assert [group.rare for group in found] == [False, False, True]
    assert [group.drawn for group in found] == pytest.approx([8 / 38, 20 / 38, 10 / 38])
    assert [group.weighted for group in found] == pytest.approx([8 / 13, 4 / 13, 1 / 13])
    assert found[1].error == pytest.approx(1.0 / 13)  # the root of four quarters
    assert [group.accuracy for group in found] == [1.0, 0.0, 0.0]


def test_suspects_are_those_of_the_highest_mean_and_unknown_ones_the_last() -> None:
    given = dataclasses.replace(samples([0, 1, 2, 3]), mean=np.array([0.2, NAN, 0.9, 0.5], np.float32))
    assert suspects(given).tolist() == [2, 3, 0, 1]


def test_padding_is_left_out_and_zeros_between_are_not() -> None:
    assert text(np.array([0, 0, 3, 0, 5, 0])) == "3, 0, 5"
    assert text(np.zeros(3, int)) == "0, 0, 0"
