"""A fuzzer of what reads states: bytes, and what the samplers make of the states that come out.

    pip install -e '.[fuzz]'                                              # atheris, for CPython 3.11 to 3.13 on Linux
    python tests/fuzz/state_bytes.py -runs=10000000 -rss_limit_mb=6000 [folder of inputs worth keeping]
    python tests/fuzz/state_bytes.py --without-coverage 100000            # seeded changes alone, without atheris

Whatever the bytes are: nothing but a ``ValueError`` escapes, nothing is imported, opened, compiled, executed or
unpickled, memory stays in proportion to the bytes, a sampler that refuses a state is as it was, and one that takes it
can draw, learn, and say what it would draw. What breaks this is raised as ``Broken``, and libFuzzer keeps the input.

The states begin as those of every sampler of the tests at several moments. Changes are made mostly inside, and sealed
again (sealed.py), so that most inputs get past the checksum.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import pickle
import random
import resource
import sys
import time
import tracemalloc
import types
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from sampler import batches, checks  # noqa: E402
from tests.fuzz.sealed import changed  # noqa: E402
from tests.sampler.pairs import MAKERS, scores_of  # noqa: E402
from tests.sampler.states import same  # noqa: E402

SIZE = 7
MOMENTS = (0, 1, 4, 11)  # draws before a state is taken
SELDOM = 64  # one input in so many is looked at more closely
AT_ONCE = 1 << 19  # bytes of memory that any input may take
TIMES = 64  # and so many times its own length: an empty list is two bytes and a comma, and 64 bytes in memory
ADDRESSES = 8 << 30  # bytes of address space, for the run with a fuzzer
FORBIDDEN = (
    "pickle.find_class", "exec", "compile", "open", "import", "marshal.", "socket.", "subprocess.Popen", "os.system",
    "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "ctypes.dlopen", "ctypes.dlsym",
)  # fmt: skip


class Broken(BaseException):
    """What must not be; no ``except Exception`` on the way takes it for a refusal."""


def load_reader() -> types.ModuleType:
    """``sampler.state_bytes``, loaded once more: what is changed in it to follow its branches is nobody else's."""
    spec = importlib.util.spec_from_file_location("state_bytes_alone", ROOT / "sampler" / "state_bytes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what a process may not do meanwhile

_guard = {"armed": False, "there": False}
_seen: list[str] = []


def _hook(event: str, arguments: Any) -> None:
    if _guard["armed"] and event.startswith(FORBIDDEN):
        _seen.append(f"{event} {str(arguments)[:200]}")
        raise Broken(_seen[-1])


@contextlib.contextmanager
def guarded():
    """``Broken`` for what an input must not bring about, also where an exception was swallowed on the way."""
    if not _guard["there"]:
        sys.addaudithook(_hook)  # for good, but it does nothing outside of here
        _guard["there"] = True
    _seen.clear()
    _guard["armed"] = True
    try:
        yield
    finally:
        _guard["armed"] = False
        if _seen:
            raise Broken(_seen[0])


# --- the target


def a_sampler(name: str, seed: int, size: int = SIZE) -> Any:
    sampler = MAKERS[name](size, seed=seed)
    sampler.feedback_timeout = 1e6
    return sampler


def moved(sampler: Any, draws: int, size: int = 3) -> Any:
    """``sampler`` after some draws, the last two of which have not come back, or in part."""
    generator = np.random.default_rng(draws)
    made = []
    for _ in range(draws):
        draw = sampler.poll(size, seconds=0.0)
        if draw is not None:
            made.append(draw)
        if len(made) > 2:
            oldest = made.pop(0)
            losses = generator.exponential(size=size)
            sampler.update(oldest.index, losses, oldest.step, scores_of(losses))
    if made:
        sampler.update(made[-1].index[:1], [0.5], made[-1].step, [0.5])
    return sampler


class Target:
    """Reads bytes, and has the samplers of the tests take what comes out. ``outcomes`` counts what became of them."""

    def __init__(self, reader: Any = None) -> None:
        self.reader = reader or load_reader()
        self.outcomes: Counter[str] = Counter()
        self.samplers = {name: a_sampler(name, 0) for name in MAKERS}
        self._names: dict[str, str] = {}  # of those samplers, by what their states say of themselves
        for name, sampler in self.samplers.items():
            self._names.setdefault(_kind(sampler.state_dict()), name)
        self.warm()

    def corpus(self) -> list[bytes]:
        states = [moved(a_sampler(name, 1), draws).state_dict() for name in MAKERS for draws in MOMENTS]
        return [*map(self.reader.to_bytes, states), b"", b"{}", pickle.dumps(Counter())]

    def warm(self) -> None:
        """All that is compiled on first use is, also for arrays that cannot be written, and all modules are there."""
        frozen = np.ones(3)
        frozen.flags.writeable = False
        for numbers in (frozen, np.ones(3)):
            batches.count_finite(numbers), batches.least(numbers), batches.least(np.ones(3, np.float32))
            batches.second_moments(np.ones(3), np.ones(3), numbers)
        for name in MAKERS:
            moved(a_sampler(name, 2), 60)
        for data in self.corpus():
            for closely in (True, False):
                self._take(data, closely)
        for word in ("", '{"a":1'):
            with contextlib.suppress(ValueError):
                json.loads(word)

    def __call__(self, data: bytes) -> None:
        self.outcomes["all"] += 1
        closely = self.outcomes["all"] % SELDOM == 0
        if closely:
            self.look_at_memory(data)
        with guarded():
            self.outcomes[self._take(data, closely)] += 1
            if closely:
                self._look_among_others(data)

    def _look_among_others(self, data: bytes) -> None:
        """As a state lies in the file of another program."""
        try:
            found = self.reader.sought(b"others" * 3 + data + b"others")
            self.reader.from_bytes(found)
        except ValueError:
            return
        except Exception as error:
            raise Broken(f"sought: {error!r}") from error

    def look_at_memory(self, data: bytes) -> None:
        tracemalloc.start()
        try:
            with contextlib.suppress(ValueError):
                self.reader.from_bytes(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        if peak > AT_ONCE + TIMES * len(data):
            raise Broken(f"{len(data)} bytes took {peak} bytes to read")

    def _take(self, data: bytes, closely: bool) -> str:
        try:
            state = self.reader.from_bytes(data)
        except ValueError:
            return "refused"
        except Exception as error:
            raise Broken(f"from_bytes: {error!r}") from error
        sampler = self.samplers[self._names.get(_kind(state), "as it comes")]
        before = sampler.state_dict() if closely else None
        try:
            sampler.load_state_dict(state)
        except ValueError:
            if before is not None and not same(before, sampler.state_dict()):
                raise Broken("a state was refused and has changed something") from None
            return "not loaded"
        except Exception as error:
            raise Broken(f"load_state_dict: {error!r}") from error
        try:
            if closely:
                self._extend(state)
            return self._use(sampler, closely)
        except Exception as error:
            raise Broken(f"after a state was loaded: {error!r}") from error

    def _extend(self, state: dict[str, Any]) -> None:
        """Have a sampler of two samples more take it."""
        name = self._names.get(_kind(state), "as it comes")
        larger = a_sampler(name, 3, SIZE + 2)
        with contextlib.suppress(ValueError):
            larger.load_state_dict(state, extend=True)
            self.outcomes["extended"] += 1
        self._use(larger, closely=False)

    def _use(self, sampler: Any, closely: bool) -> str:
        """A sampler that took a state can draw, and learn what comes back."""
        ledger = sampler._ledger
        again = None if ledger is None else ledger.again()
        if sampler.step >= checks.LARGEST_STEP and again is None:
            return "loaded at the last step"
        draw = sampler.poll(3 if again is None else again.index.size, seconds=0.0)
        if draw is not None:
            assert draw.index.min() >= 0
            assert draw.index.max() < len(sampler)
            if again is None:
                assert (draw.probability > 0).all()
                assert (draw.weight > 0).all()
            losses = np.ones(draw.index.size)
            sampler.update(draw.index, losses, draw.step, losses)
        probabilities = sampler.probabilities()
        assert abs(probabilities.sum() - 1.0) < 1e-9
        assert probabilities.min() >= 0.0
        if closely:
            assert sampler.priorities().shape == (len(sampler),)
            assert (sampler.ages() >= 0).all()
            sampler.summary()
            state = sampler.state_dict()
            sampler.load_state_dict(self.reader.from_bytes(self.reader.to_bytes(state)))
        return "loaded and drawn"


def _kind(state: dict[str, Any]) -> str:
    """Of which sampler a state says that it is."""
    flights = state.get("in_flight")
    return json.dumps([state.get("sampler"), state.get("options"), flights is None], default=str, sort_keys=True)


# --- two ways to run it


def run_without_coverage(target: Target, runs: int, seed: int = 0) -> Counter[str]:
    """Seeded changes of the corpus, each of one to four steps."""
    source, corpus = random.Random(seed), target.corpus()
    for _ in range(runs):
        data = source.choice(corpus)
        for _ in range(source.choice([1, 1, 2, 4])):
            data = changed(data, source)
        try:
            target(data)
        except Broken as error:
            error.add_note(f"input {target.outcomes['all']} of seed {seed}: {data!r}")
            raise
    return target.outcomes


@contextlib.contextmanager
def quiet():
    """Without warnings of numbers that overflow when they are cast: what comes of it is looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def run_with_coverage(arguments: list[str]) -> None:
    import atheris

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    target = Target()
    _instrument(atheris, target.reader)
    begin = time.perf_counter()

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        return changed(data, random.Random(seed), lambda given: atheris.Mutate(given, max(len(given), 64)))[:most]

    def test(data: bytes) -> None:
        target(data)
        if target.outcomes["all"] % 100_000 == 0:
            print(json.dumps({**target.outcomes, "seconds": round(time.perf_counter() - begin, 1)}), flush=True)

    if not any(not argument.startswith("-") for argument in arguments[1:]):
        raise SystemExit("name a folder for the inputs worth keeping")
    folder = Path(next(argument for argument in arguments[1:] if not argument.startswith("-")))
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.corpus()):
        (folder / f"state-{number}").write_bytes(data)
    atheris.Setup([*arguments, "-max_len=65536"], test, custom_mutator=mutate)
    atheris.Fuzz()


def _instrument(atheris: Any, reader: Any) -> None:
    """Have the branches of what reads a state watched; the compiled loops are none of Python's."""
    from sampler import base, bound, evidence, gates, ledger, passes, quantiles, ranked, state, stores
    from sampler.samplers import importance, importance_state

    parts = [reader, base, bound, checks, evidence, gates, importance, importance_state]
    parts += [ledger, passes, quantiles, ranked, state, stores]
    for part in parts:
        for thing in vars(part).values():
            holders = [thing] if isinstance(thing, types.FunctionType) else []
            if isinstance(thing, type):
                holders = [method for method in vars(thing).values() if isinstance(method, types.FunctionType)]
            for function in holders:
                if function.__module__ == part.__name__:
                    atheris.instrument_func(function)


def main() -> None:
    with quiet():
        if "--without-coverage" in sys.argv:
            runs = int(sys.argv[sys.argv.index("--without-coverage") + 1])
            begin = time.perf_counter()
            outcomes = run_without_coverage(Target(), runs)
            print(json.dumps({**outcomes, "seconds": round(time.perf_counter() - begin, 1)}))
        else:
            run_with_coverage(sys.argv)


if __name__ == "__main__":
    main()
