"""The compiled loops: arrays in, arrays out, the random numbers an argument.

Everything here works on a **wide sum tree**: the priorities are the leaves, and every node above
holds the sum of its sixteen children. With four children a node instead of sixteen, and
eleven samples, the tree looks like this (``sums`` is one array, level after level)::

    sums, level 1 (root)                      35
    sums, level 0             14         |    13         |    8          |   0
    leaves               3  1  4  6      | 2  0  9  2    | 5  3  0  0    |
    sample               0  1  2  3        4  5  6  7      8  9 10

To *find* the sample under the mass 20, walk down: at the root, 14 ≤ 20 < 14 + 13, so the second
child, with 20 - 14 = 6 left; there, 2 + 0 ≤ 6 < 2 + 0 + 9, so sample 6. To *write* sample 6,
change its leaf and add up its four siblings again, then the same one level higher. A parent
is always recomputed from its children, never adjusted by a difference, so rounding cannot pile up.

Leaves are float32 (four bytes a sample, sixteen to a line of the processor's cache); sums are float64.
A constant ``floor`` is added to every sample's priority while searching: the uniform part of the
sampling distribution belongs to the tree without being stored in it. A node over ``c`` samples
weighs ``sum + floor * c``.

A whole batch is done at a time, level by level, so that the processor can fetch the nodes
of many samples at once instead of waiting for one after the other.

All functions are compiled by numba on first use, cached on disk and release the interpreter lock.

    >>> leaves, sums, starts = allocate(11)
    >>> leaves[:11] = [3, 1, 4, 6, 2, 0, 9, 2, 5, 3, 0]
    >>> rebuild(leaves, sums, starts)
    >>> float(sums[starts[-1]])
    35.0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Compiled = TypeVar("Compiled", bound=Callable[..., Any])

FANOUT = 16
SCALE = 2.0**-32  # of losses while they are added up, so that no sum of them overflows
SMALLEST = float(np.finfo(np.float32).tiny)  # the smallest normal float32
LARGEST = float(np.finfo(np.float32).max)
ALIGNMENT = 64  # bytes in a cache line: a node's sixteen leaves then share one
MIXING_ROUNDS = 6
MIXING_BITS = 8  # at least; fewer mix too little: at N = 8 a quarter of the orders would never come


def compiled(function: Compiled) -> Compiled:
    """Compile with numba on first use; keep the machine code on disk; release the GIL."""
    return cast(Compiled, numba.njit(cache=True, nogil=True)(function))


# --- the tree ---------------------------------------------------------------------------------


def allocate(size: int) -> tuple[Float32s, Float64s, Int64s]:
    """An empty tree for ``size`` samples: ``(leaves, sums, starts)``.

    ``leaves`` is float32, ``size`` rounded up to a multiple of sixteen; ``sums`` is float64, all
    levels in one array; ``starts`` (L,) int64 says where each level begins, the root last.
    About 4.54 bytes a sample.
    """
    width = _padded(size)
    starts = [0]
    nodes = width // FANOUT
    while nodes > 1:
        starts.append(starts[-1] + _padded(nodes))
        nodes = _padded(nodes) // FANOUT
    return _zeros(width, np.float32), _zeros(starts[-1] + 1, np.float64), np.array(starts, np.int64)


def _padded(count: int) -> int:
    return -(-count // FANOUT) * FANOUT


def _zeros(count: int, dtype: type) -> npt.NDArray[Any]:
    """Zeros that begin on a cache line."""
    itemsize = np.dtype(dtype).itemsize
    raw: npt.NDArray[Any] = np.zeros(count + ALIGNMENT // itemsize, dtype)
    skip = (-raw.ctypes.data % ALIGNMENT) // itemsize
    return raw[skip : skip + count]


@compiled
def rebuild(leaves: Float32s, sums: Float64s, starts: Int64s) -> None:
    """Recompute every sum from the leaves. O(N), one pass of memory."""
    for node in range(leaves.size // FANOUT):
        sums[node] = _sum_of_children(leaves, node * FANOUT)
    for level in range(1, starts.size):
        below = starts[level - 1]
        for node in range((starts[level] - below) // FANOUT):
            sums[starts[level] + node] = _sum_of_children(sums, below + node * FANOUT)


@compiled
def refresh(leaves: Float32s, sums: Float64s, starts: Int64s, index: Int64s) -> None:
    """Recompute the sums above the leaves ``index`` (B,). O(B log N)."""
    span = FANOUT
    for level in range(starts.size):
        start = starts[level]
        last = -1
        for sample in index:
            node = sample // span
            if node == last:  # neighbours share their parents
                continue
            last = node
            if level == 0:
                sums[node] = _sum_of_children(leaves, node * FANOUT)
            else:
                sums[start + node] = _sum_of_children(sums, starts[level - 1] + node * FANOUT)
        span *= FANOUT


@compiled
def _sum_of_children(values: npt.NDArray[Any], first: int) -> float:
    """Sum of the sixteen values from ``first`` on, in float64 and always in the same order."""
    left = _sum_of_four(values, first) + _sum_of_four(values, first + 4)
    total: float = left + (_sum_of_four(values, first + 8) + _sum_of_four(values, first + 12))
    return total


@compiled
def find(
    leaves: Float32s,
    sums: Float64s,
    starts: Int64s,
    size: int,
    floor: float,
    positions: Float64s,
    index: Int64s,
    mass: Float64s,
) -> float:
    """The sample under each position of the cumulative mass. O(B log N).

    ``positions`` (B,) run from 0 to the total mass, ``sums[root] + floor * size``; ascending ones are
    found faster. Fills ``index`` (B,) with the samples and ``mass`` (B,) with their masses, priority plus ``floor``. A
    sample of mass zero is never found, however the sums were rounded.

    The upper levels, those with fewer nodes than there are positions, are not searched: the positions are laid
    beside the nodes of the lowest of them in one pass. Before a level is searched, one number of each node is
    read in a loop of its own. These reads do not wait for each other, so the memory delivers them together, and the
    search finds them in the cache: a third less time at N = 10^6. Their sum is returned so that the compiler
    keeps them; it means nothing.
    """
    batch = positions.size
    level, span = starts.size - 1, FANOUT**starts.size  # span: samples under one node of the level
    while level > 0 and -(-size * FANOUT // span) <= batch:
        level -= 1
        span //= FANOUT
    _walk(sums, starts[level], -(-size // span), floor * span, positions, index, mass)
    touched = 0.0
    for below in range(level - 1, -1, -1):
        span //= FANOUT
        nodes = -(-size // span)  # those with a sample below them
        for draw in range(batch):
            touched += sums[starts[below] + index[draw] * FANOUT]
        for draw in range(batch):
            node = index[draw] * FANOUT
            child, left = _descend(sums, starts[below] + node, nodes - node, floor * span, mass[draw])
            index[draw] = node + child
            mass[draw] = left
    for draw in range(batch):
        touched += leaves[index[draw] * FANOUT]
    for draw in range(batch):
        node = index[draw] * FANOUT
        child, _ = _descend(leaves, node, size - node, floor, mass[draw])
        index[draw] = node + child
        mass[draw] = leaves[node + child] + floor
    return touched


@compiled
def _walk(
    sums: Float64s, start: int, nodes: int, floor: float, positions: Float64s, index: Int64s, left: Float64s
) -> None:
    """Lay the positions beside the nodes of one level: ``index`` becomes the node, ``left`` what is left there.

    Ascending positions need one pass over both; one that goes back begins again at the first node.
    """
    node, before, after = 0, 0.0, sums[start] + floor
    for draw in range(positions.size):
        position = positions[draw]
        if position < before:
            node, before, after = 0, 0.0, sums[start] + floor
        while position >= after and node < nodes - 1:
            node += 1
            before = after
            after += sums[start + node] + floor
        index[draw] = node
        left[draw] = position - before
        while sums[start + index[draw]] + floor <= 0.0 and index[draw] > 0:  # past the last with any mass
            index[draw] -= 1
            left[draw] = np.inf


@compiled
def _descend(values: npt.NDArray[Any], first: int, children: int, floor: float, position: float) -> tuple[int, float]:
    """Which of sixteen children lies under ``position``, and what is left of it there.

    The children are ``values[first:first + 16]``, each ``floor`` heavier than it stands there; those from
    ``children`` on hold no sample. Two short searches without a branch on the data: four groups of
    four, then four children. All children count as full: what the last ones lack lies past every position.
    """
    group_floor = 4.0 * floor
    end1 = _sum_of_four(values, first) + group_floor
    end2 = end1 + (_sum_of_four(values, first + 4) + group_floor)
    end3 = end2 + (_sum_of_four(values, first + 8) + group_floor)
    child = 4 * (int(position >= end1) + int(position >= end2) + int(position >= end3))
    position -= _last_passed(position, end1, end2, end3)
    end1 = values[first + child] + floor
    end2 = end1 + (values[first + child + 1] + floor)
    end3 = end2 + (values[first + child + 2] + floor)
    child += int(position >= end1) + int(position >= end2) + int(position >= end3)
    position -= _last_passed(position, end1, end2, end3)
    # Rounding can carry a position past the last child that has any mass: step back onto its end.
    while child > 0 and (child >= children or values[first + child] + floor <= 0.0):
        child -= 1
        position = np.inf
    return child, position


@compiled
def _sum_of_four(values: npt.NDArray[Any], first: int) -> float:
    left = np.float64(values[first]) + np.float64(values[first + 1])
    total: float = left + (np.float64(values[first + 2]) + np.float64(values[first + 3]))
    return total


@compiled
def _last_passed(position: float, end1: float, end2: float, end3: float) -> float:
    """The largest of three ascending ends that ``position`` has reached, or 0."""
    passed = end1 if position >= end1 else 0.0
    passed = end2 if position >= end2 else passed
    return end3 if position >= end3 else passed


@compiled
def mass_before(leaves: Float32s, sums: Float64s, starts: Int64s, size: int, floor: float, index: Int64s) -> Float64s:
    """The cumulative mass in front of each sample of ``index`` (B,). O(B log N)."""
    before = np.empty(index.size, np.float64)
    for position, sample in enumerate(index):
        total = 0.0
        for leaf in range(sample // FANOUT * FANOUT, sample):
            total += leaves[leaf]
        node = sample // FANOUT
        for level in range(starts.size - 1):
            for sibling in range(node // FANOUT * FANOUT, node):
                total += sums[starts[level] + sibling]
            node //= FANOUT
        before[position] = total + floor * sample
    return before


@compiled
def heavy(leaves: Float32s, sums: Float64s, starts: Int64s, size: int, floor: float, threshold: float) -> Int64s:
    """The samples of mass ``threshold`` or more, ascending.

    A node lighter than the threshold has no such sample below it and is not entered, so the cost is
    O((total / threshold) log N), whatever N is.
    """
    nodes = np.zeros(1, np.int64)
    span = FANOUT
    for _ in range(starts.size - 1):
        span *= FANOUT
    if sums[starts[-1]] + floor * size < threshold:
        return nodes[:0]
    for level in range(starts.size - 2, -2, -1):
        span //= FANOUT
        entered = np.empty(nodes.size * FANOUT, np.int64)
        count = 0
        for node in nodes:
            for child in range(node * FANOUT, (node + 1) * FANOUT):
                samples = max(min(size - child * span, span), 0)
                value = sums[starts[level] + child] if level >= 0 else np.float64(leaves[child])
                if samples > 0 and value + floor * samples >= threshold:
                    entered[count] = child
                    count += 1
        nodes = entered[:count].copy()
    return nodes


# --- what comes back --------------------------------------------------------------------------


@compiled
def stranger(index: Int64s, size: int) -> int:
    """The first position where ``index`` (B,) is outside [0, size), or -1."""
    for position in range(index.size):
        if index[position] < 0 or index[position] >= size:
            return position
    return -1


@compiled
def count_finite(values: Float64s) -> int:
    """How many of ``values`` (B,) are neither NaN nor infinite."""
    count = 0
    for value in values:
        count += int(np.isfinite(value))
    return count


@compiled
def merge(
    index: Int64s,
    losses: Float64s,
    steps: Int64s,
    newest: Int32s,
    merged_index: Int64s,
    merged_loss: Float64s,
    merged_step: Int64s,
) -> tuple[int, int, int]:
    """One loss for each sample: the mean of its finite ones. Returns ``(count, late, most)``.

    Losses that are not finite are passed over, and so are those whose step is older than the
    ``newest`` (N,) known of the sample (``late`` counts them). The results, in order of first appearance, are the first
    ``count`` entries of ``merged_index``, ``merged_loss`` and ``merged_step``, (B,) each. O(B).

    To find a sample again that came before, no table is needed: where ``newest`` holds its step, -1 or more, the number
    of its entry stands for the time being, as -2 or less. In the end ``newest`` is as it was.

    ``most`` is 0, or how often the sample came that came most often, if twice or more. A sum of two does not depend on
    their order; one of three does, by its rounding.
    """
    former = np.empty(index.size, np.int32)
    repeats = np.empty(index.size, np.int64)
    count = 0
    late = 0
    most = 0
    for report in range(index.size):
        sample = index[report]
        known = newest[sample]
        entry = -2 - known
        if not np.isfinite(losses[report]):
            continue
        if steps[report] < (known if entry < 0 else former[entry]):
            late += 1
        elif entry < 0:
            merged_index[count] = sample
            merged_loss[count] = losses[report]
            merged_step[count] = steps[report]
            former[count] = known
            repeats[count] = 1
            newest[sample] = -2 - count
            count += 1
        else:
            if repeats[entry] == 1:
                merged_loss[entry] *= SCALE
            repeats[entry] += 1
            most = max(most, repeats[entry])
            merged_loss[entry] += losses[report] * SCALE
            merged_step[entry] = max(merged_step[entry], steps[report])
    for entry in range(count):
        newest[merged_index[entry]] = former[entry]
        if repeats[entry] > 1:
            merged_loss[entry] = merged_loss[entry] / repeats[entry] / SCALE
    return count, late, most


@compiled
def record(
    leaves: Float32s,
    newest: Int32s,
    index: Int64s,
    steps: Int64s,
    priorities: Float64s,
    smoothing: float,
) -> int:
    """Write the priorities of distinct samples into the leaves. Returns how many were new.

    ``smoothing`` is the share kept of a sample's old priority; a sample's first counts whole.
    The sums above are left as they were: ``refresh`` them. O(B).
    """
    new = 0
    for report in range(index.size):
        sample = index[report]
        value = priorities[report]
        if newest[sample] < 0:
            new += 1
        else:
            value = smoothing * leaves[sample] + (1.0 - smoothing) * value
        leaves[sample] = _clamped(value)
        newest[sample] = steps[report]
    return new


@compiled
def assign(leaves: Float32s, index: Int64s, priorities: Float64s) -> None:
    """Write ``priorities`` (B,) into the leaves ``index`` (B,); the sums are left as they were."""
    for position in range(index.size):
        leaves[index[position]] = _clamped(priorities[position])


@compiled
def _clamped(priority: float) -> float:
    """A positive priority inside float32's normal range; zero stays zero."""
    if priority <= 0.0:
        return 0.0
    return min(max(priority, SMALLEST), LARGEST)


