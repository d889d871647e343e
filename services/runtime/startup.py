"""Start of a service: faults that no wait can cure, and what a start that takes too long waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from services.runtime.settings import ServerSettings


class StartupError(Exception):
    """Fault that ends the start of a process. The message names the setting, the cause and the remedy."""


class Progress:
    """What the start of this process waits for; one sentence, empty if nothing was reported."""

    def __init__(self) -> None:
        self.waiting_for = ""


# A process starts once.
progress = Progress()


def name_variable(settings: ServerSettings, field: str) -> str:
    """Returns the environment variable of a setting, for instance CHORUS_CACHE_PORT."""
    return str(settings.model_config.get("env_prefix", "")) + field.upper()


async def limit_start(start: Awaitable[None], settings: ServerSettings) -> None:
    """Awaits the start of a service. Raises StartupError when it takes longer than `startup_seconds`."""
    try:
        async with asyncio.timeout(settings.startup_seconds) as limit:
            await start
    except TimeoutError as error:
        if not limit.expired():
            raise
        detail = f": it still waits for {progress.waiting_for}" if progress.waiting_for else ""
        raise StartupError(
            f"not ready within {settings.startup_seconds:g} s"
            f" ({name_variable(settings, 'startup_seconds')}){detail}"
        ) from error
