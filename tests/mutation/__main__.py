"""Mutation testing of `sampler`: how many small faults, put into its source one at a time, do its tests see?

    make mutate                                     # a share of all mutants: an hour
    make mutate ARGS="--share 1 --only draws.py"    # all of a file
    make mutate ARGS="--again --seconds 30"         # those that survived so far, after tests were added

First all tests run once on the code as it is, to learn how long each takes and which lines it executes. A mutant then
meets the tests that execute its line, those of its own module first and the quick ones before the slow ones, until one
fails. One that none fails on has survived. Of its own module's tests as many take part as need ``--seconds`` of
processor time, and of all others as many again. Results are kept under ``.mutation``, for this text of `sampler`; a run
that was broken off goes on.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import math
import os
import random
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numba

from tests.mutation.mutants import Mutant, drawn
from tests.mutation.running import attempt, forked, plant, run_pytest
from tests.mutation.trace import Trace, Tracer, trace_of

ROOT = Path(__file__).resolve().parents[2]
Result = dict[str, Any]


def sources() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "sampler").rglob("*.py"))


def folder() -> Path:
    """Where what is known of this text of `sampler` is kept."""
    text = hashlib.sha256(b"".join((ROOT / file).read_bytes() for file in sources())).hexdigest()[:12]
    found = ROOT / ".mutation" / text
    found.mkdir(parents=True, exist_ok=True)
    return found


def trace_tests(place: Path, files: list[str]) -> None:
    """Run the test files that were not traced yet."""
    missing = [file for file in files if not trace_of(place / "traces", ROOT, file).exists()]
    if not missing:
        return
    print(f"running {len(missing)} test files on the code as it is", flush=True)
    tree = place / "tree-0"
    plant(ROOT, tree)

    def run() -> int:
        tracer = Tracer(tree)
        status = run_pytest(missing, tracer)
        if status == 0:
            tracer.write(place / "traces", missing)
        return status

    if forked(tree, run):
        raise SystemExit("a test fails on the code as it is")


def work(number: int, place: Path, wanted: list[Mutant], trace: Trace, seconds: float) -> None:
    """Try mutants in a tree of this worker's own, and write down what comes of each."""
    tree = place / f"tree-{number}"
    plant(ROOT, tree)
    with (place / "results.jsonl").open("a", buffering=1) as results:
        for mutant in wanted:
            results.write(json.dumps(attempt(mutant, tree, trace, seconds)) + "\n")


def known(place: Path) -> dict[Mutant, Result]:
    """What came of each mutant tried so far; of one tried twice, the last."""
    path = place / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    results = (json.loads(line) for line in lines)
    return {Mutant(**{name: result[name] for name in Mutant.__annotations__}): result for result in results}


def interval(killed: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z = 1.96
    centre = killed + z * z / 2
    spread = z * math.sqrt(killed * (total - killed) / total + z * z / 4)
    return (centre - spread) / (total + z * z), (centre + spread) / (total + z * z)


def report(results: Iterable[Result]) -> str:
    """A table by file, and the survivors."""
    results = sorted(results, key=lambda result: (result["file"], result["line"]))
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        counts[result["file"]][result["outcome"]] += 1
        counts["all"][result["outcome"]] += 1
    rows = ["| file | mutants | killed | of these by time | survived | score |", "|---|---|---|---|---|---|"]
    for file, count in counts.items():
        if file != "all":
            rows.append(_row(file, count))
    rows.append(_row("all", counts["all"]))
    total, survived = counts["all"].total(), counts["all"]["survived"]
    low, high = interval(total - survived, total)
    rows.append(f"\nThe score is between {low:.1%} and {high:.1%} (Wilson, 95 %).")
    for result in results:
        if result["outcome"] == "survived":
            rows.append(f"\n{result['file']}:{result['line']} {result['operator']} {result['occurrence']}")
            rows.append(f"  - {result['before']}\n  + {result['after']}")
    return "\n".join(rows)


def _row(file: str, count: Counter[str]) -> str:
    total, survived = count.total(), count["survived"]
    score = (total - survived) / total
    return f"| {file} | {total} | {total - survived} | {count['timeout']} | {survived} | {score:.1%} |"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mutation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--share", type=float, default=0.3, help="of each file's mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: %(default)s)")
    parser.add_argument("--only", default="", help="files whose path has this in it")
    parser.add_argument("--seconds", type=float, default=3.0, help="of tests, twice (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="try those that survived, and no others")
    parser.add_argument("--report", action="store_true", help="say what is known, and try nothing")
    return parser.parse_args()


def main() -> None:
    args, place = options(), folder()
    chosen = [mutant for file in sources() if args.only in file for mutant in drawn(ROOT, file, args.share, args.seed)]
    if not args.report:
        numba.config.CACHE_DIR = str(place / "machine-code")
        files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "sampler").glob("test_*.py"))
        trace_tests(place, files)
        before = known(place)
        survived = {mutant for mutant, result in before.items() if result["outcome"] == "survived"}
        wanted = [mutant for mutant in chosen if (mutant in survived if args.again else mutant not in before)]
        random.Random(args.seed).shuffle(wanted)  # so that what is done first is a sample, too
        trace = Trace(ROOT, place / "traces", files)
        gc.freeze()  # the processes forked from this one need not look through all of it
        print(f"trying {len(wanted)} mutants of {len(chosen)}", flush=True)
        parts = [wanted[number :: args.workers] for number in range(args.workers)]
        in_processes(args.workers, lambda number: work(number, place, parts[number], trace, args.seconds))
    results = known(place)
    print(report(results[mutant] for mutant in chosen if mutant in results))


def in_processes(count: int, run: Any) -> None:
    """``run(0)``, ``run(1)``, ... side by side."""
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            status = 1
            try:
                run(number)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(statuses):
        raise SystemExit("a worker failed")


if __name__ == "__main__":
    main()
