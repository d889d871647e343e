"""Verifies the cache process with a real Milvus and a real S3 server."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

import grpc
import grpc.aio
import pytest
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus_rpc.channels import open_channel
from chorus_rpc.tenancy import tenant_metadata
from minio import Minio

from tests.contract.conftest import require_variable
from tests.contract.samples import admission, fetch, latents, lookup, new_entry
from tests.processes import start_service

pytestmark = pytest.mark.servers

BLOBS = {1: latents(1), 2: latents(2)}


async def test_entry_is_admitted_found_fetched_lost_and_purged(tmp_path: Path) -> None:
    endpoint = require_variable("CHORUS_TEST_S3_ENDPOINT")
    bucket = f"chorus-test-{uuid.uuid4().hex[:12]}"
    env = {
        "CHORUS_CACHE_MILVUS_URI": require_variable("CHORUS_TEST_MILVUS_URI"),
        "CHORUS_CACHE_BLOBS": "s3",
        "CHORUS_CACHE_HOT_BYTES": "0",  # the test deletes an object behind the cache
        "CHORUS_CACHE_S3_ENDPOINT": endpoint,
        "CHORUS_CACHE_S3_BUCKET": bucket,
        "CHORUS_CACHE_S3_ACCESS_KEY": require_variable("CHORUS_TEST_S3_ACCESS_KEY"),
        "CHORUS_CACHE_S3_SECRET_KEY": require_variable("CHORUS_TEST_S3_SECRET_KEY"),
        "CHORUS_CACHE_S3_SECURE": "false",
        "CHORUS_CACHE_KEYLESS_TENANTS": "*",
    }
    s3 = Minio(
        endpoint,
        access_key=os.environ["CHORUS_TEST_S3_ACCESS_KEY"],
        secret_key=os.environ["CHORUS_TEST_S3_SECRET_KEY"],
        secure=False,
    )
    tenant = f"t{uuid.uuid4().hex[:12]}"
    metadata = tenant_metadata(tenant)
    with start_service("cache", env, tmp_path) as service:
        async with open_channel(service.target) as channel:
            stub = cache_pb2_grpc.CacheServiceStub(channel)

            async def admit(prompt: str, vector: int) -> cache_pb2.AdmitResponse:
                return await stub.Admit(admission(new_entry(prompt, vector=vector), BLOBS), metadata=metadata)

            async def found(vector: int) -> list[str]:
                reply = await stub.Lookup(lookup(vector, limit=16), metadata=metadata)
                return [donor.entry.entry_id for donor in reply.donors]

            # The index holds rows of other tests, whose blobs are not in this bucket.
            await stub.Adopt(cache_pb2.AdoptRequest(), metadata=metadata)
            first, second = await admit("first", 1), await admit("second", 2)
            assert (await admit("first", 1)).created is False
            assert await found(1) == [first.entry_id, second.entry_id]
            assert await found(2) == [second.entry_id, first.entry_id]
            parts = [part async for part in stub.Fetch(fetch(first.entry_id, 2, 1), metadata=metadata)]
            assert b"".join(part.chunk for part in parts) == BLOBS[2] + BLOBS[1]
            stats = await stub.Stats(cache_pb2.StatsRequest(), metadata=metadata)
            assert (stats.index_kind, stats.blobs_kind, stats.entries) == ("milvus", "s3", 2)

            lost = [
                found.object_name
                for found in await asyncio.to_thread(
                    lambda: list(s3.list_objects(bucket, prefix=f"v1/{tenant}/", recursive=True))
                )
            ]
            assert len(lost) == 2
            for name in lost:
                await asyncio.to_thread(s3.remove_object, bucket, name)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                [part async for part in stub.Fetch(fetch(first.entry_id, 1), metadata=metadata)]
            assert failed.value.code() == grpc.StatusCode.DATA_LOSS
            assert await found(1) == [second.entry_id]
            purged = await stub.Purge(cache_pb2.PurgeRequest(all=True), metadata=metadata)
            assert purged.entries == 1
            assert await found(2) == []
