"""Files in the ArrayRecord format, and paths of other kinds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import importance_dataset
from pipeline.sources import as_source
from sampler import UniformSampler

N, B = 29, 4
RNG = np.random.default_rng(0)
RAW = [bytes([i, 0, 255, i % 2, 0]) for i in range(N)]  # NumPy's own text would lose the zeros at the end


@pytest.fixture(scope="module")
def record_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The records ``RAW`` in two files."""
    module = pytest.importorskip("array_record.python.array_record_module")
    folder = tmp_path_factory.mktemp("records")
    paths = [folder / "train.array_record-00000-of-00002", folder / "train.array_record-00001-of-00002"]
    for path, records in zip(paths, (RAW[:10], RAW[10:]), strict=True):
        writer = module.ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    return paths


def test_records_of_files(record_files: list[Path]) -> None:
    source = as_source(record_files)
    for index in RNG.integers(0, N, (100, B)):
        assert source.fetch(index)[0].tolist() == [RAW[i] for i in index]
    train = importance_dataset([str(path) for path in record_files], UniformSampler(N, seed=0), B)
    for x, sampling in train:
        assert x.numpy().tolist() == [RAW[i] for i in sampling["index"]]


@pytest.mark.parametrize("kind", [str, Path])
def test_records_of_one_file(record_files: list[Path], kind: Callable[[Path], Any]) -> None:
    source = as_source(kind(record_files[1]))
    assert len(source) == N - 10
    assert source.fetch(np.array([0, 18]))[0].tolist() == [RAW[10], RAW[28]]


def test_a_file_of_another_content(tmp_path: Path) -> None:
    pytest.importorskip("array_record")
    path = tmp_path / "train.array_record"
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"train.array_record cannot be read as ArrayRecord: .*64KB"):
        as_source(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*train.array_record"):
        as_source(str(tmp_path / "train.array_record"))


@pytest.mark.parametrize("data", ["train.tfrecord", Path("train"), ["a.array_record", "b.npy"], [Path("x.txt")]])
def test_files_of_other_kinds(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.exists", lambda path: True)
    with pytest.raises(ValueError, match=r"only files that end in \.array_record"):
        as_source(data)


@pytest.mark.parametrize("data", ["text", ["cat", "dog"], b"text", ["cat.", "a. b"]])
def test_texts_are_no_files(data: Any) -> None:
    with pytest.raises(TypeError, match="a source is an array"):
        as_source(data)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_data_source", None)
    (tmp_path / "train.array_record").touch()
    with pytest.raises(ImportError, match=r"pip install 'tf-importance-sampling\[arrayrecord\]'"):
        as_source(tmp_path / "train.array_record")
