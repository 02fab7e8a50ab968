"""One thread of its own for calls that may take long, or for ever; nobody hangs with it.

    worker = Worker("records")
    call = worker.start(fetch, [3, 1, 4])           # the thread does one call after the other
    if call.wait(0.05):                             # seconds
        elements = call.result()                    # what it gave, or the error it raised
    print(worker.where())                           # the lines at which the thread is now

The thread is started by the first call, ends when the worker is dropped, and is a daemon: the interpreter does not wait
for a call that hangs. (The threads of ``concurrent.futures`` are joined at exit.) It gives calls that are about
to end a second to do so, since code in C++ does not take it well to lose the interpreter half-way.
"""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LEAVE = 0.8  # seconds for calls in progress, when the program ends
GRACE = 0.02  # seconds for those who wait, to get from Python back to where they came from
FRAMES = 4  # of a stack that are shown

_PROCESS = os.getpid()
_INSIDE: set[int] = set()  # the threads that are in here
_ENTERED = threading.Event()  # set when a thread first was in here
_LEAVING = threading.Event()  # set when the interpreter is about to end


def refuse_fork() -> None:
    """``RuntimeError`` in a process that was forked after this module was imported."""
    if os.getpid() != _PROCESS:
        raise RuntimeError(
            "this process was forked after TensorFlow was loaded, and TensorFlow does not survive fork: its threads "
            'are gone and calls hang; start processes with multiprocessing.get_context("spawn")'
        )


@contextmanager
def inside() -> Iterator[None]:
    """Where the end of the program waits a little for this thread: Python called by a thread of TensorFlow.

    ``RuntimeError`` when the program is about to end: one that came later would wait for an interpreter that is no
    more, and the end of its iterator for it.
    """
    if _LEAVING.is_set():
        raise RuntimeError("the program is ending")
    thread = threading.get_ident()
    first = thread not in _INSIDE
    _INSIDE.add(thread)
    _ENTERED.set()
    try:
        yield
    finally:
        if first:
            _INSIDE.discard(thread)


@atexit.register
def _leave() -> None:
    """Let in nobody any more, and those who are in out, if that takes no longer than ``LEAVE``."""
    _LEAVING.set()
    end = time.monotonic() + LEAVE
    while _INSIDE and time.monotonic() < end:
        time.sleep(0.005)
    if _ENTERED.is_set():
        time.sleep(GRACE)


class Call:
    """A call that a worker does, has done or will do."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.began = time.monotonic()
        self._function, self._arguments = function, arguments
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def wait(self, seconds: float) -> bool:
        """Whether it is done, now or within ``seconds``; ``RuntimeError`` when the program ends."""
        with inside():
            return self._done.wait(seconds)

    def result(self) -> Any:
        """What a call that is done gave, or the error it raised; to be asked once."""
        # An error knows the frames it passes, and those know the call: the call forgets it, or both would live on for
        # a while, and so would what they hold.
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._value
        finally:
            del error

    def run(self) -> None:
        """Do it."""
        try:
            with inside():
                self._value = self._function(*self._arguments)
        except BaseException as error:  # also SystemExit: the thread goes on, and it is who asked that is told
            self._error = error
        self._done.set()


class Worker:
    """A thread that does calls one after the other, for as many threads as ask it to."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._calls.put, None).atexit = False

    def start(self, function: Callable[..., Any], *arguments: Any) -> Call:
        """Have ``function(*arguments)`` called when all calls before it are done."""
        refuse_fork()  # the thread would not be there
        call = Call(function, arguments)
        self._calls.put(call)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=_serve, args=(self._calls,), name=self._name, daemon=True)
                self._thread.start()
        return call

    def where(self) -> str:
        """The last lines of the stack of its thread."""
        thread = self._thread
        frame = None if thread is None or thread.ident is None else sys._current_frames().get(thread.ident)
        return "" if frame is None else "".join(traceback.format_stack(frame)[-FRAMES:])


def _serve(calls: queue.SimpleQueue[Call | None]) -> None:
    """The thread. It knows the queue alone, and forgets each call, so that it keeps nobody alive."""
    while (call := calls.get()) is not None:
        call.run()
        del call
