"""What other priorities would have been worth: against the exact second moments over all samples."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.advice import PRIORITIES, Advice
from pipeline.figures import Figures
from sampler import ImportanceSampler

N, FLOOR = 1000, 0.3
RNG = np.random.default_rng(0)
LOSSES = RNG.gamma(0.3, size=N)
SCORE = np.sqrt(LOSSES) * RNG.uniform(0.8, 1.25, N)  # as of squared errors


def exact(priority: np.ndarray) -> float:
    likely = (1 - FLOOR) * priority / priority.mean() + FLOOR
    return float(np.mean(SCORE**2) / np.mean(SCORE**2 / likely))


def test_gains_over_all_samples_are_exact() -> None:
    advice = Advice(FLOOR)
    advice.add(LOSSES, np.ones(N), SCORE)
    assert advice.gains() == {name: pytest.approx(exact(f(LOSSES, SCORE))) for name, f in PRIORITIES.items()}


def test_gains_from_weighted_draws_come_near() -> None:
    """The weights undo what the draws prefer; without them the estimate is far off."""
    advice, blind = Advice(FLOOR), Advice(FLOOR)
    likely = (1 - FLOOR) * LOSSES / LOSSES.sum() + FLOOR / N
    drawn = np.random.default_rng(1).choice(N, 200_000, p=likely)
    advice.add(LOSSES[drawn], 1 / (N * likely[drawn]), SCORE[drawn])
    blind.add(LOSSES[drawn], np.ones(drawn.size), SCORE[drawn])
    expected = exact(np.sqrt(LOSSES))
    assert advice.gains()["sqrt"] == pytest.approx(expected, rel=0.02)
    assert blind.gains()["sqrt"] != pytest.approx(expected, rel=0.1)


def test_it_says_what_would_have_paid_more() -> None:
    """p ∝ ℓ has just the variance of uniform draws for squared errors, without the floor."""
    advice = Advice(0.0)
    assert advice.sentence("loss") is None
    advice.add(LOSSES, np.ones(N), np.sqrt(LOSSES))
    assert advice.gains()["loss"] == pytest.approx(1.0)
    sentence = advice.sentence("loss")
    assert sentence is not None
    assert "priority='sqrt' would have been worth" in sentence or "priority='gradient_norm'" in sentence
    assert "those by 'loss' 1.00" in sentence
    assert advice.sentence("sqrt") is None
    assert "those by" not in (advice.sentence("my_own") or "")


def test_what_is_not_finite_is_left_out_and_zeros_do_no_harm() -> None:
    advice, clean = Advice(FLOOR), Advice(FLOOR)
    clean.add(LOSSES, np.ones(N), SCORE)
    advice.add(np.append(LOSSES, [np.nan, 1.0]), np.ones(N + 2), np.append(SCORE, [1.0, np.inf]))
    assert advice.gains() == pytest.approx(clean.gains())
    advice.add(np.zeros(5), np.ones(5), np.zeros(5))
    advice.add(np.array([]), np.array([]), np.array([]))
    assert advice.gains() == pytest.approx(clean.gains())


def test_figures_gather_it_from_the_steps() -> None:
    figures = Figures(ImportanceSampler(N, uniform_fraction=FLOOR))
    for part in np.split(np.arange(N), 10):
        figures.add(LOSSES[part], np.ones(part.size), SCORE[part])
    figures.logs()
    assert figures.advice.gains()["sqrt"] == pytest.approx(exact(np.sqrt(LOSSES)))
