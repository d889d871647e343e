"""Calls of the tests to a cache process, and the files in its directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import grpc
import grpc.aio
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.common.v1 import latents_pb2
from chorus_rpc.channels import open_channel
from chorus_rpc.chunks import BlobAssembler
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.contract.samples import lookup
from tests.processes import ServiceProcess

if TYPE_CHECKING:
    Stub: TypeAlias = cache_pb2_grpc.CacheServiceAsyncStub

SECONDS = 30.0


def environment(directory: Path) -> dict[str, str]:
    return {
        "CHORUS_CACHE_MILVUS_URI": str(directory / "store" / "milvus.db"),
        "CHORUS_CACHE_BLOB_DIR": str(directory / "store" / "blobs"),
        "CHORUS_CACHE_MAX_PROMPT_BYTES": "2000",
        "CHORUS_CACHE_MILVUS_SECONDS": "30",
        "CHORUS_CACHE_KEYLESS_TENANTS": "*",
        "CHORUS_CACHE_HOT_BYTES": "0",  # tests alter and delete the files of blobs
    }


@asynccontextmanager
async def connected(service: ServiceProcess) -> AsyncIterator[Stub]:
    async with open_channel(service.target) as channel:
        # A process shares its connections: one to a killed service may still be backing off.
        await asyncio.wait_for(channel.channel_ready(), SECONDS)
        yield cache_pb2_grpc.CacheServiceStub(channel)


async def admitted(
    stub: Stub, metadata: tuple[tuple[str, str], ...], messages: Iterable[cache_pb2.AdmitRequest]
) -> cache_pb2.AdmitResponse:
    """Admits an entry; sends it again if the client lost the error of a call that the server ended early."""
    sent = list(messages)
    while True:
        try:
            return await stub.Admit(iter(sent), metadata=metadata, timeout=SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.details() != "Internal error from Core":
                raise


async def fetched(
    stub: Stub, metadata: tuple[tuple[str, str], ...], request: cache_pb2.FetchRequest
) -> dict[int | None, bytes]:
    """Returns the blobs by step, in order, with None for side data; asserts chunk sizes and digests."""
    blobs: dict[int | None, bytes] = {}
    current: tuple[int | None, BlobAssembler] | None = None
    async for part in stub.Fetch(request, metadata=metadata, timeout=SECONDS):
        if part.WhichOneof("part") == "header":
            side = part.header.kind == latents_pb2.BLOB_KIND_SIDE_DATA
            assert part.header.HasField("step") != side
            current = (
                None if side else part.header.step.index,
                BlobAssembler(part.header.size_bytes, part.header.digest, 1 << 30),
            )
            continue
        assert current is not None
        assert 0 < len(part.chunk) <= 1 << 20
        current[1].add(part.chunk)
        if current[1].complete:
            blobs[current[0]] = current[1].finish()
    return blobs


async def donors(stub: Stub, metadata: tuple[tuple[str, str], ...], vector: int = 0) -> list[cache_pb2.Donor]:
    reply = await stub.Lookup(lookup(vector, limit=16), metadata=metadata, timeout=SECONDS)
    return list(reply.donors)


def files(directory: Path) -> list[Path]:
    """Returns the files in the directory of blobs, without the owner's marker."""
    return sorted(
        path
        for path in (directory / "store" / "blobs").rglob("*")
        if path.is_file() and path.parent.name != ".owners"
    )


def details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, list[str]]:
    """Returns the single ErrorInfo, and the fields named by BadRequest."""
    status = rpc_status.from_call(cast(grpc.Call, error))
    assert status is not None
    infos, fields = [], []
    for packed in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if packed.Unpack(info):
            infos.append(info)
        elif packed.Unpack(bad):
            fields += [violation.field for violation in bad.field_violations]
    [info] = infos
    return info, fields
