"""Results as text, and files that are never half written."""

from __future__ import annotations

import json
import math
import os
import stat

import pytest

from pipeline.results import to_csv, to_json, write_whole


def test_json_has_null_for_what_is_not_finite():
    values = {"a": math.nan, "b": {"c": -math.inf, "d": 0.5}, "e": None, "f": 3}
    assert json.loads(to_json(values)) == {"a": None, "b": {"c": None, "d": 0.5}, "e": None, "f": 3}


def test_csv_has_a_line_of_names_and_a_line_a_row():
    assert to_csv([{"a": 1, "b": None}, {"a": 0.25, "b": "x"}]) == "a,b\n1,\n0.25,x\n"


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("old and longer")
    write_whole(path, "new λ\n")
    assert path.read_bytes() == "new λ\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_can_be_read_by_those_who_could_read_any(tmp_path):
    previous = os.umask(0o027)
    try:
        write_whole(tmp_path / "summary.json", "")
    finally:
        assert os.umask(previous) == 0o027
    assert stat.S_IMODE((tmp_path / "summary.json").stat().st_mode) == 0o640


def test_where_writing_fails_the_old_file_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    path.write_text("old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
