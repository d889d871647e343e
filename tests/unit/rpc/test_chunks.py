"""Verifies that blobs are chunked, reassembled and checked against their announcement."""

from __future__ import annotations

import pytest
from chorus_rpc import chunks
from hypothesis import given
from hypothesis import strategies as st


@given(st.binary(min_size=1, max_size=5000), st.integers(1, 700))
def test_chunks_are_reassembled(data: bytes, size: int) -> None:
    assembler = chunks.BlobAssembler(len(data), chunks.sha256(data), 5000)
    for chunk in chunks.chunks(data, size):
        assembler.add(chunk)
    assert assembler.finish() == data


def test_blob_unlike_its_announcement_is_rejected() -> None:
    with pytest.raises(chunks.BlobFault, match="bound"):
        chunks.BlobAssembler(11, "", 10)
    short = chunks.BlobAssembler(3, chunks.sha256(b"abc"), 10)
    short.add(b"ab")
    with pytest.raises(chunks.BlobFault, match="2 of 3"):
        short.finish()
    with pytest.raises(chunks.BlobFault, match="more than"):
        short.add(b"cd")
    altered = chunks.BlobAssembler(3, chunks.sha256(b"abc"), 10)
    altered.add(b"abd")
    with pytest.raises(chunks.BlobFault, match="SHA-256"):
        altered.finish()
