"""Blobs on the wire: safetensors objects in chunks of about 1 MiB, checked before they are believed."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass

CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20


class BlobFault(ValueError):
    """A blob that is truncated, too large, altered or not safetensors."""


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a safetensors file. `dtype` is safetensors' own name: F32, F16, BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def chunks(data: bytes, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Slices of at most `size` bytes, in order."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


class BlobAssembler:
    """Puts chunks together again; refuses more bytes than were announced, and a wrong digest.

    Args:
        size_bytes: as announced by the header.
        digest: SHA-256, lower-case hex, as announced.
        limit: the most that is accepted, whatever was announced.
    """

    def __init__(self, size_bytes: int, digest: str, limit: int) -> None:
        if not 0 < size_bytes <= limit:
            raise BlobFault(f"announced {size_bytes} bytes; the bound is 1 to {limit}")
        self._size = size_bytes
        self._digest = digest
        self._data = bytearray()

    def add(self, chunk: bytes) -> None:
        if len(self._data) + len(chunk) > self._size:
            raise BlobFault(f"more than the announced {self._size} bytes")
        self._data += chunk

    @property
    def complete(self) -> bool:
        return len(self._data) == self._size

    def finish(self) -> bytes:
        """The blob; raises BlobFault if it is short or its digest differs."""
        if not self.complete:
            raise BlobFault(f"{len(self._data)} of {self._size} announced bytes")
        data = bytes(self._data)
        if sha256(data) != self._digest:
            raise BlobFault("the SHA-256 differs from the announced one")
        return data


def safetensors_header(data: bytes) -> list[TensorHeader]:
    """The tensors that a safetensors file declares, without allocating any of them.

    Raises BlobFault for a file that is truncated or not safetensors.
    """
    if len(data) < 8:
        raise BlobFault("not a safetensors file: shorter than its length field")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise BlobFault("not a safetensors file, or truncated within its header")
    end = 0
    tensors = []
    try:
        header = json.loads(data[8 : 8 + length])
        for name, info in header.items():
            if name == "__metadata__":
                continue
            tensors.append(TensorHeader(name, str(info["dtype"]), tuple(int(n) for n in info["shape"])))
            end = max(end, int(info["data_offsets"][1]))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:
        raise BlobFault("not a safetensors file: its header cannot be read") from error
    if 8 + length + end != len(data):
        raise BlobFault(f"{len(data)} bytes where the safetensors header declares {8 + length + end}")
    return tensors
