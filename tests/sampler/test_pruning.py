"""InfoBatch: who is kept at which weight, by enumeration; the finish; epochs; resuming."""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np
import pytest

from sampler import PruningSampler
from sampler.samplers import pruning

from .chance import chi_square_rejects
from .lagging import SIZE
from .resuming import assert_resumes_at_every_moment
from .states import Unchanged

SHARES = [0.0, 0.01, 0.25, 0.3, 0.5, 2 / 3, 0.9, 0.999]


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR, "sampler")


def told(losses, **options):
    """A sampler that knows these losses, at the beginning of its second pass."""
    sampler = PruningSampler(len(losses), seed=0, finish=0.0, **options)
    draw = sampler.draw(len(losses))
    sampler.update(draw.index, np.asarray(losses)[draw.index], step=draw.step)
    return sampler


def a_pass(sampler):
    """The rest of a pass, as one draw: the index, the weights and the probabilities."""
    draw = sampler.draw(1)
    rest = sampler._kept.size - sampler._taken
    more = sampler.draw(rest) if rest else None
    parts = [draw] if more is None else [draw, more]
    return tuple(np.concatenate([getattr(part, name) for part in parts]) for name in ("index", "weight", "probability"))


class Choosing:
    """A generator that keeps the subset it is told, and else is the one it stands for."""

    def __init__(self, generator, subset):
        self.generator, self.subset = generator, subset

    def choice(self, values, size, **_):
        assert size == len(self.subset)
        return np.asarray(values)[list(self.subset)]

    def __getattr__(self, name):
        return getattr(self.generator, name)


# --- unbiased -------------------------------------------------------------------------------------


def mean_estimate(losses, prune):
    """The mean over every subset that a pass may keep of the mean of w ℓ in it, and how many are kept."""
    losses = np.asarray(losses, np.float64)
    easy = int((losses < losses.mean()).sum())
    kept = min(easy, max(1, int((1 - prune) * easy + 0.5)))
    estimates = []
    for subset in itertools.combinations(range(easy), kept):
        sampler = told(losses, prune=prune)
        sampler._generator = Choosing(sampler._generator, subset)
        index, weight, probability = a_pass(sampler)
        assert index.size == len(set(index.tolist())) == losses.size - easy + kept
        np.testing.assert_allclose(weight, 1 / (losses.size * probability), rtol=2e-7)
        estimates.append((weight * losses[index]).mean())
    return np.mean(estimates), kept


@pytest.mark.parametrize("prune", SHARES)
@pytest.mark.parametrize("easy", range(6))
@pytest.mark.parametrize("hard", [1, 2])
def test_unbiased_over_all_subsets_at_every_count(prune, easy, hard):
    losses = [*(0.25 * np.arange(easy)), *(8.0 + np.arange(hard))]
    estimate, _ = mean_estimate(losses, prune)
    assert estimate == pytest.approx(np.mean(losses), rel=1e-6)


def test_every_count_occurs_among_these():
    counts = {(easy, mean_estimate([*range(easy), 50.0], prune)[1]) for prune in SHARES for easy in range(1, 6)}
    assert counts >= {(n, k) for n in range(1, 5) for k in range(1, n + 1)}


def test_the_test_sees_the_weight_of_the_paper(monkeypatch):
    """1/(1-r) in place of n/k, as its public code has it: three easy samples of which one is kept count 2."""
    right = pruning.part

    def part(size, easy, kept):
        chance, stay = right(size, easy, kept)
        chance[easy] = 0.5
        return chance, stay

    monkeypatch.setattr(pruning, "part", part)
    losses = [1.0, 2.0, 3.0, 50.0]
    estimate, kept = mean_estimate(losses, 0.6)
    assert kept == 1
    assert abs(estimate / np.mean(losses) - 1) > 0.1


def test_three_easy_samples_of_which_one_is_kept_count_three():
    index, weight, _ = a_pass(told([1.0, 1.0, 1.0, 9.0], prune=0.6))
    assert index.size == 2
    hard = weight[index == 3].item()
    assert weight[index != 3].item() == pytest.approx(3 * hard)
    assert hard == pytest.approx(2 / 4)


class Skewed(Choosing):
    """A generator that keeps the first of four a little more often than the others."""

    def choice(self, values, size, **_):
        return self.generator.choice(values, size, replace=False, p=[0.34, 0.22, 0.22, 0.22])


