"""A sampler with a gate: what it draws, what it tells the gate, and that a run can be resumed to the bit.

The gains are those of small models whose gradients are known exactly (``exact_models``): the gate must turn
priorities off where they harm, and leave them on where they help.
"""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest

from sampler import ImportanceSampler, UniformSampler, priorities
from sampler.gates import SpeedupGate, VarianceGate
from sampler.stores import ProportionalStore, RankedStore

from . import exact_models
from .states import Unchanged, same, same_draw

N = 600
BATCH = 16


def feed(sampler, model, batches, batch=BATCH, norms=True):
    """Draw and feed back what the model says, without training it; gives the draws."""
    made = []
    scores = model.scores
    for _ in range(batches):
        draw = sampler.draw(batch)
        weight = 1 / (len(sampler) * draw.probability)
        norm = model.norm(draw.index, weight) if norms else None
        sampler.update(
            draw.index, model.losses[draw.index], step=draw.step, score=scores[draw.index], mean_gradient_norm=norm
        )
        made.append(draw)
    return made


# --- it finds out what pays

CASES = {  # the model, the priority, λ, and whether priorities pay
    "squared error by raw loss, equal Jacobians": (exact_models.equal_jacobians, "loss", 0.0, False),
    "squared error by raw loss, unequal Jacobians": (exact_models.unequal_jacobians, "loss", 0.3, False),
    "cross-entropy by raw loss, wrong labels": (exact_models.wrong_labels, "loss", 0.3, False),
    "few hard samples by raw loss": (exact_models.few_hard, "loss", 0.3, True),
    "few hard samples by 1 - e^-ℓ": (exact_models.few_hard, "bounded", 0.3, True),
    "few hard samples by gradient norm": (exact_models.few_hard, "gradient_norm", 0.3, True),
    "squared error by √ℓ, equal Jacobians": (exact_models.equal_jacobians, "sqrt", 0.3, True),
}


@pytest.mark.parametrize("name", CASES)
def test_the_gate_is_open_just_where_priorities_pay(name):
    make, priority, share, pays = CASES[name]
    model = make()
    sampler = ImportanceSampler(N, priority=priority, uniform_fraction=share, gate=VarianceGate(window=500), seed=1)
    feed(sampler, model, 1500)
    summary = sampler.summary()
    gain = model.gain(sampler.probabilities(), BATCH)
    assert (gain > 1.2) == pays
    assert (gain <= 1.001) != pays
    assert summary["gate_open"] is pays
    assert (summary["gate_changed"] >= 0) == pays  # it never moved where they do not pay
    gate = sampler._gate.gate
    # Passes and systematic draws vary less than the independent ones of the formula, so G² comes out a little low.
    assert abs(summary["gate_gain"] - gain) < 5 * gate.error + 0.02 + 0.1 * max(gain - 1.0, 0.0)


def test_equal_jacobians_by_the_raw_loss_have_exactly_the_variance_of_uniform_draws():
    model = exact_models.equal_jacobians()
    assert model.gain(model.losses / model.losses.sum(), BATCH) == pytest.approx(1.0, abs=1e-12)


def test_that_test_would_see_a_gate_told_the_raw_loss():
    """The loss judging itself: it opens where the truth is harm."""
    model = exact_models.unequal_jacobians()
    sampler = ImportanceSampler(N, gate="variance", seed=1)
    for _ in range(400):
        draw = sampler.draw(BATCH)
        losses = model.losses[draw.index]
        sampler.update(draw.index, losses, step=draw.step, score=losses)
    assert model.gain(sampler.probabilities(), BATCH) < 0.8
    assert sampler.summary()["gate_open"]


def test_noise_that_does_not_bind_keeps_it_closed():
    model = exact_models.one_direction()
    big = ImportanceSampler(N, gate="variance", seed=1)
    feed(big, model, 200, batch=512)
    assert not big.summary()["gate_open"]
    assert big.summary()["gate_gain"] == pytest.approx(model.gain(big.probabilities(), 512), abs=0.02)
    blind = ImportanceSampler(N, gate="variance", seed=1)
    feed(blind, model, 200, batch=512, norms=False)  # without the norm it cannot know
    assert blind.summary()["gate_open"]


