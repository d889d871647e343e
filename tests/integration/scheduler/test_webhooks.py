"""Verifies webhooks of real schedulers: each end reaches its HTTPS receiver, whatever fails on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, from_rpc_error
from sqlalchemy.engine import make_url
from standardwebhooks import Webhook

from tests.integration.scheduler.world import World, kinds
from tests.postgresql import create_database, running_server
from tests.processes import free_port
from tests.receiver import Received, Receiver, running_receiver
from tests.scraping import Scrape, scrape_until
from tests.tls import Certificates, make_certificates

OLD, NEW = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
ATTEMPT_SECONDS = 1


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def receiver(certificates: Certificates) -> Iterator[Receiver]:
    with running_receiver(certificates) as receiver:
        yield receiver


@pytest.fixture
def metrics() -> int:
    return free_port()


@pytest.fixture
def settings(tmp_path: Path, certificates: Certificates, metrics: int) -> dict[str, str]:
    secrets = tmp_path / "secrets.json"
    settings = {
        "CHORUS_SCHEDULER_WEBHOOK_SECRETS": str(secrets),
        "CHORUS_SCHEDULER_WEBHOOK_CA": str(certificates.ca),
        "CHORUS_SCHEDULER_WEBHOOK_ALLOWED": "127.0.0.0/8",
        "CHORUS_SCHEDULER_WEBHOOK_ATTEMPT_SECONDS": str(ATTEMPT_SECONDS),
        "CHORUS_SCHEDULER_WEBHOOK_RETRY_SECONDS": "0.05",
        "CHORUS_SCHEDULER_WEBHOOK_MAX_RETRY_SECONDS": "0.2",
        "CHORUS_SCHEDULER_METRICS_PORT": str(metrics),
    }
    write_secrets(settings, "acme")
    return settings


@pytest.fixture
async def world(tmp_path: Path, settings: dict[str, str]) -> AsyncIterator[World]:
    async with World(tmp_path, settings) as world:
        yield world


def webhook(url: str, *events: int) -> pb.Webhook:
    return pb.Webhook(url=url, events=events)  # type: ignore[arg-type]


async def received(receiver: Receiver, number: int) -> list[Received]:
    return await asyncio.to_thread(receiver.wait_for, number)


async def measured(metrics: int, expected: Callable[[Scrape], bool]) -> Scrape:
    return await asyncio.to_thread(scrape_until, metrics, expected)


def read_event(request: Received) -> dict[str, Any]:
    """Returns the event of a request, verified with both secrets."""
    events = [Webhook(secret).verify(request.body, request.headers) for secret in (OLD, NEW)]
    assert events[0] == events[1]
    assert events[0]["id"] == request.headers["webhook-id"]
    event: dict[str, Any] = events[0]
    return event


async def refusal(world: World, hook: pb.Webhook) -> ChorusError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await world.submit(webhook=hook)
    return from_rpc_error(raised.value, "scheduler")


async def test_each_end_is_delivered_once_and_signed(world: World, receiver: Receiver, metrics: int) -> None:
    done = await world.submit(webhook=webhook(receiver.url("/hook?token=abc")))
    assert list(done.spec.webhook.events) == [1, 2, 3], "the accepted specification lists them"
    assert kinds(await world.events(done))[-1] == "succeeded"
    await received(receiver, 1)
    world.denoiser.pause_before = 1
    cancelled = await world.submit("cancelled", webhook=webhook(receiver.url()))
    await world.events(cancelled, until="started")
    await world.cancel(cancelled)
    overdue = await world.submit("overdue", webhook=webhook(receiver.url()), timeout={"seconds": 1})
    assert kinds(await world.events(overdue))[-1] == "failed"
    world.denoiser.go.set()
    unselected = await world.submit("x", webhook=webhook(receiver.url(), pb.WEBHOOK_EVENT_FAILED))
    assert kinds(await world.events(unselected))[-1] == "succeeded"
    last = await world.submit("y", webhook=webhook(receiver.url(), pb.WEBHOOK_EVENT_COMPLETED))
    assert kinds(await world.events(last))[-1] == "succeeded"
    await received(receiver, 4)
    found = await measured(metrics, lambda seen: seen.value("chorus_webhook_deliveries_total") == 4)
    assert found.value("chorus_webhook_attempts_total", outcome="delivered") == 4
    assert found.value("chorus_webhook_attempts_total") == 4
    await measured(metrics, lambda seen: seen.value("chorus_webhook_pending") == 0)
    events = [read_event(request) for request in receiver.received]
    assert Counter((event["type"], event["data"]["id"]) for event in events) == Counter(
        [
            ("video.completed", f"video_{done.generation_id}"),
            ("video.failed", f"video_{cancelled.generation_id}"),
            ("video.failed", f"video_{overdue.generation_id}"),
            ("video.completed", f"video_{last.generation_id}"),
        ]
    )
    assert receiver.received[0].path == "/hook?token=abc"
    assert "token" not in world.process.log.read_text()
    ended = await world.get(done)
    assert abs(events[0]["created_at"] - ended.end_time.seconds) <= 1


async def test_failed_attempts_are_repeated(world: World, receiver: Receiver, metrics: int) -> None:
    receiver.answers.extend([500, None, 302])
    receiver.headers["Location"] = receiver.url("/elsewhere")
    await world.events(await world.submit(webhook=webhook(receiver.url())))
    requests = await received(receiver, 4)
    assert {request.path for request in requests} == {"/hook"}, "the redirect is not followed"
    assert len({(request.body, request.headers["webhook-id"]) for request in requests}) == 1
    for request in requests:
        read_event(request)
    receiver.hold.clear()
    await world.events(await world.submit("slow", webhook=webhook(receiver.url())))
    await received(receiver, 6)  # the first of them has reached its time limit
    receiver.hold.set()
    found = await measured(metrics, lambda seen: seen.value("chorus_webhook_deliveries_total") == 2)
    outcomes = {
        outcome: found.value("chorus_webhook_attempts_total", outcome=outcome)
        for outcome in ("rejected", "unreachable", "delivered")
    }
    assert outcomes == {"rejected": 2, "unreachable": 1, "delivered": 2}
    assert found.value("chorus_webhook_attempts_total", outcome="timeout") >= 1


async def test_receiver_that_is_down_gets_the_event_later(
    world: World, certificates: Certificates, metrics: int
) -> None:
    port = free_port()
    job = await world.submit(webhook=webhook(f"https://127.0.0.1:{port}/hook"))
    await world.events(job)
    found = await measured(
        metrics, lambda seen: seen.value("chorus_webhook_attempts_total", outcome="unreachable") >= 2
    )
    assert found.value("chorus_webhook_pending") == 1
    await measured(metrics, lambda seen: seen.value("chorus_webhook_oldest_seconds") > 0)
    # Nothing of the generation is needed for the delivery.
    await world.api.DeleteGeneration(pb.DeleteGenerationRequest(generation_id=job.generation_id), timeout=20)
    with running_receiver(certificates, port) as receiver:
        [request] = await received(receiver, 1)
        assert read_event(request)["data"] == {"id": f"video_{job.generation_id}"}
        await measured(metrics, lambda seen: seen.value("chorus_webhook_pending") == 0)


async def test_delivery_survives_a_crash_of_the_scheduler(
    world: World, receiver: Receiver, certificates: Certificates, metrics: int
) -> None:
    port = free_port()
    down = await world.submit("down", webhook=webhook(f"https://127.0.0.1:{port}/hook"))
    await world.events(down)
    await measured(
        metrics, lambda seen: seen.value("chorus_webhook_attempts_total", outcome="unreachable") >= 1
    )
    receiver.hold.clear()
    busy = await world.submit("in an attempt", webhook=webhook(receiver.url()))
    await world.events(busy)
    await received(receiver, 1)
    world.process.kill()
    receiver.hold.set()
    with running_receiver(certificates, port) as other:
        await world.boot()
        [request] = await received(other, 1)
        assert read_event(request)["data"]["id"] == f"video_{down.generation_id}"
        requests = await received(receiver, 2)
    assert {read_event(each)["data"]["id"] for each in requests} == {f"video_{busy.generation_id}"}
    assert len({each.headers["webhook-id"] for each in requests}) == 1, "by which the receiver knows it again"


async def test_scheduler_that_stops_lets_its_attempt_end_or_hands_it_back(
    tmp_path: Path, receiver: Receiver, settings: dict[str, str]
) -> None:
    settings["CHORUS_SCHEDULER_WEBHOOK_ATTEMPT_SECONDS"] = "60"  # its lease outlasts this test
    async with World(tmp_path, settings) as world:
        receiver.hold.clear()
        await world.events(await world.submit(webhook=webhook(receiver.url())))
        await received(receiver, 1)
        stopping = asyncio.create_task(asyncio.to_thread(world.process.terminate))
        receiver.hold.set()
        assert await stopping == 0
        assert count_pending(tmp_path) == 0
        receiver.hold.clear()
        await world.boot()
        job = await world.submit("handed back", webhook=webhook(receiver.url()))
        await world.events(job)
        await received(receiver, 2)
        assert await asyncio.to_thread(world.process.terminate) == 0
        assert count_pending(tmp_path) == 1
        receiver.hold.set()
        await world.boot()
        requests = await received(receiver, 3)
    assert [read_event(each)["data"]["id"] for each in requests[1:]] == [f"video_{job.generation_id}"] * 2


def count_pending(directory: Path) -> int:
    """Counts the deliveries in the database of a scheduler that has ended."""
    with contextlib.closing(sqlite3.connect(directory / "jobs.db")) as database:
        [(number,)] = database.execute("SELECT COUNT(*) FROM webhooks").fetchall()
        return int(number)


async def test_two_schedulers_deliver_once(
    tmp_path_factory: pytest.TempPathFactory, receiver: Receiver, settings: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    del settings["CHORUS_SCHEDULER_METRICS_PORT"]
    with running_server(folder) as server:
        settings["CHORUS_SCHEDULER_DATABASE"] = create_database(server)
        async with World(folder, settings) as first, World(folder, sharing_with=first) as second:
            pair = (first, second)
            jobs = [await pair[n % 2].submit(f"job {n}", webhook=webhook(receiver.url())) for n in range(20)]
            for n, job in enumerate(jobs):
                await pair[n % 2].events(job)
            await received(receiver, len(jobs))
            await asyncio.to_thread(wait_until_empty, settings["CHORUS_SCHEDULER_DATABASE"])
            found = Counter(read_event(each)["data"]["id"] for each in receiver.received)
            assert found == {f"video_{job.generation_id}": 1 for job in jobs}


async def test_other_scheduler_repeats_the_attempt_of_one_that_died(
    tmp_path_factory: pytest.TempPathFactory, receiver: Receiver, settings: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    del settings["CHORUS_SCHEDULER_METRICS_PORT"]
    with running_server(folder) as server:
        settings["CHORUS_SCHEDULER_DATABASE"] = create_database(server)
        async with World(folder, settings) as first:
            receiver.hold.clear()
            job = await first.submit(webhook=webhook(receiver.url()))
            await first.events(job)
            await received(receiver, 1)
            first.process.kill()
            receiver.hold.set()
            async with World(folder, sharing_with=first):
                requests = await received(receiver, 2)
                await asyncio.to_thread(wait_until_empty, settings["CHORUS_SCHEDULER_DATABASE"])
    assert {read_event(each)["data"]["id"] for each in requests} == {f"video_{job.generation_id}"}


def wait_until_empty(location: str) -> None:
    """Waits until the outbox of a PostgreSQL database is empty."""
    with psycopg.connect(make_url(location).render_as_string(), autocommit=True) as connection:
        for _ in range(600):
            row = connection.execute("SELECT COUNT(*), pg_sleep(0.1) FROM webhooks").fetchone()
            assert row is not None
            if row[0] == 0:
                return
    pytest.fail("webhooks are left")


async def test_webhook_that_cannot_be_honoured_is_refused_by_name(world: World) -> None:
    error = await refusal(world, webhook("http://a.example/?token=abc", 7))
    assert error.reason == errors.INVALID_FIELD
    assert {violation.field for violation in error.violations} == {
        "spec.webhook.url",
        "spec.webhook.events",
    }
    assert "token" not in error.message
    error = await refusal(world, webhook("https://10.0.0.1/hook"))
    assert [violation.field for violation in error.violations] == ["spec.webhook.url"]
    assert "public address" in error.message
    request = pb.PreviewPlanRequest(
        spec=pb.GenerationSpec(prompt="x", webhook=webhook("https://[fd00::1]/hook"))
    )
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await world.api.PreviewPlan(request, timeout=20)
    assert "spec.webhook.url" in str(raised.value.details())
    listed = await world.api.ListGenerations(pb.ListGenerationsRequest(), timeout=20)
    assert not listed.generations


def write_secrets(settings: dict[str, str], tenant: str) -> None:
    path = Path(settings["CHORUS_SCHEDULER_WEBHOOK_SECRETS"])
    path.write_text(json.dumps({tenant: [OLD, NEW]}))


async def test_tenant_needs_a_secret_and_room(tmp_path: Path, settings: dict[str, str], metrics: int) -> None:
    write_secrets(settings, "beta")
    settings["CHORUS_SCHEDULER_WEBHOOK_PENDING_LIMIT"] = "1"
    async with World(tmp_path, settings) as world:
        error = await refusal(world, webhook("https://a.example/"))
        assert [violation.field for violation in error.violations] == ["spec.webhook"]
        assert "CHORUS_SCHEDULER_WEBHOOK_SECRETS" in error.message
        # The file is read again when it changes.
        write_secrets(settings, "acme")
        hook = webhook(f"https://127.0.0.1:{free_port()}/")
        job = None
        async with asyncio.timeout(30):
            while job is None:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    job = await world.submit(webhook=hook)
        await world.events(job)
        await measured(metrics, lambda seen: seen.value("chorus_webhook_pending") == 1)
        error = await refusal(world, hook)
        assert error.reason == errors.TENANT_LIMIT_REACHED
        assert error.metadata["setting"] == "CHORUS_SCHEDULER_WEBHOOK_PENDING_LIMIT"
        assert error.retry_after
        await world.submit("without a webhook")


async def test_name_with_a_private_address_gets_no_request(
    tmp_path: Path, receiver: Receiver, settings: dict[str, str], metrics: int
) -> None:
    del settings["CHORUS_SCHEDULER_WEBHOOK_ALLOWED"]
    async with World(tmp_path, settings) as world:
        error = await refusal(world, webhook(receiver.url()))
        assert [violation.field for violation in error.violations] == ["spec.webhook.url"]
        await world.events(await world.submit(webhook=webhook(receiver.url("/a?token=b", "localhost"))))
        await measured(
            metrics,
            lambda seen: seen.value("chorus_webhook_attempts_total", outcome="address_refused") >= 2,
        )
        assert "token" not in world.process.log.read_text()
    assert receiver.connections == 0


@pytest.mark.parametrize("fault", ["absent", "invalid"])
def test_file_of_secrets_that_cannot_be_used_ends_the_start(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    if fault == "invalid":
        path.write_text(json.dumps({"acme": ["whsec_short"]}))
    done = subprocess.run(
        [sys.executable, "-m", "services.scheduler"],
        env={
            **os.environ,
            "CHORUS_SCHEDULER_PORT": "0",
            "CHORUS_SCHEDULER_DATABASE": str(tmp_path / "jobs.db"),
            "CHORUS_SCHEDULER_WEBHOOK_SECRETS": str(path),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("CHORUS_SCHEDULER_WEBHOOK_SECRETS: ")
    assert "whsec_short" not in done.stderr
