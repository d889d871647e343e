"""Verifies which lookups wait for the admission of a finished run, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from chorus.common.v1 import latents_pb2

from services.scheduler.dispatch.admissions import PendingAdmissions

pytestmark = pytest.mark.fault("silent-dependency")

SAME = latents_pb2.LatentIdentity(model_id="a")
OTHER = latents_pb2.LatentIdentity(model_id="b")
TENANT = "acme"
REQUEST = ("a circle", 7)
# Longer than any test.
LONG = 600.0
SHORT = 0.05


@pytest.fixture
async def admitted() -> AsyncIterator[asyncio.Event]:
    """Event that ends every admission of the test."""
    event = asyncio.Event()
    yield event
    event.set()


async def end(admitted: asyncio.Event) -> None:
    await admitted.wait()


async def test_lookup_of_the_same_identity_waits_for_the_admission(admitted: asyncio.Event) -> None:
    admissions = PendingAdmissions(LONG)
    admissions.follow(TENANT, SAME, REQUEST, end(admitted))
    lookup = asyncio.create_task(admissions.wait(TENANT, SAME))
    done, _ = await asyncio.wait((lookup,), timeout=SHORT)
    assert not done
    admitted.set()
    async with asyncio.timeout(10):
        await lookup


async def test_other_lookups_do_not_wait(admitted: asyncio.Event) -> None:
    admissions = PendingAdmissions(LONG)
    admissions.follow(TENANT, SAME, REQUEST, end(admitted))
    admissions.follow(TENANT, None, REQUEST, end(admitted))
    async with asyncio.timeout(10):
        await admissions.wait(TENANT, OTHER)
        await admissions.wait("another", SAME)


async def test_search_for_a_result_waits_for_the_admission_of_the_same_request_only(
    admitted: asyncio.Event,
) -> None:
    admissions = PendingAdmissions(LONG)
    admissions.follow(TENANT, SAME, REQUEST, end(admitted))
    async with asyncio.timeout(10):
        await admissions.wait(TENANT, SAME, ("a circle", 8))
        await admissions.wait(TENANT, SAME, ("a square", 7))
    search = asyncio.create_task(admissions.wait(TENANT, SAME, REQUEST))
    done, _ = await asyncio.wait((search,), timeout=SHORT)
    assert not done
    admitted.set()
    async with asyncio.timeout(10):
        await search


async def test_only_one_lookup_waits_for_late_admissions(admitted: asyncio.Event) -> None:
    admissions = PendingAdmissions(SHORT)
    admissions.follow(TENANT, SAME, REQUEST, end(admitted))
    async with asyncio.timeout(10):
        await admissions.wait(TENANT, SAME)  # until the admission is late
    admissions._wait_seconds = LONG
    following = asyncio.Event()
    admissions.follow(TENANT, SAME, REQUEST, end(following))
    async with asyncio.timeout(10):
        await admissions.wait(TENANT, SAME)  # would last as long as the test
        admitted.set()
        await asyncio.sleep(0)
        following.set()
        await admissions.drain(10)

    stuck = asyncio.Event()
    admissions.follow(TENANT, SAME, REQUEST, end(stuck))
    lookup = asyncio.create_task(admissions.wait(TENANT, SAME))
    done, _ = await asyncio.wait((lookup,), timeout=SHORT)
    assert not done, "the last admission was on time, so lookups wait again"
    stuck.set()
    await lookup


async def test_drain_ends_admissions_that_do_not_end(admitted: asyncio.Event) -> None:
    admissions = PendingAdmissions(LONG)
    ended = asyncio.Event()

    async def outcome() -> None:
        try:
            await admitted.wait()
        finally:
            ended.set()

    admissions.follow(TENANT, SAME, REQUEST, outcome())
    async with asyncio.timeout(10):
        await admissions.drain(SHORT)
    assert ended.is_set()


async def test_admission_that_fails_unexpectedly_ends_the_wait() -> None:
    admissions = PendingAdmissions(LONG)

    async def outcome() -> None:
        raise RuntimeError("scripted failure")

    admissions.follow(TENANT, SAME, REQUEST, outcome())
    async with asyncio.timeout(10):
        await admissions.wait(TENANT, SAME)
