"""Verifies the service interceptor over a real socket: readiness, deadlines, error mapping, decoding."""

from __future__ import annotations

import asyncio
from typing import cast

import grpc
import grpc.aio
import pytest
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.embedder.v1 import embedder_pb2
from chorus_rpc import errors
from chorus_rpc.channels import calling, open_channel
from chorus_rpc.errors import ChorusError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.runtime.interceptors import Gate, ServiceInterceptor
from tests.tiny_server import embed, fail_with, serve_embedder, succeed


async def test_internal_error_reveals_no_secret() -> None:
    async with serve_embedder(fail_with(RuntimeError("password=hunter2"))) as target:
        with pytest.raises(ChorusError) as caught:
            await embed(target)
    assert caught.value.reason == errors.INTERNAL
    assert "hunter2" not in caught.value.message


async def test_starting_service_refuses_calls() -> None:
    async with serve_embedder(succeed, ready=False) as target:
        with pytest.raises(ChorusError) as caught:
            await embed(target)
    assert caught.value.reason == errors.DEPENDENCY_UNAVAILABLE
    assert "starting" in caught.value.message


async def test_draining_service_refuses_streams() -> None:
    """Covers the kinds of call that the embedder lacks: streamed responses, streamed requests."""
    gate = Gate("cache")
    gate.drain()
    server = grpc.aio.server(interceptors=[ServiceInterceptor(gate, 10.0)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            stub = cache_pb2_grpc.CacheServiceStub(channel)
            with pytest.raises(ChorusError) as fetched, calling("cache"):
                async for _ in stub.Fetch(cache_pb2.FetchRequest(), timeout=5):
                    pass
            with pytest.raises(ChorusError) as admitted, calling("cache"):
                await stub.Admit(iter([cache_pb2.AdmitRequest()]), timeout=5)
    finally:
        await server.stop(None)
    assert fetched.value.reason == admitted.value.reason == errors.SHUTTING_DOWN


@pytest.mark.fault("named-limit")
async def test_call_ends_at_its_time_limit_and_names_its_setting() -> None:
    async def hang(request: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with serve_embedder(hang, call_seconds=0.2) as target:
        with pytest.raises(ChorusError) as caught:
            await embed(target, timeout=30)
    assert caught.value.reason == errors.TIME_LIMIT_EXCEEDED
    assert "took longer than 0.2 s (CHORUS_EMBEDDER_CALL_SECONDS)" in caught.value.message
    assert caught.value.metadata["setting"] == "CHORUS_EMBEDDER_CALL_SECONDS"


@pytest.mark.fault("named-limit")
async def test_timeout_inside_a_handler_is_not_the_limit_of_the_call() -> None:
    async with serve_embedder(fail_with(TimeoutError("timed out"))) as target:
        with pytest.raises(ChorusError) as caught:
            await embed(target)
    assert caught.value.reason == errors.INTERNAL


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"\x0a\x02\xff\xfe", "prompt"),
        (b"\x0a\x02ok\x12\x01\xff", "conditioning_encoder_id"),
        (b"\xff\xff\xff\xff", "EmbedRequest"),
    ],
)
async def test_undecodable_request_names_the_field(raw: bytes, field: str) -> None:
    async with serve_embedder(succeed) as target, grpc.aio.insecure_channel(target) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/chorus.embedder.v1.EmbedderService/Embed", request_serializer=lambda b: b
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(raw, timeout=5)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(cast(grpc.Call, caught.value))
    assert status is not None
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    assert [v.field for v in bad.field_violations] == [field]


@pytest.mark.fault("silent-dependency")
async def test_call_that_failed_for_a_dependency_is_not_repeated_by_the_channel() -> None:
    calls = 0

    async def fail(request: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
        nonlocal calls
        calls += 1
        raise errors.unavailable("s3", "no answer")

    async with serve_embedder(fail) as target:
        with pytest.raises(ChorusError, match="s3 is not available: no answer") as caught:
            await embed(target)
    assert caught.value.metadata == {"service": "s3"}
    assert caught.value.retry_after == 1.0
    assert calls == 1
