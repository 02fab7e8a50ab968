"""The pages under ``docs``: they build without a warning (``make docs``), and what they tell to write and run works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import train

ROOT = Path(__file__).parents[1]
RUN = ("start", "wrapping", "loops", "report", "resume", "choosing")  # the others' code is of several machines
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)  # as Keras saves
@pytest.mark.parametrize("page", [page for page in RUN if blocks(page, "python")])
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks are one program."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, f"{page}.md", "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN and blocks(page, "python")])
def test_code_of_several_machines_can_be_read(page: str) -> None:
    for block in blocks(page, "python"):
        compile(block, f"{page}.md", "exec")


@pytest.mark.parametrize("page", ["start", *(pytest.param(page, marks=pytest.mark.soak) for page in RUN[1:])])
def test_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one epoch and one seed; a comparison and what is gone on with are tried elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.report.plots.DPI", 40)
    for line in "\n".join(blocks(page, "bash")).splitlines():
        words = line.split("#")[0].split()
        if words[:2] == ["python", "train.py"] and "--compare" not in words and "--resume" not in words:
            assert train.main([*words[2:], "--epochs", "1", "--quiet"]) == 0
        elif words[:3] == ["python", "-m", "pipeline.report"]:
            from pipeline.report.__main__ import main

            assert main(words[3:]) == 0
        elif words[:2] == ["python", "train.py"]:
            train.parse(words[2:])
        else:
            assert words[:1] in ([], ["make"]), line


@pytest.mark.soak
def test_all_pages_are_reached_and_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    built = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(ROOT / "docs"), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        env={"TF_CPP_MIN_LOG_LEVEL": "3", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    assert built.returncode == 0, built.stderr[-2000:]
    pages = {path.stem for path in (tmp_path / "html").glob("*.html")}
    assert set(PAGES) <= pages
    assert "class sampler.ImportanceSampler" in re.sub("<[^>]*>", "", (tmp_path / "html" / "api.html").read_text())
    assert "<math" in (tmp_path / "html" / "mathematics.html").read_text()