def test_priorities_that_begin_to_harm_are_turned_off_and_come_back():
    sampler = ImportanceSampler(N, gate="variance", seed=1)
    changes = []
    for model in (exact_models.few_hard(), exact_models.wrong_labels(), exact_models.few_hard()):
        feed(sampler, model, 1500)
        changes.append((sampler.summary()["gate_open"], sampler.summary()["gate_changed"]))
    assert [state for state, _ in changes] == [True, False, True]
    assert changes[0][1] < 150 < 1500 < changes[1][1] < 3000 < changes[2][1]  # the first pass takes 38 draws


# --- what it draws


def test_closed_draws_are_passes_at_weight_one():
    sampler = ImportanceSampler(50, gate="variance", seed=0)
    index = []
    for _ in range(40):
        draw = sampler.draw(7)
        assert draw.weight.tolist() == [1.0] * 7
        assert draw.probability.tolist() == [1 / 50] * 7
        sampler.update(draw.index, draw.index + 1.0, step=draw.step, score=np.ones(7))
        index.append(draw.index)
    passes = np.concatenate(index)[:250].reshape(5, 50)
    assert all(np.unique(each).size == 50 for each in passes)
    assert len({each.tobytes() for each in passes}) == 5


class Switch:
    """A gate that is turned by hand, and keeps what it is told."""

    def __init__(self, is_open=False):
        self.open, self.gain, self.told = is_open, 1.0, []

    def observe(self, score, weight, priority_weight, mean_gradient_norm=None):
        self.told.append((score, weight, priority_weight, mean_gradient_norm))

    def state_dict(self):
        return {"open": self.open}

    def load_state_dict(self, state):
        self.open = state["open"]


STORES = {
    "proportional": lambda: ProportionalStore(40),
    "ranked": lambda: RankedStore(40),
    "bounded draws": lambda: ProportionalStore(40),
}


@pytest.mark.parametrize("lag", [None, 2])
@pytest.mark.parametrize("scheme", ["systematic", "multinomial", "without_replacement"])
@pytest.mark.parametrize("store", STORES)
def test_the_gate_is_told_how_each_sample_was_drawn(store, scheme, lag):
    gate = Switch()
    options = {"max_draws": 1, "forget": 0.2, "smoothing": 0.5} if store == "bounded draws" else {}
    sampler = ImportanceSampler(
        40, store=STORES[store](), scheme=scheme, gate=gate, feedback_lag=lag, beta=0.5, seed=0, **options
    )
    heard = 0
    for step in range(40):
        gate.open = step % 20 >= 12
        # What the draw will find: under a lag all due feedback counts already.
        if sampler._bound is not None:
            sampler._bound.begin(sampler._store)
        prior = sampler.probabilities()
        draw = sampler.draw(8)
        if gate.open and sampler.forget:
            prior[draw.index] = draw.probability
        sampler.update(
            draw.index, 1.0 + draw.index % 7, step=draw.step, score=draw.index + 0.5, mean_gradient_norm=step
        )
        if lag is not None:
            continue
        if step < 5:
            assert not gate.told  # the first pass says nothing of priorities
            continue
        score, weight, priority_weight, norm = gate.told[-1]
        heard += 1
        assert len(gate.told) == heard
        assert norm == step
        np.testing.assert_array_equal(score, draw.index + 0.5)
        np.testing.assert_allclose(weight, 1 / (40 * draw.probability), rtol=1e-12)  # fully, whatever β
        if gate.open:
            np.testing.assert_array_equal(priority_weight, weight)
        else:
            assert weight.tolist() == [1.0] * 8
            np.testing.assert_allclose(priority_weight, 1 / (40 * prior[draw.index]), rtol=1e-6)
    assert len(gate.told) == (35 if lag is None else 40 - 5 - (lag - 1))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", [ProportionalStore, RankedStore])
def test_the_probability_of_some_is_that_of_all(kind, share):
    store = kind(30)
    generator = np.random.default_rng(0)
    for values in (generator.integers(0, 4, 30) / 3.0, np.zeros(30), np.ones(30)):
        store.fill(values)
        index = generator.integers(0, 30, 50)
        np.testing.assert_array_equal(store.probability_of(index, share), store.probabilities(share)[index])


