"""``max_draws``: nobody is drawn more often in an epoch than by the uniform share, and nothing is biased."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from sampler import ImportanceSampler, priorities

from .chance import deviation_limit
from .states import Unchanged, same

SIZE = 200
BATCH = 5
EPOCH = SIZE // BATCH  # draws
RATE = 1e-9  # of a false alarm, each time it is used


def heavy_losses() -> np.ndarray:
    """Five samples that have half of the mass."""
    losses = np.ones(SIZE)
    losses[::40] = 40.0
    return losses


def a_sampler(max_draws=3, **options) -> ImportanceSampler:
    options = {"losses": heavy_losses(), "uniform_fraction": 0.3, "seed": 0, **options}
    return ImportanceSampler(SIZE, max_draws=max_draws, **options)


def watch(sampler) -> list[np.ndarray]:
    """Give p of all samples as it was at each draw."""
    named, used = sampler._scheme, []

    def watched(store, count, **arguments):
        used.append(store.probabilities(sampler.uniform_fraction))
        return named(store, count, **arguments)

    sampler._scheme = watched
    return used


def held(sampler) -> list[int]:
    return sorted(sampler.state_dict()["bound"]["held"].tolist())


@pytest.mark.parametrize("store", ["proportional", "ranked"])
@pytest.mark.parametrize("scheme", ["systematic", "multinomial", "stratified"])
@pytest.mark.parametrize("option", [{}, {"smoothing": 0.5}, {"forget": 0.5}])
def test_every_draw_is_unbiased_by_itself(store, scheme, option):
    """Σ p w ℓ = mean ℓ for any ℓ: p sums to one, is λ/N at least, and w = 1 / (N p) of the very same p."""
    sampler = a_sampler(scheme=scheme, store=store, **option)
    used, generator = watch(sampler), np.random.default_rng(0)
    for _ in range(2 * EPOCH + 3):
        draw = sampler.draw(BATCH)
        p = used[-1]
        assert p.sum() == pytest.approx(1.0, rel=1e-12)
        assert p.min() >= 0.3 / SIZE * (1 - 1e-12)
        np.testing.assert_allclose(draw.probability, p[draw.index], rtol=1e-11)
        np.testing.assert_allclose(draw.weight, 1 / (SIZE * p[draw.index]), rtol=2e-7)
        sampler.update(draw.index, heavy_losses()[draw.index] * generator.uniform(0.5, 2.0, BATCH), step=draw.step)


@pytest.mark.parametrize("scheme", ["systematic", "multinomial", "without_replacement"])
@pytest.mark.parametrize("max_draws", [1, 3])
def test_who_was_drawn_so_often_has_the_uniform_share_until_the_epoch_ends(scheme, max_draws):
    sampler = a_sampler(max_draws, scheme=scheme)
    for epoch in range(3):
        counts = np.zeros(SIZE, int)
        for step in range(EPOCH):
            before = counts.copy()
            draw = sampler.draw(BATCH)
            counts += np.bincount(draw.index, minlength=SIZE)
            down = before >= max_draws
            if scheme != "without_replacement":
                np.testing.assert_allclose(draw.probability[down[draw.index]], 0.3 / SIZE, rtol=1e-12)
            assert (draw.probability[~down[draw.index]] > 0.3 / SIZE * (1 + 1e-9)).all() or down.all()
            assert held(sampler) == np.flatnonzero(counts >= max_draws).tolist(), (epoch, step)


def too_often(sampler, epochs, max_draws) -> bool:
    """Whether samples come more often beyond the bound than λ/N a draw: Bernstein, rate 1e-9.

    Between batches a sample is looked at, so the batch that brings it to the bound is left out; from then on every
    draw of the epoch is a coin of λ/N, whatever happened before.
    """
    beyond = chances = 0
    for _ in range(epochs):
        counts = np.zeros(SIZE, int)
        for _ in range(EPOCH):
            down = counts >= max_draws
            index = sampler.draw(BATCH).index
            beyond += down[index].sum()
            chances += down.sum() * BATCH
            counts += np.bincount(index, minlength=SIZE)
    mean = chances * 0.3 / SIZE
    assert mean > 20  # there was something to see
    return beyond > mean + deviation_limit(mean, RATE)


@pytest.mark.parametrize("max_draws", [2, 4])
def test_beyond_the_bound_a_sample_comes_by_its_uniform_share_alone(max_draws):
    assert not too_often(a_sampler(max_draws, scheme="multinomial"), 40, max_draws)
    assert too_often(a_sampler(None, scheme="multinomial"), 40, max_draws)  # the fault: no bound at all
    assert too_often(a_sampler(max_draws + 1, scheme="multinomial"), 40, max_draws)  # one that is off by one


def test_the_priorities_come_back_when_the_epoch_ends_and_have_learnt_meanwhile():
    sampler = a_sampler(2)
    for _ in range(EPOCH):
        sampler.draw(BATCH)
    down = held(sampler)
    assert set(range(0, SIZE, 40)) <= set(down)
    assert sampler.priorities().tolist() == heavy_losses().tolist()  # theirs, though the store has 0
    sampler.update(down[:2], [7.0, 9.0])
    sampler.update(down[:1] * 2, [4.0, 8.0])
    expected = heavy_losses()
    expected[down[:2]] = [6.0, 9.0]
    assert sampler.priorities().tolist() == expected.tolist()
    assert held(sampler) == down  # not let go by what they learn
    assert sampler.summary()["mean_priority"] == pytest.approx(expected.mean(), rel=1e-12)
    used = watch(sampler)
    sampler.draw(BATCH)  # a new epoch
    np.testing.assert_allclose(used[-1], 0.7 * expected / expected.sum() + 0.3 / SIZE, rtol=1e-6)


def test_a_sample_held_down_is_smoothed_as_any_other():
    sampler = a_sampler(1, smoothing=0.75)
    index = sampler.draw(BATCH).index
    expected = heavy_losses()
    expected[index] = 0.75 * expected[index] + 0.25 * 100.0
    sampler.update(index, [100.0] * BATCH)
    np.testing.assert_allclose(sampler.priorities(), expected, rtol=1e-6)
    assert held(sampler) == sorted(set(index.tolist()))


def test_the_first_pass_counts():
    sampler = ImportanceSampler(10, max_draws=2, seed=0)
    for _ in range(2):
        sampler.draw(4)
    assert sampler.state_dict()["bound"]["counts"].sum() == 8
    assert held(sampler) == []
    draw = sampler.draw(4)  # two of the first pass, two by priority, who come to the bound
    assert held(sampler) == sorted(set(draw.index[2:].tolist()))


def test_a_batch_larger_than_an_epoch():
    sampler = ImportanceSampler(4, max_draws=1, losses=[1.0, 2.0, 3.0, 4.0], seed=0)
    for _ in range(5):
        draw = sampler.draw(12)  # every draw is an epoch of its own
        np.testing.assert_allclose(draw.probability, 0.7 * (draw.index + 1) / 10 + 0.3 / 4, rtol=1e-12)


def test_where_all_that_have_a_priority_are_held_down_draws_are_uniform():
    sampler = ImportanceSampler(8, max_draws=1, losses=np.eye(1, 8, 2)[0], seed=0)
    probabilities = []
    for _ in range(8):
        down = held(sampler)
        draw = sampler.draw(1)
        expected = 1 / 8 if 2 in down else 0.3 / 8 + 0.7 * (draw.index.item() == 2)
        assert draw.probability.item() == pytest.approx(expected, rel=1e-12)
        probabilities.append(draw.probability.item())
    assert probabilities.count(1 / 8) > 1


def test_together_with_forgetting_nobody_is_raised_by_it():
    sampler = a_sampler(1, forget=0.9)
    for _ in range(3 * EPOCH):
        draw = sampler.draw(BATCH)
        store = sampler._store.priorities()
        assert (store[held(sampler)] == 0.0).all()
        assert (np.delete(store, held(sampler)) > 0.0).all()
        sampler.update(draw.index[:2], heavy_losses()[draw.index[:2]], step=draw.step)


@pytest.mark.parametrize("store", ["proportional", "ranked"])
def test_together_with_forgetting_the_mean_is_that_of_all(store):
    """Those held down count with their own priority, not with the 0 that the store has."""
    sampler = a_sampler(1, forget=0.5, store=store, losses=np.full(SIZE, 3.0))
    for _ in range(2 * EPOCH + EPOCH // 2):
        sampler.draw(BATCH)
    assert len(held(sampler)) > SIZE // 4
    np.testing.assert_allclose(sampler.priorities(), 3.0, rtol=1e-6)


def test_together_with_another_priority():
    sampler = a_sampler(2, keep_losses=True)
    for _ in range(EPOCH // 2):
        sampler.draw(BATCH)
    down = held(sampler)
    assert down
    sampler.set_priority("sqrt")
    assert held(sampler) == down
    np.testing.assert_allclose(sampler.priorities(), np.sqrt(heavy_losses()), rtol=1e-7)
    assert (sampler._store.priorities()[down] == 0.0).all()
    with Unchanged(sampler), pytest.raises(ValueError, match="priorities must be numbers ≥ 0"):
        sampler.set_priority(lambda losses: -losses)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"uniform_fraction": 0.0}, ValueError, "max_draws leaves a sample its uniform share alone.*above 0"),
        ({"max_draws": 0}, ValueError, "max_draws must be at least 1, got 0"),
        ({"max_draws": 256}, ValueError, "max_draws must be at most 255, got 256"),
        ({"max_draws": 2.0}, TypeError, "max_draws must be an integer"),
    ],
)
def test_a_bound_that_cannot_be_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        a_sampler(**options)


SPOILT = {
    "who was never held": lambda bound: {**bound, "held": (bound["held"] + 1) % SIZE},
    "one too few": lambda bound: {**bound, "held": bound["held"][1:], "priorities": bound["priorities"][1:]},
    "one below zero": lambda bound: {**bound, "priorities": bound["priorities"] - bound["priorities"].max() - 1},
    "no priority": lambda bound: {**bound, "priorities": bound["priorities"] * np.nan},
    "another bound": lambda bound: {**bound, "counts": np.where(bound["counts"] == 2, 3, bound["counts"])},
    "more than the bound": lambda bound: {**bound, "counts": np.where(bound["counts"] == 0, 9, bound["counts"])},
    "fewer counts": lambda bound: {**bound, "counts": bound["counts"][1:]},
    "less than nothing drawn": lambda bound: {**bound, "drawn": -1},
    "nothing": lambda bound: {},
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_state_that_cannot_be_is_refused_and_nothing_changed(spoil):
    sampler, other = a_sampler(2), a_sampler(2, seed=1)
    for each in (sampler, sampler, sampler, other):
        each.draw(40)
    state = sampler.state_dict()
    assert state["bound"]["held"].size
    with Unchanged(other), pytest.raises(ValueError, match="damaged"):
        other.load_state_dict({**state, "bound": SPOILT[spoil](state["bound"])})
    other.load_state_dict(state)
    assert same(other.state_dict(), state)


def test_a_sampler_without_a_bound_does_not_lose_the_priorities_held_in_a_state():
    bounded, free = a_sampler(1), ImportanceSampler(SIZE, losses=heavy_losses(), seed=1)
    bounded.draw(BATCH)
    with Unchanged(free), pytest.raises(ValueError, match="with max_draws=1, this one has max_draws=None"):
        free.load_state_dict(bounded.state_dict())


def test_ten_bytes_more_a_sample():
    size = 100_000
    bounded, free = (ImportanceSampler(size, max_draws=most) for most in (1, None))
    assert bounded.nbytes - free.nbytes == pytest.approx(10.15 * size, rel=0.01)


def test_what_is_held_is_counted():
    """All that Python and NumPy have allocated, to within a tenth and what a draw leaves."""
    size = 50_000
    ImportanceSampler(size, max_draws=1, first_pass=False).draw(size)  # compiled
    tracemalloc.start()
    try:
        sampler = ImportanceSampler(size, max_draws=1, first_pass=False, seed=0)
        sampler.draw(size)
        assert len(held(sampler)) == size
        allocated, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert allocated < 1.1 * sampler.nbytes + 50_000


@pytest.mark.parametrize("store", ["proportional", "ranked"])
def test_the_mean_forgets_nothing_beside_an_enormous_priority(store):
    """A running sum would: 1e30 + 1 - 1e30 is 0."""
    sampler = ImportanceSampler(SIZE, max_draws=1, first_pass=False, store=store, seed=0)
    while len(held(sampler)) < SIZE // 2:
        sampler.draw(BATCH)
    down = held(sampler)
    for loss in (1e30, 1.0, 1e30, 3.0):
        sampler.update(down[:1], [loss])
        assert sampler.summary()["mean_priority"] == pytest.approx(sampler.priorities().mean(), rel=1e-12)
    assert sampler.summary()["mean_priority"] == pytest.approx(1.0 + 2.0 / SIZE, rel=1e-12)


@pytest.mark.parametrize("loss", [1.7e308, -1.7e308])
def test_a_mean_of_enormous_ranks_is_finite(loss):
    sampler = ImportanceSampler(SIZE, max_draws=1, losses=np.full(SIZE, loss), store="ranked", forget=0.5, seed=0)
    for _ in range(2 * EPOCH):
        sampler.draw(BATCH)
        assert sampler.summary()["mean_priority"] == pytest.approx(loss, rel=1e-9)


def test_the_mean_costs_the_same_however_many_are_held():
    """A thousand times in half a second; over 100,000 samples one by one it took half a minute."""
    size = 100_000
    sampler = ImportanceSampler(size, max_draws=1, first_pass=False, seed=0)
    sampler.draw(size)
    begin = time.perf_counter()
    for _ in range(1000):
        sampler._bound.mean_held()
    assert time.perf_counter() - begin < 0.5


def test_clipped_by_what_is_known_from_the_start():
    sampler = a_sampler(1, priority=priorities.clipped(0.5))
    assert sampler.priorities().tolist() == [1.0] * SIZE
