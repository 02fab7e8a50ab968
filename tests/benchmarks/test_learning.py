"""The learning benchmark on a made-up law of learning, so that what it must find is known; one real run."""

from __future__ import annotations

import math

import pytest

from benchmarks import learning, learning_report
from benchmarks.learning import Options, main, read, study_of
from benchmarks.learning_study import Study
from benchmarks.learning_tasks import ALL, FRACTIONS, GRID_SEED, METHODS, TASKS

SPEED = {"uniform": 1.0, "importance": 2.0, "pruning": 0.8}  # how many uniform steps a step is worth


class Law:
    """A worker that does not train: the loss falls as 1/steps, and 0.003 is the best rate for all but importance, whose
    own is 0.01 for the whole budget and 0.03 for less.
    """

    made = ()

    def __init__(self, core):
        self.jobs, self.closed = [], False
        Law.made = (*Law.made, self)

    def run(self, job):
        self.jobs.append(job)
        best = 0.003
        if job["method"] == "importance":
            best = 0.01 if job["steps"] == TASKS[job["task"]].steps else 0.03
        off = 1.0 if job["learning_rate"] == best else 1.5
        loss = off * (1 + 0.01 * (job["seed"] % 7)) / (SPEED[job["method"]] * job["steps"])
        rest = {"seconds": 1e-3 * job["steps"], "first_step_seconds": 1.0, "train_loss": loss, "test_loss": loss}
        return {**job, **rest, "test_accuracy": 0.9, "worst_class_accuracy": 0.8, "figures": {}, "curve": []}

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def _no_workers():
    Law.made = ()


def options(tmp_path, **changes):
    given = {"tasks": "checker,digits", "methods": "importance,pruning", "seeds": 3, "workers": 1}
    return Options(**{**given, **changes}, results=tmp_path / "learning.jsonl")


def jobs_done():
    return [job for worker in Law.made for job in worker.jobs]


def test_every_method_takes_its_own_best_rate_and_every_budget_is_a_run_of_its_own(tmp_path):
    report = main(options(tmp_path), Law)
    rows = read(tmp_path / "learning.jsonl")
    assert [worker.closed for worker in Law.made] == [True]
    grid = [row for row in rows if row["seed"] >= GRID_SEED]
    assert len(grid) == (1 + 3) * 3 * 3 + 3 * 2  # seeds of the two tasks, rates, methods; those of half the budget
    assert {(row["task"], row["method"]) for row in grid if row["steps"] == 3000} == {
        *(("checker", "importance"), ("checker", "pruning"))
    }
    others = [row for row in rows if row["seed"] < GRID_SEED]
    assert {(row["method"], row["learning_rate"], row["steps"] in (860, 6000)) for row in others} == {
        *(("uniform", 0.003, True), ("pruning", 0.003, True)),
        *(("importance", 0.01, True), ("importance", 0.03, False)),
    }
    assert "| checker | importance | 0.01, 0.03 |" in report
    # At twice the speed half of the steps is enough: the bisection ran that and the fractions it asked on the way.
    steps = sorted({row["steps"] for row in others if (row["task"], row["method"]) == ("checker", "importance")})
    assert 3000 in steps
    assert 2700 in steps  # .45, which is not enough
    assert len(steps) < 8
    assert {row["steps"] for row in others if row["task"] == "digits"} == {860}  # where no gain is expected
    assert {row["steps"] for row in others if row["method"] == "pruning"} == {860, 6000}  # it never got there
    line = next(line for line in report.splitlines() if line.startswith("| checker | importance |"))
    assert "| 0.5 (0.5 to 0.5) |" in line
    assert "| 0.50 (0.45 to 0.5) |" in line
    assert "≤ 0.5 ✓" in line
    assert "| more than 1 |" in next(line for line in report.splitlines() if line.startswith("| checker | pruning |"))
    assert "≤ 1.02 ✗" in next(line for line in report.splitlines() if line.startswith("| digits | pruning |"))


def test_methods_take_turns_within_a_seed(tmp_path):
    main(options(tmp_path, tasks="digits"), Law)
    full = [(job["seed"], job["method"]) for job in jobs_done() if job["seed"] < GRID_SEED]
    assert full == [(seed, method) for seed in range(3) for method in ("uniform", "importance", "pruning")]


def test_what_was_run_is_not_run_again(tmp_path):
    main(options(tmp_path), Law)
    first = (tmp_path / "learning.jsonl").read_text()
    count = len(jobs_done())
    report = main(options(tmp_path), Law)
    assert len(jobs_done()) == count
    assert (tmp_path / "learning.jsonl").read_text() == first
    assert main(options(tmp_path, report=True), pytest.fail) == report
    lines = first.splitlines(keepends=True)
    (tmp_path / "learning.jsonl").write_text("".join(lines[:-5]))
    assert main(options(tmp_path), Law) == report
    assert len(jobs_done()) == count + 5


