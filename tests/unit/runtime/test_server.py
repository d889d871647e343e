"""Verifies the life of a server: the limit on its start."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.cache.settings import CacheSettings
from services.runtime.startup import StartupError, limit_start

pytestmark = pytest.mark.fault("named-limit")


async def test_start_that_takes_too_long_names_the_setting() -> None:
    async def start() -> None:
        await asyncio.Event().wait()

    with pytest.raises(StartupError, match=r"within 0\.05 s \(CHORUS_CACHE_STARTUP_SECONDS\)"):
        await limit_start(start(), CacheSettings(startup_seconds=0.05))


async def test_timeout_inside_the_start_is_not_the_limit_of_the_start() -> None:
    async def start() -> Any:
        raise TimeoutError("the store did not answer")

    with pytest.raises(TimeoutError, match="the store did not answer"):
        await limit_start(start(), CacheSettings(startup_seconds=60))
