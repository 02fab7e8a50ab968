"""``keep_losses`` and ``set_priority``; priorities keyed by index; losses below zero; and what all of it weighs."""

from __future__ import annotations

import numpy as np
import pytest

from sampler import ImportanceSampler, UniformSampler, priorities

from .states import Unchanged, same, same_draw

SIZE = 6
UNKNOWN = np.nan


def a_sampler(**options) -> ImportanceSampler:
    options = {"keep_losses": True, "first_pass": False, "initial_priority": 2.0, "seed": 0, **options}
    return ImportanceSampler(SIZE, **options)


@pytest.fixture(params=["proportional", "ranked"])
def store(request):
    return request.param


# --- the losses


def test_the_newest_finite_loss_of_every_sample_is_kept(store):
    sampler = a_sampler(store=store)
    assert sampler.losses().dtype == np.float32
    assert np.isnan(sampler.losses()).all()
    sampler.update([0, 3, 4, 4], [0.1, np.nan, 1.0, 3.0], step=5)
    sampler.update([0, 1], [9.0, np.inf], step=3)  # late, and not finite
    np.testing.assert_array_equal(sampler.losses(), np.float32([0.1, UNKNOWN, UNKNOWN, UNKNOWN, 2.0, UNKNOWN]))
    sampler.update([0], [7.0], step=5)
    assert sampler.losses()[0] == 7.0
    sampler.losses()[:] = 5.0  # a copy
    assert sampler.losses()[0] == 7.0


def test_what_is_kept_is_the_loss_and_not_its_priority_nor_smoothed():
    sampler = a_sampler(priority="sqrt", smoothing=0.5)
    sampler.update([2], [9.0])
    sampler.update([2], [25.0])
    assert sampler.losses()[2] == 25.0
    assert sampler.priorities()[2] == 4.0


@pytest.mark.parametrize("loss", [1e300, -1e300])
def test_a_loss_beyond_float32_is_kept_as_the_largest(loss):
    sampler = a_sampler(store="ranked")
    sampler.update([1], [loss])
    assert sampler.losses()[1] == np.sign(loss) * np.finfo(np.float32).max
    sampler.set_priority("loss")


def test_losses_known_at_the_start_are_kept(store):
    sampler = a_sampler(losses=[1.0, UNKNOWN, 3.0, np.inf, 0.0, 5.0], store=store)
    np.testing.assert_array_equal(sampler.losses(), [1.0, UNKNOWN, 3.0, UNKNOWN, 0.0, 5.0])
    assert sampler.priorities().tolist() == [1.0, 2.0, 3.0, 2.0, 0.0, 5.0]


def test_without_keep_losses_there_are_none():
    sampler = a_sampler(keep_losses=False)
    sampler.update([0], [3.0])
    for ask in (sampler.losses, lambda: sampler.set_priority("sqrt")):
        with Unchanged(sampler), pytest.raises(ValueError, match="not kept; make the sampler with keep_losses=True"):
            ask()


def test_under_a_lag_a_loss_is_kept_when_it_counts():
    sampler = a_sampler(feedback_lag=2)
    draws = [sampler.draw(SIZE) for _ in range(2)]
    sampler.update(draws[1].index, np.full(SIZE, 5.0), step=1)
    assert np.isnan(sampler.losses()).all()
    sampler.update(draws[0].index, np.full(SIZE, 3.0), step=0)
    assert sampler.losses()[draws[0].index].tolist() == [3.0] * SIZE


# --- another priority

LOSSES = np.array([0.0, 0.25, 4.0, 9.0, 1.0])  # of the first five; nothing is known of the last


def learnt(**options) -> ImportanceSampler:
    sampler = a_sampler(**options)
    sampler.update(np.arange(5), LOSSES)
    return sampler


