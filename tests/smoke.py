"""Whether an installation works: imported from where it was installed, drawn, trained, reported. By ``nox``."""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np

import pipeline
import sampler
import train
from pipeline.report.folder import Run


def main() -> None:
    """Raises where something is missing."""
    installed = Path(sysconfig.get_path("purelib"))
    for package in (sampler, pipeline, train):
        place = Path(str(package.__file__))
        assert installed in place.parents, f"{place} is not where this Python installs"
        assert package is train or (place.parent / "py.typed").exists(), f"{place.parent} has no py.typed"
    drawn = sampler.ImportanceSampler(100, seed=0)
    batch = drawn.draw(10)
    drawn.update(batch.index, np.ones(10), step=batch.step)
    with tempfile.TemporaryDirectory() as folder:
        assert train.main(["--dataset", "digits", "--epochs", "2", "--quiet", "--output", folder]) == 0
        assert Run.read(Path(folder)).summary["test_accuracy"] > 0.5
        assert (Path(folder) / "report.html").stat().st_size > 100_000
    print(f"Python {sys.version.split()[0]}: installed, drawn, trained, reported")


if __name__ == "__main__":
    main()
