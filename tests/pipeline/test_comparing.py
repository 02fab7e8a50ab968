"""Comparisons of runs made by hand: what is common, what is beyond chance, what is said."""

from __future__ import annotations

import csv
import json
import math
import re

import numpy as np
import pytest
from rich.console import Console

from pipeline import comparing
from pipeline.comparing import Comparison, Run, common_loss, take_turns, to_dict, to_tables, verdict
from pipeline.results import to_csv, to_json
from pipeline.training import Outcome


def run_of(method, seed, losses, *, seconds=1.0, accuracy=0.9):
    """A run that records these losses, after every ten steps and as many ``seconds``."""
    curve = tuple((10 * (k + 1), seconds * (k + 1), loss) for k, loss in enumerate(losses))
    end = curve[-1]
    return Run(method, seed, end[0], end[1], 0.5, end[2], end[2], accuracy, accuracy, curve)


def runs_of(losses, **options):
    """``{method: [final loss of each seed]}`` as runs, interleaved."""
    seeds = range(len(next(iter(losses.values()))))
    return [run_of(method, seed, [2.0, losses[method][seed]], **options) for seed in seeds for method in losses]


# --- the figures ----------------------------------------------------------------------------------


def test_a_run_ends_its_curve_and_leaves_compilation_out():
    curve = [{"step": 5, "seconds": 3.0, "test_loss": 0.5, "test_accuracy": None}]
    outcome = Outcome(1, 8, 5.0, 2.0, 0.1, 0.2, None, None, [], curve)
    run = Run.of("uniform", 3, outcome)
    assert run.curve == ((5, 1.0, 0.5), (8, 3.0, 0.2))
    assert (run.seconds, run.first_step_seconds) == (3.0, 2.0)
    curve.append({"step": 8, "seconds": 5.0, "test_loss": 0.2, "test_accuracy": None})
    assert Run.of("uniform", 3, outcome).curve == run.curve  # which had its end


def test_the_common_loss_is_the_least_that_every_run_reaches():
    runs = [run_of("a", 0, [0.9, 0.3, 0.4]), run_of("b", 0, [0.5, 0.35, 0.2]), run_of("c", 0, [0.9, math.nan])]
    assert common_loss(runs) == 0.3  # of a; c diverged
    assert [run.first_at(0.3) for run in runs[:2]] == [(20, 2.0), (30, 3.0)]
    assert all(map(math.isnan, runs[2].first_at(0.3)))
    assert math.isnan(common_loss(runs[2:]))


