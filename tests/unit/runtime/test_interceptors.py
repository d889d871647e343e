"""Verifies the service interceptor over a real socket: readiness, deadlines, error mapping, decoding."""

from __future__ import annotations

import asyncio
from typing import Any, cast

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
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader

from services.runtime import interceptors
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


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> InMemoryMetricReader:
    """Reader of the metrics of the interceptor."""
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("test")
    monkeypatch.setattr(interceptors, "_RPC_SECONDS", meter.create_histogram("chorus_rpc_seconds"))
    return reader


def count_calls(reader: InMemoryMetricReader) -> dict[tuple[str, str], int]:
    """Returns the number of measured calls by method and status."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    [resource] = data.resource_metrics
    [scope] = resource.scope_metrics
    [metric] = scope.metrics
    counts = {}
    for point in metric.data.data_points:
        assert isinstance(point, HistogramDataPoint)
        assert point.attributes is not None
        counts[str(point.attributes["method"]), str(point.attributes["code"])] = point.count
    return counts


EMBED = "chorus.embedder.v1.EmbedderService/Embed"


async def test_calls_are_measured_by_method_and_status(measured: InMemoryMetricReader) -> None:
    async with serve_embedder(succeed) as target:
        await embed(target)
        await embed(target)
    async with serve_embedder(fail_with(errors.not_found("entry", "x"))) as target:
        with pytest.raises(ChorusError):
            await embed(target)
    async with serve_embedder(succeed, ready=False) as target:
        with pytest.raises(ChorusError):
            await embed(target)
    counts = count_calls(measured)
    assert counts.pop((EMBED, "UNAVAILABLE")) >= 1  # the channel retries
    assert counts == {(EMBED, "OK"): 2, (EMBED, "NOT_FOUND"): 1}


async def test_call_that_its_client_gives_up_is_measured_as_cancelled(measured: InMemoryMetricReader) -> None:
    ended = asyncio.Event()

    async def hang(request: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with serve_embedder(hang) as target:
        with pytest.raises(ChorusError):
            await embed(target, timeout=0.1)
        await asyncio.wait_for(ended.wait(), 30)
    assert count_calls(measured) == {(EMBED, "CANCELLED"): 1}


async def test_names_that_a_caller_invents_are_one_method(measured: InMemoryMetricReader) -> None:
    async with serve_embedder(succeed, ready=False) as target, grpc.aio.insecure_channel(target) as channel:
        for name in ("/chorus.embedder.v1.EmbedderService/Invented", "/invented", "/a/b/c"):
            call: Any = channel.unary_unary(name)
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"", timeout=10)
    assert count_calls(measured) == {("other", "UNAVAILABLE"): 3}
