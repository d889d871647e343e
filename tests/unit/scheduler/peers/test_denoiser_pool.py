"""Verifies the life of a denoiser in the pool, from its address to its close."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.runtime.resources import Resources
from services.scheduler.jobs.caller import Caller
from services.scheduler.peers.denoiser import DenoiserClient
from services.scheduler.peers.denoiser_pool import DenoiserPool
from services.scheduler.peers.discovery import Discovery
from services.scheduler.peers.health import PeerHealth


class _Client:
    """Client of a denoiser whose stream lasts until it is closed."""

    def __init__(self) -> None:
        self.health = SimpleNamespace(
            name="denoiser", serving=True, unavailable=lambda: errors.unavailable("denoiser", "down")
        )
        self.refuses = False
        self.asked = asyncio.Event()
        self.closed = asyncio.Event()

    async def describe_models(self) -> denoiser_pb2.DescribeModelsResponse:
        self.asked.set()
        if self.refuses:
            raise errors.unavailable("denoiser", "it is not ready")
        return denoiser_pb2.DescribeModelsResponse(models=[denoiser_pb2.ModelInfo(model_id="small")])

    async def denoise(self, _: object, __: object) -> AsyncIterator[denoiser_pb2.DenoiseResponse]:
        while True:
            yield denoiser_pb2.DenoiseResponse()


class _World:
    """A pool whose addresses a test sets."""

    def __init__(self) -> None:
        self.addresses = ["a"]
        self.queries = 0
        self.clients: dict[str, _Client] = {}
        self.changed = asyncio.Event()
        self.pool = DenoiserPool(
            Discovery(["dns:///gpus:7403"], self._resolve),
            self._connect,
            slots=1,
            interval=0.01,
            max_pause=0.1,
            on_change=lambda _: self.changed.set(),
            ended_task=asyncio.get_running_loop().create_future(),
        )

    async def _resolve(self, _: str, __: int) -> Sequence[str]:
        self.queries += 1
        self.changed.set()
        return self.addresses

    def _connect(self, address: str, resources: Resources, _: Callable[[PeerHealth], None]) -> DenoiserClient:
        client = self.clients[address] = _Client()

        async def close() -> None:
            client.closed.set()

        resources.push_async_callback(close)
        return cast(DenoiserClient, client)

    async def query_again(self) -> None:
        """Returns when the pool has followed the addresses as they are now."""
        before = self.queries
        await self.until(lambda: self.queries >= before + 2)

    async def until(self, expected: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not expected():
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def running() -> AsyncIterator[_World]:
    world = _World()
    task = asyncio.create_task(world.pool.run())
    try:
        await world.until(lambda: world.pool.free_slots == 1)
        yield world
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await world.pool.close()


async def test_denoiser_that_is_gone_is_closed_after_its_run_and_its_stream() -> None:
    async with running() as world:
        run = world.pool.reserve("small")
        assert run is not None
        stream = run.denoise(cast(Any, None), cast(Caller, None))
        await anext(stream)
        client = world.clients["a"]
        world.addresses = ["b"]
        await world.until(lambda: world.pool.free_slots == 1)
        assert run.leaving
        await world.query_again()
        assert not client.closed.is_set()
        run.release()
        await world.query_again()
        assert not client.closed.is_set(), "its stream goes on"
        await stream.aclose()
        await asyncio.wait_for(client.closed.wait(), 20)
        assert world.pool.count_runs() == {"b": 0}
    assert world.clients["b"].closed.is_set()


async def test_denoiser_that_comes_back_keeps_its_run() -> None:
    async with running() as world:
        run = world.pool.reserve("small")
        world.addresses = []
        await world.until(lambda: world.pool.serving is False)
        assert world.pool.unavailable().reason == errors.DEPENDENCY_UNAVAILABLE
        world.addresses = ["a"]
        await world.until(lambda: world.pool.serving is True)
        assert world.pool.reserve("small") is None, "its slot is taken"
        assert run is not None
        run.release()
        assert world.pool.reserve("small") is run


async def test_slots_count_denoisers_that_serve() -> None:
    async with running() as world:
        world.addresses = ["a", "b", "c"]
        await world.until(lambda: world.pool.slots == 3)
        world.addresses = []
        await world.until(lambda: world.pool.serving is False)
        assert world.pool.slots == 1


async def test_failed_denoiser_pauses_until_it_is_asked_again() -> None:
    async with running() as world:
        run = world.pool.reserve("small")
        assert run is not None
        run.release()
        run.report_failure(ChorusError(errors.QUEUE_FULL, "full", retry_after=3600), crashed=False)
        assert 0 < world.pool.rest_seconds("small") <= 30, "the pause is bounded"
        assert (world.pool.free_slots, world.pool.reserve("small")) == (0, None)
        assert (world.pool.can_run("small"), world.pool.find_outage("small")) == (False, None)
        assert (world.pool.serving, run.suspect) == (True, False)
        run.note_health_change()
        await world.until(lambda: world.pool.free_slots == 1)


async def test_denoiser_without_an_answer_runs_nothing() -> None:
    async with running() as world:
        client = world.clients["a"]
        client.refuses = True
        run = world.pool.reserve("small")
        assert run is not None
        run.release()
        run.note_health_change()
        assert world.pool.serving is None
        await world.until(lambda: world.pool.serving is False)
        assert "it is not ready" in world.pool.unavailable().message
        outage = world.pool.find_outage("small")
        assert outage is not None
        assert "it is not ready" in outage.message
        client.refuses = False
        await world.until(lambda: world.pool.serving is True)
