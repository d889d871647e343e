"""Tests of the denoiser over gRPC: a run whose latents are not finite ends at that step, with the cause."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from chorus.denoiser.v1 import denoiser_pb2_grpc
from chorus_rpc import errors
from chorus_rpc.channels import open_channel

from services.contract.tensors import encode_tensor
from tests.integration.denoiser.calls import SECONDS, FakeCache, environment, request, run
from tests.processes import start_service
from tests.tiny_model import TEXT_DIM, save_tiny_model


@pytest.fixture
async def float16_stub(tmp_path: Path, cache_server: tuple[FakeCache, str]) -> AsyncIterator[Any]:
    path = save_tiny_model(tmp_path / "model")
    path.write_text(path.read_text().replace("freq_dim = 16", 'freq_dim = 16\ndtype = "float16"'))
    with start_service("denoiser", environment(path, cache_server[1]), tmp_path) as process:
        async with open_channel(process.target) as channel:
            yield denoiser_pb2_grpc.DenoiserServiceStub(channel)


@pytest.mark.fault("diverging-model")
async def test_run_that_diverges_ends_at_that_step_with_its_cause(
    float16_stub: Any, cache: FakeCache
) -> None:
    what = request()
    # Finite, and beyond the range of float16.
    what.token_states.CopyFrom(encode_tensor(np.full((5, TEXT_DIM), 1e6, np.float32)))
    call = float16_stub.Denoise(what, timeout=SECONDS)
    assert (await call.read()).WhichOneof("event") == "started"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    error = errors.from_rpc_error(caught.value, "denoiser")
    assert errors.reason_name(error.reason) == "MODEL_DIVERGED"
    assert error.message.startswith("tiny: step 1 of 4 gave NaN or infinity in float16 on backend torch;")
    assert "use bfloat16 or float32" in error.message
    assert error.metadata == {"model_id": "tiny", "step": "1", "dtype": "float16", "backend": "torch"}
    assert not cache.entries
    found = await run(float16_stub, request())  # the model itself is sound
    assert found.completed.steps_run == 4
    assert len(cache.entries) == 1