@pytest.mark.parametrize("fault", [False, True])
def test_every_subset_is_as_likely(fault):
    """Two of four easy samples, 400 passes a subset; the false-alarm rate is that of chance.py."""
    subsets = list(itertools.combinations(range(4), 2))
    counts = dict.fromkeys(subsets, 0)
    sampler = told([1.0, 2.0, 3.0, 4.0, 50.0])
    if fault:
        sampler._generator = Skewed(sampler._generator, ())
    for _ in range(400 * len(subsets)):
        index, _, _ = a_pass(sampler)
        counts[tuple(sorted(i for i in index.tolist() if i != 4))] += 1
    assert chi_square_rejects(list(counts.values()), [400] * 6, 5) is fault


# --- who is kept ----------------------------------------------------------------------------------


def test_a_sample_below_the_mean_is_easy_and_one_at_it_is_not():
    sampler = told([1.0, 2.0, 3.0], prune=0.9)
    sampler.draw(1)
    assert sampler.priorities().tolist() == [1.0, 1.0, 1.0]  # of the one that is easy, one is kept
    sampler = told([1.0, 1.0, 3.0, 5.0, 5.0], prune=0.5)
    sampler.draw(1)
    assert sampler.priorities().tolist() == [0.5, 0.5, 1.0, 1.0, 1.0]
    assert sampler.probabilities().tolist() == [0.125, 0.125, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("value", [0.1, 0.0, -7.3, 1e30, 1e300])
def test_equal_losses_prune_nobody(value):
    sampler = told([value] * 101, prune=0.9)
    sampler.draw(1)
    assert sampler.summary()["kept_fraction"] == 1.0


def test_a_sample_without_a_loss_is_kept():
    losses = np.arange(10.0)
    losses[[0, 1]] = np.nan
    sampler = told(losses, prune=0.9)
    for _ in range(20):
        index, weight, _ = a_pass(sampler)
        assert {0, 1} <= set(index.tolist())
        assert (weight[index < 2] < 1.0).all()


def test_nobody_has_a_loss():
    sampler = PruningSampler(10, seed=0, finish=0.0)
    for _ in range(3):
        assert sorted(sampler.draw(10).index) == list(range(10))


def test_losses_below_zero_are_losses():
    sampler = told([-9.0, -8.0, 1.0, 2.0])
    assert a_pass(sampler)[0].size == 3


def test_a_pass_that_was_pruned_is_pruned_by_the_newest_losses():
    sampler = told([0.0, 0.0, 0.0, 0.0, 9.0, 9.0], prune=0.75)
    a_pass(sampler)
    sampler.update(np.arange(6), [9.0, 9.0, 9.0, 9.0, 0.0, 0.0])
    a_pass(sampler)
    assert sampler.priorities().tolist() == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]


def test_a_batch_across_two_passes_has_the_probabilities_of_both():
    sampler = told([0.0, 0.0, 0.0, 0.0, 9.0, 9.0], prune=0.75)  # 3 of 6 are in a pass
    draws = [sampler.draw(2) for _ in range(30)]
    assert all(sampler.ends_epoch(draw.step) for draw in draws[1::3] + draws[2::3])
    assert not any(sampler.ends_epoch(draw.step) for draw in draws[0::3])
    for draw in draws:
        expected = np.where(draw.index < 4, 0.25, 1.0) / 3.0
        np.testing.assert_allclose(draw.probability, expected)


def test_a_batch_of_several_passes():
    sampler = told([0.0, 0.0, 0.0, 0.0, 9.0, 9.0], prune=0.75)
    counts = np.bincount(sampler.draw(30).index, minlength=6)
    assert counts[4:].tolist() == [10, 10]
    assert counts[:4].sum() == 10


# --- the finish -----------------------------------------------------------------------------------


def passes_pruned(sampler, passes):
    """Whether each pass is pruned; in a pass of 8 samples half of the easy half is left out."""
    pruned = []
    for _ in range(passes):
        draw = sampler.draw(1)
        pruned.append(sampler._kept.size < 8)
        sampler.update(draw.index, [float(draw.index[0])], step=draw.step)
        while not sampler.ends_epoch(draw.step):
            draw = sampler.draw(1)
            sampler.update(draw.index, [float(draw.index[0])], step=draw.step)
    return pruned


