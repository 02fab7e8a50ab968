"""Calls to shards that are patient: a shard that is down is asked again, until it answers or the time is over.

    patient = Patient(calls, name="importance", timeout=300.0)
    call = Call(2, "draw", orders, step)
    patient.send(call)                                          # nobody waits
    answer = patient.answer(call, seconds=0.02)                 # None: not yet
    everything = patient.ask_all("priorities", shards=4)

What is asked of a shard is asked of no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from sampler.ray_calls import ShardDown

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # seconds before a shard that did not answer is asked again

logger = logging.getLogger("sampler")


class Calls(Protocol):
    """What carries calls to the shards: :class:`sampler.ray_calls.RayCalls`, and in tests something simpler."""

    def send(self, shard: int, method: str, *arguments: Any) -> Any:
        """Call a method of a shard, without waiting."""
        ...

    def wait(self, refs: Sequence[Any], seconds: float) -> bool:
        """Whether all of these answers are there, after ``seconds`` at most."""
        ...

    def result(self, shard: int, ref: Any) -> Any:
        """An answer that is there; ``ShardDown``, ``ShardLost``, or what the method raised."""
        ...

    def remove(self) -> None:
        """End the shards."""
        ...


class Call:
    """A call to a shard that is asked again where the shard is down."""

    __slots__ = ("again", "arguments", "method", "pause", "ref", "sent", "shard", "since")

    def __init__(self, shard: int, method: str, *arguments: Any) -> None:
        self.shard, self.method, self.arguments = shard, method, arguments
        self.ref: Any = None  # of the answer; None: to be sent, not before ``again``
        self.sent = 0.0  # when, the last time
        self.again = 0.0
        self.pause = FIRST_PAUSE
        self.since: float | None = None  # when it was first waited for


class Patient:
    """Sends calls, and waits for their answers.

    Args:
        calls: what carries them.
        name: of the store, for what is said.
        timeout: seconds that a call waits for a shard that does not answer.

    Safe for threads, of which each has calls of its own.
    """

    def __init__(self, calls: Calls, *, name: str, timeout: float) -> None:
        self.calls, self.name, self.timeout = calls, name, timeout
        self.sent = 0  # calls, those that were sent again counted again
        self.waited = 0.0  # seconds
        self._down: set[int] = set()  # shards of which that was said
        self._counting = threading.Lock()

    def send(self, call: Call) -> None:
        """Send a call, and do not wait."""
        with self._counting:
            self.sent += 1
        call.sent = time.monotonic()
        call.ref = self.calls.send(call.shard, call.method, *call.arguments)

    def answer(self, call: Call, seconds: float) -> Any:
        """The answer to a call, or None where there is none after ``seconds``.

        ``TimeoutError`` where the shard has not answered ``timeout`` seconds after somebody first waited for it, and
        not merely looked, for 0 seconds; ``ShardLost`` where it is dead for good; and what the method raised.
        """
        deadline = time.monotonic() + seconds
        while True:
            if call.ref is None and not self._sent_again(call, deadline):
                return None
            if not self._is_there(call, deadline):
                self._check(call, seconds, "it does not answer")
                return None
            try:
                result = self.calls.result(call.shard, call.ref)
                self._down.discard(call.shard)
                return result
            except ShardDown as error:
                self._check(call, seconds, str(error))
                self._ask_later(call, error)

    def ask_all(self, method: str, *, shards: int) -> list[Any]:
        """The answers of all shards, which work at the same time."""
        return self.answers(Call(shard, method) for shard in range(shards))

    def answers(self, calls: Iterable[Call]) -> list[Any]:
        """The answers to these calls, which are sent together."""
        sent = list(calls)
        for call in sent:
            self.send(call)
        answers = []
        for call in sent:
            answer = None
            while answer is None:
                answer = self.answer(call, 1.0)
            answers.append(answer)
        return answers

    def _is_there(self, call: Call, deadline: float) -> bool:
        start = time.monotonic()
        there = self.calls.wait([call.ref], max(0.0, deadline - start))
        self._wait_over(time.monotonic() - start)
        return there

    def _sent_again(self, call: Call, deadline: float) -> bool:
        """Send a call again when its pause is over; False where that is after ``deadline``."""
        pause = min(call.again, deadline) - time.monotonic()
        if pause > 0.0:
            time.sleep(pause)
            self._wait_over(pause)
        if time.monotonic() < call.again:
            return False
        self.send(call)
        return True

    def _ask_later(self, call: Call, error: ShardDown) -> None:
        if call.shard not in self._down:
            self._down.add(call.shard)
            said = str(error).split("\n", 1)[0]
            logger.warning("shard %d of %r does not answer, and is asked again: %s", call.shard, self.name, said)
        call.ref, call.again = None, time.monotonic() + call.pause
        call.pause = min(2.0 * call.pause, LONGEST_PAUSE)

    def _check(self, call: Call, seconds: float, why: str) -> None:
        if seconds <= 0.0:
            return
        now = time.monotonic()
        call.since = now if call.since is None else call.since
        if now - call.since >= self.timeout:
            call.since = None
            raise TimeoutError(
                f"{call.method!r} waited {self.timeout:g} s for shard {call.shard} of {self.name!r}: {why}. Its "
                "samples are drawn by no other shard, or the estimates would be biased; see that its node is up, or "
                "raise timeout"
            )

    def _wait_over(self, seconds: float) -> None:
        with self._counting:
            self.waited += seconds
