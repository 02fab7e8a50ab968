"""The weighted gradient's expectation is the data set's mean gradient: computed exactly, not by averaging
luck.

A linear regression on six samples. One uniform number u in [0, 1) moves all draws of a batch, and the batch
is constant between a few values of u, so the expectation over u is a finite sum. Systematic draws are made of
one u. Stratified draws take one u each, and an expectation of a sum does not see whether they are the same.
Independent draws are computed for B = 1; that each of B is such a draw is in test_draws.py. Float64
probabilities give the mean to 1e-12, the float32 weights to 1e-6.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from sampler import ImportanceSampler, UniformSampler, batches

from .slow_twin import SlowStore

SIZE = 6
GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.normal(size=(SIZE, 2)) * np.array([[1.0], [0.1], [5.0], [1.0], [0.3], [2.0]])
TARGETS = GENERATOR.normal(size=SIZE)
PARAMETERS = np.array([0.7, -0.4])
RESIDUALS = INPUTS @ PARAMETERS - TARGETS
LOSSES = RESIDUALS**2
GRADIENTS = 2 * RESIDUALS[:, None] * INPUTS
MEAN = GRADIENTS.mean(axis=0)

SCHEMES = [("multinomial", 1), ("systematic", 1), ("systematic", 4), ("systematic", 13), ("stratified", 4)]
SCHEMES += [("without_replacement", 1), ("without_replacement", 4)]
ALL = ("without_replacement", 6)  # every sample for certain: at weight 1, whatever one does to it


class Fixed:
    """A generator whose only number is u."""

    def __init__(self, u: float) -> None:
        self.u = u

    def random(self, size=None):
        return self.u if size is None else np.full(size, self.u)

    def standard_exponential(self, size):
        assert size == 2, "the spacings of one independent draw"
        return np.array([self.u, 1.0 - self.u])


def pieces(scheme: str, batch: int, priorities, uniform_fraction: float):
    """``(u, length)``: a point inside each piece of [0, 1) on which the batch does not change."""
    slow = SlowStore(SIZE)
    slow.fill(priorities)
    expected = batch * np.array(slow.probabilities(uniform_fraction))
    if scheme == "without_replacement":
        inclusion = np.array(slow.inclusion(batch, uniform_fraction))
        expected = inclusion[inclusion < 1]
    edges = np.unique(np.concatenate([[0.0, 1.0], np.cumsum(expected) % 1.0]))
    return [(middle, length) for middle, length in zip((edges[1:] + edges[:-1]) / 2, np.diff(edges), strict=True)]


def with_weights(draw):
    """The estimate as training makes it: (1/B) Σ w g."""
    return (draw.weight.astype(float)[:, None] * GRADIENTS[draw.index]).mean(axis=0)


def with_probabilities(draw):
    """The same by the float64 probabilities, w = 1 / (N p)."""
    return (GRADIENTS[draw.index] / (SIZE * draw.probability[:, None])).mean(axis=0)


def divided_by_the_weights(draw):
    """The planted bias: Σ w g / Σ w."""
    weight = draw.weight.astype(float)[:, None]
    return (weight * GRADIENTS[draw.index]).sum(axis=0) / weight.sum()


def expectation(scheme, batch, share, estimate, *, losses=LOSSES, before=lambda sampler: None, **options):
    """Of ``estimate(draw)``; ``before(sampler)`` happens between the draw and the training on it."""

    def once(u):
        sampler = ImportanceSampler(SIZE, losses=losses, scheme=scheme, uniform_fraction=share, seed=0, **options)
        sampler._generator = Fixed(u)
        draw = sampler.draw(batch)
        before(sampler)
        return estimate(sampler, draw) if estimate.__code__.co_argcount == 2 else estimate(draw)

    priorities = ImportanceSampler(SIZE, losses=losses, **options).priorities()
    return sum(length * once(u) for u, length in pieces(scheme, batch, priorities, share))


def test_the_model_is_a_hard_one():
    """Otherwise nothing would be proved: gradients of very different size, and a mean that is not zero."""
    norms = np.linalg.norm(GRADIENTS, axis=1)
    assert norms.max() > 100 * norms.min()
    assert np.linalg.norm(MEAN) > 1


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("scheme", "batch"), [*SCHEMES, ALL])
def test_the_expected_gradient_is_the_mean_gradient(scheme, batch, share):
    np.testing.assert_allclose(expectation(scheme, batch, share, with_probabilities), MEAN, rtol=1e-12)
    np.testing.assert_allclose(expectation(scheme, batch, share, with_weights), MEAN, rtol=1e-6)


@pytest.mark.parametrize("priority", ["sqrt", "bounded", lambda losses: losses**3 + 0.01])
def test_whatever_the_priority(priority):
    result = expectation("systematic", 4, 0.1, with_probabilities, priority=priority)
    np.testing.assert_allclose(result, MEAN, rtol=1e-12)


@pytest.mark.parametrize(("scheme", "batch"), SCHEMES)
def test_dividing_by_the_weights_is_seen_to_bias(scheme, batch):
    result = expectation(scheme, batch, 0.3, divided_by_the_weights)
    assert np.abs(result - MEAN).max() > 1e-3 * np.abs(MEAN).max()


def test_the_example_of_two_samples():
    """p = (.9, .1), values (0, 10), truth 5: dividing by Σw gives 1."""
    values = np.array([0.0, 10.0])
    sampler = ImportanceSampler(2, losses=[9.0, 1.0], uniform_fraction=0.0, seed=0)
    plain = divided = 0.0
    for u, length in ((0.45, 0.9), (0.95, 0.1)):
        sampler._generator = Fixed(u)
        draw = sampler.draw(1)
        plain += length * (draw.weight * values[draw.index]).mean()
        divided += length * (draw.weight * values[draw.index]).sum() / draw.weight.sum()
    assert plain == pytest.approx(5.0, rel=1e-6)
    assert divided == pytest.approx(1.0, rel=1e-6)


# --- prefetched draws: the priorities move on before the draw is trained on


def others_learnt(sampler):
    sampler.update(np.arange(SIZE), LOSSES[::-1] * 3.0)


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize(("scheme", "batch"), SCHEMES)
def test_a_prefetched_draw_stays_unbiased(scheme, batch, share):
    result = expectation(scheme, batch, share, with_probabilities, before=others_learnt)
    np.testing.assert_allclose(result, MEAN, rtol=1e-12)
    result = expectation(scheme, batch, share, with_weights, before=others_learnt)
    np.testing.assert_allclose(result, MEAN, rtol=1e-6)


@pytest.mark.parametrize(("scheme", "batch"), SCHEMES)
def test_weights_from_the_store_at_the_time_of_training_are_seen_to_bias(scheme, batch):
    def recomputed(sampler, draw):
        probability = sampler.probabilities()[draw.index]
        return (GRADIENTS[draw.index] / (SIZE * probability[:, None])).mean(axis=0)

    fresh = expectation(scheme, batch, 0.3, recomputed)
    stale = expectation(scheme, batch, 0.3, recomputed, before=others_learnt)
    if scheme != "without_replacement":  # whose π is not B p
        np.testing.assert_allclose(fresh, MEAN, rtol=1e-12)
    assert np.abs(stale - MEAN).max() > 1e-2 * np.abs(MEAN).max()


def test_priorities_never_learnt_anew_do_not_bias():
    stale = np.array([5.0, 0.01, 0.3, 7.0, 1.0, 0.2])
    result = expectation("systematic", 4, 0.3, with_probabilities, losses=stale)
    np.testing.assert_allclose(result, MEAN, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_partial_correction_biases_as_it_says(beta):
    def formula(draw):
        weight = (1 / (SIZE * draw.probability)) ** beta
        return (weight[:, None] * GRADIENTS[draw.index]).mean(axis=0)

    result = expectation("systematic", 4, 0.3, with_weights, beta=beta)
    expected = expectation("systematic", 4, 0.3, formula)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert np.abs(result - MEAN).max() > 1e-2 * np.abs(MEAN).max()


# --- the batch that ends the first pass


def last_of_the_first_pass(monkeypatch, scheme, share, estimate):
    """Expectation over all orders of the first pass and over u of the second batch of four from six.

    Which samples come first is all that matters: fifteen choices, equally likely.
    """
    choices = list(combinations(range(SIZE), 4))
    result = np.zeros(2)
    for first in choices:
        order = np.array([*first, *(set(range(SIZE)) - set(first))])
        monkeypatch.setattr(
            batches,
            "permuted",
            lambda keys, size, begin, index, order=order: np.copyto(index, order[begin : begin + index.size]),
        )

        def second(u, first=first):
            sampler = ImportanceSampler(SIZE, scheme=scheme, uniform_fraction=share, smoothing=0.5, seed=0)
            draw = sampler.draw(4)
            assert draw.index.tolist() == list(first)
            sampler.update(draw.index, LOSSES[draw.index], step=draw.step)
            priorities = sampler.priorities()
            sampler._generator = Fixed(u)
            return sampler.draw(4), priorities

        priorities = second(0.5)[1]
        for u, length in pieces(scheme, 2, priorities, share):
            result += length * estimate(second(u)[0]) / len(choices)
    return result


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("scheme", ["systematic", "stratified", "without_replacement"])
def test_the_batch_that_ends_the_first_pass_is_unbiased(monkeypatch, scheme, share):
    result = last_of_the_first_pass(monkeypatch, scheme, share, with_probabilities)
    np.testing.assert_allclose(result, MEAN, rtol=1e-12)
    result = last_of_the_first_pass(monkeypatch, scheme, share, with_weights)
    np.testing.assert_allclose(result, MEAN, rtol=1e-6)


def test_weight_one_for_all_of_that_batch_is_seen_to_bias(monkeypatch):
    def unweighted(draw):
        return GRADIENTS[draw.index].mean(axis=0)

    result = last_of_the_first_pass(monkeypatch, "systematic", 0.3, unweighted)
    assert np.abs(result - MEAN).max() > 1e-2 * np.abs(MEAN).max()


def test_uniform_passes_are_unbiased_as_they_are():
    sampler = UniformSampler(SIZE, seed=0)
    total = sum(with_weights(sampler.draw(4)) for _ in range(3))  # three batches of four: two passes
    np.testing.assert_allclose(total / 3, MEAN, rtol=1e-12)
