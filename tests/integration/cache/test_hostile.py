"""Verifies that no corrupted blob and no hostile message does harm: 10,000 of them, and altered files.

Each one is rejected with an error that names a field, or is valid after all and then stored and returned byte
for byte. The drawn inputs are the same in every run.
"""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
import safetensors.numpy
from chorus.cache.v1 import cache_pb2
from chorus_rpc.errors import INVALID_FIELD, ChorusError, to_status
from chorus_rpc.tenancy import tenant_metadata

from services.cache.directory import DirectoryBlobs
from services.cache.embedded import EmbeddedIndex
from services.cache.entries import Admission, Space
from services.cache.filters import make_filter
from services.cache.index import Selection
from services.cache.listing import parse_token
from services.cache.store import LatentStore
from services.cache.upload import Upload
from services.cache.validation import (
    check_entry_id,
    check_fetch,
    check_find,
    check_list,
    check_lookup,
    check_purge,
)
from tests.contract.samples import admission, fetch, latents, new_entry
from tests.integration.cache.calls import (
    SECONDS,
    admitted,
    connected,
    details,
    environment,
    fetched,
    files,
)
from tests.integration.cache.hostile import (
    LIMITS,
    Messages,
    Request,
    draw_admission,
    draw_blob_admission,
    draw_request,
    flip_bits,
)
from tests.processes import ServiceProcess, start_service

if TYPE_CHECKING:
    from tests.integration.cache.calls import Stub

BLOBS, ADMISSIONS, REQUESTS = 4_000, 4_600, 1_000
SENT_BLOBS, SENT_ADMISSIONS, SENT_REQUESTS = 150, 150, 100

# An upload holds its blobs twice while it verifies them, in buffers that grow by an eighth. Parsed, the JSON
# of a header takes up to 24 times its size.
ALLOCATION = 3 * LIMITS.entry + 24 * LIMITS.blob + (256 << 10)

VALID = {1: latents(1), 2: latents(2)}
TENANT = tenant_metadata("hostile")
_METHODS = {
    cache_pb2.LookupRequest: "Lookup",
    cache_pb2.FindRequest: "Find",
    cache_pb2.FetchRequest: "Fetch",
    cache_pb2.ListEntriesRequest: "ListEntries",
    cache_pb2.GetEntryRequest: "GetEntry",
    cache_pb2.VerifyEntriesRequest: "VerifyEntries",
    cache_pb2.PurgeRequest: "Purge",
}


def test_the_number_of_hostile_inputs() -> None:
    drawn = BLOBS + ADMISSIONS + REQUESTS + SENT_BLOBS + SENT_ADMISSIONS + SENT_REQUESTS
    assert drawn == 10_000


def check_error(error: ChorusError) -> None:
    """Asserts that an error names the invalid fields, and that gRPC can transmit it."""
    assert error.reason == INVALID_FIELD
    assert error.violations
    assert all(violation.field and violation.description for violation in error.violations)
    status = to_status(error)
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    # gRPC rejects a status of more than 8 KiB.
    assert sum(len(key) + len(value) for key, value in status.trailing_metadata) < 5_500, error.message


def upload(messages: Messages) -> Admission | None:
    """Returns the entry of an admission, or None if it is rejected as it should be."""
    received = Upload("hostile", LIMITS)
    try:
        for message in messages:
            received.add(message)
        return received.finish(1_000)
    except ChorusError as error:
        check_error(error)
        return None


def measure_upload(messages: Messages) -> tuple[Admission | None, int]:
    """Returns the result of `upload`, and the largest amount of memory that it allocated, in bytes."""
    tracemalloc.start()
    try:
        accepted = upload(messages)
        return accepted, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def check_accepted(accepted: Admission, messages: Messages) -> None:
    """Asserts that an entry holds what its messages announced, in files that safetensors itself reads."""
    entries = [message.entry for message in messages if message.HasField("entry")]
    headers = [message.header for message in messages if message.HasField("header")]
    [entry] = entries
    shape = tuple(entry.identity.latent_shape)
    assert sorted(blob.digest for blob in accepted.entry.blobs) == sorted(each.digest for each in headers)
    for blob in accepted.entry.blobs:
        tensors = safetensors.numpy.load(accepted.data[blob.digest])
        if blob.step is not None:
            assert [(each.shape, str(each.dtype)) for each in tensors.values()] == [(shape, "float32")]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LatentStore]:
    index = await EmbeddedIndex.open_path(str(tmp_path / "index.db"), seconds=30)
    blobs = await DirectoryBlobs.open(tmp_path / "blobs", seconds=30, threads=4)
    store = LatentStore(index, blobs)
    yield store
    await store.close()
    await blobs.close()
    await index.close()


async def check_stored(store: LatentStore, accepted: Admission) -> None:
    """Asserts that an entry is returned as it was admitted."""
    assert await store.admit(accepted)
    entry = accepted.entry
    steps = [blob.step for blob in entry.blobs if blob.step is not None]
    found = store.fetch(accepted.space, "hostile", entry.identity, entry.entry_id, steps, side_data=True)
    assert [(blob, data) async for blob, data in found] == [
        (blob, accepted.data[blob.digest]) for blob in entry.blobs
    ]


@pytest.mark.parametrize(("draw", "count"), [(draw_blob_admission, BLOBS), (draw_admission, ADMISSIONS)])
async def test_hostile_admission_is_rejected_or_stored_as_it_is(
    store: LatentStore,
    draw: Callable[[Random, str], Messages],
    count: int,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("hostile_inputs", count)
    random = Random(count)
    accepted: list[Admission] = []
    for number in range(count):
        messages = draw(random, f"prompt {number}")
        entry, allocated = measure_upload(messages)
        assert allocated <= ALLOCATION, number
        if entry is not None:
            check_accepted(entry, messages)
            accepted.append(entry)
    # Most inputs are invalid; some valid ones show that the check is not vacuous.
    assert 10 < len(accepted) < 0.25 * count
    for entry in accepted:
        await check_stored(store, entry)


def check_request(request: Request) -> None:
    """Checks a request as the servicer does, and builds the filter of the index from it."""
    found: Space | None = None
    match request:
        case cache_pb2.LookupRequest():
            found = check_lookup(request)
        case cache_pb2.FindRequest():
            found = check_find(request, LIMITS)
        case cache_pb2.FetchRequest():
            found = check_fetch(request)
        case cache_pb2.ListEntriesRequest():
            assert 1 <= check_list(request) <= 1_000
            parse_token(request.page_token, "hostile")
        case cache_pb2.GetEntryRequest() | cache_pb2.VerifyEntriesRequest():
            check_entry_id(request.entry_id)
            make_filter("hostile", Selection(entry_id=request.entry_id))
        case _:
            make_filter("hostile", check_purge(request, 1_700_000_000_000))
    if found is not None:
        assert found.name.replace("_", "").isalnum()
        assert len(found.name) <= 64


def test_hostile_request_is_rejected_or_safe(record_property: Callable[[str, object], None]) -> None:
    record_property("hostile_inputs", REQUESTS)
    random = Random("requests")
    outcomes: Counter[bool] = Counter()
    for number in range(REQUESTS):
        request = draw_request(random)
        tracemalloc.start()
        try:
            check_request(request)
            outcomes[True] += 1
        except ChorusError as error:
            check_error(error)
            outcomes[False] += 1
        finally:
            allocated = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert allocated <= ALLOCATION, number
    assert outcomes[False] > outcomes[True] > 0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def service(directory: Path) -> Iterator[ServiceProcess]:
    limits = {
        "CHORUS_CACHE_MAX_PROMPT_BYTES": str(LIMITS.prompt),
        "CHORUS_CACHE_MAX_BLOB_BYTES": str(LIMITS.blob),
        "CHORUS_CACHE_MAX_ENTRY_BYTES": str(LIMITS.entry),
    }
    with start_service("cache", environment(directory) | limits, directory) as running:
        yield running


@pytest.fixture
async def stub(service: ServiceProcess) -> AsyncIterator[Stub]:
    async with connected(service) as stub:
        yield stub


async def send_rejected(stub: Stub, messages: Messages) -> grpc.aio.AioRpcError:
    """Returns the error of an admission."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await admitted(stub, TENANT, messages)
    return failed.value


async def check_sent(stub: Stub, messages: Messages) -> bool:
    """Asserts that the process rejects an admission, or stores it as it is; returns whether it stored it."""
    blobs = upload(messages)
    if blobs is None:
        error = await send_rejected(stub, messages)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        info, fields = details(error)
        assert info.reason == "INVALID_FIELD"
        assert fields
        return False
    reply = await admitted(stub, TENANT, messages)
    [entry] = [message.entry for message in messages if message.HasField("entry")]
    request = fetch(reply.entry_id, *entry.steps, under=entry.identity, side_data=True)
    request.retrieval_encoder_id, request.vector_dim = entry.retrieval_encoder_id, len(entry.vector)
    found = await fetched(stub, TENANT, request)
    assert found == {blob.step: blobs.data[blob.digest] for blob in blobs.entry.blobs}
    return True


async def send_raw(service: ServiceProcess, method: str, raw: bytes) -> grpc.StatusCode:
    """Sends bytes as the only request of a method; returns the status."""
    path = f"/chorus.cache.v1.CacheService/{method}"
    async with grpc.aio.insecure_channel(service.target) as channel:
        method_call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(path)
        call = method_call(raw, metadata=TENANT, timeout=SECONDS)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError:
            pass
        return await call.code()


async def test_process_survives_hostile_calls(
    stub: Stub, service: ServiceProcess, record_property: Callable[[str, object], None]
) -> None:
    record_property("hostile_inputs", SENT_BLOBS + SENT_ADMISSIONS + SENT_REQUESTS)
    valid = await admitted(stub, tenant_metadata("valid"), admission(new_entry(), VALID))
    random = Random("sent")
    outcomes: Counter[bool] = Counter()
    for number in range(SENT_BLOBS):
        outcomes[await check_sent(stub, draw_blob_admission(random, f"blob {number}"))] += 1
    for number in range(SENT_ADMISSIONS):
        outcomes[await check_sent(stub, draw_admission(random, f"message {number}"))] += 1
    assert outcomes[False] > outcomes[True] > 0
    codes = Counter(
        [
            await send_raw(service, _METHODS[type(request)], flip_bits(random, request))
            for request in (draw_request(random) for _ in range(SENT_REQUESTS))
        ]
    )
    assert codes.keys() <= {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    }
    assert codes[grpc.StatusCode.INVALID_ARGUMENT] > SENT_REQUESTS / 2
    assert await send_raw(service, "Lookup", bytes(17 << 20)) is grpc.StatusCode.RESOURCE_EXHAUSTED

    assert service.process is not None
    assert service.process.poll() is None
    assert "call failed" not in service.log.read_text(), "an internal error is logged so"
    found = await fetched(stub, tenant_metadata("valid"), fetch(valid.entry_id, 1, 2))
    assert found == VALID


def damage(path: Path, other: Path, kind: str, random: Random) -> None:
    """Alters the file of a blob."""
    data = path.read_bytes()
    match kind:
        case "truncated":
            path.write_bytes(data[: random.randrange(len(data))])
        case "flipped":
            place = random.randrange(len(data))
            path.write_bytes(
                data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]
            )
        case "swapped":
            path.write_bytes(other.read_bytes())
            other.write_bytes(data)
        case "extended":
            path.write_bytes(data + random.randbytes(random.choice((1, 8, len(data)))))
        case "rewritten":
            path.write_bytes(random.randbytes(len(data)))
        case _:
            path.unlink()


async def test_altered_file_is_never_served(stub: Stub, directory: Path) -> None:
    random, tenant = Random("files"), tenant_metadata("altered")
    kinds = ("truncated", "flipped", "swapped", "extended", "rewritten", "missing")
    for number in range(60):
        kind = kinds[number % len(kinds)]
        known = set(files(directory))
        blobs = {1: latents(1_000 + 2 * number), 2: latents(1_001 + 2 * number)}
        entry = (await admitted(stub, tenant, admission(new_entry(f"file {number}"), blobs))).entry_id
        path, other = sorted(set(files(directory)) - known, key=lambda each: random.random())
        damage(path, other, kind, random)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await fetched(stub, tenant, fetch(entry, 1, 2))
        assert failed.value.code() is grpc.StatusCode.DATA_LOSS, kind
        assert details(failed.value)[0].reason == "BLOB_CORRUPT"
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await fetched(stub, tenant, fetch(entry, 1, 2))
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND, kind
    assert (await stub.Stats(cache_pb2.StatsRequest(), metadata=tenant)).entries == 0
    # The same prompt is admitted again, over what is left of its files.
    reply = await admitted(stub, tenant, admission(new_entry("file 0"), VALID))
    assert reply.created
    assert await fetched(stub, tenant, fetch(reply.entry_id, 1, 2)) == VALID
