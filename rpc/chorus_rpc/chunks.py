"""Blobs on the wire: safetensors objects in chunks of about 1 MiB, checked before they are believed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

CHUNK_BYTES = 1 << 20


class BlobFault(ValueError):
    """A blob that is truncated, too large, altered or not safetensors."""


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
