"""State out and in, one seed that fixes everything, and threads."""

from __future__ import annotations

import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sampler import ImportanceSampler, RankedStore, UniformSampler, priorities

from .siblings import HAS_PASSES, SIBLINGS, losses_of, train, wander
from .states import Unchanged, same, same_draw


@pytest.fixture(params=SIBLINGS)
def make(request):
    return SIBLINGS[request.param]


# --- the state


@pytest.mark.parametrize("moves", [0, 1, 3, 7, 8, 9, 25])
def test_a_state_has_the_same_future(make, moves):
    """Before, in, at the end of and after the first pass (30 samples in batches of four)."""
    sampler = make(30, seed=1)
    wander(sampler, np.random.default_rng(0), moves)
    other = make(30, seed=999)
    wander(other, np.random.default_rng(5), 4)  # what it was before does not count
    state = sampler.state_dict()
    other.load_state_dict(state)
    assert same(other.state_dict(), state)
    one, two = (wander(each, np.random.default_rng(7), 20) for each in (sampler, other))
    assert all(map(same_draw, one, two))
    assert same(sampler.state_dict(), other.state_dict())
    assert sampler.summary() == other.summary()
    assert np.array_equal(sampler.probabilities(), other.probabilities())


def test_the_arrays_of_a_state_are_copies(make):
    sampler = make(30, seed=1)
    wander(sampler, np.random.default_rng(0), 9)
    kept, state = sampler.state_dict(), sampler.state_dict()
    wander(sampler, np.random.default_rng(1), 9)
    assert same(state, kept)
    other = make(30, seed=2)
    other.load_state_dict(state)
    wander(other, np.random.default_rng(1), 9)
    assert same(state, kept)
    state["newest"][:] = 77
    if "store" in state:
        state["store"]["priorities"][:] = 77.0
    assert other.state_dict()["newest"].max() < 77


def test_a_state_is_made_of_plain_things(make):
    sampler = make(30, seed=1)
    wander(sampler, np.random.default_rng(0), 9)

    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(part) for key, part in value.items())
        if isinstance(value, np.ndarray):
            return value.dtype.kind in "iufb"
        return value is None or type(value) in (int, float, str)

    assert plain(sampler.state_dict())


PCG64 = {"bit_generator": "PCG64", "has_uint32": 0, "uinteger": 0}


def refused(sampler, state, words):
    with Unchanged(sampler), pytest.raises(ValueError, match=words):
        sampler.load_state_dict(state)


def test_the_state_of_another_size(make):
    sampler = make(30, seed=1)
    refused(sampler, make(31, seed=1).state_dict(), "the state is of 31 samples, the sampler has 30")


def test_the_state_of_another_kind():
    one, other = ImportanceSampler(30, seed=1), UniformSampler(30, seed=1)
    refused(one, other.state_dict(), "the state of a UniformSampler was given to a ImportanceSampler")
    refused(other, one.state_dict(), "the state of a ImportanceSampler was given to a UniformSampler")


def test_the_state_of_a_newer_version(make):
    sampler = make(30, seed=1)
    refused(sampler, {**sampler.state_dict(), "format": 2}, "format 2, this version reads up to 1")


def test_a_state_with_something_missing(make):
    sampler, other = make(30, seed=1), make(30, seed=2)
    wander(sampler, np.random.default_rng(0), 9)
    state = sampler.state_dict()
    for name in state:
        unused = name in ("priority", "losses", "bound") and state[name] is None
        if name not in ("format", "sampler", "num_samples", "options") and not unused:
            refused(other, {key: value for key, value in state.items() if key != name}, f"damaged .*{name}")
    refused(other, {key: value for key, value in state.items() if key != "sampler"}, "the state of a None")
    refused(other, {key: value for key, value in state.items() if key != "num_samples"}, "of None samples")
    refused(other, {}, "the state of a None")
    for part in (
        name for name in ("store", "in_flight", "counts", "generator", "priority", "bound") if state.get(name)
    ):
        for name in state[part]:
            cut = {key: value for key, value in state[part].items() if key != name}
            if other.feedback_lag or part != "in_flight":
                refused(other, {**state, part: cut}, "damaged")


