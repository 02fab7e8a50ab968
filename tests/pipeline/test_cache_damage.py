"""A cache that is altered is written anew, one that is hostile or newer is refused; nothing of it is used."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import blobs, cache, manifest, reading
from pipeline.sources import as_source

from .caches import alter, held, litter, numbers, words
from .kinds import N


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_ELEMENTS", 4)  # so that a few elements take several reads


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# --- damaged --------------------------------------------------------------------------------------


def cut(path: Path, keep: float) -> None:
    os.truncate(path, int(path.stat().st_size * keep))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda place: alter(place / "1-values.bin", -1), r"1-values.bin has another checksum"),
        (lambda place: alter(place / "0-values.bin", 0), r"0-values.bin has another checksum"),
        (lambda place: alter(place / "0-values-offsets.bin", 12), "offsets.bin has another checksum"),
        (lambda place: cut(place / "1-values.bin", 0.5), r"1-values.bin has 92 bytes, 184 were written"),
        (lambda place: cut(place / "0-values.bin", 0), r"has 0 bytes"),
        (lambda place: (place / "1-values.bin").unlink(), r"1-values.bin is missing"),
        (lambda place: cut(place / "cache.json", 0.5), r"cache.json is cut short or altered"),
        (lambda place: cut(place / "cache.json", 0), r"cache.json is cut short or altered"),
        (lambda place: alter(place / "cache.json", -3), r"cache.json is altered"),
    ],
)
def test_a_damaged_cache_is_written_anew(damage: Callable[[Path], Any], says: str, place: Path) -> None:
    expected = held(as_source(words(), cache=place))
    damage(place)
    with pytest.warns(RuntimeWarning, match=rf"is not what was written: .*{says}.*written anew"):
        assert held(as_source(words(), cache=place)) == expected
    assert held(as_source(words(), cache=place)) == expected  # without a warning
    assert litter(place) == []


def test_a_damaged_cache_of_another_dataset_is_left_alone(place: Path) -> None:
    as_source(words(), cache=place)
    alter(place / "1-values.bin", 0)
    with pytest.raises(ValueError, match="another dataset"):
        as_source(numbers(), cache=place)


def refusal(call: Callable[[], Any]) -> str | None:
    try:
        call()
    except blobs.Damaged as damage:
        return str(damage)
    return None


def test_a_large_cache_is_verified_in_part(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By blocks of 16 bytes here: the first, the last, and evenly spread ones."""
    monkeypatch.setattr(blobs, "BLOCK", 16)
    monkeypatch.setattr(blobs, "VERIFIED", 16 * 5)
    dataset = tf.data.Dataset.range(202)  # 101 blocks
    as_source(dataset, cache=place)
    whole = (place / "0-values.bin").read_bytes()
    noticed = []
    for block in range(101):
        (place / "0-values.bin").write_bytes(whole)
        alter(place / "0-values.bin", 16 * block)
        if damage := refusal(lambda: blobs.verify(place, manifest.load(place).files)):
            assert damage.endswith(f"in block {block}")
            noticed.append(block)
    assert noticed == [0, 25, 50, 75, 100]


# --- newer and hostile ----------------------------------------------------------------------------


