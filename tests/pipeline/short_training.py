"""A training of ``train.py`` that is over in seconds, and how far two workers of it have saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np

STEPS = 100


def options(folder: Path) -> list[str]:
    """``STEPS`` steps with a snapshot every ten, on data that are written into ``folder``, an odd number of samples."""
    generator = np.random.default_rng(1)
    x = generator.normal(size=(203, 4)).astype(np.float32)
    path = folder / "small.npz"
    np.savez(path, x=x, y=(x @ [1.0, -1.0, 2.0, 0.5]).astype(np.float32)[:, None])
    return [
        *("--dataset", f"npz:{path}", "--model", "linear", "--batch-size", "8", "--no-report"),
        *("--budget", f"{STEPS}steps", "--save-every", "10steps"),
    ]


def saved(folder: Path, rank: int) -> int:
    """The newest step that one of two workers has saved in the output folder, -1 where there is none."""
    names = [path.stem for path in (folder / "snapshots" / f"worker-{rank}-of-2").glob("snapshot-*.index")]
    return max([int(name.removeprefix("snapshot-")) for name in names], default=-1)
