"""A process that trains what it is told, one run after the other, on one core.

    python -m benchmarks.learning_worker 0      # the core; jobs come in as lines of JSON, rows go out as such

It is started by :mod:`benchmarks.learning`. TensorFlow has one thread for its kernels here, so that two workers side by
side do not take each other's time.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import Any

POINTS = 5  # of a curve


def main(core: int) -> None:
    """Answer every line of standard input with one of standard output."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
    out, sys.stdout = sys.stdout, sys.stderr  # what is printed on the way is no answer
    import train

    train.import_tensorflow()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=out, flush=True)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """The row of a job: the job, and what came of it."""
    import keras

    import train
    from pipeline.comparing import Run
    from pipeline.training import diverged
    from sampler import DivergedError

    keras.utils.clear_session()
    config = config_of(job)
    try:
        outcome = train.run(config)
    except DivergedError:
        outcome = diverged(job["steps"])
    found = Run.of(job["method"], job["seed"], outcome)
    return {
        **job,
        "seconds": found.seconds,
        "first_step_seconds": found.first_step_seconds,
        "train_loss": found.train_loss,
        "test_loss": found.test_loss,
        "test_accuracy": found.test_accuracy,
        "worst_class_accuracy": found.worst_class_accuracy,
        "figures": outcome.figures,
        "curve": found.curve,
    }


def config_of(job: dict[str, Any]) -> Any:
    """The options of ``train.py`` for a job."""
    import train
    from benchmarks.learning_tasks import METHODS, TASKS
    from trainer.options import method_of

    task = TASKS[job["task"]]
    config = train.Config(
        dataset=task.dataset,
        model=task.model,
        batch_size=task.batch_size,
        optimizer=task.optimizer,  # type: ignore[arg-type]
        budget=f"{job['steps']}steps",
        learning_rate=job["learning_rate"],
        seed=job["seed"],
        evaluate_every=max(1, job["steps"] // POINTS),
    )
    return replace(method_of(config, METHODS[job["method"]]), seed=job["seed"])


if __name__ == "__main__":
    main(int(sys.argv[1]))
