"""Verifies a cache process whose files may not grow, as on a full disk: the limit needs no root."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.common.v1 import errors_pb2
from chorus_rpc.channels import open_channel
from chorus_rpc.tenancy import tenant_metadata

from tests.contract.samples import admission, fetch, latents, new_entry
from tests.integration.cache.calls import admitted, details, donors, environment, fetched, files
from tests.processes import ROOT, free_port, start_service, wait_until_serving

pytestmark = pytest.mark.fault("logging")

TENANT = tenant_metadata("default")
BLOBS = {1: latents(1), 2: latents(2)}
# Above the size of the index's small files, below that of a large blob.
LIMIT_BYTES = 64 << 10


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[str]:
    """Cache with an entry, started again with a limit on the size of its files; yields its address."""
    with start_service("cache", environment(tmp_path), tmp_path) as service:
        with grpc.insecure_channel(service.target) as channel:
            cache_pb2_grpc.CacheServiceStub(channel).Admit(
                iter(admission(new_entry("kept"), BLOBS)), metadata=TENANT, timeout=30
            )
        assert service.terminate() == 0
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cache"],
        cwd=ROOT,
        env={**os.environ, **environment(tmp_path), "CHORUS_CACHE_PORT": str(port)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES)),
    )
    try:
        wait_until_serving(f"127.0.0.1:{port}", 60, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


async def test_full_disk_refuses_admissions_and_serves_the_rest(limited: str, tmp_path: Path) -> None:
    before = files(tmp_path)
    large = new_entry("large")
    large.identity.latent_shape[:] = [16, 21, 60, 52]
    blob = latents(7, large.identity.latent_shape)
    async with open_channel(limited) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await admitted(stub, TENANT, admission(large, {1: blob}, 1 << 20))
        assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details(failed.value)[0].reason == "DISK_FULL"
        assert "chorus cache purge" in (failed.value.details() or "")
        assert files(tmp_path) == before, "no part of a blob is left"

        [donor] = await donors(stub, TENANT)
        assert await fetched(stub, TENANT, fetch(donor.entry.entry_id, 1, 2)) == BLOBS
        stats = await stub.Stats(cache_pb2.StatsRequest(), metadata=TENANT)
        [rejected] = stats.rejected_admissions
        assert (rejected.reason, rejected.count) == (errors_pb2.ERROR_REASON_DISK_FULL, 1)
        assert (await stub.Purge(cache_pb2.PurgeRequest(all=True), metadata=TENANT)).entries == 1
        assert await donors(stub, TENANT) == []
