"""Sample values for the cache: identities, entries, unit vectors, latents and side data as safetensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import latents_pb2
from chorus_rpc.chunks import chunks, sha256
from safetensors.numpy import save

from services.cache.entries import Blob, Entry, Space
from services.contract.identity import entry_id, identity_digest, prompt_hash

SHAPE = (4, 2, 3, 3)
SIGMAS = (1.0, 0.9, 0.5, 0.0)
ENCODER = "minilm"
DIMENSION = 16
SPACE = Space(ENCODER, DIMENSION)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def identity(model: str = "shapes") -> latents_pb2.LatentIdentity:
    return latents_pb2.LatentIdentity(
        model_id=model,
        weights_digest=digest("weights"),
        model_digest=digest("model"),
        schedule=latents_pb2.Schedule(sigmas=SIGMAS),
        latent_shape=SHAPE,
        latent_dtype=latents_pb2.D_TYPE_FLOAT32,
        codec_id="space-to-depth",
        conditioning_encoder_id=ENCODER,
    )


def unit(seed: int, dimension: int = DIMENSION) -> list[float]:
    """Returns a unit vector that differs for each seed."""
    vector = np.random.default_rng(seed).standard_normal(dimension)
    return [float(value) for value in vector / np.linalg.norm(vector)]


def latents(seed: int, shape: Sequence[int] = SHAPE, dtype: str = "float32") -> bytes:
    """Returns a safetensors file of one tensor."""
    values = np.random.default_rng(seed).standard_normal(tuple(shape)).astype(dtype)
    return bytes(save({"latents": values}))


def side_data(value: int, tensors: int = 1) -> bytes:
    """Returns a small safetensors file; with one tensor it has less than a tenth of the bytes of two
    `latents`."""
    return bytes(save({f"{i}": np.array([value], "uint8") for i in range(tensors)}))


def entry(
    prompt: str = "a red circle moves left",
    *,
    tenant: str = "default",
    seed: int = 0,
    model: str = "shapes",
    blobs: Sequence[Blob] = (),
    created_ms: int = 1_700_000_000_000,
    expires_ms: int = 0,
    pinned: bool = False,
) -> Entry:
    """Returns a row as the store writes it."""
    identity_hex = identity_digest(identity(model))
    return Entry(
        entry_id=entry_id(tenant, identity_hex, prompt, seed),
        tenant=tenant,
        identity=identity_hex,
        model_id=model,
        prompt=prompt,
        prompt_hash=prompt_hash(prompt),
        blobs=tuple(blobs) or (Blob(1, 0.9, 100, digest(prompt)),),
        cost_seconds=1.25,
        created_ms=created_ms,
        traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
        generation_id="generation-1",
        seed=seed,
        expires_ms=expires_ms,
        pinned=pinned,
    )


def new_entry(
    prompt: str = "a red circle moves left", *, seed: int = 0, vector: int = 0, model: str = "shapes"
) -> cache_pb2.NewEntry:
    return cache_pb2.NewEntry(
        identity=identity(model),
        retrieval_encoder_id=ENCODER,
        vector=unit(vector),
        prompt=prompt,
        seed=seed,
        cost_seconds=1.25,
        traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
        generation_id="generation-1",
    )


def header(step: int, data: bytes) -> latents_pb2.BlobHeader:
    return latents_pb2.BlobHeader(
        step=latents_pb2.StepRef(index=step, sigma=SIGMAS[step]), size_bytes=len(data), digest=sha256(data)
    )


def side_header(data: bytes) -> latents_pb2.BlobHeader:
    return latents_pb2.BlobHeader(
        size_bytes=len(data), digest=sha256(data), kind=latents_pb2.BLOB_KIND_SIDE_DATA
    )


def blob_messages(
    announced: latents_pb2.BlobHeader, data: bytes, chunk_bytes: int = 64
) -> Iterator[cache_pb2.AdmitRequest]:
    yield cache_pb2.AdmitRequest(header=announced)
    for chunk in chunks(data, chunk_bytes):
        yield cache_pb2.AdmitRequest(chunk=chunk)


def admission(
    offered: cache_pb2.NewEntry,
    blobs: Mapping[int, bytes],
    chunk_bytes: int = 64,
    *,
    side: bytes | None = None,
) -> Iterator[cache_pb2.AdmitRequest]:
    """Yields the messages of an `Admit` call."""
    announced = cache_pb2.NewEntry()
    announced.CopyFrom(offered)
    announced.steps[:] = blobs
    announced.side_data = side is not None
    yield cache_pb2.AdmitRequest(entry=announced)
    for step, data in blobs.items():
        yield from blob_messages(header(step, data), data, chunk_bytes)
    if side is not None:
        yield from blob_messages(side_header(side), side, chunk_bytes)


def lookup(
    vector: int = 0, *, limit: int = 4, min_score: float = -1.0, model: str = "shapes"
) -> cache_pb2.LookupRequest:
    return cache_pb2.LookupRequest(
        identity=identity(model),
        retrieval_encoder_id=ENCODER,
        vector=unit(vector),
        limit=limit,
        min_score=min_score,
    )


def fetch(
    entry_id: str,
    *steps: int,
    under: latents_pb2.LatentIdentity | None = None,
    side_data: bool = False,
) -> cache_pb2.FetchRequest:
    return cache_pb2.FetchRequest(
        entry_id=entry_id,
        retrieval_encoder_id=ENCODER,
        vector_dim=DIMENSION,
        steps=steps,
        identity=under or identity(),
        side_data=side_data,
    )
