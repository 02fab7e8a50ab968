"""The file of all samples: out and in again, and what is no such file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import Data
from pipeline.dynamics import TrainingDynamics
from pipeline.evaluation import Each
from pipeline.samples import KNOWN, SHOWN, Samples, columns_of, hardest, joined, write_arrays

N = 200


def some() -> Samples:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 3)).astype(np.float32), rng.integers(0, 4, N)
    dynamics = TrainingDynamics(N)
    for _ in range(40):
        dynamics.add(rng.integers(0, N - 1, 16), rng.gamma(1.0, size=16))
    each = Each(rng.gamma(1.0, size=N).astype(np.float32), rng.integers(0, 4, N))
    return Samples.of(Data("some", x, y, x[:1], y[:1], 4), each, columns_of(dynamics, np.arange(N)))


def test_out_and_in(tmp_path: Path) -> None:
    samples, path = some(), tmp_path / "samples.npz"
    samples.write(path)
    again = Samples.read(path)
    for field in dataclasses.fields(Samples):
        one, other = getattr(samples, field.name), getattr(again, field.name)
        np.testing.assert_array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype
    first = path.read_bytes()
    samples.write(path)
    assert path.read_bytes() == first


def test_the_hardest_by_both_orders_are_kept() -> None:
    samples = some()
    assert set(hardest(samples.loss)[:SHOWN]) | set(hardest(samples.mean)[:SHOWN]) == set(samples.shown.tolist())
    assert len(samples.shown_x) == len(samples.shown) < N


def test_what_several_workers_know_is_put_together(tmp_path: Path) -> None:
    rng, whole = np.random.default_rng(1), TrainingDynamics(N)
    blocks = [range(0, 90), range(90, N)]
    parts = [TrainingDynamics(N, block) for block in blocks]
    for _ in range(30):
        for part in parts:
            step = part.block.start + rng.integers(0, len(part), 8), rng.gamma(1.0, size=8), rng.uniform(0.5, 2.0, 8)
            part.add(*step)
            whole.add(*step)
    paths = [tmp_path / f"{place}.npz" for place in range(2)]
    for path, part in zip(paths, parts, strict=True):
        write_arrays(path, columns_of(part, np.arange(part.block.start, part.block.stop)))
    together, expected = joined(paths), columns_of(whole, np.arange(N))
    for name in KNOWN:
        np.testing.assert_array_equal(together[name], expected[name])
        assert together[name].dtype == expected[name].dtype


def test_hardest_first_and_the_unknown_last() -> None:
    assert hardest(np.array([1.0, np.nan, 3.0, 1.0])).tolist() == [2, 0, 3, 1]


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    with pytest.raises(FileNotFoundError):
        Samples.read(path)
    some().write(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="holds no samples of a training"):
        Samples.read(path)
    np.savez(path, y=np.zeros(3))
    with pytest.raises(ValueError, match="holds no samples of a training"):
        Samples.read(path)
    np.savez(path, y=np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match="holds no samples of a training"):
        Samples.read(path)
    dataclasses.replace(some(), loss=np.zeros(3, np.float32)).write(path)
    with pytest.raises(ValueError, match="different lengths"):
        Samples.read(path)
