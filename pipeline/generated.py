"""Tasks made of random numbers: each is a function that draws samples of it.

    from pipeline.generated import TASKS

    x, y, x_test, y_test = TASKS["checker"].make()      # the same numbers at every call

| name           | N, test        | what it is |
|----------------|----------------|------------|
| `checker`      | 50,000, 20,000 | two classes in 8 dimensions; 5 % of the samples a 4x4 checkerboard |
| `peaks`        | 20,000, 10,000 | a smooth surface over 2 dimensions with six narrow bumps |
| `heavy-rows`   | 20,000, 10,000 | a smooth function of 8 inputs, whose size is lognormal |
| `heavy-linear` | 5,000, 5,000   | a linear system that has a solution, with rows of lognormal size |
| `teacher`      | 50,000, 10,000 | five classes, the labels those of a random network |
| `gaussians`    | 20,000, 10,000 | four classes that overlap: 29 % cannot be told |
| `clusters`     | 20,000, 10,000 | two classes; 5 % of the samples in 100 tight clusters |

Siblings share one signature, ``(n, generator) -> x (n, ...) float32, y``: (n,) int64 classes or (n, 1) float32
quantities. What defines the task itself (centres, the teacher's weights) comes from a seed of its own, so that
training and test samples, however many, are of one task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Samples = tuple[Array, Array]  # x, y

TASK_SEED = 20_250_101  # of every split and every generated number
TRAIN, TEST, TASK = 0, 1, 2  # added to it

CHECKER_HARD = 0.05  # the share of samples that lie on the checkerboard
PEAKS_VOLUME = 0.02  # the share of the square that six bumps cover
PEAKS_CENTRES = ((-0.6, -0.55), (0.1, -0.7), (0.65, -0.3), (-0.35, 0.2), (0.3, 0.35), (-0.7, 0.7))
ROWS_DEVIATION = 1.0  # of the logarithm of a row's size
LINEAR_DEVIATION = 1.2
TEACHER_WIDTH = 32
CLUSTERS, CLUSTERS_SHARE, CLUSTERS_DEVIATION = 100, 0.05, 0.05


class Task(NamedTuple):
    """How samples are drawn, how many to train and to test, and the number of classes (None: a quantity)."""

    draw: Callable[[int, np.random.Generator], Samples]
    sizes: tuple[int, int]
    num_classes: int | None

    def make(self) -> tuple[Array, Array, Array, Array]:
        """``x, y, x_test, y_test``, the same in every run."""
        train = self.draw(self.sizes[0], np.random.default_rng(TASK_SEED + TRAIN))
        test = self.draw(self.sizes[1], np.random.default_rng(TASK_SEED + TEST))
        return *train, *test


def checker(n: int, generator: np.random.Generator) -> Samples:
    """Two classes in 8 dimensions: 95 % trivially apart, 5 % on a 4x4 checkerboard in two of them.

    Dimension 2 tells the class of an easy sample (-4 or 4) and is near 0 for a hard one, whose
    class is the colour of its field in dimensions 0 and 1, [-2, 2]^2. The others are noise. No
    label is wrong, so the loss can go to zero; but 2,500 samples hold all that is left to learn
    once the easy ones are known.
    """
    square = generator.uniform(0.0, 4.0, (n, 2))
    colour = np.floor(square).astype(np.int64).sum(axis=1) % 2
    hard = generator.random(n) < CHECKER_HARD
    y = np.where(hard, colour, generator.integers(0, 2, n))
    x = generator.normal(0.0, 0.6, (n, 8))
    x[:, :2] = square - 2.0
    x[:, 2] = np.where(hard, generator.normal(0.0, 0.1, n), 4.0 * (2 * y - 1) + generator.normal(0.0, 0.5, n))
    return x.astype(np.float32), y


def peaks(n: int, generator: np.random.Generator) -> Samples:
    """A smooth surface over [-3, 3]^2, six bumps of height 3 and -3 in 2 % of its area; no noise."""
    centres = np.array(PEAKS_CENTRES)
    # Six discs of radius 1.5 standard deviations cover the volume asked for; the square's area is 4.
    deviation = np.sqrt(4 * PEAKS_VOLUME / (len(centres) * np.pi)) / 1.5
    point = generator.uniform(-1.0, 1.0, (n, 2))
    squared = ((point[:, None, :] - centres) ** 2).sum(axis=2)
    heights = 3.0 * (-1.0) ** np.arange(len(centres))
    smooth = 0.5 * np.sin(2 * point[:, 0]) + 0.5 * np.cos(3 * point[:, 1])
    y = smooth + np.exp(-squared / (2 * deviation**2)) @ heights
    return (3.0 * point).astype(np.float32), y[:, None].astype(np.float32)


def heavy_rows(n: int, generator: np.random.Generator) -> Samples:
    """Rows x = s z of lognormal size s with E s² = 1, y = Σ ±sqrt(1/4 + (a·x)²) over eight directions a; no noise.

    The target is smooth and grows as its input does: so do the residuals and the inputs of the last layer, and a
    few rows hold most of the gradient.
    """
    directions = _unit_rows(_of_the_task(), 8, 8)
    x = _sizes(n, ROWS_DEVIATION, generator)[:, None] * generator.normal(0.0, 1.0, (n, 8))
    signs = (-1.0) ** np.arange(8)
    y = np.sqrt(0.25 + (x @ directions.T) ** 2) @ signs
    return x.astype(np.float32), y[:, None].astype(np.float32)


def heavy_linear(n: int, generator: np.random.Generator) -> Samples:
    """A system y = a·x in 20 dimensions, rows of lognormal size with mean square 1; every residual can be zero."""
    solution = _unit_rows(_of_the_task(), 1, 20)[0]
    x = _sizes(n, LINEAR_DEVIATION, generator)[:, None] * _unit_rows(generator, n, 20)
    x = x.astype(np.float32)
    return x, (x.astype(np.float64) @ solution)[:, None].astype(np.float32)


def teacher(n: int, generator: np.random.Generator) -> Samples:
    """The label is the largest of five outputs of a random network, 20 - 32 - 5 with tanh; no noise."""
    task = _of_the_task()
    first = task.normal(0.0, 1.5 / np.sqrt(20), (20, TEACHER_WIDTH))
    last = task.normal(0.0, 1.0, (TEACHER_WIDTH, 5))
    x = generator.normal(0.0, 1.0, (n, 20))
    return x.astype(np.float32), (np.tanh(x @ first) @ last).argmax(axis=1)


def gaussians(n: int, generator: np.random.Generator) -> Samples:
    """Four classes around the corners of a square of side 2, unit variance, and six dimensions of noise."""
    y = generator.integers(0, 4, n)
    x = generator.normal(0.0, 1.0, (n, 8))
    x[:, 0] += 2.0 * (y // 2) - 1.0
    x[:, 1] += 2.0 * (y % 2) - 1.0
    return x.astype(np.float32), y


def clusters(n: int, generator: np.random.Generator) -> Samples:
    """Two classes around -3 and 3 in the first of ten dimensions, and between them 100 tight clusters with 5 %.

    All of a cluster are of one class, which is random, so each has to be learnt by itself from some ten samples.
    """
    task = _of_the_task()
    centres, classes = task.uniform(-1.5, 1.5, (CLUSTERS, 10)), task.integers(0, 2, CLUSTERS)
    rare, which = generator.random(n) < CLUSTERS_SHARE, generator.integers(0, CLUSTERS, n)
    y = np.where(rare, classes[which], generator.integers(0, 2, n))
    common = generator.normal(0.0, 0.5, (n, 10))
    common[:, 0] += 6.0 * y - 3.0
    inside = centres[which] + generator.normal(0.0, CLUSTERS_DEVIATION, (n, 10))
    return np.where(rare[:, None], inside, common).astype(np.float32), y


def _of_the_task() -> np.random.Generator:
    return np.random.default_rng(TASK_SEED + TASK)


def _unit_rows(generator: np.random.Generator, n: int, d: int) -> Array:
    rows = generator.normal(0.0, 1.0, (n, d))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _sizes(n: int, deviation: float, generator: np.random.Generator) -> Array:
    """Lognormal with a mean square of 1: E exp(2σg) = exp(2σ²)."""
    return np.exp(deviation * generator.normal(0.0, 1.0, n) - deviation**2)


TASKS = {
    "checker": Task(checker, (50_000, 20_000), 2),
    "peaks": Task(peaks, (20_000, 10_000), None),
    "heavy-rows": Task(heavy_rows, (20_000, 10_000), None),
    "heavy-linear": Task(heavy_linear, (5_000, 5_000), None),
    "teacher": Task(teacher, (50_000, 10_000), 5),
    "gaussians": Task(gaussians, (20_000, 10_000), 4),
    "clusters": Task(clusters, (20_000, 10_000), 2),
}
