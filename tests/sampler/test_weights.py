from __future__ import annotations

import numpy as np
import pytest

from sampler import weights


def test_importance_weight():
    weight = weights.importance_weight([0.1, 0.4], num_samples=10)
    np.testing.assert_allclose(weight, [1.0, 0.25], rtol=1e-15)
    np.testing.assert_allclose(weights.importance_weight([0.1, 0.4], 10, 0.5), [1.0, 0.5], rtol=1e-15)
    assert weights.importance_weight([0.3, 1e-9], 10, 0.0).tolist() == [1.0, 1.0]


def test_the_weighted_mean_over_p_is_the_plain_mean():
    generator = np.random.default_rng(0)
    probability = generator.dirichlet(np.ones(20))
    values = generator.normal(size=20)
    weight = weights.importance_weight(probability, 20)
    assert (probability * weight * values).sum() == pytest.approx(values.mean(), rel=1e-12)


def test_effective_sample_size():
    assert weights.effective_sample_size([1.0, 1.0, 1.0]) == 3.0
    assert weights.effective_sample_size([0.2, 0.2]) == pytest.approx(2.0)
    assert weights.effective_sample_size([5.0, 0.0, 0.0]) == 1.0
    assert weights.effective_sample_size([3.0, 1.0]) == pytest.approx(16 / 10)
    assert weights.effective_sample_size([]) == 0.0


def test_a_linear_schedule_ends_where_it_should():
    beta = weights.linear(0.4, 1.0, steps=10)
    assert [beta(0), beta(5), beta(10), beta(10**9)] == pytest.approx([0.4, 0.7, 1.0, 1.0])
    falling = weights.linear(1.0, 0.0, steps=2)
    assert [falling(step) for step in range(4)] == pytest.approx([1.0, 0.5, 0.0, 0.0])


def test_a_schedule_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        weights.linear(0.0, 1.0, 0)
