"""Verifies that `chorus up` takes no other process for its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from chorus_cli.local import addresses, up
from chorus_cli.local.health import Health
from chorus_cli.local.reservation import reserve_ports
from chorus_cli.local.supervise import Child
from chorus_rpc.errors import ChorusError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.runtime.health import HealthServicer
from tests.integration.gateway.world import running_world

pytestmark = pytest.mark.fault("readiness")

SERVING = health_pb2.HealthCheckResponse.SERVING


@asynccontextmanager
async def serving(servicer: health.aio.HealthServicer) -> AsyncIterator[str]:
    """Serves health inside the block; yields the target."""
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def make_child(directory: Path) -> Child:
    ports = dict.fromkeys(addresses.SERVICES, 1)
    return Child("cache", (), up.build_environment({}, directory, ports), directory / "cache.log")


async def test_another_process_at_the_address_of_a_child_is_not_ready(tmp_path: Path) -> None:
    child, other = make_child(tmp_path), make_child(tmp_path)
    strangers = (
        health.aio.HealthServicer(),
        HealthServicer(""),
        HealthServicer(other.environment["CHORUS_CACHE_INSTANCE_ID"]),
    )
    for servicer in strangers:
        await servicer.set("", SERVING)
        async with serving(servicer) as target, Health({"cache": target}) as checks:
            assert not await checks.serves(child)


async def test_child_is_ready_once_it_serves(tmp_path: Path) -> None:
    child = make_child(tmp_path)
    servicer = HealthServicer(child.environment["CHORUS_CACHE_INSTANCE_ID"])
    async with serving(servicer) as target, Health({"cache": target}) as checks:
        await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert not await checks.serves(child)
        await servicer.set("", SERVING)
        assert await checks.serves(child)


async def test_gateway_is_ready_once_its_own_process_answers(tmp_path: Path) -> None:
    child = Child(
        "gateway",
        (),
        up.build_environment({}, tmp_path, dict.fromkeys(addresses.SERVICES, 1)),
        tmp_path / "gateway.log",
    )
    own = child.environment["CHORUS_GATEWAY_INSTANCE_ID"]
    async with Health({"gateway": "127.0.0.1:1"}) as checks:
        assert not await checks.serves(child)
    for instance, ready in ((own, True), ("another", False), ("", False)):
        async with (
            running_world(instance_id=instance) as world,
            Health({"gateway": f"127.0.0.1:{world.port}"}) as checks,
        ):
            assert await checks.serves(child) == ready
            world.health.draining.set()
            assert not await checks.serves(child)


def test_instances_are_new_for_each_start(tmp_path: Path) -> None:
    inherited = {f"CHORUS_{service.upper()}_INSTANCE_ID": "inherited" for service in addresses.SERVICES}
    started = [
        up.build_environment(inherited, tmp_path, dict.fromkeys(addresses.SERVICES, 1)) for _ in range(2)
    ]
    assert len({environment[name] for environment in started for name in inherited} | {"inherited"}) == 11


def test_two_starts_at_the_same_time_take_different_ports() -> None:
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        ports = reserve_ports(addresses.choose_ports({}), (), first)
        # No service of the first start has bound its port yet.
        others = reserve_ports(ports, (), second)
        assert set(others) == set(ports)
        assert not set(others.values()) & set(ports.values())
        with pytest.raises(
            ChorusError, match=rf"CHORUS_CACHE_PORT: port {ports['cache']} is in use by another"
        ):
            reserve_ports({"cache": ports["cache"]}, ["cache"], second)
    with contextlib.ExitStack() as third:
        assert reserve_ports(ports, addresses.SERVICES, third) == ports
