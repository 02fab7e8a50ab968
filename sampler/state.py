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
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import checks
from sampler.ledger import Ledger

STATE_FORMAT = 1

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
                try:
                    state = self._extended(state)
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise _damaged(error) from error
            self._check_state(state)
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

    def _is_smaller(self, state: Any) -> bool:
        """Whether ``state`` is of fewer samples; ``ValueError`` where this sampler is no new one."""
        size = state.get("num_samples") if isinstance(state, dict) else None
        if not isinstance(size, int) or not 0 < size < self._size:
            return False
        if self._step or self._newest_step >= 0:
            raise ValueError("a state of fewer samples is extended in a new sampler, and this one has drawn or learnt")
        return True

    def _extended(self, state: dict[str, Any]) -> dict[str, Any]:
        """The ``state`` of fewer samples as one of all, its pass at its end."""
        before = state["num_samples"]
        known = int(np.count_nonzero(self._newest[before:] >= 0))  # of the new ones, where losses were given
        return {
            **_grown(state, self.state_dict(), before, self._size),
            "num_samples": self._size,
            "taken": self._size,
            "counts": {**state["counts"], "seen": state["counts"]["seen"] + known},
        }

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        pass

    def _new_ledger(self) -> Ledger | None:
        raise NotImplementedError


def _damaged(error: Exception) -> ValueError:
    return ValueError(f"the state is damaged ({type(error).__name__}: {error}); load another, or start again")


def _grown(theirs: Any, mine: Any, before: int, size: int) -> Any:
    """``theirs``, where arrays with a row for each of ``before`` samples have one for each of ``size``: first their
    own, then those of ``mine``.
    """
    if isinstance(theirs, dict) and isinstance(mine, dict):
        return {key: _grown(value, mine.get(key), before, size) for key, value in theirs.items()}
    if not isinstance(theirs, np.ndarray) or not isinstance(mine, np.ndarray):
        return theirs
    of_samples = theirs.shape[:1] == (before,) and mine.shape == (size, *theirs.shape[1:])
    return np.concatenate([theirs, mine[before:].astype(theirs.dtype)]) if of_samples else theirs
