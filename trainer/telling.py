"""What ``train.py`` says: how far a training is, and what came of it.

    say(str(plan))                                          # a line that stops no training
    with progress(plan) as callback:
        outcome = plan.train([callback])
    close(plan, outcome, missing=None)                      # the table at the end

Progress goes to standard error, what came of it to standard output. TensorFlow and Keras are imported on use.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

    from pipeline.training import Outcome
    from trainer.plan import Plan

BY_HEART = 10  # times the training loss: a test loss above that is no matter of optimisation


def say(line: str) -> None:
    """Print a line; that nobody reads any more, or that no more can be written, stops no training."""
    try:
        print(line, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # as long as the program


# --- how far it is --------------------------------------------------------------------------------


@contextlib.contextmanager
def progress(plan: Plan) -> Iterator[keras.callbacks.Callback]:
    """A callback that shows how far the training is: a bar on a terminal, else lines, some ten of them for epochs."""
    import keras

    from pipeline.progress import counting, on_terminal
    from pipeline.recording import steps_of

    steps_each = -(-plan.epoch_samples // plan.config.batch_size)
    epochs, done = -(-plan.steps // steps_each), 0

    def begin(logs: dict[str, Any] | None) -> None:
        nonlocal done
        done = steps_of(plan.model)

    def step(batch: int, logs: dict[str, Any] | None) -> None:
        nonlocal done
        done += 1
        tell(done)

    def doing() -> str:
        epoch = f"epoch {max(done - 1, 0) // steps_each + 1} of {epochs}"
        return f"{epoch}, first pass" if _in_first_pass(plan) else epoch

    with counting(doing, plan.steps, "steps") as tell:
        hooks: dict[str, Any] = {"on_train_begin": begin, "on_train_batch_end": step}
        if not on_terminal():
            hooks["on_epoch_end"] = _line_writer(epochs, lambda: plan.model.stop_training)
        yield keras.callbacks.LambdaCallback(**hooks)


def _in_first_pass(plan: Plan) -> bool:
    """Whether draws are still uniform since too few samples have a loss."""
    if plan.config.sampling != "importance" or plan.scoring is not None:  # a store in shards would be called for it
        return False
    size = len(plan.sampler)
    return bool(plan.sampler.summary()["seen"] < plan.config.first_pass * size)


def _line_writer(epochs: int, stopped: Callable[[], bool]) -> Callable[[int, dict[str, Any]], None]:
    def write(epoch: int, logs: dict[str, Any]) -> None:
        if stopped() and epoch + 1 < epochs:
            return  # in its middle
        if (epoch + 1) * 10 // epochs > epoch * 10 // epochs:
            print(f"epoch {epoch + 1} of {epochs}: loss {logs['loss']:.4g}", file=sys.stderr, flush=True)

    return write


# --- what came of it ------------------------------------------------------------------------------


def close(plan: Plan, outcome: Outcome, missing: str | None) -> None:
    """The last lines: the result as a table, where it is, and what was found out."""
    rows = {**closing(plan, outcome), "written to": f"{plan.config.folder}{missing or ''}"}
    if missing is None and plan.config.report:
        rows["to look at"] = str(plan.config.folder / "report.html")
    width = max(map(len, rows))
    for name, value in rows.items():
        say(f"{name:<{width}}  {value}")
    found = [] if plan.scoring is None else [plan.scoring.sentence()]
    found += [said for said in [advice(plan, outcome)] if said]
    if found:
        say("\n" + " ".join(found))


def closing(plan: Plan, outcome: Outcome) -> dict[str, str]:
    """The result, a line each: what it is and how much."""
    rows = {"test loss": f"{outcome.test_loss:.4g}"}
    if outcome.test_accuracy is not None and outcome.worst_class_accuracy is not None:
        rows["test accuracy"] = f"{outcome.test_accuracy:.2%}, of the worst class {outcome.worst_class_accuracy:.2%}"
    rows["training loss"] = f"{outcome.train_loss:.4g}"
    rows["trained for"] = f"{outcome.steps:,} steps, {outcome.seconds:.1f} s"
    last = outcome.history[-1] if outcome.history else {}
    if plan.config.sampling == "importance" and {"gain", "effective_fraction", "max_weight"} <= last.keys():
        rows["draws at the end"] = (
            f"gain {last['gain']:.3g}, effective share {last['effective_fraction']:.0%}, largest weight "
            f"{last['max_weight']:.3g}"
        )
    return rows


def advice(plan: Plan, outcome: Outcome) -> str | None:
    """What a run that draws by loss found out about that, in sentences; None where there is nothing to say."""
    config, found, said = plan.config, plan.sampler.summary(), []
    if "gate_open" in found:
        state = "open" if found["gate_open"] else "closed, and draws uniform"
        changed = f"; it last changed at step {found['gate_changed']:,}" if found["gate_changed"] >= 0 else ""
        said.append(
            f"At the end the gate was {state}: by its estimate a draw by priority is worth {found['gate_gain']:.2f} "
            f"uniform ones{changed}."
        )
    if found.get("gate_open") and outcome.test_loss > BY_HEART * outcome.train_loss:
        said.append(
            f"But the test loss is {outcome.test_loss / max(outcome.train_loss, 1e-12):.0f} times the training loss: "
            "what binds is not the noise of the gradient, and uniform draws may generalise better; compare."
        )
    if config.sampling == "importance" and config.priority == "auto":
        said.append(f"The priority that 'auto' stood for was {plan.sampler.priority}.")
    elif config.sampling == "importance" and outcome.advice is not None:
        better = outcome.advice.sentence(config.priority)
        if better is not None:
            said.append(f"{better[0].upper()}{better[1:]}.")
    return " ".join(said) or None