def test_a_state_with_an_array_of_another_shape_or_kind(make):
    sampler, other = make(30, seed=1), make(30, seed=2)
    wander(sampler, np.random.default_rng(0), 9)
    state = sampler.state_dict()
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            for wrong in (value[:-1], value[None], value.ravel()[0], value.astype(str), None, value + 0.5j):
                words = "keep_losses=False" if name == "losses" and wrong is None else "damaged"
                refused(other, {**state, name: wrong}, words)
    refused(other, {**state, "newest": state["newest"] - 10}, "damaged .*newest must be at least -1")
    beyond = state["newest"].astype(np.int64) + 2**32  # which a cast would make what it was
    refused(other, {**state, "newest": beyond}, "damaged .*newest must be in the range of int32, got 4294967")
    if "store" in state:
        values = state["store"]["priorities"]
        negative = values * np.nan if sampler._store.signed else -values - 1
        for wrong in (
            values[:-1],
            values[:1],
            values[None],
            np.float32(1),
            negative,
            values * np.nan,
            None,
        ):
            refused(other, {**state, "store": {**state["store"], "priorities": wrong}}, "damaged")
        refused(other, {**state, "store": None}, "damaged")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", -1),
        ("step", 1.5),
        ("step", "3"),
        ("step", 2**31),
        ("taken", 31),
        ("taken", -1),
        ("passes", -1),
        ("newest_step", -2),
        ("newest_step", 2**31 - 1),
        ("nonfinite_updates", None),
        ("nonfinite_updates", -1),
        ("counts", None),
        ("counts", {"seen": -1, "updates": 0, "nonfinite": 0, "late": 0}),
        ("generator", None),
        ("generator", {"bit_generator": "MT19937"}),
        ("generator", {**PCG64, "state": {"state": -1, "inc": 1}}),
        ("generator", {**PCG64, "state": {"state": 2**200, "inc": 1}}),
    ],
)  # fmt: skip
def test_a_state_with_a_number_that_cannot_be(make, name, value):
    sampler = make(30, seed=1)
    refused(sampler, {**sampler.state_dict(), name: value}, "damaged")


@pytest.mark.parametrize(("name", "value"), [("faded", -1), ("faded", 30), ("cut", -1), ("cut", 2)])
def test_a_state_of_an_importance_sampler_with_a_number_that_cannot_be(name, value):
    sampler = ImportanceSampler(30, forget=0.5, first_pass=0.5, seed=1)
    refused(sampler, {**sampler.state_dict(), name: value}, f"damaged .*{name} must be at")


LAST = 2**31 - 2  # the last step that feedback can name


def test_the_last_step_there_is(make):
    sampler = make(30, seed=1)
    wander(sampler, np.random.default_rng(0), 9)
    state = sampler.state_dict()
    sampler.load_state_dict({**state, "step": LAST, "newest_step": LAST - 1, "in_flight": None})
    draw = sampler.draw(4)
    sampler.update(draw.index, losses_of(draw.index), step=draw.step)
    sampler.update(draw.index[:1], losses_of(draw.index[:1]))  # and now is newer still
    if sampler.feedback_lag is None:
        assert sampler.state_dict()["newest"][draw.index].min() == LAST
    assert sampler.state_dict()["newest"].max() == LAST + 1
    with Unchanged(sampler), pytest.raises(OverflowError, match=r"2147483647 draws were made.*a new sampler.*losses="):
        sampler.draw(4)
    sampler.update(np.tile(draw.index, 2), losses_of(np.tile(draw.index, 2)))
    assert sampler.state_dict()["newest"].min() >= -1
    again = make(30, seed=2)
    again.load_state_dict(sampler.state_dict())


def test_what_is_in_flight_is_handed_out_again_even_after_the_last_step():
    sampler = ImportanceSampler(30, feedback_lag=2, seed=1)
    state = sampler.state_dict()
    sampler.load_state_dict({**state, "step": LAST})
    draw = sampler.draw(4)
    sampler.rewind()
    assert same_draw(sampler.draw(4), draw)
    with Unchanged(sampler), pytest.raises(OverflowError, match="draws were made"):
        sampler.draw(4)


def test_a_state_with_a_draw_in_flight_of_samples_there_are_not():
    sampler = ImportanceSampler(30, feedback_lag=2, seed=1)
    sampler.draw(4)
    state = sampler.state_dict()
    state["in_flight"]["index"][2] = 30
    refused(sampler, state, r"damaged .*index must be in \[0, 30\), got 30 at position 2")


def test_a_state_with_losses_in_flight_that_the_priority_does_not_take():
    """Or the draw in which they count would refuse them."""
    sampler = ImportanceSampler(30, feedback_lag=2, seed=1)
    draws = [sampler.draw(4) for _ in range(2)]
    sampler.update(draws[1].index, [1.0, 2.0, 3.0, np.nan], step=1)  # waits for step 0
    state = sampler.state_dict()
    state["in_flight"]["losses"][6] = -3.0
    refused(sampler, state, r"needs losses ≥ 0, got -3")
    state["in_flight"]["losses"][6] = 3.0
    state["in_flight"]["losses"][0] = -1.0  # not reported: no loss at all
    sampler.load_state_dict(state)