@pytest.mark.parametrize(
    ("priority", "formula"),
    [
        ("loss", lambda x: x),
        ("sqrt", np.sqrt),
        ("bounded", lambda x: 1 - np.exp(-x)),
        (priorities.power(0.6, 0.1), lambda x: (x + 0.1) ** 0.6),
        (lambda losses: losses + 1, lambda x: x + 1),
        (priorities.relative([1, 0.5, 1, 1, 1, 1]), lambda x: np.maximum(x - [1, 0.5, 1, 1, 1], 0)),
    ],
)
@pytest.mark.parametrize("first", ["loss", "sqrt", "bounded"])
def test_every_priority_is_derived_anew_from_the_loss(store, priority, formula, first):
    sampler = learnt(priority=first, store=store)
    sampler.set_priority(priority)
    np.testing.assert_allclose(sampler.priorities(), [*formula(LOSSES), 2.0], rtol=1e-6, atol=1e-7)
    sampler._store.check()
    sampler.update([0, 5], [1.5, 4.0])  # and from here on losses become these priorities
    expected = formula(np.array([1.5, 0.25, 4.0, 9.0, 1.0]))
    np.testing.assert_allclose(sampler.priorities()[:5], expected, rtol=1e-6)


def test_no_exponent_is_ever_applied_twice(store):
    once, twice, there_and_back = (learnt(store=store) for _ in range(3))
    once.set_priority(priorities.power(0.5))
    for _ in range(2):
        twice.set_priority(priorities.power(0.5))
    for alpha in (0.5, 3.0, 0.1, 0.5):
        there_and_back.set_priority(priorities.power(alpha))
    assert same(once.state_dict(), twice.state_dict())
    assert same(once.state_dict(), there_and_back.state_dict())
    drawn = once.draw(4)
    assert same_draw(drawn, twice.draw(4))
    assert same_draw(drawn, there_and_back.draw(4))


def test_what_smoothing_and_forgetting_mixed_in_is_gone():
    sampler = learnt(smoothing=0.5, forget=0.5)
    sampler.update(np.arange(5), LOSSES[::-1])
    for _ in range(30):
        sampler.draw(4)
    assert not np.allclose(sampler.priorities()[:5], LOSSES[::-1], rtol=0.01)
    sampler.set_priority("loss")
    assert sampler.priorities()[:5].tolist() == LOSSES[::-1].tolist()