def test_it_opens_at_the_next_draw_and_a_broken_pass_is_not_gone_on_with():
    gate = Switch()
    sampler = ImportanceSampler(20, gate=gate, seed=0)
    for _ in range(6):  # the first pass and half of the second
        sampler.draw(5)
    gate.open = True
    sampler.update(np.arange(20), np.arange(20.0))
    assert (sampler.draw(5).weight != 1.0).any()
    gate.open = False
    index = np.concatenate([sampler.draw(5).index for _ in range(4)])
    assert np.unique(index).size == 20


@pytest.mark.parametrize("lag", [None, 3])
def test_without_a_gate_and_with_one_that_is_open_draws_are_the_same(lag):
    one = ImportanceSampler(30, gate=Switch(is_open=True), feedback_lag=lag, seed=4)
    other = ImportanceSampler(30, feedback_lag=lag, seed=4)
    model = exact_models.few_hard(30)
    assert all(map(same_draw, feed(one, model, 40, batch=4), feed(other, model, 40, batch=4)))


def test_with_a_closed_gate_draws_are_those_of_the_uniform_sampler():
    one = ImportanceSampler(30, gate=Switch(), seed=4)
    other = UniformSampler(30, seed=4)
    model = exact_models.few_hard(30)
    for left, right in zip(feed(one, model, 40, batch=4), feed(other, model, 40, batch=4), strict=True):
        assert left.index.tolist() == right.index.tolist()


def test_rows_are_the_draws_one_by_one():
    for options in ({"gate": Switch()}, {"finish_at": 9}, {"warmup": 2}, {"gate": Switch(is_open=True)}):
        one, other = (ImportanceSampler(20, seed=3, **options) for _ in range(2))
        index, weight = np.empty((12, 5), np.int64), np.empty((12, 5), np.float32)
        probability, step = np.empty((12, 5)), np.empty((12, 5), np.int64)
        for first in range(0, 12, 3):
            part = slice(first, first + 3)
            assert one.poll_rows(index[part], weight[part], probability[part], step[part], seconds=0.0) == 3
        for row in range(12):
            draw = other.draw(5)
            assert index[row].tolist() == draw.index.tolist()
            assert weight[row].tolist() == draw.weight.tolist()


# --- what comes back


@pytest.mark.parametrize("lag", [None, 2])
def test_a_step_in_parts_is_one_batch_in_draw_order(lag):
    gate = Switch()
    sampler = ImportanceSampler(12, gate=gate, first_pass=False, feedback_lag=lag, seed=0)
    draw, other = sampler.draw(6), sampler.draw(6)
    for place, norm in ((slice(3, 6), 1.0), (slice(0, 2), None), (slice(2, 3), 3.0)):
        for each in (draw, other):
            sampler.update(
                each.index[place],
                np.ones(len(each.index[place])),
                step=each.step,
                score=each.index[place] + 1.0,
                mean_gradient_norm=norm,
            )
    sampler.draw(6)
    assert len(gate.told) == 2
    score, _, _, norm = gate.told[0]
    assert score.tolist() == (draw.index + 1.0).tolist()
    assert norm == 3.0


def test_feedback_of_no_known_draw_does_not_feed_the_gate():
    gate = Switch()
    sampler = ImportanceSampler(12, gate=gate, first_pass=False, seed=0)
    draws = [sampler.draw(3) for _ in range(1100)]
    ones = np.ones(3)
    sampler.update(draws[-1].index, ones, score=ones)  # no step
    sampler.update(draws[0].index, ones, step=0, score=ones)  # too old
    sampler.update((draws[-1].index + 1) % 12, ones, step=1099, score=ones)  # other samples
    assert len(sampler._gate.recent) == 1024
    assert not gate.told
    sampler.update(draws[500].index, ones, step=500, score=ones)
    assert len(gate.told) == 1


def test_a_loss_that_is_not_finite_has_no_score():
    gate = Switch()
    sampler = ImportanceSampler(4, gate=gate, first_pass=False, seed=0)
    draw = sampler.draw(4)
    sampler.update(draw.index, [1.0, np.nan, 1.0, 1.0], step=0, score=[1.0, 2.0, np.inf, 4.0])
    np.testing.assert_array_equal(gate.told[0][0], [1.0, np.nan, np.inf, 4.0])


