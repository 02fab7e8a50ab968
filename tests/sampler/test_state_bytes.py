"""States as bytes: everything comes back, nothing else is taken, and no bit can flip unseen."""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import save

from sampler import ImportanceSampler
from sampler.state_bytes import METADATA, NewerFormatError, from_bytes, sought, to_bytes
from tests.sampler.states import same

DTYPES = ("bool", "int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")
# Few characters, with all that JSON and UTF-8 treat apart: for all of Unicode Hypothesis makes a table first, which
# takes longer than these tests.
LETTERS = 'ab"\\/{}[]:,\x00\n\x7fé√\u2028\U0001f600'
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(LETTERS, max_size=5)
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, min_side=0, max_side=4)))
KEYS = st.text(LETTERS, max_size=4).filter(lambda key: key != "array")
STATES = st.dictionaries(
    KEYS,
    st.recursive(
        PLAIN | ARRAYS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        same_kind = isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        return same_kind and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(STATES)
def test_everything_comes_back_as_it_was(state):
    data = to_bytes(state)
    assert equal(from_bytes(data), state)
    assert to_bytes(from_bytes(data)) == data  # and equal states are equal bytes


@settings(max_examples=100, deadline=None)
@given(STATES, st.binary(max_size=40), st.binary(max_size=40))
def test_it_is_found_among_other_bytes(state, before, after):
    data = to_bytes(state)
    assert sought(before + data + after) == data


BEGINNING = to_bytes({})[8:].split(b'"{')[0]


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"x" * 40, to_bytes({})[8:], to_bytes({"a": 1})[:60], bytes(8) + BEGINNING, b"\xff" * 8 + BEGINNING),
        struct.pack("<Q", len(BEGINNING) + 5) + BEGINNING + b'"",0}',
        struct.pack("<Q", len(BEGINNING) + 12) + BEGINNING + b'""},"a":"bc"}',
        struct.pack("<Q", len(BEGINNING) + 33) + BEGINNING + b'""},"a":{"data_offsets":[0,1e999]}}',
    ],
)
def test_where_none_is_found_it_is_told(data):
    with pytest.raises(ValueError, match=r"hold (no|a damaged) state"):
        sought(data)


def a_state() -> dict:
    sampler = ImportanceSampler(50, feedback_lag=2, gate="variance", seed=0)
    for _ in range(3):
        draw = sampler.draw(8)
        sampler.update(draw.index, np.ones(8), step=draw.step, score=np.ones(8))
    sampler.draw(8)
    return sampler.state_dict()


def test_a_samplers_state_comes_back():
    state = a_state()
    other = ImportanceSampler(50, feedback_lag=2, gate="variance", seed=1)
    other.load_state_dict(from_bytes(to_bytes(state)))
    assert same(other.state_dict(), state)


def test_no_two_arrays_have_one_name():
    state = {"a/b": np.array([1]), "a": {"b": np.array([2]), "~1b": np.array([3])}, "a~1": {"b": np.array([4])}}
    assert equal(from_bytes(to_bytes(state)), state)


def test_what_comes_back_can_be_written_to():
    assert from_bytes(to_bytes({"a": np.zeros(3)}))["a"].flags.writeable


def test_no_bit_can_flip_and_no_byte_be_missing_unseen():
    """All bits of the header, which names what is where, and of every 7th byte of the rest; and every length."""
    data = to_bytes(a_state())
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for place in [*range(header), *range(header, len(data), 7)]:
        for bit in range(8):
            altered = bytearray(data)
            altered[place] ^= 1 << bit
            try:
                read = from_bytes(bytes(altered))
            except ValueError:
                continue
            assert to_bytes(read) == data  # blanks of JSON may be told in several ways, and say the same
    for length in range(0, len(data), 11):
        with pytest.raises(ValueError, match=r"no state, or a damaged one|is damaged"):
            from_bytes(data[:length])


def with_metadata(**entries: str) -> bytes:
    return save({"a": np.zeros(2)}, metadata=entries)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 8,
        pickle.dumps({"a": 1}),
        struct.pack("<Q", 2**63) + b"{}",  # a header of absurd length
        save({"a": np.zeros(2)}),
        with_metadata(other="{}"),
        with_metadata(**{METADATA: "["}),
        with_metadata(**{METADATA: "[]"}),
        with_metadata(**{METADATA: "[" * 100_000}),
        with_metadata(**{METADATA: json.dumps({"format": 1e999, "crc32": 0, "state": "{}"})}),
        with_metadata(**{METADATA: json.dumps({"format": 1, "crc32": 0, "state": "{}"})}),
    ],
    ids=str,
)
def test_what_is_no_state_is_refused(data):
    with pytest.raises(ValueError, match="state"):
        from_bytes(data)


def test_memory_is_in_proportion_to_the_bytes_whatever_they_say():
    header = json.dumps({"a": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]}}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="no state"):
            from_bytes(struct.pack("<Q", len(header)) + header + b"\x00" * 64)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


OF_THE_FIRST_VERSION = (
    b'\x90\x01\x00\x00\x00\x00\x00\x00{"__metadata__":{"tf-importance-sampling":"{\\"format'
    b'\\": 1, \\"crc32\\": 2902115920, \\"state\\": \\"{\\\\\\"step\\\\\\":3,\\'
    b'\\\\"parts\\\\\\":{\\\\\\"a\\\\\\":{\\\\\\"array\\\\\\":\\\\\\"/parts/a\\\\\\"},\\\\\\'
    b'"b\\\\\\":[true,null,\\\\\\"x\\\\\\"],\\\\\\"c\\\\\\":{\\\\\\"d/e\\\\\\":{\\\\\\"arr'
    b'ay\\\\\\":\\\\\\"/parts/c/d~1e\\\\\\"}}}}\\"}"},"/parts/c/d~1e":{"dtyp'
    b'e":"I64","shape":[1,1],"data_offsets":[0,8]},"/parts/a":{"dt'
    b'ype":"F32","shape":[2],"data_offsets":[8,16]}}  \x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\xc0?'
    b"\x00\x00\x00\xc0"
)


@pytest.mark.fault(21)
def test_what_the_first_version_wrote_is_read():
    arrays = {"a": np.array([1.5, -2.0], np.float32), "b": [True, None, "x"], "c": {"d/e": np.array([[7]])}}
    assert equal(from_bytes(OF_THE_FIRST_VERSION), {"step": 3, "parts": arrays})


@pytest.mark.fault(21)
def test_a_newer_format_says_what_to_do(monkeypatch):
    monkeypatch.setattr("sampler.state_bytes.FORMAT", 7)
    data = to_bytes({"a": 1})
    monkeypatch.undo()
    with pytest.raises(NewerFormatError, match="format 7, this version reads up to 1; install a newer"):
        from_bytes(data)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": object()}, "/a is a object"),
        ({"a": {1: 2}}, "has the key 1"),
        ({"a": {"array": 1}}, "'array' as its only key"),
        ({"a": np.array(["x"])}, "array of <U1"),
        ({"a": np.zeros(2, ">f8")}, "array of >f8"),
        ({"a": np.array([None])}, "array of object"),
        *([({"a": np.zeros(2, np.longdouble)}, "array of float128")] if np.dtype(np.longdouble).itemsize > 8 else []),
    ],
)
def test_what_a_state_cannot_hold_is_named(state, message):
    with pytest.raises(TypeError) as error:
        to_bytes(state)
    assert message in str(error.value)
