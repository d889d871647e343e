"""Verifies the life of a server: the limit on its start."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.runtime.server import _load

pytestmark = pytest.mark.fault("named-limit")


async def test_start_that_takes_too_long_names_the_setting() -> None:
    with pytest.raises(TimeoutError, match=r"cache .* within 0\.05 s \(CHORUS_CACHE_STARTUP_SECONDS\)"):
        await _load("cache", asyncio.Event().wait(), 0.05)


async def test_timeout_inside_the_start_is_not_the_limit_of_the_start() -> None:
    async def start() -> Any:
        raise TimeoutError("the store did not answer")

    with pytest.raises(TimeoutError, match="the store did not answer"):
        await _load("cache", start(), 60)
