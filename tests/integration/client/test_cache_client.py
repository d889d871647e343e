"""Verifies the clients of the cache against a scripted cache over sockets."""

from __future__ import annotations

import pytest
from chorus_client import AsyncCacheClient, ChorusError
from chorus_rpc import errors

from tests.integration.client.fakes import FakeDeployment


@pytest.mark.fault("store-ownership")
async def test_cache_client_adopts_a_store(deployment: FakeDeployment) -> None:
    async with AsyncCacheClient(deployment.target) as cache:
        stats = await cache.stats()
        assert (stats.store_ownership, stats.index_id, stats.store_owners) == (
            "foreign",
            "1" * 32,
            ("2" * 32,),
        )
        found = await cache.adopt(validate_only=True)
        await cache.adopt()
    assert (found.orphaned_blobs, found.orphaned_bytes, found.broken_entries) == (1_200, 3 << 20, 5)
    assert [request.validate_only for request in deployment.cache.adoptions] == [True, False]


@pytest.mark.fault("swallowed-errors")
async def test_cache_client_returns_the_rejected_admissions(deployment: FakeDeployment) -> None:
    async with AsyncCacheClient(deployment.target) as cache:
        stats = await cache.stats()
    assert stats.rejected_admissions == {"INVALID_FIELD": 2, "DISK_FULL": 1}
    assert stats.failed_sweeps == 4


async def test_cache_client_of_another_tenant_shares_the_connection(deployment: FakeDeployment) -> None:
    async with AsyncCacheClient(
        deployment.target, "team-a", metadata=[("authorization", "Bearer k")]
    ) as cache:
        other = cache.with_tenant("team-b")
        await other.stats()
        await cache.stats()
        with pytest.raises(ChorusError, match="chorus-tenant"):
            cache.with_tenant("Team B")
    assert deployment.cache.tenants == ["team-b", "team-a"]


async def test_cache_client_returns_growth_and_map(deployment: FakeDeployment) -> None:
    async with AsyncCacheClient(deployment.target) as cache:
        stats = await cache.stats(from_memory=True, growth_points=50)
        assert [point.entries for point in stats.growth] == [0, 1, 2, 3, 5, 6]
        assert stats.growth_step == 3_600
        assert (await cache.stats()).growth == ()
        found = await cache.map("hits", 1)
        assert (found.left_out, found.explained_share) == (99_800, 0.42)
        assert [(entry.prompt, entry.hits) for entry in found.entries] == [("a red circle", 2)]
        for call in (cache.map("lost"), cache.map(limit=501), cache.stats(growth_points=1)):
            with pytest.raises(ChorusError) as refused:
                await call
            assert refused.value.reason == errors.INVALID_FIELD
    assert [request.growth_points for request in deployment.cache.stats] == [50, 0]


async def test_cache_client_sends_its_tenant(deployment: FakeDeployment) -> None:
    async with AsyncCacheClient(deployment.target, "team-a") as cache:
        assert (await cache.stats()).entries == 7
        await cache.purge(model="m", older_than=90)
        with pytest.raises(ChorusError, match="must name an entry, a model, an age, or all entries"):
            await cache.purge()
    assert deployment.cache.tenants == ["team-a"]
    [request] = deployment.cache.purges
    assert (request.model_id, request.older_than.seconds, request.all) == ("m", 90, False)
