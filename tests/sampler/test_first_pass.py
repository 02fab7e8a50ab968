"""A first pass that is cut short: priorities are used while some samples are still unseen."""

import numpy as np
import pytest

from sampler import ImportanceSampler
from sampler.gates import VarianceGate

N, B = 20, 4
LOSSES = np.arange(1.0, N + 1.0)


def feed(sampler, draw):
    sampler.update(draw.index, LOSSES[draw.index], step=draw.step)


def run(sampler, steps):
    """So many draws, each with its feedback."""
    draws = []
    for _ in range(steps):
        draws.append(sampler.draw(B))
        feed(sampler, draws[-1])
    return draws


def same(one, other):
    return all(np.array_equal(one[column], other[column]) for column in range(1, 4))


@pytest.mark.parametrize(
    ("share", "passes"), [(0.05, 1), (0.2, 1), (0.21, 2), (0.6, 3), (0.79, 4), (0.99, 5), (1.0, 5)]
)
def test_as_many_batches_of_distinct_samples_as_make_the_share(share, passes):
    sampler = ImportanceSampler(N, first_pass=share, initial_priority=100.0, seed=0)
    draws = run(sampler, passes)
    assert np.unique(np.concatenate([draw.index for draw in draws])).size == passes * B
    assert all((draw.probability == 1 / N).all() and (draw.weight == 1.0).all() for draw in draws)
    assert (sampler.priorities() == 100.0).sum() == N - passes * B  # of the unseen
    run(sampler, 1)
    assert (sampler.priorities() == 100.0).sum() == 0  # by priority from here on


@pytest.mark.parametrize("options", [{}, {"max_draws": 1}, {"smoothing": 0.5}], ids=str)
def test_the_unseen_have_the_mean_priority_of_the_seen(options):
    sampler = ImportanceSampler(N, first_pass=0.4, uniform_fraction=0.3, initial_priority=100.0, seed=1, **options)
    seen = np.concatenate([draw.index for draw in run(sampler, 2)])
    draw = sampler.draw(B)
    priority = np.full(N, LOSSES[seen].mean())
    priority[seen] = LOSSES[seen]
    np.testing.assert_allclose(sampler.priorities(), priority, rtol=1e-6)
    if not options.get("max_draws"):  # which holds the seen down
        p = 0.7 * priority / priority.sum() + 0.3 / N
        np.testing.assert_allclose(draw.probability, p[draw.index], rtol=1e-6)
        np.testing.assert_allclose(draw.weight, 1 / (N * p[draw.index]), rtol=1e-6)


def test_a_sample_that_comes_later_counts_whole():
    sampler = ImportanceSampler(N, first_pass=0.2, smoothing=0.5, seed=0)
    seen = run(sampler, 1)[0].index
    sampler.draw(B)
    unseen = int(np.setdiff1d(np.arange(N), seen)[0])
    sampler.update([unseen], [50.0])
    assert sampler.priorities()[unseen] == 50.0  # not half of it and half of the mean


def test_nothing_is_given_where_no_loss_was_finite():
    sampler = ImportanceSampler(N, first_pass=0.2, initial_priority=3.0, seed=0)
    draw = sampler.draw(B)
    sampler.update(draw.index, np.full(B, np.nan), step=draw.step)
    sampler.draw(B)
    assert (sampler.priorities() == 3.0).all()


def test_the_whole_pass_and_none_are_the_ends():
    for share, flag in ((1.0, True), (0.0, False)):
        twins = [ImportanceSampler(N, first_pass=first, seed=2) for first in (share, flag)]
        assert all(same(*pair) for pair in zip(*(run(twin, 9) for twin in twins), strict=True))


def test_a_warmup_makes_it_a_whole_one():
    twins = [ImportanceSampler(N, first_pass=first, warmup=1, seed=2) for first in (0.2, True)]
    assert all(same(*pair) for pair in zip(*(run(twin, 15) for twin in twins), strict=True))


def test_known_losses_leave_nothing_to_look_at():
    twins = [ImportanceSampler(N, first_pass=first, losses=LOSSES, seed=2) for first in (0.2, True)]
    assert all(same(*pair) for pair in zip(*(run(twin, 9) for twin in twins), strict=True))


def test_rows_are_the_draws_of_as_many_polls():
    ones, rows = (ImportanceSampler(N, first_pass=0.4, seed=3) for _ in range(2))
    run(ones, 2)
    run(rows, 2)
    columns = [np.empty((3, B), dtype) for dtype in (np.int64, np.float32, np.float32, np.int64)]
    assert rows.poll_rows(*columns, seconds=0.0) == 3
    np.testing.assert_array_equal(columns[0], [ones.draw(B).index for _ in range(3)])
    np.testing.assert_array_equal(rows.priorities(), ones.priorities())


def test_a_closed_gate_goes_on_with_the_pass():
    sampler = ImportanceSampler(N, first_pass=0.2, gate=VarianceGate(margin=1e6), seed=4)
    draws = run(sampler, 5)
    assert np.unique(np.concatenate([draw.index for draw in draws])).size == N


