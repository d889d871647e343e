"""Tests of denoiser and cache over gRPC: a changed model file does not find the latents of the old one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.common.v1 import latents_pb2, video_pb2
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus.scheduler.v1 import scheduler_pb2
from chorus_rpc import errors
from chorus_rpc.channels import open_channel

from services.scheduler.peers.messages import build_latent_identity
from tests.integration.denoiser.calls import SECONDS, SIGMAS, VECTOR, environment, request, reusing, run
from tests.processes import start_service
from tests.tiny_model import save_tiny_model


@asynccontextmanager
async def serve(model: Path, cache_target: str, folder: Path) -> AsyncIterator[Any]:
    with start_service("denoiser", environment(model, cache_target), folder) as process:
        async with open_channel(process.target) as channel:
            yield denoiser_pb2_grpc.DenoiserServiceStub(channel)


async def look_up(stub: Any, cache: Any) -> list[str]:
    """Returns the donors that the scheduler finds for a request of the described model."""
    reply = await stub.DescribeModels(denoiser_pb2.DescribeModelsRequest(), timeout=SECONDS)
    spec = scheduler_pb2.GenerationSpec(
        shape=video_pb2.VideoShape(frames=2, height=8, width=8),
        schedule=latents_pb2.Schedule(sigmas=SIGMAS),
    )
    identity = build_latent_identity(spec, reply.models[0])
    lookup = cache_pb2.LookupRequest(
        identity=identity, retrieval_encoder_id="retrieval@1", vector=VECTOR, limit=1
    )
    return [donor.entry.entry_id for donor in (await cache.Lookup(lookup, timeout=SECONDS)).donors]


@pytest.mark.fault("identity")
async def test_changed_model_file_does_not_find_the_latents_of_the_old_one(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    store = {
        "CHORUS_CACHE_MILVUS_URI": str(tmp_path / "milvus.db"),
        "CHORUS_CACHE_BLOB_DIR": str(tmp_path / "blobs"),
        "CHORUS_CACHE_MILVUS_SECONDS": str(SECONDS),
        "CHORUS_CACHE_KEYLESS_TENANTS": "*",
    }
    for name in ("cache", "before", "after"):
        (tmp_path / name).mkdir()
    with start_service("cache", store, tmp_path / "cache") as process:
        async with open_channel(process.target) as channel:
            cache = cache_pb2_grpc.CacheServiceStub(channel)
            async with serve(model, process.target, tmp_path / "before") as stub:
                full = await run(stub, request())
                assert full.admission is not None
                entry_id = full.admission.entry_id
                assert await look_up(stub, cache) == [entry_id]
            model.write_text(model.read_text().replace("attend_padding = false", "attend_padding = true"))
            async with serve(model, process.target, tmp_path / "after") as stub:
                assert await look_up(stub, cache) == []
                found = await run(stub, reusing(request(), entry_id, 3))  # planned before the restart
                assert found.started.degraded.reason == errors.NOT_FOUND
                assert found.completed.steps_run == 4
                assert found.video != full.video
