"""States compared deeply, samplers run side by side, and calls that are interrupted."""

from __future__ import annotations

import copy
import os
import sys

import numpy as np

import sampler

PACKAGE = os.path.dirname(sampler.__file__) + os.sep


def same(one, other) -> bool:
    """Whether two states are equal to the bit: dicts, arrays with their dtypes, NaN equal to NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return one == other or (one != one and other != other)


def same_draw(one, other) -> bool:
    return one.step == other.step and all(
        same(getattr(one, name), getattr(other, name)) for name in ("index", "probability", "weight")
    )


class Unchanged:
    """``with Unchanged(sampler): ...`` asserts that the sampler's state is the same after as before."""

    def __init__(self, sampler) -> None:
        self.sampler = sampler

    def __enter__(self) -> None:
        self.before = copy.deepcopy(self.sampler.state_dict())

    def __exit__(self, *_: object) -> None:
        assert same(self.before, self.sampler.state_dict()), "the state has changed"


def interrupted(moment: int, call) -> bool:
    """Interrupt ``call()`` as Ctrl-C does: before one bytecode of the package, the ``moment``-th from 0 on.

    False where the call came to its end before.
    """
    left = moment

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