@pytest.mark.parametrize("share", [0.0, 0.01, 0.07, 0.125, 0.3, 1 / 3, 0.5, 0.875, 1.0])
def test_the_last_share_of_any_number_of_epochs_uses_everything(share):
    for epochs in range(1, 21):
        sampler = PruningSampler(8, epochs=epochs, finish=share, seed=0)
        whole = math.ceil(round(share * epochs, 9))
        expected = [0 < number < epochs - whole for number in range(epochs)]
        assert passes_pruned(sampler, epochs) == expected
        if share:
            assert not any(passes_pruned(sampler, 3))  # and what comes after


@pytest.mark.parametrize("share", [0.0, 0.01, 0.125, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("batch", [1, 3, 8, 11])
@pytest.mark.each_value
def test_the_last_share_of_any_number_of_steps_uses_everything(share, batch):
    for steps in range(1, 60):
        sampler = PruningSampler(8, steps=steps, finish=share, seed=0)
        uses_everything = []
        for step in range(steps + 2):
            draw = sampler.draw(batch)
            uses_everything.append((draw.probability == 1 / 8).all())
            sampler.update(draw.index, draw.index * 1.0, step=step)
        first = steps - math.ceil(round(share * steps, 9))
        assert all(uses_everything[first:])
        if share == 0.125 and batch == 3 and steps > 20:
            assert not all(uses_everything[: first - 3])  # no longer than a pruned pass of three steps before


def test_after_the_steps_everything_is_used():
    sampler = PruningSampler(8, steps=10, finish=0.0, seed=0)
    for _ in range(30):
        draw = sampler.draw(4)
        sampler.update(draw.index, draw.index * 1.0, step=draw.step)
    assert sampler.summary()["kept_fraction"] == 1.0


def test_a_finish_of_unknown_beginning_is_told(caplog):
    caplog.set_level(logging.WARNING, "sampler")
    PruningSampler(8)
    assert "finish=0.125 cannot begin" in caplog.text
    caplog.clear()
    PruningSampler(8, finish=0)
    PruningSampler(8, epochs=3)
    assert not caplog.text


# --- epochs, state, errors ------------------------------------------------------------------------


def test_rows_stop_where_an_epoch_ends():
    sampler = told(np.arange(12.0), prune=0.5)
    index, step = np.zeros((2, 10, 2), np.int64)
    weight, probability = np.zeros((2, 10, 2), np.float32)
    counts = [sampler.poll_rows(index, weight, probability, step, seconds=0.0) for _ in range(4)]
    assert counts == [5, 4, 5, 4]  # 9 samples a pass, in batches of 2


@pytest.mark.parametrize("lag", [1, 3])
@pytest.mark.parametrize("options", [{"finish": 0.0}, {"epochs": 6, "finish": 0.3}, {"steps": 30, "prune": 0.9}])
def test_killed_and_resumed_at_every_moment(lag, options):
    draws = assert_resumes_at_every_moment(lambda **more: PruningSampler(SIZE, **options, **more), lag)
    assert any((draw.probability != 1 / SIZE).any() for draw in draws)  # some are pruned


def test_ends_of_epochs_are_part_of_the_state():
    sampler = told(np.arange(12.0))
    for _ in range(20):
        sampler.draw(5)
    other = PruningSampler(12, finish=0.0)
    other.load_state_dict(sampler.state_dict())
    ends = [sampler.ends_epoch(step) for step in range(21)]
    assert ends == [other.ends_epoch(step) for step in range(21)]
    assert 8 < sum(ends) < 14


def test_a_state_that_makes_no_sense_is_refused():
    sampler = told(np.arange(12.0))
    sampler.draw(5)
    state = sampler.state_dict()
    wrong = {
        "chance": [np.zeros(12), np.full(12, 2.0), np.full(12, np.nan)],
        "kept": [np.zeros(12, bool), np.arange(12) < 4],  # five are taken
        "ends": [np.full_like(state["ends"], -2)],
    }
    for name, values in wrong.items():
        for value in values:
            with Unchanged(sampler), pytest.raises(ValueError, match="damaged"):
                sampler.load_state_dict({**state, name: value})


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"prune": 1.0}, ValueError, r"prune must be in \[0, 1\), got 1"),
        ({"prune": "half"}, TypeError, "prune must be a number"),
        ({"finish": 1.5}, ValueError, r"finish must be in \[0, 1\], got 1.5"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"steps": 2.5}, TypeError, "steps must be an integer, got 2.5"),
        ({"epochs": 3, "steps": 4}, ValueError, "give epochs or steps, not both, got epochs=3 and steps=4"),
    ],
)
def test_arguments_are_checked(options, error, words):
    with pytest.raises(error, match=words):
        PruningSampler(8, **options)
