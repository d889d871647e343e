"""TCP relay on loopback that can fall silent: it accepts connections and forwards nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

HOST: Final = "127.0.0.1"
_CHUNK_BYTES: Final = 1 << 16


class Relay:
    """Forwards connections to a server, in an event loop of its own thread.

    Args:
        target: "host:port" of the server.
    """

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._target_port = int(port)
        self._loop = asyncio.new_event_loop()
        self._forwarding = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.address = ""

    def silence(self) -> None:
        """Forwards nothing from now on; connections stay open and new ones are accepted."""
        self._loop.call_soon_threadsafe(self._forwarding.clear)

    def resume(self) -> None:
        """Forwards what has arrived meanwhile, and all that follows."""
        self._loop.call_soon_threadsafe(self._forwarding.set)

    async def open(self) -> None:
        self._forwarding.set()
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.address = f"{HOST}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self._forwarding.wait()
        try:
            below_reader, below_writer = await asyncio.open_connection(self._host, self._target_port)
        except OSError:
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, below_writer))
                pumps.create_task(self._pump(below_reader, writer))
        except* OSError:
            pass
        finally:
            writer.close()
            below_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._forwarding.wait()
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    def run(self) -> None:
        """Runs the loop until `stop`."""
        self._loop.run_forever()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop


@contextmanager
def running_relay(target: str) -> Iterator[Relay]:
    """Runs a relay to `target`, "host:port", inside the block."""
    relay = Relay(target)
    thread = threading.Thread(target=relay.run, name="relay", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(relay.open(), relay.loop).result(10)
        try:
            yield relay
        finally:
            asyncio.run_coroutine_threadsafe(relay.close(), relay.loop).result(10)
    finally:
        relay.loop.call_soon_threadsafe(relay.loop.stop)
        thread.join(10)
        relay.loop.close()