def test_missing_scores_are_said_once(caplog):
    sampler = ImportanceSampler(6, gate="variance", first_pass=False, seed=0)
    assert sampler.wants_score
    with caplog.at_level(logging.WARNING, "sampler"):
        sampler.update([0], [1.0])  # of no draw, as what refreshes old losses: nothing for the gate
        assert not caplog.records
        for _ in range(60):
            draw = sampler.draw(3)
            sampler.update(draw.index, draw.index + 1.0, step=draw.step)
    assert [record.message for record in caplog.records] == [
        "the gate judges by scores, and update was given none, so it stays as it is (closed: draws are uniform); pass "
        "score=..., the norms of the samples' gradients, or make the sampler with gate=None"
    ]


def test_a_change_is_logged_once(caplog):
    sampler = ImportanceSampler(N, gate="variance", seed=1)
    with caplog.at_level(logging.INFO, "sampler"):
        feed(sampler, exact_models.few_hard(), 400)
    (record,) = caplog.records
    assert record.message.startswith(
        f"from step {sampler.summary()['gate_changed']} on draws are by priority: the gate opened at a gain of "
    )


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        ({"mean_gradient_norm": -1.0}, ValueError, "mean_gradient_norm must be at least 0, got -1; it is a norm"),
        ({"mean_gradient_norm": [1.0]}, TypeError, r"must be one number, got float64 of shape \(1,\)"),
        ({"mean_gradient_norm": "much"}, TypeError, "must be one number"),
        ({"score": [1.0, -2.0]}, ValueError, r"score must be numbers ≥ 0, norms of gradients.*got -2\.0"),
        ({"score": [-0.5, 1.0]}, ValueError, r"score must be numbers ≥ 0.*got -0\.5"),
        ({"mean_gradient_norm": -0.5}, ValueError, "mean_gradient_norm must be at least 0, got -0.5"),
        ({"score": [1.0]}, ValueError, "score must have one number for each of 2 indices"),
    ],
)
@pytest.mark.parametrize("lag", [None, 2])
def test_what_update_refuses(told, error, message, lag):
    sampler = ImportanceSampler(8, gate="variance", feedback_lag=lag, seed=0)
    draw = sampler.draw(2)
    with Unchanged(sampler), pytest.raises(error, match=message):
        sampler.update(draw.index, [1.0, 2.0], step=0, **{"score": [1.0, 2.0], **told})


@pytest.mark.parametrize("norm", [None, 0, 2, np.float32(1.5), np.array(2.0), np.nan, np.inf])
def test_norms_that_every_sampler_takes(norm):
    for sampler in (UniformSampler(8, seed=0), ImportanceSampler(8, seed=0), ImportanceSampler(8, gate="speedup")):
        draw = sampler.draw(2)
        sampler.update(draw.index, [1.0, 2.0], step=0, score=[1.0, 2.0], mean_gradient_norm=norm)


def test_a_gate_needs_a_store_that_can_tell():
    class Mute:
        def __init__(self, store):
            self._store = store

        def __len__(self):
            return len(self._store)

        def __getattr__(self, name):
            if name == "probability_of":
                raise AttributeError(name)
            return getattr(self._store, name)

    ImportanceSampler(5, store=Mute(ProportionalStore(5)))
    with pytest.raises(ValueError, match="a gate asks the store for probability_of, which Mute has not"):
        ImportanceSampler(5, store=Mute(ProportionalStore(5)), gate="variance")


# --- under a lag, and over a restart

LAGGED = {
    "variance": lambda: {"gate": VarianceGate(window=10, dwell=5, confidence=0.5)},
    "speedup, by rank": lambda: {"gate": SpeedupGate(ratio=0.5), "store": "ranked"},
    "all at once": lambda: {
        "gate": VarianceGate(window=10, dwell=5, confidence=0.5),
        "max_draws": 2,
        "forget": 0.4,
        "smoothing": 0.5,
        "priority": priorities.clipped(0.8, window=20),
        "warmup": 1,
        "finish_at": 170,
        "keep_losses": True,
    },
}


