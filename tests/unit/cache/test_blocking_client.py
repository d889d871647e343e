"""Verifies that calls to a silent dependency are refused, and that abandoned calls count."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from chorus_rpc.errors import DEPENDENCY_UNAVAILABLE, ChorusError

from services.cache.blocking_client import BlockingClient
from services.runtime import breaker

pytestmark = pytest.mark.fault("silent-dependency")

LIMIT = 0.2


class Dependency:
    """Blocks each call until `answering` is set; counts the calls begun."""

    def __init__(self) -> None:
        self.answering = threading.Event()
        self.calls = 0

    def call(self) -> str:
        self.calls += 1
        self.answering.wait()
        return "answer"


@pytest.fixture
async def dependency() -> AsyncIterator[Dependency]:
    dependency = Dependency()
    yield dependency
    dependency.answering.set()


@pytest.fixture
async def client(dependency: Dependency) -> AsyncIterator[BlockingClient]:
    client = BlockingClient("milvus", 1, LIMIT, (OSError,))
    client.suspend_when_silent(dependency.answering.wait)
    yield client
    dependency.answering.set()
    await client.close()


async def test_calls_to_a_silent_dependency_are_refused_at_once(
    client: BlockingClient, dependency: Dependency
) -> None:
    with pytest.raises(ChorusError, match=r"no answer within 0\.2 s"):
        await client.run(dependency.call)
    for _ in range(20):
        with pytest.raises(ChorusError, match="calls are suspended") as caught:
            await client.run(dependency.call)
        assert caught.value.reason == DEPENDENCY_UNAVAILABLE
        assert caught.value.metadata == {"service": "milvus"}
    assert dependency.calls == 1
    dependency.answering.set()
    async with asyncio.timeout(20):
        while True:
            try:
                assert await client.run(dependency.call) == "answer"
            except ChorusError:
                await asyncio.sleep(0.01)
            else:
                break


async def test_calls_that_their_callers_abandoned_show_the_silence(
    dependency: Dependency, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup ends by the deadline of its caller, long before the limit of the index."""
    monkeypatch.setattr(breaker, "SILENCE_SECONDS", LIMIT)
    client = BlockingClient("milvus", 1, 600, (OSError,))
    client.suspend_when_silent(dependency.answering.wait)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2 * LIMIT):
            await client.run(dependency.call)
    with pytest.raises(ChorusError, match="calls are suspended"):
        await client.run(dependency.call)
    dependency.answering.set()
    await client.close()


async def test_dependency_that_answers_with_errors_is_called_again(client: BlockingClient) -> None:
    def refuse() -> None:
        raise OSError("connection refused")

    for _ in range(3):
        with pytest.raises(ChorusError, match="OSError, see the cache's log"):
            await client.run(refuse)