def test_time_that_is_up_begins_nothing(tmp_path, capsys):
    main(options(tmp_path, minutes=0.0), Law)
    assert jobs_done() == []
    assert "run it again to go on" in capsys.readouterr().err


def test_a_worker_that_dies_ends_the_run_and_keeps_what_was_done(tmp_path):
    class Dying(Law):
        def run(self, job):
            if len(self.jobs) == 4:
                raise RuntimeError("the worker died")
            return super().run(job)

    with pytest.raises(RuntimeError, match="the worker died"):
        main(options(tmp_path), Dying)
    assert len(read(tmp_path / "learning.jsonl")) == 4
    assert Law.made[0].closed


def test_a_run_that_diverges_never_reaches_a_target(tmp_path):
    class Diverging(Law):
        def run(self, job):
            row = super().run(job)
            if job["method"] == "importance" and job["seed"] == 1:
                row["test_loss"] = math.nan
            return row

    report = main(options(tmp_path, tasks="checker"), Diverging)
    line = next(line for line in report.splitlines() if line.startswith("| checker | importance |"))
    assert "| 1 of 3 |" in line
    assert "| more than 1 |" in line


def test_a_wrong_name_is_told():
    with pytest.raises(ValueError, match="unknown task 'chequer'; there are: checker, "):
        study_of(Options(tasks="chequer"))
    with pytest.raises(ValueError, match="unknown method 'importence'; there are: uniform, "):
        study_of(Options(methods="importence"))


def test_the_target_of_a_task_goes_before_uniforms(tmp_path):
    main(options(tmp_path, tasks="heavy-linear", methods="importance"), Law)
    study = study_of(options(tmp_path, tasks="heavy-linear"), read(tmp_path / "learning.jsonl"))
    assert study.bracket("heavy-linear", "importance") == (1.0, math.inf, None)  # 1e-4 is not 3e-10
    assert math.isnan(learning_report.steps_to(study, "heavy-linear", "importance"))


def test_steps_to_an_absolute_target_are_told_over_uniforms_own(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "heavy-linear", TASKS["heavy-linear"]._replace(target=8.5e-4, goal=0.6))
    report = main(options(tmp_path, tasks="heavy-linear", methods="importance"), Law)
    grid = [row for row in read(tmp_path / "learning.jsonl") if row["seed"] >= GRID_SEED]
    assert len(grid) == 5 * 4 * 2 * 2  # seeds of this task, rates, methods, the whole budget and half of it
    lines = {
        name: next(line for line in report.splitlines() if f"| {name} |" in line) for name in SPEED if name in report
    }
    # The law: uniform is there after .59 of the budget, importance after half of that.
    assert "| 1.00 (0.55 to 0.6) |" in lines["uniform"]
    assert "| 0.50 (0.25 to 0.3) |" in lines["importance"]
    assert lines["importance"].endswith("| ≤ 0.6 ✓ |")


def test_the_tasks_and_methods_are_those_of_the_program():
    from benchmarks.learning_worker import config_of

    for name, task in TASKS.items():
        assert set(task.methods) <= set(ALL)
        for method in task.methods:
            job = {"task": name, "method": method, "learning_rate": 0.02, "seed": 7, "steps": 50}
            config = config_of(job)
            assert config.sampling == METHODS[method].split(":")[0]
            assert (config.budget, config.learning_rate, config.seed) == ("50steps", 0.02, 7)
    assert sorted(FRACTIONS) == list(FRACTIONS)


@pytest.mark.soak
def test_a_worker_trains():
    """For twenty steps, in a process of its own."""
    small = TASKS["digits"]._replace(model="mlp", steps=20, rates=(0.003,))
    study = Study({"digits": small}, ("uniform", "pruning"), seeds=1, grid_seeds=1)
    worker = learning.Worker(0)
    try:
        job = next(job for job in study.grid() if job["method"] == "pruning")
        row = worker.run(job)
    finally:
        worker.close()
    assert {key: row[key] for key in job} == job
    assert 0.0 < row["test_loss"] < 3.0
    assert [point[0] for point in row["curve"]] == [4, 8, 12, 16, 20]
    assert worker.process.returncode == 0


def test_curves_of_different_lengths_meet_at_the_steps_of_the_shortest():
    """Runs of several times are shown together, as they are kept with more points or with fewer."""
    from matplotlib.figure import Figure

    from benchmarks import learning_curves

    panel = Figure().subplots()
    rows = [{"curve": [[10, 1.0, 4.0], [20, 2.0, 2.0], [30, 3.0, 1.0]]}, {"curve": [[10, 1.0, 3.0], [30, 5.0, 2.0]]}]
    style = learning_curves.STYLES["importance"]
    learning_curves._line(panel, rows, style, 0)
    learning_curves._line(panel, rows, style, 1)
    steps, seconds = (line.get_xydata().tolist() for line in panel.lines)
    assert steps == [[10.0, 3.5], [30.0, 1.5]]
    assert seconds == [[1.0, 3.5], [4.0, 1.5]]