def told_of(draw):
    """Losses and scores that change with time, so that a gate in a hurry opens and closes."""
    generator = np.random.default_rng([draw.step, *draw.index.tolist()])
    losses = 0.1 + 0.1 * generator.exponential(size=draw.index.size) + 4.0 * (draw.index % 5 == 0)
    losses[generator.random(draw.index.size) < 0.05] = np.nan
    score = np.where(draw.step % 120 < 60, losses, 1 / (0.1 + losses))
    return losses, score, float(generator.random()) if draw.step % 3 else None


def lagged(name, lag=3):
    return ImportanceSampler(40, feedback_lag=lag, seed=2, feedback_timeout=20.0, **LAGGED[name]())


def run(sampler, steps, source, made, pending):
    """Draw, and feed back in parts, in a random order; each step's norm comes with its last part."""
    while len(made) < steps:
        draw = sampler.poll(8, seconds=0.0) if source.random() < 0.6 else None
        if draw is not None:
            made.append(draw)
            losses, score, norm = told_of(draw)
            cut = source.randrange(1, 8)
            first, last = np.arange(cut), np.arange(cut, 8)
            pending.append([(part, draw, losses, score, norm) for part in (first, last)])
        elif pending:
            flight = pending[source.randrange(len(pending))]
            part, draw, losses, score, norm = flight.pop(0)
            sampler.update(draw.index[part], losses[part], draw.step, score[part], norm if not flight else None)
            pending[:] = [each for each in pending if each]
    return made


@pytest.mark.parametrize("name", LAGGED)
def test_under_a_lag_the_draws_are_the_same_whatever_the_order(name):
    expected = run(lagged(name), 200, random.Random(0), [], [])
    for seed in range(1, 4):
        sampler = lagged(name)
        assert all(map(same_draw, expected, run(sampler, 200, random.Random(seed), [], [])))
        assert sampler.summary()["gate_changed"] >= 0
    uniform = sum((draw.weight == 1.0).all() for draw in expected)
    assert 20 < uniform < 180  # both states do come


@pytest.mark.parametrize("name", LAGGED)
def test_a_run_that_is_killed_goes_on_to_the_bit(name):
    expected = run(lagged(name), 200, random.Random(0), [], [])
    for kill in (3, 17, 70, 133):
        sampler = lagged(name)
        made = run(sampler, kill, random.Random(kill), [], [])
        state = sampler.state_dict()
        flying = set(np.asarray(state["in_flight"]["step"])[~_complete(state["in_flight"])].tolist())
        other = lagged(name)
        run(other, 5, random.Random(9), [], [])
        other.load_state_dict(state)
        assert same(other.state_dict(), state)
        again = run(other, 200 - kill + len(flying), random.Random(1), [], [])
        assert {draw.step for draw in again[: len(flying)]} == flying
        kept = [draw for draw in made if draw.step not in flying]
        both = sorted(kept + again, key=lambda draw: draw.step)
        assert all(map(same_draw, expected, both))


def _complete(in_flight):
    ends = np.cumsum(in_flight["size"])
    return np.array(
        [in_flight["reported"][end - size : end].all() for end, size in zip(ends, in_flight["size"], strict=True)], bool
    )


def test_what_waits_under_a_lag_is_told_after_a_restart():
    gates = [Switch(), Switch()]
    one, other = (ImportanceSampler(12, gate=gate, first_pass=False, feedback_lag=3, seed=0) for gate in gates)
    draws = [one.draw(4) for _ in range(2)]
    one.update(draws[0].index, np.ones(4), 0, draws[0].index + 1.0, 5.0)
    one.update(draws[1].index[:2], np.ones(2), 1, np.full(2, 9.0), 7.0)  # in part: it will go out again
    other.load_state_dict(one.state_dict())
    again = other.draw(4)
    assert again.step == 1
    other.update(again.index, np.ones(4), 1, again.index + 1.0)
    for step in (2, 3):
        draw = other.draw(4)
        other.update(draw.index, np.ones(4), step, np.ones(4), 1.0)
    other.draw(4)
    told = [(score.tolist(), norm) for score, _, _, norm in gates[1].told[:2]]
    assert told == [((draws[0].index + 1.0).tolist(), 5.0), ((draws[1].index + 1.0).tolist(), None)]
    assert not gates[0].told


