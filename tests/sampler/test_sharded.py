"""``ShardedSampler`` without Ray: servers in this process, some of which die, are paused, or answer late.

What Ray itself does is in tests/ray.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading

import numpy as np
import pytest

from sampler import DivergedError, ImportanceSampler, ShardedSampler
from sampler.ray_calls import ShardLost
from sampler.ray_cluster import check_joined, check_token, is_loopback
from sampler.state_bytes import from_bytes, to_bytes

from .chance import chi_square_rejects
from .shards_in_process import InProcess

N, SHARDS, B = 47, 4, 8
LOSSES = np.random.default_rng(0).gamma(1.0, size=N)


def store(calls=None, **options):
    options = {"shards": SHARDS, "prefetch": 0, "timeout": 30.0, **options}
    return ShardedSampler(N, calls=InProcess() if calls is None else calls, **options)


def train(sampler, steps, losses=LOSSES):
    made = []
    for _ in range(steps):
        draw = sampler.draw(B)
        sampler.update(draw.index, losses[draw.index], step=draw.step)
        made.append(draw)
    return made


def p_of_next(sampler, chance):
    """(N,) p of a draw by priority, from what it is made of: the chance of each shard, and the shard's own store."""
    plan, p = sampler._plan, []
    for shard, server in enumerate(sampler._patient.calls.servers):
        q = server.priorities()
        within = q / q.sum() if q.sum() > 0 else np.full(q.size, 1 / q.size)
        share = sampler.uniform_fraction * plan.uniform[shard] / chance[shard]
        p.append(chance[shard] * ((1 - share) * within + share / q.size))
    return np.concatenate(p)


