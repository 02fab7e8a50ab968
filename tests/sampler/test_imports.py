"""``import sampler`` brings in neither TensorFlow nor Keras nor pipeline; the check of it is checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sampler

FORBIDDEN = ("tensorflow", "keras", "pipeline")

PROGRAM = f"""
import importlib, sys
importlib.import_module(sys.argv[1])
print(*(name for name in {FORBIDDEN!r} if name in sys.modules))
"""


def forbidden_imports(module, folder=None):
    """Which forbidden packages a fresh interpreter has loaded after ``import module``."""
    path = [str(folder)] if folder else []
    path += [str(Path(sampler.__file__).parents[1]), *filter(None, sys.path)]
    result = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, module],  # -P: not from the working directory
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()


def test_sampler_imports_no_tensorflow():
    assert forbidden_imports("sampler") == []


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_check_sees_a_planted_import(tmp_path, name):
    # A stand-in of that name is enough, and as quick as it should be.
    (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "deep.py").write_text(f"import {name}\n")
    (tmp_path / "planted.py").write_text("import deep\n")
    assert forbidden_imports("planted", tmp_path) == [name]


def test_the_check_sees_nothing_where_there_is_nothing(tmp_path):
    (tmp_path / "innocent.py").write_text("import json\n")
    assert forbidden_imports("innocent", tmp_path) == []


def test_every_public_name_is_there():
    assert sorted(sampler.__all__) == sampler.__all__
    for name in sampler.__all__:
        assert getattr(sampler, name).__doc__
