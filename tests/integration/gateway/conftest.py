"""Fixtures of the gateway's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.gateway.world import World, running_world


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with running_world(drain_seconds=1) as running:
        yield running
