"""Verifies API keys of the real process: whose generations a call concerns, revocation, limits of tenants."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from chorus.scheduler.v1 import scheduler_pb2
from chorus_cli.main import app
from chorus_client import AsyncChorusClient, ChorusError, ServerInfo
from chorus_rpc import errors
from chorus_rpc.tenancy import key_metadata
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from tests.integration.scheduler.fakes import VIDEO
from tests.integration.scheduler.world import World

SECONDS = 30.0
SERVICE = scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"]
METHODS = [method.name for method in SERVICE.methods]


class Keys:
    """File of API keys, edited by `chorus keys`."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "keys.json"
        self.settings = {"CHORUS_SCHEDULER_API_KEYS": str(self.path)}

    def create(self, tenant: str) -> dict[str, str]:
        done = self._run("create", "--tenant", tenant)
        created: dict[str, str] = json.loads(done)["created"]
        return created

    def revoke(self, key_id: str) -> None:
        self._run("revoke", key_id)

    def _run(self, *arguments: str) -> str:
        done = CliRunner().invoke(app, ["keys", *arguments, "--file", str(self.path), "--json"])
        assert done.exit_code == 0, done.output
        return done.stdout


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@contextmanager
def raises(reason: errors.Reason, text: str = "") -> Iterator[list[ChorusError]]:
    """Expects this error inside the block; yields a list that receives it."""
    caught: list[ChorusError] = []
    with pytest.raises(ChorusError) as raised:
        yield caught
    caught.append(raised.value)
    assert raised.value.reason == reason, raised.value.message
    assert text in raised.value.message