# --- the two verbs


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("batch", [1, 8, 47, 60])
def test_the_first_pass_is_every_sample_once_at_weight_one(prefetch, batch):
    sampler = store(prefetch=prefetch)
    draws = [sampler.draw(batch) for _ in range(-(-N // batch))]
    index = np.concatenate([draw.index for draw in draws])
    assert sorted(index[:N]) == list(range(N))
    assert (np.concatenate([draw.weight for draw in draws])[:N] == 1).all()
    np.testing.assert_allclose(np.concatenate([draw.probability for draw in draws])[:N], 1 / N, rtol=1e-12)
    assert [draw.step for draw in draws] == list(range(len(draws)))


def test_a_draw_is_as_of_every_sampler():
    sampler = store(prefetch=3)
    for draw in train(sampler, 20):
        assert (draw.index.dtype, draw.probability.dtype, draw.weight.dtype) == (np.int64, np.float64, np.float32)
        assert draw.index.shape == draw.probability.shape == draw.weight.shape == (B,)
        np.testing.assert_allclose(draw.weight, 1 / (N * draw.probability), rtol=3e-7)
        assert not draw.index.flags.writeable
    assert len(sampler) == N
    assert sampler.step == 20


def test_p_is_that_of_one_store_where_the_totals_are_known():
    sampler, single = store(first_pass=False), ImportanceSampler(N, losses=LOSSES)
    sampler.update(np.arange(N), LOSSES, step=0)
    sampler.flush()
    np.testing.assert_allclose(sampler.probabilities(), single.probabilities(), rtol=1e-6)
    draw = sampler.draw(30)
    np.testing.assert_allclose(draw.probability, single.probabilities()[draw.index], rtol=1e-6)


@pytest.mark.parametrize("prefetch", [0, 4])
def test_the_expectation_is_exact_however_stale_the_totals_are(prefetch):
    """Σ p w ℓ = mean ℓ by the p that each draw is made with, computed apart from it; and no weight above 1/λ."""
    sampler = store(prefetch=prefetch, first_pass=False, seed=3)
    losses = LOSSES
    for step in range(40):
        told = sampler._plan.total * np.random.default_rng(step).uniform(0.01, 100, SHARDS)  # as wrong as can be
        sampler._plan.total[:] = told
        chance = sampler._plan.chance()
        p = p_of_next(sampler, chance)
        sampler._pool, before = type(sampler._pool)(), sampler._pool  # what is drawn ahead was with other totals
        draw = sampler.draw(B)
        assert p.sum() == pytest.approx(1.0, rel=1e-9)
        np.testing.assert_allclose(draw.probability, p[draw.index], rtol=1e-6)
        expected = (p * losses / (N * p)).sum()
        assert expected == pytest.approx(losses.mean(), rel=1e-12)
        assert draw.weight.max() <= 1 / 0.3 * (1 + 1e-6)
        del before
        losses = losses * np.random.default_rng(step).uniform(0.5, 2, N)
        sampler.update(draw.index, losses[draw.index], step=draw.step)


@pytest.mark.parametrize("planted", [False, True])
def test_samples_are_drawn_as_often_as_p_says(planted):
    """Independent draws, with totals that are wrong, against p: a false alarm with a chance of 1e-8.

    Planted: the uniform share of one store, λ, where a shard must have its own.
    """
    sampler = store(first_pass=False, scheme="multinomial", uniform_fraction=0.5, seed=1)
    sampler.update(np.arange(N), LOSSES, step=0)
    sampler.flush()
    sampler._plan.total[:] = [1.0, 30.0, 2.0, 9.0]
    p = p_of_next(sampler, sampler._plan.chance())
    if planted:
        sampler._plan.fraction = lambda part: np.full(SHARDS, 0.5)
    sampler._standing.take = lambda *_: False  # so that the totals stay wrong
    counts = np.bincount(sampler.draw(20_000).index, minlength=N)
    assert chi_square_rejects(counts, 20_000 * p, N - 1) == planted


def test_known_losses():
    calls = InProcess()
    sampler = store(calls, losses=LOSSES)
    np.testing.assert_allclose(sampler.priorities(), LOSSES, rtol=1e-6)
    draw = sampler.draw(B)
    assert (draw.weight != 1).any()
    assert draw.step == 1  # the known losses are of step 0
    sampler.update([0], [50.0], step=draw.step)
    np.testing.assert_allclose(store(calls, losses=LOSSES).priorities()[:2], [50.0, LOSSES[1]], rtol=1e-6)
    with pytest.raises(ValueError, match="losses must have one number for each of 47"):
        store(losses=np.zeros(3))


def test_partial_correction():
    sampler = store(beta=lambda step: 0.5, first_pass=False)
    draw = sampler.draw(B)
    np.testing.assert_allclose(draw.weight, (1 / (N * draw.probability)) ** 0.5, rtol=3e-7)
    assert not sampler.fully_corrected


def test_rows_are_draws():
    sampler = store(prefetch=4)
    index, step = np.full((2, 6, B), -1)
    weight, probability = np.full((2, 6, B), -1.0, np.float32)
    assert sampler.poll_rows(index, weight, probability, step, seconds=1.0) == 6
    assert step[:, 0].tolist() == list(range(6))
    assert len(set(index[:5].ravel())) == 40  # of the first pass
    np.testing.assert_allclose(weight, 1 / (N * probability), rtol=1e-6)


def test_a_batch_size_that_changes_takes_what_is_drawn_ahead():
    sampler = store(prefetch=4)
    drawn = [sampler.draw(count).index for count in (8, 3, 20, 1, 15)]
    assert sorted(np.concatenate(drawn)) == list(range(N))


def test_a_step_waits_for_no_call_where_the_next_is_drawn_ahead():
    calls = InProcess()
    sampler = store(calls, prefetch=4)
    sampler.draw(B)
    for _ in range(20):
        ahead = sampler._pool.size + sum(group.count for group in sampler._groups)
        assert B * 2 < ahead + B <= B * 5
        sampler.draw(B)
    asked = len([call for call in calls.asked if call[1] == "draw"])
    assert asked <= SHARDS * 12  # a call for two batches


def test_updates_reach_their_shards():
    sampler = store()
    sampler.update(np.arange(N), LOSSES, step=4)
    np.testing.assert_allclose(sampler.priorities(), LOSSES, rtol=1e-6)
    summary = sampler.summary()
    assert (summary["seen"], summary["updates"]) == (N, 1)
    assert summary["mean_priority"] == pytest.approx(LOSSES.mean(), rel=1e-6)


def test_updates_without_a_step_are_the_newest():
    sampler = store()
    train(sampler, 3)
    for value in (5.0, 6.0):
        sampler.update([0, 46], [value, value])
    sampler.update([0, 46], [1.0, 1.0], step=1)
    assert sampler.priorities()[[0, 46]].tolist() == [6.0, 6.0]


def test_losses_that_are_not_finite_keep_the_priority(caplog):
    sampler = store()
    sampler.update([1, 2, 40], [1.0, np.nan, np.inf], step=0)
    assert sampler.priorities()[[1, 2, 40]].tolist() == [1.0, 1.0, 1.0]
    assert sampler.summary()["nonfinite"] == 2
    assert "2 losses were not finite; their samples keep their priorities: index 2, 40" in caplog.text
    for _ in range(9):
        sampler.update([1], [np.nan], step=0)
    with pytest.raises(DivergedError, match="10 updates in a row held no finite loss"):
        sampler.update([1], [np.nan], step=0)


BAD = [
    (([N], [1.0]), {}),
    (([-1], [1.0]), {}),
    (([0.5], [1.0]), {}),
    (([True], [1.0]), {}),
    (([[0]], [1.0]), {}),
    (([0, 1], [1.0]), {}),
    (([0, 1], 1.0), {}),
    (([0], [[1.0]]), {}),
    (([0], [-1.0]), {}),
    (([0], ["a"]), {}),
    (([0], [1.0]), {"step": -1}),
    (([0], [1.0]), {"step": 0.5}),
    (([0], [1.0]), {"step": [1, 2]}),
    (([0], [1.0]), {"score": [1.0, 2.0]}),
    (([0], [1.0]), {"mean_gradient_norm": -1.0}),
]


@pytest.mark.parametrize(("arguments", "more"), BAD)
def test_bad_input_is_refused_in_the_same_words_and_nothing_is_sent(arguments, more):
    calls = InProcess()
    sampler = store(calls)
    asked = len(calls.asked)
    with pytest.raises((ValueError, TypeError, IndexError)) as theirs:
        ImportanceSampler(N).update(*arguments, **{"step": 0, **more})
    with pytest.raises(type(theirs.value)) as ours:
        sampler.update(*arguments, **{"step": 0, **more})
    assert str(ours.value) == str(theirs.value)
    assert len(calls.asked) == asked
    assert sampler.summary()["updates"] == 0


def test_scores():
    sampler = store(priority="gradient_norm")
    assert sampler.wants_score
    with pytest.raises(ValueError, match="draws by a score for each loss"):
        sampler.update([0], [1.0], step=0)
    sampler.update([0, 46], [1.0, np.nan], step=0, score=[0.25, 0.5])
    assert sampler.priorities()[[0, 46]].tolist() == [0.25, 1.0]


def test_draws_and_updates_come_from_different_threads():
    """One draws, two update what was drawn: no step is given twice, and no loss is lost."""
    sampler = store(prefetch=2)
    drawn, failed = queue.SimpleQueue(), []

    def guarded(work):
        try:
            work()
        except Exception as error:
            failed.append(error)

    def draw():
        for _ in range(150):
            drawn.put(sampler.draw(B))
        for _ in range(2):
            drawn.put(None)

    def update():
        while (draw := drawn.get()) is not None:
            steps.append(draw.step)
            sampler.update(draw.index, LOSSES[draw.index], step=draw.step)

    steps = []
    threads = [threading.Thread(target=guarded, args=(work,)) for work in (draw, update, update)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sorted(steps) == list(range(150))
    np.testing.assert_allclose(sampler.priorities(), LOSSES, rtol=1e-6)
    assert sampler.summary()["updates"] == 150


# --- several who share


def test_two_share_the_first_pass():
    calls = InProcess()
    one, other = store(calls), store(calls)
    index = []
    for _ in range(N // (2 * B)):
        index += [one.draw(B).index, other.draw(B).index]
    drawn = np.concatenate(index)
    counts = np.bincount(drawn, minlength=N)
    assert np.flatnonzero(counts > 1).size <= 8  # where a shard was asked beyond its pass
    while one._plan.left:
        one.draw(B)
        other.draw(1)
    assert all(server.status().done == size for server, size in zip(calls.servers, one._plan.size, strict=True))
    other.draw(N)  # asks all shards, and so is told
    assert other._plan.left == 0


def test_who_joins_goes_on_from_the_steps_of_the_others():
    calls = InProcess()
    trainer = store(calls)
    train(trainer, 20)
    trainer.flush()
    scorer = store(calls, prefetch=2)
    assert scorer.step == 20
    draw = scorer.draw(B)
    assert (draw.weight != 1).any()  # the first pass was over
    index = scorer.stalest(5)
    known = np.concatenate([server.known() for server in calls.servers])
    assert index.tolist() == np.lexsort((np.arange(N), known))[:5].tolist()
    scorer.update(index, np.full(5, 100.0), step=25)
    np.testing.assert_allclose(trainer.priorities()[index], 100.0)
    trainer.update(index, np.full(5, 1.0), step=24)  # an older model's
    np.testing.assert_allclose(trainer.priorities()[index], 100.0)
    assert trainer.summary()["late"] == 5
    assert trainer.draw(B).step >= 20


def test_who_joins_draws_otherwise_than_all_before_also_where_shards_have_died():
    """By the permutations of the first pass that each is to choose shards by."""
    calls = InProcess()
    keys = []
    for dead in ([], [], [0], range(SHARDS), [], [0, 1]):
        for shard in dead:
            calls.kill(shard)
        keys.append(tuple(store(calls)._plan.keys.tolist()))
    calls.servers[0] = calls.made(0)  # as after its last restart, by whoever came then
    keys.append(tuple(store(calls)._plan.keys.tolist()))
    assert len(set(keys)) == len(keys)
    assert tuple(store()._plan.keys.tolist()) == keys[0]  # while the first has its seed's


def test_a_step_that_is_nonsense_is_refused_and_stops_nobody():
    calls = InProcess()
    sampler = store(calls)
    asked = len(calls.asked)
    for steps in (2**31 - 2, [3, 2**28]):
        with pytest.raises(ValueError, match=r"step names \d+, and draws have come to 0: no model can have learnt"):
            sampler.update([0, 46], [1.0, 1.0], step=steps)
    assert len(calls.asked) == asked
    sampler.update([0, 46], [1.0, 1.0], step=2**28 - 1)
    assert store(calls).draw(B).step == 2**28


def test_the_stalest_are_those_of_one_store():
    sampler, single = store(), ImportanceSampler(N)
    steps = np.random.default_rng(0).permutation(N)
    sampler.update(np.arange(N), LOSSES, step=steps)
    single.update(np.arange(N), LOSSES, step=steps)
    assert sampler.stalest(20).tolist() == single.stalest(20).tolist()
    assert sampler.stalest(1000).size == N


def test_another_store_of_the_name_is_refused():
    calls = InProcess()
    store(calls)
    store(calls, uniform_fraction=0.9, seed=7, prefetch=9)  # these are one's own
    with pytest.raises(ValueError, match=r"'importance' is there, made with smoothing=0.0, this one has smoothing=0.5"):
        store(calls, smoothing=0.5)
    with pytest.raises(ValueError, match=r"with losses=None, this one has losses=\d+"):
        store(calls, losses=LOSSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshot_every": 60.0}, r"made with snapshot_every=1000000.0, this one has snapshot_every=60.0"),
        ({"snapshots": "elsewhere"}, r"made with snapshots='.*', this one has snapshots='.*/elsewhere'"),
        ({"max_restarts": 3}, r"made with max_restarts=None, this one has max_restarts=3"),  # there is no Ray
    ],
)
def test_a_store_that_is_kept_otherwise_than_is_named_is_refused(tmp_path, options, message):
    calls = InProcess(tmp_path)
    store(calls)
    asked = len(calls.asked)
    with pytest.raises(ValueError, match=message):
        store(calls, **options)
    assert calls.asked[asked:] == [(0, "hello")]  # the others are not asked, which may not be there
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    store(calls, snapshots=link, snapshot_every=1e6)
    with pytest.raises(ValueError, match=r"made with snapshots=None, this one has snapshots="):
        store(snapshots=tmp_path)


# --- shards that die, or are slow


def test_a_run_goes_through_fifty_deaths_and_every_draw_is_exact(tmp_path):
    """A linear model by gradient descent: at every step Σ p w ∇ℓ, by the p of the draw, is the gradient of the mean.

    The p of all samples is computed from the stores of the shards, as they are after the draw, and from the chances
    that the shards were chosen with before some of them died.
    """
    calls = InProcess(tmp_path, down=2)
    sampler = store(calls, smoothing=0.5, seed=5)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N, 3)) * rng.gamma(1.0, size=(N, 1))
    y, theta, deaths, first = x @ [1.0, -2.0, 0.5], np.zeros(3), 0, None
    for step in range(200):
        if step % 4 == 0:
            calls.kill(int(rng.integers(SHARDS)))
            deaths += 1
        left = sampler._plan.left
        if not left and step % 7 == 0:
            sampler.snapshot()
        chance = sampler._plan.chance()
        draw = sampler.draw(B)
        loss = (x @ theta - y) ** 2
        gradient = 2 * (x @ theta - y)[:, None] * x
        if not left:
            p = p_of_next(sampler, chance)
            assert p.sum() == pytest.approx(1.0, rel=1e-9)
            np.testing.assert_allclose(draw.probability, p[draw.index], rtol=1e-5)
            np.testing.assert_allclose(draw.weight, 1 / (N * p[draw.index]), rtol=1e-5)
            assert draw.weight.max() <= 1 / 0.3 * (1 + 1e-6)
        theta -= 0.02 * (draw.weight[:, None] * gradient[draw.index]).mean(axis=0)
        sampler.update(draw.index, loss[draw.index], step=draw.step)
        first = loss.mean() if first is None else first
    sampler.flush()
    summary = sampler.summary()
    assert deaths == 50
    assert summary["restarts"] >= 40  # some died again before anybody saw
    assert summary["lost_updates"] > 0
    assert summary["step"] == 200
    assert loss.mean() < 0.05 * first


def test_what_is_lost_is_counted_exactly(tmp_path, caplog):
    calls = InProcess(tmp_path)
    sampler = store(calls, first_pass=False)
    for step in range(3):
        sampler.update([0, 1], [9.0, 9.0], step=step)
    sampler.snapshot()
    for step in range(3, 30):
        sampler.update([0], [5.0], step=step)
    calls.kill(0)
    sampler.update([1], [7.0], step=40)
    sampler.flush()
    assert sampler.summary()["lost_updates"] == 27
    assert sampler.summary()["restarts"] == 1
    assert sampler.priorities()[:2].tolist() == [9.0, 7.0]
    assert "shard 0 of 'importance' does not answer, and is asked again: it is down" in caplog.text
    assert "shard 0 of 'importance' has died, and is back" in caplog.text
    assert "27 updates since then are lost" in caplog.text


def test_draws_to_a_paused_shard_wait_and_are_not_sent_elsewhere():
    calls = InProcess()
    sampler = store(calls, first_pass=False)
    calls.paused.add(2)
    asked = len(calls.asked)
    assert sampler.poll(B, seconds=0.05) is None
    assert sampler.poll(B, seconds=0.05) is None
    assert sorted(calls.asked[asked:]) == [(shard, "draw") for shard in range(SHARDS)]  # once, and that is all
    ordered = sampler._groups[0].ordered[0].counts
    sampler.update(np.arange(N), LOSSES, step=0)  # nobody waits
    calls.go_on(2)
    draw = sampler.poll(B, seconds=0.05)
    assert draw is not None
    np.testing.assert_array_equal(np.bincount(sampler._plan.shard_of(draw.index), minlength=SHARDS), ordered)
    np.testing.assert_allclose(sampler.priorities(), LOSSES, rtol=1e-6)


def test_a_shard_that_never_answers_is_an_error_in_words():
    calls = InProcess()
    sampler = store(calls, timeout=0.1)
    calls.paused.add(1)
    with pytest.raises(TimeoutError, match=r"'draw' waited 0.1 s for shard 1 of 'importance': it does not answer"):
        sampler.draw(N)
    calls.go_on(1)
    assert sorted(sampler.draw(N).index) == list(range(N))  # it goes on where it stood


@pytest.mark.parametrize("own", [KeyError("mine"), KeyboardInterrupt("mine"), None])
def test_the_error_in_a_body_is_not_hidden_by_that_of_close(own, caplog):
    calls = InProcess()

    def body():
        with store(calls, timeout=0.1) as sampler:
            calls.paused.add(1)
            sampler.update(np.arange(N), LOSSES, step=0)
            if own:
                raise own

    with pytest.raises(type(own) if own else TimeoutError, match="mine" if own else "'update' waited 0.1 s"):
        body()
    assert ("updates of 'importance' may not have reached their shards: 'update' waited" in caplog.text) == bool(own)


def test_updates_on_their_way_are_bounded():
    calls = InProcess()
    sampler = store(calls, timeout=0.1)
    calls.paused.add(0)
    for step in range(64):
        sampler.update([0], [1.0], step=step)
    with pytest.raises(TimeoutError, match="'update' waited"):
        sampler.update([0], [1.0], step=64)
    calls.go_on(0)
    sampler.flush()
    assert calls.servers[0].status().received == 64


def test_a_shard_that_is_lost_for_good_is_an_error_in_words():
    calls = InProcess()
    sampler = store(calls)
    calls.lost.add(3)
    with pytest.raises(ShardLost, match="it is dead"):
        sampler.draw(N)
    with pytest.raises(ShardLost, match="it is dead"):
        sampler.priorities()


def test_what_a_shard_refuses_is_raised_once():
    sampler = store()
    sampler._priority = lambda losses: np.abs(losses)  # what is checked here is not what the shards have
    sampler.update([0], [-1.0], step=0)
    with pytest.raises(ValueError, match="priority"):
        sampler.flush()
    sampler.flush()


def test_a_shard_that_lost_its_first_pass_does_not_begin_one_for_all(caplog):
    calls = InProcess()  # no snapshots
    sampler = store(calls)
    train(sampler, 10)
    calls.kill(0)
    draw = sampler.draw(N)
    assert calls.servers[0].status().done == 0
    assert (draw.weight != 1).any()
    assert np.unique(sampler._plan.shard_of(draw.index)).size == SHARDS


# --- the state


def test_a_state_goes_on_exactly():
    one, other = store(prefetch=3, seed=2), store(prefetch=3, seed=9)
    train(one, 9)
    state = from_bytes(to_bytes(one.state_dict()))
    train(other, 4)
    other.load_state_dict(state)
    for sampler in (one, other):  # what was ordered ahead came before the state was taken
        assert sampler.summary()["ahead"] == one.summary()["ahead"]
    for ours, theirs in zip(train(one, 20), train(other, 20), strict=True):
        for column in ("step", "index", "probability", "weight"):
            np.testing.assert_array_equal(getattr(ours, column), getattr(theirs, column))
    np.testing.assert_array_equal(one.priorities(), other.priorities())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "ImportanceSampler"}, "not that of a ShardedSampler"),
        ({"num_samples": 46}, r"\(num_samples, shards\) \(46, 4\), the sampler has \(47, 4\)"),
        ({"shards": {}}, r"\(47, 0\)"),
        ({"shards": 3}, "damaged"),
        ({"shards": None}, "damaged"),
        ({"format": 2}, "damaged"),
        ({"step": -1}, "damaged"),
        ({"index": np.array([99]), "probability": np.array([0.5])}, "damaged"),
        ({"index": np.array([9]), "probability": np.array([0.0])}, "damaged"),
        ({"keys": np.zeros(3)}, "damaged"),
        ({"generator": {}}, "damaged"),
    ],
)
def test_a_state_that_is_anothers_changes_nothing(change, message):
    sampler = store()
    train(sampler, 9)
    state = sampler.state_dict()
    before = to_bytes(state)
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict({**state, **change})
    broken = {**state, "shards": {**state["shards"], "3": state["shards"]["0"]}}
    with pytest.raises(ValueError, match="damaged"):
        sampler.load_state_dict(broken)
    assert to_bytes(sampler.state_dict()) == before


