"""Verifies that promises about prompts and encoders are kept at submission, or answered with a warning."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, from_rpc_error

from services.contract.tensors import decode_tensor
from tests.integration.scheduler.world import World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.fault("number-promises")]

SECONDS = 20.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with World(tmp_path_factory.mktemp("promises")) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


async def refusal(world: World, prompt: str = "a red car") -> ChorusError | None:
    """Returns the error of a submission; None if it is accepted."""
    try:
        await world.submit(prompt)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error, "scheduler")
    return None


async def refusal_becomes(world: World, *, refused: bool) -> ChorusError | None:
    """Submits until the scheduler refuses or accepts; returns the last answer."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        error = await refusal(world)
        if (error is not None) is refused:
            break
        await asyncio.sleep(0.05)
    return error


@pytest.mark.parametrize("prompt", ["&nbsp;", "\u200b", "&#8203; &amp;nbsp;", "\x07"], ids=ascii)
async def test_prompt_without_text_is_refused_at_submission(world: World, prompt: str) -> None:
    error = await refusal(world, prompt)
    assert error is not None
    assert error.reason == errors.INVALID_FIELD
    assert [violation.field for violation in error.violations] == ["spec.prompt"]


async def test_tokens_beyond_the_models_limit_are_cut_with_a_warning(world: World) -> None:
    world.embedder.tokens = 9  # the model reads 8
    accepted = await world.submit()
    await world.events(accepted)
    ended = await world.get(accepted)
    assert ended.state == pb.GENERATION_STATE_SUCCEEDED
    [request] = world.denoiser.requests
    states = decode_tensor(request.token_states, "token_states", rank=2, max_elements=32)
    np.testing.assert_array_equal(states, np.full((8, 4), len("a red car"), np.float32))
    [warning] = ended.warnings
    assert warning.reason == errors.FIELD_IGNORED
    assert dict(warning.metadata) == {"field": "spec.prompt", "service": "denoiser"}
    assert "the prompt has 9 tokens; small reads the first 8" in warning.message


async def test_prompt_of_as_many_tokens_as_the_model_reads_is_no_warning(world: World) -> None:
    world.embedder.tokens = 8
    accepted = await world.submit()
    await world.events(accepted)
    assert not (await world.get(accepted)).warnings


async def test_model_whose_encoder_is_not_served_is_refused_with_the_cause(tmp_path: Path) -> None:
    async with World(tmp_path, absent={"embedder"}) as world:
        # Unknown while the embedder is down: the job waits.
        assert await refusal(world) is None
        world.embedder.encoders = ["umt5@0123456789abcdef"]
        await world.embedder.start()
        error = await refusal_becomes(world, refused=True)
        assert error is not None
        assert error.reason == errors.UNKNOWN_ENCODER
        assert error.metadata["encoder_id"] == "enc@1"
        assert error.metadata["available"] == "umt5@0123456789abcdef"
        [violation] = error.violations
        assert violation.field == "spec.model_id"
        assert (
            "text.encoder_id is 'enc@1', but the embedder serves umt5@0123456789abcdef"
            in violation.description
        )
        assert "model cannot be served" in world.process.tail()

        # An embedder that serves it makes the model available again.
        await world.embedder.die()
        world.embedder.encoders = ["enc@1"]
        await world.embedder.start()
        assert await refusal_becomes(world, refused=False) is None
