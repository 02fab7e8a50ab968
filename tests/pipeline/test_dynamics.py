"""The moments of each sample's losses, beside those of a list that keeps every loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.dynamics import SHARES, TOGETHER, TrainingDynamics
from sampler.state_bytes import from_bytes, to_bytes

N, B = 11, 5


def told(steps: int, seed: int = 0) -> tuple[TrainingDynamics, list[list[float]], np.ndarray, np.ndarray]:
    """Random steps, what they told, and of each sample its draws and its sum of weights."""
    rng, dynamics = np.random.default_rng(seed), TrainingDynamics(N)
    losses: list[list[float]] = [[] for _ in range(N)]
    drawn, weights = np.zeros(N, int), np.zeros(N)
    for _ in range(steps):
        index = rng.integers(0, N - 1, B)  # the last one never; some twice
        values, weight = 1e3 + rng.normal(size=B), rng.uniform(0.3, 3.0, B)
        values[rng.random(B) < 0.1] = np.nan
        dynamics.add(index, values, weight)
        for place, value, w in zip(index, values, weight, strict=True):
            drawn[place] += 1
            weights[place] += w
            if np.isfinite(value):
                losses[place].append(value)
    return dynamics, losses, drawn, weights


@pytest.mark.parametrize("steps", [0, 1, TOGETHER - 1, TOGETHER, 3 * TOGETHER + 7])
def test_moments_are_those_of_all_losses(steps: int) -> None:
    dynamics, losses, drawn, weights = told(steps)
    np.testing.assert_array_equal(dynamics.drawn, drawn)
    np.testing.assert_array_equal(dynamics.count, [len(each) for each in losses])
    np.testing.assert_allclose(dynamics.weight, weights, rtol=1e-5)
    np.testing.assert_allclose(dynamics.mean, [np.mean(each) if each else np.nan for each in losses], rtol=1e-6)
    np.testing.assert_allclose(dynamics.newest, [each[-1] if each else np.nan for each in losses], rtol=1e-6)
    deviations = [np.std(each, ddof=1) if len(each) > 1 else np.nan for each in losses]
    # The mean is a float32 near 1,000, so a deviation of 1 is known to some ten thousandths of that.
    np.testing.assert_allclose(dynamics.deviation, deviations, rtol=2e-3)


def test_a_look_tells_how_the_newest_losses_lie() -> None:
    dynamics = TrainingDynamics(N)
    dynamics.look(0)  # nothing is known
    assert dynamics.looks == []
    dynamics.add(np.arange(8), np.full(8, 9.0))
    dynamics.add(np.arange(8), np.arange(8.0))
    dynamics.look(7)
    (row,) = dynamics.looks
    assert (row["step"], row["mean"]) == (7, 3.5)
    assert [row[f"loss_{share:g}"] for share in SHARES] == pytest.approx(np.quantile(np.arange(8.0), SHARES))


def test_enormous_losses_make_no_infinity() -> None:
    dynamics = TrainingDynamics(1)
    dynamics.add([0, 0], [1e308, -1e308])
    assert np.isfinite([dynamics.mean[0], dynamics.deviation[0], dynamics.newest[0]]).all()


def test_it_goes_on_from_its_state() -> None:
    dynamics, *_ = told(TOGETHER)
    dynamics.look(1)
    rng, steps = np.random.default_rng(1), 2 * TOGETHER
    rows = [(rng.integers(0, N, B), 1e3 + rng.normal(size=B), rng.uniform(size=B)) for _ in range(steps)]
    again = TrainingDynamics(N)
    again.load_state_dict(dynamics.state_dict())
    for place, row in enumerate(rows):
        dynamics.add(*row)
        again.add(*row)
        if place % 5 == 0:  # saved and gone on with at other moments: what is rounded does not depend on that
            state, again = from_bytes(to_bytes(again.state_dict())), TrainingDynamics(N)
            again.load_state_dict(state)
    for one in (dynamics, again):
        one.look(2)
    assert to_bytes({"looks": again.looks}) == to_bytes({"looks": dynamics.looks})
    for name in ("drawn", "count", "mean", "deviation", "newest", "weight", "weight_squares"):
        np.testing.assert_array_equal(getattr(again, name), getattr(dynamics, name))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda state: state["columns"].pop("mean"), KeyError),
        (lambda state: state["columns"].update(mean=np.zeros(N + 1, np.float32)), ValueError),
        (lambda state: state["columns"]["count"].__setitem__(0, -1), ValueError),
        (lambda state: state["columns"]["squares"].__setitem__(0, np.nan), ValueError),
        (lambda state: state["looks"].append({"step": "soon"}), TypeError),
        (lambda state: state["looks"].append({"step": 3, "mean": "high"}), TypeError),
        (lambda state: state["waiting"][0].update(index=np.full(B, N)), IndexError),
        (lambda state: state["waiting"][0].pop("losses"), KeyError),
    ],
)
def test_a_state_that_is_none_is_refused_and_changes_nothing(change: Any, error: type[Exception]) -> None:
    dynamics, *_ = told(9)
    state, before = from_bytes(to_bytes(dynamics.state_dict())), dynamics.mean
    change(state)
    with pytest.raises(error):
        dynamics.load_state_dict(state)
    np.testing.assert_array_equal(dynamics.mean, before)


def test_of_a_block() -> None:
    dynamics = TrainingDynamics(N, range(4, 7))
    dynamics.add([4, 6, 6], [1.0, 2.0, 4.0])
    assert len(dynamics) == 3
    assert dynamics.mean.tolist()[::2] == [1.0, 3.0]
    for outside in (3, 7):
        with pytest.raises(IndexError, match=r"of the block 4\.\.6"):
            dynamics.add([outside], [1.0])
    for block in (range(3, 3), range(-1, 2), range(0, N + 1), range(0, 4, 2)):
        with pytest.raises(ValueError, match="block must be a range"):
            TrainingDynamics(N, block)


@pytest.mark.parametrize(
    ("index", "losses", "error"),
    [([N], [1.0], IndexError), ([0.0], [1.0], TypeError), ([0, 1], [1.0], ValueError), ([0], [[1.0]], ValueError)],
)
def test_what_does_not_fit_is_refused(index: Any, losses: Any, error: type[Exception]) -> None:
    dynamics = TrainingDynamics(N)
    with pytest.raises(error):
        dynamics.add(index, losses)
    assert not dynamics.drawn.any()
