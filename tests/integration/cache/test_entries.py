"""Verifies over gRPC that a cache lists, shows and verifies a tenant's entries, and deletes damaged ones."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import numpy as np
import pytest
from chorus.cache.v1 import cache_pb2
from chorus_rpc.channels import open_channel
from chorus_rpc.tenancy import tenant_metadata

from services.runtime.version import VERSION
from services.scheduler.peers.health import PeerHealth
from tests.contract.samples import admission, fetch, latents, new_entry, side_data, side_header, unit
from tests.integration.cache.calls import (
    SECONDS,
    admitted,
    connected,
    details,
    donors,
    environment,
    fetched,
    files,
)
from tests.processes import ServiceProcess, start_service

if TYPE_CHECKING:
    from tests.integration.cache.calls import Stub

Metadata = tuple[tuple[str, str], ...]
SIDE = side_data(7)
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def service(directory: Path) -> Iterator[ServiceProcess]:
    # With memory for blobs: what it holds must not hide what the store lost.
    variables = environment(directory) | {
        "CHORUS_CACHE_HOT_BYTES": str(MEBIBYTE),
        "CHORUS_CACHE_CAPACITY_BYTES": str(MEBIBYTE),
        "CHORUS_CACHE_LIFETIME_SECONDS": "86400",
        "CHORUS_CACHE_TENANT_LIFETIMES": "brief=60, lasting=0",
    }
    with start_service("cache", variables, directory) as running:
        yield running


@pytest.fixture
async def stub(service: ServiceProcess) -> AsyncIterator[Stub]:
    async with connected(service) as stub:
        yield stub


_tenants = itertools.count()


@pytest.fixture
def tenant() -> Metadata:
    """Metadata of a tenant that no other test uses."""
    return tenant_metadata(f"tenant-{next(_tenants)}")


async def admit(
    stub: Stub, tenant: Metadata, number: int, *, steps: int = 1, side: bytes | None = None
) -> str:
    """Admits an entry with `steps` blobs that no other entry of the test has; returns its id."""
    blobs = {step: latents(100 * number + step) for step in range(1, steps + 1)}
    offered = new_entry(f"prompt {number}", vector=number)
    return (await admitted(stub, tenant, admission(offered, blobs, side=side))).entry_id


async def listed(stub: Stub, tenant: Metadata, page_size: int = 0, order: int = 0) -> list[list[str]]:
    """Returns the prompts of each page."""
    pages: list[list[str]] = []
    token = ""
    while not pages or token:
        request = cache_pb2.ListEntriesRequest(page_size=page_size, page_token=token)
        request.order = order  # type: ignore[assignment]
        page = await stub.ListEntries(request, metadata=tenant, timeout=SECONDS)
        pages.append([each.entry.prompt for each in page.entries])
        token = page.next_page_token
    return pages


async def verified(
    stub: Stub, tenant: Metadata, **request: object
) -> tuple[int, int, list[cache_pb2.DamagedEntry]]:
    call = stub.VerifyEntries(
        cache_pb2.VerifyEntriesRequest(**request),  # type: ignore[arg-type]
        metadata=tenant,
        timeout=SECONDS,
    )
    reports = [report async for report in call]
    return reports[-1].entries, reports[-1].bytes, [each for report in reports for each in report.damaged]


async def test_entries_are_listed_in_pages_in_each_order(stub: Stub, tenant: Metadata) -> None:
    assert await listed(stub, tenant) == [[]]
    ids = [await admit(stub, tenant, number, steps=1 + (number == 1)) for number in range(5)]
    newest = [f"prompt {number}" for number in (4, 3, 2, 1, 0)]
    assert await listed(stub, tenant) == [newest]
    assert await listed(stub, tenant, 5) == [newest]
    assert await listed(stub, tenant, 2) == [newest[:2], newest[2:4], newest[4:]]

    await fetched(stub, tenant, fetch(ids[2], 1))
    assert (await listed(stub, tenant, 1, cache_pb2.ENTRY_ORDER_LAST_USE))[0] == ["prompt 2"]
    assert (await listed(stub, tenant, 1, cache_pb2.ENTRY_ORDER_SECONDS_SAVED))[0] == ["prompt 2"]
    assert (await listed(stub, tenant, 1, cache_pb2.ENTRY_ORDER_HITS))[0] == ["prompt 2"]
    by_size = await listed(stub, tenant, 3, cache_pb2.ENTRY_ORDER_SIZE)
    assert by_size[0][0] == "prompt 1"
    assert sorted(itertools.chain(*by_size)) == sorted(newest), "equal sizes are neither lost nor repeated"
    assert await listed(stub, tenant_metadata("nobody")) == [[]]


async def test_similar_prompts_are_near_each_other_on_the_map(stub: Stub, tenant: Metadata) -> None:
    assert not (await stub.MapEntries(cache_pb2.MapEntriesRequest(), metadata=tenant)).entries
    ids = []
    for number in range(6):
        # Two groups: each vector is that of its group, and a little of its own.
        offered = new_entry(f"prompt {number}" + "x" * 300 * (number == 5))
        mixed = np.array(unit(number % 2)) + 0.2 * np.array(unit(10 + number))
        offered.vector[:] = [float(each) for each in mixed / np.linalg.norm(mixed)]
        reply = await admitted(stub, tenant, admission(offered, {1: latents(700 + number)}))
        ids.append(reply.entry_id)
    await fetched(stub, tenant, fetch(ids[1], 1))
    found = await stub.MapEntries(cache_pb2.MapEntriesRequest(), metadata=tenant, timeout=SECONDS)
    assert [each.entry_id for each in found.entries] == ids[::-1]
    assert [each.hits for each in found.entries] == [0, 0, 0, 0, 1, 0]
    assert len(found.entries[0].prompt) == 200
    assert found.left_out == 0
    assert 0.5 < found.explained_share <= 1
    sides = [each.x > 0 for each in found.entries]
    assert sides[::2] == [sides[0]] * 3
    assert sides[1::2] == [not sides[0]] * 3
    used = cache_pb2.MapEntriesRequest(limit=2, order=cache_pb2.ENTRY_ORDER_HITS)
    least = await stub.MapEntries(used, metadata=tenant, timeout=SECONDS)
    assert least.entries[0].entry_id == ids[1]
    assert (len(least.entries), least.left_out) == (2, 4)
    assert not (await stub.MapEntries(used, metadata=tenant_metadata("stranger"))).entries
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.MapEntries(cache_pb2.MapEntriesRequest(limit=501), metadata=tenant, timeout=SECONDS)
    assert details(refused.value)[1] == ["limit"]


async def test_statistics_from_memory_agree_with_those_of_the_index(stub: Stub, tenant: Metadata) -> None:
    for number in range(5):
        await admit(stub, tenant, 300 + number)
    slow = await stub.Stats(cache_pb2.StatsRequest(), metadata=tenant, timeout=SECONDS)
    request = cache_pb2.StatsRequest(from_memory=True, growth_points=20)
    fast = await stub.Stats(request, metadata=tenant, timeout=SECONDS)
    assert (fast.entries, fast.bytes, fast.hits) == (slow.entries, slow.bytes, slow.hits)
    assert (len(slow.models), len(fast.models), len(slow.growth)) == (1, 0, 0)
    assert (fast.growth[0].entries, fast.growth[-1].entries) == (0, 5)
    assert fast.growth[-1].bytes == fast.bytes
    assert fast.growth_step.seconds == 60
    empty = await stub.Stats(request, metadata=tenant_metadata("stranger"), timeout=SECONDS)
    assert (empty.entries, len(empty.growth)) == (0, 0)
    for points in (1, 501):
        wrong = cache_pb2.StatsRequest(growth_points=points)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Stats(wrong, metadata=tenant, timeout=SECONDS)
        assert details(refused.value)[1] == ["growth_points"]


async def test_scheduler_learns_the_version_from_the_health_stream(service: ServiceProcess) -> None:
    changed = asyncio.Event()
    async with open_channel(service.target) as channel:
        health = PeerHealth("cache", "chorus.cache.v1.CacheService", channel, lambda _: changed.set(), 1.0)
        watching = asyncio.create_task(health.watch())
        try:
            async with asyncio.timeout(SECONDS):
                await changed.wait()
        finally:
            watching.cancel()
            await health.close()
    assert (health.serving, health.version) == (True, VERSION)


async def test_entry_is_shown_with_its_uses_and_its_retention(stub: Stub, tenant: Metadata) -> None:
    offered = new_entry("kept")
    offered.retention.lifetime.seconds, offered.retention.pinned = 3_600, True
    blobs = {1: latents(901), 3: latents(903)}
    reply = await admitted(stub, tenant, admission(offered, blobs, side=SIDE))
    await fetched(stub, tenant, fetch(reply.entry_id, 3))

    request = cache_pb2.GetEntryRequest(entry_id=reply.entry_id)
    shown = (await stub.GetEntry(request, metadata=tenant, timeout=SECONDS)).entry
    assert (shown.entry.prompt, shown.entry.seed, shown.model_id) == ("kept", 0, "shapes")
    assert shown.entry.blobs[-1] == side_header(SIDE)
    assert shown.size_bytes == sum(map(len, (*blobs.values(), SIDE)))
    assert (shown.hits, shown.pinned, shown.from_donor) == (1, True, False)
    assert shown.seconds_saved > 0
    assert shown.last_use_time.ToMilliseconds() >= shown.entry.create_time.ToMilliseconds()
    assert shown.expire_time.seconds - shown.entry.create_time.seconds == 3_600
    stats = await stub.Stats(cache_pb2.StatsRequest(), metadata=tenant, timeout=SECONDS)
    assert (stats.pinned_bytes, stats.max_pinned_bytes) == (shown.size_bytes, MEBIBYTE // 2)
    [model] = stats.models
    assert (model.model_id, model.entries, model.bytes) == ("shapes", 1, shown.size_bytes)
    by_step = {each.step if each.HasField("step") else None: each.bytes for each in model.steps}
    assert by_step == {1: len(blobs[1]), 3: len(blobs[3]), None: len(SIDE)}

    # Another tenant learns nothing of it, as of an id that nobody has.
    for metadata, wanted in ((tenant_metadata("other"), reply.entry_id), (tenant, "0" * 64)):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.GetEntry(cache_pb2.GetEntryRequest(entry_id=wanted), metadata=metadata)
        assert failed.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("name", "request_seconds", "expected"),
    [
        ("brief", None, 60),
        ("brief", 30, 30),
        ("brief", 3_600, 60),
        ("lasting", None, None),
        ("lasting", 3_600, 3_600),
        ("any", None, 86_400),
    ],
)
async def test_lifetime_is_that_of_the_tenant_unless_the_request_states_less(
    stub: Stub, name: str, request_seconds: int | None, expected: int | None
) -> None:
    offered = new_entry(f"{name} {request_seconds}")
    if request_seconds is not None:
        offered.retention.lifetime.seconds = request_seconds
    tenant = tenant_metadata(name)
    reply = await admitted(stub, tenant, admission(offered, {1: latents(990)}))
    request = cache_pb2.GetEntryRequest(entry_id=reply.entry_id)
    entry = (await stub.GetEntry(request, metadata=tenant, timeout=SECONDS)).entry
    assert entry.HasField("expire_time") == (expected is not None)
    if expected is not None:
        assert entry.expire_time.seconds - entry.entry.create_time.seconds == expected


async def test_longer_retention_of_the_same_request_is_kept(stub: Stub, tenant: Metadata) -> None:
    sent = new_entry("again")
    sent.retention.lifetime.seconds = 60
    blobs = {1: latents(911)}
    reply = await admitted(stub, tenant, admission(sent, blobs))

    async def show() -> cache_pb2.EntryDetails:
        request = cache_pb2.GetEntryRequest(entry_id=reply.entry_id)
        return (await stub.GetEntry(request, metadata=tenant, timeout=SECONDS)).entry

    first = await show()
    for seconds, pinned in ((3_600, False), (30, False), (30, True)):
        sent.retention.lifetime.seconds, sent.retention.pinned = seconds, pinned
        again = await admitted(stub, tenant, admission(sent, blobs))
        assert (again.entry_id, again.created) == (reply.entry_id, False)
    last = await show()
    assert 3_530 <= last.expire_time.seconds - first.expire_time.seconds <= 3_600
    assert (first.pinned, last.pinned) == (False, True)
    [found] = await donors(stub, tenant)
    assert found.entry == last.entry == first.entry


@pytest.mark.parametrize("repair", [False, True])
async def test_damage_in_the_store_is_found_and_repaired_on_request(
    stub: Stub, directory: Path, tenant: Metadata, repair: bool
) -> None:
    ids = [await admit(stub, tenant, number, steps=2, side=SIDE) for number in range(3)]
    entries, size, damaged = await verified(stub, tenant)
    assert (entries, damaged) == (3, [])
    assert size == 3 * (2 * len(latents(1)) + len(SIDE))

    # Both blobs are in memory now, which must not hide their loss.
    await fetched(stub, tenant, fetch(ids[0], 2))
    await fetched(stub, tenant, fetch(ids[1], 1))
    own = f"/{tenant[0][1]}/"
    lost, altered = (
        next(path for path in files(directory) if own in str(path) and path.read_bytes() == latents(value))
        for value in (2, 101)
    )
    lost.unlink()
    altered.write_bytes(altered.read_bytes()[:-1] + b"\x7f")

    entries, _, damaged = await verified(stub, tenant, repair=repair)
    assert entries == 3
    found = {each.entry_id: (each.blob.step.index, each.missing, each.deleted) for each in damaged}
    assert found == {ids[0]: (2, True, repair), ids[1]: (1, False, repair)}
    kept = [ids[2]] if repair else ids
    assert sorted(each.entry.entry_id for each in await donors(stub, tenant)) == sorted(kept)
    if repair:
        assert await verified(stub, tenant) == (1, 2 * len(latents(1)) + len(SIDE), [])
        return
    [one] = (await verified(stub, tenant, entry_id=ids[1]))[2]
    assert one.entry_id == ids[1]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await fetched(stub, tenant, fetch(ids[0], 2))
    assert failed.value.code() == grpc.StatusCode.DATA_LOSS


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("page_size", cache_pb2.ListEntriesRequest(page_size=1_001)),
        ("order", cache_pb2.ListEntriesRequest(order=9)),  # type: ignore[arg-type]
        ("page_token", cache_pb2.ListEntriesRequest(page_token="?")),
        ("page_token", cache_pb2.ListEntriesRequest(page_token="bmFuIHggeQ==")),
        ("page_token", cache_pb2.ListEntriesRequest(page_token="é")),
        ("entry_id", cache_pb2.GetEntryRequest(entry_id="../x")),
        ("entry_id", cache_pb2.GetEntryRequest()),
        ("entry_id", cache_pb2.VerifyEntriesRequest(entry_id='"')),
    ],
)
async def test_request_outside_its_bounds_is_rejected_by_field(
    stub: Stub,
    tenant: Metadata,
    field: str,
    request_: cache_pb2.ListEntriesRequest | cache_pb2.GetEntryRequest | cache_pb2.VerifyEntriesRequest,
) -> None:
    await admit(stub, tenant, 1)

    async def call() -> None:
        if isinstance(request_, cache_pb2.ListEntriesRequest):
            await stub.ListEntries(request_, metadata=tenant, timeout=SECONDS)
        elif isinstance(request_, cache_pb2.GetEntryRequest):
            await stub.GetEntry(request_, metadata=tenant, timeout=SECONDS)
        else:
            [_ async for _ in stub.VerifyEntries(request_, metadata=tenant, timeout=SECONDS)]

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call()
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(failed.value)[1] == [field]


async def test_verification_of_an_unknown_entry_is_not_found(stub: Stub, tenant: Metadata) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await verified(stub, tenant, entry_id="0" * 64)
    assert failed.value.code() == grpc.StatusCode.NOT_FOUND


async def test_token_of_another_tenant_reveals_nothing(stub: Stub, tenant: Metadata) -> None:
    for number in range(3):
        await admit(stub, tenant, number)
    request = cache_pb2.ListEntriesRequest(page_size=1)
    first = await stub.ListEntries(request, metadata=tenant, timeout=SECONDS)
    request.page_token = first.next_page_token
    other = tenant_metadata("other-tenant")
    assert not (await stub.ListEntries(request, metadata=other, timeout=SECONDS)).entries
    own = await admit(stub, other, 9)
    request.page_token = ""
    page = await stub.ListEntries(request, metadata=other, timeout=SECONDS)
    assert [each.entry.entry_id for each in page.entries] == [own]
