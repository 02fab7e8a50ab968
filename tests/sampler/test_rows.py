"""Several draws in one call: the same as one by one, to the bit, whatever the sampler and wherever it stands."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from sampler import ImportanceSampler, batches, checks
from sampler.base import RECENT_DRAWS

from .siblings import SIBLINGS, losses_of
from .states import same

B = 4


def rows_of(sampler, rows, count=B, seconds=0.0):
    """The draws of one call, as (step, index, weight, probability) of each; of several where an epoch ends in them."""
    index, step = np.full((2, rows, count), -1)
    weight, probability = np.full((2, rows, count), -1.0, np.float32)
    filled = sampler.poll_rows(index, weight, probability, step, seconds=seconds)
    for column in (index, weight, probability, step):
        assert (column[filled:] == -1).all()
    made = list(zip(step[:filled], index[:filled], weight[:filled], probability[:filled], strict=True))
    over = sampler.epochs_vary and 0 < filled < rows and sampler.ends_epoch(made[-1][0][0])
    return made + rows_of(sampler, rows - filled, count) if over else made


def one_by_one(sampler, rows, count=B):
    made = []
    while len(made) < rows and (draw := sampler.poll(count, seconds=0.0)) is not None:
        made.append((np.full(count, draw.step), draw.index, draw.weight, draw.probability.astype(np.float32)))
    return made


def assert_alike(ours, theirs):
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        for one, other in zip(our, their, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", SIBLINGS)
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_they_are_the_draws_one_by_one(name, rows):
    ours, theirs = (SIBLINGS[name](30, seed=5) for _ in range(2))
    for _ in range(12):  # from the first pass on
        made = rows_of(ours, rows)
        assert_alike(made, one_by_one(theirs, rows))
        for step, index, _, _ in made:
            for sampler in (ours, theirs):
                sampler.update(index, losses_of(index, step[0]), step=step)
    assert ours.step >= 12
    assert ours.summary() == theirs.summary()
    assert same(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"uniform_fraction": 1.0},
        {"uniform_fraction": 0.0},
        {"ascending": True, "beta": 0.4},
        {"losses": np.zeros(500), "uniform_fraction": 0.0},
        {"beta": lambda step: step % 3 / 2},
    ],
    ids=["uniform", "by priority alone", "ascending", "all zero", "a schedule"],
)
def test_systematic_draws_made_together(options, caplog):
    caplog.set_level(logging.ERROR, "sampler")
    options = {"losses": np.random.default_rng(3).exponential(size=500), "seed": 1, **options}
    ours, theirs = (ImportanceSampler(500, **options) for _ in range(2))
    for rows, count in [(1, 1), (5, 32), (RECENT_DRAWS + 30, 7), (2, 600)]:
        assert_alike(rows_of(ours, rows, count), one_by_one(theirs, rows, count))
        assert ours.summary() == theirs.summary()
    assert same(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("draws_of", [rows_of, one_by_one])
@pytest.mark.parametrize(("loss", "said"), [(0.0, 1), (0.05, 0)])
def test_priorities_that_are_all_zero_are_said_once(loss, said, draws_of, caplog):
    sampler = ImportanceSampler(10, losses=np.full(10, loss), seed=0)
    for _ in range(2):
        draws_of(sampler, 3)
    assert sum("all priorities are zero" in record.message for record in caplog.records) == said


def test_no_rows():
    sampler = ImportanceSampler(10, losses=np.ones(10), seed=0)
    assert rows_of(sampler, 0) == []
    assert sampler.step == 0


def test_they_know_no_loss_that_comes_between_them():
    """What several draws in one call cost: those after the first do not know its losses."""
    together, one = (ImportanceSampler(10, losses=np.ones(10), uniform_fraction=0.0, seed=0) for _ in range(2))
    first, second = rows_of(together, 2)
    draw = one.draw(B)
    np.testing.assert_array_equal(draw.index, first[1])
    one.update(draw.index, np.full(B, 100.0), step=draw.step)
    assert not np.array_equal(one.draw(B).probability.astype(np.float32), second[3])


def test_draws_after_the_last_step_are_refused():
    sampler = ImportanceSampler(10, losses=np.ones(10), seed=0)
    sampler._step = checks.LARGEST_STEP - 2
    with pytest.raises(OverflowError):
        rows_of(sampler, 3)
    assert sampler.step == checks.LARGEST_STEP


def test_a_schedule_that_leaves_its_range_changes_nothing():
    sampler = ImportanceSampler(10, losses=np.ones(10), beta=lambda step: step, seed=0)
    before = sampler.state_dict()
    with pytest.raises(ValueError, match=r"beta\(2\)"):
        rows_of(sampler, 4)
    assert same(sampler.state_dict(), before)


def test_positions_of_several_batches():
    offsets = np.array([0.0, 0.25, 0.999])
    rows = batches.spaced_rows(5, offsets)
    for row, offset in zip(rows, offsets, strict=True):
        np.testing.assert_array_equal(row, batches.spaced(5, offset))
