"""Verifies that services reach each other, and their index, without a proxy of their environment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.tenancy import tenant_metadata

from tests.integration.cache.calls import connected, donors, environment
from tests.integration.scheduler.world import World, kinds
from tests.processes import start_service
from tests.relay import Relay

pytestmark = pytest.mark.fault("proxy")


def proxy_variables(proxy: Relay) -> dict[str, str]:
    """Returns variables that name a proxy which never answers."""
    proxy.freeze()
    names = ("http_proxy", "https_proxy", "grpc_proxy")
    return {**dict.fromkeys(names, f"http://{proxy.target}"), "no_proxy": "", "no_grpc_proxy": ""}


async def test_scheduler_reaches_its_peers_without_a_proxy(tmp_path: Path) -> None:
    async with Relay(1) as proxy, World(tmp_path, proxy_variables(proxy), absent=set()) as world:
        async with asyncio.timeout(30):
            job = await world.submit()
            assert kinds(await world.events(job))[-1] == "succeeded"
        ended: pb.Generation = await world.get(job)
        assert not ended.warnings
        assert proxy.connections == 0


async def test_cache_reaches_its_index_without_a_proxy(tmp_path: Path) -> None:
    async with Relay(1) as proxy:
        starting = start_service("cache", {**environment(tmp_path), **proxy_variables(proxy)}, tmp_path)
        service = await asyncio.to_thread(starting.__enter__)
        try:
            async with connected(service) as stub:
                assert await donors(stub, tenant_metadata("acme")) == []
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)
        assert proxy.connections == 0