def test_without_a_lag_the_state_has_the_same_future():
    one, other = (ImportanceSampler(N, gate=VarianceGate(window=20), seed=seed) for seed in (0, 1))
    model = exact_models.few_hard()
    feed(one, model, 45)
    waiting = one.draw(BATCH)
    other.load_state_dict(one.state_dict())
    for sampler in (one, other):
        sampler.update(waiting.index, model.losses[waiting.index], waiting.step, model.scores[waiting.index], 1.0)
    assert all(map(same_draw, feed(one, model, 200), feed(other, model, 200)))
    assert same(one.state_dict(), other.state_dict())
    assert one.summary() == other.summary()


def test_states_of_another_gate_are_refused():
    plain, gated = ImportanceSampler(9, seed=0), ImportanceSampler(9, gate="variance", seed=0)
    other = ImportanceSampler(9, gate=VarianceGate(margin=0.2), seed=0)
    for one, two in ((plain, gated), (gated, plain), (gated, other)):
        with Unchanged(one), pytest.raises(ValueError, match="the state is of a sampler with gate="):
            one.load_state_dict(two.state_dict())


@pytest.mark.parametrize(("name", "value"), [("changed", -2), ("gate", {}), ("recent", {"index": [99]})])
def test_a_damaged_state_is_refused(name, value):
    sampler = ImportanceSampler(9, gate="variance", seed=0)
    state = sampler.state_dict()
    state["gate"][name] = value
    with Unchanged(sampler), pytest.raises(ValueError, match="the state is damaged"):
        sampler.load_state_dict(state)


def test_the_state_without_a_gate_is_as_before():
    state = ImportanceSampler(9, feedback_lag=2, seed=0).state_dict()
    assert "gate" not in state
    assert "gate" not in state["options"]
    assert {"prior", "scores", "norm"}.isdisjoint(state["in_flight"])


def test_a_state_is_made_of_plain_things():
    """Numbers, strings, arrays and dicts of these, so that any checkpoint can take it."""

    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(inner) for key, inner in value.items())
        return value is None or type(value) in (int, float, str, np.ndarray)

    for gate in ("variance", "speedup"):
        for lag in (None, 2):
            sampler = ImportanceSampler(N, gate=gate, feedback_lag=lag, seed=0)
            feed(sampler, exact_models.few_hard(), 50)
            assert plain(sampler.state_dict())


# --- passes at the beginning and at the end


@pytest.mark.parametrize(("first_pass", "warmup", "passes"), [(True, 0, 1), (True, 2, 3), (False, 0, 0), (False, 2, 2)])
def test_warmup_is_whole_passes(first_pass, warmup, passes):
    sampler = ImportanceSampler(10, first_pass=first_pass, warmup=warmup, seed=0)
    sampler.update(np.arange(10), np.arange(10.0))
    draws = [sampler.draw(4) for _ in range(12)]
    index = np.concatenate([draw.index for draw in draws])
    weight = np.concatenate([draw.weight for draw in draws])
    for each in index[: 10 * passes].reshape(passes, 10):
        assert np.unique(each).size == 10
    assert (weight[: 10 * passes] == 1.0).all()
    assert (weight[10 * passes :] != 1.0).all()


def test_the_end_is_a_new_pass():
    sampler = ImportanceSampler(10, finish_at=7, seed=0)
    sampler.update(np.arange(10), np.arange(10.0))
    draws = [sampler.draw(4) for _ in range(12)]
    assert (np.concatenate([draw.weight for draw in draws[3:7]]) != 1.0).all()
    last = np.concatenate([draw.index for draw in draws[7:]])
    assert np.unique(last[:10]).size == np.unique(last[10:]).size == 10
    assert (np.concatenate([draw.weight for draw in draws[7:]]) == 1.0).all()


@pytest.mark.parametrize("options", [{"warmup": -1}, {"warmup": True}, {"finish_at": -1}, {"finish_at": 0.5}])
def test_passes_are_whole_numbers(options):
    with pytest.raises((ValueError, TypeError), match=r"(warmup|finish_at) must be"):
        ImportanceSampler(10, **options)
