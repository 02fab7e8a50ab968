"""A line of the processor's cache at once: what :mod:`sampler.kernels` does to sixteen leaves or eight sums.

    line_sum(values, first)                         # their sum
    line_search(values, first, floor, position)     # which of them lies under a position, and what is left of it there

Both are for compiled loops alone. They are written as vectors, in the language of the compiler below numba, because it
makes no vectors of a sum whose order is given; so they take less than half the instructions. With four numbers a line
instead of sixteen, and a floor of ½, the search for the position 9 in the line 3 1 4 6 goes::

    values                   3     1     4     6
    + one place to the left  3     4     5    10      each step adds what stands 1, 2, 4, ... places to the left
    + two places             3     4     8    14
    + floor × 1, 2, 3, 4     3.5   5     9.5  16      where each of them ends
    9 ≥ ?                    yes   yes   no   no      two have ended: it lies in the third, with 9 - 5 = 4 left

The compiler lays the vectors onto whatever the processor has, AVX-512 or less. The order of the additions is the same
everywhere, so sums agree to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LINE = 64  # bytes in a line of the cache
LEAF_BITS, SUM_BITS = 4, 3  # a line is 2**4 float32 or 2**3 float64
LEAVES, SUMS = 2**LEAF_BITS, 2**SUM_BITS


@intrinsic  # type: ignore[untyped-decorator]
def line_sum(typing: Any, values: Any, first: Any) -> Any:
    """Sum of the line of ``values`` that begins at ``first``, in float64 and always in the same order."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = _load(context, builder, signature.args[0], *args)
        while line.type.count > 1:  # the upper half onto the lower
            half = line.type.count // 2
            line = builder.fadd(_pick(builder, line, range(half)), _pick(builder, line, range(half, 2 * half)))
        return builder.extract_element(line, _int32(0))

    return types.float64(values, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def line_search(typing: Any, values: Any, first: Any, floor: Any, position: Any) -> Any:
    """Which of the line's values, each ``floor`` heavier than it stands there, lies under ``position``.

    ``(child, left)``: its place in the line, the last one for positions past them all, and what is left of the position
    in it.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, first, floor, position = args
        ends = _load(context, builder, signature.args[0], array, first)
        count = ends.type.count
        shift = 1
        while shift < count:
            ends = builder.fadd(ends, _shifted(builder, ends, shift))
            shift *= 2
        steps = ir.Constant(ends.type, [float(place) for place in range(1, count + 1)])
        ends = builder.fadd(ends, builder.fmul(_spread(builder, floor, count), steps))
        passed = builder.fcmp_ordered(">=", _spread(builder, position, count), ends)
        bits = builder.bitcast(passed, ir.IntType(count))
        bits = builder.and_(bits, ir.Constant(bits.type, 2 ** (count - 1) - 1))  # nothing lies past the last
        child = builder.zext(builder.ctpop(bits), ir.IntType(64))
        left = builder.fsub(position, builder.extract_element(_shifted(builder, ends, 1), child))
        return context.make_tuple(builder, signature.return_type, [child, left])

    result = types.Tuple((types.int64, types.float64))
    return result(values, types.int64, types.float64, types.float64), generate


def _load(context: Any, builder: Any, kind: Any, array: Any, first: Any) -> Any:
    """The line of ``array`` that begins at ``first`` as a vector of float64."""
    data = context.make_array(kind)(context, builder, array).data
    number = context.get_value_type(kind.dtype)
    count = LINE // np.dtype(str(kind.dtype)).itemsize
    place = builder.bitcast(builder.gep(data, [first]), ir.VectorType(number, count).as_pointer())
    line = builder.load(place, align=LINE // count)
    return line if number == ir.DoubleType() else builder.fpext(line, ir.VectorType(ir.DoubleType(), count))


def _shifted(builder: Any, vector: Any, places: int) -> Any:
    """``vector`` moved so many places up, zeros in front."""
    count = vector.type.count
    return _pick(builder, vector, [*[count] * places, *range(count - places)])


def _pick(builder: Any, vector: Any, places: Any) -> Any:
    """The lanes of ``vector`` at ``places``; the one past its end is a zero."""
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, [0.0] * vector.type.count), lanes)


def _spread(builder: Any, number: Any, count: int) -> Any:
    """``number`` in each of ``count`` lanes."""
    vector = ir.VectorType(number.type, count)
    alone = builder.insert_element(ir.Constant(vector, ir.Undefined), number, _int32(0))
    return builder.shuffle_vector(alone, alone, ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count))


def _int32(number: int) -> Any:
    return ir.Constant(ir.IntType(32), number)
