"""Ratios are taken from rows, inside each round; the picture and the count of instructions from what was written."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import comparing, instructions, plot, systems
from benchmarks.comparing import Row
from benchmarks.measuring import Lost
from benchmarks.peers import remote

COUNTED = """# callgrind format
version: 1
creator: callgrind-3.19.0
pid: 4711
desc: Trigger: Client Request

positions: line
events: Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw
summary: {}

fl=(1) kernels.py
fn=(1) find
12 1000 10
totals: {}
"""


def row(name: str, steps: list[float], size: int = 1000, batch: int = 8, kind: str = "kernel") -> Row:
    return {
        "system": name,
        "kind": kind,
        "num_samples": size,
        "batch_size": batch,
        "step_us": sorted(steps)[len(steps) // 2],
        "step_rounds_us": steps,
        "step_over_choice_draw": 0.5,
    }


@pytest.fixture
def rows() -> list[Row]:
    made = []
    for size in (1000, 10_000_000):
        made += [
            row(systems.SAMPLER, [4.0, 40.0, 4.0], size, kind="public"),
            row(systems.KERNELS, [1.0, 10.0, 1.0], size),
            row(remote.TORCHRL_FP32, [2.0, 20.0, 2.0], size),  # the fastest, but wrong at 1e7
            row(remote.TIANSHOU, [4.0, 40.0, 4.0], size),
            row(remote.TORCHRL_PUBLIC, [20.0, 200.0, 20.0], size, kind="public"),
            row(systems.FLOOR, [0.5, 0.5, 0.5], size, kind="floor"),
            {"system": "Reverb client", "num_samples": size, "batch_size": 8, "skipped": "not installed"},
        ]
    return made


def test_a_slow_round_cancels(rows: list[Row]) -> None:
    assert comparing.within(rows, (1000, 8), systems.KERNELS, remote.TIANSHOU) == 0.25
    assert comparing.within(rows, (1000, 8), systems.KERNELS, "Reverb client") is None
    assert comparing.within(rows, (1000, 9), systems.KERNELS, remote.TIANSHOU) is None


def test_a_tree_that_draws_wrong_does_not_set_the_bar(rows: list[Row]) -> None:
    assert comparing.fastest_right(rows, (1000, 8)) == remote.TORCHRL_FP32
    assert comparing.fastest_right(rows, (10_000_000, 8)) == remote.TIANSHOU
    small, large = comparing.kernels(rows).splitlines()[2:]
    assert f"{remote.TORCHRL_FP32}: 0.50 ✗" in small
    assert f"{remote.TIANSHOU}: 0.25 ✓" in large
    assert "(0.50)" in large


def test_the_public_table_and_the_report(rows: list[Row]) -> None:
    assert "0.20 ✓" in comparing.public(rows)
    assert "1/2" in comparing.ratios(rows)
    assert "raw trees" in comparing.report(rows)
    assert "raw trees" not in comparing.report([each for each in rows if each["system"] not in remote.PEERS])


@pytest.mark.parametrize(("ratio", "told"), [(None, "-"), (0.0123, "0.012"), (0.4, "0.40"), (2.0, "2.00")])
def test_decimals(ratio: float | None, told: str) -> None:
    assert comparing.decimal(ratio) == told


def test_the_plot_is_a_png(rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "rows.jsonl"
    results.write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert plot.main(["--results", str(results)]) == 0
    assert (tmp_path / "rows.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "rows.png" in capsys.readouterr().out


def test_everything_has_its_line() -> None:
    everywhere = [name for name, entry in systems.SYSTEMS.items() if entry.everywhere]
    drawn = set(plot.STYLES) | {systems.FLOOR, "ProportionalStore"}  # the store lies between two lines, and is left out
    assert {*everywhere, *remote.PEERS} == drawn


def test_counts_are_read() -> None:
    read = instructions.parse(COUNTED.format("1000 10 5 3 2 1 7 8 9", "1000 10 5 3 2 1 7 8 9"))
    assert (read["Ir"], read["ILmr"], read["DLmw"]) == (1000, 7, 9)
    assert instructions.parse("events: Ir Dr\nsummary: 5\n") == {"Ir": 5, "Dr": 0}
    with pytest.raises(ValueError, match="no events"):
        instructions.parse("nothing")


def test_a_step_is_the_difference_of_two_counts() -> None:
    # 5 once, 100 a step, of which 30 to make ready.
    counts = [{"Ir": 5 + 100 * 4}, {"Ir": 5 + 100 * 8}, {"Ir": 1 + 30 * 4}, {"Ir": 1 + 30 * 8}]
    made = instructions.counted(systems.KERNELS, (1000, 8), counts, steps=4)
    assert (made["instructions"], made["last_level_misses"], made["steps"]) == (70, None, 4)
    assert "70" in instructions.table([made])


def test_fewer_misses_in_twice_the_steps_are_not_told() -> None:
    counts = [{"Ir": 100, "DLmr": misses} for misses in (40, 90, 0, 0)]
    assert instructions.counted(systems.KERNELS, (1000, 8), counts, steps=5)["last_level_misses"] == 10.0
    counts[1]["DLmr"] = 30  # the first steps met an empty cache
    assert instructions.counted(systems.KERNELS, (1000, 8), counts, steps=5)["last_level_misses"] is None


def test_without_valgrind_all_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(instructions.shutil, "which", lambda program: None)
    output = tmp_path / "counts.jsonl"
    assert instructions.main(["--output", str(output), "--batches", "8"]) == 0
    made = [json.loads(line) for line in output.read_text().splitlines()]
    assert [each["system"] for each in made] == list(instructions.COUNTED)
    assert {each["skipped"] for each in made} == {"valgrind is not installed"}
    assert "skipped: valgrind is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["--systems nothing", "--steps 0", "--sizes 0"])
def test_wrong_options_of_the_count(wrong: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        instructions.main(wrong.split())
    assert stopped.value.code == 2


@pytest.mark.skipif(shutil.which("valgrind") is None or shutil.which("g++") is None, reason="valgrind is missing")
def test_a_loop_is_counted_by_valgrind(tmp_path: Path) -> None:
    """A loop of a thousand more rounds executes some thousand more instructions, whatever the machine."""
    try:
        switch = instructions.make_switch(tmp_path)
    except Lost as lost:
        pytest.skip(str(lost))
    program = tmp_path / "loop.cpp"
    program.write_text(
        instructions.SWITCH
        + """
int main() {
  volatile int sum = 0;
  start();
  for (int n = 1000; n <= 2000; n += 1000) { zero(); for (int i = 0; i < n; ++i) sum = sum + i; dump(); }
  stop();
}
"""
    )
    assert switch.exists()
    subprocess.run(["g++", str(program), "-o", str(tmp_path / "loop")], check=True)
    files = tmp_path / "counts"
    subprocess.run([*instructions.valgrind(files, False), str(tmp_path / "loop")], check=True, capture_output=True)
    once, twice = (instructions.parse(path.read_text())["Ir"] for path in instructions.dumps(files)[:2])
    assert 4 <= (twice - once) / 1000 <= 12
