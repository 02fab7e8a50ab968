"""Which tests come to which line of `sampler`, and how long each takes: learnt once, by running all of them.

What is inside a compiled loop cannot be traced. There it is functions: a test may come to one if it executes a line
that names it, or one that calls it, or if its file names it.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import time
from collections.abc import Iterable
from pathlib import Path

import coverage
import pytest

from tests.mutation.mutants import Mutant

COMPILED = ("sampler/kernels.py", "sampler/batches.py", "sampler/lines.py")
# Which test files are a module's own, beside those named like it: the first to be asked.
OWN = {
    "base": ("contract", "lag", "samplers", "ages"),
    "batches": ("rows", "draws"),
    "checks": ("samplers_options", "stores"),
    "evidence": ("gate", "scores"),
    "importance": ("samplers", "first_pass", "losses_kept", "auto", "gate_sampling", "ages", "bound", "rows", "scores"),
    "importance_state": ("samplers_state", "losses_kept", "resume", "auto"),
    "kernels": ("stores", "draws", "bound", "rows"),
    "ledger": ("lag", "gate_sampling"),
    "lines": ("kernels",),
    "passes": ("first_pass", "pruning", "selective"),
    "state": ("samplers_state", "resume"),
}
SLOW = ("test_scale.py",)  # tens of millions of samples: of use for the compiled loops alone


class Tracer:
    """A plugin of pytest's: each test's seconds, and the lines of `sampler` that it executes."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.seconds: dict[str, float] = {}
        self.coverage = coverage.Coverage(data_file=None, source=[str(tree / "sampler")], config_file=False)
        self.coverage.start()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        self.coverage.switch_context(item.nodeid)
        start = time.process_time()
        yield
        self.seconds[item.nodeid] = time.process_time() - start

    def write(self, folder: Path, files: Iterable[str]) -> None:
        """What was learnt of each test file, as a file of its own."""
        self.coverage.stop()
        data = self.coverage.get_data()
        learnt = {file: {"seconds": {}, "lines": {}} for file in files}
        for test, seconds in self.seconds.items():
            learnt[file_of(test)]["seconds"][test] = round(seconds, 4)
        for source in data.measured_files():
            name = str(Path(source).relative_to(self.tree))
            for line, tests in data.contexts_by_lineno(source).items():
                for test in filter(None, tests):
                    learnt[file_of(test)]["lines"].setdefault(test, {}).setdefault(name, []).append(line)
        folder.mkdir(exist_ok=True)
        for file, found in learnt.items():
            trace_of(folder, self.tree, file).write_text(json.dumps(found))


def trace_of(folder: Path, root: Path, file: str) -> Path:
    """Where the trace of a test file is kept, as long as its text is the same."""
    return folder / f"{Path(file).stem}-{hashlib.sha256((root / file).read_bytes()).hexdigest()[:12]}.json"


def file_of(test: str) -> str:
    return test.split("::")[0]


class Trace:
    """What was learnt."""

    def __init__(self, root: Path, folder: Path, files: Iterable[str]) -> None:
        self.seconds: dict[str, float] = {}
        self._lines: dict[str, dict[int, set[str]]] = {}
        for file in files:
            learnt = json.loads(trace_of(folder, root, file).read_text())
            self.seconds.update(learnt["seconds"])
            for test, sources in learnt["lines"].items():
                for source, lines in sources.items():
                    executed = self._lines.setdefault(source, {})
                    for line in lines:
                        executed.setdefault(line, set()).add(test)
        sources = [str(path.relative_to(root)) for path in (root / "sampler").rglob("*.py")]
        self._trees = {source: ast.parse((root / source).read_text()) for source in sources}
        self._statements = {source: statements(tree) for source, tree in self._trees.items()}
        self._callers = self._find_callers(root)
        self._firsts: dict[str, str] = {}  # the quickest case of each test
        for test in sorted(self.seconds, key=self.seconds.__getitem__):
            self._firsts.setdefault(test.split("[")[0], test)

    def tests_of(self, mutant: Mutant, budget: float) -> tuple[list[str], list[str]]:
        """The tests that may see the mutant, in the order to ask them in: of the files of its own, and all others.

        So many of each as took ``budget`` seconds together when they were traced.
        """
        if mutant.file in COMPILED:
            reached = self._callers.get(self._function(mutant), set(self.seconds))
        else:
            reached = self._reached(mutant.file, mutant.line)
            if not reached:  # run on import
                reached = set().union(*self._lines.get(mutant.file, {}).values())
            reached = {test for test in reached if not _is_slow(test)}
        stem = Path(mutant.file).stem
        names = tuple(f"test_{name}" for name in (stem, stem.rstrip("s"), *OWN.get(stem, ())))
        own = {test for test in reached if Path(file_of(test)).name.startswith(names)}
        return (
            self._cut(sorted(own, key=self.seconds.__getitem__), budget),
            self._cut(sorted(reached - own, key=lambda test: (not self._is_first(test), self.seconds[test])), budget),
        )

    def _cut(self, tests: list[str], budget: float) -> list[str]:
        ends = itertools.accumulate(self.seconds[test] for test in tests)
        return [test for test, end in zip(tests, ends, strict=True) if end <= budget]

    def _is_first(self, test: str) -> bool:
        return self._firsts[test.split("[")[0]] == test

    def _reached(self, file: str, line: int) -> set[str]:
        """The tests that execute the statement that the line is of."""
        executed = self._lines.get(file, {})
        span = self._statements[file].get(line, range(line, line + 1))
        return set().union(*(executed.get(inside, set()) for inside in span))

    def _function(self, mutant: Mutant) -> str | None:
        for node in self._trees[mutant.file].body:
            if isinstance(node, ast.FunctionDef) and node.lineno <= mutant.line <= node.end_lineno:
                return node.name
        return None

    def _find_callers(self, root: Path) -> dict[str | None, set[str]]:
        """To each function of the compiled modules, the tests that may come to it."""
        bodies = {
            node.name: node for file in COMPILED for node in self._trees[file].body if isinstance(node, ast.FunctionDef)
        }
        callers: dict[str | None, set[str]] = {name: set() for name in bodies}
        for file, tree in self._trees.items():
            if file not in COMPILED:
                for name, line in named(tree, bodies):
                    callers[name] |= self._reached(file, line)
        for path in {file_of(test) for test in self.seconds}:
            for name, _ in named(ast.parse((root / path).read_text()), bodies):
                callers[name].update(test for test in self.seconds if file_of(test) == path)
        calls = [(outer, inner) for outer, body in bodies.items() for inner, _ in named(body, bodies)]
        for _ in bodies:  # a chain of calls is no longer than that
            for outer, inner in calls:
                callers[inner] |= callers[outer]
        return callers


def _is_slow(test: str) -> bool:
    return Path(file_of(test)).name in SLOW


def named(tree: ast.AST, names: Iterable[str]) -> list[tuple[str, int]]:
    """Which of ``names`` the code has in it, with the line."""
    found = ((getattr(node, "attr", getattr(node, "id", None)), node) for node in ast.walk(tree))
    return [(name, node.lineno) for name, node in found if name in names]


def statements(tree: ast.AST) -> dict[int, range]:
    """To each line, the lines of the innermost statement it is of; of a compound one, those of its head."""
    spans: dict[int, range] = {}
    for node in ast.walk(tree):  # outer ones come first
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
            span = range(node.lineno, last + 1)
            for line in span:
                if line not in spans or len(spans[line]) > len(span):
                    spans[line] = span
    return spans
