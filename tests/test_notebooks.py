"""The notebooks under ``docs/notebooks``: they run, what they say holds, and their files have what they printed.

Cells are run in this process, one notebook in one namespace, as pages are: a kernel of its own would give the same
numbers and load TensorFlow once more. ``docs/notebooks/execute.py`` uses one, to write the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NAMES = ("long_tail", "wrong_labels")


@pytest.fixture(autouse=True)
def nothing_shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Figures are drawn, and shown to nobody."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.setattr(plt, "show", lambda: plt.gcf().canvas.draw())
    with plt.rc_context():
        yield
    plt.close("all")


def cells(name: str) -> list[Any]:
    return [cell for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells if cell.cell_type == "code"]


def executed(name: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(cells(name), start=1):
        exec(compile(cell.source, f"{name}, cell {number}", "exec"), namespace)
    return namespace


def test_all_are_here() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_holds_what_the_cells_gave(name: str) -> None:
    found = cells(name)
    assert [cell.execution_count for cell in found] == list(range(1, len(found) + 1))
    for cell in found:
        kinds = [output.output_type for output in cell.outputs]
        assert "error" not in kinds
        assert ("stream" in kinds) == ("\nprint(" in cell.source or "\n    print(" in cell.source)
        assert ("display_data" in kinds) == ("plt.show()" in cell.source)
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert len(text) < 400_000
    assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|work)/", text)
    assert '"stderr"' not in text


@pytest.mark.soak
def test_long_tail() -> None:
    """Rare classes are drawn more often than they occur and count for their share; class weights help them most."""
    found = executed("long_tail")
    rare = [one for one in found["classes"] if one.rare]
    assert [int(one.name) for one in rare] == found["RARE"]
    assert found["attention"] > 1.5
    assert sum(abs(one.weighted - one.share) > 4 * one.error for one in found["classes"]) == 0
    accuracy = {way: each[:, 0].mean() for way, each in found["accuracy"].items()}
    assert accuracy["class weights"] > max(accuracy["uniform"], accuracy["importance"]) + 0.05


def test_wrong_labels() -> None:
    """At least 80 % of the wrong labels are in the first tenth; without them the test loss is lower."""
    found = executed("wrong_labels")
    assert found["wrong"].sum() == 67
    assert found["found"][found["tenth"] - 1] >= 0.8 * 67
    assert found["drawn"]["loss"] > 2 * found["wrong"].mean()
    assert found["drawn"]["relative"] < found["drawn"]["loss"]
    loss = {name: np.mean(results[:, 0]) for name, results in found["tests"].items()}
    assert loss["corrected"] < loss["wrong labels"]