def test_the_gate_hears_of_the_draws_behind_the_cut():
    class Hearing(VarianceGate):
        heard = 0

        def observe(self, score, weight, priority_weight, mean_gradient_norm=None):
            self.heard += 1

    gate = Hearing()
    sampler = ImportanceSampler(N, first_pass=0.4, gate=gate, seed=4)
    for step in range(5):
        draw = sampler.draw(B)
        sampler.update(draw.index, LOSSES[draw.index], step=draw.step, score=LOSSES[draw.index])
        assert gate.heard == max(step - 1, 0)


def test_under_a_lag_a_draw_behind_the_cut_waits():
    sampler = ImportanceSampler(N, first_pass=0.4, feedback_lag=1, seed=5)
    first, second = sampler.draw(B), sampler.draw(B)
    assert sampler.poll(B, seconds=0.0) is None
    feed(sampler, first)
    assert sampler.poll(B, seconds=0.0) is None
    feed(sampler, second)
    assert sampler.poll(B, seconds=0.0) is not None


def test_under_a_lag_the_unseen_have_the_same_mean_whenever_rows_are_asked_for():
    """That of all losses which the draw behind the cut must know, not of those that are there when it is asked for."""
    asked, waited = (ImportanceSampler(N, first_pass=0.4, feedback_lag=1, seed=5) for _ in range(2))
    columns = [np.empty((1, B), dtype) for dtype in (np.int64, np.float32, np.float32, np.int64)]
    for sampler in (asked, waited):
        for draw in [sampler.draw(B), sampler.draw(B)]:
            assert sampler is waited or sampler.poll_rows(*columns, seconds=0.0) == 0
            feed(sampler, draw)
        assert sampler.poll_rows(*columns, seconds=0.0) == 1
    np.testing.assert_array_equal(asked.priorities(), waited.priorities())


@pytest.mark.parametrize("lag", [None, 2])
@pytest.mark.parametrize("stop", range(6))
def test_a_state_goes_on_before_at_and_behind_the_cut(lag, stop):
    options = {"first_pass": 0.4, "feedback_lag": lag}
    sampler, resumed = ImportanceSampler(N, seed=6, **options), ImportanceSampler(N, seed=7, **options)
    run(sampler, stop)
    resumed.load_state_dict(sampler.state_dict())
    assert all(same(*pair) for pair in zip(run(sampler, 6), run(resumed, 6), strict=True))


def test_the_unseen_are_given_the_mean_once():
    sampler = ImportanceSampler(N, first_pass=0.2, uniform_fraction=0.3, initial_priority=100.0, seed=0)
    seen = run(sampler, 1)[0].index
    sampler.draw(B)
    assert sampler.state_dict()["cut"] == 0
    before = sampler.priorities()
    sampler.update(seen, np.full(B, 1000.0))
    sampler.draw(B)
    unseen = np.setdiff1d(np.arange(N), seen)
    np.testing.assert_array_equal(sampler.priorities()[unseen], before[unseen])


class Told(VarianceGate):
    """A closed gate that keeps what it is told of the priorities."""

    def observe(self, score, weight, priority_weight, mean_gradient_norm=None):
        self.told = [*getattr(self, "told", []), priority_weight]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_closed_gate_is_told_of_every_pass_after_the_first(batch):
    gate, expected = Told(), []
    sampler = ImportanceSampler(N, gate=gate, seed=0)
    for step in range(3 * N // batch):
        p = sampler.probabilities()
        draw = sampler.draw(batch)
        if step >= N // batch:
            expected.append(1 / (N * p[draw.index]))
        sampler.update(draw.index, LOSSES[draw.index], step=draw.step, score=LOSSES[draw.index])
    np.testing.assert_allclose(gate.told, expected, rtol=1e-6)


class Open(Told):
    open = True


@pytest.mark.parametrize("scheme", ["systematic", "multinomial", "without_replacement"])
def test_an_open_gate_is_told_the_chances_of_the_draws(scheme):
    gate, expected, losses = Open(), [], LOSSES**6  # so that some samples are certain
    sampler = ImportanceSampler(N, gate=gate, losses=losses, scheme=scheme, seed=0)
    for _ in range(12):
        draw = sampler.draw(6)
        expected.append(1 / (N * draw.probability))
        sampler.update(draw.index, losses[draw.index], step=draw.step, score=LOSSES[draw.index])
    np.testing.assert_allclose(gate.told, expected, rtol=1e-12)


def test_a_score_of_zero_is_one_though_a_loss_beside_it_is_not_finite():
    sampler = ImportanceSampler(N, gate="variance", seed=0)
    draw = sampler.draw(2)
    sampler.update(draw.index, [np.nan, 1.0], step=0, score=[0.0, 0.0])
    assert sampler.summary()["nonfinite"] == 1