def rewrite(place: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change ``cache.json``, with a checksum that is right."""
    content = json.loads((place / "cache.json").read_text())
    change(content)
    content["crc32"] = manifest._checksum(content)
    (place / "cache.json").write_text(json.dumps(content))


def values(content: dict[str, Any]) -> dict[str, Any]:
    return content["columns"][1]["values"]


def rename(content: dict[str, Any], name: str) -> None:
    values(content)["name"] = name
    content["files"][f"{name}.bin"] = content["files"].pop("1-values.bin")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(version=2), "has version 2, this program reads 1; bring this package up to date"),
        (lambda c: c.update(version=[1]), "version"),
        (lambda c: c.update(format="another"), "no tf-importance-sampling cache"),
        (lambda c: rename(c, "../secret"), "'../secret', which would not lie in this directory"),
        (lambda c: rename(c, "/etc/passwd"), "'/etc/passwd', which would not lie in this directory"),
        (lambda c: rename(c, "sub/1-values"), "would not lie in this directory"),
        (lambda c: c["files"].update({"../x": {"bytes": 0, "crc32": []}}), "would not lie in this directory"),
        (lambda c: values(c).update(shape=[10**15]), "needs 8,000,000,000,000,000"),
        (lambda c: values(c).update(shape=[1 << 70]), "no size"),
        (lambda c: values(c).update(shape=[1 << 40, 1 << 40]), "no size"),
        (lambda c: values(c).update(shape=[-1]), "is -1, which is no size"),
        (lambda c: values(c).update(shape=[23.0]), "no size"),
        (lambda c: values(c).update(shape=[]), "no axis"),
        (lambda c: values(c).update(shape=[1, 23]), "not those of its elements"),
        (lambda c: values(c).update(dtype="object"), "dtype 'object'"),
        (lambda c: values(c).update(dtype="resource"), "dtype 'resource'"),
        (lambda c: values(c).update(dtype="float64"), "not those of its elements"),
        (lambda c: c.update(elements=10**30), "no size"),
        (lambda c: c["columns"].pop(), "files are not those"),
        (lambda c: c["columns"][0].update(kind="pickle"), "not made as a cache's is"),
        (lambda c: c["files"]["1-values.bin"].update(bytes=10**15), "not as many checksums"),
        (lambda c: c.update(columns=None), "not made as a cache's is"),
    ],
)
def test_a_newer_or_hostile_description_is_refused(change: Callable[[Any], Any], says: str, place: Path) -> None:
    as_source(words(), cache=place)
    rewrite(place, change)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(ValueError, match=says):
        as_source(words(), cache=place)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


@pytest.mark.parametrize("name", ["cache.json", "1-values.bin", "0-values-offsets.bin"])
def test_a_link_is_refused(name: str, place: Path) -> None:
    as_source(words(), cache=place)
    (place / name).rename(place.parent / "moved")
    (place / name).symlink_to(place.parent / "moved")
    with pytest.raises(ValueError, match="is a link or no plain file"):
        as_source(words(), cache=place)


def test_a_pipe_is_refused_and_not_waited_for(place: Path) -> None:
    as_source(words(), cache=place)
    (place / "1-values.bin").unlink()
    os.mkfifo(place / "1-values.bin")
    with pytest.raises(ValueError, match="is a link or no plain file"):
        as_source(words(), cache=place)


def test_a_description_without_an_end_is_refused(place: Path) -> None:
    as_source(words(), cache=place)
    os.truncate(place / "cache.json", 1 << 40)
    with pytest.raises(ValueError, match="more than 16,777,216 bytes"):
        as_source(words(), cache=place)


@pytest.mark.parametrize("places", [[0] * 5 + [1 << 60] * 19, [0, 9, 3] + [50] * 21, [1 << 62, -(1 << 62)] * 12])
def test_rows_that_begin_where_nothing_is(places: list[int], place: Path) -> None:
    """Beginnings that would ask for memory without bounds, with checksums that are right."""
    dataset = tf.data.Dataset.range(N).map(lambda i: tf.range(i % 4))
    expected = held(as_source(dataset, cache=place))
    content = np.array(places, np.int64).tobytes()
    (place / "0-splits0.bin").write_bytes(content)
    rewrite(place, lambda c: c["files"]["0-splits0.bin"].update(crc32=[zlib.crc32(content)]))
    with pytest.warns(RuntimeWarning, match="do not rise from 0 to"):
        assert held(as_source(dataset, cache=place)) == expected


def test_nothing_unpickles() -> None:
    for module in (blobs, cache, manifest):
        source = Path(module.__file__).read_text()
        assert not [word for word in ("pickle", "allow_", "np.load", "eval(", "exec(") if word in source]
