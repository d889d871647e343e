"""Verifies two cache processes with different indexes on one directory of blobs, and `chorus cache adopt`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest
from chorus.cache.v1 import cache_pb2
from chorus_rpc.tenancy import tenant_metadata

from tests.contract.samples import admission, fetch, latents, new_entry
from tests.integration.cache.calls import admitted, connected, donors, environment, fetched, files
from tests.processes import ROOT, ServiceProcess, free_port, start_service

pytestmark = pytest.mark.fault("store-ownership")

BLOBS = {1: latents(1), 2: latents(2)}
TENANT = tenant_metadata("default")


@pytest.fixture
def first(tmp_path: Path) -> Iterator[ServiceProcess]:
    (tmp_path / "first").mkdir()
    env = {**environment(tmp_path), "CHORUS_CACHE_SWEEP_SECONDS": "0.2"}
    with start_service("cache", env, tmp_path / "first") as service:
        yield service


@pytest.fixture
def second(tmp_path: Path, first: ServiceProcess) -> Iterator[ServiceProcess]:
    """Cache whose index is another one, by mistake; not started."""
    env = {**first.env, "CHORUS_CACHE_MILVUS_URI": str(tmp_path / "another.db")}
    service = ServiceProcess("cache", env, free_port(), tmp_path / "second.log")
    yield service
    service.stop()


def wait_for(service: ServiceProcess, *texts: str) -> None:
    end = time.monotonic() + 60
    while not any(text in service.tail(200) for text in texts):
        assert time.monotonic() < end, service.tail()
        time.sleep(0.1)


def age(directory: Path) -> None:
    for path in files(directory):
        os.utime(path, (0, path.stat().st_mtime - 3_600))


def chorus_cache(service: ServiceProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chorus_cli", "cache", *arguments, "--target", service.target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


async def test_first_sweep_with_another_index_deletes_nothing(
    first: ServiceProcess, second: ServiceProcess, tmp_path: Path
) -> None:
    async with connected(first) as stub:
        kept = await admitted(stub, TENANT, admission(new_entry(), BLOBS))
        age(tmp_path)
        await asyncio.to_thread(second.start)
        await asyncio.to_thread(wait_for, second, "not swept", "sweep removed leftovers")
        assert await fetched(stub, TENANT, fetch(kept.entry_id, 1, 2)) == BLOBS
        async with connected(second) as other:
            stats = await other.Stats(cache_pb2.StatsRequest(), metadata=TENANT)
            owner = await stub.Stats(cache_pb2.StatsRequest(), metadata=TENANT)
            assert stats.store_ownership == cache_pb2.STORE_OWNERSHIP_FOREIGN
            assert owner.store_ownership == cache_pb2.STORE_OWNERSHIP_OWNED
            assert (
                list(stats.store_owners) == list(owner.store_owners) == [owner.index_id] != [stats.index_id]
            )
            # The cache with the wrong index serves, but stores nothing in the other's store.
            assert await donors(other, TENANT) == []
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await admitted(other, TENANT, admission(new_entry(), BLOBS))
            assert failed.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_store_is_owned_after_kill_9_and_a_restart(first: ServiceProcess) -> None:
    async with connected(first) as stub:
        before = await stub.Stats(cache_pb2.StatsRequest(), metadata=TENANT)
    await asyncio.to_thread(first.kill)
    await asyncio.to_thread(first.start)
    async with connected(first) as stub:
        after = await stub.Stats(cache_pb2.StatsRequest(), metadata=TENANT)
    assert (after.index_id, after.store_ownership) == (before.index_id, cache_pb2.STORE_OWNERSHIP_OWNED)


async def test_adopt_moves_the_store_after_a_confirmation(
    first: ServiceProcess, second: ServiceProcess, tmp_path: Path
) -> None:
    async with connected(first) as stub:
        await admitted(stub, TENANT, admission(new_entry(), BLOBS))
    await asyncio.to_thread(first.terminate)
    await asyncio.to_thread(second.start)
    shown = await asyncio.to_thread(chorus_cache, second, "stats")
    assert "owned by another index" in shown.stdout
    assert "chorus cache adopt" in shown.stdout

    asked = await asyncio.to_thread(chorus_cache, second, "adopt")
    assert (asked.returncode, "--yes" in asked.stderr) == (2, True)
    listed = await asyncio.to_thread(chorus_cache, second, "adopt", "--dry-run", "--json")
    [line] = listed.stdout.splitlines()
    assert json.loads(line)["adoption"]["orphaned_blobs"] == "2"
    async with connected(second) as stub:
        stats = await stub.Stats(cache_pb2.StatsRequest(), metadata=TENANT)
        assert stats.store_ownership == cache_pb2.STORE_OWNERSHIP_FOREIGN

    adopted = await asyncio.to_thread(chorus_cache, second, "adopt", "--yes")
    assert adopted.returncode == 0, adopted.stderr
    assert "2 blobs" in adopted.stdout
    age(tmp_path)
    await asyncio.to_thread(wait_for, second, "sweep removed leftovers")
    assert files(tmp_path) == []
    assert "owned" in (await asyncio.to_thread(chorus_cache, second, "stats")).stdout
