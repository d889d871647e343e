"""Verifies the metrics of a cache process against the calls that it answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from chorus.cache.v1 import cache_pb2
from chorus_rpc.tenancy import tenant_metadata

from tests.contract.samples import admission, fetch, latents, lookup, new_entry
from tests.integration.cache.calls import (
    SECONDS,
    admitted,
    connected,
    donors,
    environment,
    fetched,
    files,
)
from tests.processes import ServiceProcess, free_port, start_service
from tests.scraping import scrape, scrape_until

if TYPE_CHECKING:
    from tests.integration.cache.calls import Stub

ACME = tenant_metadata("acme")
BLOBS = {1: latents(1), 3: latents(3)}
SIZE = sum(map(len, BLOBS.values()))
CAPACITY = 1 << 20
METHOD = "chorus.cache.v1.CacheService/{}"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def service(port: int, tmp_path: Path) -> Iterator[ServiceProcess]:
    env = {
        **environment(tmp_path),
        "CHORUS_CACHE_METRICS_PORT": str(port),
        "CHORUS_CACHE_CAPACITY_BYTES": str(CAPACITY),
        "CHORUS_CACHE_HOT_BYTES": str(CAPACITY),
    }
    with start_service("cache", env, tmp_path) as running:
        yield running


@pytest.fixture
async def stub(service: ServiceProcess) -> AsyncIterator[Stub]:
    async with connected(service) as stub:
        yield stub


async def test_calls_appear_in_the_metrics(stub: Stub, port: int) -> None:
    assert await donors(stub, ACME) == []
    reply = await admitted(stub, ACME, admission(new_entry(), BLOBS))
    await admitted(stub, ACME, admission(new_entry(), BLOBS))
    with pytest.raises(grpc.aio.AioRpcError):
        await admitted(stub, ACME, admission(new_entry("another"), {1: b"no latents"}))
    assert len(await donors(stub, ACME)) == 1
    for _ in range(2):  # the second one is read from memory
        await fetched(stub, ACME, fetch(reply.entry_id, 1, 3))

    found = await asyncio.to_thread(
        scrape_until, port, lambda seen: seen.value("chorus_cache_fetch_seconds_count") == 2
    )
    lookups = {"model": "shapes", "tenant": "acme"}
    assert found.value("chorus_cache_lookups_total", outcome="found", **lookups) == 1
    assert found.value("chorus_cache_lookups_total", outcome="none", **lookups) == 1
    assert found.value("chorus_cache_lookups_total") == 2
    assert found.value("chorus_cache_lookup_seconds_count") == 2
    assert found.value("chorus_cache_fetches_total", tenant="acme") == 2
    assert found.value("chorus_cache_fetch_bytes_total", tenant="acme") == 2 * SIZE
    for outcome in ("created", "existing", "rejected"):
        assert found.value("chorus_cache_admissions_total", tenant="acme", outcome=outcome) == 1
    assert found.value("chorus_cache_admit_seconds_count", outcome="created") == 1
    assert found.value("chorus_cache_hot_hits_total") == len(BLOBS)
    assert found.value("chorus_cache_hot_misses_total") == len(BLOBS)
    assert found.value("chorus_cache_entries", tenant="acme") == 1
    assert found.value("chorus_cache_bytes", tenant="acme") == SIZE
    assert found.value("chorus_cache_capacity_bytes") == CAPACITY
    # Step 3 of 3 saves all of the 1.25 seconds that the entry cost.
    assert found.value("chorus_cache_seconds_saved_total", tenant="acme") == pytest.approx(2.5)
    assert found.value("chorus_cache_failed_sweeps_total") == 0
    assert found.value("chorus_rpc_seconds_count", method=METHOD.format("Fetch"), code="OK") == 2
    assert (
        found.value("chorus_rpc_seconds_count", method=METHOD.format("Admit"), code="INVALID_ARGUMENT") == 1
    )


async def test_failed_lookup_gets_no_label_of_its_own(stub: Stub, port: int) -> None:
    request = lookup(0)
    request.identity.model_id = "invented by a caller"
    request.identity.ClearField("schedule")
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Lookup(request, metadata=ACME, timeout=SECONDS)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Lookup(lookup(0), metadata=tenant_metadata("No Tenant"), timeout=SECONDS)
    found = await asyncio.to_thread(
        scrape_until, port, lambda seen: seen.value("chorus_cache_lookups_total") == 2
    )
    assert found.value("chorus_cache_lookups_total", model="other", tenant="other", outcome="error") == 2
    assert found.labels("chorus_cache_lookups_total") == {"model", "tenant", "outcome"}


async def test_evictions_and_corrupt_blobs_are_counted(stub: Stub, port: int, tmp_path: Path) -> None:
    shape = (4, 8, 64, 64)
    ids = []
    for seed in range(3):  # each has half of the capacity, and a header
        entry = new_entry(f"prompt {seed}", vector=seed)
        entry.identity.latent_shape[:] = shape
        data = latents(seed, shape)
        ids.append((await admitted(stub, ACME, admission(entry, {1: data}, len(data)))).entry_id)
    found = scrape(port)
    assert found.value("chorus_cache_evictions_total", tenant="acme", reason="tenant_capacity") == 2
    assert found.value("chorus_cache_entries", tenant="acme") == 1
    assert found.value("chorus_cache_bytes") <= CAPACITY

    [path] = files(tmp_path)
    path.write_bytes(b"altered" + path.read_bytes())
    request = fetch(ids[-1], 1)
    request.identity.latent_shape[:] = shape
    with pytest.raises(grpc.aio.AioRpcError):
        await fetched(stub, ACME, request)
    found = scrape(port)
    assert found.value("chorus_cache_corrupt_total", tenant="acme") == 1
    assert found.value("chorus_cache_entries", tenant="acme") == 0
    assert found.value("chorus_cache_fetches_total", tenant="acme") == 0


async def test_purge_is_no_eviction(stub: Stub, port: int) -> None:
    reply = await admitted(stub, ACME, admission(new_entry(), BLOBS))
    await stub.Purge(cache_pb2.PurgeRequest(entry_id=reply.entry_id, model_id="shapes"), metadata=ACME)
    found = scrape(port)
    assert found.value("chorus_cache_entries", tenant="acme") == 0
    assert found.value("chorus_cache_evictions_total") == 0
