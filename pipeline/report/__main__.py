"""``python -m pipeline.report DIR``: see :mod:`pipeline.report`. Exit status 2 for a folder without a result."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.report import NoReport, report


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of a folder and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.report", description="Write the report of a training.")
    parser.add_argument("folder", type=Path, help="the output folder of train.py, of a training or a comparison")
    parser.add_argument("--uniform", type=Path, help="the folder of another training, whose test loss is drawn beside")
    options = parser.parse_args(arguments)
    try:
        print(report(options.folder, uniform=options.uniform))
    except (NoReport, ImportError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