# --- options, and Ray


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uniform_fraction": 0.0}, "uniform_fraction must be above 0 with shards, got 0"),
        ({"feedback_lag": 3}, "feedback_lag must be None with shards, got 3"),
        ({"shards": 48}, "shards must be at most 47, got 48"),
        ({"prefetch": -1}, "prefetch must be at least 0"),
        ({"timeout": 0.0}, "timeout must be above 0 seconds"),
        ({"snapshot_every": 0}, "snapshot_every must be above 0 seconds"),
        ({"name": "../x"}, "name must be a word that can be the name of a folder"),
        ({"name": "a\0b"}, "name must be a word that can be the name of a folder"),
        ({"name": 201 * "a"}, "name must have at most 200 bytes"),
        ({"namespace": ""}, "namespace must be a word"),
        ({"max_restarts": -1}, "max_restarts must be at least 0"),
        ({"beta": 2.0}, r"beta must be in \[0, 1\]"),
        ({"priority": "auto"}, "priority='auto' is named later"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        store(**options)


def test_sampler_does_not_import_ray():
    program = "import sys, sampler; print('ray' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=os.getcwd())
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:6379", True),
        ("localhost:1", True),
        ("ray://127.0.0.1:10001", True),
        ("[::1]:6379", True),
        ("10.0.0.1:6379", False),
        ("ray://head:10001", False),
        ("auto", False),
        ("1.127.0.0:1", False),
        ("127.0.0.1.evil.example:6379", False),
        ("localhost.evil.example:1", False),
    ],
)
def test_which_addresses_are_of_this_machine_alone(address, loopback):
    assert is_loopback(address) == loopback


