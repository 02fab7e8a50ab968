"""What ``benchmarks.learning`` trains: the tasks, the methods, the learning rates, the budgets.

A task names the data set and the model, its whole budget in steps, and the grid from which every method takes its own
best learning rate. What is aimed at stands beside it, so that a report can say where it was missed.
"""

from __future__ import annotations

from typing import NamedTuple

METHODS = {  # what ``train.py --compare`` takes
    "uniform": "uniform",
    "importance": "importance",  # by the loss, gated
    "auto": "importance:priority=auto",
    "ranked": "ranked",
    "pruning": "pruning",
    "selective": "selective",
    "reducible": "reducible:reference=auto",
    "presampled": "presampled",
    "class-balanced": "class-balanced",
}
FIRST = "uniform"
MAIN = ("uniform", "importance", "auto", "pruning")
ALL = tuple(METHODS)
BY_LOSS = ("uniform", "importance", "auto")
BISECTED = ("importance", "auto", "pruning")  # of which the steps to uniform's final loss are looked for

FRACTIONS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
ADAM = (0.003, 0.01, 0.03)
ADAM_OF_DEEPER = (0.001, 0.003, 0.01)
GRID_SEED = 1000  # the first of the seeds that choose the learning rate, and are used for nothing else


class Task(NamedTuple):
    """A training.

    Attributes:
        dataset, model, batch_size, optimizer: as for ``train.py``.
        steps: the whole budget.
        milliseconds: about what a step takes on one core, to tell the time that remains.
        rates: the grid of learning rates.
        goal: the most that is aimed at for the steps to uniform's final test loss, over uniform's steps to it. None:
            no gain is expected, and the test loss shall be at most 1.02 times uniform's.
        target: an absolute test loss in the place of uniform's; uniform's own steps to it are then looked for, too.
        grid_seeds: on how many seeds a learning rate is tried, at least; more where seeds differ more than rates.
        methods: that are trained on it.
    """

    dataset: str
    steps: int
    model: str = "mlp"
    milliseconds: float = 1.5
    batch_size: int = 32
    optimizer: str = "adam"
    rates: tuple[float, ...] = ADAM
    goal: float | None = None
    target: float | None = None
    grid_seeds: int = 1
    methods: tuple[str, ...] = MAIN


TASKS = {
    "checker": Task("checker", 6_000, goal=0.5, methods=ALL),
    "checker-long": Task("checker", 15_000, goal=0.3, methods=BY_LOSS),
    "peaks": Task("peaks", 5_000, goal=0.5),
    "heavy-rows": Task("heavy-rows", 4_000, goal=0.75),
    "heavy-linear": Task(
        "heavy-linear",
        3_000,  # after which uniform has passed the target with every seed
        model="linear",
        batch_size=8,
        optimizer="sgd",
        rates=(0.1, 0.3, 0.5, 0.7),
        goal=0.5,
        target=3e-10,
        grid_seeds=5,  # which differ by powers of ten
    ),
    "teacher": Task("teacher", 6_000, goal=0.8),
    "digits": Task("digits", 860, model="cnn", milliseconds=5.0, rates=ADAM_OF_DEEPER, grid_seeds=3),
    "digits-longtail": Task(
        "digits-longtail",
        600,
        model="cnn",
        milliseconds=5.0,
        rates=(0.0003, 0.001, 0.003),
        grid_seeds=3,
        methods=ALL,
    ),
    "digits-pixels": Task(
        "digits-pixels", 860, model="lstm", milliseconds=6.5, rates=(0.01, 0.03, 0.1), methods=BY_LOSS
    ),
    "digits-noisy": Task("digits-noisy", 860, grid_seeds=3, methods=ALL),
    "gaussians": Task("gaussians", 2_500),
    "clusters": Task("clusters", 4_000, grid_seeds=3),
    "countries": Task("countries", 10_000, milliseconds=2.5, goal=0.8, methods=BY_LOSS),
}
