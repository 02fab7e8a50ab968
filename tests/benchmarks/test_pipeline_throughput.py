"""The benchmark of the pipelines runs, names what it skips, and writes what it says it writes.

No test here asserts how long anything takes: that is what the benchmark is for, on a machine at rest.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    measuring,
    pipeline_data,
    pipeline_memory,
    pipeline_plot,
    pipeline_report,
    pipeline_throughput,
    pipeline_worker,
    pipelines,
)
from benchmarks.measuring import Lost
from benchmarks.peers import remote
from benchmarks.peers.remote_pipelines import PIPELINES as PEERS
from benchmarks.pipeline_children import Child, on_cores
from benchmarks.pipeline_names import ARRAYS, CACHED, FLOOR, INDEXED, KERAS, MAPPED, RECORDS, TENSORS
from benchmarks.pipeline_report import Point, Row
from benchmarks.pipeline_throughput import Options
from benchmarks.pipelines import PIPELINES, Entry, Made, Setting

SAMPLES, BATCH, ROUNDS = 64, 8, 2
TINY = Options(data=("images",), batches=(BATCH,), num_samples=SAMPLES, cores=(1,), rounds=ROUNDS, seconds=1e-6)
COLD = {MAPPED, CACHED, RECORDS}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], str, str, Path]:
    """One run of the whole, on one core: rows, what was printed, what stood on stderr, the folder. Half a minute."""
    output = tmp_path_factory.mktemp("results") / "new" / "rows.jsonl"
    options = f"--data images --batches {BATCH} --num-samples {SAMPLES} --cores 1 --rounds {ROUNDS} --seconds 0.000001"
    patch, printed, told = pytest.MonkeyPatch(), [], []
    with patch.context() as context:
        context.setattr(pipeline_memory, "SYSTEMS", (ARRAYS,))
        context.setattr(pipeline_memory, "SLOPES", (TENSORS,))
        context.setattr("builtins.print", lambda *words, file=None, **_: (told if file else printed).append(*words))
        assert pipeline_throughput.main([*options.split(), "--memory-batches", "20", "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    return rows, "\n".join(printed), "\n".join(told), output.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in pipeline_data.DATA_SETS:
        pipeline_data.make(tmp_path, name, num_samples=SAMPLES, seed=0)
    return tmp_path


def task(folder: Path, **options: object) -> pipeline_worker.Task:
    common = {"cores": 1, "data": ("images",), "batches": (BATCH,), "rounds": 3, "seconds": 1e-6, "seed": 0}
    return pipeline_worker.Task(folder=str(folder), **{"peers": False, **common, **options})


def measured(folder: Path, **options: object) -> list[Row]:
    told: list[Row] = []
    pipeline_worker.measure(task(folder, **options), told.append)
    assert told[0]["part"] == 0.0
    assert told[-1]["part"] == 1.0
    return [each["row"] for each in told if "row" in each]


# --- one run ----------------------------------------------------------------------------------


@pytest.mark.soak
def test_every_system_has_its_row(run: tuple[list[Row], str, str, Path]) -> None:
    rows = run[0]
    warm = [row["system"] for row in rows if row["kind"] in ("throughput", "eager")]
    assert warm == list(PIPELINES)
    assert {row["system"]: row["skipped"] for row in rows if "skipped" in row and row["kind"] != "cold"} == {}
    assert {row["system"] for row in rows if row["kind"] == "eager"} == {f"{TENSORS}, eager", f"{KERAS}, eager"}


@pytest.mark.soak
@pytest.mark.parametrize("name", PIPELINES)
def test_row_has_its_fields(run: tuple[list[Row], str, str, Path], name: str) -> None:
    row = next(row for row in run[0] if row["system"] == name and row["kind"] != "cold")
    assert (row["data"], row["num_samples"], row["batch_size"], row["cores"]) == ("images", SAMPLES, BATCH, 1)
    lower, upper = row["k_samples_s_quartiles"]
    assert 0.0 < lower <= row["k_samples_s"] <= upper
    assert len(row["k_samples_s_rounds"]) == row["repeats"] == ROUNDS
    assert row["steps_per_repeat"] >= 1
    assert row["samples_per_repeat"] == row["steps_per_repeat"] * BATCH
    assert row["group"] in ("this project", "others", "floor")
    assert {"processor", "cores", "load", "tensorflow", "numpy", "date"} <= set(row["machine"])


@pytest.mark.soak
def test_ratios_are_taken_inside_the_rounds(run: tuple[list[Row], str, str, Path]) -> None:
    rows = [row for row in run[0] if row["kind"] in ("throughput", "eager")]
    keras = next(row for row in rows if row["system"] == KERAS)
    assert keras["over_keras"] == 1.0
    for row in rows:
        inside = np.median(np.divide(row["k_samples_s_rounds"], keras["k_samples_s_rounds"]))
        assert row["over_keras"] == pytest.approx(inside, rel=0.05)  # rates are rounded to three digits
        assert pipeline_report.within(rows, Point("images", BATCH, 1), row["system"], KERAS) == pytest.approx(inside)


@pytest.mark.soak
def test_cold_rows_are_there(run: tuple[list[Row], str, str, Path]) -> None:
    cold = [row for row in run[0] if row["kind"] == "cold"]
    assert {row["system"] for row in cold} == COLD
    for row in cold:
        if "skipped" in row:  # the files lie in memory here
            assert "there is no cold reading" in row["skipped"]
            continue
        assert row["samples_per_repeat"] == SAMPLES
        assert 0 < row["distinct_samples"] <= SAMPLES
        assert row["stayed_in_cache"] <= 0.02


@pytest.mark.soak
def test_memory_rows_are_there(run: tuple[list[Row], str, str, Path]) -> None:
    memory = next(row for row in run[0] if row["kind"] == "memory")
    assert (memory["system"], memory["data"]) == (ARRAYS, "images")
    assert memory["data_bytes"] == SAMPLES * (32 * 32 * 3 + 8)
    for name in ("anon", "rss"):
        assert set(memory[f"{name}_bytes"]) == {"start", "loaded", "wrapped", "epoch"}
        assert set(memory[f"{name}_over_data"]) == {"loaded", "wrapped", "epoch"}
    slope = next(row for row in run[0] if row["kind"] == "slope")
    assert (slope["system"], slope["batches"], len(slope["anon_mb"])) == (TENSORS, 20, 10)
    assert isinstance(slope["rss_mb_per_10000"], float)


@pytest.mark.soak
def test_what_is_printed_and_written(run: tuple[list[Row], str, str, Path]) -> None:
    _, printed, told, place = run
    assert sorted(path.name for path in place.iterdir()) == ["rows.jsonl", "rows.png"]
    assert all(name in printed for name in PIPELINES)
    assert f"images, B = {BATCH}, 1 core" in printed
    assert "Where this project loses" in printed
    assert "memory: images" in told
    assert told.splitlines()[0].startswith("[0%] 1 core, images")
    assert (place / "rows.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# --- failures ---------------------------------------------------------------------------------


def broken(setting: Setting) -> Made:
    raise MemoryError("too large")


def breaks_off(setting: Setting) -> Made:
    begun = itertools.count()

    def begin():
        if next(begun) > 0:  # the check is over
            raise ZeroDivisionError("in a turn")
        while True:
            yield setting.data.x[:BATCH], setting.data.y[:BATCH]

    return Made(begin)


def mixed_up(setting: Setting) -> Made:
    def begin():
        while True:
            yield setting.data.x[:BATCH], setting.data.y[1 : BATCH + 1]

    return Made(begin)


def test_a_broken_system_does_not_stop_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {KERAS: PIPELINES[KERAS], FLOOR: PIPELINES[FLOOR]}
    entries |= {"broken": Entry(broken), "breaks off": Entry(breaks_off), "mixed up": Entry(mixed_up)}
    monkeypatch.setattr(pipelines, "PIPELINES", entries)
    rows = {row["system"]: row for row in measured(folder)}
    assert rows["broken"]["skipped"] == "MemoryError: too large"
    assert rows["breaks off"]["skipped"] == "ZeroDivisionError: in a turn"
    assert "another sample's y" in rows["mixed up"]["skipped"]
    assert not any(field.startswith("k_samples") for field in rows["broken"])
    assert rows[FLOOR]["over_keras"] > 0.0
    assert "skipped: MemoryError" in pipeline_report.table([{**row, "machine": {}} for row in rows.values()])


def test_what_fails_in_the_middle_is_lost_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = 0

    def later(setting: Setting) -> Made:
        def begin():
            nonlocal begun
            begun += 1
            if begun > 6:  # the check, three times to warm up, two rounds
                raise ZeroDivisionError("in a turn")
            while True:
                yield setting.data.x[:BATCH], setting.data.y[:BATCH]

        return Made(begin)

    monkeypatch.setattr(pipelines, "PIPELINES", {FLOOR: PIPELINES[FLOOR], "later": Entry(later)})
    rows = {row["system"]: row for row in measured(folder)}
    assert rows["later"]["skipped"] == "lost in round 3: ZeroDivisionError: in a turn"
    assert rows[FLOOR]["over_keras"] is None
    assert rows[FLOOR]["repeats"] == 3


def test_peers_that_are_not_installed_are_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FOLDER", tmp_path / "none")
    monkeypatch.setattr(pipelines, "PIPELINES", {KERAS: PIPELINES[KERAS]})
    rows = measured(folder, peers=True)
    wanted = [name for name, peer in PEERS.items() if peer.cores == 1]
    assert [row["system"] for row in rows if "skipped" in row] == wanted
    assert all("not installed" in row["skipped"] for row in rows if "skipped" in row)
    assert [row["system"] for row in measured(folder)] == [KERAS]  # and without the flag nobody looks for them


def test_a_process_that_fails_leaves_named_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def dead(command: list[str]) -> Child:
        return Child(["timeit", "raise ValueError('no JSON')"])  # another program, quick to start

    monkeypatch.setattr(pipeline_throughput, "Child", dead)
    rows = pipeline_throughput.measure_cores(TINY, 1, tmp_path, lambda what, part: None)
    assert [row["system"] for row in rows] == list(PIPELINES)
    assert all("ended with status 1: ValueError: no JSON" in row["skipped"] for row in rows)
    (row,) = [
        pipeline_throughput.measure_one(pipeline_memory.Task(TENSORS, "images", str(tmp_path), 8, 0, batches=9)),
    ]
    assert (row["kind"], row["system"]) == ("slope", TENSORS)
    assert "ended with status 1" in row["skipped"]
    assert "skipped" in pipeline_report.slopes([row])


def test_silence_is_the_end_of_a_process() -> None:
    with (
        Child(["timeit", "-n", "1", "-r", "1", "import time; time.sleep(600)"], silence=0.2) as child,
        pytest.raises(Lost, match="said nothing"),
    ):
        list(child.lines())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such call on this system")
def test_cores_are_given_back_and_too_many_are_refused(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    with on_cores(1):
        assert os.sched_getaffinity(0) == {max(before)}
    assert os.sched_getaffinity(0) == before
    rows = pipeline_throughput.measure_cores(TINY, len(before) + 1, tmp_path, lambda what, part: None)
    assert {row["cores"] for row in rows} == {len(before) + 1}
    assert all("may use" in row["skipped"] for row in rows)


# --- options and pictures ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        "--batches 0",
        "--cores -1",
        "--data sounds",
        "--rounds 0",
        "--seconds 0",
        "--num-samples 9",
        "--memory-batches -1",
    ],
)
def test_wrong_options_end_with_status_2(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        pipeline_throughput.main(wrong.split())
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_quick_shortens() -> None:
    quick = Options(quick=True).shortened()
    assert quick.output != Options().output  # the results of a whole run stay
    assert Options(quick=True, output=Path("mine.jsonl")).shortened().output == Path("mine.jsonl")
    assert quick.num_samples < Options().num_samples
    assert quick.rounds < Options().rounds
    assert quick.seconds < Options().seconds
    assert quick.memory_batches < Options().memory_batches
    assert replace(quick, quick=False).shortened() == replace(quick, quick=False)
    assert Options().shortened() == Options()


def test_no_lead_in_for_those_that_have_their_own() -> None:
    turns: list[int] = []

    class Counted:
        def turn(self, steps: int) -> tuple[float, float]:
            turns.append(steps)
            return 1.0, 0.0

    generator = np.random.default_rng(0)
    measuring.take_rounds({"a": Counted()}, {"a": 8}, rounds=2, generator=generator, lead_in=False)
    assert turns == [8, 8]


def made_row(system: str, rounds: list[float], data: str, batch: int, cores: int, kind: str = "throughput") -> Row:
    return {
        "system": system,
        "kind": kind,
        "group": "this project" if system.startswith("this") else "floor" if system == FLOOR else "others",
        "data": data,
        "batch_size": batch,
        "cores": cores,
        "k_samples_s": float(np.median(rounds)),
        "k_samples_s_rounds": rounds,
        "over_keras": 1.0,
    }


@pytest.mark.parametrize(("names", "cores"), [(("images",), (1,)), (("images", "features", "strings"), (1, 2))])
def test_the_plot_has_its_size(names: tuple[str, ...], cores: tuple[int, ...], tmp_path: Path) -> None:
    rows = [
        made_row(system, [10.0 * batch], name, batch, count)
        for system in (TENSORS, KERAS, FLOOR)
        for name in names
        for batch in (32, 256)
        for count in cores
    ]
    rows.append({**made_row("Grain shuffle, repeat, batch", [1.0], names[0], 32, 1), "skipped": "not installed"})
    results = tmp_path / "rows.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pipeline_plot.main(["--results", str(results)]) == 0
    written = (tmp_path / "rows.png").read_bytes()
    assert written[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", written[16:24])
    assert (width, height) == (round(4.3 * max(len(names), 2) * 150), round((3.7 * len(cores) + 2.1) * 150))


def test_every_system_of_the_picture_exists() -> None:
    known = {*PIPELINES, *PEERS}
    variants = {name for name in known if name.startswith((f"{TENSORS},", f"{KERAS},"))}
    assert set(pipeline_plot.STYLES) == known - variants - {INDEXED, FLOOR}


def test_losses_are_told() -> None:
    ours, theirs = [10.0, 1.0, 10.0], [20.0, 2.0, 20.0]
    rows = [made_row(TENSORS, ours, "images", 32, 1), made_row(KERAS, theirs, "images", 32, 1)]
    rows += [
        made_row("tf.data shuffle", [5.0, 0.5, 5.0], "images", 32, 1),
        made_row(FLOOR, [99.0] * 3, "images", 32, 1),
    ]
    assert pipeline_report.losses(rows) == f"- images, B = 32, 1 core: {TENSORS} is slower than {KERAS} (0.50)"
    assert pipeline_report.losses([row for row in rows if row["system"] != KERAS]).startswith("Nowhere")
