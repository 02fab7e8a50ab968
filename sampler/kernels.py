"""The compiled loops: arrays in, arrays out, the random numbers an argument.

Everything here works on a **wide sum tree**: the priorities are the leaves, and every node above
holds the sum of its children. A node is one line of the processor's cache: sixteen leaves, or eight sums. With
four leaves and two sums a line instead, and eleven samples, the tree looks like this (``sums`` is one
array, level after level)::

    sums, level 2 (root)                    35
    sums, level 1                27                  8
    sums, level 0          14         13         8         0
    leaves               3 1 4 6 |  2 0 9 2 |  5 3 0 0 |
    sample               0 1 2 3    4 5 6 7    8 9 10

To *find* the sample under the mass 20, walk down: at the root's children, 20 < 27, so the first; there
14 ≤ 20 < 14 + 13, so the second, with 20 - 14 = 6 left; there, 2 + 0 ≤ 6 < 2 + 0 + 9, so sample 6. To *write*
sample 6, change its leaf and add up its line again, then the same one level higher. A parent is always
recomputed from its children, never adjusted by a difference, so rounding cannot pile up.

Leaves are float32 (four bytes a sample); sums are float64. A constant ``floor`` is added to every sample's
priority while searching: the uniform part of the sampling distribution belongs to the tree without being
stored in it. A node over ``c`` samples weighs ``sum + floor * c``.

A whole batch is done at a time, level by level, so that the processor can fetch the lines
of many samples at once instead of waiting for one after the other. What is done inside a line is in
:mod:`sampler.lines`.

All functions are compiled by numba on first use and cached on disk.

    >>> leaves, sums = allocate(11)
    >>> leaves[:11] = [3, 1, 4, 6, 2, 0, 9, 2, 5, 3, 0]
    >>> rebuild(leaves, sums)
    >>> float(sums[-1])
    35.0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from sampler.lines import LEAF_BITS, LEAVES, LINE, SUM_BITS, SUMS, line_search, line_sum

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Compiled = TypeVar("Compiled", bound=Callable[..., Any])

NEAR = 2**17  # so many leaves stay in a near cache, and nothing need be fetched ahead
SMALLEST = float(np.finfo(np.float32).tiny)  # the smallest normal float32
LARGEST = float(np.finfo(np.float32).max)
CERTAIN = 1.0 - 1e-12  # from this π on a sample is taken for certain
NATURAL = 2**62 - 1  # ``i & NATURAL`` is i: it shows the compiler that i ≥ 0, which spares it the wrapping of i < 0


def compiled(function: Compiled) -> Compiled:
    """Compile with numba on first use; keep the machine code on disk."""
    return cast(Compiled, numba.njit(cache=True)(function))


def released(function: Compiled) -> Compiled:
    """The same for a pass over all N samples: other threads may go on meanwhile.

    What is done for a batch keeps the interpreter's lock. To give it away and take it back costs .1 µs a call, and
    where another thread computes in Python it may take CPython's switch interval, 5 ms, to come back.
    """
    return cast(Compiled, numba.njit(cache=True, nogil=True)(function))


def inlined(function: Compiled) -> Compiled:
    """A part of a compiled loop, put into it: left to itself the compiler may make a call of it."""
    return cast(Compiled, numba.njit(forceinline=True)(function))


# --- the tree ---------------------------------------------------------------------------------


def allocate(size: int) -> tuple[Float32s, Float64s]:
    """An empty tree for ``size`` samples: ``(leaves, sums)``.

    ``leaves`` is float32, ``size`` rounded up to whole lines; ``sums`` is what ``allocate_sums`` gives for these lines.
    About 4.57 bytes a sample.
    """
    lines = -(-size // LEAVES)
    return _zeros(lines * LEAVES, np.float32), allocate_sums(lines)


def allocate_sums(nodes: int) -> Float64s:
    """The levels over ``nodes`` numbers, which are the lowest of them: float64, all in one array, the root last.

    Each level is rounded up to whole lines. About 9.14 bytes a node.
    """
    length = 1
    while nodes > 1:
        length += -(-nodes // SUMS) * SUMS
        nodes = -(-nodes // SUMS)
    return _zeros(length, np.float64)


def _zeros(count: int, dtype: type) -> npt.NDArray[Any]:
    """Zeros that begin with a line. Where they are many NumPy asks for huge pages, which spares page walks."""
    itemsize = np.dtype(dtype).itemsize
    raw: npt.NDArray[Any] = np.zeros(count + LINE // itemsize, dtype)
    skip = (-raw.ctypes.data % LINE) // itemsize
    return raw[skip : skip + count]


@inlined
def _whole_lines(nodes: int) -> int:
    padded: int = -(-nodes // SUMS) * SUMS
    return padded


@released
def rebuild(leaves: Float32s, sums: Float64s) -> None:
    """Recompute every sum from the leaves. O(N), one pass of memory."""
    nodes = leaves.size // LEAVES
    for node in range(nodes):
        sums[node] = line_sum(leaves, node * LEAVES)
    below = 0  # where the level below begins
    while nodes > 1:
        start = below + _whole_lines(nodes)
        nodes = -(-nodes // SUMS)
        for node in range(nodes):
            sums[start + node] = line_sum(sums, below + node * SUMS)
        below = start


@compiled
def refresh(leaves: Float32s, sums: Float64s, index: Int64s) -> None:
    """Recompute the sums above the leaves ``index`` (B,). O(B log N).

    A level with no more nodes than B is recomputed whole, in one pass; of the wider ones below it, the nodes touched.
    """
    nodes = leaves.size // LEAVES
    if nodes <= index.size:
        rebuild(leaves, sums)
        return
    for sample in index:
        node = (sample & NATURAL) >> LEAF_BITS
        sums[node] = line_sum(leaves, node * LEAVES)
    _refresh_above(sums, nodes, LEAF_BITS, index)


@compiled
def put(sums: Float64s, size: int, index: Int64s, numbers: Float64s) -> None:
    """Write ``numbers`` (B,) to the places ``index`` (B,) of a tree of ``size`` sums alone. O(B log N)."""
    for position in range(index.size):
        sums[index[position] & NATURAL] = numbers[position]
    _refresh_above(sums, size, 0, index)


@inlined
def _refresh_above(sums: Float64s, nodes: int, bits: int, index: Int64s) -> None:
    """Recompute the sums above the lowest level, which has ``nodes`` nodes of 2**bits samples each."""
    below = 0
    while nodes > 1:
        start = (below + _whole_lines(nodes)) & NATURAL
        nodes = -(-nodes // SUMS)
        bits += SUM_BITS
        if nodes <= index.size:
            for node in range(nodes):
                sums[start + node] = line_sum(sums, below + node * SUMS)
        else:
            for sample in index:
                node = (sample & NATURAL) >> bits
                sums[start + node] = line_sum(sums, below + node * SUMS)
        below = start


@compiled
def find(
    leaves: Float32s,
    sums: Float64s,
    size: int,
    floor: float,
    total: float,
    positions: Float64s,
    index: Int64s,
) -> float:
    """The sample under each position of the cumulative mass, and its share of the mass. O(B log N).

    ``positions`` (B,) are shares of ``total`` in [0, 1); ascending ones are found faster. Fills ``index`` (B,) with the
    samples, and puts in the place of each position the share of its sample, (priority + floor) / total. With
    ``total`` = 1 both are masses. The whole mass is ``sums[-1] + floor * size``. A sample of mass zero is never
    found, however the sums were rounded.

    The upper levels, those with at least two positions for each node, are not searched: the positions are laid
    beside the nodes of the lowest of them in one pass. Where the tree is larger than the near caches, one number of
    each line is read in a loop of its own before a level is searched. These reads do not wait for each other, so the
    memory delivers them together, and the search finds them in the cache. Their sum is returned so that the compiler
    keeps them; it means nothing.
    """
    start, nodes, bits = 0, leaves.size // LEAVES, LEAF_BITS  # 2**bits samples are below a node of the level
    while nodes > max(positions.size // 2, 1):
        start += _whole_lines(nodes)
        nodes = -(-nodes // SUMS)
        bits += SUM_BITS
    _walk(sums, start & NATURAL, nodes, floor * (1 << bits), total, positions, index)
    touched, far = 0.0, leaves.size > NEAR
    while bits > LEAF_BITS:
        bits -= SUM_BITS
        nodes = ((size - 1) >> bits) + 1
        start = (start - _whole_lines(nodes)) & NATURAL
        if far:
            touched += _touch(sums, start, SUMS, index)
        for draw in range(positions.size):
            node = (index[draw] & NATURAL) * SUMS
            child, left = line_search(sums, start + node, floor * (1 << bits), positions[draw])
            index[draw], positions[draw] = node + child, left
            if node + child >= nodes:  # rounding can carry a position past the last node
                index[draw], positions[draw] = nodes - 1, np.inf
    if far:
        touched += _touch(leaves, 0, LEAVES, index)
    for draw in range(positions.size):
        line = (index[draw] & NATURAL) * LEAVES
        child, _ = line_search(leaves, line, floor, positions[draw])
        sample = min(line + child, size - 1)
        while leaves[sample] + floor <= 0.0 and sample > 0:  # and past the last sample with any mass
            sample -= 1
        index[draw] = sample
        positions[draw] = (leaves[sample] + floor) / total
    return touched


@compiled
def find_rows(
    leaves: Float32s,
    sums: Float64s,
    size: int,
    floor: float,
    total: float,
    positions: Float64s,
    index: Int64s,
) -> float:
    """As ``find``, for ``positions`` and ``index`` (m, B): one search for each row."""
    touched = 0.0
    for row in range(len(positions)):
        touched += find(leaves, sums, size, floor, total, positions[row], index[row])
    return touched


@inlined
def _touch(values: npt.NDArray[Any], start: int, width: int, index: Int64s) -> float:
    touched = 0.0
    for node in index:
        touched += values[start + (node & NATURAL) * width]
    return touched


@inlined
def _walk(
    sums: Float64s, start: int, nodes: int, floor: float, total: float, positions: Float64s, index: Int64s
) -> None:
    """Lay the positions beside the nodes of one level: ``index`` becomes the node, the position the mass left there.

    Ascending positions need one pass over both; one that goes back begins again at the first node.
    """
    node, before, after = 0, 0.0, sums[start] + floor
    for draw in range(positions.size):
        position = positions[draw] * total
        if position < before:
            node, before, after = 0, 0.0, sums[start] + floor
        while position >= after and node < nodes - 1:
            node += 1
            before = after
            after += sums[start + (node & NATURAL)] + floor
        index[draw] = node
        positions[draw] = position - before


@compiled
def mass_before(leaves: Float32s, sums: Float64s, floor: float, index: Int64s, before: Float64s) -> None:
    """Fill ``before`` (B,) with the cumulative mass in front of each sample of ``index`` (B,). O(B log N)."""
    for position, sample in enumerate(index):
        node = sample // LEAVES
        total = 0.0
        for leaf in range(node * LEAVES, sample):
            total += leaves[leaf]
        start, nodes = 0, leaves.size // LEAVES
        while nodes > 1:
            parent = node // SUMS
            for sibling in range(parent * SUMS, node):
                total += sums[start + sibling]
            start += _whole_lines(nodes)
            node, nodes = parent, -(-nodes // SUMS)
        before[position] = total + floor * sample


@compiled
def heavy(
    leaves: Float32s, sums: Float64s, size: int, floor: float, threshold: float, nodes: Int64s, entered: Int64s
) -> Int64s:
    """The samples of mass ``threshold`` or more, ascending.

    A node lighter than the threshold has no such sample below it and is not entered, so the cost is
    O((total / threshold) log N), whatever N is. ``nodes`` and ``entered`` are room to work in, total / threshold
    entries each, at least 1; the result is a part of one of them. What they have no room for is left out.
    """
    start, bits = sums.size - 1, LEAF_BITS
    while size > 1 << bits:
        bits += SUM_BITS
    if sums[start] + floor * size < threshold:
        return nodes[:0]
    nodes[0] = 0
    last = 1
    while bits > 0:
        fan = SUMS if bits > LEAF_BITS else LEAVES
        bits -= SUM_BITS if bits > LEAF_BITS else LEAF_BITS
        start -= _whole_lines(((size - 1) >> bits) + 1)
        count = 0
        for node in nodes[:last]:
            for child in range(node * fan, (node + 1) * fan):
                samples = max(min(size - (child << bits), 1 << bits), 0)
                value = sums[start + child] if bits > 0 else np.float64(leaves[child])
                if samples > 0 and value + floor * samples >= threshold and count < entered.size:
                    entered[count] = child
                    count += 1
        nodes, entered, last = entered, nodes, count
    return nodes[:last]


@compiled
def find_distinct(
    leaves: Float32s, sums: Float64s, size: int, floor: float, offset: float, index: Int64s, inclusion: Float64s
) -> int:
    """Fill ``index`` (B,) with distinct samples, ascending, and ``inclusion`` (B,) with their π = min(1, c mass).

    Returns B, or how many samples have any mass where they are fewer. The certain ones, π = 1, leave the tree, the rest
    shares the places that remain, and so more may become certain. Then the rest is searched at equal distances from
    ``offset`` in [0, 1) on. O(B log N).

    In the end the tree is as it was. It is written here, not by the caller, because no signal to the interpreter can
    stop a compiled loop half-way; and all memory is asked for before the first write, so that no lack of it can.
    """
    count = index.size
    certain, held, before = np.empty(count, np.int64), np.empty(count, np.float32), np.empty(count, np.float64)
    rest, spare = np.empty(count + 1, np.int64), np.empty(count + 1, np.int64)
    taken, mass = 0, 0.0
    while taken < count:
        mass = sums[-1] + floor * (size - taken)
        if mass <= 0.0:
            break
        found = heavy(leaves, sums, size, floor, mass / (count - taken) * CERTAIN, rest, spare)
        new = _without(found, certain[:taken], count - taken)
        if new == 0:
            break
        _take(leaves, found[:new], certain, held, taken)
        refresh(leaves, sums, found[:new])
        taken += new
    places = count - taken
    if places > 0 and mass > 0.0:
        mass_before(leaves, sums, floor, certain[:taken], before)
        gap = 0
        for draw in range(places):
            position = (draw + offset) * (mass / places)
            # A certain sample is out of the tree, but its floor still lies there as a gap to be jumped over.
            while gap < taken and before[gap] - floor * gap <= position:
                gap += 1
            inclusion[draw] = position + floor * gap
        find(leaves, sums, size, floor, 1.0, inclusion[:places], rest[:places])
        _part(leaves, size, floor, certain[:taken], rest[:places])
    first = 0  # of the certain ones that are left
    for place in range(count if places == 0 or mass > 0.0 else 0):
        draw = place - first
        if first < taken and (draw == places or certain[first] < rest[draw]):
            index[place], inclusion[place] = certain[first], 1.0
            first += 1
        else:
            index[place] = rest[draw]
            inclusion[place] = min((leaves[rest[draw]] + floor) / mass * places, 1.0)
    for place in range(taken):
        leaves[certain[place]] = held[place]
    refresh(leaves, sums, certain[:taken])
    return count if places == 0 or mass > 0.0 else taken


@inlined
def _without(found: Int64s, certain: Int64s, most: int) -> int:
    """Move those of ``found`` that are not ``certain`` to its front, ``most`` of them, and count them; both ascend."""
    kept, place = 0, 0
    for sample in found:
        while place < certain.size and certain[place] < sample:
            place += 1
        if kept < most and (place == certain.size or certain[place] > sample):
            found[kept] = sample
            kept += 1
    return kept


@inlined
def _take(leaves: Float32s, found: Int64s, certain: Int64s, held: Float32s, taken: int) -> None:
    """Take ``found`` out of the leaves and into the first ``taken`` of ``certain`` and ``held``, which ascend."""
    old, new = taken - 1, found.size - 1
    for place in range(taken + found.size - 1, -1, -1):  # from the end, where there is room
        if new < 0 or (old >= 0 and certain[old] > found[new]):
            certain[place], held[place] = certain[old], held[old]
            old -= 1
        else:
            certain[place], held[place] = found[new], leaves[found[new]]
            leaves[found[new]] = 0.0
            new -= 1


@inlined
def _part(leaves: Float32s, size: int, floor: float, certain: Int64s, chosen: Int64s) -> None:
    """Move what rounding put onto a sample chosen before, or onto a certain one, on to the next that is free.

    ``chosen`` (B,) and ``certain`` ascend; at least B samples outside ``certain`` have a mass.
    """
    last, gap = -1, 0
    for draw in range(chosen.size):
        last = max(chosen[draw], last + 1)
        while gap < certain.size and certain[gap] < last:
            gap += 1
        while last < size and ((gap < certain.size and certain[gap] == last) or leaves[last] + floor <= 0.0):
            gap += 1 if gap < certain.size and certain[gap] == last else 0
            last += 1
        chosen[draw] = last
    last, gap = size, certain.size - 1
    for draw in range(chosen.size - 1, -1, -1):  # and what that carried past the end back again
        if chosen[draw] < last:
            break
        last -= 1
        while gap >= 0 and certain[gap] > last:
            gap -= 1
        while last > 0 and ((gap >= 0 and certain[gap] == last) or leaves[last] + floor <= 0.0):
            gap -= 1 if gap >= 0 and certain[gap] == last else 0
            last -= 1
        chosen[draw] = last


@released
def shares(leaves: Float32s, floor: float, total: float, share: Float64s) -> None:
    """Fill ``share`` (N,) with (priority + floor) / total. O(N), one pass of memory."""
    for sample in range(share.size):
        share[sample] = (leaves[sample] + floor) / total


@released
def fill(leaves: Float32s, priorities: npt.NDArray[Any]) -> None:
    """Write ``priorities`` (N,) into the leaves; the sums are left as they were: ``rebuild`` them. O(N)."""
    for sample in range(priorities.size):
        leaves[sample] = _clamped(np.float64(priorities[sample]))


# --- the leaves ---------------------------------------------------------------------------------


@compiled
def record(
    leaves: Float32s,
    sums: Float64s,
    newest: Int32s,
    index: Int64s,
    steps: Int64s,
    priorities: Float64s,
    smoothing: float,
) -> int:
    """Write the ``priorities`` (B,) and ``steps`` (B,) of distinct samples. Returns how many were new. O(B log N).

    ``smoothing`` is the share kept of a sample's old priority; a sample's first counts whole.
    """
    new = 0
    for report in range(index.size):
        sample = index[report] & NATURAL
        value = priorities[report]
        if newest[sample] < 0:
            new += 1
        else:
            value = smoothing * leaves[sample] + (1.0 - smoothing) * value
        leaves[sample] = _clamped(value)
        newest[sample] = steps[report]
    refresh(leaves, sums, index)
    return new


@compiled
def write(leaves: Float32s, sums: Float64s, index: Int64s, priorities: Float64s) -> None:
    """Write ``priorities`` (B,) of the samples ``index`` (B,); of a sample given twice the last counts. O(B log N)."""
    for position in range(index.size):
        leaves[index[position] & NATURAL] = _clamped(priorities[position])
    refresh(leaves, sums, index)


@inlined
def _clamped(priority: float) -> float:
    """A positive priority inside float32's normal range; zero stays zero."""
    return min(max(priority, SMALLEST), LARGEST) if priority > 0.0 else 0.0


@compiled
def fade(
    leaves: Float32s, sums: Float64s, newest: Int32s, index: Int64s, before: int, share: float, mean: float
) -> None:
    """Move a ``share`` of the way to ``mean`` those of the samples ``index`` (B,) not heard of since step ``before``.

    O(B log N).
    """
    for sample in index:
        if newest[sample] < before:
            leaves[sample] = _clamped(leaves[sample] + share * (mean - leaves[sample]))
    refresh(leaves, sums, index)
