"""What a training step is measured of, and the bars that the project set itself.

A system is a way to do the same step. ``REFERENCE`` names the one that each is held against, ``bar`` how many times
as long as that one it may take.
"""

from __future__ import annotations

FEEDBACK, WEIGHTS, ARRAYS, SCORE = "feedback", "weights", "arrays", "score"
BARE_FEEDBACK, BARE_WEIGHTS = "feedback, no metrics", "weights, no metrics"
FITS = (FEEDBACK, WEIGHTS, ARRAYS, SCORE, BARE_FEEDBACK, BARE_WEIGHTS)

BATCH_LOSS, MEAN, WEIGHTED = "batch loss", "per sample, mean", "per sample, weighted mean"
REDUCTIONS = (BATCH_LOSS, MEAN, WEIGHTED)

LOSSES = ("sparse_categorical_crossentropy", "binary_crossentropy", "mean_squared_error")
MODELS = ("cnn", "mlp")
TINY = "tiny"  # for trying the benchmark out

REFERENCE = {
    FEEDBACK: WEIGHTS,
    SCORE: WEIGHTS,
    ARRAYS: WEIGHTS,
    BARE_FEEDBACK: BARE_WEIGHTS,
    MEAN: BATCH_LOSS,
    WEIGHTED: BATCH_LOSS,
}
FIT_BARS = {"cnn": 1.03, "mlp": 1.08}
LOSS_BAR = 1.01


def bar(system: str, model: str) -> float | None:
    """How many times as long as its reference a system may take; None where no bar was set."""
    if system in (MEAN, WEIGHTED):
        return LOSS_BAR
    return FIT_BARS.get(model) if system == FEEDBACK else None
