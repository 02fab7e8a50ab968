"""The state of an ``ImportanceSampler``, and of those made of it: the store, the priority's memory, the gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sampler import checks, priorities, stores
from sampler.base import Float32s, Sampler
from sampler.bound import DrawBound
from sampler.evidence import Evidence
from sampler.priorities import Clipped, Priority, Remembering
from sampler.state import Part
from sampler.stores import PriorityStore


class ImportanceState(Sampler):
    """What of an ``ImportanceSampler`` is its state."""

    auto: bool
    _store: PriorityStore
    _priority: Priority
    _made_with: Priority
    _memory: Remembering | None
    _losses: Float32s | None
    _bound: DrawBound | None
    _gate: Evidence | None
    _faded: int
    _cut: bool
    _enough: int

    def _own_state(self) -> dict[str, Any]:
        return {
            "options": self._options(),
            "store": self._store.state_dict(),
            "priority": None if self._memory is None else self._memory.state_dict(),
            "losses": None if self._losses is None else self._losses.copy(),
            "bound": None if self._bound is None else self._bound.state_dict(),
            "faded": self._faded,
            "cut": int(self._cut),
            **({} if self._gate is None else {"gate": self._gate.state_dict()}),
        }

    def _options(self) -> dict[str, Any]:
        """The options without which a state makes no sense."""
        return {
            "store": stores.describe(self._store),
            "priority": priorities.describe(self._priority),
            "max_draws": None if self._bound is None else self._bound.max_draws,
            **({} if self._gate is None else {"gate": self._gate.describe()}),
        }

    def _check_state(self, state: dict[str, Any]) -> None:
        super()._check_state(state)
        theirs, ours = self._options_of(state), self._options()
        for name in ("store", "max_draws"):
            if name in theirs and theirs[name] != ours[name]:
                raise _differs(name, theirs[name], ours[name])
        if theirs.get("gate") != ours.get("gate"):
            raise _differs("gate", theirs.get("gate"), ours.get("gate"))
        if self._losses is not None and state.get("losses", ()) is None:
            raise _differs("keep_losses", False, True)
        if "priority" in state:
            self._priority_of(state)

    def _options_of(self, state: dict[str, Any]) -> dict[str, Any]:
        """The options that ``state`` is of; of one from before they were written down, what its parts tell."""
        told: dict[str, Any] = {}
        store = state.get("store")
        if isinstance(store, dict) and type(self._store) in stores.NAMED.values():
            ranked = "alpha" in store
            told["store"] = f"RankedStore(alpha={store['alpha']})" if ranked else "ProportionalStore"
        if "bound" in state and (state["bound"] is None) != (self._bound is None):
            told["max_draws"] = None if self._bound is not None else "a number"
        if isinstance(state.get("options"), dict):
            told.update(state["options"])
        return told

    def _priority_of(self, state: dict[str, Any]) -> Priority:
        """The priority that ``state`` is of: the one there is, or the one before ``set_priority``."""
        written, remembers = self._options_of(state).get("priority"), state["priority"] is not None
        candidates: list[Priority] = [
            self._priority,
            self._made_with,
            *(priorities.NAMED.values() if self.auto else ()),
        ]
        for priority in candidates:
            alike = priorities.describe(priority) == written
            if alike or (written is None and remembers == (memory_of(priority) is not None)):
                return priority
        kind = written or ("one that remembers losses, as 'clipped' does" if remembers else "one without a memory")
        raise _differs("priority", kind, priorities.describe(self._priority), " or call set_priority with it first,")

    def _joined(self, parts: Sequence[Part], mine: dict[str, Any]) -> dict[str, Any]:
        joined = super()._joined([(start, _released(state)) for start, state in parts], mine)
        joined["bound"] = mine["bound"]
        if getattr(self._priority, "keyed", False) and isinstance(joined.get("options"), dict):
            joined["options"] = {**joined["options"], "priority": priorities.describe(self._priority)}
        share = self._enough / self._size
        passed = all(
            state["passes"] > 0 or state["taken"] >= math.ceil(share * state["num_samples"]) for _, state in parts
        )
        return {**joined, "cut": 1} if passed else {**joined, "passes": 0, "taken": 0, "cut": mine["cut"]}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        faded = checks.whole("faded", state["faded"], least=0, most=self._size - 1)
        cut = bool(checks.whole("cut", state["cut"], least=0, most=1))
        losses = self._losses if self._losses is None else checks.array("losses", state["losses"], self._losses)
        priority = self._priority_of(state)
        memory = memory_of(priority)
        self._check_waiting(priority, state["in_flight"])
        parts: list[tuple[Any, dict[str, Any]]] = [(self._store, state["store"])]
        if self._bound is not None:
            parts.append((self._bound, state["bound"]))
        if memory is not None:
            self._check_memory(memory, state["priority"])
            parts.append((memory, state["priority"]))
        if self._gate is not None:
            parts.append((self._gate, state["gate"]))
        _load_all(parts)
        self._faded, self._cut, self._losses, self._priority, self._memory = faded, cut, losses, priority, memory

    def _check_memory(self, memory: Remembering, state: dict[str, Any]) -> None:
        """Refuse recent losses that ``memory`` cannot take, or every update would: it cuts the others at one."""
        if isinstance(memory, Clipped) and not memory.keyed:
            values = checks.per_sample("values", state["values"], np.size(state["values"]))
            priorities.apply(memory.priority, values, signed=self._store.signed)

    def _check_waiting(self, priority: Priority, in_flight: dict[str, Any] | None) -> None:
        """Refuse a ``priority`` that cannot take the losses that wait under a lag, or the next draw would."""
        if self._ledger is not None and in_flight is not None:
            losses = np.asarray(in_flight["losses"], np.float64)
            finite = np.asarray(in_flight["reported"]) & np.isfinite(losses)
            index = np.asarray(in_flight["index"])[finite]
            priorities.apply(priority, losses[finite], index, signed=self._store.signed)


def _differs(name: str, theirs: Any, ours: Any, mend: str = "") -> ValueError:
    return ValueError(
        f"the state is of a sampler with {name}={theirs}, this one has {name}={ours}; make it with the same,{mend} or "
        "start again"
    )


def _released(state: dict[str, Any]) -> dict[str, Any]:
    """The same with the priorities back in the store that a bound on the draws holds down."""
    if state.get("bound") is None:
        return state
    values = state["store"]["priorities"].copy()
    values[state["bound"]["held"]] = state["bound"]["priorities"]
    return {**state, "store": {**state["store"], "priorities": values}}


def memory_of(priority: Priority) -> Remembering | None:
    """The priority itself where it remembers losses, which are then part of the state."""
    return priority if isinstance(priority, Remembering) else None


def _load_all(parts: list[tuple[Any, dict[str, Any]]]) -> None:
    """Load a state into each part, or into none where one refuses."""
    before = [part.state_dict() for part, _ in parts[:-1]]  # the last can refuse without harm
    for done, (part, state) in enumerate(parts):
        try:
            part.load_state_dict(state)
        except Exception:
            for (loaded, _), old in zip(parts[:done], before, strict=False):
                loaded.load_state_dict(old)
            raise
