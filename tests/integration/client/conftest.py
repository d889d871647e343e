"""A scripted scheduler and cache for the tests of the clients."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.client.fakes import FakeDeployment


@pytest.fixture
async def deployment() -> AsyncIterator[FakeDeployment]:
    running = FakeDeployment()
    await running.start()
    yield running
    await running.stop()
