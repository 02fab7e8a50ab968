"""One training, with scorers or without.

    python -m benchmarks.scorers_worker '{"dataset": "checker", "scorers": 1}'      # options of train.py

It gives a line of JSON: what the training came to, and how old the priorities were at its end.
:mod:`benchmarks.scorers` starts it.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import Any

from benchmarks.pipeline_children import emitter


def main(options: dict[str, Any]) -> None:
    """Train, and tell."""
    emit = emitter()
    import train
    from trainer.plan import prepare, with_scorers

    train.import_tensorflow()
    with ExitStack() as stack:
        plan = with_scorers(prepare(train.Config(**options)), stack)
        outcome = plan.train()
        age = float(plan.sampler.ages().mean())
        waited = plan.sampler.summary().get("waited")
    emit(
        {
            "num_samples": len(plan.data),
            "steps": outcome.steps,
            "seconds": outcome.seconds,
            "first_step_seconds": outcome.first_step_seconds,
            "test_loss": outcome.test_loss,
            "mean_age": age,
            "waited": waited,
            "curve": [[row["seconds"], row["test_loss"]] for row in outcome.curve],
            "scorers": None if plan.scoring is None else plan.scoring.figures,
        }
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
