"""The compiled loops over one batch: what comes back of it, in which order it goes out, and with which weights.

As in :mod:`sampler.kernels`, arrays go in and come out, and the random numbers are an argument::

    stranger, count_finite, least    what is wrong with a batch
    second_moments                   of its gradient, for a gate
    merge, tally                     one loss for each sample; how often it was drawn
    spaced, permuted                 positions at equal distances; a pass over all samples
    shuffle, weigh                   the order of a batch, and its importance weights
    spaced_rows, finish_rows         the same for several batches together
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sampler.kernels import NATURAL, Float32s, Float64s, Int32s, Int64s, compiled, inlined

UInt8s = npt.NDArray[np.uint8]

FEW = 16
SCALE = 2.0**-32  # of losses while they are added up, so that no sum of them overflows
MIXING_ROUNDS = 6
MIXING_BITS = 8  # at least; fewer mix too little: at N = 8 a quarter of the orders would never come


@compiled
def stranger(index: Int64s, size: int) -> int:
    """The first position where ``index`` (B,) is outside [0, size), or -1."""
    outside = 0
    for position in range(index.size):  # without a way out in the middle, this is done several at a time
        outside |= int(index[position] < 0) | int(index[position] >= size)
    if outside:
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
def least(values: Float64s) -> float:
    """The smallest of ``values`` (B,); NaN where one is, and infinity where there are none."""
    smallest = np.inf
    strange = 0.0
    for value in values:
        smallest = min(smallest, value)
        strange += value - value  # 0, or NaN for NaN and infinity
    return smallest if strange == 0.0 else _least_of_strange(values)


@inlined
def _least_of_strange(values: Float64s) -> float:
    smallest = np.inf
    for value in values:
        if np.isnan(value):
            return np.nan
        smallest = min(smallest, value)
    return smallest


@compiled
def second_moments(score: Float64s, weight: Float64s, by_priority: Float64s) -> tuple[int, float, float, float]:
    """How many scores a of (B,) are finite, and the means of w a², w v a² and w² a² over these, v ``by_priority``."""
    count, uniform, priority, drawn = 0, 0.0, 0.0, 0.0
    for place in range(score.size):
        if np.isfinite(score[place]):
            share = weight[place] * score[place] * score[place]
            count += 1
            uniform += share
            priority += share * by_priority[place]
            drawn += share * weight[place]
    whole = max(count, 1)
    return count, uniform / whole, priority / whole, drawn / whole


@compiled
def merge(
    index: Int64s,
    losses: Float64s,
    steps: Int64s,
    newest: Int32s,
    merged_index: Int64s,
    merged_loss: Float64s,
    merged_step: Int64s,
) -> tuple[int, int]:
    """One loss for each sample: the mean of its finite ones. Returns ``(count, late)``.

    ``steps`` is (B,), or (1,) where all have the same. Losses that are not finite are passed over, and so are those
    whose step is older than the ``newest`` (N,) known of the sample (``late`` counts them). The results, in order of
    first appearance, are the first ``count`` entries of ``merged_index``, ``merged_loss`` and ``merged_step``, (B,)
    each. O(B).

    To find a sample again that came before, no table is needed: where ``newest`` holds its step, -1 or more, the number
    of its entry stands for the time being, as -2 or less. In the end ``newest`` is as it was. A sample whose number
    names no entry, which nothing here writes, is passed over: no memory but the arrays' is touched, whatever they hold.

    The order of the reports makes no difference to a sample's mean, not even in its last bit: a sum of two
    does not depend on their order, and where a sample came more often, its losses are added in ascending order.
    """
    former = np.empty(index.size, np.int32)
    repeats = np.empty(index.size, np.int32)
    stride = 1 if steps.size > 1 else 0
    count = 0
    late = 0
    most = 0
    for report in range(index.size):
        sample = index[report] & NATURAL
        known = newest[sample]
        step = steps[report * stride]
        if not np.isfinite(losses[report]):
            continue
        if known >= -1:
            if step < known:
                late += 1
                continue
            merged_index[count] = sample
            merged_loss[count] = losses[report]
            merged_step[count] = step
            former[count] = known
            repeats[count] = 1
            newest[sample] = -2 - count
            count += 1
        elif -2 - known < count:
            entry = -2 - known
            if step < former[entry]:
                late += 1
                continue
            if repeats[entry] == 1:
                merged_loss[entry] *= SCALE
            repeats[entry] += 1
            most = max(most, repeats[entry])
            merged_loss[entry] += losses[report] * SCALE
            merged_step[entry] = max(merged_step[entry], step)
    if most > 2:
        _add_ascending(index, losses, steps, newest, former, repeats, merged_loss[:count])
    for entry in range(count):
        newest[merged_index[entry] & NATURAL] = former[entry]
        if repeats[entry] > 1:
            merged_loss[entry] = merged_loss[entry] / repeats[entry] / SCALE
    return count, late


@inlined
def _add_ascending(
    index: Int64s,
    losses: Float64s,
    steps: Int64s,
    newest: Int32s,
    former: Int32s,
    repeats: Int32s,
    merged_loss: Float64s,
) -> None:
    """Add up anew, in ascending order, the losses of the entries that came more than twice. O(B log B)."""
    first = np.zeros(merged_loss.size + 1, np.int64)  # where the losses of an entry begin in ``together``
    for entry in range(merged_loss.size):
        first[entry + 1] = first[entry] + (repeats[entry] if repeats[entry] > 2 else 0)
    together = np.empty(first[-1], np.float64)
    filled = first.copy()
    stride = 1 if steps.size > 1 else 0
    for report in range(index.size):
        entry = np.int64(-2) - newest[index[report]]
        if not 0 <= entry < merged_loss.size or repeats[entry] < 3 or filled[entry] == first[entry + 1]:
            continue
        if steps[report * stride] < former[entry] or not np.isfinite(losses[report]):
            continue
        together[filled[entry]] = losses[report]
        filled[entry] += 1
    for entry in range(merged_loss.size):
        if repeats[entry] > 2:
            own = together[first[entry] : first[entry + 1]]
            _sort(own)
            total = 0.0
            for loss in own:
                total += loss * SCALE
            merged_loss[entry] = total


@inlined
def _sort(values: Float64s) -> None:
    """Sort in place; a few values by insertion, which takes a tenth of what the general way does."""
    if values.size > FEW:
        values.sort()
        return
    for place in range(1, values.size):
        value = values[place]
        while place > 0 and values[place - 1] > value:
            values[place] = values[place - 1]
            place -= 1
        values[place] = value


@compiled
def tally(counts: UInt8s, index: Int64s, most: int, reached: Int64s) -> int:
    """Count the draws ``index`` (B,) of each sample in ``counts`` (N,), up to ``most``. O(B).

    The samples that come to ``most`` here are the first entries of ``reached`` (B,); returns how many they are.
    """
    count = 0
    for sample in index:
        if counts[sample] < most:
            counts[sample] += 1
            if counts[sample] == most:
                reached[count] = sample
                count += 1
    return count


@compiled
def spaced(count: int, offset: float) -> Float64s:
    """``count`` positions at equal distances in [0, 1): (t + offset) / count."""
    positions = np.empty(count, np.float64)
    for draw in range(count):
        positions[draw] = (draw + offset) / count
    return positions


@compiled
def spaced_rows(count: int, offsets: Float64s) -> Float64s:
    """``spaced`` of each of the ``offsets`` (m,), as the rows of (m, ``count``)."""
    positions = np.empty((offsets.size, count), np.float64)
    for row in range(offsets.size):
        for draw in range(count):
            positions[row, draw] = (draw + offsets[row]) / count
    return positions


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
def shuffle(key: float, index: Int64s, probability: Float64s) -> None:
    """Permute ``index`` and ``probability`` together, in place (Fisher and Yates), as ``key`` in [0, 1) says. O(B).

    The 53 bits of ``key`` start splitmix64 (Steele, Lea & Flood, 2014, *Fast splittable pseudorandom number
    generators*), which spares a call for B uniforms, longer than the whole shuffle. No place is likelier than another
    by more than B / 2^32.
    """
    state = np.uint64(key * 2.0**53)
    for last in range(index.size - 1, 0, -1):
        state += np.uint64(0x9E3779B97F4A7C15)
        mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        other = np.int64(((mixed >> np.uint64(32)) * np.uint64(last + 1)) >> np.uint64(32)) & NATURAL
        index[last], index[other] = index[other], index[last]
        probability[last], probability[other] = probability[other], probability[last]


@compiled
def weigh(probability: Float64s, num_samples: int, beta: float, weight: Float32s, told: Float64s) -> None:
    """Fill ``weight`` (B,) with (1 / (N p)) ** beta, and ``told`` (4,) with B, their sum, squares' sum and largest."""
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
    told[0], told[1], told[2], told[3] = probability.size, total, squares, largest


@compiled
def finish_rows(
    keys: Float64s,
    found: Int64s,
    likely: Float64s,
    num_samples: int,
    betas: Float64s,
    index: Int64s,
    probability: Float32s,
    weight: Float32s,
    told: Float64s,
) -> None:
    """``shuffle`` each row of the samples ``found`` (m, B) and their probabilities ``likely`` (m, B), and ``weigh`` it.

    Fills ``index``, ``probability`` and ``weight`` (m, B) and ``told`` (m, 4). ``keys`` is (m, 1), or (m, 0) to
    leave the order as it is; ``betas`` is (m,). ``found`` and ``likely`` are spent.
    """
    for row in range(len(found)):
        if keys.shape[1] > 0:
            shuffle(keys[row, 0], found[row], likely[row])
        weigh(likely[row], num_samples, betas[row], weight[row], told[row])
        for draw in range(found.shape[1]):
            index[row, draw] = found[row, draw]
            probability[row, draw] = likely[row, draw]
