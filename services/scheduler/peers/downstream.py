"""The services behind the scheduler: channels, stubs, and whether they are there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc.aio
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from chorus_rpc.channels import open_channel
from chorus_rpc.tenancy import tenant_metadata

from services.scheduler.peers.health import Dependency
from services.scheduler.settings import SchedulerSettings

if TYPE_CHECKING:
    from chorus.cache.v1.cache_pb2_grpc import CacheServiceAsyncStub
    from chorus.denoiser.v1.denoiser_pb2_grpc import DenoiserServiceAsyncStub
    from chorus.embedder.v1.embedder_pb2_grpc import EmbedderServiceAsyncStub


@dataclass(frozen=True)
class Downstream:
    """Made by `open_downstream`.

    Args:
        metadata: of every call: whose request it is.
    """

    embedder: EmbedderServiceAsyncStub
    cache: CacheServiceAsyncStub
    denoiser: DenoiserServiceAsyncStub
    needed: tuple[Dependency, ...]
    cache_state: Dependency
    metadata: tuple[tuple[str, str], ...]


def open_downstream(
    settings: SchedulerSettings, resources: AsyncExitStack, on_change: Callable[[Dependency], None]
) -> Downstream:
    """Channels and health watches, all given to `resources`; returns at once, whoever is there."""

    def channel(target: str) -> grpc.aio.Channel:
        opened = open_channel(target, settings.max_message_bytes)
        resources.push_async_callback(opened.close)
        return opened

    channels = {
        "embedder": channel(settings.embedder_target),
        "denoiser": channel(settings.denoiser_target),
        "cache": channel(settings.cache_target),
    }
    services = {
        "embedder": embedder_pb2.DESCRIPTOR.services_by_name["EmbedderService"].full_name,
        "denoiser": denoiser_pb2.DESCRIPTOR.services_by_name["DenoiserService"].full_name,
        "cache": cache_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name,
    }
    states = {
        name: Dependency(name, services[name], opened, on_change, settings.retry_seconds)
        for name, opened in channels.items()
    }
    for state in states.values():
        resources.push_async_callback(_end, asyncio.create_task(state.watch(), name=f"watch {state.name}"))
    return Downstream(
        embedder=embedder_pb2_grpc.EmbedderServiceStub(channels["embedder"]),
        cache=cache_pb2_grpc.CacheServiceStub(channels["cache"]),
        denoiser=denoiser_pb2_grpc.DenoiserServiceStub(channels["denoiser"]),
        needed=(states["embedder"], states["denoiser"]),
        cache_state=states["cache"],
        metadata=tenant_metadata(settings.tenant),
    )


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
