"""A cache process and calls to it, for the measurements over gRPC: one part of `bench.cache`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.common.v1 import latents_pb2
from chorus_rpc.channels import open_channel
from chorus_rpc.chunks import BlobAssembler, chunks, sha256
from chorus_rpc.limits import DEFAULT_MAX_BLOB_BYTES
from chorus_rpc.tenancy import tenant_metadata
from safetensors.numpy import save

from bench.cache_rows import MODEL, SPACE, TENANT, draw_vectors
from services.contract.identity import prompt_hash
from tests.processes import start_service

if TYPE_CHECKING:
    from chorus.cache.v1.cache_pb2_grpc import CacheServiceAsyncStub

SIGMAS: Final = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
METADATA: Final = tenant_metadata(TENANT)
CALL_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Upload:
    """An entry to admit.

    Attributes:
        identity: Identity of the latents.
        blobs: Latents by step boundary, as safetensors files.
    """

    number: int
    identity: latents_pb2.LatentIdentity
    blobs: Mapping[int, bytes]

    def make_messages(self) -> list[cache_pb2.AdmitRequest]:
        """Returns the messages of the Admit call."""
        [vector] = draw_vectors(1, self.number)
        entry = cache_pb2.NewEntry(
            identity=self.identity,
            retrieval_encoder_id=SPACE.encoder_id,
            vector=vector.tolist(),
            prompt=f"a small red circle moving left, number {self.number}",
            seed=self.number,
            cost_seconds=0.3,
            generation_id=f"generation-{self.number}",
            steps=self.blobs.keys(),
        )
        messages = [cache_pb2.AdmitRequest(entry=entry)]
        for step, data in self.blobs.items():
            header = latents_pb2.BlobHeader(
                step=latents_pb2.StepRef(index=step, sigma=SIGMAS[step]),
                size_bytes=len(data),
                digest=sha256(data),
            )
            messages.append(cache_pb2.AdmitRequest(header=header))
            messages += [cache_pb2.AdmitRequest(chunk=chunk) for chunk in chunks(data)]
        return messages


def make_upload(number: int, shape: Sequence[int], steps: Sequence[int]) -> Upload:
    """Returns an entry with random latents in float32.

    Args:
        number: Number of the entry; others give other latents.
        shape: Shape of the latents: channels, frames, height, width.
        steps: Step boundaries, from 1 to 5.
    """
    identity = latents_pb2.LatentIdentity(
        model_id=MODEL,
        weights_digest=prompt_hash("weights"),
        model_digest=prompt_hash("model"),
        schedule=latents_pb2.Schedule(sigmas=SIGMAS),
        latent_shape=shape,
        latent_dtype=latents_pb2.D_TYPE_FLOAT32,
        codec_id="none",
        conditioning_encoder_id=SPACE.encoder_id,
    )
    rng = np.random.default_rng(number)
    blobs = {step: bytes(save({"latents": rng.standard_normal(shape, np.float32)})) for step in steps}
    return Upload(number, identity, blobs)


@asynccontextmanager
async def start_cache(folder: Path, variables: Mapping[str, str]) -> AsyncIterator[CacheServiceAsyncStub]:
    """Runs a cache process with the index, and by default the latents, in `folder`; yields a stub.

    Args:
        variables: Further environment variables of the process.
    """
    environment = {
        "CHORUS_CACHE_MILVUS_URI": str(folder / "milvus.db"),
        "CHORUS_CACHE_BLOB_DIR": str(folder / "blobs"),
        **variables,
    }
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    with start_service("cache", environment, folder) as process:
        async with open_channel(process.target) as channel:
            await asyncio.wait_for(channel.channel_ready(), CALL_SECONDS)
            yield cache_pb2_grpc.CacheServiceStub(channel)


async def admit(stub: CacheServiceAsyncStub, messages: Sequence[cache_pb2.AdmitRequest]) -> str:
    """Admits an entry and returns its id."""

    def send() -> Iterator[cache_pb2.AdmitRequest]:
        yield from messages

    reply = await stub.Admit(send(), metadata=METADATA, timeout=CALL_SECONDS)
    assert reply.created
    return reply.entry_id


async def fetch(stub: CacheServiceAsyncStub, upload: Upload, entry_id: str, step: int) -> bytes:
    """Fetches the latents of one step and verifies their digest, as the denoiser does."""
    request = cache_pb2.FetchRequest(
        entry_id=entry_id,
        retrieval_encoder_id=SPACE.encoder_id,
        vector_dim=SPACE.dimension,
        steps=[step],
        identity=upload.identity,
    )
    assembler: BlobAssembler | None = None
    async for part in stub.Fetch(request, metadata=METADATA, timeout=CALL_SECONDS):
        if part.WhichOneof("part") == "header":
            header = part.header
            assembler = BlobAssembler(header.size_bytes, header.digest, DEFAULT_MAX_BLOB_BYTES)
        else:
            assert assembler is not None
            assembler.add(part.chunk)
    assert assembler is not None
    return assembler.finish()