# Two samplers that differ in one option, and how the state of the one is refused by the other, and the other way.
OTHER_OPTIONS = {
    "ranks": ({"store": "ranked"}, {}, r"store=RankedStore\(alpha=0.7\)", "store=ProportionalStore"),
    "other ranks": (
        {"store": RankedStore(30, alpha=0.5)},
        {"store": "ranked"},
        r"store=RankedStore\(alpha=0.5\)",
        r"store=RankedStore\(alpha=0.7\)",
    ),
    "a cut": ({"priority": "clipped"}, {}, r"priority=clipped\(0.95, 'loss', window=10000\)", "priority='loss'"),
    "other cuts": (
        {"priority": priorities.clipped(0.5)},
        {"priority": priorities.clipped(0.9)},
        r"priority=clipped\(0.5, .*\)",
        r"priority=clipped\(0.9, .*\)",
    ),
    "a root": ({"priority": "sqrt"}, {"priority": priorities.power(0.6)}, "priority='sqrt'", r"priority=power\(0.6\)"),
    "a function": ({"priority": math.exp}, {}, "priority=exp", "priority='loss'"),
    "a bound": ({"max_draws": 2}, {}, "max_draws=2", "max_draws=None"),
    "other bounds": ({"max_draws": 2}, {"max_draws": 3}, "max_draws=2", "max_draws=3"),
}


@pytest.mark.parametrize("name", OTHER_OPTIONS)
def test_the_state_of_another_option(name):
    *options, said, said_back = OTHER_OPTIONS[name]
    one, other = (ImportanceSampler(30, seed=1, **option) for option in options)
    states = one.state_dict(), other.state_dict()
    words = "the state is of a sampler with {}, this one has {}; make it with the same, .*or start again"
    refused(other, states[0], words.format(said, said_back))
    refused(one, states[1], words.format(said_back, said))


def test_losses_that_a_state_does_not_keep():
    keeps, forgets = (ImportanceSampler(30, seed=1, keep_losses=keep) for keep in (True, False))
    refused(keeps, forgets.state_dict(), "with keep_losses=False, this one has keep_losses=True; make it with the same")
    forgets.load_state_dict(keeps.state_dict())  # nothing is lost that was asked for


def without_options(sampler):
    state = sampler.state_dict()
    return {name: state[name] for name in state if name != "options"}


def test_a_state_from_before_options_were_written_down(make):
    sampler, other = make(30, seed=1), make(30, seed=2)
    wander(sampler, np.random.default_rng(0), 9)
    other.load_state_dict(without_options(sampler))
    assert same(other.state_dict(), sampler.state_dict())


def test_what_the_parts_of_a_state_tell_of_its_options():
    plain = ImportanceSampler(30, seed=1)
    for options, words in [
        ({"store": "ranked"}, r"store=RankedStore\(alpha=0.7\), this one has store=ProportionalStore"),
        ({"priority": "clipped"}, "priority=one that remembers losses, .* this one has priority='loss'"),
    ]:
        other = ImportanceSampler(30, seed=1, **options)
        refused(plain, without_options(other), words)
        refused(other, without_options(plain), "the state is of a sampler with .*, this one has")
    bounded = ImportanceSampler(30, seed=1, max_draws=2)
    refused(bounded, without_options(plain), "max_draws=None, this one has max_draws=2")
    refused(plain, without_options(bounded), "max_draws=a number, this one has max_draws=None")


CHANGES = {
    "'sqrt'": lambda: "sqrt",
    "clipped(0.95, 'loss', window=10000)": lambda: "clipped",
    "clipped(0.5, 'loss', window=10000)": lambda: priorities.clipped(0.5),
    "<lambda>": lambda: lambda losses: losses + 1,
}


@pytest.mark.parametrize("changed", CHANGES)
@pytest.mark.parametrize("first", ["loss", "clipped"])
def test_a_state_from_before_and_after_the_priority_was_changed(first, changed):
    sampler = ImportanceSampler(30, priority=first, keep_losses=True, seed=1)
    wander(sampler, np.random.default_rng(0), 12)
    before = sampler.state_dict()
    sampler.set_priority(CHANGES[changed]())
    wander(sampler, np.random.default_rng(1), 5)
    after = sampler.state_dict()
    sampler.load_state_dict(before)  # and the priority is that of before
    assert same(sampler.state_dict(), before)
    other = ImportanceSampler(30, priority=first, keep_losses=True, seed=2)
    if priorities.describe(priorities.resolve(first)) != changed:
        refused(other, after, r"make it with the same, or call set_priority with it first")
        refused(sampler, after, r"make it with the same, or call set_priority with it first")
    for each in (other, sampler):
        each.set_priority(CHANGES[changed]())
        each.load_state_dict(after)
        assert same(each.state_dict(), after)
    assert all(map(same_draw, *(wander(each, np.random.default_rng(2), 9) for each in (other, sampler))))


