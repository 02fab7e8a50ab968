"""Small models whose per-sample gradients are known in closed form, and what priorities are worth on them, exactly.

Each is a last layer: the gradient of sample i is the outer product of δ_i, the derivative of its loss by the
layer's outputs, and h_i, the layer's input. Its norm ‖δ_i‖·‖h_i‖ is the score; nothing is trained, so that all stays
exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Model(NamedTuple):
    losses: np.ndarray  # (N,)
    deltas: np.ndarray  # (N, K)
    inputs: np.ndarray  # (N, d)

    @property
    def scores(self) -> np.ndarray:
        return np.linalg.norm(self.deltas, axis=1) * np.linalg.norm(self.inputs, axis=1)

    def gradient(self, index, weight) -> np.ndarray:
        """(K, d) of the batch: (1/B) Σ w δ hᵀ."""
        return (self.deltas[index] * np.asarray(weight, float)[:, None]).T @ self.inputs[index] / len(index)

    def norm(self, index, weight) -> float:
        return float(np.linalg.norm(self.gradient(index, weight)))

    def gain(self, probability, batch: int) -> float:
        """The expected squared norm of a batch's gradient: under uniform draws, over that under draws by p (N,)."""
        size = self.losses.size
        mean = self.norm(np.arange(size), np.ones(size)) ** 2
        uniform = np.mean(self.scores**2)
        by_priority = np.mean(self.scores**2 / (size * probability))
        return (mean + (uniform - mean) / batch) / (mean + (by_priority - mean) / batch)


def squared_error(residuals, inputs) -> Model:
    """A linear model with one output; the loss is half the squared residual."""
    return Model(residuals**2 / 2, residuals[:, None], inputs)


def cross_entropy(logits, labels, inputs) -> Model:
    """A softmax layer."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    place = np.arange(labels.size)
    deltas = np.exp(log_shares)
    deltas[place, labels] -= 1.0
    return Model(-log_shares[place, labels], deltas, inputs)


def directions(generator, size: int, width: int = 8) -> np.ndarray:
    """(size, width) of norm 1."""
    rows = generator.normal(size=(size, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def equal_jacobians(size: int = 600) -> Model:
    """Squared error by the raw loss, p ∝ r²: exactly the variance of uniform draws."""
    generator = np.random.default_rng(0)
    residuals = np.exp(generator.normal(size=size) * 0.7) * generator.choice([-1.0, 1.0], size)
    return squared_error(residuals, directions(generator, size))


def unequal_jacobians(size: int = 600) -> Model:
    """The same, where what has a large residual has a small Jacobian: harm."""
    generator = np.random.default_rng(1)
    residuals = np.exp(generator.normal(size=size)) * generator.choice([-1.0, 1.0], size)
    return squared_error(residuals, directions(generator, size) / np.abs(residuals[:, None]))


def wrong_labels(size: int = 600) -> Model:
    """Cross-entropy with a tenth of labels wrong, which a confident model knows: a raw loss of 13 and no more to teach
    than the samples whose classes overlap, of a loss of about 0.7.
    """
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 3, size)
    logits = generator.normal(size=(size, 3))
    wrong = np.arange(size) % 10 == 0
    logits[wrong] = 0.0
    logits[wrong, (labels[wrong] + 1) % 3] = 13.0
    return cross_entropy(logits, labels, directions(generator, size))


def few_hard(size: int = 600) -> Model:
    """Cross-entropy where 5 % of the samples carry what is left to learn."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, size)
    logits = generator.normal(size=(size, 2)) * 0.5
    easy = np.arange(size) % 20 != 0
    logits[easy, labels[easy]] += 5.0
    return cross_entropy(logits, labels, directions(generator, size))


def one_direction(size: int = 600) -> Model:
    """As ``few_hard`` in its scores, but all gradients point one way: noise does not bind."""
    return few_hard(size)._replace(deltas=np.abs(few_hard(size).deltas), inputs=np.ones((size, 1)))
