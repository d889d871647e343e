"""Verifies the parser of safetensors headers, which reads foreign bytes."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import pytest
from chorus_rpc.chunks import BlobFault
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load

from services.contract.safetensors_header import TensorHeader, parse_tensor_headers, read_header


def make_file(header: dict[str, Any], payload: bytes) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + payload


def make_entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = make_file({"latents": make_entry(0, 24, [2, 3])}, bytes(24))


def test_header_is_parsed_and_validated() -> None:
    assert parse_tensor_headers(GOOD) == [TensorHeader("latents", "F32", (2, 3))]
    for bad in (GOOD[:-1], GOOD + b"x", GOOD[:12], b"", b"PK\x03\x04" * 9, bytes(40)):
        with pytest.raises(BlobFault):
            parse_tensor_headers(bad)


@pytest.mark.parametrize(
    ("entries", "payload", "fault"),
    [
        ({"a": make_entry(0, 20, [2, 3])}, 20, "20 bytes, expected 24"),
        ({"a": make_entry(4, 28, [2, 3])}, 28, "starts at byte 4, expected 0"),
        ({"a": make_entry(0, 8, [2]), "b": make_entry(4, 12, [2])}, 12, "starts at byte 4, expected 8"),
        ({"a": make_entry(0, 8, [2]), "b": make_entry(12, 20, [2])}, 20, "starts at byte 12, expected 8"),
        ({"a": make_entry(0, 24, [-2, -3])}, 24, "its shape is out of bounds"),
        ({"a": make_entry(0, 24, [10**4000] * 3)}, 24, "its shape is out of bounds"),
        ({"a": make_entry(0, 4, [1] * 9)}, 4, "more than 8 dimensions"),
        ({"a": make_entry(0, 10**30, [1])}, 4, "outside the file"),
        ({"a" * 9999: make_entry(0, 4, [2])}, 4, "4 bytes, expected 8"),
        ({"a": make_entry(0, 24, [2, 3], "C64")}, 24, "unknown type C64"),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4, "cannot be parsed"),
        ({"a": make_entry(0, 24, [2, 3])}, 25, "truncated or altered"),
    ],
)
def test_inconsistent_tensors_are_rejected(entries: dict[str, Any], payload: int, fault: str) -> None:
    with pytest.raises(BlobFault, match=fault) as caught:
        parse_tensor_headers(make_file(entries, bytes(payload)))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[2, 3]", '"23"'),
        ("[2, 3]", "[2.0, 3]"),
        ("[2, 3]", '["2", 3]'),
        ("[2, 3]", "[true, 2, 3]"),
        ("[0, 24]", "[0, 24.5]"),
        ("[0, 24]", '{"0": 0, "24": 0}'),
        ("[0, 24]", "[0, 24, 24]"),
        ('"dtype"', '"dtype": "F16", "dtype"'),
        ('"dtype"', '"note": 0, "dtype"'),
        ('"F32"', '["F32"]'),
        ('"latents"', r'"\ud800"'),
        ('{"latents"', '{"__metadata__": {"a": 1}, "latents"'),
        ('{"latents"', r'{"__metadata__": {"a": "\udead"}, "latents"'),
        ('{"latents"', '{"__metadata__": {"a": NaN}, "latents"'),
        ('{"latents"', '\ufeff{"latents"'),
    ],
)
def test_header_that_the_reference_reader_rejects_is_rejected(old: str, new: str) -> None:
    text = json.dumps({"latents": make_entry(0, 24, [2, 3])})
    raw = text.replace(old, new).encode()
    data = struct.pack("<Q", len(raw)) + raw + bytes(24)
    with pytest.raises(BlobFault, match="cannot be parsed") as caught:
        parse_tensor_headers(data)
    str(caught.value).encode()
    if "note" not in new:
        with pytest.raises(SafetensorError):
            load(data)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be"])
def test_header_in_another_encoding_is_rejected(encoding: str) -> None:
    raw = json.dumps({"latents": make_entry(0, 24, [2, 3])}).encode(encoding)
    with pytest.raises(BlobFault, match="cannot be parsed"):
        parse_tensor_headers(struct.pack("<Q", len(raw)) + raw + bytes(24))


def test_tensors_are_in_the_order_of_their_bytes_with_the_metadata() -> None:
    entries = {"b": make_entry(8, 12, [2], "F16"), "a": make_entry(0, 8, [2]), "__metadata__": {"k": "v"}}
    data = make_file(entries, bytes(12))
    header = read_header(io.BytesIO(data), len(data), 1 << 20)
    assert [(t.name, t.start, t.end) for t in header.tensors] == [("a", 0, 8), ("b", 8, 12)]
    assert header.metadata == {"k": "v"}


def test_only_the_header_is_read() -> None:
    stream = io.BytesIO(GOOD)
    read_header(stream, len(GOOD), 1 << 20)
    assert stream.tell() == len(GOOD) - 24


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_blob_fault(data: bytes) -> None:
    try:
        parse_tensor_headers(data)
    except BlobFault:
        return
    assert len(data) >= 10
