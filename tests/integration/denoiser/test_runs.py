"""Tests of the denoiser over gRPC: misses, hits, admissions."""

from __future__ import annotations

import hashlib
import io
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import safetensors.numpy
from chorus.cache.v1 import cache_pb2, cache_pb2_grpc
from chorus.common.v1 import latents_pb2
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus_rpc.channels import open_channel
from PIL import Image

from services.contract.schedule import shifted_schedule
from services.denoiser.model.identity import model_digest
from services.denoiser.model.spec import load_spec
from tests.integration.denoiser.calls import (
    SECONDS,
    SIGMAS,
    VECTOR,
    FakeCache,
    environment,
    latents,
    request,
    reusing,
    run,
)
from tests.processes import ServiceProcess, free_port
from tests.tiny_model import ENCODER_ID


async def test_miss_runs_every_step_and_is_admitted(stub: Any, cache: FakeCache) -> None:
    what = request()
    found = await run(stub, what, metadata=(("chorus-tenant", "studio"),))
    assert found.kinds == [
        "started", *["step_completed"] * 4, "video_header", "video_chunk", "completed", "admission",
    ]  # fmt: skip
    assert (found.started.reuse_steps, found.started.total_steps) == (0, 4)
    assert not found.started.HasField("donor")
    assert not found.started.HasField("degraded")
    assert [(s.step.index, s.step.sigma) for s in found.steps] == list(enumerate(SIGMAS))[1:]
    assert found.completed.steps_run == 4
    assert found.completed.denoise_seconds >= sum(s.seconds for s in found.steps) > 0

    assert found.header.media_type == "video/mp4"
    assert found.header.size_bytes == len(found.video)
    assert found.header.digest == hashlib.sha256(found.video).hexdigest()
    shape = (found.header.frames, found.header.height, found.header.width)
    assert shape == (2, 16, 16)
    with av.open(io.BytesIO(found.video), mode="r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (len(frames), *frames[0].shape) == (2, 16, 16, 3)

    thumbnail = found.header.thumbnail
    assert (thumbnail.media_type, thumbnail.height, thumbnail.width) == ("image/jpeg", 16, 16)
    assert thumbnail.digest == hashlib.sha256(found.completed.thumbnail).hexdigest()
    assert thumbnail.size_bytes == len(found.completed.thumbnail)
    with Image.open(io.BytesIO(found.completed.thumbnail)) as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    first, middle = (np.abs(shown - frame).mean() for frame in frames)
    assert middle < first / 2, "it is the middle frame"

    assert found.admission is not None
    entry, blobs = cache.entries[found.admission.entry_id]
    assert cache.tenants == ["studio"]
    assert sorted(blobs) == [1, 2, 3, 4]
    tensors = [safetensors.numpy.load(blob) for blob in blobs.values()]
    assert all(list(t) == ["latents"] and t["latents"].shape == (12, 2, 4, 4) for t in tensors)
    assert list(entry.identity.latent_shape) == [12, 2, 4, 4]
    assert entry.identity.conditioning_encoder_id == ENCODER_ID
    assert (entry.prompt, entry.seed, entry.generation_id) == ("prompt 7", 7, what.generation_id)
    assert entry.cost_seconds == pytest.approx(found.completed.denoise_seconds)


async def test_equal_requests_give_equal_bytes_after_other_runs(stub: Any, cache: FakeCache) -> None:
    first = await run(stub, request())
    assert first.admission is not None
    before = latents(cache, first.admission.entry_id)
    await run(stub, request(seed=2**64 - 1, sigmas=shifted_schedule(9, 3.0), side=12))
    again = await run(stub, request())
    assert latents(cache, first.admission.entry_id) == before
    assert again.video == first.video


@pytest.mark.parametrize("depth", [1, 2, 3])
async def test_hit_continues_from_the_donors_latents(stub: Any, cache: FakeCache, depth: int) -> None:
    full = await run(stub, request())
    assert full.admission is not None
    before = latents(cache, full.admission.entry_id)
    hit = await run(stub, reusing(request(), full.admission.entry_id, depth))
    assert (hit.started.reuse_steps, hit.started.donor.entry_id) == (depth, full.admission.entry_id)
    assert not hit.started.HasField("degraded")
    assert [s.step.index for s in hit.steps] == list(range(depth + 1, 5))
    assert hit.completed.steps_run == 4 - depth
    # The donor was the same request, so the remaining steps are identical to the last bit.
    assert hit.video == full.video
    after = latents(cache, full.admission.entry_id)
    # With one step left the run has no latents that the donor's entry lacks: it is not admitted.
    admitted = range(depth + 1, 5) if depth < 3 else range(1, 5)
    assert bool(hit.admission and hit.admission.entry_id) == (depth < 3)
    assert after == {index: before[index] for index in admitted}


async def test_plan_that_reuses_every_step_decodes_the_donors_result(stub: Any, cache: FakeCache) -> None:
    full = await run(stub, request())
    assert full.admission is not None
    before = latents(cache, full.admission.entry_id)
    repeat = await run(stub, reusing(request(), full.admission.entry_id, 4))
    assert (repeat.started.reuse_steps, repeat.steps, repeat.completed.steps_run) == (4, [], 0)
    assert repeat.video == full.video
    assert repeat.admission == denoiser_pb2.Admission()
    assert latents(cache, full.admission.entry_id) == before
    lost = await run(stub, reusing(request(), "0" * 64, 4))
    assert (lost.started.reuse_steps, lost.completed.steps_run) == (0, 4)
    assert lost.video == full.video


async def test_hit_stores_only_latents_that_it_computed(stub: Any, cache: FakeCache) -> None:
    donor = await run(stub, request(seed=1))
    assert donor.admission is not None
    target = await run(stub, reusing(request(seed=2), donor.admission.entry_id, 2))
    assert target.admission is not None
    theirs, ours = latents(cache, donor.admission.entry_id), latents(cache, target.admission.entry_id)
    assert sorted(ours) == [3, 4], "x_2 is the donor's, and stays under the donor's prompt"
    assert ours[3] != theirs[3]


@pytest.mark.parametrize("depth", [2, 3])
async def test_hit_is_stored_as_the_approximation_that_the_request_names(
    stub: Any, cache: FakeCache, depth: int
) -> None:
    donor = await run(stub, request(seed=1))
    assert donor.admission is not None
    approximation = latents_pb2.Approximation(policy="balanced", max_reuse_steps=3)
    hit = reusing(request(seed=2), donor.admission.entry_id, depth)
    hit.admission.approximation.CopyFrom(approximation)
    first = await run(stub, hit)
    assert first.admission is not None
    entry, blobs = cache.entries[first.admission.entry_id]
    assert entry.identity.approximation == approximation
    assert sorted(blobs) == [4], "what a hit computed on the way is no donor"

    repeat = reusing(request(seed=2), first.admission.entry_id, 4)
    repeat.plan.donor.approximation.CopyFrom(approximation)
    again = await run(stub, repeat)
    assert (again.started.reuse_steps, again.completed.steps_run) == (4, 0)
    assert again.video == first.video

    lost = reusing(request(seed=2), "0" * 64, depth)
    lost.admission.approximation.CopyFrom(approximation)
    full = await run(stub, lost)
    assert full.admission is not None
    entry, blobs = cache.entries[full.admission.entry_id]
    assert not entry.identity.HasField("approximation"), "without its donor the run is a full computation"
    assert sorted(blobs) == [1, 2, 3, 4]


async def test_nothing_is_stored_unless_requested(stub: Any, cache: FakeCache) -> None:
    found = await run(stub, request(admit=False))
    assert found.kinds[-1] == "completed"
    assert not cache.entries


async def test_run_of_one_step_stores_nothing(stub: Any, cache: FakeCache) -> None:
    found = await run(stub, request(sigmas=[1.0, 0.0]))
    assert found.completed.steps_run == 1
    assert found.admission == denoiser_pb2.Admission()
    assert not cache.entries


async def test_model_is_described_with_its_measured_speed(stub: Any) -> None:
    reply = await stub.DescribeModels(denoiser_pb2.DescribeModelsRequest(), timeout=SECONDS)
    [info] = reply.models
    assert (info.model_id, info.conditioning_encoder_id) == ("tiny", ENCODER_ID)
    assert (info.codec.latent_channels, info.codec.spatial_factor, info.codec.causal) == (12, 2, False)
    assert (info.height.min, info.height.max, info.height.multiple) == (8, 64, 4)
    assert list(info.default_schedule.sigmas) == SIGMAS
    assert info.seconds_per_step > 0
    warm = await stub.Warm(denoiser_pb2.WarmRequest(model_id="tiny"), timeout=SECONDS)
    assert warm.model.seconds_per_step > 0


async def test_hit_with_the_real_cache_reuses_latents(model: Path, tmp_path: Path) -> None:
    store = {
        "CHORUS_CACHE_MILVUS_URI": str(tmp_path / "milvus.db"),
        "CHORUS_CACHE_BLOB_DIR": str(tmp_path / "blobs"),
        "CHORUS_CACHE_MILVUS_SECONDS": str(SECONDS),
    }
    cache = ServiceProcess("cache", store, free_port(), tmp_path / "cache.log")
    process = ServiceProcess(
        "denoiser", environment(model, cache.target), free_port(), tmp_path / "denoiser.log"
    )
    with ExitStack() as cleanup:
        for each in (cache, process):
            each.start(wait=False)
            cleanup.callback(each.stop)
        for each in (cache, process):
            each.wait()
        async with open_channel(process.target) as channel, open_channel(cache.target) as cache_channel:
            stub = denoiser_pb2_grpc.DenoiserServiceStub(channel)
            full = await run(stub, request())
            assert full.admission is not None
            assert full.admission.entry_id, full.admission.error
            lookup = cache_pb2.LookupRequest(
                identity=identity(model), retrieval_encoder_id="retrieval@1", vector=VECTOR, limit=1
            )
            reply = await cache_pb2_grpc.CacheServiceStub(cache_channel).Lookup(lookup, timeout=SECONDS)
            [donor] = reply.donors
            assert donor.entry.entry_id == full.admission.entry_id
            assert [blob.step.index for blob in donor.entry.blobs] == [1, 2, 3, 4]
            hit = await run(stub, reusing(request(), donor.entry.entry_id, 3))
            assert hit.started.reuse_steps == 3
            assert hit.video == full.video


def identity(model: Path) -> latents_pb2.LatentIdentity:
    digest = hashlib.sha256((model.parent / "weights.safetensors").read_bytes()).hexdigest()
    return latents_pb2.LatentIdentity(
        model_id="tiny",
        weights_digest=digest,
        model_digest=model_digest(load_spec(model), fp8=False),
        schedule=latents_pb2.Schedule(sigmas=SIGMAS),
        latent_shape=[12, 2, 4, 4],
        latent_dtype=latents_pb2.D_TYPE_FLOAT32,
        codec_id="space-to-depth-1x2x2",
        conditioning_encoder_id=ENCODER_ID,
    )
