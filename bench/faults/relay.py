"""Relay in front of a server, in a thread of its own, that a scenario can silence."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.relay import Relay

_SECONDS: Final = 10.0


class RunningRelay:
    """Relay whose event loop runs in another thread.

    Attributes:
        address: "host:port" at which the relay accepts connections.
    """

    def __init__(self, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
        self.address = relay.target
        self._relay = relay
        self._loop = loop

    def silence(self) -> None:
        """Forwards nothing from now on; connections stay open and new ones are accepted."""
        self._loop.call_soon_threadsafe(self._relay.freeze)

    def resume(self) -> None:
        """Forwards what has arrived meanwhile, and all that follows."""
        self._loop.call_soon_threadsafe(self._relay.thaw)


@contextmanager
def running_relay(target: str) -> Iterator[RunningRelay]:
    """Runs a relay to `target`, "host:port" on this machine, inside the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="relay", daemon=True)
    thread.start()
    relay = Relay(int(target.rpartition(":")[2]))
    try:
        asyncio.run_coroutine_threadsafe(relay.__aenter__(), loop).result(_SECONDS)
        try:
            yield RunningRelay(relay, loop)
        finally:
            closing = relay.__aexit__(None, None, None)
            asyncio.run_coroutine_threadsafe(closing, loop).result(_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_SECONDS)
        loop.close()
