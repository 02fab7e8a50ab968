"""The state of a ``ShardedSampler``: what each shard has, and what of it is the client's own.

state = sampler.state_dict()                        # numbers, strings, arrays and dicts of these
sampler.load_state_dict(state)                      # in all shards, or in none
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np

from sampler import checks
from sampler.base import Float64s
from sampler.shard_calls import Call, Patient
from sampler.shard_options import Made
from sampler.shard_plan import Group, Pool, ShardPlan
from sampler.shard_server import BlockSampler, Status

FORMAT = 1  # of a state


class ShardedState:
    """What of a ``ShardedSampler`` is its state."""

    shards: int
    _size: int
    _mades: list[Made]
    _patient: Patient
    _plan: ShardPlan
    _pool: Pool
    _groups: deque[Group]
    _step: int
    _stamp: int
    _drawn: int
    _recent: Float64s
    _drawing: threading.RLock
    _updating: threading.RLock

    def state_dict(self) -> dict[str, Any]:
        """Everything: what each shard has, and what is drawn ahead. O(N), a call a shard."""
        with self._drawing, self._updating:
            self.flush()
            self._collect()
            states = self._patient.ask_all("state_dict", shards=self.shards)
            index, probability = self._pool.all()
            return {
                "format": FORMAT,
                "sampler": type(self).__name__,
                "num_samples": self._size,
                "shards": {str(shard): state for shard, state in enumerate(states)},
                "step": self._step,
                "stamp": self._stamp,
                "drawn": self._drawn,
                "done": self._plan.done,
                "keys": self._plan.keys.copy(),
                "generator": self._plan.generator.bit_generator.state,
                "recent": self._recent.copy(),
                "index": index,
                "probability": probability,
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave, in all shards. What is on its way is left.

        Raises ``ValueError``, and changes nothing, for the state of another sampler, of other samples or of another
        number of shards, and for one that is damaged.
        """
        with self._drawing, self._updating:
            own = self._checked(state)
            self.flush()
            self._collect()
            calls = [Call(shard, "load_state_dict", state["shards"][str(shard)]) for shard in range(self.shards)]
            for call, status in zip(calls, self._patient.answers(calls), strict=True):
                self._tell(call, status)
            self._pool = own["pool"]
            self._step, self._stamp, self._drawn = own["step"], own["stamp"], own["drawn"]
            self._recent = own["recent"]
            self._plan.done, self._plan.keys, self._plan.generator = own["done"], own["keys"], own["generator"]

    def _checked(self, state: Any) -> dict[str, Any]:
        """What of a state is this client's own; that of the shards is loaded into samplers that are thrown away."""
        if not isinstance(state, dict) or state.get("sampler") != type(self).__name__:
            raise ValueError(f"the state is not that of a {type(self).__name__}")
        shards = state.get("shards")
        if not isinstance(shards, dict):
            raise ValueError(
                f"the state is damaged (shards is {type(shards).__name__}, not dict); load another, or start again"
            )
        theirs = state.get("num_samples"), len(shards)
        if theirs != (self._size, self.shards):
            raise ValueError(
                f"the state is of (num_samples, shards) {theirs}, the sampler has {(self._size, self.shards)}; make it "
                "with these, or start again"
            )
        try:
            if checks.whole("format", state["format"], least=1) > FORMAT:
                raise ValueError(f"it has format {state['format']}, this version reads {FORMAT}")
            for shard, made in enumerate(self._mades):
                BlockSampler(made).load_state_dict(state["shards"][str(shard)])
            generator, pool = np.random.default_rng(), Pool()
            generator.bit_generator.state = state["generator"]
            index = checks.indices(state["index"], self._size)
            probability = checks.drawn_with(checks.array("probability", state["probability"], np.empty(index.size)))
            if index.size:
                pool.put(index, probability)
            return {
                "pool": pool,
                "step": checks.whole("step", state["step"], least=0, most=checks.LARGEST_STEP),
                "stamp": checks.whole("stamp", state["stamp"], least=-1, most=checks.LARGEST_STEP),
                "drawn": checks.whole("drawn", state["drawn"], least=0),
                "done": checks.whole("done", state["done"], least=0),
                "keys": checks.array("keys", state["keys"], self._plan.keys),
                "generator": generator,
                "recent": checks.array("recent", state["recent"], self._recent),
            }
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise ValueError(f"the state is damaged ({error}); load another, or start again") from error

    def flush(self) -> None:  # noqa: D102
        raise NotImplementedError

    def _tell(self, call: Call, status: Status) -> None:
        raise NotImplementedError

    def _collect(self) -> None:
        raise NotImplementedError
