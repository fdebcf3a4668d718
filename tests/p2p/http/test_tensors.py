"""Safetensors as the library of that name has them, and everything that is none."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from p2p.http import tensors
from p2p.http.tensors import DTYPES, TensorsError, packed, parsed

ARRAYS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(2.5, np.float16),
    "flags": np.array([True, False, True]),
    "none": np.zeros((0, 4)),
    "ü": np.array([-1, 1 << 40], np.int64),
}


def test_what_is_packed_is_what_the_library_reads_and_the_other_way_round() -> None:
    theirs = safetensors.numpy.load(bytes(packed(ARRAYS, {"a": "b"})))
    ours, metadata = parsed(safetensors.numpy.save(ARRAYS, {"a": "b"}))
    assert metadata == {"a": "b"}
    for found in (theirs, ours, parsed(packed(ARRAYS))[0]):
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


def test_arrays_are_views_of_what_was_read() -> None:
    data = packed(ARRAYS)
    found, _ = parsed(data)
    found["w"][0, 0] = 7
    assert parsed(data)[0]["w"][0, 0] == 7


def test_arrays_are_aligned_whatever_they_are_called() -> None:
    arrays = {"a": np.zeros(3, np.int8), "b": np.zeros(1, np.float64), "c": np.zeros(1, np.float16)}
    found, _ = parsed(packed(arrays))
    assert all(array.flags.aligned for array in found.values())


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_each_dtype_comes_back(dtype: str) -> None:
    array = np.array([0, 1, 1], DTYPES[dtype])
    found, _ = parsed(packed({"x": array}))
    assert found["x"].dtype == array.dtype
    assert found["x"].tolist() == array.tolist()


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([1j]), np.array([None]), np.zeros(1, ">f4")], ids=str)
def test_other_dtypes_are_refused(array: Any) -> None:
    with pytest.raises(TensorsError, match="'x' has dtype"):
        packed({"x": array})


def test_a_head_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "HEAD_BYTES_MAX", 64)
    with pytest.raises(TensorsError, match="the head of 1 arrays takes"):
        packed({"x" * 64: np.zeros(1)})


def made(head: Any, numbers: bytes = b"", length: int | None = None) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + numbers


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, expected at least the 8"),
        (b"\x01", "1 bytes"),
        (made({}, length=1 << 60), "a head of 1152921504606846976 bytes"),
        (made({}, length=3), "a head of 3 bytes is announced"),
        (made(b"[" * 100_000), "no JSON: RecursionError|no JSON"),
        (made(b"{nonsense}"), "no JSON"),
        (made(b"\xff\xfe{}"), "no JSON"),
        (made(b"[]"), "the head is a list"),
        (made(b'{"x": NaN}'), "NaN is no number"),
        (made(b'{"x": ' + b"1" * 5000 + b"}"), "no JSON"),
        (made(b'{"x": 1, "x": 2}'), "a name is there twice"),
        (made({"x": 1}), "'x' is said to be 1"),
        (made({"x": {**entry(), "more": 1}}), "'x' is said to be"),
        (made({"x": entry("BF16")}, bytes(4)), "'x' has dtype 'BF16'"),
        (made({"x": entry(["F32"])}, bytes(4)), "'x' has dtype"),
        (made({"x": entry(shape=[-1])}, bytes(4)), "'x' has shape"),
        (made({"x": entry(shape=[True])}, bytes(4)), "'x' has shape"),
        (made({"x": entry(shape=[1.0])}, bytes(4)), "'x' has shape"),
        (made({"x": entry(shape=[1] * 33)}, bytes(4)), "'x' has shape"),
        (made({"x": entry(shape=[1 << 62])}, bytes(4)), "'x' has shape"),
        (made({"x": entry(shape=[1 << 61, 1 << 61])}, bytes(4)), "'x' has 4 bytes, expected"),
        (made({"x": entry(offsets=[4, 0])}, bytes(4)), "'x' has -4 bytes, expected 4"),
        (made({"x": entry(offsets=[0, 4, 8])}, bytes(8)), "'x' has data_offsets"),
        (made({"x": entry(offsets=[0, 4])}, bytes(3)), "'x' ends at byte 4"),
        (made({"x": entry(offsets=[4, 8])}, bytes(8)), "'x' begins at byte 4 of the numbers, expected 0"),
        (made({"x": entry(), "y": entry()}, bytes(4)), "begins at byte 0 of the numbers, expected 4"),
        (made({"x": entry()}, bytes(5)), "1 bytes follow the last array"),
        (made({"x": entry("BOOL", [4])}, b"\x00\x01\x02\x01"), "truth values other than 0 and 1"),
        (made({"__metadata__": [1]}), "__metadata__ is no object of texts"),
        (made({"__metadata__": {"a": 1}}), "__metadata__ is no object of texts"),
    ],
    ids=map(str, range(30)),
)
def test_what_is_no_safetensors_is_told(data: bytes, message: str) -> None:
    with pytest.raises(TensorsError, match=message):
        parsed(data)