REFUSED = {
    "below zero": (lambda losses: -losses, "priorities must be numbers ≥ 0"),
    "no numbers": (lambda losses: losses * np.nan, "priorities must be numbers ≥ 0, got nan"),
    "one for all": (lambda losses: losses.mean(), "one priority for each"),
    "a reference of another size": (priorities.relative(np.ones(7)), "each of 6 samples, got 7"),
    "no such name": ("squared", "priority must be one of"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_priority_that_is_refused_changes_nothing(refused):
    sampler, twin = learnt(), learnt()
    priority, words = REFUSED[refused]
    with Unchanged(sampler), pytest.raises(ValueError, match=words):
        sampler.set_priority(priority)
    for each in (sampler, twin):
        each.update([0, 1], [2.0, 3.0])  # the old priority still does its work
    assert same(sampler.state_dict(), twin.state_dict())


def test_losses_below_zero_are_refused_by_a_priority_that_cannot_take_them():
    sampler = learnt(priority=lambda losses: np.exp(losses))
    sampler.update([0], [-3.0])
    with Unchanged(sampler), pytest.raises(ValueError, match=r"priority='sqrt' needs losses ≥ 0, got -3"):
        sampler.set_priority("sqrt")


def test_losses_that_wait_under_a_lag_are_asked_for_as_well():
    """Or the draw in which they count would fail, long after."""
    sampler = learnt(priority=priorities.relative(np.zeros(SIZE)), feedback_lag=2)
    draws = [sampler.draw(4) for _ in range(2)]
    sampler.update(draws[1].index, [-1.0, 1.0, 1.0, np.nan], step=1)  # waits for step 0
    with Unchanged(sampler), pytest.raises(ValueError, match=r"priority='sqrt' needs losses ≥ 0, got -1"):
        sampler.set_priority("sqrt")
    sampler.set_priority(priorities.relative(np.ones(SIZE)))
    sampler.update(draws[0].index, [1.0] * 4, step=0)
    sampler.draw(4)


def test_losses_that_wait_under_a_lag_count_by_the_new_priority():
    sampler = learnt(feedback_lag=1)
    draw = sampler.draw(4)
    sampler.update(draw.index[:2], [16.0, 16.0], step=0)
    sampler.set_priority("sqrt")
    sampler.update(draw.index[2:], [16.0, 16.0], step=0)
    assert (sampler.priorities()[draw.index] == 4.0).all()


@pytest.mark.parametrize("quantile", [0.5, 1.0])
def test_a_cut_is_filled_from_the_kept_losses(quantile):
    sampler = learnt()
    sampler.set_priority(priorities.clipped(quantile))
    cut = np.quantile(LOSSES, quantile)
    np.testing.assert_allclose(sampler.priorities(), [*np.minimum(LOSSES, cut), 2.0], rtol=1e-6)
    state = sampler.state_dict()
    assert sorted(state["priority"]["values"].tolist()) == sorted(LOSSES.tolist())
    other = a_sampler(priority=priorities.clipped(quantile))
    other.load_state_dict(state)
    assert same(other.state_dict(), state)


def test_a_cut_that_is_refused_has_seen_nothing():
    sampler = a_sampler(priority=priorities.clipped(0.9, lambda losses: losses + 5))
    sampler.update([0, 1], [1.0, -2.0])
    for priority in (priorities.clipped(0.5, "sqrt"), sampler._priority):
        if priority is sampler._priority:
            sampler.set_priority(priority)  # the one it has
            continue
        with Unchanged(sampler), pytest.raises(ValueError, match="needs losses ≥ 0"):
            sampler.set_priority(priority)
        assert priority.state_dict()["values"].size == 0


def test_known_losses_are_cut_at_their_own_quantile():
    losses = np.append(np.full(SIZE - 1, 1.0), 1000.0)
    sampler = a_sampler(priority=priorities.clipped(0.5), losses=losses)
    assert sampler.priorities().tolist() == [1.0] * SIZE
    again = a_sampler(losses=losses)
    again.set_priority(priorities.clipped(0.5))
    assert same(again.state_dict(), sampler.state_dict())


def test_what_is_remembered_goes_by_sample_and_not_by_order_of_arrival():
    one, other = (a_sampler(priority=priorities.clipped(0.5, window=3)) for _ in range(2))
    one.update([0, 1, 2, 3, 4], [5.0, 4.0, 3.0, 2.0, 1.0])
    other.update([2, 4, 0, 3, 1], [3.0, 1.0, 5.0, 2.0, 4.0])
    assert same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("lag", [None, 1])
def test_a_priority_that_works_in_place_leaves_the_losses(lag):
    """It is asked twice about the same ones: when they come, and when they count."""

    def halved(losses):
        losses *= 0.5
        return losses

    given = np.array([4.0, 6.0, 8.0, 10.0])
    sampler = a_sampler(priority=halved, losses=[2.0] * SIZE, feedback_lag=lag)
    assert sampler.losses().tolist() == [2.0] * SIZE
    assert sampler.priorities().tolist() == [1.0] * SIZE
    draw = sampler.draw(4)
    assert np.unique(draw.index).size == 4
    sampler.update(draw.index, given, step=0)
    assert sampler.losses()[draw.index].tolist() == [4.0, 6.0, 8.0, 10.0]
    assert sampler.priorities()[draw.index].tolist() == [2.0, 3.0, 4.0, 5.0]
    assert given.tolist() == [4.0, 6.0, 8.0, 10.0]
    sampler.update([0, 0], [1.0, 3.0])  # merged, so that each is asked about as well
    assert (sampler.losses()[0], sampler.priorities()[0]) == (2.0, 1.0)


# --- keyed by index


def test_relative_priorities_know_their_sample(store):
    reference = np.array([5.0, 0.0, 1.0, -1.0, 2.0, 2.0])
    sampler = a_sampler(priority=priorities.relative(reference), store=store)
    sampler.update([4, 0, 3, 4], [5.0, 6.0, -1.5, 7.0])
    np.testing.assert_allclose(sampler.priorities(), [1.0, 2.0, 2.0, 0.0, 4.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize("size", [SIZE, 300_000])  # in one part and in several
def test_relative_priorities_of_known_losses(size, store):
    generator = np.random.default_rng(0)
    losses, reference = generator.normal(size=(2, size))
    losses[1] = np.nan
    if store == "ranked":
        size, losses, reference = min(size, 5000), losses[:5000], reference[:5000]
    sampler = ImportanceSampler(size, priority=priorities.relative(reference), losses=losses, store=store)
    expected = np.maximum(losses - reference, 0.0)
    expected[1] = 1.0
    np.testing.assert_allclose(sampler.priorities(), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1, 0])
@pytest.mark.parametrize("lag", [None, 2])
def test_a_reference_of_another_size_is_refused(size, lag):
    with pytest.raises(ValueError, match=f"reference must have one number for each of {SIZE} samples, got {size}"):
        a_sampler(priority=priorities.relative(np.ones(size)), feedback_lag=lag)


def test_relative_priorities_under_a_lag_and_in_parts():
    sampler = a_sampler(priority=priorities.relative(np.arange(SIZE)), feedback_lag=1)
    draw = sampler.draw(4)
    for part in (slice(3, 4), slice(0, 3)):
        sampler.update(draw.index[part], draw.index[part] + 0.5, step=0)
    assert (sampler.priorities()[draw.index] == 0.5).all()


# --- below zero


def test_ranks_take_losses_below_zero_and_proportions_do_not():
    ranked, proportional = (a_sampler(store=name, uniform_fraction=0.0) for name in ("ranked", "proportional"))
    ranked.update(np.arange(6), [-1.0, -5.0, 3.0, 0.0, -2.0, 8.0])
    order = [5, 2, 0, 4, 1]  # sample 3 has the priority 0, and no rank
    expected = np.zeros(6)
    expected[order] = np.arange(1, 6) ** -0.7
    np.testing.assert_allclose(ranked.probabilities(), expected / expected.sum(), rtol=1e-12)
    with Unchanged(proportional), pytest.raises(ValueError, match=r"needs losses ≥ 0, got -5.*store='ranked'"):
        proportional.update(np.arange(6), [-1.0, -5.0, 3.0, 0.0, -2.0, 8.0])
    with pytest.raises(ValueError, match=r"needs losses ≥ 0, got -5.*store='ranked'"):
        a_sampler(losses=[-1.0, -5.0, 3.0, 0.0, -2.0, 8.0])
    assert a_sampler(losses=[-1.0, -5.0, 3.0, 0.0, -2.0, 8.0], store="ranked").priorities()[1] == -5.0


# --- what it weighs


@pytest.mark.parametrize(
    ("options", "bytes_a_sample"),
    [({}, 10), ({"keep_losses": True}, 14), ({"max_draws": 3}, 20), ({"losses": np.ones(1_000_000, np.float32)}, 10)],
)
def test_bytes_a_sample(options, bytes_a_sample):
    sampler = ImportanceSampler(1_000_000, **options)
    for _ in range(2):
        draw = sampler.draw(1000)
        sampler.update(draw.index, np.ones(1000), step=draw.step)
    assert sampler.nbytes <= bytes_a_sample * 1_000_000
    assert sampler._store.nbytes <= 5_000_000


def test_siblings_have_the_same_methods():
    def public(kind):
        return {name for name in dir(kind) if not name.startswith("_")}

    own = {"losses", "priority", "set_priority", "nbytes"}
    assert public(ImportanceSampler) - public(UniformSampler) <= own
