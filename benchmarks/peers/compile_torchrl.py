"""Compile TorchRL's C++ trees from the sources inside its own wheel, against the torch beside it.

    .peers/torchrl/bin/python benchmarks/peers/compile_torchrl.py

The wheel's compiled extension ``torchrl._torchrl`` was built for another torch, and does not load beside the
one pinned in ``requirements/torchrl.txt`` (undefined symbols); without it TorchRL has no segment tree. The wheel
holds the sources as well, unchanged, so they are compiled here, and the result takes the extension's place.
``-march=native`` is more than the authors give their users: it is in the peer's favour.

Valgrind knows no AVX-512, so a second build for AVX2, ``valgrind/_torchrl.so`` in the environment, serves
``benchmarks/instructions.py``.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-DNDEBUG", "-fvisibility=hidden")
SOURCES = ("pybind.cpp", "utils.cpp")
LIBRARIES = ("c10", "torch", "torch_cpu", "torch_python")


def main() -> int:
    """Compile both; the status of the compiler."""
    package = folder_of("torchrl")
    extension = package / f"_torchrl{sysconfig.get_config_var('EXT_SUFFIX')}"
    for_valgrind = Path(sys.prefix) / "valgrind" / "_torchrl.so"
    for_valgrind.parent.mkdir(exist_ok=True)
    if not loads():
        built = extension.with_suffix(".compiled")
        status = subprocess.call(command(package / "csrc", folder_of("torch"), built, "native"))
        if status:
            return status
        built.replace(extension)
    if not loads():
        return 1
    # A processor that is not x86-64 has no such name; nor does it need a second build.
    subprocess.call(command(package / "csrc", folder_of("torch"), for_valgrind, "x86-64-v3"))
    return 0


def command(sources: Path, torch: Path, output: Path, processor: str) -> list[str]:
    """The call of g++."""
    headers = [torch / "include", torch / "include/torch/csrc/api/include", Path(sysconfig.get_paths()["include"])]
    return [
        "g++",
        *FLAGS,
        f"-march={processor}",
        "-DTORCH_EXTENSION_NAME=_torchrl",
        *[f"-isystem{folder}" for folder in headers],
        *[str(sources / name) for name in SOURCES],
        f"-L{torch / 'lib'}",
        f"-Wl,-rpath,{torch / 'lib'}",
        *[f"-l{name}" for name in LIBRARIES],
        "-o",
        str(output),
    ]


def folder_of(package: str) -> Path:
    """Where a package is installed; it is not imported."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is not installed here; make peers installs it")
    return Path(found.origin).parent


def loads() -> bool:
    """Whether the extension can be imported: tried in a process of its own."""
    trial = "import torch; from torchrl._torchrl import SumSegmentTreeFp32, SumSegmentTreeFp64"
    tried = subprocess.run([sys.executable, "-W", "ignore", "-c", trial], capture_output=True, check=False)
    return tried.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