def test_a_state_moves_between_lag_and_none():
    lagged = ImportanceSampler(30, feedback_lag=2, seed=1)
    wander(lagged, np.random.default_rng(0), 9)
    lagged.draw(4)
    free = ImportanceSampler(30, seed=2)
    free.load_state_dict(lagged.state_dict())
    assert free.draw(4).step == 10  # draws in flight are not kept without a lag
    lagged.load_state_dict(free.state_dict())
    assert lagged.draw(4).step == 11


@pytest.mark.parametrize("state", [None, [], "state"])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ValueError, match="a state is a dict"):
        ImportanceSampler(4).load_state_dict(state)


# --- one seed fixes everything


def test_one_seed_fixes_everything(make):
    one, two, three = (wander(make(30, seed=seed), np.random.default_rng(0), 20) for seed in (4, 4, 5))
    assert all(map(same_draw, one, two))
    assert not all(np.array_equal(a.index, b.index) for a, b in zip(one, three, strict=True))


def test_without_a_seed_each_is_different(make):
    one, two = (wander(make(1000), np.random.default_rng(0), 20) for _ in range(2))
    assert not all(np.array_equal(a.index, b.index) for a, b in zip(one, two, strict=True))


def test_numpys_global_generator_is_left_alone(make):
    before = np.random.get_state()[1].copy()  # noqa: NPY002  # just to see that nobody uses it
    train(make(30), 12)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


# --- threads


@pytest.fixture
def hasty_threads():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("name", [name for name in SIBLINGS if "lag" not in name])
def test_draw_and_update_from_several_threads(name):
    """Losses depend on the sample alone, so whatever the order was, the outcome is known."""
    sampler = SIBLINGS[name](200, seed=0)
    start = threading.Barrier(4)

    def work(_):
        start.wait()
        made = []
        for _ in range(60):
            draw = sampler.draw(7)
            sampler.probabilities()
            sampler.update(draw.index, losses_of(draw.index), step=draw.step)
            made.append(draw)
        return made

    with ThreadPoolExecutor(4) as pool:
        draws = sorted((draw for made in pool.map(work, range(4)) for draw in made), key=lambda draw: draw.step)
    assert [draw.step for draw in draws] == list(range(240))
    if name in HAS_PASSES:
        assert sorted(np.concatenate([draw.index for draw in draws])[:200]) == list(range(200))
    summary = sampler.summary()
    assert (summary["step"], summary["updates"], summary["nonfinite"]) == (240, 240, 0)
    if hasattr(sampler, "_store"):
        sampler._store.check()
    if name == "as it comes":
        assert summary["seen"] == 200
        np.testing.assert_allclose(sampler.priorities(), losses_of(np.arange(200)), rtol=1e-7)
    assert sampler.probabilities().sum() == pytest.approx(1.0, rel=1e-12)


# --- one sequence pinned


def test_a_pinned_sequence():
    """These numbers may change, but not unnoticed.

    A seed written down in somebody's paper stands for these draws. If this test fails, the same seed gives
    other batches than the last version did: that belongs in the changelog, and snapshots of the last version
    must still be read. NumPy may change the streams of its generators (NEP 19); only the plainest, ``random``
    and whole 64-bit integers, are used here.
    """
    sampler = ImportanceSampler(10, seed=2024)
    drawn = []
    for _ in range(5):
        draw = sampler.draw(4)
        drawn.append(draw.index.tolist())
        sampler.update(draw.index, draw.index / 10, step=draw.step)
    assert drawn == PINNED
    np.testing.assert_allclose(draw.weight, PINNED_WEIGHTS, rtol=1e-6)
    assert UniformSampler(10, seed=2024).draw(12).index.tolist() == PINNED_UNIFORM


# Of the generator a batch takes one number for the draws and one for their order, not B; so all batches after the
# third are others than they were.
PINNED = [[5, 2, 3, 7], [0, 6, 4, 8], [9, 1, 1, 6], [0, 8, 4, 6], [6, 8, 4, 9]]
PINNED_WEIGHTS = [0.8108108, 0.647482, 1.0843374, 0.5882353]
PINNED_UNIFORM = [5, 2, 3, 7, 0, 6, 4, 8, 9, 1, 2, 0]
