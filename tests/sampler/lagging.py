"""Runs under a lag: feedback in parts, in any order, and the reference that is told exactly what is due."""

from __future__ import annotations

import numpy as np

from sampler import ImportanceSampler, priorities

from .states import same_draw

SIZE = 40
BATCH = 6
STEPS = 40
LAGS = [1, 2, 3, 5]

OPTIONS = {  # made anew for each sampler, as some have a memory
    "as it comes": dict,
    "many duplicates": lambda: {
        "uniform_fraction": 0.05,
        "priority": lambda losses: losses**8,
        "scheme": "multinomial",
    },
    "smoothed, stratified": lambda: {"smoothing": 0.5, "scheme": "stratified", "priority": "sqrt"},
    "distinct": lambda: {"scheme": "without_replacement", "priority": "bounded"},
    "no first pass": lambda: {"first_pass": False, "uniform_fraction": 0.0},
    "by rank": lambda: {"store": "ranked", "smoothing": 0.3},
    "bounded draws": lambda: {"max_draws": 2, "priority": lambda losses: losses**4},
    "forgetting": lambda: {"forget": 0.4, "first_pass": False, "scheme": "multinomial"},
    "clipped": lambda: {"priority": priorities.clipped(0.7, "sqrt", window=15)},
    "all at once": lambda: {
        "store": "ranked",
        "max_draws": 2,
        "forget": 0.4,
        "keep_losses": True,
        "priority": priorities.clipped(0.7, window=15),
    },
}


def feedback(draw) -> np.ndarray:
    """The losses of a draw: other at each step and each place, some of them not finite."""
    generator = np.random.default_rng([draw.step, *draw.index.tolist()])
    losses = generator.exponential(size=draw.index.size) + 0.01
    losses[generator.random(draw.index.size) < 0.05] = np.nan
    return losses


def a_sampler(name="as it comes", lag=2, seed=3, **options):
    options = {"feedback_timeout": 20.0, **OPTIONS[name](), **options}
    return ImportanceSampler(SIZE, feedback_lag=lag, seed=seed, **options)


def told_exactly(name, lag, steps=STEPS, seed=3, **options):
    """The reference: no lag, and feedback by hand."""
    return fed_by_hand(a_sampler(name, lag=None, seed=seed, **options), lag, steps)


def fed_by_hand(sampler, lag, steps):
    """The draws of a sampler without a lag that is told what one with this lag would know."""
    made = []
    for step in range(steps):
        if step >= lag:
            draw, losses = made[step - lag], feedback(made[step - lag])
            order = np.lexsort((losses, draw.index))  # the mean of several losses is taken from the least up
            sampler.update(draw.index[order], losses[order], step=draw.step)
        made.append(sampler.draw(BATCH))
    return made


def in_parts(draw, random_source):
    """The feedback of a draw, cut into parts, each in an order of its own: ``(index, losses, step)``."""
    losses = feedback(draw)
    places = list(range(draw.index.size))
    random_source.shuffle(places)
    cuts = sorted(random_source.sample(range(1, len(places)), random_source.randrange(3)))
    for begin, end in zip([0, *cuts], [*cuts, len(places)], strict=True):
        part = places[begin:end]
        step = draw.step if random_source.random() < 0.5 else np.full(len(part), draw.step)
        yield draw.index[part], losses[part], step


def run(sampler, steps, random_source, made=None, pending=None):
    """Draw and feed back in a random order until ``steps`` draws are made; gives them, and the parts still to
    come.

    A draw is asked for without patience: where it may not be made yet, feedback goes on coming.
    """
    made, pending = [] if made is None else made, [] if pending is None else pending
    while len(made) < steps or pending:
        draw = sampler.poll(BATCH, seconds=0.0) if len(made) < steps and random_source.random() < 0.6 else None
        if draw is not None:
            made.append(draw)
            pending.extend(in_parts(draw, random_source))
        elif pending:
            sampler.update(*pending.pop(random_source.randrange(len(pending))))
    return made


def assert_same_draws(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert same_draw(left, right), f"step {left.step} differs"
