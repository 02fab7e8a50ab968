"""The benchmark runs, names what it skips, and writes what it says it writes.

No test here asserts how long anything takes: that is what the benchmark is for, on a machine at rest.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import comparing, measuring, sampler_throughput, systems
from benchmarks.sampler_throughput import Options, Row

EVERYWHERE = [name for name, entry in systems.SYSTEMS.items() if entry.everywhere]
TINY = Options(
    sizes=(1000,),
    batches=(8,),
    rounds=2,
    seconds=1e-6,
    variants_at=(1000, 8),
    one_core=False,  # threads that start on one core stay on it, also for the tests that follow
)


class Counted:
    """A contestant that remembers its turns; a step of it takes 3 µs."""

    def __init__(self) -> None:
        self.turns: list[int] = []

    def turn(self, steps: int) -> tuple[float, float]:
        self.turns.append(steps)
        return 1.0, 2.0


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return sampler_throughput.measure(TINY)


@pytest.fixture
def without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # an import of it then raises


def test_every_system_has_a_row(rows: list[Row]) -> None:
    assert [row["system"] for row in rows] == list(systems.SYSTEMS)
    assert [row["system"] for row in rows if "skipped" in row] == []


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_row_has_its_fields(rows: list[Row], name: str) -> None:
    row = next(row for row in rows if row["system"] == name)
    assert (row["num_samples"], row["batch_size"]) == (1000, 8)
    for what in ("draw", "update", "step"):
        lower, upper = row[f"{what}_quartiles_us"]
        assert 0.0 < lower <= row[f"{what}_us"] <= upper
    assert row["step_over_choice_draw"] > 0.0
    assert row["kind"] in ("public", "kernel", "numpy", "floor")
    assert len(row["step_rounds_us"]) == row["repeats"] == 2
    assert row["build_s"] >= 0.0
    assert row["bytes_per_sample"] is None or row["bytes_per_sample"] >= 4.0
    assert row["steps_per_repeat"] >= 1


def test_rows_tell_the_machine(rows: list[Row]) -> None:
    for row in rows:
        machine = row["machine"]
        assert machine["processor"]
        assert machine["cores"] == os.cpu_count()
        assert machine["numpy"] == np.__version__
        assert {"python", "numba", "tensorflow", "date", "load", "core"} <= set(machine)


def test_variants_stand_at_their_point_alone() -> None:
    elsewhere = replace(TINY, variants_at=(1000, 9))
    rows = sampler_throughput.measure(elsewhere)
    assert [row["system"] for row in rows] == EVERYWHERE


@pytest.mark.usefixtures("without_tensorflow")
def test_missing_tensorflow_is_named_and_has_no_figures() -> None:
    rows = sampler_throughput.measure(TINY)
    skipped = [row for row in rows if "skipped" in row]
    assert [row["system"] for row in skipped] == ["tf.random.categorical"]
    assert "tensorflow" in skipped[0]["skipped"]
    assert not any(field.endswith("_us") for field in skipped[0])
    assert "skipped: " in sampler_throughput.table(rows)


@pytest.mark.usefixtures("without_tensorflow")
def test_a_system_of_others_that_fails_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> systems.System:
        raise MemoryError("too large")

    choice = replace(systems.SYSTEMS[systems.CHOICE], build=fail)
    monkeypatch.setattr(systems, "SYSTEMS", {**systems.SYSTEMS, systems.CHOICE: choice})
    rows = {row["system"]: row for row in sampler_throughput.measure(TINY)}
    assert rows[systems.CHOICE]["skipped"] == "MemoryError: too large"
    assert rows["ImportanceSampler"]["step_over_choice_draw"] is None


def test_a_system_of_ours_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> systems.System:
        raise ZeroDivisionError

    broken = systems.Entry(fail, "public", ours=True)
    monkeypatch.setattr(systems, "SYSTEMS", {"ImportanceSampler": broken})
    with pytest.raises(ZeroDivisionError):
        sampler_throughput.measure(TINY)


@pytest.mark.usefixtures("without_tensorflow")
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")  # put back after the test
    output = tmp_path / "new folder" / "rows.jsonl"
    options = "--sizes 1000 --batches 8 16 --rounds 2 --seconds 0.000001 --no-one-core --output"
    assert sampler_throughput.main([*options.split(), str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["batch_size"], row["system"]) for row in rows] == [
        (batch, name) for batch in (8, 16) for name in EVERYWHERE
    ]
    assert sorted(path.name for path in output.parent.iterdir()) == ["rows.jsonl", "rows.png"]
    captured = capsys.readouterr()
    assert "N = 1,000, B = 16" in captured.out
    assert all(name in captured.out for name in EVERYWHERE)
    assert re.sub(r", \d+ s left", "", captured.err).splitlines() == ["[0%] N=1,000 B=8", "[50%] N=1,000 B=16"]


@pytest.mark.parametrize("wrong", ["--sizes 0", "--batches -1", "--rounds 0", "--size 8", "--seconds 0"])
def test_wrong_options_end_with_status_2(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        sampler_throughput.main(wrong.split())
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_quick_shortens() -> None:
    quick = Options(quick=True).shortened()
    assert quick.output != Options().output  # the results of a whole run stay
    assert Options(quick=True, output=Path("mine.jsonl")).shortened().output == Path("mine.jsonl")
    assert max(quick.sizes) == 1_000_000
    assert quick.rounds < Options().rounds
    assert quick.seconds < Options().seconds
    assert Options().shortened() == Options()
    assert Options().rounds_at(10_000) == 21
    assert Options().rounds_at(100_000_000) == 7


def test_every_round_is_a_turn_of_each() -> None:
    contestants = {"a": Counted(), "b": Counted()}
    times, lost = measuring.take_rounds(contestants, {"a": 8, "b": 1}, rounds=3, generator=np.random.default_rng(0))
    assert lost == {}
    # Each timed turn follows its untimed lead-in.
    assert contestants["a"].turns == [2, 8] * 3
    assert contestants["b"].turns == [1, 1] * 3
    assert times["a"].step.tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, 1), (3e-6, 1), (12e-6, 4), (1e9, measuring.MOST_STEPS)])
def test_turns_are_as_long_as_the_time_allows(seconds: float, steps: int) -> None:
    assert measuring.warm_up(Counted(), seconds) == steps


def test_the_ratio_is_taken_inside_each_round() -> None:
    # A slow second round slows both; the ratio of the two stays.
    slow = np.array([1.0, 10.0])
    own = measuring.Times(draw=slow, update=slow, steps=1)
    choice = measuring.Times(draw=8 * slow, update=slow, steps=1)
    assert sampler_throughput.over_choice(own, choice) == 0.25
    assert comparing.fraction(0.25) == "1/4"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such call on this system")
def test_one_core_is_given_back() -> None:
    before = os.sched_getaffinity(0)
    with measuring.one_core() as core:
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("name", [name for name in systems.SYSTEMS if not name.startswith("floor")])
def test_what_was_learnt_is_drawn(name: str) -> None:
    """Of 50 equal samples one turns out to have a loss of 10^6: from then on it is in most batches.

    With λ = 0.3 a batch of 8 misses it with a chance below 1e-4; unlearnt, it would be in one of six.
    """
    heavy = 7
    system = systems.SYSTEMS[name].build(np.ones(50), 8, np.random.default_rng(0))
    held = []
    for _ in range(220):  # it is not met in the first 200 with a chance of 1e-14
        system.ready()
        drawn = system.draw()
        index = np.asarray(getattr(drawn, "index", drawn))
        assert index.shape == (8,)
        system.update(drawn, np.where(index == heavy, 1e6, 1.0).astype(np.float32))
        held.append(heavy in index)
    assert sum(held[-20:]) >= 15


def test_ratios_name_what_is_missing(rows: list[Row]) -> None:
    cut = [
        {"system": row["system"], "num_samples": 1000, "batch_size": 8, "skipped": "not installed"}
        if row["system"] == "tf.random.categorical"
        else {
            **row,
            "step_rounds_us": [1.0, 10.0] if row["system"] == "ImportanceSampler" else [4.0, 40.0],
            "step_over_choice_draw": 0.5,
        }
        for row in rows
    ]
    titles, _, cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in comparing.ratios(cut).splitlines())
    table = dict(zip(titles, cells, strict=True))
    assert (table["N"], table["B"]) == ("1,000", "8")
    assert table[f"{systems.CHOICE}, draw alone"] == "1/2"
    assert table["numpy cumsum + searchsorted"] == "1/4"
    assert table["tf.random.categorical"] == "-"


def test_a_busy_machine_is_said_to_be_busy() -> None:
    assert sampler_throughput.warning({"load": 0.1}) == sampler_throughput.warning({"load": None}) == []
    assert "3.5" in sampler_throughput.warning({"load": 3.5})[0]
