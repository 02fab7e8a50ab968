"""The gate alone: what it estimates, by enumeration; when it opens and closes, by simulation with fixed seeds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sampler import ImportanceSampler, gates
from sampler.gates import Averages, Gate, Moments, SpeedupGate, VarianceGate, moments

from .states import same

N = 5
GENERATOR = np.random.default_rng(7)
GRADIENTS = GENERATOR.normal(size=(N, 3)) * np.array([0.1, 1.0, 3.0, 0.5, 2.0])[:, None]
NORMS = np.linalg.norm(GRADIENTS, axis=1)
PRIOR = np.array([0.3, 0.1, 0.25, 0.25, 0.1])
UNIFORM = np.full(N, 1 / N)

# --- what it estimates


def expected_moments(drawn_by, batch, fault=""):
    """The expectation of ``moments`` over all batches of independent draws."""
    total = np.zeros(3)
    for drawn in itertools.product(range(N), repeat=batch):
        index = np.array(drawn)
        weight = 1 / (N * drawn_by[index])
        norm = np.linalg.norm((weight[:, None] * GRADIENTS[index]).mean(axis=0))
        told = np.ones(batch) if fault == "w forgotten" else weight
        prior = weight if fault == "v is w" else 1 / (N * PRIOR[index])
        found = moments(NORMS[index], told, prior, float(norm))
        assert found is not None
        total += np.prod(drawn_by[index]) * np.array(found)
    return total


def exact_moments(batch):
    mean = np.sum(GRADIENTS.mean(axis=0) ** 2)
    return np.array([np.mean(NORMS**2), np.mean(NORMS**2 / (N * PRIOR)), mean * (batch - 1)]) / batch


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("drawn_by", [UNIFORM, PRIOR], ids=["closed", "open"])
def test_the_estimates_are_unbiased_open_or_closed(drawn_by, batch):
    np.testing.assert_allclose(expected_moments(drawn_by, batch), exact_moments(batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("fault", "drawn_by"), [("w forgotten", PRIOR), ("v is w", UNIFORM)], ids=["w forgotten", "v is w"]
)
def test_the_test_sees_a_planted_fault(fault, drawn_by):
    assert not np.allclose(expected_moments(drawn_by, 2, fault), exact_moments(2), rtol=0.05)


def test_without_the_norm_the_gain_is_that_of_the_second_moments():
    averages = Averages(20)
    for _ in range(30):
        found = moments(np.array([1.0, 2.0]), np.ones(2), np.array([0.5, 0.5]))
        assert found == Moments(1.25, 0.625, 0.0)
        averages.add(found)
    assert averages.gain() == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-7))


def test_the_common_part_is_clipped_after_averaging_alone():
    averages = Averages(10_000)
    for sign in np.random.default_rng(0).permutation(np.repeat([-1.0, 1.0], 1500)):
        averages.add(Moments(1.0, 0.5, 0.25 + sign))  # clipped batch by batch its mean would be 0.625
    assert averages.gain()[0] == pytest.approx((1 + 0.25) / (0.5 + 0.25), rel=0.03)
    assert abs(averages.gain()[0] - (1 + 0.625) / (0.5 + 0.625)) > 0.2
    below = Averages(1000)
    for _ in range(400):
        below.add(Moments(1.0, 0.5, -0.2))
    assert below.gain()[0] == pytest.approx(2.0)


def test_the_standard_error_is_that_of_repeated_runs():
    """Within a fifth of the spread over 300 runs, whose own error is 4 %: five of these standard errors."""
    found = []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        averages = Averages(50)
        for _ in range(200):
            score = generator.exponential(size=16)
            averages.add(moments(score, np.ones(16), 1 / (0.3 + 0.7 * score), None))
        found.append(averages.gain())
    gains, errors = np.array(found).T
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.2)


def test_a_falling_loss_does_not_let_old_batches_outweigh_new_ones():
    averages = Averages(50)
    for step in range(400):
        size = 1e3 * 0.9**step
        averages.add(Moments(size * (3.0 if step < 200 else 1.0), size, 0.0))
    assert averages.gain()[0] == pytest.approx(1.0, abs=0.1)


def slow_gain(found, window):
    """What ``Averages(window).gain()`` gives after the moments ``found``, from all of them anew."""
    sizes = [one.uniform + one.priority + max(one.common, 0.0) for one in found]
    kept = []
    for place, size in enumerate(sizes):
        before = sizes[max(0, place - 31) : place]
        if place >= 9 and sum(before) > 0:
            usual = float(np.sort(before)[len(before) // 2]) or sum(before) / len(before)
            kept.append(np.array(found[place]) / max(usual, size / 100))
    if not kept:
        return 1.0, np.inf
    weights = (1 - 1 / window) ** np.arange(len(kept))[::-1]
    uniform, priority, common = (weights[:, None] * kept).sum(axis=0)
    common = max(common, 0.0)
    if priority + common == 0:
        return 1.0, np.inf
    ratio = (uniform + common) / (priority + common)
    u, p, c = np.array(kept).T
    rest = u - ratio * p + (1 - ratio) * (c if common > 0 else 0.0)
    variance = (weights * rest**2).sum() / weights.sum() * np.square(weights).sum()
    return ratio, np.sqrt(variance) / (priority + common)


@pytest.mark.parametrize("common", [0.0, 0.3, 2.0, -0.3], ids="common part {}".format)
@pytest.mark.parametrize("kind", ["as usual", "mostly nothing", "one that is enormous", "shrinking"])
def test_the_averages_are_those_of_a_slow_twin(kind, common):
    generator, averages, found = np.random.default_rng(3), Averages(20), []
    for step in range(120):
        size = {"mostly nothing": float(step % 3 == 1), "shrinking": 0.8**step}.get(kind, 1.0)
        size *= 1e9 if kind == "one that is enormous" and step == 60 else 1.0
        uniform, priority, noise = generator.exponential(size=3)
        found.append(Moments(size * uniform, size * 0.7 * priority, size * (common + 0.5 * (noise - 1.0))))
        averages.add(found[-1])
        if step < 12 or step % 6 == 0:
            ratio, error = slow_gain(found, 20)
            assert averages.gain() == (pytest.approx(ratio, rel=1e-9), pytest.approx(error, rel=1e-6, abs=1e-6))


def test_no_batch_counts_before_nine_have_told_what_size_is_usual():
    averages = Averages(20)
    for _ in range(9):
        averages.add(Moments(2.0, 1.0, 0.0))
        assert averages.gain() == (1.0, np.inf)
    averages.add(Moments(2.0, 1.0, 0.0))
    assert averages.gain()[0] == pytest.approx(2.0)


# --- when it opens and closes

POPULATION = 20_000
BATCH = 32


def population(kind, gain):
    """Scores (N,) and p (N,), λ = 0.3, of about this gain: q = aᵗ times a lognormal number, t found by bisection."""
    generator = np.random.default_rng(5)
    score = np.exp(generator.normal(size=POPULATION) * (1.2 if kind == "lognormal" else 1.0))
    if kind == "few hard":
        score = np.where(generator.random(POPULATION) < 0.05, generator.random(POPULATION) + 0.3, 0.02 * score)
    noise = np.exp(generator.normal(size=POPULATION))
    low, high = -1.5, 1.0
    for _ in range(40):
        power = (low + high) / 2
        q = score**power * noise
        p = 0.7 * q / q.sum() + 0.3 / POPULATION
        low, high = (power, high) if exact(score, p) < gain else (low, power)
    return score, p


def exact(score, p):
    return np.mean(score**2) / np.mean(score**2 / (POPULATION * p))


def simulate(gate, score, p, batches, seed=0, observed=None):
    """Batches drawn as the gate says; gives the batches at which it changed. The scores carry noise of 30 %."""
    generator = np.random.default_rng(seed)
    cumulative, v = np.cumsum(p), 1 / (POPULATION * p)
    changes = []
    for batch in range(batches):
        was = gate.open
        if was:
            index = np.searchsorted(cumulative, generator.random(BATCH)).clip(max=POPULATION - 1)
        else:
            index = generator.integers(0, POPULATION, BATCH)
        weight = v[index] if was else np.ones(BATCH)
        gate.observe(score[index] * np.exp(0.3 * generator.normal(size=BATCH)), weight, v[index])
        if gate.open != was:
            changes.append(batch)
    return changes


@pytest.mark.parametrize("kind", ["lognormal", "few hard"])
@pytest.mark.parametrize(("gain", "within"), [(1.3, 300), (1.9, 100)])
def test_it_opens_soon_and_stays(kind, gain, within):
    score, p = population(kind, gain)
    assert exact(score, p) == pytest.approx(gain, rel=1e-3)
    changes = [simulate(VarianceGate(), score, p, 1000, seed) for seed in range(7)]
    assert all(len(each) == 1 for each in changes)
    assert np.median(changes) < within
    assert min(changes)[0] >= gates.LEAST_BATCHES - 1


@pytest.mark.parametrize("kind", ["lognormal", "few hard"])
@pytest.mark.parametrize("gain", [0.9, 1.0])
@pytest.mark.each_value
def test_it_stays_closed_where_there_is_no_gain(kind, gain):
    """No opening in 30,000 batches each, 120,000 in all, at these seeds: so one in 40,000 batches at most, with 95 %
    confidence (three over their number).
    """
    gate = VarianceGate()
    assert simulate(gate, *population(kind, gain), 30_000) == []
    assert gate.gain == pytest.approx(gain, abs=0.3)


def test_that_test_sees_a_gate_without_margin_of_error():
    gate = VarianceGate(confidence=0.5, margin=0.0)
    assert len(simulate(gate, *population("lognormal", 1.0), 3000)) > 4


@pytest.mark.parametrize("gain", [0.8, 1.0])
def test_it_closes_when_the_gain_goes(gain):
    gate = VarianceGate()
    assert len(simulate(gate, *population("lognormal", 1.9), 400)) == 1
    (closed,) = simulate(gate, *population("lognormal", gain), 3000, seed=1)
    assert closed < 1200
    assert not gate.open
    assert len(simulate(gate, *population("lognormal", 1.9), 1500, seed=2)) == 1  # and comes back
    assert gate.open


def test_changes_take_longer_and_longer():
    """Fed the clearest evidence to and fro, it still changes no faster than its dwell allows."""
    gate = VarianceGate(window=10, dwell=50)
    changes = []
    for step in range(3000):
        was = gate.open
        better = 0.5 if not was else 2.0
        gate.observe(np.ones(4), np.ones(4), np.full(4, better))
        if gate.open != was:
            changes.append(step)
    distances = np.diff(changes)
    assert len(changes) > 5
    assert (distances >= 50 * np.arange(1, distances.size + 1)).all()


def rule(gains, errors, window, confidence, margin, dwell):
    """The batches at which a gate changes, by its description, from the gain and the error after each batch."""
    changes, open_, last = [], False, -1
    for step, (gain, error) in enumerate(zip(gains, errors, strict=True)):
        below = all(step >= back and gains[step - back] < 1 + margin for back in range(window))
        if step - last < max(32, dwell * len(changes)):
            continue
        closes = open_ and (gain + confidence * error < 1 + margin or below)
        if closes or (not open_ and gain - confidence * error > 1 + margin):
            changes.append(step)
            open_, last = not open_, step
    return changes


@pytest.mark.parametrize("dwell", [0, 20, 45])
@pytest.mark.parametrize("confidence", [0.0, 1.0, 30.0])
def test_it_changes_just_when_its_description_says(confidence, dwell):
    generator = np.random.default_rng(11)
    gate, changes, told = VarianceGate(window=25, confidence=confidence, margin=0.1, dwell=dwell), [], []
    for step in range(600):
        was = gate.open
        level = 1.5 if step // 150 % 2 == 0 else 0.9
        gate.observe(generator.exponential(size=8) + 0.5, np.ones(8), np.full(8, 1 / level))
        told.append((gate.gain, gate.error))
        if gate.open != was:
            changes.append(step)
    assert changes == rule(*np.array(told).T.tolist(), 25, confidence, 0.1, dwell)
    assert changes or confidence == 30.0


def test_a_gain_of_just_the_margin_does_not_open_it():
    gate = VarianceGate(confidence=0.0, margin=1.0)
    for _ in range(100):
        gate.observe(np.ones(4), np.ones(4), np.full(4, 0.5))
    assert (gate.gain, gate.open) == (2.0, False)


# --- what is not finite, or not plausible


def clear(gate, batches=300):
    for _ in range(batches):
        gate.observe(np.ones(8), np.ones(8), np.full(8, 0.5))
    return gate


@pytest.mark.parametrize("kind", [VarianceGate, SpeedupGate])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30, 1e200])
@pytest.mark.parametrize("when", [0, 5, 100])
def test_one_such_score_does_not_switch_it_off_for_good(kind, bad, when):
    gate = kind()
    generator = np.random.default_rng(0)
    for step in range(1600):
        score = generator.choice([0.1, 2.0], 8, p=[0.9, 0.1])
        # Priorities in proportion to the scores and λ = 0.3: a gain above 2.
        v = 1 / (0.3 + 0.7 * score / 0.29)
        score[3] = bad if step == when else score[3]
        gate.observe(score, np.ones(8), v, bad if step == when + 1 and kind is VarianceGate else None)
    assert gate.open
    assert np.isfinite(gate.gain)


def test_samples_that_are_not_finite_are_left_out():
    some, v = np.array([1.0, np.nan, 2.0, np.inf]), np.array([0.5, 1.0, 0.5, 1.0])
    assert moments(some, np.ones(4), v) == moments(some[[0, 2]], np.ones(2), v[[0, 2]])
    assert moments(np.full(2, np.nan), np.ones(2), np.ones(2)) is None
    for norm in (np.nan, np.inf, 1e300):
        assert moments(np.ones(2), np.ones(2), np.ones(2), norm) is None


@pytest.mark.parametrize("kind", [VarianceGate, SpeedupGate])
def test_scores_of_zero_say_nothing(kind):
    gate = kind()
    for _ in range(100):
        gate.observe(np.zeros(4), np.ones(4), np.ones(4))
    assert not gate.open
    assert np.isfinite(gate.gain)


# --- Katharopoulos & Fleuret's


def test_the_speedup_gate_is_the_papers_formula():
    """τ² = B Σ ĝ² of scores ĝ that sum to one, smoothed; open where B + 3b < 3bτ."""
    score = np.array([0.1, 0.2, 0.1, 3.0])
    share = score / score.sum()
    tau, gate = 0.0, SpeedupGate(ratio=1.0, smoothing=0.9)
    for _ in range(40):
        gate.observe(score, np.ones(4), np.ones(4))
        tau = 0.9 * tau + 0.1 * np.sqrt(4 * np.sum(share**2))
        assert gate.gain == pytest.approx(tau**2)
        assert gate.open == (3 * 4 * tau > 4 + 3 * 4)
    assert gate.open


def test_the_speedup_gate_corrects_for_how_the_batch_was_drawn():
    """A batch that has each sample just as often as p says gives the ratio exactly."""
    score, counts = np.array([1.0, 3.0]), np.array([1, 3])
    index = np.repeat([0, 1], counts)
    gate = SpeedupGate(smoothing=0.0)
    gate.observe(score[index], 1 / (2 * counts[index] / 4), np.ones(4))
    assert gate.gain == pytest.approx(np.mean(score**2) / np.mean(score) ** 2)


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1e3, 1e200])
def test_the_speedup_gate_does_not_ask_for_the_unit_of_the_scores(scale):
    gate, scaled = SpeedupGate(), SpeedupGate()
    gate.observe(np.array([0.1, 0.2, 0.7]), np.ones(3), np.ones(3))
    scaled.observe(scale * np.array([0.1, 0.2, 0.7]), np.ones(3), np.ones(3))
    assert scaled.gain == pytest.approx(gate.gain)
    assert gate.gain > 0.0


# --- options and state


@pytest.mark.parametrize(
    "make",
    [
        lambda: VarianceGate(window=9),
        lambda: VarianceGate(confidence=-1.0),
        lambda: VarianceGate(margin=np.nan),
        lambda: VarianceGate(dwell=-1),
        lambda: VarianceGate(confidence=-0.1),
        lambda: VarianceGate(confidence=np.inf),
        lambda: VarianceGate(margin=-0.1),
        lambda: VarianceGate(margin=np.inf),
        lambda: SpeedupGate(ratio=np.inf),
        lambda: SpeedupGate(smoothing=-0.1),
        lambda: SpeedupGate(ratio=-0.1),
        lambda: SpeedupGate(smoothing=1.0),
        lambda: gates.resolve("katharopoulos"),
        lambda: gates.resolve(VarianceGate),
        lambda: gates.resolve(3),
    ],
)
def test_what_is_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_names():
    assert isinstance(gates.resolve("variance"), VarianceGate)
    assert isinstance(gates.resolve("speedup"), SpeedupGate)
    assert gates.resolve(None) is None
    own = VarianceGate()
    assert gates.resolve(own) is own
    assert gates.describe(own) == "VarianceGate(window=200, confidence=3, margin=0.05, dwell=100)"
    assert gates.describe(SpeedupGate()) == "SpeedupGate(ratio=1, smoothing=0.9)"
    assert gates.describe(None) is None
    assert all(isinstance(kind(), Gate) for kind in gates.NAMED.values())


@pytest.mark.parametrize("tau", [np.inf, np.nan, -0.5, -1.0])
def test_a_speedup_that_cannot_be_is_refused(tau):
    gate = SpeedupGate()
    with pytest.raises(ValueError, match="tau must be in"):
        gate.load_state_dict({"tau": tau})
    assert gate.gain == 0.0


@pytest.mark.parametrize("kind", gates.NAMED)
def test_a_gate_that_never_changed_says_so(kind):
    told = ImportanceSampler(4, gate=kind).summary()
    assert (told["gate_open"], told["gate_changed"]) == (False, -1)


@pytest.mark.parametrize("kind", [VarianceGate, SpeedupGate])
@pytest.mark.parametrize("batches", [0, 5, 60])
def test_a_state_has_the_same_future(kind, batches):
    score, p = population("lognormal", 1.3)
    one, other = kind(), clear(kind(), 7)
    simulate(one, score, p, batches)
    other.load_state_dict(one.state_dict())
    assert same(one.state_dict(), other.state_dict())
    assert simulate(one, score, p, 300, seed=1) == simulate(other, score, p, 300, seed=1)
    assert same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("open",), 2),
        (("changes",), -1),
        (("since",), 0.5),
        (("averages", "sums"), [1.0, 2.0]),
        (("averages", "sums"), [1.0, 2.0, np.nan]),
        (("averages", "weight"), 1e9),
        (("averages", "sizes"), [-1.0]),
        (("averages", "products"), [[1.0]]),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(where, value):
    gate = clear(VarianceGate())
    before, state = gate.state_dict(), gate.state_dict()
    inner = state
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    with pytest.raises((ValueError, TypeError)):
        gate.load_state_dict(state)
    assert same(before, gate.state_dict())
