"""Those who wait are told how far it is, and only those."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import progress, reading
from pipeline.sources import as_source

from .caches import words
from .kinds import N


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_ELEMENTS", 4)  # so that a few elements take several reads


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "AGAIN", 0.0)


@pytest.mark.usefixtures("impatient")
def test_lines_tell_how_far_it_is(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "PART", 0.0)  # else a machine that stops for a moment is told less often
    as_source(words(), cache=place)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" elements", 1)[0] for line in lines] == [
        f"writing the cache in {place}: {count} of {N}" for count in (4, 8, 12, 16, 20)
    ]
    assert all(re.search(r", about \d+ s left$", line) for line in lines[1:])
    as_source(words(), cache=place)
    as_source(words().map(lambda *part: part), cache="memory")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[0] == f"reading the dataset into memory: 4 of {N} elements"
    assert lines[1].startswith(f"reading the dataset into memory: 8 of {N} elements, about ")


@pytest.mark.usefixtures("impatient")
def test_what_comes_before_the_first_is_no_measure(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A first step that compiles, of many that do not."""
    clock = iter([0.0, 30.0, 36.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.counting("training", 101, "steps") as tell:
        tell(1)
        tell(51)
    assert capsys.readouterr().err == "training: 1 of 101 steps\ntraining: 51 of 101 steps, about 6 s left\n"


@pytest.mark.usefixtures("impatient")
def test_lines_are_few(place: Path, capsys: Any) -> None:
    as_source(words(), cache=place)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_is_quick_says_nothing(place: Path, capsys: Any) -> None:
    as_source(words(), cache=place)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("impatient")
def test_a_bar_on_a_terminal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    place = place.parent / "[red]cache"
    with progress.counting(f"writing the cache in {place}", 50) as tell:
        tell(20)
        tell(30)
    assert f"writing the cache in {place}" in screen.getvalue()
    assert "30/50" in screen.getvalue()
    screen.truncate(0)
    monkeypatch.setitem(sys.modules, "rich.console", None)  # not installed
    with progress.counting("reading", 50) as tell:
        tell(20)
    assert "reading: 20 of 50 elements" in screen.getvalue()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("screen", [None, "closed"])
def test_without_a_screen(screen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = None if screen is None else io.StringIO()
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.counting("reading", 50) as tell:
        tell(20)


@pytest.mark.parametrize(
    ("seconds", "says"), [(0.2, "0 s"), (99, "99 s"), (150, "2 min"), (5_000, "83 min"), (20_000, "5.6 h")]
)
def test_time_in_words(seconds: float, says: str) -> None:
    assert progress._words(seconds) == says


@pytest.mark.usefixtures("impatient")
def test_what_is_done_may_change(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """It is asked when it is shown; and where much is expected the lines are a twentieth of that apart."""
    clock = iter([0.0, 0.0, 10.0, 40.0, 70.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    asked: list[str] = []

    def doing() -> str:
        asked.append(f"epoch {len(asked) + 1}")
        return asked[-1]

    with progress.counting(doing, 1_000, "steps") as tell:
        tell(0)
        tell(10)  # a second each: the next line comes after fifty more
        tell(40)
        tell(70)
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1: 0 of 1,000 steps",
        "epoch 2: 10 of 1,000 steps",
        "epoch 3: 70 of 1,000 steps, about 16 min left",
    ]


def test_what_is_counted_inside_is_a_part_and_silence_is_kept(impatient: None, capsys: Any) -> None:
    with progress.counting("all", 2, "runs") as tell:
        tell(0)
        with progress.counting("a part", 10) as tell_part:
            tell_part(0)
            tell_part(5)
        tell(1)
    with progress.silence(), progress.counting("nobody asks", 10) as tell:
        tell(1)
    with progress.silence(False), progress.counting("again", 10) as tell:
        tell(1)
    told = capsys.readouterr().err
    assert "all: 0 of 2 runs" in told
    assert "again: 1 of 10 elements" in told
    assert "a part" not in told
    assert "nobody asks" not in told
