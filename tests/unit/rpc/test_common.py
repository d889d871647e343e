"""The common room, over real sockets where the wire matters."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import numpy as np
import pytest
from chorus.common.v1 import errors_pb2, latents_pb2
from chorus.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from chorus_rpc import chunks, errors, telemetry, tenancy
from chorus_rpc.channels import calling, open_channel
from chorus_rpc.errors import ChorusError
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from services.contract import identity, safetensors_header, schedule, tensors
from services.runtime.interceptors import Gate, ServiceInterceptor
from services.runtime.settings import ServerSettings, load_settings

Behaviour = Callable[[embedder_pb2.EmbedRequest], Awaitable[embedder_pb2.EmbedResponse]]


@asynccontextmanager
async def embedder(
    behaviour: Behaviour, *, ready: bool = True, call_seconds: float = 10.0
) -> AsyncIterator[str]:
    class Servicer(embedder_pb2_grpc.EmbedderServiceServicer):
        async def Embed(
            self, request: embedder_pb2.EmbedRequest, context: object
        ) -> embedder_pb2.EmbedResponse:  # type: ignore[override]
            return await behaviour(request)

    gate = Gate("embedder")
    if ready:
        gate.open()
    server = grpc.aio.server(interceptors=[ServiceInterceptor(gate, call_seconds)])
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def embed(target: str, timeout: float = 5.0) -> embedder_pb2.EmbedResponse:
    async with open_channel(target) as channel:
        with calling("embedder"):
            reply: embedder_pb2.EmbedResponse = await embedder_pb2_grpc.EmbedderServiceStub(channel).Embed(
                embedder_pb2.EmbedRequest(prompt="a red circle"), timeout=timeout
            )
            return reply


async def ok(request: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
    return embedder_pb2.EmbedResponse(retrieval_encoder_id="test")


def raising(error: Exception) -> Behaviour:
    async def behaviour(request: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
        raise error

    return behaviour


@pytest.mark.parametrize("reason", [r for r in errors_pb2.ErrorReason.values() if r])
async def test_every_reason_survives_the_wire(reason: errors.Reason) -> None:
    sent = ChorusError(
        reason,
        "what is wrong — and what to do",
        metadata={"service": "milvus"},
        violations=[errors.Violation("prompt", "must not be empty")],
        retry_after=1.5,
    )
    async with embedder(raising(sent)) as target:
        with pytest.raises(ChorusError) as caught:
            await embed(target)
    got = caught.value
    assert (got.reason, got.message, got.metadata) == (reason, sent.message, sent.metadata)
    assert (got.violations, got.retry_after) == (sent.violations, 1.5)


async def test_a_fault_of_the_server_tells_nothing_secret() -> None:
    async with embedder(raising(RuntimeError("password=hunter2"))) as target:
        with pytest.raises(ChorusError) as caught:
            await embed(target)
    assert caught.value.reason == errors.INTERNAL
    assert "hunter2" not in caught.value.message


async def test_a_service_that_is_not_there_is_named() -> None:
    with pytest.raises(ChorusError) as caught:
        await embed("127.0.0.1:1", timeout=5)
    assert caught.value.reason == errors.DEPENDENCY_UNAVAILABLE
    assert caught.value.metadata["service"] == "embedder"


async def test_a_service_that_is_starting_refuses() -> None:
    async with embedder(ok, ready=False) as target:
        with pytest.raises(ChorusError) as caught:
            await embed(target)
    assert caught.value.reason == errors.DEPENDENCY_UNAVAILABLE
    assert "starting" in caught.value.message


async def test_a_call_cannot_last_longer_than_its_bound() -> None:
    async def stuck(request: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with embedder(stuck, call_seconds=0.2) as target:
        with pytest.raises(ChorusError) as caught:
            await embed(target, timeout=30)
    assert caught.value.reason == errors.DEADLINE_EXCEEDED


async def test_a_message_above_the_cap_is_the_callers_fault() -> None:
    async with embedder(ok) as target, open_channel(target) as channel:
        with pytest.raises(ChorusError) as caught, calling("embedder"):
            await embedder_pb2_grpc.EmbedderServiceStub(channel).Embed(
                embedder_pb2.EmbedRequest(prompt="x" * (5 << 20)), timeout=5
            )
    assert caught.value.reason == errors.INVALID_FIELD


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"\x0a\x02\xff\xfe", "prompt"),
        (b"\x0a\x02ok\x12\x01\xff", "conditioning_encoder_id"),
        (b"\xff\xff\xff\xff", "EmbedRequest"),
    ],
)
async def test_bytes_that_are_no_request_name_the_field(raw: bytes, field: str) -> None:
    async with embedder(ok) as target, grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_unary(
            "/chorus.embedder.v1.EmbedderService/Embed", request_serializer=lambda b: b
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(raw, timeout=5)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status is not None
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    assert [v.field for v in bad.field_violations] == [field]


def test_violations_are_collected() -> None:
    found = errors.Violations()
    assert found.require(True, "a", "fine")
    assert not found.require(False, "b", "must be 1 to 3, not 9")
    assert not found.require(False, "c", "must not be empty")
    with pytest.raises(ChorusError) as caught:
        found.raise_if_any()
    assert [v.field for v in caught.value.violations] == ["b", "c"]


# identity


def an_identity() -> latents_pb2.LatentIdentity:
    return latents_pb2.LatentIdentity(
        model_id="m",
        weights_digest="ab",
        adapters=[latents_pb2.Adapter(adapter_id="l", digest="cd", scale=0.5)],
        schedule=latents_pb2.Schedule(sigmas=[1.0, 0.5, 0.0]),
        latent_shape=[24, 4, 16, 16],
        latent_dtype=latents_pb2.D_TYPE_FLOAT32,
        codec_id="c",
        conditioning_encoder_id="e",
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_id", "other"),
        ("weights_digest", "ac"),
        ("codec_id", "d"),
        ("conditioning_encoder_id", "f"),
        ("latent_dtype", latents_pb2.D_TYPE_BFLOAT16),
    ],
)
def test_every_field_of_an_identity_counts(field: str, value: object) -> None:
    other = an_identity()
    setattr(other, field, value)
    assert identity.identity_digest(other) != identity.identity_digest(an_identity())


def test_nested_fields_of_an_identity_count() -> None:
    digests = {identity.identity_digest(an_identity())}
    for change in (
        lambda i: i.adapters[0].__setattr__("scale", 0.25),
        lambda i: i.schedule.sigmas.__setitem__(1, 0.6),
        lambda i: i.latent_shape.__setitem__(1, 5),
        lambda i: i.adapters.pop(),
    ):
        other = an_identity()
        change(other)
        digests.add(identity.identity_digest(other))
    assert len(digests) == 5
    assert identity.identity_digest(an_identity()) in digests


def test_latent_shapes() -> None:
    wan = {"channels": 16, "temporal_factor": 4, "spatial_factor": 8, "causal": True}
    assert identity.latent_shape(**wan, frames=81, height=480, width=832) == (16, 21, 60, 104)  # type: ignore[arg-type]
    s2d = {"channels": 24, "temporal_factor": 2, "spatial_factor": 2, "causal": False}
    assert identity.latent_shape(**s2d, frames=8, height=32, width=32) == (24, 4, 16, 16)  # type: ignore[arg-type]


def test_entry_ids_keep_tenants_and_seeds_apart() -> None:
    ids = {identity.entry_id(t, "i", p, s) for t in ("a", "b") for p in ("x", "y") for s in (0, 1)}
    assert len(ids) == 8


# schedule


@given(st.integers(1, 200), st.floats(0.5, 20))
def test_shifted_schedules_are_valid(steps: int, shift: float) -> None:
    assert schedule.find_schedule_fault(schedule.shifted_schedule(steps, shift)) is None


def test_the_published_four_step_schedule() -> None:
    assert schedule.shifted_schedule(4, 5) == pytest.approx([1, 0.9375, 5 / 6, 0.625, 0])


@pytest.mark.parametrize(
    "sigmas",
    [
        [],
        [1.0],
        [1.0, 0.5],
        [1.0, 0.5, 0.5, 0.0],
        [0.5, 1.0, 0.0],
        [1.5, 0.0],
        [0.0, 0.0],
        [float("nan"), 0.0],
        [1.0, float("nan"), 0.0],
        [1.0, -0.5, 0.0],
        [1 - i / 400 for i in range(401)],
    ],
)
def test_schedules_that_are_none_say_why(sigmas: list[float]) -> None:
    assert schedule.find_schedule_fault(sigmas)


# blobs


def safetensors_file(shape: list[int], payload: bytes) -> bytes:
    header = json.dumps(
        {"latents": {"dtype": "F32", "shape": shape, "data_offsets": [0, len(payload)]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + payload


@given(st.binary(min_size=1, max_size=5000), st.integers(1, 700))
def test_chunks_come_together_again(data: bytes, size: int) -> None:
    assembler = chunks.BlobAssembler(len(data), chunks.sha256(data), 5000)
    for chunk in chunks.chunks(data, size):
        assembler.add(chunk)
    assert assembler.finish() == data


def test_a_blob_that_is_not_what_was_announced_is_refused() -> None:
    with pytest.raises(chunks.BlobFault, match="bound"):
        chunks.BlobAssembler(11, "", 10)
    short = chunks.BlobAssembler(3, chunks.sha256(b"abc"), 10)
    short.add(b"ab")
    with pytest.raises(chunks.BlobFault, match="2 of 3"):
        short.finish()
    with pytest.raises(chunks.BlobFault, match="more than"):
        short.add(b"cd")
    altered = chunks.BlobAssembler(3, chunks.sha256(b"abc"), 10)
    altered.add(b"abd")
    with pytest.raises(chunks.BlobFault, match="SHA-256"):
        altered.finish()


def test_a_safetensors_header_is_read_and_checked() -> None:
    good = safetensors_file([2, 3], bytes(24))
    assert safetensors_header.safetensors_header(good) == [
        safetensors_header.TensorHeader("latents", "F32", (2, 3))
    ]
    for bad in (good[:-1], good + b"x", good[:12], b"", b"PK\x03\x04" * 9, bytes(40)):
        with pytest.raises(chunks.BlobFault):
            safetensors_header.safetensors_header(bad)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_header_reader_fail_otherwise(data: bytes) -> None:
    try:
        safetensors_header.safetensors_header(data)
    except chunks.BlobFault:
        return
    assert len(data) >= 10


# tensors


def test_tensors_travel() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for dtype in (np.float32, np.float16):
        message = tensors.encode_tensor(array.astype(dtype))
        assert np.array_equal(tensors.decode_tensor(message, "t", rank=2, max_elements=6), array)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dtype": latents_pb2.D_TYPE_BFLOAT16}, "t.dtype"),
        ({"shape": [2, 3, 1]}, "t.shape"),
        ({"shape": [0, 3]}, "t.shape"),
        ({"shape": [2**31, 2**31]}, "t.shape"),
        ({"data": b"123"}, "t.data"),
        ({"data": np.full(6, np.nan, np.float32).tobytes()}, "t.data"),
    ],
)
def test_tensors_that_are_none_name_the_field(change: dict[str, object], field: str) -> None:
    message = tensors.encode_tensor(np.zeros((2, 3), np.float32))
    for name in change:
        message.ClearField(name)  # type: ignore[arg-type]
    message.MergeFrom(latents_pb2.Tensor(**change))  # type: ignore[arg-type]
    with pytest.raises(ChorusError) as caught:
        tensors.decode_tensor(message, "t", rank=2, max_elements=100)
    assert [v.field for v in caught.value.violations] == [field]


# settings, tenancy, telemetry


def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "70000")
    with pytest.raises(SystemExit) as caught:
        load_settings(ServerSettings)
    assert caught.value.code == 2
    assert "PORT" in capsys.readouterr().err


def test_tenants_are_checked() -> None:
    assert tenancy.read_tenant(None) == "default"
    assert tenancy.read_tenant([("other", "x"), ("chorus-tenant", "acme-1")]) == "acme-1"
    for bad in ("", "A", "a/b", "a" * 64, "-a", 'a" or 1==1'):
        with pytest.raises(ChorusError):
            tenancy.read_tenant([("chorus-tenant", bad)])


def test_tracing_off_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert not telemetry.configure("test")
    with telemetry.span("x", {"a": 1}) as span:
        span.set_attribute("b", 2)
        assert telemetry.traceparent() == ""
    assert telemetry.client_interceptors() == telemetry.server_interceptors() == []


def test_trace_ids_are_read_from_traceparents() -> None:
    assert telemetry.parse_trace_id("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") == (
        "0af7651916cd43dd8448eb211c80319c"
    )
    assert telemetry.parse_trace_id("") == telemetry.parse_trace_id("x-y") == ""
