"""A thousand million operations beside twins that keep no tree, and no divergence.

    python -m tests.sampler.test_divergence --operations 1000000000     # some progress, then a line of JSON
    pytest -m soak tests/sampler/test_divergence.py -s                  # the same

An operation is one sample drawn or one loss fed back. All samplers come in turn, and those of random options too, of 1
to 100,000 samples, in batches of up to 65,536; at random moments their state goes out and into another sampler, bad
input is refused, threads draw and feed back at once. After every draw and update all priorities, all probabilities,
all steps, the counts and the random generator are compared with the twin's (twins.py), whose cumulative p is a plain
sum of long doubles laid out anew (``WideShares``). Priorities may be off by one unit of float32, p by 1e-11 of itself,
and a position may lie beside its sample by 1e-12 of the whole; what the largest deviations were is part of the report.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import time
from collections import Counter

import numpy as np
import pytest

from sampler import ImportanceSampler, RankedStore

from .pairs import BAD, MAKERS, Pair
from .siblings import SIBLINGS
from .twin_shares import WideShares
from .twins import ImportanceTwin

RANDOM = "random options"
PASSES = ("uniform", "pruning", "selective", "warmed", "gated")  # a batch of many passes takes a loop for each of them
STEPS = 60  # moves with one sampler, before it is the next one's turn
LARGEST = 100_000  # samples; by rank, over Python objects, a thirtieth


def random_options(generator):
    """A sampler of random options, and its twin: ``(make, twin)``."""
    share = float(generator.choice([0.0, 0.05, 0.3, 0.9, 1.0]))
    options = {
        "smoothing": float(generator.choice([0.0, 0.5, 0.99])),
        "scheme": str(generator.choice(["systematic", "multinomial", "stratified", "without_replacement"])),
        "first_pass": float(generator.choice([0.0, 0.1, 1.0])),
        "warmup": int(generator.integers(0, 3)),
        "finish_at": None if generator.random() < 0.7 else int(generator.integers(0, 30)),
        "forget": float(generator.choice([0.0, 0.0, 0.1, 0.9])),
        "max_draws": None if share == 0.0 or generator.random() < 0.6 else int(generator.integers(1, 256)),
        "ascending": bool(generator.integers(2)),
    }
    lag = None if generator.random() < 0.5 else int(generator.integers(1, 6))
    beta = float(generator.choice([0.0, 0.5, 1.0]))
    initial = float(generator.choice([0.0, 1.0, 1e-3, 1e6]))
    alpha = None if generator.random() < 0.9 else float(generator.choice([0.0, 0.7, 3.0]))
    if share == 0.0:  # every batch must be possible
        initial, options["scheme"] = max(initial, 1.0), "systematic"

    def make(size, seed):
        return ImportanceSampler(
            size,
            uniform_fraction=share,
            beta=beta,
            feedback_lag=lag,
            store="proportional" if alpha is None else RankedStore(size, alpha=alpha, initial_priority=initial),
            initial_priority=initial,
            seed=seed,
            **options,
        )

    def twin(size, seed, shares):
        return ImportanceTwin(
            size,
            seed,
            share=share,
            beta=lambda step: beta,
            lag=lag,
            alpha=alpha,
            initial=initial,
            shares=shares,
            **options,
        )

    return make, twin, alpha is not None


class Random:
    """A random script for one pair."""

    def __init__(self, name, generator, largest=LARGEST) -> None:
        self.generator = generator
        make = twin = None
        ranked = "rank" in name
        if name == RANDOM:
            make, twin, ranked = random_options(generator)
        largest = largest // 30 if ranked else largest
        least = 1 if generator.random() < 0.3 else min(1000, largest)
        size = int(np.exp(generator.uniform(np.log(least), np.log(largest + 1))))
        self.pair = Pair(
            name, size, int(generator.integers(2**32)), make=make or MAKERS.get(name), twin=twin, shares=WideShares
        )
        self.usual = int(np.exp(generator.uniform(np.log(largest / 50 + 1), np.log(largest * 0.65 + 1))))
        if name.startswith(PASSES):
            self.usual = min(self.usual, 16 * size)
        self.scale = 10.0 ** generator.integers(-6, 7)

    def count(self) -> int:
        return int(self.generator.integers(1, 65)) if self.generator.random() < 0.1 else self.usual

    def losses(self, count):
        generator = self.generator
        kind = generator.integers(4)
        if kind == 0:
            losses = generator.integers(0, 4, count).astype(float)
        elif kind == 1:
            losses = 10.0 ** generator.uniform(-3, 3, count)
        else:
            losses = generator.standard_exponential(count)
        losses *= self.scale if generator.random() < 0.2 else 1.0
        if generator.random() < 0.2:
            losses[generator.random(count) < 0.05] = generator.choice([np.nan, np.inf, -np.inf])
        if generator.random() < 0.01:
            losses[:] = np.nan
        return losses

    def move(self) -> None:
        generator, pair = self.generator, self.pair
        kind = generator.random()
        if kind < 0.05:
            pair.reload(int(generator.integers(2**32)), int(generator.integers(3)))
        elif kind < 0.10:
            pair.refuses(list(BAD)[generator.integers(len(BAD))])
        elif kind < 0.12:
            pair.threads(self.usual, int(generator.integers(2, 4)), lambda places: 1.0 + generator.random(places.size))
        elif kind < 0.15:
            index = generator.integers(0, pair.size, self.count())
            pair.update(index, self.losses(index.size))
        elif kind < 0.16:
            pair.rewind()
        elif kind < 0.162:
            pair.diverge(int(generator.integers(1, 100)))
        elif kind < 0.20:
            pair.rows(int(generator.integers(1, 5)), max(1, self.usual // 4))
        elif kind < 0.55 or not pair.pending:
            pair.draw(self.count())
        else:
            self.feed()

    def feed(self) -> None:
        generator, pair = self.generator, self.pair
        steps = sorted(pair.pending)
        step = steps[0] if generator.random() < 0.7 else int(generator.choice(steps))
        places = pair.pending[step][1]
        if generator.random() < 0.15:
            places = generator.permutation(places)[: generator.integers(1, places.size + 1)]
        pair.feed(step, places, self.losses(places.size), whole=bool(generator.integers(2)))


def run(operations, seed=0, largest=LARGEST, every=lambda report: None):
    """So many operations at least, and what they were. Raises ``AssertionError`` where sampler and twin differ."""
    begin, cpu = time.perf_counter(), time.process_time()
    names = [*SIBLINGS, *(name for name in MAKERS if name not in SIBLINGS), *[RANDOM] * 6]
    report = Counter()
    by_sampler: Counter[str] = Counter()
    off: dict[str, float] = {}
    turn = 0
    while report["operations"] < operations:
        name = names[turn % len(names)]
        script = Random(name, np.random.default_rng([seed, turn]), largest)
        try:
            for _ in range(STEPS):
                script.move()
        except AssertionError as error:
            raise AssertionError(f"{name}, seed {seed}, turn {turn}, size {script.pair.size}: {error}") from error
        done = script.pair.done
        report.update(done)
        report["operations"] += done["draws"] + done["updates"]
        by_sampler[name] += done["draws"] + done["updates"]
        for what, worst in script.pair.twin.off.items():
            off[what] = max(off.get(what, 0.0), worst)
        turn += 1
        report["samplers"] = turn
        every({**report, "seconds": time.perf_counter() - begin})
    return {
        **report,
        "largest deviations": off,
        "operations by sampler": dict(by_sampler),
        "seconds": time.perf_counter() - begin,
        "processor seconds": time.process_time() - cpu,
    }


@contextlib.contextmanager
def quiet():
    """Without the warnings of losses that are not finite, of which there are many on purpose."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def test_some_operations_without_a_divergence():
    with quiet():
        report = run(500_000, seed=1, largest=1000)
    assert report["operations"] >= 500_000
    assert min(report[what] for what in ("draws", "updates", "states", "refused")) > 10
    assert report["samplers"] >= len(MAKERS) + 6  # each of them came


