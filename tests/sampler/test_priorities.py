"""The priority functions: one table of contract tests over all siblings, then the formulas and the refusals."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from sampler import priorities

LOSSES = np.array([0.0, 1e-300, 1e-9, 0.5, 1.0, 50.0, 1e308])
INDEX = np.arange(LOSSES.size)[::-1].copy()
REFERENCE = np.array([-0.5, 0.0, 0.3, 1.0, 2.0, 1e-9, 0.0])


def observed(priority, losses):
    priority.observe(np.asarray(losses, float))
    return priority


# Each with its formula of the losses and the index.
SIBLINGS = {
    "loss": (priorities.resolve("loss"), lambda x, i: x),
    "sqrt": (priorities.resolve("sqrt"), lambda x, i: x**0.5),
    "bounded": (priorities.resolve("bounded"), lambda x, i: 1 - np.exp(-x)),
    "power(0)": (priorities.power(0), lambda x, i: np.ones(x.size)),
    "power(0.6)": (priorities.power(0.6), lambda x, i: x**0.6),
    "power(1)": (priorities.power(1), lambda x, i: x),
    "power(0.6, epsilon=0.01)": (priorities.power(0.6, epsilon=0.01), lambda x, i: (x + 0.01) ** 0.6),
    "relative": (priorities.relative(REFERENCE), lambda x, i: np.maximum(0, x - REFERENCE[i])),
    "clipped, at first": (priorities.resolve("clipped"), lambda x, i: x),
    "clipped": (observed(priorities.clipped(0.5), [1, 0, 2, 0.75, 90]), lambda x, i: np.minimum(x, 1)),
    "clipped sqrt": (observed(priorities.clipped(0.75, "sqrt"), [0, 0, 4]), lambda x, i: np.minimum(x, 2) ** 0.5),
    "clipped power": (
        observed(priorities.clipped(1.0, priorities.power(2.0), window=2), [9, 3, 2]),
        lambda x, i: np.minimum(x, 3) ** 2,
    ),
    "clipped relative": (
        observed(priorities.clipped(0.5, priorities.relative(REFERENCE)), [1, 5, 9]),
        lambda x, i: np.maximum(0, np.minimum(x, 5) - REFERENCE[i]),
    ),
    "a user's": (lambda losses: losses / 2.0 + 1.0, lambda x, i: x / 2.0 + 1.0),
}
MADE = {
    "power(0.6)": priorities.power(0.6),
    "power(2)": priorities.power(2.0),
    "power(0.6, epsilon=0.01)": priorities.power(0.6, 0.01),
    "relative([-1.0, 0.5])": priorities.relative([-1, 0.5]),
    "clipped(0.95, 'loss', window=10000)": priorities.clipped(),
    "clipped(0.9, 'sqrt', window=5)": priorities.clipped(0.9, "sqrt", 5),
    "clipped(0.5, power(0.6), window=10000)": priorities.clipped(0.5, priorities.power(0.6)),
    "clipped(1, relative([1.0]), window=10000)": priorities.clipped(1, priorities.relative([1.0])),
}
NEED_LOSSES_ABOVE_ZERO = {
    "'loss'": "loss",
    "'sqrt'": "sqrt",
    "'bounded'": "bounded",
    "power(0.6)": priorities.power(0.6),
    "power(0)": priorities.power(0.0),
    "clipped(0.95, 'loss', window=10000)": "clipped",
    "'bounded' ": priorities.clipped(0.5, "bounded"),  # the one inside says it
}


# --- the contract


@pytest.mark.parametrize("name", SIBLINGS)
def test_each_gives_its_formula(name):
    priority, formula = SIBLINGS[name]
    before, losses = LOSSES.copy(), LOSSES.copy()
    with np.errstate(over="ignore"):
        expected = formula(LOSSES, INDEX)
    for _ in range(2):  # asking changes nothing
        values = priorities.apply(priority, losses, INDEX)
        assert values.dtype == np.float64
        assert values.shape == losses.shape
        assert (values >= 0).all()
        np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-15)
    assert np.array_equal(losses, before)


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_larger_loss_of_a_sample_has_no_smaller_priority(name):
    priority, _ = SIBLINGS[name]
    for sample in range(REFERENCE.size):
        values = priorities.apply(priority, LOSSES, np.full(LOSSES.size, sample))
        assert (values[1:] >= values[:-1]).all()


@pytest.mark.parametrize("name", SIBLINGS)
def test_each_takes_no_losses_and_one(name):
    priority, _ = SIBLINGS[name]
    none = priorities.apply(priority, np.empty(0), np.empty(0, np.int64))
    assert none.shape == (0,)
    assert priorities.apply(priority, np.array([0.5]), np.array([0])).shape == (1,)


@pytest.mark.parametrize("name", SIBLINGS)
def test_each_goes_through_resolve(name):
    priority, _ = SIBLINGS[name]
    assert priorities.resolve(priority) is priority


@pytest.mark.parametrize("huge", [1e308, np.finfo(np.float64).max])
@pytest.mark.parametrize("priority", [priorities.power(3), priorities.power(1, 1e308), priorities.relative([-1e308])])
def test_what_is_too_large_is_infinite_without_a_warning(priority, huge):
    assert priorities.apply(priority, np.array([huge]), np.array([0])).tolist() == [np.inf]


@pytest.mark.parametrize("written", MADE)
def test_what_is_made_reads_like_its_making(written):
    assert repr(MADE[written]) == written
    names = {name: getattr(priorities, name) for name in ("power", "relative", "clipped")}
    again = eval(written, names)
    assert repr(again) == written
    losses, index = np.array([0.5, 3.0]), np.array([0, 0])
    assert np.array_equal(priorities.apply(again, losses, index), priorities.apply(MADE[written], losses, index))


def test_a_long_reference_is_written_in_short():
    assert repr(priorities.relative(np.arange(1000))) == "relative([0.0, 1.0, ..., 998.0, 999.0])"


@pytest.mark.parametrize("name", priorities.NAMED)
def test_each_name_is_written_as_it_is_given(name):
    assert priorities.describe(priorities.resolve(name)) == repr(name)


def test_what_is_written_is_the_same_in_every_process():
    """A state tells by it which priority it is of, so no address may be in it."""
    assert priorities.describe(ScrambledInPlace()) == "ScrambledInPlace"
    assert priorities.describe(functools.partial(np.power, 2.0)) == "partial"
    inner = priorities.clipped(0.5, ScrambledInPlace(), window=3)
    assert priorities.describe(inner) == "clipped(0.5, ScrambledInPlace, window=3)"


def test_a_name_that_has_a_state_is_made_anew():
    assert priorities.resolve("clipped") is not priorities.resolve("clipped")
    assert priorities.resolve("loss") is priorities.resolve("loss")


# --- losses below zero


@pytest.mark.parametrize("written", NEED_LOSSES_ABOVE_ZERO)
def test_a_negative_loss_is_refused_with_what_takes_it(written):
    priority = priorities.resolve(NEED_LOSSES_ABOVE_ZERO[written])
    with pytest.raises(ValueError, match=r"needs losses ≥ 0, got -0\.5.*function of your own") as refused:
        priorities.apply(priority, np.array([1.0, -0.5]))
    assert f"priority={written.strip()} needs" in str(refused.value)
    for remedy in ("store='ranked'", "priorities.relative(reference)", "lambda losses"):
        assert remedy in str(refused.value)


@pytest.mark.parametrize("priority", ["loss", "clipped", lambda losses: losses])
def test_where_the_store_is_signed_negative_losses_pass(priority):
    values = priorities.apply(priorities.resolve(priority), np.array([1.0, -0.5]), signed=True)
    assert values.tolist() == [1.0, -0.5]


@pytest.mark.parametrize("priority", ["sqrt", "bounded", priorities.power(2)])
def test_what_is_not_defined_for_negative_losses_is_refused_though_the_store_is_signed(priority):
    with pytest.raises(ValueError, match=r"needs losses ≥ 0, got -0\.5"):
        priorities.apply(priorities.resolve(priority), np.array([1.0, -0.5]), signed=True)


def test_relative_takes_negative_losses():
    values = priorities.apply(priorities.relative([-2.0, 1.0]), np.array([-3.0, -1.5, 0.5]), np.array([0, 0, 1]))
    assert values.tolist() == [0.0, 0.5, 0.0]


# --- priorities of the user


def test_a_function_of_the_user_is_taken_as_it_is():
    def exponential(losses):
        return np.exp(losses).astype(np.float32)

    assert priorities.resolve(exponential) is exponential
    assert priorities.describe(exponential) == "exponential"
    values = priorities.apply(exponential, np.array([-1.0, 0.0]))
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, np.exp([-1.0, 0.0]), rtol=1e-6)
    assert priorities.apply(lambda losses: losses.tolist(), np.array([2.0])).tolist() == [2.0]


def test_infinity_is_let_through():
    assert priorities.apply(lambda losses: losses * np.inf, np.array([2.0])).tolist() == [np.inf]
    assert priorities.apply(lambda losses: losses * -np.inf, np.array([2.0]), signed=True).tolist() == [-np.inf]


@pytest.mark.parametrize("bad", [-1.0, np.nan, -np.inf])
def test_a_priority_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match=r"priorities must be numbers ≥ 0, got .* for a loss of 2\.0; .*np.maximum"):
        priorities.apply(lambda losses: np.array([1.0, bad]), np.array([1.0, 2.0]))


def test_what_is_not_a_number_is_refused_though_the_store_is_signed():
    with pytest.raises(ValueError, match=r"priorities must be numbers, got nan for a loss of 2\.0"):
        priorities.apply(lambda losses: np.array([-1.0, np.nan]), np.array([1.0, 2.0]), signed=True)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)])
def test_one_priority_for_each_loss(shape):
    with pytest.raises(ValueError, match="one priority for each of 2 losses, got shape"):
        priorities.apply(lambda losses: np.ones(shape), np.ones(2))


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.array([1j, 2.0]), "complex128"),
        (["1", "2"], "<U1"),
        ([1.0, None], "object"),
        (np.zeros(2, [("priority", float)]), "priority"),
    ],
)
def test_priorities_that_are_no_real_numbers(given, dtype):
    with pytest.raises(TypeError, match=f"the priority function must give real numbers, got dtype .*{dtype}.*; mend"):
        priorities.apply(lambda losses: given, np.ones(2))


def test_priorities_of_unequal_lengths():
    with pytest.raises(ValueError, match="the priorities must make an array of numbers"):
        priorities.apply(lambda losses: [[1.0], [1.0, 2.0]], np.ones(2))


def test_nobody_is_asked_for_the_priorities_of_no_losses():
    assert priorities.apply(lambda losses: losses / losses.max(), np.empty(0)).size == 0


def test_a_keyed_function_of_the_user_is_given_the_index():
    class Scaled:
        keyed = True

        def __call__(self, losses, index):
            return losses * index

    assert priorities.apply(Scaled(), np.array([2.0, 3.0]), np.array([5, 0])).tolist() == [10.0, 0.0]


def halved_in_place(losses):
    losses *= 0.5
    return losses


class ScrambledInPlace:
    """Spoils all that it is given."""

    keyed = True

    def __call__(self, losses, index):
        values = losses / 2.0
        losses[:], index[:] = -1.0, 0
        return values


IN_PLACE = {
    "plain": halved_in_place,
    "keyed": ScrambledInPlace(),
    "cut": priorities.clipped(1.0, halved_in_place),
    "keyed, cut": priorities.clipped(1.0, ScrambledInPlace()),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_function_that_works_in_place_works_on_a_copy(name):
    losses, index = np.array([4.0, 6.0]), np.array([3, 1])
    assert priorities.apply(IN_PLACE[name], losses, index).tolist() == [2.0, 3.0]
    assert (losses.tolist(), index.tolist()) == ([4.0, 6.0], [3, 1])


# --- bounded and power


def test_bounded_keeps_small_losses_apart():
    assert priorities.bounded(np.array([1e-20])).item() == pytest.approx(1e-20, rel=1e-12)  # 1 - exp would be 0


def test_zero_to_the_power_zero_is_one():
    assert priorities.power(0)(np.zeros(2)).tolist() == [1.0, 1.0]
    assert priorities.power(0.5)(np.zeros(2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "arguments", [{"alpha": -0.1}, {"alpha": np.nan}, {"alpha": np.inf}, {"alpha": 1, "epsilon": -1}]
)
def test_a_power_that_is_none_is_refused(arguments):
    with pytest.raises(ValueError, match=r"(alpha|epsilon) must be in \[0, inf\)"):
        priorities.power(**arguments)
    with pytest.raises(TypeError, match="alpha must be a number, got 'x'"):
        priorities.power("x")


# --- relative


@pytest.mark.parametrize(
    "priority", [priorities.relative(np.zeros(3)), priorities.clipped(0.9, priorities.relative(np.zeros(3)))]
)
def test_one_reference_for_each_sample(priority):
    assert priority.keyed
    priority.check_size(3)
    with pytest.raises(ValueError, match="reference must have one number for each of 4 samples, got 3; give"):
        priority.check_size(4)
    with pytest.raises(ValueError, match=r"priority=.*relative.* needs the index of each loss, got none; pass index="):
        priorities.apply(priority, np.ones(2))


@pytest.mark.parametrize("reference", [[0.0, np.nan], [np.inf, 0.0], [[1.0]], 1.0, ["a"]])
def test_a_reference_that_is_none_is_refused(reference):
    with pytest.raises((ValueError, TypeError), match="reference must"):
        priorities.relative(reference)


def test_the_reference_is_a_copy():
    reference = np.zeros(2)
    priority = priorities.relative(reference)
    reference[:] = 9.0
    assert priority(np.ones(2), np.arange(2)).tolist() == [1.0, 1.0]


# --- clipped


def test_the_cut_follows_the_recent_losses():
    priority = priorities.clipped(0.5, window=3)
    assert isinstance(priority, priorities.Remembering)
    assert not priority.keyed
    priority.check_size(17)  # suits any
    losses = np.array([1.0, 100.0])
    for new, cut in [([], 100), ([np.nan, np.inf], 100), ([4.0], 4), ([8.0, np.nan], 6), ([2.0], 4), ([10.0], 8)]:
        priority.observe(np.array(new))
        priority.check()
        assert priorities.apply(priority, losses).tolist() == [1.0, cut]


def test_the_state_of_the_cut_comes_back():
    one, other = priorities.clipped(0.5, window=3), priorities.clipped(0.5, window=3)
    one.observe(np.array([9.0, 1.0, 5.0, 3.0]))
    state = one.state_dict()
    other.load_state_dict(state)
    one.observe(np.array([0.0]))
    losses = np.array([2.0, 4.0, 100.0])
    assert other(losses).tolist() == [2.0, 3.0, 3.0]
    with pytest.raises(ValueError, match="finite"):
        other.load_state_dict({"values": np.array([np.nan])})
    with pytest.raises(ValueError, match="larger window"):
        other.load_state_dict({"values": np.ones(4)})
    assert other(losses).tolist() == [2.0, 3.0, 3.0]


@pytest.mark.parametrize("arguments", [{"quantile": 1.1}, {"quantile": np.nan}, {"window": 0}, {"priority": "lose"}])
def test_a_cut_that_is_none_is_refused(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        priorities.clipped(**arguments)


def test_a_cut_of_a_cut_is_refused():
    with pytest.raises(ValueError, match="no memory of its own, got clipped"):
        priorities.clipped(0.9, "clipped")


# --- names


@pytest.mark.parametrize("wrong", ["lose", "power", 3, None, ["loss"], np.ones(2)])
def test_a_name_that_is_none_is_refused_with_those_there_are(wrong):
    with pytest.raises(
        ValueError, match=r"'loss', 'sqrt', 'bounded', 'gradient_norm', 'clipped'.*priorities\.power\(0\.6\).*got "
    ):
        priorities.resolve(wrong)


@pytest.mark.parametrize("maker", ["power", "relative", "clipped"])
def test_what_makes_a_priority_is_none(maker):
    with pytest.raises(ValueError, match=rf"got what makes one; call it: priority=priorities\.{maker}\("):
        priorities.resolve(getattr(priorities, maker))


def test_a_window_of_one_loss_will_do_and_none_will_not():
    assert repr(priorities.clipped(0.5, "loss", 1)) == "clipped(0.5, 'loss', window=1)"
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        priorities.clipped(0.5, "loss", 0)


def test_six_numbers_of_a_reference_are_written_out_and_of_seven_four():
    assert repr(priorities.relative([1, 2, 3, 4, 5, 6])) == "relative([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])"
    assert repr(priorities.relative([1, 2, 3, 4, 5, 6, 7])) == "relative([1.0, 2.0, ..., 6.0, 7.0])"
