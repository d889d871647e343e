"""Verifies streams: events with their numbers, and that no client leaves anything behind, however it goes."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from chorus.scheduler.v1 import scheduler_pb2
from chorus_client import AsyncChorusClient

from tests.integration.client.fakes import PREVIEW, VIDEO
from tests.integration.gateway.test_endpoints import read_error
from tests.integration.gateway.world import World, running_world


async def read_events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Yields the events of a stream as the fields of each."""
    fields: dict[str, Any] = {}
    async for line in response.aiter_lines():
        if not line:
            if "data" in fields:
                yield {**fields, "data": json.loads(fields["data"])}
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


async def read_all(
    world: World, identifier: str, last: str | None = None, query: str = ""
) -> list[dict[str, Any]]:
    headers = {} if last is None else {"Last-Event-ID": last}
    address = f"/v1/videos/{identifier}/events{query}"
    async with world.http.stream("GET", address, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return [event async for event in read_events(response)]


async def test_events_are_those_of_the_scheduler(world: World) -> None:
    video = await world.create("warn me")
    events = await read_all(world, video["id"])
    kinds = [event["event"] for event in events]
    assert kinds == [
        "queued",
        "planned",
        "started",
        "step_completed",
        "step_completed",
        "warning",
        "succeeded",
    ]
    assert [event["id"] for event in events] == [str(number) for number in range(1, 8)]
    assert [event["data"]["sequence"] for event in events] == list(range(1, 8))
    assert events[1]["data"]["planned"]["plan"]["reuse_steps"] == 2
    assert events[-1]["data"]["succeeded"]["seconds_saved"] == 0.7


async def test_events_contain_pictures_if_the_caller_wants_them(world: World) -> None:
    video = await world.create(chorus={"step_previews": True})
    for query, wanted in (("", None), ("?previews=false", None), ("?previews=true", PREVIEW)):
        events = await read_all(world, video["id"], query=query)
        steps = [event["data"]["step_completed"] for event in events if event["event"] == "step_completed"]
        assert len(steps) == 2
        for step in steps:
            found = step.get("preview")
            assert (None if found is None else base64.b64decode(found)) == wanted


async def test_events_continue_after_the_last_one(world: World) -> None:
    video = await world.create()
    everything = await read_all(world, video["id"])
    assert await read_all(world, video["id"], "3") == everything[3:]
    assert world.scheduler.watched_after[-1] == 3
    url = f"/v1/videos/{video['id']}/events"
    ended = await world.http.get(url, headers={"Last-Event-ID": everything[-1]["id"]})
    assert (ended.status_code, ended.content) == (204, b"")
    for last in ("-1", "x", "99", "9" * 40, "١"):
        headers = {b"Last-Event-ID": last.encode()}
        response = await world.http.get(url, headers=headers)
        assert read_error(response, 400)["param"] == "Last-Event-ID"


async def test_live_events_arrive_as_they_happen(world: World) -> None:
    video = await world.create("slow")
    async with world.http.stream("GET", f"/v1/videos/{video['id']}/events") as response:
        events = read_events(response)
        assert [(await anext(events))["event"] for _ in range(4)][-1] == "step_completed"
        await world.http.delete(f"/v1/videos/{video['id']}")
        assert (await anext(events))["event"] == "cancelled"
        assert [event async for event in events] == []
    await world.until_idle()


async def test_watch_that_breaks_is_resumed_unnoticed(world: World) -> None:
    video = await world.create()
    world.scheduler.drops = [2, 1]
    events = await read_all(world, video["id"])
    assert [event["data"]["sequence"] for event in events] == list(range(1, len(events) + 1))


async def test_silent_stream_is_kept_open_by_comments() -> None:
    async with running_world(ping_seconds=1) as world:
        video = await world.create("slow")
        async with world.http.stream("GET", f"/v1/videos/{video['id']}/events") as response:
            async for line in response.aiter_lines():
                if line.startswith(":"):
                    break


async def test_follower_that_goes_ends_its_watch(world: World) -> None:
    video = await world.create("slow")
    for _ in range(5):
        async with world.http.stream("GET", f"/v1/videos/{video['id']}/events") as response:
            await anext(read_events(response))
            assert world.scheduler.open_streams == 1
        await world.until_idle()
    assert world.scheduler.generations["gen-1"].state == scheduler_pb2.GENERATION_STATE_RUNNING


async def test_download_that_is_broken_off_ends_its_call(world: World) -> None:
    world.scheduler.video = bytes(32 << 20)
    video = await world.create()
    async with world.http.stream("GET", f"/v1/videos/{video['id']}/content") as response:
        await anext(response.aiter_bytes())
    await world.until_idle()


async def test_reader_that_stops_is_disconnected() -> None:
    async with running_world(send_seconds=0.5) as world:
        world.scheduler.video = bytes(64 << 20)
        video = await world.create()
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port, limit=1 << 16)
        writer.write(f"GET /v1/videos/{video['id']}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await world.until_idle()  # although this client reads nothing more
        writer.transport.abort()
        assert (await world.create("still here"))["status"] == "completed"


async def test_download_that_breaks_upstream_is_not_taken_for_complete(world: World) -> None:
    video = await world.create()
    world.scheduler.video_drops = [2]
    url = f"/v1/videos/{video['id']}/content"
    received = bytearray()
    try:
        async with world.http.stream("GET", url) as response:
            assert response.status_code == 200
            async for chunk in response.aiter_bytes():
                received += chunk
    except (httpx.RemoteProtocolError, httpx.ReadError):
        pass
    else:
        raise AssertionError("the client took the beginning of the file for the file")
    rest = await world.http.get(url, headers={"Range": f"bytes={len(received)}-"})
    assert bytes(received) + rest.content == VIDEO
    await world.until_idle()


async def test_caller_of_sync_that_goes_cancels_its_video(world: World) -> None:
    async def call(headers: dict[str, str]) -> None:
        await world.http.post("/v1/videos/sync", json={"prompt": "slow"}, headers=headers)

    for number, headers in enumerate(({}, {"Idempotency-Key": "kept"}), start=1):
        calling = asyncio.create_task(call(headers))
        async with asyncio.timeout(10):
            await asyncio.to_thread(world.scheduler.watching.wait)
        world.scheduler.watching.clear()
        calling.cancel()
        await asyncio.wait([calling])
        await world.until_idle()
        generation = world.scheduler.generations[f"gen-{number}"]
        if number == 1:
            async with asyncio.timeout(10), world.scheduler.changed:
                await world.scheduler.changed.wait_for(
                    lambda: generation.state == scheduler_pb2.GENERATION_STATE_CANCELLED  # noqa: B023
                )
        else:
            assert generation.state == scheduler_pb2.GENERATION_STATE_RUNNING


def drain(world: World) -> None:
    """Makes the gateway end, as a signal does."""
    world.health.draining.set()
    world.server.should_exit = True


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "kept"}])
async def test_drain_ends_sync_with_an_answer(headers: dict[str, str]) -> None:
    async with running_world(drain_seconds=2) as world:
        call = world.http.post("/v1/videos/sync", json={"prompt": "slow"}, headers=headers)
        calling = asyncio.create_task(call)
        async with asyncio.timeout(10):
            await asyncio.to_thread(world.scheduler.watching.wait)
        drain(world)
        response = await calling
        assert read_error(response, 503)["code"] == "shutting_down"
        assert "retry-after" in response.headers
        state = world.scheduler.generations["gen-1"].state
        kept = scheduler_pb2.GENERATION_STATE_RUNNING
        assert state == (kept if headers else scheduler_pb2.GENERATION_STATE_CANCELLED)


