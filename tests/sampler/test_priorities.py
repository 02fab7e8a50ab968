from __future__ import annotations

import numpy as np
import pytest

from sampler import priorities

LOSSES = np.array([0.0, 1e-300, 1e-9, 0.5, 1.0, 50.0, 1e308])


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("loss", lambda losses: losses),
        ("sqrt", lambda losses: losses**0.5),
        ("bounded", lambda losses: 1 - np.exp(-losses)),
    ],
)
def test_each_name_gives_its_formula(name, formula):
    before = LOSSES.copy()
    values = priorities.apply(priorities.resolve(name), LOSSES)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, formula(LOSSES), rtol=1e-12, atol=1e-15)
    assert np.array_equal(LOSSES, before)
    assert (np.diff(values) >= 0).all()


def test_bounded_keeps_small_losses_apart():
    assert priorities.bounded(np.array([1e-20])).item() == pytest.approx(1e-20, rel=1e-12)  # 1 - exp would be 0


@pytest.mark.parametrize("name", priorities.NAMED)
def test_a_negative_loss_is_refused_with_what_to_do(name):
    with pytest.raises(ValueError, match=rf"priority='{name}' needs losses ≥ 0, got -0\.5.*function of your own"):
        priorities.apply(priorities.resolve(name), np.array([1.0, -0.5]))


def test_a_function_of_the_user_is_taken_as_it_is():
    def exponential(losses):
        return np.exp(losses).astype(np.float32)

    assert priorities.resolve(exponential) is exponential
    values = priorities.apply(exponential, np.array([-1.0, 0.0]))
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, np.exp([-1.0, 0.0]), rtol=1e-6)
    assert priorities.apply(lambda losses: losses.tolist(), np.array([2.0])).tolist() == [2.0]


def test_infinity_is_let_through():
    assert priorities.apply(lambda losses: losses * np.inf, np.array([2.0])).tolist() == [np.inf]


@pytest.mark.parametrize("bad", [-1.0, np.nan, -np.inf])
def test_a_priority_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match=r"priorities must be numbers ≥ 0, got .* for a loss of 2\.0"):
        priorities.apply(lambda losses: np.array([1.0, bad]), np.array([1.0, 2.0]))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)])
def test_one_priority_for_each_loss(shape):
    with pytest.raises(ValueError, match="one priority for each of 2 losses, got shape"):
        priorities.apply(lambda losses: np.ones(shape), np.ones(2))


def test_nobody_is_asked_for_the_priorities_of_no_losses():
    assert priorities.apply(lambda losses: losses / losses.max(), np.empty(0)).size == 0


def test_a_name_that_is_none_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'loss', 'sqrt', 'bounded'.*got 'lose'"):
        priorities.resolve("lose")
