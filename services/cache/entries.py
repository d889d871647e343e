"""Contents of the cache as plain values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from chorus_rpc.limits import MAX_ID_CHARACTERS, SHA256_PATTERN

# Prefix of every key that the cache writes.
BLOB_ROOT = "v1"

# Values allowed in a filter of the index: nothing is escaped, other values are rejected.
PLAIN_TEXT = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:/@+-]{{0,{MAX_ID_CHARACTERS - 1}}}")
SHA256_HEX = re.compile(SHA256_PATTERN)


@dataclass(frozen=True)
class Space:
    """Set of comparable vectors: those of one retrieval encoder, in one dimension."""

    encoder_id: str
    dimension: int

    @property
    def name(self) -> str:
        """Readable name, distinct for every encoder id: letters, digits and underscores, at most 64."""
        readable = re.sub(r"[^a-z0-9]+", "_", self.encoder_id.lower())[:24].strip("_")
        digest = hashlib.sha256(self.encoder_id.encode()).hexdigest()[:16]
        return f"chorus_{readable}_{digest}_{self.dimension}"


@dataclass(frozen=True)
class Blob:
    """A safetensors file with the latents of one step boundary, or the side data of its entry.

    Attributes:
        step: index of the step boundary; None for side data, whose `sigma` is 0.
        digest: SHA-256, lower-case hex.
    """

    step: int | None
    sigma: float
    size_bytes: int
    digest: str

    @property
    def name(self) -> str:
        """Name of the blob in messages."""
        return "side data" if self.step is None else f"step {self.step}"


class Uses(NamedTuple):
    """Requests that used an entry, the computation that they saved, and the time of the last one."""

    hits: int = 0
    saved_seconds: float = 0.0
    used_ms: int = 0

    def plus(self, others: Uses) -> Uses:
        return Uses(
            self.hits + others.hits,
            self.saved_seconds + others.saved_seconds,
            max(self.used_ms, others.used_ms),
        )


UNUSED = Uses()


@dataclass(frozen=True)
class Entry:
    """A row of the index, without its vector.

    Attributes:
        entry_id: digest returned by `services.contract.identity.entry_id`.
        identity: `identity_digest` of the latents.
        prompt: empty where only the hash is kept.
        cost_seconds: time to compute the latents again, in seconds.
        created_ms: time of the admission, milliseconds since the epoch.
        traceparent: trace of the request that produced the entry; may be empty.
        seed: seed of that request; None if an earlier version stored the entry.
        expires_ms: time from which the entry is no longer found, milliseconds since the epoch; 0 for never.
        uses: the uses so far, as of the last time that they were saved.
        similarity: cosine to the nearest entry of the same identity at the admission; 0 if there was none.
        from_hit: whether the latents were made from another entry.
        seed_drawn: whether the server drew the seed.
        pinned: whether the entry is kept when room is needed.
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
    seed: int | None = None
    expires_ms: int = 0
    uses: Uses = UNUSED
    similarity: float = 0.0
    from_hit: bool = False
    seed_drawn: bool = False
    pinned: bool = False

    def with_uses(self, uses: Uses) -> Entry:
        """Returns the entry with further uses."""
        return replace(self, uses=self.uses.plus(uses))

    def kept_as_long_as(self, other: Entry) -> Entry:
        """Returns the entry, kept at least as long as another one of the same request."""
        never = 0 in (self.expires_ms, other.expires_ms)
        return replace(
            self,
            pinned=self.pinned or other.pinned,
            expires_ms=0 if never else max(self.expires_ms, other.expires_ms),
        )

    def is_expired(self, now_ms: int) -> bool:
        return 0 < self.expires_ms <= now_ms

    @property
    def size_bytes(self) -> int:
        return sum(blob.size_bytes for blob in self.blobs)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the blobs. Equal latents of one identity share a blob."""
        return tuple(make_blob_key(self.tenant, self.identity, blob.digest) for blob in self.blobs)


@dataclass(frozen=True)
class Admission:
    """An entry whose blobs were received completely and verified.

    Attributes:
        vector: retrieval vector, L2-normalised, `space.dimension` values.
        data: contents of the blobs, by digest.
    """

    space: Space
    entry: Entry
    vector: tuple[float, ...]
    data: Mapping[str, bytes]


def make_blob_key(tenant: str, identity: str, digest: str) -> str:
    return f"{BLOB_ROOT}/{tenant}/{identity}/{digest}.safetensors"
