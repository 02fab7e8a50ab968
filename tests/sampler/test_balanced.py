"""Class-balanced draws: the share of each class in closed form, the objective, the weights for others."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from sampler import ClassBalancedSampler, UniformSampler, class_balanced_weights

from .chance import count_variance, suspects
from .lagging import SIZE
from .resuming import assert_resumes_at_every_moment

COUNTS = {0: 60, 3: 25, 7: 14, 8: 1}
LABELS = np.random.default_rng(0).permutation(np.repeat(list(COUNTS), list(COUNTS.values())))
BATCHES, BATCH = 2000, 10


def shares(beta: float) -> dict[int, float]:
    """The share of the draws of each class, in fractions."""
    exact = Fraction(beta)
    weight = {name: n if beta == 0 else n * weight_of(n, exact) for name, n in COUNTS.items()}
    return {name: float(value / sum(weight.values())) for name, value in weight.items()}


def weight_of(count: int, beta: Fraction) -> Fraction:
    return Fraction(1, count) if beta == 1 else (1 - beta) / (1 - beta**count)


BETAS = [0.0, 0.9, 0.99, 0.999, 1 - 1e-9, 1.0]


@pytest.mark.parametrize("beta", BETAS)
def test_the_weights_are_those_of_the_formula(beta):
    given = class_balanced_weights(LABELS, beta)
    assert list(given) == [0, 3, 7, 8]
    exact = {name: float(weight_of(n, Fraction(beta))) for name, n in COUNTS.items()}
    mean = np.mean(list(exact.values()))
    for name, weight in given.items():
        assert weight == pytest.approx(exact[name] / mean, rel=1e-9)
    assert np.mean(list(given.values())) == pytest.approx(1.0)
    assert all(type(name) is int and type(weight) is float for name, weight in given.items())


def test_both_ends_of_beta():
    assert set(class_balanced_weights(LABELS, 0.0).values()) == {1.0}
    inverse = class_balanced_weights(LABELS, 1.0)
    assert inverse[8] / inverse[0] == pytest.approx(60.0)


@pytest.mark.parametrize("beta", BETAS)
def test_the_share_of_each_class(beta):
    sampler = ClassBalancedSampler(100, labels=LABELS, beta=beta, seed=0)
    p = sampler.probabilities()
    for name, share in shares(beta).items():
        assert p[name == LABELS].sum() == pytest.approx(share, rel=1e-6)  # priorities are float32
        assert np.ptp(p[name == LABELS]) == 0.0
        exact = float(weight_of(COUNTS[name], Fraction(beta)))
        assert sampler.priorities()[name == LABELS] == pytest.approx(exact, rel=1e-6)


def drawn_as(sampler, beta):
    """Whether each sample's count is that of β; the false-alarm rate is that of chance.py."""
    counts = sum(np.bincount(sampler.draw(BATCH).index, minlength=100) for _ in range(BATCHES))
    of_class = shares(beta)
    p = np.array([of_class[name] / COUNTS[name] for name in LABELS.tolist()])
    variance = BATCHES * count_variance("systematic", BATCH * p, BATCH)
    return suspects(counts, BATCHES * BATCH * p, variance).size == 0


@pytest.mark.parametrize("beta", [0.0, 0.99, 1.0])
def test_the_draws_have_that_share(beta):
    assert drawn_as(ClassBalancedSampler(100, labels=LABELS, beta=beta, seed=0), beta)


def test_the_test_of_frequencies_sees_planted_faults():
    assert not drawn_as(UniformSampler(100, seed=0), 0.99)
    assert not drawn_as(ClassBalancedSampler(100, labels=LABELS, beta=0.98, seed=0), 0.99)
    assert not drawn_as(ClassBalancedSampler(100, labels=np.roll(LABELS, 1), beta=0.99, seed=0), 0.99)


def test_the_objective_is_the_class_balanced_loss():
    """Σ p ℓ, what a batch at weight 1 estimates, is Σ v ℓ / Σ v: that of uniform draws with class weights."""
    losses = np.random.default_rng(1).exponential(size=100)
    sampler = ClassBalancedSampler(100, labels=LABELS, seed=0)
    weight = class_balanced_weights(LABELS)
    v = np.array([weight[name] for name in LABELS.tolist()])
    assert (sampler.probabilities() * losses).sum() == pytest.approx((v * losses).sum() / v.sum(), rel=1e-6)
    assert sampler.fully_corrected is False
    draw = sampler.draw(50)
    assert draw.weight.tolist() == [1.0] * 50
    np.testing.assert_allclose(draw.probability, sampler.probabilities()[draw.index])


def test_losses_change_nothing():
    one, other = (ClassBalancedSampler(100, labels=LABELS, seed=0) for _ in range(2))
    for _ in range(20):
        draw = one.draw(8)
        np.testing.assert_array_equal(draw.index, other.draw(8).index)
        one.update(draw.index, draw.index * 1e6, step=draw.step)
    assert one.summary()["seen"] > 50
    assert not one.uses_feedback


@pytest.mark.parametrize("lag", [1, 3])
def test_killed_and_resumed_at_every_moment(lag):
    labels = np.arange(SIZE) % 10 // 7
    assert_resumes_at_every_moment(lambda **more: ClassBalancedSampler(SIZE, labels=labels, **more), lag)


def test_a_state_of_other_classes_is_refused():
    state = ClassBalancedSampler(100, labels=LABELS).state_dict()
    ClassBalancedSampler(100, labels=LABELS).load_state_dict(state)
    for options in ({"labels": LABELS, "beta": 0.9}, {"labels": np.zeros(100, int)}):
        with pytest.raises(ValueError, match="the state is of a sampler with priority=class_balanced"):
            ClassBalancedSampler(100, **options).load_state_dict(state)


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        ([0.5, 1.0], TypeError, r"labels must be integers, got dtype float64; use .astype\(np.int64\)"),
        (["a", "b"], TypeError, "labels must be integers"),
        ([[1, 0], [0, 1]], ValueError, r"labels must have shape \(N,\).*got shape \(2, 2\); use labels.argmax"),
        (np.zeros(0, int), ValueError, r"N at least 1, got shape \(0,\)"),
        ([0, -1], ValueError, "labels must be at least 0, got -1"),
        ([0, 1, 2], ValueError, "labels must have one class for each of 2 samples, got 3"),
    ],
)
def test_labels_are_checked(labels, error, words):
    with pytest.raises(error, match=words):
        ClassBalancedSampler(2, labels=labels)


@pytest.mark.parametrize("beta", [-0.1, 1.1, np.nan])
def test_beta_is_checked(beta):
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\]"):
        class_balanced_weights([0, 1], beta)
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\]"):
        ClassBalancedSampler(2, labels=[0, 1], beta=beta)
