"""The window of recent values beside a slow twin: a list, cut to the last W and sorted by NumPy for every question."""

from __future__ import annotations

import numpy as np
import pytest

from sampler.quantiles import Window

QUANTILES = [0.0, 1e-9, 0.05, 0.25, 0.5, 0.77, 0.95, 1.0]


def slow_percentile(kept, value) -> float:
    return sum((one < value) + 0.5 * (one == value) for one in kept) / len(kept)


VALUES = {
    "continuous": lambda generator, size: generator.exponential(size=size),
    "of both signs": lambda generator, size: generator.normal(size=size),
    "many ties": lambda generator, size: generator.integers(0, 4, size).astype(float),
    "all of float64": lambda generator, size: 10.0 ** generator.uniform(-320, 308, size),
}


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize("kind", VALUES)
def test_a_seeded_script(kind, size):
    generator = np.random.default_rng([size, len(kind)])
    window, kept = Window(size), []
    for _ in range(60):
        new = VALUES[kind](generator, generator.choice([0, 1, 2, 5, 30, 150]))
        window.push(new)
        kept = (kept + new.tolist())[-size:]
        window.check()
        assert len(window) == len(kept)
        assert window.state_dict()["values"].tolist() == kept
        if kept:
            assert [window.quantile(q) for q in QUANTILES] == np.quantile(kept, QUANTILES).tolist()
            asked = np.array([*kept[:5], -1.0, 0.5, 1e308])
            expected = [slow_percentile(kept, value) for value in asked]
            np.testing.assert_allclose(window.percentile_of(asked), expected, rtol=1e-12)


def test_percentiles_of_its_own_values_have_the_mean_a_half():
    window = Window(50)
    window.push(np.random.default_rng(0).integers(0, 9, 50))
    shares = window.percentile_of(window.state_dict()["values"])
    assert shares.dtype == np.float64
    assert shares.mean() == pytest.approx(0.5)
    assert window.percentile_of(np.array([-1.0, 99.0])).tolist() == [0.0, 1.0]
    assert window.percentile_of(np.empty(0)).size == 0


def test_enormous_values_of_unlike_sign():
    window = Window(2)
    window.push([-1.5e308, 1.5e308])
    assert window.quantile(0.5) == 0.0
    assert window.quantile(0.25) == pytest.approx(-0.75e308)


@pytest.mark.parametrize("bad", [[1.0, np.nan], [np.inf], ["a"], [[1.0]], 1.0])
def test_what_is_no_finite_number_is_refused_and_changes_nothing(bad):
    window = Window(3)
    window.push([1.0, 2.0])
    for method in (window.push, window.percentile_of):
        with pytest.raises((ValueError, TypeError), match="values must"):
            method(bad)
    assert window.state_dict()["values"].tolist() == [1.0, 2.0]


def test_an_empty_window_has_no_quantiles():
    window = Window(3)
    window.push([])
    for ask in (lambda: window.quantile(0.5), lambda: window.percentile_of([1.0])):
        with pytest.raises(ValueError, match="empty window has no quantiles; push values first"):
            ask()


@pytest.mark.parametrize("q", [-0.1, 1.1, np.nan])
def test_a_quantile_that_is_none_is_refused(q):
    window = Window(3)
    window.push([1.0])
    with pytest.raises(ValueError, match=r"q must be in \[0, 1\]"):
        window.quantile(q)


def test_a_size_that_is_none_is_refused():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        Window(0)
    assert repr(Window()) == "Window(10000)"


def test_the_state_is_a_copy_and_comes_back():
    window, other = Window(5), Window(5)
    window.push([5.0, 3.0, 9.0, 1.0, 7.0, 2.0])
    state = window.state_dict()
    other.load_state_dict(state)
    for one in (window, other):
        one.push([4.0])
        one.check()
        assert one.state_dict()["values"].tolist() == [9.0, 1.0, 7.0, 2.0, 4.0]
    assert state["values"].tolist() == [3.0, 9.0, 1.0, 7.0, 2.0]


@pytest.mark.parametrize(
    ("values", "words"),
    [([1.0] * 4, "at most 3, got 4.*size=4"), ([np.nan], "finite"), ([[1.0]], "shape"), (["a"], "real numbers")],
)
def test_a_state_that_is_none_changes_nothing(values, words):
    window = Window(3)
    window.push([8.0])
    with pytest.raises((ValueError, TypeError), match=words):
        window.load_state_dict({"values": np.array(values)})
    assert window.state_dict()["values"].tolist() == [8.0]


def test_the_checker_sees_what_is_wrong():
    window = Window(3)
    window.push([1.0, 2.0])
    window._ordered.add(1.5)
    with pytest.raises(AssertionError, match="not those that arrived"):
        window.check()
