"""Input checked: what passes comes out unchanged, what does not is named with the rule and the remedy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from sampler import checks


class Tensor:
    """What only ``np.asarray`` can look into, as eager tensors are."""

    def __init__(self, values) -> None:
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


# --- whole numbers and numbers


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_whole_takes_integers_of_all_kinds(value):
    result = checks.whole("size", value, least=3, most=3)
    assert result == 3
    assert type(result) is int


@pytest.mark.parametrize("value", [3.0, "3", None, True, np.True_, [3], np.array([3, 4]), Fraction(3)])
def test_whole_refuses_what_is_no_integer(value):
    with pytest.raises(TypeError, match="size must be an integer, got"):
        checks.whole("size", value, least=0)


def test_whole_refuses_what_is_out_of_range():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        checks.whole("size", 0, least=1)
    with pytest.raises(ValueError, match="size must be at most 4, got 5"):
        checks.whole("size", 5, least=1, most=4)


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.25), Fraction(1, 2)])
def test_number_takes_numbers(value):
    result = checks.number("share", value, 0.0, 1.0)
    assert result == value
    assert type(result) is float


@pytest.mark.parametrize("value", [-1e-9, 1.0000001, np.nan, np.inf])
def test_number_refuses_what_is_out_of_range(value):
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got"):
        checks.number("share", value, 0.0, 1.0)


def test_number_with_an_open_top():
    assert checks.number("share", 0.999, 0.0, 1.0, top_open=True) == 0.999
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\), got 1"):
        checks.number("share", 1.0, 0.0, 1.0, top_open=True)


@pytest.mark.parametrize("value", ["0.5", b"1", None, 1j, [0.5, 0.5], {}])
def test_number_refuses_what_is_none(value):
    with pytest.raises(TypeError, match="share must be a number, got"):
        checks.number("share", value, 0.0, 1.0)


# --- indices


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, np.int64])
def test_indices_of_every_integer_type(dtype):
    result = checks.indices(Tensor(np.array([3, 1, 3], dtype)), 4)
    assert result.dtype == np.int64
    assert result.tolist() == [3, 1, 3]


def test_indices_are_copied():
    given = np.array([0, 1])
    result = checks.indices(given, 2)
    given[0] = 1
    assert result.tolist() == [0, 1]


def test_no_indices_are_fine():
    assert checks.indices([], 3).shape == (0,)


@pytest.mark.parametrize(("index", "shown"), [([0, 4], "got 4 at position 1"), ([-1], "got -1 at position 0")])
@pytest.mark.fault(5)
def test_an_index_out_of_range(index, shown):
    with pytest.raises(IndexError, match=rf"index must be in \[0, 4\), {shown}"):
        checks.indices(index, 4)


def test_an_index_beyond_int64_is_out_of_range():
    with pytest.raises(IndexError, match=r"index must be in \[0, 4\), got 9223372036854775809 at position 1"):
        checks.indices(np.array([0, 2**63 + 1], np.uint64), 4)


RAGGED = [[1.0], [1.0, 2.0]]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("index", lambda: checks.indices(RAGGED, 4)),
        ("losses", lambda: checks.per_sample("losses", RAGGED, 2)),
        ("step", lambda: checks.steps(RAGGED, 2)),
        ("positions", lambda: checks.positions(RAGGED)),
    ],
)
def test_lists_of_unequal_lengths(name, check):
    with pytest.raises(ValueError, match=f"{name} must make an array of numbers, and what was given makes none"):
        check()


@pytest.mark.parametrize(
    ("index", "remedy"),
    [
        ([1.0, 2.0], r"astype\(np.int64\)"),
        ([True, False], r"np.flatnonzero\(mask\)"),
        (["1"], "astype"),
        ([None], "astype"),
    ],
)
@pytest.mark.fault(5)
def test_an_index_that_is_no_integer(index, remedy):
    with pytest.raises(TypeError, match=f"index must be integers, got dtype .*{remedy}"):
        checks.indices(index, 4)


@pytest.mark.parametrize("index", [1, [[1], [2]]])
def test_an_index_of_another_shape(index):
    with pytest.raises(ValueError, match=r"index must have shape \(B,\), got shape"):
        checks.indices(index, 4)


# --- numbers of each sample


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.uint8])
def test_losses_of_every_real_type(dtype):
    result = checks.per_sample("losses", Tensor(np.array([3, 1], dtype)), 2)
    assert result.dtype == np.float64
    assert result.tolist() == [3.0, 1.0]


def test_losses_are_copied():
    given = np.array([0.0, 1.0])
    result = checks.per_sample("losses", given, 2)
    given[0] = 5
    assert result.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("losses", [1.5, np.float32(1.5), np.array(1.5)])
@pytest.mark.fault(8)
def test_a_loss_reduced_to_a_single_number_shows_the_right_form(losses):
    with pytest.raises(ValueError, match=r"each of 4 indices, got a single number.*reduction=None"):
        checks.per_sample("losses", losses, 4)


@pytest.mark.parametrize("shape", [(4, 1), (4, 7), (1, 4), (2, 2, 2)])
@pytest.mark.fault(9)
def test_losses_of_more_than_one_axis(shape):
    with pytest.raises(ValueError, match=r"shape \(4,\), got shape .*mean\(axis=1\)"):
        checks.per_sample("losses", np.zeros(shape), 4)


@pytest.mark.parametrize("count", [0, 1, 3, 5])
@pytest.mark.fault(7)
def test_losses_of_another_length(count):
    with pytest.raises(ValueError, match=f"each of 4 indices, got {count}"):
        checks.per_sample("losses", np.zeros(count), 4)


NO_NUMBERS = [
    ["a", "b"],
    [1j, 2j],
    [None, 1.0],
    np.array(["2020", "2021"], "M8[Y]"),
    np.zeros(2, [("loss", np.float32)]),
    np.zeros(2, [("loss", np.float32)]).view(np.recarray),
    np.zeros(2, "V4"),
]


@pytest.mark.parametrize("losses", NO_NUMBERS)
def test_losses_that_are_no_real_numbers(losses):
    with pytest.raises(TypeError, match="losses must be real numbers, got dtype"):
        checks.per_sample("losses", losses, 2)


def test_losses_of_another_package_s_type():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    assert checks.per_sample("losses", np.array([1.5, 2.0], bfloat16), 2).tolist() == [1.5, 2.0]


# --- positions


@pytest.mark.parametrize("given", [[0.0, 0.5], np.array([0, 0.5], np.float32), np.array([0, 9, 0.5])[::2]])
def test_positions_are_copied(given):
    result = checks.positions(given)
    assert result.dtype == np.float64
    assert result.flags.c_contiguous
    result[:] = 9.0
    assert list(given) == [0.0, 0.5]


@pytest.mark.parametrize("positions", NO_NUMBERS)
def test_positions_that_are_no_real_numbers(positions):
    with pytest.raises(TypeError, match="positions must be real numbers, got dtype"):
        checks.positions(positions)


@pytest.mark.parametrize("positions", [0.5, [[0.5]]])
def test_positions_of_another_shape(positions):
    with pytest.raises(ValueError, match=r"positions must have shape \(B,\), got shape .*reshape\(-1\)"):
        checks.positions(positions)


# --- flags


def test_flags():
    assert checks.flag("first_pass", np.True_) is True
    assert checks.flag("first_pass", False) is False
    for wrong in ("no", 0, 1, None, [True]):
        with pytest.raises(TypeError, match="first_pass must be True or False, got"):
            checks.flag("first_pass", wrong)


# --- steps


def test_steps():
    assert checks.steps(None, 3) is None
    for one in (7, np.int32(7), [7]):  # the same for all
        assert checks.steps(one, 3).dtype == np.int64
        assert checks.steps(one, 3).tolist() == [7]
    for none in ([], np.empty(0, np.int64), 7):  # of no samples
        assert checks.steps(none, 0).dtype == np.int64
    for each in ([7, 8, 7], np.array([7, 8, 7], np.uint8), Tensor([7, 8, 7])):
        assert checks.steps(each, 3).dtype == np.int64
        assert checks.steps(each, 3).tolist() == [7, 8, 7]


@pytest.mark.parametrize("step", [7.0, True, "7", [7.0, 7.0, 7.0], [None, 1, 2]])
def test_a_step_that_is_no_integer(step):
    with pytest.raises(TypeError, match="step must be an integer"):
        checks.steps(step, 3)


@pytest.mark.parametrize("step", [[1, 2], [[1, 2, 3]], []])
def test_steps_of_another_shape(step):
    with pytest.raises(ValueError, match=r"step must be one integer or have shape \(3,\)"):
        checks.steps(np.array(step, np.int64), 3)


@pytest.mark.parametrize("step", [-1, [0, 1, -5], 2**31 - 1, 2**40])
def test_a_step_out_of_range(step):
    with pytest.raises(ValueError, match=r"step must be in \[0, 2147483647\)"):
        checks.steps(step, 3)


# --- arrays out of a state


def test_an_array_of_a_state_is_copied_and_cast():
    like = np.zeros(3, np.int32)
    given = np.array([1, 2, 3], np.int64)
    result = checks.array("newest", given, like)
    given[0] = 9
    assert result.dtype == np.int32
    assert result.tolist() == [1, 2, 3]


def test_an_array_of_a_state_that_does_not_fit():
    with pytest.raises(ValueError, match=r"newest must have shape \(3,\), got \(1,\)"):
        checks.array("newest", np.zeros(1, np.int32), np.zeros(3, np.int32))
    with pytest.raises(TypeError, match="newest must be int32, got float64"):
        checks.array("newest", np.zeros(3), np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="newest must be in the range of int32, got 2147483648"):
        checks.array("newest", np.array([1, 2**31, 5]), np.zeros(3, np.int32))


@pytest.mark.parametrize("wrong", [0.0, -0.5, 1.0000001, np.nan, np.inf])
def test_what_nothing_is_drawn_with(wrong):
    fine = np.array([5e-324, 0.5, 1.0])
    assert checks.drawn_with(fine) is fine
    with pytest.raises(ValueError, match=rf"must be in \(0, 1\], got {wrong:g}"):
        checks.drawn_with(np.append(fine, wrong))
