"""Fixtures: one running stack per test module, and a scheduler stub."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from chorus.scheduler.v1 import scheduler_pb2_grpc
from chorus_rpc.channels import open_channel

from tests.stack import Stack, running_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
async def scheduler(stack: Stack) -> AsyncIterator[scheduler_pb2_grpc.SchedulerServiceAsyncStub]:
    async with open_channel(stack.target) as channel:
        yield scheduler_pb2_grpc.SchedulerServiceStub(channel)
