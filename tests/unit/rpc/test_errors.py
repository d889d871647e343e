"""Verifies that domain errors cross the wire unchanged, and the collection of violations."""

from __future__ import annotations

import pytest
from chorus.common.v1 import errors_pb2
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from tests.tiny_server import embed, fail_with, serve_embedder


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


def test_violations_are_collected() -> None:
    found = errors.Violations()
    assert found.require(True, "a", "fine")
    assert not found.require(False, "b", "must be 1 to 3, not 9")
    assert not found.require(False, "c", "must not be empty")
    with pytest.raises(ChorusError) as caught:
        found.raise_if_any()
    assert [v.field for v in caught.value.violations] == ["b", "c"]
