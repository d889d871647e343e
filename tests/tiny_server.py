"""An embedder with a given behaviour behind the service interceptor, on a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc.aio
from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from chorus_rpc.channels import calling, open_channel

from services.runtime.interceptors import Gate, ServiceInterceptor

Behaviour = Callable[[embedder_pb2.EmbedRequest], Awaitable[embedder_pb2.EmbedResponse]]


class _Servicer(embedder_pb2_grpc.EmbedderServiceServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    async def Embed(
        self,
        request: embedder_pb2.EmbedRequest,
        context: grpc.aio.ServicerContext[embedder_pb2.EmbedRequest, embedder_pb2.EmbedResponse],
    ) -> embedder_pb2.EmbedResponse:
        return await self._behaviour(request)

    async def Align(
        self,
        request: embedder_pb2.AlignRequest,
        context: grpc.aio.ServicerContext[embedder_pb2.AlignRequest, embedder_pb2.AlignResponse],
    ) -> embedder_pb2.AlignResponse:
        raise NotImplementedError

    async def DescribeEncoders(
        self,
        request: embedder_pb2.DescribeEncodersRequest,
        context: grpc.aio.ServicerContext[
            embedder_pb2.DescribeEncodersRequest, embedder_pb2.DescribeEncodersResponse
        ],
    ) -> embedder_pb2.DescribeEncodersResponse:
        raise NotImplementedError


@asynccontextmanager
async def serve_embedder(
    behaviour: Behaviour,
    *,
    ready: bool = True,
    call_seconds: float = 10.0,
    port: int = 0,
    max_message_bytes: int = 4 << 20,
    max_concurrent_calls: int = 100,
) -> AsyncIterator[str]:
    """Serves Embed inside the block; yields the target."""
    gate = Gate("embedder")
    if ready:
        gate.open()
    server = grpc.aio.server(
        interceptors=[ServiceInterceptor(gate, call_seconds)],
        maximum_concurrent_rpcs=max_concurrent_calls,
        options=[("grpc.max_receive_message_length", max_message_bytes)],
    )
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(_Servicer(behaviour), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def embed(
    target: str, prompt: str = "a red circle", timeout: float = 5.0
) -> embedder_pb2.EmbedResponse:
    """Calls Embed as a client of Chorus does."""
    async with open_channel(target) as channel:
        with calling("embedder"):
            return await embedder_pb2_grpc.EmbedderServiceStub(channel).Embed(
                embedder_pb2.EmbedRequest(prompt=prompt), timeout=timeout
            )


async def succeed(request: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
    return embedder_pb2.EmbedResponse(retrieval_encoder_id="test")


def fail_with(error: Exception) -> Behaviour:
    async def behaviour(request: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
        raise error

    return behaviour
