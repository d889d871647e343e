"""Verifies that domain errors cross the wire unchanged, and the collection of violations."""

from __future__ import annotations

import asyncio

import pytest
from chorus.common.v1 import errors_pb2
from chorus.embedder.v1 import embedder_pb2
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from tests.tiny_server import embed, fail_with, serve_embedder, succeed


@pytest.mark.parametrize("reason", [r for r in errors_pb2.ErrorReason.values() if r])
async def test_every_reason_survives_the_wire(reason: errors.Reason) -> None:
    sent = ChorusError(
        reason,
        "what is wrong — and what to do",
        metadata={"service": "milvus"},
        violations=[errors.Violation("prompt", "must not be empty")],
        retry_after=1.5,
    )
    async with serve_embedder(fail_with(sent)) as target:
        with pytest.raises(ChorusError) as caught:
            await embed(target)
    got = caught.value
    assert (got.reason, got.message, got.metadata) == (reason, sent.message, sent.metadata)
    assert (got.violations, got.retry_after) == (sent.violations, 1.5)


@pytest.mark.fault("named-limit")
async def test_message_above_the_limit_names_its_setting() -> None:
    async with serve_embedder(succeed, max_message_bytes=4_096) as target:
        with pytest.raises(ChorusError, match="CHORUS_EMBEDDER_MAX_MESSAGE_BYTES") as caught:
            await embed(target, "x" * 10_000)
    assert caught.value.reason == errors.INVALID_FIELD


@pytest.mark.fault("named-limit")
async def test_too_many_concurrent_calls_name_their_setting() -> None:
    release = asyncio.Event()

    async def wait(request: embedder_pb2.EmbedRequest) -> embedder_pb2.EmbedResponse:
        await release.wait()
        return embedder_pb2.EmbedResponse()

    async with serve_embedder(wait, max_concurrent_calls=1) as target:
        calls = [asyncio.create_task(embed(target)) for _ in range(3)]
        done, _ = await asyncio.wait(calls, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        error = done.pop().exception()
        release.set()
        await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(error, ChorusError)
    assert error.reason == errors.QUEUE_FULL
    assert "CHORUS_EMBEDDER_MAX_CONCURRENT_CALLS" in error.message


def test_violations_are_collected() -> None:
    found = errors.Violations()
    assert found.require(True, "a", "fine")
    assert not found.require(False, "b", "must be 1 to 3, not 9")
    assert not found.require(False, "c", "must not be empty")
    with pytest.raises(ChorusError) as caught:
        found.raise_if_any()
    assert [v.field for v in caught.value.violations] == ["b", "c"]
