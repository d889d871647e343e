"""Verifies the cache while its object store accepts connections and never answers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from chorus_rpc.errors import ChorusError
from chorus_rpc.tenancy import tenant_metadata
from moto.server import ThreadedMotoServer

from services.cache.entries import make_blob_key
from services.cache.s3 import S3Blobs
from tests.contract.samples import admission, digest, fetch, latents, new_entry
from tests.integration.cache.calls import admitted, connected, details, donors, environment, fetched
from tests.processes import start_service
from tests.relay import Relay

pytestmark = pytest.mark.fault("silent-dependency")

KEY = make_blob_key("default", digest("identity"), digest("blob"))


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    """S3 server in memory; yields its port."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
async def relay(moto: int) -> AsyncIterator[Relay]:
    async with Relay(moto) as relay:
        yield relay


def make_bucket_name() -> str:
    return f"chorus-test-{uuid.uuid4().hex[:12]}"


async def test_object_store_that_never_answers_is_called_once(relay: Relay) -> None:
    blobs = await S3Blobs.open(
        endpoint=relay.target,
        bucket=make_bucket_name(),
        access_key="access",
        secret_key="secret",
        secure=False,
        region="us-east-1",
        seconds=1.5,
        threads=2,
    )
    try:
        await blobs.put(KEY, b"latents")
        relay.freeze()
        with pytest.raises(ChorusError) as caught:
            await blobs.get(KEY, 7)
        assert "calls are suspended" not in caught.value.message
        for _ in range(10):
            with pytest.raises(ChorusError, match=r"s3 is not available: .*calls are suspended"):
                await blobs.get(KEY, 7)
        relay.thaw()
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await blobs.get(KEY, 7) == b"latents"
                except ChorusError:
                    await asyncio.sleep(0.01)
                else:
                    break
    finally:
        relay.thaw()
        await blobs.close()


async def test_cache_answers_at_once_while_its_object_store_is_silent(relay: Relay, tmp_path: Path) -> None:
    settings = {
        **environment(tmp_path),
        "CHORUS_CACHE_BLOBS": "s3",
        "CHORUS_CACHE_S3_ENDPOINT": relay.target,
        "CHORUS_CACHE_S3_BUCKET": make_bucket_name(),
        "CHORUS_CACHE_S3_ACCESS_KEY": "access",
        "CHORUS_CACHE_S3_SECRET_KEY": "secret",
        "CHORUS_CACHE_S3_SECURE": "false",
        "CHORUS_CACHE_S3_REGION": "us-east-1",
        "CHORUS_CACHE_BLOB_SECONDS": "2",
    }
    tenant = tenant_metadata("acme")
    starting = start_service("cache", settings, tmp_path)
    service = await asyncio.to_thread(starting.__enter__)
    try:
        async with connected(service) as stub:
            blobs = {1: latents(1)}
            entry = (await admitted(stub, tenant, admission(new_entry("a red car"), blobs))).entry_id
            relay.freeze()
            messages = []
            for _ in range(3):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await fetched(stub, tenant, fetch(entry, 1))
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert details(caught.value)[0].metadata["service"] == "s3"
                messages.append(caught.value.details() or "")
            assert "calls are suspended" not in messages[0]
            assert all("calls are suspended" in message for message in messages[1:])
            with pytest.raises(grpc.aio.AioRpcError, match="calls are suspended"):
                await admitted(stub, tenant, admission(new_entry("a blue car"), {1: latents(2)}))
            assert [donor.entry.entry_id for donor in await donors(stub, tenant)] == [entry]
            relay.thaw()
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert await fetched(stub, tenant, fetch(entry, 1)) == blobs
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.01)
                    else:
                        break
    finally:
        relay.thaw()
        await asyncio.to_thread(starting.__exit__, None, None, None)
