"""Verifies how donors become plans: aligned prompts, and plans stated by the request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from chorus.cache.v1 import cache_pb2
from chorus.common.v1 import errors_pb2, latents_pb2, plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import INVALID_FIELD, from_rpc_error
from chorus_rpc.plan_bounds import DEFAULT_REGION

from tests.integration.scheduler.world import World, kinds

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with World(tmp_path_factory.mktemp("plans")) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


OWN = pb.ExplicitReuse(
    reuse_steps=1,
    region_end=3,
    amplification=plan_pb2.Amplification(form=plan_pb2.AMPLIFICATION_FORM_BIAS, strength=1.0),
)


async def test_donors_are_aligned_by_their_prompts(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    await world.events(await world.submit("a red car"))
    [request] = world.embedder.aligned
    assert (request.target_prompt, list(request.donor_prompts)) == ("a red car", ["a donor's prompt"])
    assert request.conditioning_encoder_id == "enc@1"


async def test_reuse_continues_when_prompts_cannot_be_aligned(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    world.embedder.cannot_align = True
    accepted = await world.submit()
    await world.events(accepted)
    ended = await world.get(accepted)
    assert ended.plan.reuse_steps == 3
    assert not ended.plan.edit
    [warning] = ended.warnings
    assert warning.reason == errors.INTERNAL
    assert warning.metadata["service"] == "embedder"
    assert warning.message.startswith("the prompts could not be compared with the donors': ")


async def test_prompts_are_not_compared_if_the_setting_is_off(tmp_path: Path) -> None:
    async with World(tmp_path, {"CHORUS_SCHEDULER_COMPARE_PROMPTS": "false"}) as world:
        world.cache.hold(0.9992, 1, 2, 3)
        accepted = await world.submit()
        await world.events(accepted)
        assert (await world.get(accepted)).plan.reuse_steps == 3
        assert not world.embedder.aligned


async def test_requests_own_plan_reaches_the_denoiser(world: World) -> None:
    world.cache.hold(0.6, 1, 2, 3)
    accepted = await world.submit(explicit_reuse=OWN)
    assert accepted.spec.explicit_reuse == OWN
    await world.events(accepted)
    plan = world.denoiser.requests[0].plan
    assert (plan.reuse_steps, plan.region_end, plan.region) == (1, 3, DEFAULT_REGION)
    assert plan.amplification == OWN.amplification
    assert world.embedder.aligned, "a bias depends on the tokens that the target gained"


async def test_requests_own_plan_that_needs_no_edit_aligns_nothing(world: World) -> None:
    world.cache.hold(0.6, 1, 2, 3)
    await world.events(await world.submit(explicit_reuse=pb.ExplicitReuse(reuse_steps=2)))
    assert world.denoiser.requests[0].plan.reuse_steps == 2
    assert not world.embedder.aligned


async def test_renoised_plan_uses_a_donor_that_holds_its_clean_latents(world: World) -> None:
    own = pb.ExplicitReuse(reuse_steps=2, renoised=True)
    world.cache.hold(0.6, 1, 2, 3)
    accepted = await world.submit(explicit_reuse=own)
    await world.events(accepted)
    ended = await world.get(accepted)
    assert [r.code for r in ended.plan.reasons] == [plan_pb2.PLAN_REASON_CODE_NO_DONOR]
    assert "clean latents" in ended.plan.reasons[0].text
    world.cache.hold(0.6, 4)
    await world.events(await world.submit(explicit_reuse=own))
    plan = world.denoiser.requests[-1].plan
    assert (plan.reuse_steps, plan.region_end, plan.renoised) == (2, 0, True)


async def test_plan_with_a_draft_uses_a_donor_that_holds_the_latents_of_its_step(world: World) -> None:
    own = pb.ExplicitReuse(reuse_steps=2, draft_step=3)
    world.cache.hold(0.6, 1, 2, 4)
    accepted = await world.submit(explicit_reuse=own)
    await world.events(accepted)
    assert [r.code for r in (await world.get(accepted)).plan.reasons] == [plan_pb2.PLAN_REASON_CODE_NO_DONOR]
    world.cache.hold(0.6, 3)
    await world.events(await world.submit(explicit_reuse=own))
    plan = world.denoiser.requests[-1].plan
    assert (plan.reuse_steps, plan.draft_step) == (2, 3)


async def test_request_limits_the_steps_that_the_planner_reuses(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    accepted = await world.submit(max_reuse_steps=1)
    await world.events(accepted)
    assert world.denoiser.requests[-1].plan.reuse_steps == 1


def _result(*steps: int) -> cache_pb2.Entry:
    blobs = [latents_pb2.BlobHeader(step=latents_pb2.StepRef(index=step)) for step in steps]
    return cache_pb2.Entry(entry_id="f" * 64, prompt_hash="0" * 64, generation_id="earlier", blobs=blobs)


@pytest.mark.parametrize(("policy", "steps"), [("", (1, 2, 3, 4)), ("balanced", (4,))])
async def test_earlier_result_of_the_same_request_is_repeated_without_a_lookup(
    world: World, policy: str, steps: Sequence[int]
) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    world.cache.results[policy] = _result(*steps)
    accepted = await world.submit(seed=5, max_reuse_steps=2, reuse=plan_pb2.REUSE_POLICY_BALANCED)
    await world.events(accepted)
    request = world.denoiser.requests[-1]
    assert (request.plan.reuse_steps, request.plan.donor.entry_id) == (4, "f" * 64)
    assert [r.code for r in request.plan.reasons] == [plan_pb2.PLAN_REASON_CODE_EXACT]
    assert request.plan.donor.approximation.policy == policy
    [found] = [each for each in world.cache.finds if each.identity.approximation.policy == policy]
    assert (found.prompt, found.seed) == (accepted.spec.prompt, 5)
    assert found.identity.approximation.max_reuse_steps == (2 if policy else 0)
    assert not world.cache.lookups


async def test_earlier_result_is_searched_while_the_prompt_is_embedded(world: World) -> None:
    await world.events(await world.submit("warm up"))  # the scheduler knows the encoder from here on
    world.cache.results[""] = _result(1, 2, 3, 4)
    world.embedder.answering.clear()
    accepted = await world.submit(seed=5)
    await world.cache.found.wait()
    world.embedder.answering.set()
    await world.events(accepted)
    assert world.denoiser.requests[-1].plan.reuse_steps == 4


async def test_earlier_result_is_searched_again_if_the_embedder_has_another_encoder(world: World) -> None:
    world.embedder.described = (
        "earlier@1"  # as if the embedder restarted with "ret@1" since it described itself
    )
    await world.embedder.die()
    await world.embedder.start()
    await world.events(await world.submit("warm up"))  # the scheduler knows the earlier encoder from here on
    await world.events(await world.submit(seed=5))
    searched = [found.retrieval_encoder_id for found in world.cache.finds]
    assert searched == ["earlier@1", "earlier@1", "ret@1", "ret@1"]


async def test_named_donor_is_the_only_one_and_gives_its_seed(world: World) -> None:
    donor = await world.submit("a red car", seed=11)
    await world.events(donor)
    world.cache.hold(0.9992, 1, 2, 3)
    world.cache.results[""] = _result(1, 2, 3, 4)
    accepted = await world.submit("a blue car", donor_generation_id=donor.generation_id)
    assert (accepted.spec.seed, accepted.seed_chosen) == (11, False)
    await world.events(accepted)
    request = world.denoiser.requests[-1]
    assert request.plan.donor.entry_id == "f" * 64
    assert request.plan.donor.score == pytest.approx(1), "the fake embedder has one vector for all prompts"
    assert request.seed == 11
    found = world.cache.finds[-1]
    assert (found.prompt, found.seed) == ("a red car", 11)
    assert not found.identity.HasField("approximation")
    assert not request.admission.HasField("approximation")
    assert not (await world.get(accepted)).warnings


async def test_named_donor_without_latents_is_reported(world: World) -> None:
    donor = await world.submit("a red car", seed=11)
    await world.events(donor)
    world.cache.hold(0.9992, 1, 2, 3)
    accepted = await world.submit("a blue car", donor_generation_id=donor.generation_id)
    await world.events(accepted)
    ended = await world.get(accepted)
    assert ended.plan.reuse_steps == 0
    assert [w.metadata["field"] for w in ended.warnings] == ["spec.donor_generation_id"]
    assert "not in the cache" in ended.warnings[0].message


@pytest.mark.parametrize(
    ("spec", "field", "message"),
    [
        ({"donor_generation_id": "missing"}, "spec.donor_generation_id", "there is no generation 'missing'"),
        (
            {"reuse": plan_pb2.REUSE_POLICY_OFF},
            "spec.donor_generation_id",
            "must be empty with the policy OFF",
        ),
        ({"steps": 3}, "spec.donor_generation_id", "must have this request's schedule"),
        ({"seed": 12}, "spec.seed", "must be unset, or 11 as that of the named donor, not 12"),
    ],
)
async def test_donor_that_cannot_serve_is_rejected_by_field(
    world: World, spec: dict[str, Any], field: str, message: str
) -> None:
    donor = await world.submit("a red car", seed=11)
    await world.events(donor)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.submit("a blue car", **{"donor_generation_id": donor.generation_id, **spec})
    error = from_rpc_error(caught.value, "scheduler")
    assert error.reason == INVALID_FIELD
    assert [v.field for v in error.violations] == [field]
    assert message in error.violations[0].description


async def test_result_without_its_last_latents_or_of_a_hit_is_not_repeated(world: World) -> None:
    world.cache.results[""] = _result(2, 3, 4)
    await world.events(await world.submit(seed=5))
    assert world.denoiser.requests[-1].plan.reuse_steps == 0
    assert len(world.cache.lookups) == 1


@pytest.mark.parametrize(
    "spec",
    [{}, {"seed": 5, "reuse": plan_pb2.REUSE_POLICY_OFF}, {"seed": 5, "explicit_reuse": OWN}],
    ids=["no seed", "off", "own plan"],
)
async def test_these_requests_are_not_answered_by_earlier_results(world: World, spec: dict[str, Any]) -> None:
    world.cache.results |= {"": _result(1, 2, 3, 4), "balanced": _result(4)}
    await world.events(await world.submit(**spec))
    assert not world.cache.finds
    request = world.denoiser.requests[-1]
    assert request.plan.reuse_steps == 0
    assert request.admission.HasField("approximation") == (not spec)


@pytest.mark.parametrize(
    ("spec", "bound"),
    [
        ({"max_reuse_steps": 4}, "1 to 3, one less than the steps, not 4"),
        ({"max_reuse_steps": 1, "steps": 1}, "must be 0 for a single step, not 1"),
        ({"max_reuse_steps": 1, "reuse": plan_pb2.REUSE_POLICY_OFF}, "must be 0 with the policy OFF"),
        ({"max_reuse_steps": 1, "explicit_reuse": OWN}, "must be 0 with explicit_reuse"),
    ],
)
async def test_limit_that_is_out_of_bounds_or_has_no_effect_is_rejected(
    world: World, spec: dict[str, object], bound: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.submit(**spec)  # type: ignore[arg-type]
    [violation] = from_rpc_error(caught.value, "scheduler").violations
    assert violation.field == "spec.max_reuse_steps"
    assert bound in violation.description


@pytest.mark.parametrize(
    ("spec", "field", "bound"),
    [
        ({"no_store": True}, "spec.retention", "must not be set with no_store"),
        ({"seconds": -1}, "spec.retention.lifetime", "must be above 0 and at most"),
        ({"seconds": 400_000_000}, "spec.retention.lifetime", "at most 316224000 seconds"),
    ],
)
async def test_retention_that_is_out_of_bounds_or_has_no_effect_is_rejected(
    world: World, spec: dict[str, int], field: str, bound: str
) -> None:
    retention = latents_pb2.Retention(pinned=True)
    if "seconds" in spec:
        retention.lifetime.seconds = spec["seconds"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.submit(retention=retention, no_store="no_store" in spec)
    [violation] = from_rpc_error(caught.value, "scheduler").violations
    assert violation.field == field
    assert bound in violation.description


async def test_retention_reaches_the_denoiser_and_is_part_of_the_accepted_spec(world: World) -> None:
    retention = latents_pb2.Retention(pinned=True)
    retention.lifetime.seconds = 60
    accepted = await world.submit(retention=retention)
    await world.events(accepted)
    [request] = world.denoiser.requests
    assert request.admission.retention == accepted.spec.retention == retention
    assert not (await world.get(accepted)).warnings
    await world.events(await world.submit())
    assert not world.denoiser.requests[1].admission.HasField("retention")


async def test_retention_of_an_exact_repeat_is_answered_with_a_warning_before_its_video(world: World) -> None:
    world.cache.results[""] = _result(1, 2, 3, 4)
    world.denoiser.keeps_nothing = True
    accepted = await world.submit(seed=5, retention=latents_pb2.Retention(pinned=True))
    events = await world.events(accepted)
    names = kinds(events)
    assert names.index("warning") < names.index("succeeded")
    [warning] = (await world.get(accepted)).warnings
    assert "an exact repeat has none of its own" in warning.message


async def test_retention_of_a_run_that_keeps_no_latents_is_answered_with_a_warning(world: World) -> None:
    world.denoiser.keeps_nothing = True
    accepted = await world.submit(retention=latents_pb2.Retention(pinned=True))
    end = time.monotonic() + 20
    while not (ended := await world.get(accepted)).warnings:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    [warning] = ended.warnings
    assert (warning.reason, warning.metadata["field"]) == (
        errors_pb2.ERROR_REASON_FIELD_IGNORED,
        "spec.retention",
    )


async def test_requests_own_plan_without_a_fitting_donor_computes_in_full(world: World) -> None:
    world.cache.hold(0.6, 1)
    accepted = await world.submit(explicit_reuse=OWN)
    await world.events(accepted)
    ended = await world.get(accepted)
    assert [r.code for r in ended.plan.reasons] == [plan_pb2.PLAN_REASON_CODE_NO_DONOR]
    assert ended.steps_run == 4


@pytest.mark.parametrize(
    ("own", "field"),
    [
        (pb.ExplicitReuse(), "reuse_steps"),
        (pb.ExplicitReuse(reuse_steps=4), "reuse_steps"),
        (pb.ExplicitReuse(reuse_steps=2, region_end=1), "region_end"),
        (pb.ExplicitReuse(reuse_steps=2, region_end=5), "region_end"),
        (pb.ExplicitReuse(reuse_steps=1, region_end=2, renoised=True), "renoised"),
        (pb.ExplicitReuse(reuse_steps=2, draft_step=1), "draft_step"),
        (pb.ExplicitReuse(reuse_steps=2, draft_step=4), "draft_step"),
        (pb.ExplicitReuse(reuse_steps=2, draft_step=2, renoised=True), "draft_step"),
        (pb.ExplicitReuse(reuse_steps=2, region_end=3, draft_step=2), "draft_step"),
        (pb.ExplicitReuse(reuse_steps=1, min_score=1.5), "min_score"),
        (pb.ExplicitReuse(reuse_steps=1, region=plan_pb2.RegionPlan()), "region.source"),
        (
            pb.ExplicitReuse(reuse_steps=1, amplification=plan_pb2.Amplification(strength=1)),
            "amplification.form",
        ),
    ],
)
async def test_plan_out_of_bounds_is_rejected_by_field(
    world: World, own: pb.ExplicitReuse, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.submit(explicit_reuse=own)
    error = from_rpc_error(caught.value, "scheduler")
    assert error.reason == INVALID_FIELD
    assert f"spec.explicit_reuse.{field}" in [violation.field for violation in error.violations]