def test_losses_are_compared_as_ratios_seed_by_seed():
    """Seeds differ tenfold, the methods by a half each time: the spread of the seeds does not count."""
    comparison = Comparison.of(runs_of({"uniform": [1.0, 0.1, 0.01], "other": [0.5, 0.05, 0.005]}))
    found = comparison.summaries["other"]["test_loss"]
    assert (found.against, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.p < 1e-12
    assert found.mean == pytest.approx(0.185)
    assert math.isnan(comparison.summaries["uniform"]["test_loss"].against)


def test_a_ratio_and_its_interval_are_those_of_the_logarithms():
    logs = np.array([-0.5, -0.7, -0.6, -0.4])
    comparison = Comparison.of(runs_of({"uniform": [1.0] * 4, "other": list(np.exp(logs))}))
    found = comparison.summaries["other"]["test_loss"]
    half = 3.182446 * logs.std(ddof=1) / 2  # t(.975, 3)
    expected = np.exp([-0.55, -0.55 - half, -0.55 + half])
    assert [found.against, found.low, found.high] == pytest.approx(list(expected), rel=1e-6)


def test_accuracies_are_compared_as_differences():
    runs = runs_of({"uniform": [1.0, 1.0]}, accuracy=0.9) + runs_of({"other": [1.0, 1.0]}, accuracy=0.95)
    found = Comparison.of(runs).summaries["other"]["test_accuracy"]
    assert (found.against, found.low) == pytest.approx((0.05, 0.05))


def test_p_values_are_corrected_for_the_number_of_methods():
    losses = {"uniform": [1.0, 1.0, 1.0], "a": [0.5, 0.6, 0.7], "b": [0.9, 1.0, 1.2], "c": [0.5, 0.8, 0.9]}
    both = Comparison.of(runs_of(losses))
    alone = Comparison.of(runs_of({name: losses[name] for name in ("uniform", "a")}))
    assert both.summaries["a"]["test_loss"].p == pytest.approx(3 * alone.summaries["a"]["test_loss"].p)


def test_a_run_that_diverged_is_left_out_and_so_is_its_pair():
    runs = runs_of({"uniform": [1.0, 5.0, 1.0], "other": [0.5, math.nan, 0.5]})
    comparison = Comparison.of(runs)
    found = comparison.summaries["other"]["test_loss"]
    assert (found.mean, found.against) == pytest.approx((0.5, 0.5))
    assert comparison.diverged("other") == 1
    assert "other diverged in 1 of 3 runs" in verdict(comparison)


def test_a_loss_of_zero_has_a_ratio():
    comparison = Comparison.of(runs_of({"uniform": [1.0, 1.0], "other": [0.0, 0.0]}))
    assert comparison.summaries["other"]["test_loss"].against == pytest.approx(comparing.LEAST_LOSS)


# --- in words -------------------------------------------------------------------------------------


def test_the_verdict_says_what_is_beyond_chance_and_what_is_not():
    rng = np.random.default_rng(0)
    noise = np.exp(0.01 * rng.normal(size=(3, 5)))
    losses = {"uniform": list(noise[0]), "half": list(0.5 * noise[1]), "same": list(noise[2])}
    said = verdict(Comparison.of(runs_of(losses)))
    first, second = said.splitlines()
    assert first.startswith("Final test loss, as a multiple of uniform's (paired over 5 seeds")
    beyond, within = first.split(". Not beyond chance: ")
    assert "Beyond chance: half 0.5" in beyond
    assert within.startswith("same ")
    assert second.startswith("Seconds to the best common test loss, ")


def test_nothing_is_beyond_chance_with_one_seed():
    said = verdict(Comparison.of(runs_of({"uniform": [1.0], "half": [0.5]})))
    assert "One seed is an impression" in said
    assert "Beyond" not in said
    assert "half 0.5" in said


def test_without_a_difference_chance_is_said_to_explain_all_but_a_twentieth():
    """Two methods that are the same, 2,000 comparisons: at most 5 % say otherwise, 100 + 6 deviations of 9.7."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(2000):
        logs = rng.normal(size=(3, 3))
        runs = runs_of({name: list(np.exp(row)) for name, row in zip("abc", logs, strict=True)})
        found = Comparison.of(runs).summaries
        wrong += any(found[name]["test_loss"].p < 0.05 for name in "bc")
    assert 20 < wrong < 160


def test_tables_show_every_method_and_leave_out_what_nobody_has():
    runs = runs_of({"uniform": [1.0, 1.1], "other": [0.5, 0.6]}, accuracy=None)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in to_tables(Comparison.of(runs), "task"):
        console.print(table)
    console.file.close()
    text = console.export_text()
    assert "accuracy" not in text.replace("accuracies", "")
    assert text.count("uniform ") == 1
    assert "0.55 ±0.64" in text  # t(.975, 1) = 12.706 times .05
    middle, low, high = re.search(r"test loss +([\d.]+) \(([\d.]+) to ([\d.]+)\)", text).groups()
    assert middle == "0.52"  # the root of .5 times .6 / 1.1
    assert float(low) < 0.52 < float(high)
    assert "…" not in text


def test_files_hold_a_row_a_run_and_a_row_a_point():
    comparison = Comparison.of(runs_of({"uniform": [1.0, math.inf], "other": [0.5, 0.6]}))
    rows = list(csv.DictReader(to_csv(comparison.rows()).splitlines()))
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("uniform", "0"),
        ("other", "0"),
        ("uniform", "1"),
        ("other", "1"),
    ]
    assert len(comparison.curve_rows()) == 8
    read = json.loads(to_json(to_dict(comparison)), parse_constant=pytest.fail)
    assert read["summaries"]["other"]["test_loss"]["mean"] == pytest.approx(0.55)
    assert read["diverged"] == {"uniform": 1, "other": 0}


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from pipeline.comparison_plot import draw, points_of

    runs = [run_of("uniform", 0, [2.0, math.nan, 1.0]), run_of("uniform", 1, [3.0, 2.0, 0.0])]
    comparison = Comparison.of([*runs, run_of("other", 0, [1.0, math.nan])])
    draw(comparison, tmp_path / "picture.png", "task")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    points = points_of(comparison, "uniform")
    np.testing.assert_allclose(points[:, :, 2], [[2.0, 3.0, 1.0], [3.0, 2.0, comparing.LEAST_LOSS]])
    assert points_of(comparison, "other") is None


# --- turns ----------------------------------------------------------------------------------------


def test_methods_take_turns_within_a_seed_and_progress_is_told(monkeypatch):
    told, order = [], []

    def train_one(method, seed, tell):
        order.append((seed, method))
        tell(steps[method] // 2)
        return Outcome(1, steps[method], 1.0, 0.1, 0.5, 0.5, None, None, [], [])

    class Counting:
        def __init__(self, what, total, unit):
            assert (total, unit) == (280, "steps")
            told.append(what())

        def __enter__(self):
            return told.append

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(comparing, "counting", Counting)
    steps = {"uniform": 100, "other": 40}
    runs = take_turns(["uniform", "other"], range(3, 5), train_one, steps)
    assert order == [(3, "uniform"), (3, "other"), (4, "uniform"), (4, "other")]
    assert told == ["uniform, seed 3 (run 1 of 4)", 50, 120, 190, 260]
    assert [(run.seed, run.method, run.steps) for run in runs] == [(s, m, steps[m]) for s, m in order]


def test_steps_are_shown_where_they_differ():
    """As they do for a budget in seconds."""
    runs = [run_of("uniform", 0, [2.0, 1.0]), run_of("other", 0, [2.0, 1.0])]
    longer = [runs[0], run_of("other", 0, [2.0, 1.5, 1.0])]
    for given, shown in ((runs, False), (longer, True)):
        names = [str(name) for table in to_tables(Comparison.of(given), "task") for name in table.columns[0].cells]
        assert ("steps" in names) == shown
