"""Fixtures: one denoiser process on a tiny random model, and a cache in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from chorus.cache.v1 import cache_pb2_grpc
from chorus.denoiser.v1 import denoiser_pb2_grpc
from chorus_rpc.channels import open_channel

from tests.integration.denoiser.calls import FakeCache, environment
from tests.processes import ServiceProcess, start_service
from tests.tiny_model import save_tiny_model


@pytest.fixture(scope="session")
def cache_server() -> Iterator[tuple[FakeCache, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    cache = FakeCache()
    cache_pb2_grpc.add_CacheServiceServicer_to_server(cache, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield cache, f"127.0.0.1:{port}"
    server.stop(0).wait(5)


@pytest.fixture
def cache(cache_server: tuple[FakeCache, str]) -> FakeCache:
    found, _ = cache_server
    found.entries.clear()
    found.tenants.clear()
    found.spoil = lambda parts: parts
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def service(
    model: Path, cache_server: tuple[FakeCache, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    with start_service(
        "denoiser", environment(model, cache_server[1]), tmp_path_factory.mktemp("denoiser")
    ) as process:
        yield process


@pytest.fixture
async def stub(service: ServiceProcess) -> AsyncIterator[Any]:
    async with open_channel(service.target) as channel:
        yield denoiser_pb2_grpc.DenoiserServiceStub(channel)
