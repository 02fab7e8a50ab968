"""Results as text, and files that are never half written.

    from pipeline.results import to_csv, to_json, write_whole

    write_whole(folder / "summary.json", to_json({"test_loss": 0.12}))
    write_whole(folder / "history.csv", to_csv([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.3}]))

This file knows nothing of training.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sampler import files


def write_whole(path: Path, text: str) -> None:
    """Write a text so that whoever reads it sees the old one or the new one, never a part.

    Raises ``OSError`` where writing fails; the old file is then as it was.
    """
    files.write_whole(path, text.encode())


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line of names, those of any row, and a line a row; None, and what a row has not, is an empty field."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json(values: Mapping[str, Any]) -> str:
    """Indented JSON, with null for NaN and infinities, for which JSON has no words."""
    return json.dumps(_finite(values), indent=2, allow_nan=False) + "\n"


def counted(count: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
