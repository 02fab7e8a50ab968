"""The pages for readers: every block of code in them is run, and those under ``docs`` build without a warning.

A page is found by itself. Its Python blocks are one program, run here, in the order of the page; a block whose first
line is ``# name.py`` is that file. Commands are tried by tests/test_docs_commands.py. What does not fit is said in
``ELSEWHERE``. Some ten seconds.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import test_readme
from tests.pages import PAGES, PROGRAMS, ROOT, Block, blocks, run

ELSEWHERE = {  # pages whose Python blocks are run by others
    "README.md": "tests/test_readme.py",
    "docs/ray.md": "tests/ray/test_docs.py",
    "docs/scale.md": "tests/ray/test_docs.py",
    "examples/README.md": "tests/test_examples.py",  # an excerpt of what that runs
}
LANGUAGES = ("python", "bash", "json", "text")  # the last is no code: formulas, drawings, what a program prints
DIRECTIVES = ("{eval-rst}", "{toctree}", "{include}", "{note}", "{tip}", "{warning}", "{figure}", "{image}")
RUN_HERE = [page for page in PAGES if page not in ELSEWHERE and blocks(page, "python")]


def untested(block: Block) -> str | None:
    """Why nobody would run this block; None where somebody does."""
    if block.language == "" and "──" not in block.text:  # which is a drawing
        return "has no language: say bash, python or, for what is no code, text"
    if block.language == "indented":
        return "is indented, so its language is not known: fence it"
    if block.language not in ("", *LANGUAGES, *DIRECTIVES):
        return f"is in {block.language!r}, which no test runs; there are {', '.join(LANGUAGES)}"
    if block.language == "text" and re.search(rf"(?m)^(\$|>>>|import|from|export|{'|'.join(PROGRAMS)}) ", block.text):
        return "is called text and looks like code"
    if block.language == "{eval-rst}" and re.search(r"code|literalinclude|doctest|>>>|::\s*$", block.text):
        return "has code in reStructuredText: put it into a block of its own"
    if block.language == "python" and any(getattr(node, "value", 0) is ... for node in ast.walk(ast.parse(block.text))):
        return "leaves something out (...), so it cannot be run as it is"
    return None


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_every_block_is_run_by_somebody(page: str) -> None:
    found = [f"{page}:{block.line} {why}" for block in blocks(page) if (why := untested(block))]
    assert not found


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("make train", "has no language"),
        ("yaml\nepochs: 3", "is in 'yaml'"),
        ("python3\n1", "is in 'python3'"),
        ("{code-block} python\n1", "is in '{code-block}'"),
        ("{eval-rst}\n.. code-block:: python", "has code in reStructuredText"),
        ("text\n$ make train", "looks like code"),
        ("text\nimport sampler", "looks like code"),
        ("python\nmodel = ...", "leaves something out"),
        ("python\ndef recipe():\n    ...", "leaves something out"),
    ],
)
def test_what_nobody_would_run_is_found(block: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fenced by itself, in a list, by more ticks, by tildes, and inside a note."""
    monkeypatch.setattr("tests.pages.ROOT", tmp_path)
    language, _, text = block.partition("\n") if "\n" in block else ("", "", block)
    in_list = "\n".join(f"  {line}" for line in f"```{language}\n{text}\n```".splitlines())
    for number, fenced in enumerate(
        [
            f"```{language}\n{text}\n```",
            f"- one\n\n{in_list}",
            f"````{language}\n{text}\n````",
            f"~~~{language}\n{text}\n~~~",
            f"````{{note}}\n```{language}\n{text}\n```\n````",
        ]
    ):
        (tmp_path / "page.md").write_text(f"# A page\n\nWords.\n\n{fenced}\n\n```python\nx = 1\n```\n")
        reasons = [untested(found) for found in blocks("page.md")]
        assert why in str(reasons), number
        assert reasons[-1] is None
    (tmp_path / "page.md").write_text(f"Words.\n\n    {text}\n")
    assert "is indented" in str([untested(found) for found in blocks("page.md")])


def test_those_who_run_the_others_are_there() -> None:
    assert ELSEWHERE.keys() <= {page for page in PAGES if blocks(page, "python")}
    assert all((ROOT / test).exists() for test in ELSEWHERE.values())


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)  # as Keras saves
@pytest.mark.parametrize("page", RUN_HERE)
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("pipeline.report.plots.DPI", 40)
    run(page, tmp_path)


def test_the_readme_is_run_by_its_own_test() -> None:
    """Which finds the blocks in a way of its own; the commands are also tried with those of the other pages."""
    assert [block.text for block in blocks("README.md", "python")] == test_readme.blocks("python")
    assert [block.text for block in blocks("README.md", "bash")] == test_readme.blocks("bash")


def test_excerpts_of_examples_are_as_in_the_examples() -> None:
    examples = [path.read_text() for path in (ROOT / "examples").glob("*.py")]
    for block in blocks("examples/README.md", "python"):
        assert any(f"\n{block.text}" in example for example in examples), block


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page, "json")])
def test_json_is_json_or_has_the_names_of_the_results(block: Block) -> None:
    if "..." in block.text:
        row = json.loads((ROOT / "benchmarks/results/sampler_throughput.jsonl").read_text().splitlines()[0])
        assert set(re.findall(r'"(\w+)":', block.text)) <= {*row, *row["machine"]}
    else:
        json.loads(block.text)


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
    pages = {path.relative_to(tmp_path / "html").with_suffix(".md") for path in (tmp_path / "html").rglob("*.html")}
    assert {Path(page).relative_to("docs") for page in PAGES if page.startswith("docs/")} <= pages
    assert "class sampler.ImportanceSampler" in re.sub("<[^>]*>", "", (tmp_path / "html" / "api.html").read_text())
    assert "<math" in (tmp_path / "html" / "mathematics.html").read_text()
