"""Verifies that a server keeps the connection of a client that pings at a usual interval."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from services.runtime import server
from services.runtime.server import build_server_options

pytestmark = pytest.mark.fault("deadlines-keepalive")

USUAL_SECONDS = 10.0  # interval of pings that gRPC's documentation and many proxies name as the shortest
SCALE = 50  # the tests run faster by this factor
PINGS = 8  # gRPC ends the connection at the third ping that is too early

# HTTP/2: the client's preface, and the types of the frames that are sent or looked for.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7


def frame(kind: int, payload: bytes = b"") -> bytes:
    """Returns a frame of the connection, without flags."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, 0]) + bytes(4) + payload


async def read_kinds(reader: asyncio.StreamReader) -> set[int]:
    """Reads frames until the server closes the connection; returns their types."""
    kinds: set[int] = set()
    while header := await reader.read(9):
        kinds.add(header[3])
        await reader.readexactly(int.from_bytes(header[:3], "big"))
    return kinds


async def ping(port: int, seconds: float) -> set[int]:
    """Sends PINGS pings at an interval on a connection of its own; returns the types of frames received."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(PREFACE + frame(SETTINGS))
    received = asyncio.create_task(read_kinds(reader))
    for number in range(PINGS):
        writer.write(frame(PING, struct.pack(">Q", number)))
        await asyncio.sleep(seconds)
    writer.write_eof()
    kinds = await asyncio.wait_for(received, 10)
    writer.close()
    return kinds


@asynccontextmanager
async def serve() -> AsyncIterator[int]:
    """Runs a server with the options of the services inside the block; yields its port."""
    running = grpc.aio.server(options=build_server_options(1 << 20))
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    try:
        yield port
    finally:
        await running.stop(None)


@pytest.fixture(autouse=True)
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PING_INTERVAL_SECONDS", server.PING_INTERVAL_SECONDS / SCALE)


async def test_pings_at_a_usual_interval_are_answered() -> None:
    async with serve() as port:
        kinds = await ping(port, USUAL_SECONDS / SCALE)
    assert kinds >= {PING}
    assert GOAWAY not in kinds, "too many pings"


async def test_flood_of_pings_ends_the_connection() -> None:
    async with serve() as port:
        assert GOAWAY in await ping(port, 0.005)
