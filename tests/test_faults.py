"""Every row of the table in docs/reliability.md has tests that carry its number, in the files that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = 37


def marked() -> dict[int, set[str]]:
    """The files of the tests that carry each number."""
    found: dict[int, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for mark in map(ast.unparse, node.decorator_list):
                    if number := re.fullmatch(r"pytest\.mark\.fault\((\d+)\)", mark):
                        found.setdefault(int(number[1]), set()).add(path.name)
    return found


def test_every_row_is_tested_where_it_says():
    table = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = {int(row[1]): set(re.findall(r"`(test_\w+\.py)`", row[0])) for row in re.finditer(r"\| (\d+) \|.*", table)}
    assert sorted(rows) == list(range(1, ROWS + 1))
    assert marked() == rows
