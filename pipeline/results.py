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
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever reads it sees the old one or the new one, never a part.

    The text goes into a temporary file of the same folder, which then takes the name of ``path``. Where
    writing fails (``OSError``) the old file is as it was and the temporary one is gone.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that their owner alone may read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line of names, those of the first row, and a line a row; None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json(values: Mapping[str, Any]) -> str:
    """Indented JSON, with null for NaN and infinities, for which JSON has no words."""
    return json.dumps(_finite(values), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask
