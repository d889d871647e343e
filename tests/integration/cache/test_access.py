"""Verifies over gRPC that a cache with keys serves each service what it needs, and refuses other callers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from chorus.cache.v1 import cache_pb2
from chorus_rpc.tenancy import key_metadata, tenant_metadata

from tests.contract.samples import admission, fetch, identity, latents, lookup, new_entry
from tests.integration.cache.calls import SECONDS, admitted, connected, details, environment, fetched, files
from tests.processes import ServiceProcess, start_service

if TYPE_CHECKING:
    from tests.integration.cache.calls import Stub

Metadata = tuple[tuple[str, str], ...]

KEYS = {
    "scheduler": "key-of-the-scheduler",
    "denoiser": "key-of-the-denoiser",
    "gateway": "key-of-the-gateway",
    "operator": "key-of-the-operator",
}
METHODS = frozenset(cache_pb2.DESCRIPTOR.services_by_name["CacheService"].methods_by_name)
ALLOWED = {
    "scheduler": {"Lookup", "Find"},
    "denoiser": {"Fetch", "Admit"},
    "gateway": {"Stats", "ListEntries", "MapEntries", "Purge"},
    "operator": METHODS - {"Admit"},
}
BLOBS = {1: latents(1)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def service(directory: Path) -> Iterator[ServiceProcess]:
    keys = {f"CHORUS_CACHE_{role.upper()}_KEY": key for role, key in KEYS.items()}
    with start_service("cache", environment(directory) | keys, directory) as running:
        yield running


@pytest.fixture
async def stub(service: ServiceProcess) -> AsyncIterator[Stub]:
    async with connected(service) as stub:
        yield stub


async def call(stub: Stub, method: str, metadata: Metadata, entry: str) -> Any:
    """Calls a method with a valid request."""
    options: Any = {"metadata": metadata, "timeout": SECONDS}
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "Lookup": lambda: stub.Lookup(lookup(0), **options),
        "Find": lambda: stub.Find(
            cache_pb2.FindRequest(
                identity=identity(),
                retrieval_encoder_id=lookup(0).retrieval_encoder_id,
                vector_dim=len(lookup(0).vector),
                prompt="a prompt",
            ),
            **options,
        ),
        "Fetch": lambda: fetched(stub, metadata, fetch(entry, 1)),
        "Admit": lambda: admitted(stub, metadata, admission(new_entry(), BLOBS)),
        "ListEntries": lambda: stub.ListEntries(cache_pb2.ListEntriesRequest(), **options),
        "MapEntries": lambda: stub.MapEntries(cache_pb2.MapEntriesRequest(), **options),
        "GetEntry": lambda: stub.GetEntry(cache_pb2.GetEntryRequest(entry_id=entry), **options),
        "VerifyEntries": lambda: drain(stub.VerifyEntries(cache_pb2.VerifyEntriesRequest(), **options)),
        "Purge": lambda: stub.Purge(cache_pb2.PurgeRequest(all=True, validate_only=True), **options),
        "Stats": lambda: stub.Stats(cache_pb2.StatsRequest(), **options),
        "Adopt": lambda: stub.Adopt(cache_pb2.AdoptRequest(validate_only=True), **options),
    }
    assert calls.keys() == METHODS
    return await calls[method]()


async def drain(replies: Any) -> list[Any]:
    return [each async for each in replies]


@pytest.mark.parametrize("role", KEYS)
async def test_each_key_allows_what_its_service_needs_and_nothing_else(stub: Stub, role: str) -> None:
    tenant = f"tenant-{role}"
    entry = (
        await admitted(stub, tenant_metadata(tenant, KEYS["denoiser"]), admission(new_entry(), BLOBS))
    ).entry_id
    metadata = tenant_metadata(tenant, KEYS[role])
    for method in sorted(METHODS):
        if method in ALLOWED[role]:
            assert await call(stub, method, metadata, entry) is not None
            continue
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(stub, method, metadata, entry)
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED, method
        assert f"the key of the {role} does not allow {method}" in (refused.value.details() or "")


@pytest.mark.parametrize(
    "authorization",
    [
        (),
        key_metadata("x" * 20),
        key_metadata(KEYS["denoiser"][:-1]),
        key_metadata(KEYS["denoiser"] + "x"),
        (("authorization", KEYS["denoiser"]),),
        (("authorization", "Basic " + KEYS["denoiser"]),),
        (("authorization", "Bearer "),),
    ],
    ids=str,
)
async def test_call_without_a_valid_key_obtains_and_changes_nothing(
    stub: Stub, directory: Path, authorization: Metadata
) -> None:
    mine = tenant_metadata("mine", KEYS["denoiser"])
    entry = (await admitted(stub, mine, admission(new_entry(), BLOBS))).entry_id
    before = files(directory)
    for method in sorted(METHODS):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(stub, method, (*tenant_metadata("mine"), *authorization), entry)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED, method
        info, _ = details(refused.value)
        assert info.reason == "UNAUTHENTICATED"
        assert not any(key in (refused.value.details() or "") for key in KEYS.values())
    assert files(directory) == before


async def test_cache_without_keys_serves_the_named_tenants_only(tmp_path: Path) -> None:
    settings = environment(tmp_path) | {"CHORUS_CACHE_KEYLESS_TENANTS": "studio, default"}
    with start_service("cache", settings, tmp_path) as service:
        async with connected(service) as stub:
            for tenant in ("studio", "default"):
                await admitted(stub, tenant_metadata(tenant), admission(new_entry(), BLOBS))
            assert await admitted(stub, (), admission(new_entry(), BLOBS)), "no tenant is the default one"
            for metadata in (tenant_metadata("acme"), tenant_metadata("acme", "k" * 16)):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await admitted(stub, metadata, admission(new_entry(), BLOBS))
                assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
                assert "CHORUS_CACHE_KEYLESS_TENANTS" in (refused.value.details() or "")
