"""``priority="auto"``: named by who knows the loss, before the first loss arrives."""

import numpy as np
import pytest

from sampler import ImportanceSampler, RankedSampler, UniformSampler

from .states import Unchanged, same


def test_auto_is_the_loss_until_it_is_named(caplog):
    caplog.set_level("INFO", "sampler")
    sampler = ImportanceSampler(4, priority="auto", first_pass=False, uniform_fraction=0.0, seed=0)
    assert sampler.auto
    assert sampler.priority == "'loss'"
    assert not sampler.wants_score
    sampler.suit("gradient_norm")
    assert sampler.wants_score
    sampler.suit("sqrt")
    assert not sampler.wants_score
    assert sampler.priority == "'sqrt'"
    assert caplog.messages == ["priority='auto' is 'gradient_norm'", "priority='auto' is 'sqrt'"]
    sampler.update(np.arange(4), [1.0, 4.0, 9.0, 16.0])
    assert sampler.priorities().tolist() == [1.0, 2.0, 3.0, 4.0]
    sampler.suit("sqrt")
    with Unchanged(sampler), pytest.raises(ValueError, match="losses have arrived, and priorities were made of them"):
        sampler.suit("bounded")
    plain = ImportanceSampler(4, priority="auto", first_pass=False, seed=0)
    plain.update([0], [5.0])
    assert plain.priorities()[0] == 5.0
    plain.suit("loss")


def test_what_suits_travels_with_the_state():
    one, other = (ImportanceSampler(6, priority="auto", feedback_lag=1, seed=seed) for seed in (0, 1))
    one.suit("sqrt")
    draw = one.draw(3)
    one.update(draw.index, [4.0, 4.0, 4.0], step=0)
    other.load_state_dict(one.state_dict())
    assert same(one.state_dict(), other.state_dict())
    with pytest.raises(ValueError, match="losses have arrived"):
        other.suit("loss")
    ImportanceSampler(6, priority="sqrt", feedback_lag=1).load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="priority='sqrt', this one has priority='bounded'"):
        ImportanceSampler(6, priority="bounded", feedback_lag=1).load_state_dict(one.state_dict())


def test_what_suit_refuses():
    for sampler in (UniformSampler(4), RankedSampler(4), ImportanceSampler(4, priority="sqrt")):
        assert not sampler.auto
        with pytest.raises(ValueError, match="auto"):
            sampler.suit("sqrt")
    with pytest.raises(ValueError, match="suit takes one of 'loss', 'sqrt', 'bounded', 'gradient_norm', got 'auto'"):
        ImportanceSampler(4, priority="auto").suit("auto")
    with pytest.raises(ValueError, match="keep_losses=True keeps losses"):
        ImportanceSampler(4, priority="auto", keep_losses=True).suit("gradient_norm")
    with pytest.raises(ValueError, match="priority='auto' is named later"):
        ImportanceSampler(4, priority="auto", losses=np.ones(4))
    chosen = ImportanceSampler(4, priority="auto", keep_losses=True)
    chosen.set_priority("bounded")
    assert not chosen.auto
