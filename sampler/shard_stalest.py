"""The samples of a shard that nobody has looked at for longest, at little cost for each.

    stalest = Stalest()
    index, known = stalest.find(newest, 512)            # by the newest step known of each sample

To find the least of n numbers takes a look at all of them. So one look finds more than is asked for, in order, and
questions are answered from that, until it is used up::

    key       = (step + 1) n + index, by which samples are in order
    look      ── the least k keys: O(n + k log k)
    question  ── the first of these that are as they were: O(count). A key that has risen meanwhile is put in its
                 new place, O(k), or dropped, where that is above all that were found

As a step never falls, a sample that was not found is above all that were, for as long as they last.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sampler.base import Int64s

QUESTIONS, SHARE = 64, 64  # a look finds so many times what is asked for, or this part of n, whichever is more

Steps = npt.NDArray[np.int32]


class Stalest:
    """What one look has found, and what is left of that. Not safe for threads by itself."""

    def __init__(self) -> None:
        self._keys = np.empty(0, np.int64)  # in order
        self._at = 0  # where those begin that are left
        self._limit = -1  # the highest that was found

    def find(self, newest: Steps, count: int) -> tuple[Int64s, Int64s]:
        """The ``count`` samples of the lowest ``newest`` (n,), those of the same by their index, and these numbers.

        (count,) int64 each; at most all n. No number may have become lower since the last question, unless ``forget``
        was called.
        """
        count = min(count, newest.size)
        if not self._are_there(newest, count):
            self._look(newest, max(QUESTIONS * count, newest.size // SHARE))
        known, index = np.divmod(self._keys[self._at : self._at + count], newest.size)
        return index, known - 1

    def forget(self) -> None:
        """Look anew at the next question."""
        self._at = self._keys.size

    def _look(self, newest: Steps, most: int) -> None:
        """Find the ``most`` samples of the lowest keys."""
        most = min(most, newest.size)
        last = np.partition(newest, most - 1)[most - 1]
        below, as_high = np.flatnonzero(newest < last), np.flatnonzero(newest == last)
        self._keys = np.sort(_key(newest, np.concatenate([below, as_high[: most - below.size]])))
        self._at, self._limit = 0, int(self._keys[-1])

    def _are_there(self, newest: Steps, count: int) -> bool:
        """Whether ``count`` are left, of which the first ``count`` are then as they were."""
        while self._keys.size - self._at >= count:
            first = self._keys[self._at : self._at + count]
            now = _key(newest, first % newest.size)
            if (now == first).all():
                return True
            self._put_in_place(np.sort(now[now <= self._limit]), self._at + count)
        return False

    def _put_in_place(self, keys: Int64s, end: int) -> None:
        """Put keys, in order, in place of those before ``end``."""
        rest = self._keys[end:]
        early = int(np.searchsorted(keys, rest[0])) if rest.size else keys.size
        if early < keys.size:
            later = keys[early:]
            rest = np.insert(rest, np.searchsorted(rest, later), later)
            self._keys, end = np.concatenate([keys[:early], rest]), early
        self._at = end - early
        self._keys[self._at : end] = keys[:early]


def _key(newest: Steps, index: Int64s) -> Int64s:
    key: Int64s = (newest[index].astype(np.int64) + 1) * newest.size + index
    return key
