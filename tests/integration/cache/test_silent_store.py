"""Verifies the cache while its index or its object store accepts connections and never answers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NoReturn

import grpc
import grpc.aio
import pytest
from chorus_rpc.errors import ChorusError
from chorus_rpc.tenancy import tenant_metadata
from minio import Minio
from minio.error import S3Error
from moto.server import ThreadedMotoServer
from urllib3 import HTTPResponse

from services.cache.entries import make_blob_key
from services.cache.milvus import MilvusIndex
from services.cache.s3 import S3Blobs
from tests.contract.samples import admission, digest, fetch, latents, new_entry
from tests.integration.cache.calls import admitted, connected, details, donors, environment, fetched
from tests.processes import free_port, start_service
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


@pytest.mark.parametrize("listing_status", [200, 403])
async def test_object_store_that_refuses_the_probe_is_called_again(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, listing_status: int
) -> None:
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

    def refuse(*_: object, **__: object) -> NoReturn:
        response = HTTPResponse(status=403)
        raise S3Error(response, "AccessDenied", "refused", "/b", "request", "host")

    # A policy that is limited to the prefix forbids a HEAD request for the bucket.
    monkeypatch.setattr(Minio, "bucket_exists", refuse)
    if listing_status == 403:
        monkeypatch.setattr(Minio, "list_objects", refuse)
    try:
        await blobs.put(KEY, b"latents")
        relay.freeze()
        with pytest.raises(ChorusError):
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


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[int]:
    """Milvus Lite in a process; yields its port, which it may not have bound yet."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("milvus-lite")), "server", "--host", "127.0.0.1"]
    with (tmp_path / "milvus.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--data-dir", str(tmp_path / "milvus")], stdout=log, stderr=log
        )
    yield port
    process.terminate()
    process.wait(20)


async def test_index_that_never_answers_is_called_once(milvus: int) -> None:
    async with Relay(milvus) as relay, asyncio.timeout(60):
        index = await MilvusIndex.open(f"http://{relay.target}", "", seconds=30, threads=2)
        assert await index.spaces() == []
        relay.freeze()
        with pytest.raises(TimeoutError):  # a lookup ends at the deadline of its caller
            async with asyncio.timeout(1.5):
                await index.spaces()
        for _ in range(10):
            with pytest.raises(ChorusError, match=r"milvus is not available: .*calls are suspended"):
                await index.spaces()
        relay.thaw()
        while True:
            try:
                assert await index.spaces() == []
            except ChorusError:
                await asyncio.sleep(0.01)
            else:
                break
        await index.close()


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