async def becomes(outcome: Callable[[], Awaitable[Any]], *, refused: bool) -> ChorusError | None:
    """Calls until the scheduler refuses the caller, or accepts it; returns the refusal."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            await outcome()
        except ChorusError as error:
            if refused and error.reason == errors.UNAUTHENTICATED:
                return error
        else:
            if not refused:
                return None
        await asyncio.sleep(0.05)
    raise AssertionError(f"not {'refused' if refused else 'accepted'} within {SECONDS:g} s")


async def call_raw(world: World, method: str, metadata: Any = ()) -> grpc.StatusCode:
    """Makes a call with an empty request; returns its status."""
    descriptor = SERVICE.methods_by_name[method]
    call = getattr(world.api, method)(GetMessageClass(descriptor.input_type)(), metadata=metadata, timeout=20)
    try:
        if descriptor.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_every_method_needs_a_key_and_the_health_service_none(tmp_path: Path, keys: Keys) -> None:
    token = keys.create("acme")["key"]
    async with World(tmp_path, keys.settings) as world:
        for method in METHODS:
            for wrong in (
                (),
                key_metadata(token[:-1]),
                (("authorization", token),),
                (("chorus-tenant", "acme"),),
            ):
                status = await call_raw(world, method, wrong)
                assert status is grpc.StatusCode.UNAUTHENTICATED, (method, wrong)
            assert await call_raw(world, method, key_metadata(token)) is not grpc.StatusCode.UNAUTHENTICATED
        async with grpc.aio.insecure_channel(world.process.target) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE.full_name), timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert token not in world.process.log.read_text()


async def test_a_tenant_sees_and_changes_its_own_generations_only(tmp_path: Path, keys: Keys) -> None:
    acme, beta = keys.create("acme")["key"], keys.create("beta")["key"]
    async with (
        World(tmp_path, keys.settings) as world,
        AsyncChorusClient(world.process.target, token=acme) as own,
        AsyncChorusClient(world.process.target, token=beta) as other,
    ):
        handle = await own.submit("a red car", seed=5, request_id="r1")
        assert (await handle.result()).data == VIDEO
        foreign = other.handle(handle.id)
        for attempt in (
            foreign.status,
            foreign.cancel,
            foreign.delete,
            foreign.result,
            foreign.video,
            foreign.thumbnail,
            foreign.url,
        ):
            with raises(errors.NOT_FOUND, handle.id):
                await attempt()
        with raises(errors.NOT_FOUND):
            [event async for event in foreign.events()]
        request = scheduler_pb2.GetVideoRequest(generation_id=handle.id)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            [part async for part in world.api.GetVideo(request, metadata=key_metadata(beta), timeout=20)]
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        with raises(errors.INVALID_FIELD, "donor_generation_id"):
            await other.submit("a blue car", donor=handle.id)
        with raises(errors.INVALID_FIELD, "donor_generation_id"):
            await other.preview("a blue car", donor=handle.id)
        await own.preview("a blue car", donor=handle.id)
        # The other tenant's request id is another one.
        second = await other.submit("a green car", request_id="r1")
        await second.result()
        assert second.id != handle.id
        assert [each.id for each in await own.list()] == [handle.id]
        assert [each.id for each in await other.list()] == [second.id]
        # A key of the same tenant sees the same.
        async with AsyncChorusClient(world.process.target, token=keys.create("acme")["key"]) as third:
            await becomes(third.list, refused=False)
            assert [each.id for each in await third.list()] == [handle.id]
            await third.handle(handle.id).delete()
        assert await own.list() == ()
        assert [each.id for each in await other.list()] == [second.id]
        # The services behind the scheduler receive the tenant of the job.
        assert [each["chorus-tenant"] for each in world.denoiser.metadata] == ["acme", "beta"]


async def until_serving(client: AsyncChorusClient) -> ServerInfo:
    """Returns what the scheduler tells once every service serves."""
    async with asyncio.timeout(SECONDS):
        while True:
            info = await client.server_info()
            if all(each.state == "serving" for each in info.services):
                return info
            await asyncio.sleep(0.05)


async def test_server_info_names_the_tenant_and_hides_the_services(tmp_path: Path, keys: Keys) -> None:
    tokens = {tenant: keys.create(tenant)["key"] for tenant in ("acme", "beta")}
    async with World(tmp_path, keys.settings, denoiser_count=2) as world:
        await world.denoisers[1].die()
        for tenant, token in tokens.items():
            async with AsyncChorusClient(world.process.target, token=token) as client:
                info = await until_serving(client)
            assert info.tenant == tenant
            assert [each.name for each in info.services] == ["scheduler", "embedder", "cache", "denoiser"]
            assert not any(each.address or each.version or each.detail for each in info.services)
        # To strangers the health service of the public port does not name the version, either.
        async with grpc.aio.insecure_channel(world.process.target) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
            await watch.read()
            assert "chorus-version" not in dict(await watch.initial_metadata())
            watch.cancel()


async def test_revoked_key_is_refused_while_its_jobs_and_its_watches_go_on(
    tmp_path: Path, keys: Keys
) -> None:
    key, remaining = keys.create("acme"), keys.create("acme")["key"]
    async with World(tmp_path, keys.settings) as world:
        world.denoiser.pause_before = 1
        async with AsyncChorusClient(world.process.target, token=key["key"]) as client:
            handle = await client.submit("a red car")
            events = handle.events()
            while (await anext(events)).kind != "started":
                pass
            keys.revoke(key["id"])
            error = await becomes(client.list, refused=True)
            assert error is not None
            assert error.message == f"the API key {key['id']} is revoked"
            world.denoiser.go.set()
            assert [event.kind async for event in events][-1] == "succeeded"
            with raises(errors.UNAUTHENTICATED):
                await handle.status()
        async with AsyncChorusClient(world.process.target, token=remaining) as client:
            assert (await client.handle(handle.id).result()).data == VIDEO


async def test_invalid_file_keeps_the_keys_in_force(tmp_path: Path, keys: Keys) -> None:
    token = keys.create("acme")["key"]
    valid = keys.path.read_bytes()
    async with (
        World(tmp_path, keys.settings) as world,
        AsyncChorusClient(world.process.target, token=token) as client,
    ):
        keys.path.write_bytes(valid.replace(b'"version"', b'"verison"'))
        deadline = time.monotonic() + SECONDS
        while "API keys not reloaded" not in world.process.log.read_text():
            assert time.monotonic() < deadline
            await client.list()
            await asyncio.sleep(0.05)
        await client.list()
        keys.path.write_bytes(valid)
        async with AsyncChorusClient(world.process.target, token=keys.create("beta")["key"]) as later:
            await becomes(later.list, refused=False)


async def test_requests_of_a_tenant_are_limited_with_the_time_until_the_next(
    tmp_path: Path, keys: Keys
) -> None:
    acme, beta = keys.create("acme")["key"], keys.create("beta")["key"]
    settings = {
        **keys.settings,
        "CHORUS_SCHEDULER_TENANT_REQUESTS_PER_MINUTE": "1",
        "CHORUS_SCHEDULER_TENANT_BURST": "2",
    }
    async with (
        World(tmp_path, settings) as world,
        AsyncChorusClient(world.process.target, token=acme) as client,
        AsyncChorusClient(world.process.target, token=beta) as other,
    ):
        first = await client.submit("a red car", request_id="r1")
        await client.preview("a red car")
        for attempt in (client.submit, client.preview):
            with raises(errors.RATE_LIMITED, "CHORUS_SCHEDULER_TENANT_REQUESTS_PER_MINUTE") as caught:
                await attempt("a red car")
            assert caught[0].retry_after is not None
            assert 0 < caught[0].retry_after <= 60
        # Neither a repetition nor any other call costs a token.
        assert (await client.submit("a red car", request_id="r1")).id == first.id
        assert [each.id for each in await client.list()] == [first.id]
        await other.submit("a red car")


async def test_unfinished_generations_of_a_tenant_are_limited(tmp_path: Path, keys: Keys) -> None:
    acme, beta = keys.create("acme")["key"], keys.create("beta")["key"]
    settings = {**keys.settings, "CHORUS_SCHEDULER_TENANT_UNFINISHED_LIMIT": "2"}
    async with (
        World(tmp_path, settings) as world,
        AsyncChorusClient(world.process.target, token=acme) as client,
        AsyncChorusClient(world.process.target, token=beta) as other,
    ):
        world.denoiser.pause_before = 1
        running = await client.submit("a red car", request_id="r1")
        await client.submit("a blue car")
        with raises(errors.TENANT_LIMIT_REACHED, "CHORUS_SCHEDULER_TENANT_UNFINISHED_LIMIT") as caught:
            await client.submit("a green car")
        assert caught[0].metadata["limit"] == "2"
        assert caught[0].retry_after is not None
        assert (await client.submit("a red car", request_id="r1")).id == running.id
        await other.submit("a red car")
        await running.cancel()
        await client.submit("a green car")
        world.denoiser.go.set()


async def test_runs_of_a_tenant_are_limited_and_others_use_the_free_places(
    tmp_path: Path, keys: Keys
) -> None:
    acme, beta = keys.create("acme")["key"], keys.create("beta")["key"]
    settings = {
        **keys.settings,
        "CHORUS_SCHEDULER_CONCURRENCY": "3",
        "CHORUS_SCHEDULER_TENANT_CONCURRENCY": "1",
    }
    async with (
        World(tmp_path, settings) as world,
        AsyncChorusClient(world.process.target, token=acme) as own,
        AsyncChorusClient(world.process.target, token=beta) as other,
    ):
        world.denoiser.pause_before = 1
        handles = [await own.submit(f"a red car {number}", reuse="off") for number in range(3)]
        foreign = await other.submit("a blue car", reuse="off")
        async with asyncio.timeout(20):
            for handle in (handles[0], foreign):
                async for event in handle.events():
                    if event.kind == "started":
                        break
        assert {request.generation_id for request in world.denoiser.requests} == {
            handles[0].id,
            foreign.id,
        }
        states = [(await handle.status()).state for handle in handles]
        assert states == ["running", "queued", "queued"]
        world.denoiser.go.set()
        for handle in (*handles, foreign):
            assert (await handle.result()).data == VIDEO
