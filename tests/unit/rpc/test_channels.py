"""Verifies the errors of calls that fail in the channel."""

from __future__ import annotations

import pytest
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from tests.tiny_server import embed, serve_embedder, succeed


async def test_unreachable_service_is_named() -> None:
    with pytest.raises(ChorusError) as caught:
        await embed("127.0.0.1:1", timeout=5)
    assert caught.value.reason == errors.DEPENDENCY_UNAVAILABLE
    assert caught.value.metadata["service"] == "embedder"


async def test_message_above_the_cap_is_an_invalid_field() -> None:
    async with serve_embedder(succeed) as target:
        with pytest.raises(ChorusError) as caught:
            await embed(target, "x" * (5 << 20))
    assert caught.value.reason == errors.INVALID_FIELD
