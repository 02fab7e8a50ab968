"""Build an environment a peer under ``.peers/``, with the versions its requirements pin.

    make peers                     # all
    make peers ARGS="tianshou"     # some

What is there already, with the same requirements, is left as it is. A peer that cannot be installed is reported, and
the others go on; the benchmark then names it as skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".peers"
REQUIREMENTS = Path(__file__).parent / "requirements"
INTERPRETERS = ("python3.11", "python3.10")  # the peers have wheels for these

# One file of each is loaded, without the package around it; what only the package needs would be gigabytes.
ALONE = ("tianshou", "dopamine")
AFTERWARDS = {"torchrl": "compile_torchrl.py"}


def main(names: Sequence[str] = ()) -> int:
    """Install; how many failed."""
    failed = {}
    wanted = names or sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
    for number, name in enumerate(wanted, start=1):
        reason = install(name)
        print(f"[{number}/{len(wanted)}] {name}: {reason or 'ready'}", flush=True)
        if reason:
            failed[name] = reason
    return len(failed)


def install(name: str) -> str | None:
    """One environment; None, or why there is none."""
    wanted = (REQUIREMENTS / f"{name}.txt").read_text()
    folder = FOLDER / name
    mark = folder / "installed"
    if mark.exists() and mark.read_text() == wanted:
        return None
    interpreter = find_interpreter()
    if interpreter is None:
        return f"needs one of {', '.join(INTERPRETERS)}"
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", *(["--no-deps"] if name in ALONE else [])]
    steps = [
        [interpreter, "-m", "venv", "--clear", str(folder)],
        [*pip, "--requirement", str(REQUIREMENTS / f"{name}.txt")],
    ]
    if name in AFTERWARDS:
        steps.append([str(python), str(Path(__file__).with_name(AFTERWARDS[name]))])
    for step in steps:
        done = subprocess.run(step, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            return f"not installed: {said[-1] if said else f'{step[1:3]} ended with {done.returncode}'}"
    mark.write_text(wanted)
    return None


def find_interpreter() -> str | None:
    """The first of the wanted interpreters that is there and starts."""
    for name in INTERPRETERS:
        found = shutil.which(name)
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    return None


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
