"""Scorers beside a training: what they choose, when they rest, whose weights they have; and on Ray, one that is killed.

Most of it is without Ray, with shards in this process. 115 to 160 s on two cores that others kept busy, all but 25 of
them until processes of Ray have started, and ended.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal

import keras
import numpy as np
import pytest

from pipeline import LossFeedback, importance_dataset
from pipeline.scorers import PublishWeights, ScoredSampler, Scorers, StaleScorer, keep_scoring
from sampler.board import Board, Report
from sampler.shard import block_of
from sampler.state_bytes import from_bytes, to_bytes
from tests.sampler.shards_in_process import InProcess

from .conftest import SECONDS, patiently, until

N, SHARDS, B = 47, 4, 8
LOSSES = np.random.default_rng(0).gamma(1.0, size=N)


def store(calls=None, **options):
    options = {"shards": SHARDS, "prefetch": 0, "timeout": 30.0, "first_pass": False, **options}
    return ScoredSampler(N, calls=InProcess() if calls is None else calls, **options)


class Model:
    """A model whose losses are its one weight times ``LOSSES``; it keeps which samples it was asked for."""

    def __init__(self):
        self.weight, self.asked = 1.0, []

    def assign(self, weights):
        self.weight = float(weights[0])

    def __call__(self, index):
        self.asked.append(index)
        return (self.weight * LOSSES[index]).astype(np.float32), None


def scorer_of(sampler, model, shards=range(SHARDS), batch_size=10):
    return StaleScorer(sampler, model, model.assign, shards=shards, batch_size=batch_size)


# --- which samples


def test_the_oldest_are_those_of_the_shards_asked_for():
    sampler = store()
    sampler.update(np.arange(N), LOSSES, step=np.arange(N) % 7)
    sampler.update([20], [1.0], step=9)
    known = np.arange(N) % 7
    known[20] = 9
    own = np.concatenate([np.asarray(block_of(N, shard, SHARDS)) for shard in (1, 3)])
    expected = own[np.lexsort((own, known[own]))]
    for count in (1, 5, own.size, N):
        index, steps = sampler.oldest(count, [1, 3])
        assert index.tolist() == expected[:count].tolist()
        assert steps.tolist() == known[expected[:count]].tolist()


def test_of_a_sample_nobody_has_looked_at_the_step_is_minus_one():
    sampler = store()
    sampler.update(np.arange(N - 1), LOSSES[:-1], step=0)
    index, known = sampler.oldest(1, range(SHARDS))
    assert (index.tolist(), known.tolist()) == ([N - 1], [-1])


def test_without_weights_nothing_is_scored():
    model = Model()
    assert scorer_of(store(), model).score() == 0
    assert model.asked == []


def test_what_is_older_than_the_model_is_scored_once_the_stalest_first():
    sampler, model = store(), Model()
    sampler.update(np.arange(N), LOSSES, step=np.arange(N))
    scorer = scorer_of(sampler, model)
    scorer.learn(25, [2.0])
    assert [scorer.score() for _ in range(4)] == [10, 10, 5, 0]
    assert np.concatenate(model.asked).tolist() == list(range(25))
    expected = np.where(np.arange(N) < 25, 2.0 * LOSSES, LOSSES)
    np.testing.assert_allclose(sampler.priorities(), expected, rtol=1e-6)


def test_a_newer_loss_of_the_trainer_stays():
    """It comes while the scorer is at work on an older model."""
    sampler = store()
    sampler.update(np.arange(N), LOSSES, step=0)

    def losses(index):
        sampler.update(index[:1], [7.0], step=6)
        return np.full(index.size, 3.0), None

    scorer = StaleScorer(sampler, losses, lambda weights: None, shards=range(SHARDS), batch_size=N)
    scorer.learn(5, [])
    assert scorer.score() == N
    priorities = sampler.priorities()
    assert priorities[0] == pytest.approx(7.0)
    np.testing.assert_allclose(priorities[1:], 3.0)


def test_scorers_of_one_store_never_score_the_same():
    """However their rounds fall: each has shards of its own."""
    calls, count, rng = InProcess(), 3, np.random.default_rng(0)
    sampler, models = store(calls), [Model() for _ in range(3)]
    scorers = [
        scorer_of(store(calls), model, shards=range(number, SHARDS, count)) for number, model in enumerate(models)
    ]
    for scorer in scorers:
        scorer.learn(1, [3.0])
    for number in rng.integers(count, size=40):
        scorers[number].score()
    done = np.concatenate([np.concatenate(model.asked) for model in models])
    assert sorted(done) == list(range(N))
    np.testing.assert_allclose(sampler.priorities(), 3.0 * LOSSES, rtol=1e-6)


def test_a_loss_that_is_not_finite_is_tried_once_for_each_model():
    sampler, asked = store(), []

    def losses(index):
        asked.append(index)
        return np.where(index < 3, np.nan, 2.0), None

    scorer = StaleScorer(sampler, losses, lambda weights: None, shards=range(SHARDS), batch_size=20)
    for step in range(1, 30):
        scorer.learn(step, [])
        assert [scorer.score() for _ in range(4)] == [20, 20, 7, 0]
    assert len(asked) == 3 * 29
    assert sampler.summary()["nonfinite"] == 0  # the store is not told
    np.testing.assert_allclose(sampler.priorities()[:3], 1.0)  # as at the beginning


def test_scores_go_with_the_losses():
    sampler = store(priority="gradient_norm")

    def losses(index):
        return np.ones(index.size), LOSSES[index]

    scorer = StaleScorer(sampler, losses, lambda weights: None, shards=range(SHARDS), batch_size=N)
    scorer.learn(0, [])
    scorer.score()
    np.testing.assert_allclose(sampler.priorities(), LOSSES, rtol=1e-6)


# --- when: newest weights, rest, the end


def test_a_board_has_the_newest_weights_and_adds_up():
    board = Board()
    assert board.ask(Report(0, 11)) == (-1, None, False)
    board.publish(4, "four")
    board.publish(3, "three")  # came late
    assert board.ask(Report(0, 11, step=-1)) == (4, "four", False)
    assert board.ask(Report(0, 11, step=4, scored=5, seconds=0.5)) == (4, None, False)
    assert board.ask(Report(1, 12, step=4, scored=2, seconds=0.1)) == (4, None, False)
    assert board.ask(Report(0, 13)) == (4, "four", False)  # another process
    assert board.tally()[:2] == ([(0, 13, -1, 5, 0.5), (1, 12, 4, 2, 0.1)], 1)
    assert board.tally().seconds >= 0 == Board().tally().seconds
    board.end()
    assert board.ask(Report(0, 13)).over


def test_a_scorer_takes_newer_weights_between_batches_and_rests_where_nothing_is_to_do():
    board, sampler, model, rests = Board(), store(), Model(), []

    def sleep(seconds):
        rests.append((len(model.asked), seconds))
        if len(rests) == 3:
            board.publish(1, [2.0])
        if len(rests) == 6:
            board.publish(2, [3.0])
        if len(rests) == 7:
            board.end()

    def ask(report):
        if len(model.asked) == 2 and report.scored:  # while it is busy
            board.publish(2, [5.0])
        return board.ask(report)

    keep_scoring(scorer_of(sampler, model, batch_size=20), ask, sleep=sleep)
    # 20 + 20 with the first weights, all 47 anew with the second, and nothing more with others of the same step
    assert [done for done, _ in rests] == [0, 0, 0, 5, 5, 5, 5]
    assert min(seconds for _, seconds in rests) > 0
    np.testing.assert_allclose(sampler.priorities(), 5.0 * LOSSES, rtol=1e-6)
    (report,), again, _ = board.tally()
    assert (report.scored, report.step, again) == (40 + 47, 2, 0)
    assert report.process == os.getpid()


def small_model(rate=0.1):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def small_data():
    x = np.random.default_rng(1).normal(size=(N, 3)).astype(np.float32)
    return x, x.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("together", [1, 3])
def test_weights_are_handed_over_with_the_step_of_their_model(together):
    """Every six steps those after six, as Keras has them; the step is never newer than the weights are."""
    sampler, told, after = store(), [], {}
    model = small_model()
    model.compile(keras.optimizers.SGD(0.1), "mse", steps_per_execution=together)
    at = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: after.update({int(model.optimizer.iterations): model.get_weights()})
    )
    after[0] = model.get_weights()
    fresh = PublishWeights(sampler, lambda step, weights: told.append((step, weights)), steps=6)
    train = importance_dataset(small_data(), sampler, B, batches=12)
    model.fit(train, epochs=2, callbacks=[LossFeedback(model, sampler), at, fresh], shuffle=False, verbose=0)
    assert len(told) == 5
    for done, (step, weights) in zip((0, 6, 12, 18, 24), told, strict=True):
        assert done - 16 <= step <= done  # losses come back several steps at a time
        for ours, theirs in zip(weights, after[done], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert told[-1][0] > told[0][0] == 0


def test_publishing_takes_no_more_than_a_tenth_of_the_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("pipeline.scorers.time.monotonic", lambda: clock[0])
    handed = []

    def publish(step, weights):
        handed.append(clock[0])
        clock[0] += 3.0

    fresh = PublishWeights(store(), publish, seconds=1.0)
    fresh.set_model(small_model())
    fresh.on_train_begin()
    fresh.on_epoch_begin(0)
    for batch in range(200):
        clock[0] += 0.5
        fresh.on_train_batch_end(batch)
    assert np.diff(handed) == pytest.approx(33.0, abs=0.6)


def test_the_state_has_the_step_of_the_model():
    sampler = store()
    for _ in range(5):
        draw = sampler.draw(B)
        sampler.update(draw.index, LOSSES[draw.index], step=draw.step)
    assert sampler.model_step == 5
    again = store()
    again.load_state_dict(from_bytes(to_bytes(sampler.state_dict())))
    assert (again.model_step, again.step) == (5, 5)
    np.testing.assert_array_equal(again.priorities(), sampler.priorities())
    for damaged, message in [(-1, "model_step must be at least 0"), ("x", "damaged .model_step must be an integer")]:
        with pytest.raises(ValueError, match=message):
            store().load_state_dict({**sampler.state_dict(), "model_step": damaged})


# --- what it is for


def mean_age(every, *, newest=True):
    """After 200 steps of a training in which a scorer does a batch every so many steps: 0 for none."""
    calls = InProcess()
    sampler, model = store(calls, seed=3), Model()
    scorer = scorer_of(store(calls), model)
    for step in range(200):
        draw = sampler.draw(B)
        sampler.update(draw.index, LOSSES[draw.index], step=draw.step)
        if every and step % every == 0:
            if newest or step == 0:
                scorer.learn(sampler.model_step, [1.0])
            scorer.score()
    return float(sampler.ages().mean())


def test_priorities_are_younger_with_a_scorer():
    """The same draws but for what the scorer changes; with the weights of the first step alone it makes no difference
    after 200 more.
    """
    without, some, more = mean_age(0), mean_age(4), mean_age(1)
    assert more < some < without
    assert more < 0.5 * without
    assert mean_age(1, newest=False) > 0.9 * without


# --- on Ray

CONFIG = {"dataset": "digits", "model": "linear"}


@pytest.fixture
def on_ray(with_token):
    """A store with two shards on a Ray of its own, its options, and the data and the model."""
    ray = pytest.importorskip("ray")
    from train import Config
    from trainer.scorers import recipe

    assert not ray.is_initialized()
    make = functools.partial(recipe, Config(**CONFIG))
    model, source, loss = make()
    model.compile(keras.optimizers.Adam(0.003), loss)
    options = {"num_samples": len(source[0]), "shards": 2, "name": "scored", "timeout": SECONDS}
    sampler = patiently(lambda: ScoredSampler(**options))
    yield sampler, options, make, model, source
    sampler.remove()
    ray.shutdown()


def fit(sampler, scorers, model, source, each, batches):
    """Train with the scorers beside it; ``each(steps done)`` after every step."""
    train = importance_dataset(source, sampler, 16, batches=batches)
    done = iter(range(1, batches + 1))
    steps = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: each(next(done)))
    fresh = PublishWeights(sampler, scorers.publish, steps=1)
    model.fit(train, callbacks=[LossFeedback(model, sampler), fresh, steps], shuffle=False, verbose=0)


def test_a_killed_scorer_is_started_again_and_a_lost_one_is_a_warning(on_ray, caplog):
    """Both at work; one is killed, and what it has learnt stays; it comes back; killed again it is gone for good, and
    the training goes on. Weights are 1/(N p) throughout. One that cannot be made is gone at once, and it is said why.
    """
    from trainer.config import Config

    sampler, options, make, model, source = on_ray
    weights, killed = [], []
    draw = sampler._hand_out
    sampler._hand_out = lambda count: weights.append(draw(count)) or weights[-1]
    with Scorers(options, make, count=2, batch_size=64, max_restarts=1) as scorers:

        def each(done):
            if done == 5:
                until(lambda: {0, 1} <= scorers.processes().keys() and scorers.summary()["scored"] >= 2 * 64)
                until(lambda: sampler.oldest(1, [0])[1][0] >= 0)  # it has seen all of its shard
                killed.append(scorers.processes()[0])
                os.kill(killed[0], signal.SIGKILL)
                assert sampler.oldest(1, [0])[1][0] >= 0
            if done == 10:
                until(lambda: scorers.processes()[0] != killed[0])
                assert not caplog.records
                killed.append(scorers.processes()[0])
                os.kill(killed[1], signal.SIGKILL)
                until(lambda: scorers.publish(0, []) or scorers.summary()["scorers"] == 1)

        fit(sampler, scorers, model, source, each, 20)
        last = sampler.model_step
        scorers.publish(last, model.get_weights())
        until(lambda: sampler.oldest(1, [1])[1][0] >= last)  # the other one goes on
    figures = scorers.summary()
    assert (figures["scorers"], figures["scorer_restarts"]) == (1, 1)
    assert figures["scored"] >= 3 * 64
    assert figures["scored_step"] == last
    assert len(caplog.records) == 1
    assert "scorer 0 of 2 is gone for good" in caplog.text
    assert len(weights) >= 20
    for drawn in weights:
        np.testing.assert_allclose(drawn.weight, 1 / (len(sampler) * drawn.probability), rtol=3e-7)
    assert sampler.model_step == 20

    broken = functools.partial(make.func, Config(dataset="npz:nowhere.npz"))
    with Scorers(options, broken, count=1) as scorers:
        until(lambda: scorers.publish(0, []) or scorers.summary()["scorers"] == 0)
    assert "scorer 0 of 1 is gone for good" in caplog.text
    assert "nowhere.npz" in caplog.text
    with pytest.raises(ValueError, match="3 scorers need as many shards, or two would score the same, got shards=2"):
        Scorers(options, broken, count=3)


# --- train.py


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scorers", "-1"], "--scorers must be in 0..10000, got -1"),
        (["--sampling", "ranked"], "--scorers does not go together with --sampling ranked: they are for importance"),
        (["--sampling", "presampled"], "--scorers does not go together with --sampling presampled"),
        (["--refresh", "0.5"], "--scorers does not go together with --refresh 0.5: they score the stalest samples"),
        (["--compare", "uniform,importance"], "--scorers does not go together with --compare"),
        (["--workers", "2"], "--scorers does not go together with several workers"),
        (["--feedback-lag", "8"], "--scorers does not go together with --feedback-lag 8: when a loss reaches"),
        (["--gate", "speedup"], "--scorers does not go together with --gate speedup: a shared store has no gate"),
        (["--finish", "0.1"], "--scorers does not go together with --finish 0.1"),
        (["--uniform-fraction", "0"], "uniform_fraction must be above 0 with shards"),
        (["--priority", "auto"], "priority='auto' is named later, and the shards need it at once"),
        (["--scheme", "without_replacement"], "scheme must be one of 'multinomial', 'systematic', 'stratified'"),
    ],
)
def test_what_does_not_go_together_is_told(capsys, arguments, message):
    from train import main

    assert main(["--scorers", "1", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_nor_do_several_processes_of_tensorflow(capsys, monkeypatch):
    from train import main

    monkeypatch.setenv("TF_CONFIG", "{}")
    assert main(["--scorers", "1"]) == 2
    assert "--scorers does not go together with several workers" in capsys.readouterr().err


def test_a_dry_run_starts_no_ray(capsys):
    ray = pytest.importorskip("ray")
    from train import main

    assert main(["--scorers", "2", "--dry-run", "--epochs", "1", *OPTIONS]) == 0
    assert "scorers: 2, so no feedback lag and no gate" in capsys.readouterr().out
    assert not ray.is_initialized()


OPTIONS = [*(f"--{name}={value}" for name, value in CONFIG.items()), "--no-report"]


class Signals(list):
    """SIGTERM comes as the run looks for the tenth time, after so many steps or somewhat fewer."""

    looked = 0

    def __bool__(self):
        self.looked += 1
        if self.looked == 10:
            self.append(signal.SIGTERM)
        return len(self) > 0


def test_a_run_is_interrupted_and_goes_on(with_token, tmp_path, capsys, caplog, monkeypatch):
    """What the store knew is there again; in the end nothing is left but the results."""
    ray = pytest.importorskip("ray")
    import train

    saved, restored, samplers = [], [], []
    state_dict, load = ScoredSampler.state_dict, ScoredSampler.load_state_dict

    def keep(sampler):
        saved.append(state_dict(sampler))
        return saved[-1]

    def look(sampler, state):
        load(sampler, state)
        samplers.append(sampler)
        restored.append(state_dict(sampler))  # no scorer has weights yet

    monkeypatch.setattr(ScoredSampler, "state_dict", keep)
    monkeypatch.setattr(ScoredSampler, "load_state_dict", look)
    command = ["--scorers=1", "--epochs=1", f"--output={tmp_path}", *OPTIONS]
    try:
        with monkeypatch.context() as patch:
            patch.setattr("train.caught", lambda: contextlib.nullcontext(Signals()))
            assert patiently(lambda: train.main(command)) == 128 + signal.SIGTERM
        assert not (tmp_path / "shards").exists()
        (tmp_path / "shards" / "train-0123456789ab").mkdir(parents=True)  # as one that is killed leaves it
        before = saved[-1]
        assert train.main([*command, "--resume"]) == 0
    finally:
        ray.shutdown()
    assert 0 < before["model_step"] <= 10
    (after,) = restored
    assert after["model_step"] == before["model_step"]
    assert to_bytes(after["shards"]) == to_bytes(before["shards"])
    said = capsys.readouterr()
    assert "goes on from the newest whole snapshot" in said.out
    assert "1 scorer scored" in said.out
    assert "steps old on average" in said.out
    assert not (tmp_path / "shards").exists()
    result = json.loads((tmp_path / "summary.json").read_text())
    assert result["steps"] == math.ceil(len(samplers[0]) / 32)
    assert result["scorers"]["mean_age"] >= 0
    assert result["scorers"]["scorers"] == 1
    assert not caplog.records
