"""A process of its own for each mutant, forked from one that has loaded NumPy, numba and pytest; and a tree for it."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numba
import pytest

from tests.mutation.mutants import Mutant
from tests.mutation.trace import COMPILED, Trace, file_of

TREES = ("sampler", "tests/sampler")
MEMORY = 8 * 2**30  # a mutant may ask for any amount
LOOK = 20.0  # seconds after which to look whether a test is waiting
WAITING = 0.05  # of processor time in these: less is none, however busy the machine is
PASSED, FAILED, BROKEN, WAITED = 0, 1, 3, 4


def plant(root: Path, tree: Path) -> None:
    """A copy of the code and its tests to put mutants into. All its files are old, so that a mutant is newer."""
    shutil.rmtree(tree, ignore_errors=True)
    for part in TREES:
        shutil.copytree(root / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "tests" / "__init__.py").touch()
    shutil.copy(root / "pyproject.toml", tree)
    for path in tree.rglob("*"):
        os.utime(path, (1e9, 1e9))
    forked(tree, lambda: run_pytest(["--collect-only", "tests/sampler"], None))  # writes the bytecode


def forked(tree: Path, run: Callable[[], int]) -> int:
    """What ``run`` gives in a process of its own, in ``tree``; minus the signal that ended it."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what a test may have left behind
        return os.waitstatus_to_exitcode(status)
    status = BROKEN
    try:
        os.setpgid(0, 0)
        os.chdir(tree)
        sys.path[:] = [str(tree), *(path for path in sys.path if path != os.path.dirname(tree))]
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run_pytest(asked: list[str], plugin: object | None) -> int:
    """Pytest in this process, quietly, to the first failure; hypothesis neither shrinks nor remembers."""
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutation", derandomize=True, database=None, deadline=None, phases=phases)
    hypothesis.settings.load_profile("mutation")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "--rootdir", "."]
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        return int(pytest.main([*options, *asked], plugins=[plugin] if plugin else []))


class Chosen:
    """A plugin of pytest's: the tests named, in their order.

    One that takes twenty times as long as it did, and five seconds more, ends the process, and so does one that waits.
    """

    def __init__(self, names: list[str], seconds: dict[str, float]) -> None:
        self.places = {name: place for place, name in enumerate(names)}
        self.seconds = seconds

    def pytest_collection_modifyitems(self, items):
        chosen = [item for item in items if item.nodeid in self.places]
        items[:] = sorted(chosen, key=lambda item: self.places[item.nodeid])
        signal.signal(signal.SIGALRM, self._look)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        self.running, self.used = item.nodeid, time.process_time()
        # The default action of this alarm ends the process, also in a compiled loop.
        signal.setitimer(signal.ITIMER_PROF, 5.0 + 20.0 * self.seconds[item.nodeid])
        signal.setitimer(signal.ITIMER_REAL, LOOK, LOOK)
        Path("running").write_text(item.nodeid)
        yield
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _look(self, *_: object) -> None:
        used, self.used = self.used, time.process_time()
        if self.used - used < WAITING:
            os._exit(WAITED)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            os._exit(FAILED)


def run_chosen(mutant: Mutant, names: list[str], seconds: dict[str, float]) -> int:
    """In a forked process: the tests ``names`` of a mutant."""
    sys.dont_write_bytecode = True
    if mutant.file in COMPILED:  # of the machine code there is, what the mutant is not in is kept
        cache = Path("cache").resolve()
        shutil.rmtree(cache, ignore_errors=True)
        shutil.copytree(numba.config.CACHE_DIR, cache)
        if mutant.file == "sampler/lines.py":  # numba looks at a function's own file alone
            for old in cache.rglob("kernels.*"):
                old.unlink()
        numba.config.CACHE_DIR = str(cache)
    status = run_pytest(sorted({file_of(name) for name in names}), Chosen(names, seconds))
    return FAILED if status else PASSED


def attempt(mutant: Mutant, tree: Path, trace: Trace, budget: float) -> dict[str, Any]:
    """Write the mutant, run its tests, put the file back; what came of it."""
    path = tree / mutant.file
    original, stat = path.read_text(), path.stat()
    changed = mutant.source(original)
    assert changed is not None
    start = _processor()
    outcome = "survived"
    path.write_text(changed)
    try:
        for names in trace.tests_of(mutant, budget):
            if names and outcome == "survived":
                (tree / "running").write_text("")
                status = forked(tree, lambda names=names: run_chosen(mutant, names, trace.seconds))
                outcome = {PASSED: "survived", WAITED: "timeout", -signal.SIGPROF: "timeout"}.get(status, "killed")
                killer = (tree / "running").read_text()  # empty where the code could not even be loaded
    finally:
        path.write_text(original)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    before, after = difference(original, changed)
    spent = round(_processor() - start, 2)
    told = {"before": before, "after": after, "outcome": outcome, "seconds": spent}
    return {**vars(mutant), **told, "test": "" if outcome == "survived" else killer}


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def difference(original: str, changed: str) -> tuple[str, str]:
    """The first lines that differ."""
    pairs = zip(original.splitlines(), changed.splitlines(), strict=False)
    before, after = next(((old, new) for old, new in pairs if old != new), ("", ""))
    return before.strip(), after.strip()
