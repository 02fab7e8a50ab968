"""The state of a sampler: all of it as plain things, and back, or not at all.

    state = sampler.state_dict()
    other = ImportanceSampler(...)              # made with the same arguments
    other.load_state_dict(state)                # its draws go on as if nothing had happened

A subclass adds what is its own: ``_own_state`` gives it, ``_load_own_state`` takes it back, ``_check_state`` refuses a
state that is another's before anything is looked at in detail.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import checks
from sampler.ledger import Ledger

STATE_FORMAT = 1
OF_NO_SAMPLE = ("recent", "generator", "keys", "in_flight", "gate", "priority", "ends", "options", "counts")

Part = tuple[int, dict[str, Any]]  # where its first sample stands, and the state

logger = logging.getLogger("sampler")


class Stateful:
    """What of a ``Sampler`` is its state."""

    feedback_lag: int | None
    _lock: threading.RLock
    _changed: threading.Condition
    _size: int
    _step: int
    _taken: int
    _passes: int
    _keys: npt.NDArray[np.uint64]
    _newest: npt.NDArray[np.int32]
    _newest_step: int
    _counts: dict[str, int]
    _nonfinite_updates: int
    _recent: npt.NDArray[np.float64]
    _generator: np.random.Generator
    _ledger: Ledger | None

    def state_dict(self) -> dict[str, Any]:
        """Everything, as a dict of numbers, strings, arrays and dicts of these; copies throughout. O(N).

        Loaded into a sampler made with the same arguments, the draws go on as if nothing had happened; those in flight
        under a lag are handed out again first. After a ``set_priority`` the other sampler needs the same one.
        """
        with self._lock:
            return {
                "format": STATE_FORMAT,
                "sampler": type(self).__name__,
                "num_samples": self._size,
                "step": self._step,
                "taken": self._taken,
                "passes": self._passes,
                "keys": self._keys.copy(),
                "newest": self._newest.copy(),
                "newest_step": self._newest_step,
                "counts": dict(self._counts),
                "nonfinite_updates": self._nonfinite_updates,
                "recent": self._recent.copy(),
                "generator": self._generator.bit_generator.state,
                "in_flight": None if self._ledger is None else self._ledger.state_dict(),
                **self._own_state(),
            }

    def load_state_dict(self, state: dict[str, Any], *, extend: bool = False) -> None:
        """Take back what ``state_dict`` gave.

        Args:
            state: of a sampler made with the same arguments.
            extend: also take the state of fewer samples, for data that have grown at their end: what is known of these
                is kept, and the others are as in this sampler, which must be a new one. The pass under way ends. An
                ``ImportanceSampler`` whose first pass was over gives the new samples the mean priority; else it begins
                anew. Draws in flight are handed out as they were made, of the samples there were.

        Raises ``ValueError`` for the state of another kind of sampler, another number of samples, a newer
        format or an option that differs (``store``, ``priority``, ``max_draws``, ``keep_losses``), and for one that is
        damaged; nothing is changed then.
        """
        with self._lock:
            if extend and self._is_smaller(state):
                state = self._of_parts([(0, state)])
            try:
                self._check_state(state)
            except TypeError as error:  # of what cannot be compared
                raise _damaged(error) from error
            try:
                attributes = self._read_state(state)
                self._load_own_state(state)  # the last thing that can be refused
            except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
                raise _damaged(error) from error
            vars(self).update(attributes)
            self._changed.notify_all()

    def _read_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The attributes that ``state`` describes, each checked; changes nothing."""
        generator = np.random.default_rng()
        generator.bit_generator.state = state["generator"]
        step = checks.whole("step", state["step"], least=0, most=checks.LARGEST_STEP)
        return {
            "_step": step,
            "_taken": checks.whole("taken", state["taken"], least=0, most=self._size),
            "_passes": checks.whole("passes", state["passes"], least=0),
            "_keys": checks.array("keys", state["keys"], self._keys),
            "_newest": checks.array("newest", state["newest"], self._newest, least=-1),
            "_newest_step": checks.whole("newest_step", state["newest_step"], least=-1, most=checks.LARGEST_STEP - 1),
            "_counts": {name: checks.whole(name, state["counts"][name], least=0) for name in self._counts},
            "_nonfinite_updates": checks.whole("nonfinite_updates", state["nonfinite_updates"], least=0),
            "_recent": checks.array("recent", state["recent"], self._recent),
            "_generator": generator,
            "_ledger": self._read_ledger(state["in_flight"], step),
            "_waiting_since": None,
        }

    def _read_ledger(self, in_flight: dict[str, Any] | None, step: int) -> Ledger | None:
        if self.feedback_lag is None:
            if in_flight is not None and len(in_flight["step"]):
                logger.warning(
                    "%d draws in flight are dropped: without a feedback_lag none are kept", len(in_flight["step"])
                )
            return None
        ledger = self._new_ledger()
        if ledger is not None and in_flight is not None:
            checks.indices(in_flight["index"], self._size)
            ledger.load_state_dict(in_flight, next_step=step)
        return ledger

    def _check_state(self, state: dict[str, Any]) -> None:
        if not isinstance(state, dict):
            raise ValueError(f"a state is a dict that state_dict gave, got {type(state).__name__}")
        if state.get("format", 0) > STATE_FORMAT:
            raise ValueError(
                f"the state has format {state['format']}, this version reads up to {STATE_FORMAT}; install a newer "
                "version of tf-importance-sampling"
            )
        if state.get("sampler") != type(self).__name__:
            raise ValueError(f"the state of a {state.get('sampler')} was given to a {type(self).__name__}")
        if state.get("num_samples") != self._size:
            raise ValueError(
                f"the state is of {state.get('num_samples')} samples, the sampler has {self._size}; was the data set "
                "changed? Load it into a sampler of that size, or start again; where samples were added behind the "
                "others, load_state_dict(state, extend=True) keeps what is known of these"
            )

    def load_parts(self, parts: Sequence[tuple[int, dict[str, Any]]]) -> None:
        """Take what is known of these samples from the states of samplers of neighbouring, or fewer, ones.

        Each comes with where its first sample stands in the index of this sampler, which may be below 0. This must be a
        new one. What belongs to no sample (the step, the counts, a gate) is that of the first; the pass under way ends,
        or begins anew where it was the first one. Draws in flight are dropped, unless the only state is one of the
        first samples, as with ``extend``. Raises what ``load_state_dict`` does.
        """
        with self._lock:
            self.load_state_dict(self._of_parts(parts))

    def _is_smaller(self, state: Any) -> bool:
        size = state.get("num_samples") if isinstance(state, dict) else None
        return isinstance(size, int) and 0 < size < self._size

    def _of_parts(self, parts: Sequence[Part]) -> dict[str, Any]:
        """``parts`` as one state; ``ValueError`` where this sampler is no new one."""
        if self._step or self._newest_step >= 0:
            raise ValueError("the states of others are taken by a new sampler, and this one has drawn or learnt")
        try:
            return self._joined(parts, self.state_dict())
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise _damaged(error) from error

    def _joined(self, parts: Sequence[Part], mine: dict[str, Any]) -> dict[str, Any]:
        """``parts`` as one state, its pass at its end; of what they do not tell, ``mine``."""
        start, first = parts[0]
        placed = [(start, state, state["num_samples"]) for start, state in parts]
        joined = {key: first[key] if key in OF_NO_SAMPLE else _rows(key, placed, mine, self._size) for key in first}
        joined.update(num_samples=self._size, taken=self._size)
        joined["counts"] = {**first["counts"], "seen": int(np.count_nonzero(joined["newest"] >= 0))}
        if len(parts) > 1 or start != 0 or first["num_samples"] > self._size:
            joined.update({key: mine[key] for key in ("generator", "keys", "in_flight")})
        return joined

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        pass

    def _new_ledger(self) -> Ledger | None:
        raise NotImplementedError


def _damaged(error: Exception) -> ValueError:
    return ValueError(f"the state is damaged ({type(error).__name__}: {error}); load another, or start again")


def _rows(key: str, parts: list[tuple[int, dict[str, Any], int]], mine: dict[str, Any], size: int) -> Any:
    """What the parts hold under ``key``: of an array with a row for each sample the rows in their places, those that
    none has from ``mine``; of a dict each of its entries; else what the first has.
    """
    theirs, own = [(start, state[key], count) for start, state, count in parts], mine.get(key)
    first = theirs[0][1]
    if isinstance(first, dict) and isinstance(own, dict):
        return {entry: _rows(entry, theirs, own, size) for entry in first}
    if not isinstance(own, np.ndarray) or own.shape[:1] != (size,):
        return first
    if not all(np.shape(array) == (count, *own.shape[1:]) for _, array, count in theirs):
        return first
    rows = own.astype(first.dtype)
    for start, array, count in theirs:
        begin, end = max(0, start), min(size, start + count)
        rows[begin:end] = array[begin - start : end - start]
    return rows
