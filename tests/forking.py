"""Programs that begin with TensorFlow loaded, each a process of its own: loading it takes ten seconds, a fork none.

    program = Forked(["train.py", "--epochs", "1"], environment)      # as subprocess.Popen([sys.executable, ...])
    output, errors = program.communicate(timeout=300.0)

One process in the background has loaded TensorFlow, and forks them. That is sound because it has run no operation, and
so has none of TensorFlow's threads; each program makes its own, and ends as any Python does.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Forked:
    """``python ARGUMENTS`` in the root of the project: a file, ``-m`` with a module, or ``-c`` with a program.

    Used as a ``subprocess.Popen`` with pipes for output and errors, in text.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._said = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        files = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in self._said]
        self.returncode: int | None = None
        self.pid = _ask({"arguments": list(arguments), "environment": dict(environment), "files": files})

    def poll(self) -> int | None:
        """The exit status, less than 0 for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"ended": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # else its number may be another's
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(9)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end, and give what it said."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.02)
        said = []
        for file in self._said:
            with file:
                file.seek(0)
                said.append(file.read())
        output, errors = said
        return output, errors


# --- the process that forks -----------------------------------------------------------------------

_asking = threading.Lock()


def _ask(request: Mapping[str, Any]) -> Any:
    with _asking:
        forker = _forker()
        assert forker.stdin is not None
        assert forker.stdout is not None
        print(json.dumps(request), file=forker.stdin, flush=True)
        return json.loads(forker.stdout.readline())


@functools.cache
def _forker() -> subprocess.Popen[str]:
    """Started when it is first needed; it ends with this process."""
    quiet = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    without_threads = {"OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **quiet, **without_threads}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    forker = subprocess.Popen([sys.executable, "-m", __name__], cwd=ROOT, env=environment, text=True, **pipes)
    atexit.register(_end, forker)
    return forker


def _end(forker: subprocess.Popen[str]) -> None:
    with forker:  # closes the pipes, and waits
        forker.kill()


def serve() -> None:
    """Answer a line with a line: the number of a process that was forked, or the status of one that has ended."""
    answers = os.fdopen(os.dup(1), "w")
    threads = Path("/proc/self/task")
    if threads.exists() and len(list(threads.iterdir())) > 1:
        raise RuntimeError("this process has threads, which would be missing in those that it forks")
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                break
        print(json.dumps(answer), file=answers, flush=True)
    else:
        return
    become(**request)


def become(arguments: list[str], environment: Mapping[str, str], files: list[str]) -> None:
    """Run the program, in the process that is its own from here on."""
    from pipeline import worker

    worker._PROCESS = os.getpid()  # which refuses a fork, since it cannot know that no operation was run before
    os.environ.clear()
    os.environ.update(environment)
    for number, path in zip((0, 1, 2), (os.devnull, *files), strict=True):
        file = os.open(path, os.O_RDWR if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), module.__dict__)
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    import keras
    import tensorflow

    import pipeline
    import train

    del keras, tensorflow, pipeline, train
    serve()
