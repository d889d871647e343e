"""Verifies the cache process over gRPC, with Milvus Lite and a directory of blobs."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
import pytest
from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import errors_pb2, latents_pb2
from chorus_rpc.tenancy import tenant_metadata

from services.contract.identity import entry_id, identity_digest
from tests.contract.samples import (
    admission,
    blob_messages,
    digest,
    fetch,
    header,
    identity,
    latents,
    lookup,
    new_entry,
    side_data,
    side_header,
)
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
from tests.processes import ServiceProcess, free_port, start_service

if TYPE_CHECKING:
    from tests.integration.cache.calls import Stub

BLOBS = {1: latents(1), 2: latents(2)}
SIDE = side_data(7)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def service(directory: Path) -> Iterator[ServiceProcess]:
    with start_service("cache", environment(directory), directory) as running:
        yield running


@pytest.fixture
async def stub(service: ServiceProcess) -> AsyncIterator[Stub]:
    async with connected(service) as stub:
        yield stub


_tenants = itertools.count()


@pytest.fixture
def tenant() -> tuple[tuple[str, str], ...]:
    """Metadata of a tenant that no other test uses."""
    return tenant_metadata(f"tenant-{next(_tenants)}")


async def test_entry_is_admitted_found_fetched_and_purged(
    stub: Stub, tenant: tuple[tuple[str, str], ...]
) -> None:
    blobs = {1: latents(1), 3: latents(3)}
    before = await stub.Stats(cache_pb2.StatsRequest(), metadata=tenant)
    reply = await admitted(stub, tenant, admission(new_entry("ein röter Kreis 🔴"), blobs))
    assert reply.created
    assert reply.entry_id == entry_id(
        tenant[0][1], identity_digest(identity()), "ein röter Kreis 🔴", new_entry().seed
    )
    again = await admitted(stub, tenant, admission(new_entry("ein röter Kreis 🔴"), blobs))
    assert (again.entry_id, again.created) == (reply.entry_id, False)

    [donor] = await donors(stub, tenant)
    assert donor.score == pytest.approx(1.0, abs=1e-5)
    assert donor.entry.entry_id == reply.entry_id
    assert donor.entry.prompt == "ein röter Kreis 🔴"
    assert donor.entry.prompt_hash == digest("ein röter Kreis 🔴")
    assert list(donor.entry.blobs) == [header(1, blobs[1]), header(3, blobs[3])]
    assert donor.entry.cost_seconds == 1.25
    assert donor.entry.traceparent == new_entry().traceparent
    assert donor.entry.generation_id == "generation-1"
    assert donor.entry.create_time.ToSeconds() >= before.start_time.ToSeconds()

    assert await fetched(stub, tenant, fetch(reply.entry_id, 3, 1)) == {3: blobs[3], 1: blobs[1]}
    stats = await stub.Stats(cache_pb2.StatsRequest(), metadata=tenant)
    assert (stats.entries, stats.bytes) == (1, len(blobs[1]) + len(blobs[3]))
    assert (stats.index_kind, stats.blobs_kind) == ("milvus-lite", "directory")
    assert stats.lookups - before.lookups == 1
    assert stats.lookups_with_donor - before.lookups_with_donor == 1
    assert stats.fetches - before.fetches == 1
    assert stats.admissions - before.admissions == 1

    purge = cache_pb2.PurgeRequest(entry_id=reply.entry_id, model_id="shapes")
    purged = await stub.Purge(purge, metadata=tenant)
    assert (purged.entries, purged.bytes) == (1, len(blobs[1]) + len(blobs[3]))
    assert (await stub.Purge(purge, metadata=tenant)).entries == 0
    assert await donors(stub, tenant) == []


async def test_result_of_a_prompt_and_seed_is_found_under_its_identity_only(
    stub: Stub, tenant: tuple[tuple[str, str], ...]
) -> None:
    entry = new_entry("a circle")
    entry.identity.approximation.policy = "balanced"
    reply = await admitted(stub, tenant, admission(entry, BLOBS))
    request = cache_pb2.FindRequest(
        identity=entry.identity,
        retrieval_encoder_id=entry.retrieval_encoder_id,
        vector_dim=len(entry.vector),
        prompt="a circle",
        seed=entry.seed,
    )

    async def find(of: tuple[tuple[str, str], ...] = tenant, **changed: Any) -> str:
        other = cache_pb2.FindRequest()
        other.CopyFrom(request)
        other.MergeFrom(cache_pb2.FindRequest(**changed))
        found = await stub.Find(other, metadata=of, timeout=SECONDS)
        return found.entry.entry_id if found.HasField("entry") else ""

    assert await find() == reply.entry_id
    assert await find(tenant_metadata("stranger")) == ""
    for changed in ({"seed": entry.seed + 1}, {"prompt": "a square"}, {"vector_dim": len(entry.vector) + 1}):
        assert await find(**changed) == ""
    fast = latents_pb2.LatentIdentity(approximation=latents_pb2.Approximation(policy="fast"))
    assert await find(identity=fast) == ""
    assert await donors(stub, tenant) == [], "an approximation is no donor"
    for field, wrong in (
        ("identity.approximation", {"identity": latents_pb2.LatentIdentity(
            approximation=latents_pb2.Approximation(policy="off"))}),
        ("prompt", {"prompt": "x" * 2001}),
        ("vector_dim", {"vector_dim": 5000}),
    ):  # fmt: skip
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await find(**wrong)
        assert details(failed.value)[1] == [field]


async def test_latents_of_many_chunks_arrive_complete(
    stub: Stub, tenant: tuple[tuple[str, str], ...]
) -> None:
    offered = new_entry()
    offered.identity.latent_shape[:] = [16, 21, 60, 52]
    data = latents(7, offered.identity.latent_shape)
    assert len(data) > 3 << 20
    reply = await admitted(stub, tenant, admission(offered, {1: data}, 1 << 20))
    assert await fetched(stub, tenant, fetch(reply.entry_id, 1, under=offered.identity)) == {1: data}
    # A fetch under any other identity finds nothing.
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await fetched(stub, tenant, fetch(reply.entry_id, 1))
    assert failed.value.code() == grpc.StatusCode.NOT_FOUND


async def test_side_data_is_fetched_on_request(
    stub: Stub, directory: Path, tenant: tuple[tuple[str, str], ...]
) -> None:
    plain = await admitted(stub, tenant, admission(new_entry("plain"), BLOBS))
    rich = await admitted(stub, tenant, admission(new_entry("rich", vector=1), BLOBS, side=SIDE))
    listed = {donor.entry.prompt: list(donor.entry.blobs) for donor in await donors(stub, tenant)}
    steps = [header(1, BLOBS[1]), header(2, BLOBS[2])]
    assert listed == {"plain": steps, "rich": [*steps, side_header(SIDE)]}

    found = await fetched(stub, tenant, fetch(rich.entry_id, 2, 1, side_data=True))
    assert list(found.items()) == [(2, BLOBS[2]), (1, BLOBS[1]), (None, SIDE)]
    assert await fetched(stub, tenant, fetch(rich.entry_id, 1, 2)) == BLOBS
    assert await fetched(stub, tenant, fetch(plain.entry_id, 1, 2, side_data=True)) == BLOBS

    # Both entries hold the same latents, which are stored once.
    size = sum(len(data) for data in (*BLOBS.values(), SIDE))
    assert (await stub.Stats(cache_pb2.StatsRequest(), metadata=tenant)).bytes == size
    [path] = [path for path in files(directory) if path.read_bytes() == SIDE]
    path.unlink()
    assert await fetched(stub, tenant, fetch(rich.entry_id, 1)) == {1: BLOBS[1]}
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await fetched(stub, tenant, fetch(rich.entry_id, 1, side_data=True))
    assert failed.value.code() == grpc.StatusCode.DATA_LOSS
    assert [donor.entry.prompt for donor in await donors(stub, tenant)] == ["plain"]


async def test_tenants_are_isolated(stub: Stub) -> None:
    mine, theirs = tenant_metadata("mine"), tenant_metadata("theirs")
    reply = await admitted(stub, theirs, admission(new_entry(), BLOBS))
    assert await donors(stub, mine) == []
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await fetched(stub, mine, fetch(reply.entry_id, 1))
    assert failed.value.code() == grpc.StatusCode.NOT_FOUND
    assert details(failed.value)[0].reason == "NOT_FOUND"
    assert (await stub.Purge(cache_pb2.PurgeRequest(all=True), metadata=mine)).entries == 0
    assert (await stub.Stats(cache_pb2.StatsRequest(), metadata=mine)).entries == 0
    own = await admitted(stub, mine, admission(new_entry(), BLOBS))
    assert own.entry_id != reply.entry_id
    assert [donor.entry.entry_id for donor in await donors(stub, mine)] == [own.entry_id]
    assert [donor.entry.entry_id for donor in await donors(stub, theirs)] == [reply.entry_id]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await donors(stub, tenant_metadata('x" or tenant != "'))
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def _altered(data: bytes) -> list[cache_pb2.AdmitRequest]:
    messages = list(admission(new_entry(), {1: data}, 1 << 20))
    messages[-1] = cache_pb2.AdmitRequest(chunk=data[:-1] + b"?")
    return messages


BAD_ADMISSIONS: dict[str, tuple[str, list[cache_pb2.AdmitRequest]]] = {
    "nothing at all": ("entry", []),
    "no blob": ("entry.steps", list(admission(new_entry(), {}))),
    "one blob of two": ("entry.steps", list(admission(new_entry(), BLOBS, 1 << 20))[:3]),
    "no entry": ("entry", list(admission(new_entry(), BLOBS))[1:]),
    "an empty prompt": ("entry.prompt", list(admission(new_entry(""), BLOBS))),
    "a long prompt": ("entry.prompt", list(admission(new_entry("é" * 1001), BLOBS))),
    "a truncated blob": ("chunk", list(admission(new_entry(), BLOBS))[:-1]),
    "an altered blob": ("chunk", _altered(latents(1))),
    "a foreign file": ("chunk", list(admission(new_entry(), {1: b"GIF89a" * 100}))),
    "another shape": ("chunk", list(admission(new_entry(), {1: latents(1, (4, 4, 4, 4))}))),
    "a huge announcement": ("header.size_bytes", list(admission(new_entry(), {1: b"x"}))[:2]),
}
BAD_ADMISSIONS["a huge announcement"][1][1].header.size_bytes = 1 << 40
BAD_ADMISSIONS |= {
    "side data too large": ("header.size_bytes", list(admission(new_entry(), {1: BLOBS[1]}, side=SIDE))),
    "no side data": ("entry.side_data", list(admission(new_entry(), BLOBS, 1 << 20, side=SIDE))[:-2]),
    "side data twice": (
        "header.kind",
        [*admission(new_entry(), BLOBS, side=SIDE), *blob_messages(side_header(SIDE), SIDE)],
    ),
    "side data unannounced": (
        "header.kind",
        [*admission(new_entry(), BLOBS), *blob_messages(side_header(SIDE), SIDE)],
    ),
    "foreign side data": ("chunk", list(admission(new_entry(), BLOBS, side=b"GIF89a" * 10))),
    "another kind": ("header.kind", list(admission(new_entry(), BLOBS, 1 << 20, side=SIDE))),
}
BAD_ADMISSIONS["another kind"][1][-2].header.kind = cast("latents_pb2.BlobKind.ValueType", 9)


@pytest.mark.parametrize(("field", "messages"), BAD_ADMISSIONS.values(), ids=BAD_ADMISSIONS.keys())
async def test_invalid_admission_names_the_field_and_stores_nothing(
    stub: Stub,
    directory: Path,
    tenant: tuple[tuple[str, str], ...],
    field: str,
    messages: list[cache_pb2.AdmitRequest],
) -> None:
    before = files(directory)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await admitted(stub, tenant, messages)
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    info, fields = details(failed.value)
    assert (info.reason, info.domain, fields) == ("INVALID_FIELD", "chorus", [field])
    assert files(directory) == before
    assert await donors(stub, tenant) == []
    assert (await stub.Stats(cache_pb2.StatsRequest(), metadata=tenant)).entries == 0


async def test_invalid_calls_name_the_field(stub: Stub, tenant: tuple[tuple[str, str], ...]) -> None:
    injected = lookup()
    injected.identity.model_id = 'x" or "a" == "a'
    for field, call in (
        ("limit", stub.Lookup(lookup(limit=17), metadata=tenant)),
        ("identity.model_id", stub.Lookup(injected, metadata=tenant)),
        ("all", stub.Purge(cache_pb2.PurgeRequest(), metadata=tenant)),
        ("model_id", stub.Purge(cache_pb2.PurgeRequest(model_id="' or 1 == 1"), metadata=tenant)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert details(failed.value)[1] == [field]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await fetched(stub, tenant, fetch("no digest", 1))
    assert details(failed.value)[1] == ["entry_id"]


async def test_cancelled_upload_stores_nothing(
    stub: Stub, directory: Path, tenant: tuple[tuple[str, str], ...]
) -> None:
    before = files(directory)
    messages = list(admission(new_entry(), BLOBS))
    # Even between two blobs, where the end of the stream looks regular.
    between = 2 + -(-len(BLOBS[1]) // 64)
    for kept in [1, 2, 3, len(messages) - 1, *[between] * 40]:
        call = stub.Admit(metadata=tenant, timeout=SECONDS)
        for message in messages[:kept]:
            await call.write(message)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    # A later call of the same tenant and identity waits for the remaining work of the cancelled ones.
    other = await admitted(stub, tenant, admission(new_entry("another", vector=1), {3: latents(3)}))
    assert [donor.entry.entry_id for donor in await donors(stub, tenant)] == [other.entry_id]
    assert len(files(directory)) == len(before) + 1


async def test_corrupt_blob_on_disk_becomes_a_miss(
    stub: Stub, directory: Path, tenant: tuple[tuple[str, str], ...]
) -> None:
    before = (await stub.Stats(cache_pb2.StatsRequest(), metadata=tenant)).corrupt_blobs
    known = set(files(directory))
    reply = await admitted(stub, tenant, admission(new_entry(), BLOBS))
    for path in set(files(directory)) - known:
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await fetched(stub, tenant, fetch(reply.entry_id, 1))
    assert failed.value.code() == grpc.StatusCode.DATA_LOSS
    assert details(failed.value)[0].reason == "BLOB_CORRUPT"
    assert await donors(stub, tenant) == []
    stats = await stub.Stats(cache_pb2.StatsRequest(), metadata=tenant)
    assert (stats.entries, stats.corrupt_blobs) == (0, before + 1)
    again = await admitted(stub, tenant, admission(new_entry(), BLOBS))
    assert again.created
    assert await fetched(stub, tenant, fetch(reply.entry_id, 1, 2)) == BLOBS


class Writers:
    """Admits distinct entries until the service is killed."""

    def __init__(self) -> None:
        self.sent = 0
        self.acknowledged: dict[str, dict[int, bytes]] = {}
        self.enough = asyncio.Event()

    async def admit_on(self, stub: Stub, goal: int) -> None:
        while True:
            self.sent += 1
            number = self.sent
            blobs = {1: latents(2 * number), 2: latents(2 * number + 1)}
            reply = await admitted(
                stub, CRASH, admission(new_entry(f"prompt {number}", vector=number), blobs)
            )
            self.acknowledged[reply.entry_id] = blobs
            if len(self.acknowledged) >= goal:
                self.enough.set()

    async def until_killed(self, service: ServiceProcess, more: int) -> None:
        """Kills the service during the admissions after the next `more`."""
        self.enough.clear()
        goal = len(self.acknowledged) + more
        async with asyncio.timeout(120), connected(service) as stub:
            writers = [asyncio.create_task(self.admit_on(stub, goal)) for _ in range(4)]
            await asyncio.wait(
                [asyncio.create_task(self.enough.wait()), *writers], return_when=asyncio.FIRST_COMPLETED
            )
            service.kill()
            ends = await asyncio.gather(*writers, return_exceptions=True)
        assert [end.code() for end in ends if isinstance(end, grpc.aio.AioRpcError)] == [
            grpc.StatusCode.UNAVAILABLE
        ] * 4


CRASH = tenant_metadata("crash")


# Starts the service three times.
@pytest.mark.timeout(400)
async def test_every_donor_can_be_fetched_after_kill_9_during_admissions(tmp_path: Path) -> None:
    writers = Writers()
    with start_service("cache", environment(tmp_path), tmp_path) as service:
        for _ in range(2):
            await writers.until_killed(service, 8)
            service.start()
            found: dict[str, dict[int | None, bytes]] = {}
            async with connected(service) as stub:
                for number in range(1, writers.sent + 1):
                    for donor in await donors(stub, CRASH, number):
                        entry = donor.entry.entry_id
                        if entry not in found:
                            found[entry] = await fetched(stub, CRASH, fetch(entry, 1, 2))
            # No acknowledged entry is lost; any other is complete or absent.
            assert {entry: found.get(entry) for entry in writers.acknowledged} == writers.acknowledged


def test_misspelt_variable_is_reported_at_start(tmp_path: Path) -> None:
    env = {**environment(tmp_path), "CHORUS_CACHE_MAX_UPLOAD": "3"}
    service = ServiceProcess("cache", env, free_port(), tmp_path / "cache.log")
    service.start(wait=False)
    try:
        end = time.monotonic() + 60
        while "unknown setting ignored" not in service.tail(200):
            assert time.monotonic() < end, service.tail()
            time.sleep(0.1)
    finally:
        service.stop()
    assert "CHORUS_CACHE_MAX_UPLOADS" in service.tail(200)


async def test_missing_store_keeps_the_cache_unavailable(tmp_path: Path) -> None:
    env = {
        **environment(tmp_path),
        "CHORUS_CACHE_BLOBS": "s3",
        "CHORUS_CACHE_S3_ENDPOINT": f"127.0.0.1:{free_port()}",
        "CHORUS_CACHE_S3_ACCESS_KEY": "access",
        "CHORUS_CACHE_S3_SECRET_KEY": "secret",
        "CHORUS_CACHE_S3_SECURE": "false",
        "CHORUS_CACHE_BLOB_SECONDS": "0.5",
    }
    service = ServiceProcess("cache", env, free_port(), tmp_path / "cache.log")
    service.start(wait=False)
    try:
        async with connected(service) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.Stats(cache_pb2.StatsRequest(), wait_for_ready=True, timeout=60)
        assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
        assert details(failed.value)[0].metadata == {"service": "cache"}
        assert service.terminate() == 0
    finally:
        service.stop()


@pytest.mark.fault("swallowed-errors")
async def test_rejected_admissions_are_counted_by_reason(
    stub: Stub, tenant: tuple[tuple[str, str], ...]
) -> None:
    async def count() -> dict[errors_pb2.ErrorReason.ValueType, int]:
        stats = await stub.Stats(cache_pb2.StatsRequest(), metadata=tenant)
        return {rejected.reason: rejected.count for rejected in stats.rejected_admissions}

    before = await count()
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError):
            await admitted(stub, tenant, admission(new_entry(""), BLOBS))
    call = stub.Admit(metadata=tenant, timeout=0.5)
    for message in list(admission(new_entry(), BLOBS))[:3]:
        await call.write(message)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call  # the stream never ends
    assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    invalid, late = errors_pb2.ERROR_REASON_INVALID_FIELD, errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    expected = {invalid: before.get(invalid, 0) + 2, late: before.get(late, 0) + 1}
    end = time.monotonic() + 10
    while (found := await count()) != {**before, **expected}:
        assert time.monotonic() < end, found
        await asyncio.sleep(0.05)
    # A repeated admission is no rejection.
    for _ in range(2):
        await admitted(stub, tenant, admission(new_entry(), BLOBS))
    assert await count() == {**before, **expected}
