"""The comparison that ``make train`` runs, on outcomes made by hand and on a short real run."""

import pytest

from benchmarks import uniform_vs_importance as comparison
from pipeline.training import Outcome


def outcome(test_loss, curve=(), seconds=2.0, steps=100):
    rows = [{"step": step, "seconds": 0.0, "test_loss": loss, "test_accuracy": None} for step, loss in curve]
    return Outcome(
        epochs=1,
        steps=steps,
        seconds=seconds,
        first_step_seconds=0.1,
        train_loss=0.5,
        test_loss=test_loss,
        test_accuracy=0.9,
        worst_class_accuracy=0.8,
        history=[],
        curve=rows,
    )


def test_steps_to_is_the_first_step_that_is_low_enough():
    run = outcome(0.1, curve=[(10, 0.9), (20, 0.3), (30, 0.4), (40, 0.2)])
    assert comparison.steps_to(run, 0.3) == 20
    assert comparison.steps_to(run, 0.05) is None
    assert comparison.steps_to(run, 0.1) == 100  # reached at the very end only


@pytest.mark.parametrize(
    ("test_loss", "words"), [(0.5, "paid"), (0.99, "did not pay"), (1.02, "did not pay"), (1.5, "did not pay")]
)
def test_the_verdict_says_what_the_figures_say(test_loss, words):
    outcomes = {"uniform": outcome(1.0), "importance": outcome(test_loss, [(40, 0.6)], seconds=3.0)}
    sentence = comparison.verdict("task", outcomes)
    assert words in sentence
    assert ("did not" in sentence) == ("did not" in words)
    assert "1.50 times the seconds" in sentence


def test_a_short_run_prints_a_table_and_a_sentence_for_each_task(capsys, monkeypatch):
    monkeypatch.setattr(comparison, "TASKS", {"digits": 2, "digits-longtail": 2})
    outcomes = comparison.main(comparison.Options())
    printed = capsys.readouterr().out
    for task, of_task in outcomes.items():
        assert set(of_task) == {"uniform", "importance"}
        assert of_task["uniform"].steps == of_task["importance"].steps > 0
        assert f"On {task} importance sampling" in printed
    assert "worst class" in printed
    assert "final test loss" in printed