@pytest.mark.parametrize(
    ("address", "joined", "same"),
    [
        ("10.255.255.1:6379", "10.255.255.1:6379", True),
        ("head.invalid:6379", "head.invalid:6379", True),
        ("localhost:6379", "127.0.0.1:6379", True),
        ("127.0.0.1:6379", "localhost:6379", True),
        ("ray://localhost:10001", "127.0.0.1:6379", True),
        ("auto", "10.255.255.1:6379", True),
        ("local", "127.0.0.1:6379", True),
        ("local", "10.255.255.1:6379", False),
        ("localhost:6380", "127.0.0.1:6379", False),
        ("localhost", "127.0.0.1:6379", False),
        ("10.255.255.2:6379", "10.255.255.1:6379", False),
        ("127.0.0.1:6379", "10.255.255.1:6379", False),
        ("ray://10.255.255.2:10001", "10.255.255.1:6379", False),
        ("head.invalid:6379", "10.255.255.1:6379", False),
    ],
)
def test_the_address_of_another_ray_than_that_which_was_joined_is_refused(address, joined, same):
    if same:
        check_joined(address, joined)
    else:
        with pytest.raises(
            ValueError, match=rf"address='{address}', but this process has joined the Ray at '{joined}'"
        ):
            check_joined(address, joined)


def test_a_cluster_whose_token_is_switched_off_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(PermissionError, match=r"joined without a token.*RAY_AUTH_MODE is 'disabled' now"):
        check_token("10.0.0.1:6379")
