"""What a benchmark tells of how far it is."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import progress


@pytest.fixture
def clock(monkeypatch):
    """The time, to be set."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_parts_are_told_as_they_begin(clock, capsys):
    with progress.parts(2.0) as advance:
        for name in ("first", "second"):
            advance(name, 0.0)
            for _ in range(4):
                clock[0] += 1.0
                advance(name, 0.25)
    assert capsys.readouterr().err.splitlines() == ["[0%] first", "[50%, 4 s left] second"]


def test_what_was_begun_is_done_when_the_next_begins(clock, capsys):
    with progress.things(3) as begin:
        for name in ("a", "b", "c"):
            begin(name)
            clock[0] += 60.0
    assert capsys.readouterr().err.splitlines() == ["[0%] a", "[33%, 2 min left] b", "[67%, 60 s left] c"]


def test_a_bar_is_drawn_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
    monkeypatch.setenv("TERM", "xterm")
    with progress.things(2) as begin:
        begin("a [bold] one")
        begin("the other")
    told = capsys.readouterr().err
    assert "a [bold] one" in told
    assert "━" in told


def test_it_brings_in_no_tensorflow():
    """It would take memory beside what is measured."""
    program = (
        "import sys; from benchmarks.progress import things\n"
        "with things(2) as begin: begin('a')\n"
        "print('tensorflow' in sys.modules or 'pipeline' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"
    assert found.stderr == "[0%] a\n"