# --- order and weight -------------------------------------------------------------------------


@compiled
def shuffle(uniforms: Float64s, index: Int64s, probability: Float64s) -> None:
    """Permute ``index`` and ``probability`` together, in place (Fisher and Yates). O(B)."""
    for last in range(index.size - 1, 0, -1):
        other = int(uniforms[last] * (last + 1))
        index[last], index[other] = index[other], index[last]
        probability[last], probability[other] = probability[other], probability[last]


@compiled
def permuted(keys: npt.NDArray[np.uint64], size: int, first: int, index: Int64s) -> None:
    """Entries ``first, first + 1, ...`` of a permutation of ``range(size)`` named by ``keys`` (12,).

    The permutation is computed, not stored: a bijection of the next power of two, 256 or more, made of
    steps that can each be undone (add a key, multiply by an odd key, xor with the upper half), is
    walked until it lands below ``size``, on average fewer than two times where ``size`` is above 128. O(B).
    """
    bits = MIXING_BITS
    while (1 << bits) < size:
        bits += 1
    mask = np.uint64((1 << bits) - 1)
    half = np.uint64((bits + 1) // 2)
    for position in range(index.size):
        value = np.uint64(first + position)
        while True:
            for mixing in range(MIXING_ROUNDS):
                value = (value + keys[2 * mixing]) & mask
                value ^= value >> half
                value = (value * (keys[2 * mixing + 1] | np.uint64(1))) & mask
            value ^= value >> half
            if value < np.uint64(size):
                break
        index[position] = np.int64(value)


@compiled
def weigh(probability: Float64s, num_samples: int, beta: float, weight: Float32s) -> tuple[float, float, float]:
    """Fill ``weight`` (B,) with (1 / (N p)) ** beta; return their sum, sum of squares and largest."""
    total = 0.0
    squares = 0.0
    largest = 0.0
    for draw in range(probability.size):
        value = 1.0 / (num_samples * probability[draw])
        if beta != 1.0:
            value = value**beta
        weight[draw] = value
        value = np.float64(weight[draw])  # what is given out, so that weights of 1 add up to B exactly
        total += value
        squares += value * value
        largest = max(largest, value)
    return total, squares, largest