def test_a_divergence_is_seen(monkeypatch):
    """One priority in a hundred updates that is off by a thousandth."""
    remember, calls = ImportanceSampler._remember, Counter()

    def off(self, learnt):
        calls["all"] += 1
        if calls["all"] % 100 == 0:
            learnt.priorities[0] *= 1.001
        return remember(self, learnt)

    monkeypatch.setattr(ImportanceSampler, "_remember", off)
    with quiet(), pytest.raises(AssertionError, match=r"turn .* priorities"):
        run(500_000, seed=1, largest=1000)


@pytest.mark.soak
def test_a_thousand_million_operations_without_a_divergence():
    with quiet():
        report = run(1_000_000_000, every=_say(1_000_000_000))
    print(json.dumps(report))
    assert set(report["operations by sampler"]) == {*MAKERS, RANDOM}


def _say(operations):
    """Progress, once in ten seconds."""
    last = 0.0

    def say(report):
        nonlocal last
        if report["seconds"] - last >= 10.0:
            last = report["seconds"]
            share = report["operations"] / operations
            left = report["seconds"] * (1 / share - 1) / 60
            print(f"{report['operations']:,} operations, {share:.1%}, {left:.0f} min to go", flush=True)

    return say


def main() -> None:
    parser = argparse.ArgumentParser(description="Samplers beside their twins, until they differ.")
    parser.add_argument("--operations", type=int, default=1_000_000_000, help="samples drawn and losses fed back")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with quiet():
        print(json.dumps(run(arguments.operations, arguments.seed, every=_say(arguments.operations))))


if __name__ == "__main__":
    main()
