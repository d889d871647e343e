"""Tests over gRPC of a model whose sampler adds fresh noise after every step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from chorus.common.v1 import plan_pb2
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus_rpc import errors
from chorus_rpc.channels import open_channel

from services.contract.identity import identity_digest
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.request import parse_request
from tests.integration.denoiser.calls import (
    SECONDS,
    FakeCache,
    environment,
    failure,
    latents,
    request,
    reusing,
    run,
)
from tests.processes import ServiceProcess, start_service
from tests.tiny_model import save_tiny_model

pytestmark = pytest.mark.fault("sampler")


@pytest.fixture(scope="module")
def renoising(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("renoise"), sampler="renoise")


@pytest.fixture(scope="module")
def renoising_service(
    renoising: Path, cache_server: tuple[FakeCache, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("denoiser")
    with start_service("denoiser", environment(renoising, cache_server[1]), folder) as process:
        yield process


@pytest.fixture
async def stub(renoising_service: ServiceProcess) -> Any:
    async with open_channel(renoising_service.target) as channel:
        yield denoiser_pb2_grpc.DenoiserServiceStub(channel)


def regional(original: denoiser_pb2.DenoiseRequest, entry_id: str) -> denoiser_pb2.DenoiseRequest:
    changed = reusing(original, entry_id, 1)
    changed.plan.region_end = 4
    changed.plan.region.CopyFrom(
        plan_pb2.RegionPlan(
            source=plan_pb2.REGION_SOURCE_FULL_STEP,
            context=plan_pb2.REGION_CONTEXT_NONE,
            threshold=1e-6,
            budget=1.0,
        )
    )
    return changed


async def test_describe_models_reports_the_sampler(stub: Any) -> None:
    [model] = (await stub.DescribeModels(denoiser_pb2.DescribeModelsRequest(), timeout=SECONDS)).models
    assert model.sampler == "renoise"


async def test_runs_repeat_and_differ_from_eulers(stub: Any, model: Path, tmp_path: Path) -> None:
    first, second = [await run(stub, request(admit=False)) for _ in range(2)]
    assert first.video == second.video
    with start_service("denoiser", environment(model, "127.0.0.1:1"), tmp_path) as process:
        async with open_channel(process.target) as channel:
            euler = await run(denoiser_pb2_grpc.DenoiserServiceStub(channel), request(admit=False))
    assert euler.video != first.video


@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_donor_of_the_same_seed_and_prompt_gives_its_own_video(
    stub: Any, cache: FakeCache, steps: int
) -> None:
    whole = await run(stub, request())
    assert whole.admission is not None
    found = await run(stub, reusing(request(admit=False), whole.admission.entry_id, steps))
    assert found.started.reuse_steps == steps
    assert found.video == whole.video


async def test_region_needs_the_donors_seed(stub: Any, cache: FakeCache) -> None:
    whole = await run(stub, request())
    assert whole.admission is not None
    wanted = regional(request(admit=False), whole.admission.entry_id)
    error = await failure(stub, wanted)
    assert error.reason == errors.INVALID_FIELD
    assert [violation.field for violation in error.violations] == ["plan.donor.seed"]
    wanted.plan.donor.seed = 7
    found = await run(stub, wanted)
    assert found.video == whole.video
    assert [step.computed_share for step in found.steps] == [1.0, 0.0, 0.0]  # the first step finds the region


async def test_stored_latents_depend_on_the_seed_after_stage_1(stub: Any, cache: FakeCache) -> None:
    whole = await run(stub, request(seed=1))
    assert whole.admission is not None
    runs = []
    for seed in (2, 3):
        wanted = reusing(request(seed=1), whole.admission.entry_id, 1)
        wanted.seed = seed
        found = await run(stub, wanted)
        assert found.admission is not None
        runs.append(latents(cache, found.admission.entry_id))
    assert runs[0].keys() == runs[1].keys() == {2, 3, 4}
    assert all(runs[0][step] != runs[1][step] for step in (2, 3, 4))


async def test_onnxruntime_computes_the_same_latents(
    renoising: Path, cache_server: tuple[FakeCache, str], cache: FakeCache, tmp_path: Path, stub: Any
) -> None:
    pytest.importorskip("onnxruntime")
    env = {
        **environment(renoising, cache_server[1]),
        "CHORUS_DENOISER_BACKEND": "onnxruntime",
        "CHORUS_DENOISER_BACKEND_FALLBACK": "false",
        "CHORUS_DENOISER_ENGINES": str(tmp_path / "engines"),
    }
    expected = await clean_latents(stub, cache)
    with start_service("denoiser", env, tmp_path) as process:
        async with open_channel(process.target) as channel:
            found = await clean_latents(denoiser_pb2_grpc.DenoiserServiceStub(channel), cache)
    np.testing.assert_allclose(found, expected, atol=1e-3)


async def clean_latents(stub: Any, cache: FakeCache) -> Any:
    outcome = await run(stub, request())
    assert outcome.admission is not None
    return safetensors.numpy.load(latents(cache, outcome.admission.entry_id)[4])["latents"]


def test_sampler_is_part_of_the_identity(renoising: Path, model: Path) -> None:
    identities = [
        identity_digest(parse_request(request(), {"tiny": LoadedModel.load(path)}).identity)
        for path in (renoising, model)
    ]
    assert identities[0] != identities[1]
