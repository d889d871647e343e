"""What the cache keeps, as plain values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from chorus_rpc.limits import MAX_ID_CHARACTERS, SHA256_PATTERN

# Every file that the cache writes lies below this key.
BLOB_ROOT = "v1"

# What may stand inside a filter of the index: nothing is ever escaped, other values are refused.
PLAIN_TEXT = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:/@+-]{{0,{MAX_ID_CHARACTERS - 1}}}")
SHA256_HEX = re.compile(SHA256_PATTERN)


@dataclass(frozen=True)
class Space:
    """Vectors that may be compared: those of one retrieval encoder, in one dimension."""

    encoder_id: str
    dimension: int

    @property
    def name(self) -> str:
        """Letters, digits and underscores, at most 64: readable, and distinct for every encoder id."""
        readable = re.sub(r"[^a-z0-9]+", "_", self.encoder_id.lower())[:24].strip("_")
        digest = hashlib.sha256(self.encoder_id.encode()).hexdigest()[:16]
        return f"chorus_{readable}_{digest}_{self.dimension}"


@dataclass(frozen=True)
class Blob:
    """A safetensors file of `size_bytes`, `digest` its SHA-256 in hex: the latents of one step boundary.

    Args:
        step: None: it is the side data of its entry, and `sigma` is 0.
    """

    step: int | None
    sigma: float
    size_bytes: int
    digest: str

    @property
    def name(self) -> str:
        """For a person."""
        return "side data" if self.step is None else f"step {self.step}"


@dataclass(frozen=True)
class Entry:
    """A row of the index, without its vector.

    Args:
        entry_id: `services.contract.identity.entry_id`.
        identity: `identity_digest` of the latents.
        prompt: empty where only the hash is kept.
        created_ms: milliseconds since the epoch.
        traceparent: of the request that produced the entry; may be empty.
    """

    entry_id: str
    tenant: str
    identity: str
    model_id: str
    prompt: str
    prompt_hash: str
    blobs: tuple[Blob, ...]
    cost_seconds: float
    created_ms: int
    traceparent: str
    generation_id: str

    @property
    def size_bytes(self) -> int:
        return sum(blob.size_bytes for blob in self.blobs)

    @property
    def keys(self) -> tuple[str, ...]:
        """Where the blobs lie. Equal latents of one identity share a blob."""
        return tuple(blob_key(self.tenant, self.identity, blob.digest) for blob in self.blobs)


@dataclass(frozen=True)
class Admission:
    """An entry whose blobs were received whole and verified.

    Args:
        vector: L2-normalised, `space.dimension` values.
        data: the blobs' bytes by digest.
    """

    space: Space
    entry: Entry
    vector: tuple[float, ...]
    data: Mapping[str, bytes]


def blob_key(tenant: str, identity: str, digest: str) -> str:
    return f"{BLOB_ROOT}/{tenant}/{identity}/{digest}.safetensors"