async def test_request_that_outlasts_the_drain_gets_the_envelope() -> None:
    begun = asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with running_world(drain_seconds=1) as world:
        with patch.object(AsyncChorusClient, "models", hang):
            calling = asyncio.create_task(world.http.get("/v1/models"))
            await asyncio.wait_for(begun.wait(), 10)
            drain(world)
            assert read_error(await calling, 503)["code"] == "shutting_down"


async def test_drain_ends_streams_and_refuses_health() -> None:
    async with running_world() as world:
        video = await world.create("slow")
        async with world.http.stream("GET", f"/v1/videos/{video['id']}/events") as response:
            events = read_events(response)
            await anext(events)
            world.health.draining.set()
            assert (await world.http.get("/health")).status_code == 503
            assert len([event async for event in events]) <= 3
        await world.until_idle()


async def test_many_followers_and_downloads_at_once_lose_nothing(world: World) -> None:
    followed, done = await world.create("slow"), await world.create("done")
    started = asyncio.Semaphore(0)

    async def follow() -> int:
        async with world.http.stream("GET", f"/v1/videos/{followed['id']}/events") as response:
            count = 0
            async for event in read_events(response):
                count += 1
                if event["event"] == "step_completed":
                    started.release()
            return count

    async def download() -> bytes:
        return (await world.http.get(f"/v1/videos/{done['id']}/content")).content

    followers = [asyncio.create_task(follow()) for _ in range(40)]
    for _ in followers:
        await started.acquire()
    files = await asyncio.gather(*(download() for _ in range(10)))
    assert set(files) == {VIDEO}
    await world.http.delete(f"/v1/videos/{followed['id']}")
    assert await asyncio.gather(*followers) == [5] * 40
    await world.until_idle()


async def test_question_for_the_headers_of_a_file_ends_its_transfer(world: World) -> None:
    video = await world.create()
    world.scheduler.hold_video.clear()  # the transfer does not end by itself
    response = await world.http.head(f"/v1/videos/{video['id']}/content")
    assert response.status_code == 200
    async with asyncio.timeout(10):
        await world.scheduler.idle.wait()
