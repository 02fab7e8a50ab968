"""The command line: options, files, mistakes, and what a run writes."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import yaml

import train
from pipeline.training import Outcome
from sampler import PruningSampler
from train import Config, OptionError, main, parse, to_yaml
from trainer import plan as train_plan
from trainer import samplings as train_samplings
from trainer.config import GROUPS

ROOT = Path(__file__).parents[1]
SMALL = ["--dataset", "digits", "--model", "mlp", "--epochs", "2", "--batch-size", "128", "--no-report"]


# --- options --------------------------------------------------------------------------------------


def test_without_options_the_defaults_hold():
    assert parse([]) == Config()
    defaults = dataclasses.asdict(Config())
    assert (defaults["sampling"], defaults["dataset"], defaults["feedback_lag"]) == (
        "importance",
        "digits",
        4,
    )
    assert (defaults["uniform_fraction"], defaults["smoothing"], defaults["beta"]) == (0.3, 0.5, 1.0)


def test_every_option_is_read():
    given = Config(
        sampling="uniform",
        dataset="checker",
        model="mlp",
        epochs=7,
        batch_size=16,
        budget="30steps",
        learning_rate=0.01,
        optimizer="sgd",
        loss="focal",
        decay="none",
        warmup_steps=5,
        seed=3,
        priority="sqrt",
        uniform_fraction=0.1,
        smoothing=0.25,
        beta=0.5,
        scheme="multinomial",
        gate="speedup",
        warmup=2,
        finish=0.25,
        refresh=0.1,
        prune=0.25,
        selectivity=2.0,
        presample=2.0,
        balance=0.99,
        reference="auto",
        feedback_lag=None,
        evaluate_every=10,
        compare="uniform,importance:priority=loss",
        seeds=2,
        output=Path("there"),
        dry_run=True,
        quiet=True,
    )
    arguments = ["--dry-run", "--quiet"]
    for key in train.KEYS:
        arguments += [f"--{key.replace('_', '-')}", str(getattr(given, key))]
    assert parse(arguments) == given


def test_help_names_every_option_and_its_default(capsys):
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in dataclasses.fields(Config):
        option = field.name.replace("_", "-")
        if field.default is True:
            assert f"--no-{option}" in text
        else:
            assert f"--{option}" in text
            assert f"(default: {field.default})" in text


def test_help_shows_options_in_groups_and_whole_sentences(capsys, monkeypatch):
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(vars(Config()))
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"{title} options" in told for title in GROUPS)
    assert "harder ones (biased), reducible by loss over that of a reference" in told
    assert "train.py --dataset checker --compare" in told


def test_the_folder_is_named_after_the_run():
    assert Config(dataset="npz:data/my file.npz", seed=3).folder == Path("runs/npz-data-my-file.npz-importance-3")
    assert Config(output=Path("here")).folder == Path("here")


# --- files of options -----------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return write


def test_a_file_goes_before_the_defaults_and_the_command_line_before_the_file(file):
    path = file("epochs: 7\nbatch-size: 64\nlearning_rate: 1e-2\nfeedback_lag: null\nsmoothing: 0\n")
    for arguments in (["--epochs", "9", "--config", path], [f"--config={path}", "--epochs=9"]):
        assert parse(arguments) == Config(
            epochs=9,
            batch_size=64,
            learning_rate=0.01,
            feedback_lag=None,
            smoothing=0.0,
            config=Path(path),
        )


def test_an_empty_file_changes_nothing(file):
    path = file("# nothing yet\n")
    assert parse(["--config", path]) == Config(config=Path(path))


def test_what_is_printed_can_be_read(file, capsys):
    arguments = ["--beta", "0.5", "--feedback-lag", "None", "--output", "a b", "--dataset", "npz:x y.npz"]
    assert main([*arguments, "--print-config"]) == 0
    printed = capsys.readouterr().out
    config = parse(["--config", file(printed)])
    assert dataclasses.replace(config, config=None) == parse(arguments)
    assert to_yaml(config) == printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "epohcs: 3",
            "unknown option 'epohcs' in --config {path}. Did you mean 'epochs'? There are: sampling,",
        ),
        ("dry_run: true", "unknown option 'dry_run'"),
        ("model: on", "model in --config {path} is True to yaml; put a word like on or yes into quotes"),
        ("epochs: [3, 4]", "epochs in --config {path} must be a single value, got [3, 4]"),
        ("epochs: many", "the value above comes from --config {path}"),
        ("sampling: importence", "the value above comes from --config {path}"),
        ("smoothing: 1.5", "smoothing must be in [0, 1), got 1.5"),
        ("- epochs", "--config {path} must hold lines of 'option: value', got ['epochs']"),
        ("epochs: 3\n  beta: 1", "--config {path} is not yaml: mapping values are not allowed"),
    ],
)
def test_a_wrong_file_is_told(file, capsys, text, message):
    path = file(text)
    assert main(["--config", path]) == 2
    said = capsys.readouterr()
    assert message.format(path=path) in said.err
    assert said.out == ""


def test_a_missing_file_names_its_neighbour(file, capsys):
    path = file("epochs: 3")
    assert main(["--config", path.replace("mine", "mien")]) == 2
    assert f"Did you mean {path}?" in capsys.readouterr().err


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epohcs", "3"], "--epochs"),
        (["--sampling", "importence"], "'importance'"),
        (["--scheme", "sistematic"], "'systematic'"),
        (["--epochs", "three"], "--epochs"),
        (["--epochs"], "--epochs"),
        (["digits"], "digits"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--batch-size", "-1"], "--batch-size must be in 1..2147483647, got -1"),
        (["--learning-rate", "nan"], "--learning-rate must be above 0 and finite, got nan"),
        (["--warmup-steps", "-1"], "--warmup-steps must be at least 0, got -1"),
        (["--seed", "-1"], "--seed must be in 0..4294967295, got -1"),
        (["--sampling", "presampled", "--refresh", "0.1"], "--refresh is for samplings that remember losses"),
        (["--budget", "20"], "--budget must be like 20epochs, 3000steps or 120s, got '20'"),
        (["--budget", "2.5epochs"], "--budget must be like"),
        (["--budget", "0s"], "--budget must be like"),
        (["--warmup", "-1"], "--warmup must be at least 0, got -1"),
        (["--finish", "1.5"], "--finish must be in 0..1, or None, got 1.5"),
        (["--prune", "1"], "prune must be in [0, 1), got 1"),
        (["--presample", "0.5"], "--presample must be at least 1 and finite, got 0.5"),
        (["--balance", "2"], "beta must be in [0, 1], got 2"),
        (["--sampling", "reducible"], "--sampling reducible needs --reference"),
        (["--sampling", "reducible", "--reference", "none.npy"], "none.npy"),
        (["--sampling", "class-balanced", "--dataset", "heavy-linear"], "class-balanced needs classes"),
        (["--loss", "focal", "--dataset", "heavy-linear"], "the focal loss is one for classes"),
        (["--compare", "uniform"], "--compare must name two samplings or more"),
        (["--compare", "uniform,uniform"], "each once"),
        (["--compare", "uniform,importence"], "unknown sampling 'importence' in --compare. Did you mean 'importance'?"),
        (["--compare", "uniform,importance:beta=2"], "beta must be in [0, 1], got 2"),
        (["--compare", "uniform,importance:beta=many"], "the value above comes from 'importance:beta=many'"),
        (["--compare", "uniform,importance:seed=2"], "A method's own can be: budget, learning_rate,"),
        (["--compare", "uniform,importance:prioriti=sqrt"], "got 'prioriti=sqrt'. Did you mean 'priority'?"),
        (["--compare", "uniform,pruning", "--seeds", "0"], "--seeds must be in 1..10000, got 0"),
        (["--evaluate-every", "0"], "--evaluate-every must be at least 1, or None, got 0"),
        (["--uniform-fraction", "1.1"], "uniform_fraction must be in [0, 1], got 1.1"),
        (["--smoothing", "1"], "smoothing must be in [0, 1), got 1"),
        (["--beta", "-0.5"], "beta must be in [0, 1], got -0.5"),
        (["--epochs", "50000000"], "2,150,000,000 steps are more than 2,147,483,646"),
        (["--workers", "0"], "--workers must be in 1..10000, got 0"),
        (["--scorers", "1" + 30 * "0"], "--scorers must be in 0..10000, got 1000"),
        (["--feedback-lag", "0"], "feedback_lag must be at least 1, got 0"),
        (["--dataset", "digit"], "unknown data set 'digit'. Did you mean 'digits'?"),
        (["--dataset", "npz:nowhere.npz"], "no file 'nowhere.npz'"),
        (["--dataset", "checker", "--model", "cnn"], "the model 'cnn' needs images"),
        (["--model", "mpl"], "unknown model 'mpl'. Did you mean 'mlp'?"),
        (["--sampling=importnace"], "got 'importnace'. Did you mean 'importance'?"),
        (["--optimizer", "adma"], "--optimizer must be one of adam, sgd, got 'adma'. Did you mean 'adam'?"),
        (["--model", "no_such_module:small"], "no module 'no_such_module'"),
        (["--epochs", "1", "--warmup-steps", "43"], "--warmup-steps must be below the 43 steps, got 43"),
        (
            ["--scheme", "without_replacement", "--batch-size", "1348"],
            "--scheme without_replacement cannot draw --batch-size 1348 different samples out of 1347",
        ),
    ],
)
@pytest.mark.fault(34)
def test_a_mistake_is_told_without_a_trace_and_nothing_is_written(arguments, message, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capfd.readouterr()
    assert message in " ".join(said.err.replace("│", " ").split())
    assert "Traceback" not in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_whole_data_set_a_batch_can_be_drawn_without_replacement(capsys):
    arguments = ["--scheme", "without_replacement", "--batch-size", "1347", "--dry-run"]
    assert main(arguments) == 0
    assert "20 steps of 1347" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path, capsys, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setattr(train_plan.Plan, "train", lambda *_: pytest.fail("it was trained"))
    assert main([*SMALL, "--output", str(tmp_path / "taken")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_interruption_is_status_130_and_writes_no_result(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_plan.Plan, "train", interrupt)
    assert main([*SMALL, "--output", str(tmp_path / "out")]) == 130
    assert "interrupted; no result was written" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_run_from_python_refuses_the_same():
    with pytest.raises(OptionError, match="--epochs must be at least 1"):
        train.run(Config(epochs=0))


# --- runs -----------------------------------------------------------------------------------------


def result(folder):
    return json.loads((folder / "summary.json").read_text())


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_dry_run_plans_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_plan.Plan, "train", lambda *_: pytest.fail("it was trained"))
    assert main([*SMALL, "--dry-run", "--output", "out"]) == 0
    assert capsys.readouterr().out == (
        "importance on digits: 22 steps of 128 (2 epochs), 1,347 samples to train on, 450 to test, 10 classes, "
        "mlp with 8,970 parameters, seed 0\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_run_writes_its_result_and_the_same_options_give_the_same(tmp_path, capsys):
    first, again = tmp_path / "first", tmp_path / "again"
    assert main([*SMALL, "--evaluate-every", "8", "--output", str(first)]) == 0
    told = capsys.readouterr()
    names = [line.split("  ")[0] for line in told.out.splitlines()]
    assert names[1:6] == ["test loss", "test accuracy", "training loss", "trained for", "draws at the end"]
    assert re.search(rf"^written to +{first}$", told.out, re.MULTILINE)
    assert "epoch 2 of 2: loss" in told.err  # no terminal: lines, not a bar
    assert sorted(path.name for path in first.iterdir()) == [
        *("config.yaml", "curve.csv", "history.csv", "snapshots", "summary.json")
    ]

    summary = result(first)
    assert list(summary) == [
        *("sampling", "dataset", "model", "parameters", "seed", "epochs", "steps", "batch_size"),
        *("learning_rate", "seconds", "train_loss", "test_loss", "test_accuracy", "worst_class_accuracy"),
        "sampler",
    ]
    assert (summary["sampling"], summary["dataset"], summary["seed"]) == ("importance", "digits", 0)
    assert (summary["epochs"], summary["steps"], summary["batch_size"]) == (2, 22, 128)
    assert 0 <= summary["worst_class_accuracy"] <= summary["test_accuracy"] <= 1
    assert summary["sampler"]["seen"] == 1347
    assert 0 < summary["seconds"] < 60

    history = rows_of(first / "history.csv")
    assert [(row["epoch"], row["step"]) for row in history] == [("1", "11"), ("2", "22")]
    assert float(history[-1]["test_loss"]) == summary["test_loss"]
    assert [row["step"] for row in rows_of(first / "curve.csv")] == ["8", "16"]

    # Again from the file that it wrote, quietly and without the curve, which changes no result.
    options = ["--config", str(first / "config.yaml"), "--evaluate-every", "None", "--quiet", "--no-report"]
    assert main([*options, "--output", str(again)]) == 0
    assert capsys.readouterr() == ("", "")
    same = result(again)
    for found in (summary, same):
        del found["seconds"]
    assert same == summary
    assert yaml.safe_load((again / "config.yaml").read_text())["output"] == str(again)

    # With another seed into the first one's folder: its curve would be another run's.
    assert main([*options, "--seed", "1", "--output", str(first)]) == 0
    assert not (first / "curve.csv").exists()
    different = result(first)
    assert different["seed"] == 1
    assert different["test_loss"] != summary["test_loss"]


# --- samplings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", train_samplings.SAMPLINGS)
@pytest.mark.every(3)
def test_every_sampling_trains(sampling, tmp_path, capsys):
    options = [
        "--dataset",
        "digits-longtail",
        "--model",
        "mlp",
        "--budget",
        "20steps",
        "--reference",
        "auto",
        "--no-report",
    ]
    assert main([*options, "--sampling", sampling, "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{sampling} on digits-longtail: 20 steps of 32, 280 samples")
    summary = result(tmp_path)
    assert (summary["sampling"], summary["steps"], summary["sampler"]["updates"]) == (sampling, 20, 20)
    assert summary["test_loss"] < np.log(10) * 1.1
    if sampling == "uniform":
        assert summary["sampler"]["max_weight"] == 1.0


@pytest.mark.parametrize("options", [["--gate", "none", "--priority", "gradient_norm"], ["--priority", "auto"]])
def test_importance_draws_as_it_is_told(options, tmp_path):
    arguments = [
        "--dataset",
        "digits-longtail",
        "--model",
        "mlp",
        "--epochs",
        "4",
        "--warmup",
        "1",
        "--finish",
        "0.25",
        "--no-report",
    ]
    assert main([*arguments, *options, "--quiet", "--output", str(tmp_path)]) == 0
    found = result(tmp_path)["sampler"]
    assert found["seen"] == 280
    assert ("gate_open" in found) == ("none" not in options)


def test_phases_are_steps_of_the_training():
    task = train_samplings.Task(100, 41)
    sampler = train_samplings.make_sampler(Config(warmup=2, finish=0.25, gate="none"), task)
    assert (sampler.warmup, sampler.finish_at) == (2, 30)
    assert train_samplings.make_sampler(Config(), task).finish_at is None


class Told:
    def __init__(self, better):
        self.better = better

    def sentence(self, priority):
        return self.better and self.better.format(priority)


@pytest.mark.parametrize(
    ("config", "summary", "better", "said"),
    [
        (
            Config(),
            {"gate_open": False, "gate_gain": 0.951, "gate_changed": -1},
            "draws by 'sqrt', not {!r}, would",
            "At the end the gate was closed, and draws uniform: by its estimate a draw by priority is worth 0.95 "
            "uniform ones. "
            "Draws by 'sqrt', not 'loss', would.",
        ),
        (
            Config(),
            {"gate_open": True, "gate_gain": 1.5, "gate_changed": 1200},
            None,
            "At the end the gate was open: by its estimate a draw by priority is worth 1.50 uniform ones; it last "
            "changed at step 1,200.",
        ),
        (Config(gate="none", priority="auto"), {}, "never", "The priority that 'auto' stood for was 'sqrt'."),
        (Config(sampling="uniform"), {}, "never", None),
    ],
)
def test_a_run_by_loss_says_what_it_found(config, summary, better, said):
    class Sampler:
        priority = "'sqrt'"

        def summary(self):
            return summary

    plan = train_plan.Plan(config, None, None, Sampler())
    outcome = Outcome(1, 1, 1.0, 0.1, 0.1, 0.9, None, None, [], [], advice=Told(better))
    assert train.advice(plan, outcome) == said
    by_heart = train.advice(plan, dataclasses.replace(outcome, train_loss=0.03)) or ""
    assert ("the test loss is 30 times the training loss" in by_heart) == bool(summary.get("gate_open"))


def test_the_samplings_are_those_of_the_option():
    assert set(get_args(get_type_hints(Config)["sampling"])) == set(train_samplings.SAMPLINGS)


def test_a_budget_in_seconds_becomes_steps_by_a_trial(monkeypatch):
    def trial(plan, callbacks):
        assert isinstance(plan.sampler, PruningSampler)
        assert (plan.config.decay, plan.config.warmup_steps, plan.steps) == ("none", 0, train_plan.TRIAL_STEPS)
        return Outcome(1, 101, 2.5, 0.5, 0.1, 0.1, None, None, [], [])  # 20 ms for each step but the first

    monkeypatch.setattr(train_plan.Plan, "train", trial)
    config = train_plan.in_steps(Config(sampling="pruning", dataset="digits", budget="6s", warmup_steps=5))
    assert config == Config(sampling="pruning", dataset="digits", budget="300steps", warmup_steps=5)
    assert train_plan.in_steps(config) is config


def test_a_trial_ends_after_its_share_of_the_seconds():
    plan = train_plan.prepare(Config(dataset="digits-longtail", budget="1s"), trial=True)
    assert plan.train([train_plan._end_after(0.0)]).steps == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sampling", "pruning", "--priority", "sqrt", "--finish", "0.2"], "--priority: without effect on"),
        (["--sampling", "selective", "--prune", "0.2", "--beta", "0.5"], "--beta, --prune: without effect on"),
        (["--seeds", "3"], "--seeds 3: without effect without --compare"),
        (["--sampling", "importance", "--priority", "sqrt"], ""),
    ],
)
def test_options_that_a_sampling_has_no_use_for_are_named(options, said, capsys):
    assert main([*options, "--dataset", "digits-longtail", "--dry-run"]) == 0
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert ("without effect" in err) == bool(said)


# --- divergence -----------------------------------------------------------------------------------


def test_a_training_that_diverges_still_gives_valid_json(tmp_path):
    x = np.linspace(0, 1, 80).reshape(40, 2)
    np.savez(tmp_path / "steep.npz", x=x, y=x[:, :1] * 1e30)
    arguments = ["--dataset", f"npz:{tmp_path / 'steep.npz'}", "--epochs", "1", "--quiet", "--no-report"]
    assert main([*arguments, "--sampling", "uniform", "--output", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["train_loss"] is None
    assert summary["test_accuracy"] is None


# --- TensorFlow's own lines -----------------------------------------------------------------------


def test_start_up_lines_are_held_back_and_shown_where_loading_fails(capfd):
    with train._held_back_stderr():
        os.write(2, b"cudart_stub: no GPU\n")
    print("later", file=sys.stderr)
    assert capfd.readouterr().err == "later\n"

    def fail():
        os.write(2, b"libtensorflow is broken\n")
        raise ImportError

    with pytest.raises(ImportError), train._held_back_stderr():
        fail()
    print("later", file=sys.stderr)
    assert capfd.readouterr().err == "libtensorflow is broken\nlater\n"


FRESH = """
import os
import socket
import sys
import train

