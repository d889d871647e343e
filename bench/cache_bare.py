"""A bare gRPC server-stream of files from memory, with which `bench.cache` compares Fetch.

`python -m bench.cache_bare FILE…` prints its port, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from chorus_rpc.chunks import chunks

METHOD: Final = "/bench.Bare/Send"


class BareHandler(grpc.GenericRpcHandler):
    """Sends one of several blobs, in chunks; a request is the number of the blob."""

    def __init__(self, blobs: Sequence[bytes]) -> None:
        self._chunks = [list(chunks(blob)) for blob in blobs]

    def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Returns the handler of every method."""

        async def send(request: bytes, _context: object) -> AsyncIterator[bytes]:
            for chunk in self._chunks[int(request)]:
                yield chunk

        stream: Any = send  # the type stubs know handlers of threads only
        return grpc.unary_stream_rpc_method_handler(stream)


async def serve(blobs: Sequence[bytes]) -> None:
    """Serves until the standard input ends."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((BareHandler(blobs),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(serve([Path(name).read_bytes() for name in sys.argv[1:]]))
