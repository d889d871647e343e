"""A TCP relay that can delay bytes, or stop passing them on while its connections stay open."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Relay:
    """Forwards connections to a server on this machine.

    Args:
        port: port of the server.
        delay: time that each piece of data takes in each direction, in seconds.

    Attributes:
        connections: number of connections accepted so far.
    """

    def __init__(self, port: int, delay: float = 0.0) -> None:
        self.connections = 0
        self._port = port
        self._delay = delay
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def freeze(self) -> None:
        """Stops all data: the server seems to accept connections and never to answer."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Lets data flow again."""
        self._flowing.set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._flowing.wait()
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._port)
            await asyncio.gather(self._pump(reader, inner_writer), self._pump(inner_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forwards one direction, in order; every piece arrives `delay` seconds after it was read."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1_000)

        async def read() -> None:
            while data := await reader.read(64 << 10):
                await pieces.put((loop.time() + self._delay, data))
            await pieces.put((loop.time() + self._delay, b""))

        async def write() -> None:
            while True:
                due, data = await pieces.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self._flowing.wait()
                if not data:
                    break
                writer.write(data)
                await writer.drain()
            writer.close()

        await asyncio.gather(read(), write())