watched = {"socket.bind", "socket.connect", "socket.listen", "pickle.find_class", "subprocess.Popen", "os.system"}
seen = []


def of_numba():
    "Whether numba reads what it compiled, which lies beside Python's own .pyc files and is code like them."
    frame = sys._getframe()
    while frame is not None and "numba" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


sys.addaudithook(lambda event, arguments: seen.append(event) if event in watched and not of_numba() else None)


def sockets():
    open_files = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [path for path in open_files if os.path.lexists(path) and os.readlink(path).startswith("socket:")]


assert train.main(["--help"]) == 0
assert train.main(["--epochs", "0"]) == 2
assert train.main(["--print-config"]) == 0
assert "tensorflow" not in sys.modules, "options need no TensorFlow"
print("-- a run", flush=True)
print("-- a run", file=sys.stderr, flush=True)
train.import_tensorflow()
seen.clear()  # one of TensorFlow's imports binds a socket, to see whether there is IPv6
assert train.main(sys.argv[1:]) == 0
assert train.main([*sys.argv[-2:], "--resume", "--quiet", "--no-report"]) == 0, "its snapshots are read"
assert not seen, seen
assert not sockets()
with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    assert seen == ["socket.bind"]
    assert len(sockets()) == 1, "they would have been seen"
"""


@pytest.mark.fault(36)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed there")
def test_in_a_fresh_process_options_need_no_tensorflow_and_a_run_is_quiet_and_by_itself(tmp_path):
    """It prints what it should; it opens no port, connects to nothing, starts nothing and unpickles nothing."""
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    environment["PYTHONPATH"] = str(Path(train.__file__).parent)
    finished = subprocess.run(
        [sys.executable, "-c", FRESH, *SMALL, "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    out, err = (text.partition("-- a run\n")[2].splitlines() for text in (finished.stdout, finished.stderr))
    told = [line for line in err if " steps" not in line]  # how far it is, where it takes more than seconds
    assert [line.split(": loss")[0] for line in told] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert out[0].split()[0] == "importance"
    assert any(line.split() == ["written", "to", str(tmp_path / "out")] for line in out)
    assert result(tmp_path / "out")["steps"] == 22


def test_a_training_that_diverges_ends_in_words(tmp_path, capsys):
    """Infinite inputs that pass as finite: the first loss is not a number, and so are all after it."""
    path = tmp_path / "big.npz"
    np.savez(path, x=np.full((40, 3), 3e38, np.float32), y=np.arange(40, dtype=np.float32))
    options = [
        "--dataset",
        f"npz:{path}",
        "--batch-size",
        "2",
        "--output",
        str(tmp_path / "out"),
        "--quiet",
        "--no-report",
    ]
    assert train.main(options) == 1
    error = capsys.readouterr().err
    assert "diverged" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "summary.json").exists()


# --- what is read by nobody -----------------------------------------------------------------------


def test_closed_streams_are_opened_upon_nothing():
    """Else the next file takes their number, and what TensorFlow says is written into it."""
    script = "import os, train; train.open_streams(); print(1); train.say('2'); os.write(2, b'3'); print(os.dup(0) > 2)"
    for closed in ("2>&-", "0<&- 1>&- 2>&-", "1>&-"):
        command = f"exec {sys.executable} -c {shlex.quote(script + '; os._exit(7)')} {closed}"
        assert subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True).returncode == 7


def test_that_nobody_reads_stops_nothing():
    script = "import train; [train.say('line') for _ in range(3)]; raise SystemExit(7)"
    command = f"exec {sys.executable} -c {shlex.quote(script)} > /dev/full"
    assert subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True).returncode == 7


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("gs://bucket/run", "--output must be a folder on a disk, got gs:/bucket/run"),
        ("a\udcff", "is no UTF-8"),
    ],
)
def test_an_output_that_is_no_folder(output, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, "--output", output]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
