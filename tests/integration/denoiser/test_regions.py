"""Tests of stage 2 and amplification over gRPC: data that is fetched, computed and reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from chorus.common.v1 import plan_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc import errors

from tests.integration.denoiser.calls import (
    SIDE,
    FakeCache,
    environment,
    failure,
    latents,
    request,
    reusing,
    run,
)
from tests.processes import ServiceProcess, start_service
from tests.tiny_model import TEXT_DIM

CONTRAST = plan_pb2.Amplification(form=plan_pb2.AMPLIFICATION_FORM_CONTRAST, strength=0.5)


@pytest.fixture(scope="module", params=["torch", "onnxruntime"])
def service(
    request: pytest.FixtureRequest,
    model: Path,
    cache_server: tuple[FakeCache, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServiceProcess]:
    """Runs the denoiser on each backend of a CPU. No other backend replaces it."""
    pytest.importorskip(request.param)
    folder = tmp_path_factory.mktemp("denoiser")
    env = {
        **environment(model, cache_server[1]),
        "CHORUS_DENOISER_BACKEND": request.param,
        "CHORUS_DENOISER_BACKEND_FALLBACK": "false",
        "CHORUS_DENOISER_ENGINES": str(folder / "engines"),
    }
    with start_service("denoiser", env, folder) as process:
        yield process


def wanted(seed: int = 2) -> denoiser_pb2.DenoiseRequest:
    """Returns a request that is large enough for side data within its bound."""
    return request(seed=seed, side=32)


def regional(
    entry_id: str, first: int, end: int, source: str = "PROBE", **region: Any
) -> denoiser_pb2.DenoiseRequest:
    what = reusing(wanted(), entry_id, first)
    what.plan.region_end = end
    what.plan.region.CopyFrom(
        plan_pb2.RegionPlan(
            source=plan_pb2.RegionSource.Value(f"REGION_SOURCE_{source}"),
            context=plan_pb2.REGION_CONTEXT_NONE,
            **{"threshold": 0.5, "budget": 1.0, **region},
        )
    )
    return what


async def donor(stub: Any) -> str:
    found = await run(stub, wanted(seed=1))
    assert found.admission is not None
    assert found.admission.entry_id, found.admission.error
    return str(found.admission.entry_id)


async def test_side_data_takes_at_most_a_tenth_of_the_latents(stub: Any, cache: FakeCache) -> None:
    blobs = latents(cache, await donor(stub))
    side = safetensors.numpy.load(blobs[SIDE])
    assert side["text"].shape == (5, TEXT_DIM)
    assert side["maps"].shape == (5, 2, 8, 8)
    assert (side["maps"].reshape(5, -1).max(axis=1) == 255).all()
    assert len(blobs[SIDE]) <= sum(len(blobs[i]) for i in range(1, 5)) / 10


async def test_region_is_computed_and_reported(stub: Any, cache: FakeCache) -> None:
    what = regional(await donor(stub), 1, 4, "ATTENTION", threshold=0.9)
    what.plan.lost.add(index=2, weight=1.0)
    found = await run(stub, what)
    assert not found.started.HasField("degraded"), found.started.degraded
    assert [s.step.index for s in found.steps] == [2, 3, 4]
    for step in found.steps:
        assert list(step.token_grid) == [2, 8, 8]
        active = sum(byte.bit_count() for byte in step.active_tokens)
        assert 0 < active < 2 * 8 * 8
        assert step.computed_share == pytest.approx(active / (2 * 8 * 8))


async def test_region_of_all_tokens_gives_the_video_of_full_steps(stub: Any, cache: FakeCache) -> None:
    entry = await donor(stub)
    plain = await run(stub, reusing(wanted(), entry, 2))
    everything = await run(stub, regional(entry, 2, 4, "FULL_STEP", threshold=0.0, dilation=8))
    assert everything.video == plain.video
    assert [s.computed_share for s in everything.steps] == [1.0, 1.0]


async def test_amplification_changes_the_video_and_strength_zero_does_not(
    stub: Any, cache: FakeCache
) -> None:
    entry = await donor(stub)
    plain = reusing(wanted(), entry, 2)
    amplified = reusing(wanted(), entry, 2)
    amplified.plan.amplification.CopyFrom(CONTRAST)
    assert admitted_latents(cache, await run(stub, amplified)) != admitted_latents(
        cache, await run(stub, plain)
    )
    amplified.plan.amplification.strength = 0.0
    assert admitted_latents(cache, await run(stub, amplified)) == admitted_latents(
        cache, await run(stub, plain)
    )


def admitted_latents(cache: FakeCache, found: Any) -> bytes:
    return latents(cache, found.admission.entry_id)[3]


async def test_renoised_plan_fetches_clean_latents_and_stores_its_own(stub: Any, cache: FakeCache) -> None:
    entry = await donor(stub)
    plain = await run(stub, reusing(wanted(), entry, 2))
    assert plain.admission is not None
    other = latents(cache, plain.admission.entry_id)[4]
    for step in (1, 2, 3):
        del latents(cache, entry)[step]
    what = reusing(wanted(), entry, 2)
    what.plan.renoised = True
    found = await run(stub, what)
    assert not found.started.HasField("degraded"), found.started.degraded
    assert (found.started.reuse_steps, found.completed.steps_run) == (2, 2)
    assert found.admission is not None
    kept = latents(cache, found.admission.entry_id)
    assert set(kept) == {3, 4, SIDE}, "x_2 still shows the donor's prompt"
    assert kept[4] != other
    assert (await run(stub, what)).video == found.video


async def test_draft_needs_the_latents_of_its_step_and_uses_the_seed(stub: Any, cache: FakeCache) -> None:
    entry = await donor(stub)
    for step in (1, 2, 4):
        del latents(cache, entry)[step]
    what = reusing(wanted(), entry, 2)
    what.plan.draft_step = 3
    found = await run(stub, what)
    assert not found.started.HasField("degraded"), found.started.degraded
    assert (found.started.reuse_steps, found.completed.steps_run) == (2, 3)
    assert [(s.step.index, s.draft) for s in found.steps] == [(2, True), (3, False), (4, False)]
    assert found.admission is not None
    assert set(latents(cache, found.admission.entry_id)) == {3, 4, SIDE}, "x_2 is the draft's"
    assert (await run(stub, what)).video == found.video
    what.seed += 1
    assert (await run(stub, what)).video != found.video


async def test_missing_side_data_leads_to_full_computation(stub: Any, cache: FakeCache) -> None:
    entry = await donor(stub)
    del latents(cache, entry)[SIDE]
    what = reusing(wanted(), entry, 2)
    what.plan.amplification.CopyFrom(CONTRAST)
    found = await run(stub, what)
    assert found.started.degraded.reason == errors.NOT_FOUND
    assert "side data" in found.started.degraded.message
    assert (found.started.reuse_steps, found.completed.steps_run) == (0, 4)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"region_end": 5}, "plan.region_end"),
        ({"region_end": 1}, "plan.region_end"),
        ({"region_end": 0}, "plan.region"),
        ({"renoised": True}, "plan.renoised"),
        ({"draft_step": 3}, "plan.draft_step"),
        ({"region": {"threshold": 1.5}}, "plan.region.threshold"),
        ({"region": {"budget": float("nan")}}, "plan.region.budget"),
        ({"region": {"dilation": 9}}, "plan.region.dilation"),
        ({"region": {"source": 0}}, "plan.region.source"),
        ({"region": {"context": 0}}, "plan.region.context"),
        ({"amplification": {"form": 1, "strength": 5.0}}, "plan.amplification.strength"),
        ({"amplification": {"strength": 1.0}}, "plan.amplification.form"),
        ({"amplification": {"form": 1, "first_step": 3, "end_step": 2}}, "plan.amplification.end_step"),
        ({"gained": [{"index": 1, "weight": 2.0}]}, "plan.gained"),
    ],
)
async def test_plan_out_of_bounds_is_rejected_by_field(stub: Any, change: dict[str, Any], field: str) -> None:
    what = regional("0" * 64, 2, 4)
    for name, value in change.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                setattr(getattr(what.plan, name), key, inner)
        elif isinstance(value, list):
            what.plan.gained.extend(plan_pb2.WeightedToken(**each) for each in value)
        else:
            setattr(what.plan, name, value)
    error = await failure(stub, what)
    assert error.reason == errors.INVALID_FIELD
    assert field in [violation.field for violation in error.violations]
