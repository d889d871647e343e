"""Tests that the services compute only the region that a changed word affects, and report it."""

from __future__ import annotations

from typing import Any

import grpc.aio
import pytest
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.errors import INVALID_FIELD, from_rpc_error

from tests.e2e.calls import get, kinds, submit, watch_to_end
from tests.stack import Stack

DONOR = "a small yellow circle moving right on a gray background"
TARGET = "a small purple circle moving right on a gray background"


async def run_to_end(
    scheduler: Any, stack: Stack, prompt: str, **spec: Any
) -> tuple[pb.Generation, list[Any]]:
    """Runs a generation that must succeed. Returns its final state and its events."""
    job = await submit(scheduler, prompt, **spec)
    events = await watch_to_end(scheduler, job.generation_id)
    assert kinds(events)[-1] == "succeeded", stack.logs()
    return await get(scheduler, job.generation_id), events


async def test_planner_reuses_for_a_changed_colour_and_gives_reasons(scheduler: Any, stack: Stack) -> None:
    await run_to_end(scheduler, stack, DONOR, seed=11)
    hit, events = await run_to_end(
        scheduler, stack, TARGET, seed=11, no_store=True, reuse=plan_pb2.REUSE_POLICY_FAST
    )
    assert hit.donor.prompt == DONOR
    assert hit.plan.edit == "colour"
    codes = [reason.code for reason in hit.plan.reasons]
    assert codes == [plan_pb2.PLAN_REASON_CODE_EDIT, plan_pb2.PLAN_REASON_CODE_CALIBRATION]
    assert '"purple"' in hit.plan.reasons[0].text
    assert '"yellow"' in hit.plan.reasons[0].text
    assert not hit.warnings
    steps = [event.step_completed for event in events if event.HasField("step_completed")]
    assert sum(step.computed_share for step in steps) <= 2


@pytest.mark.parametrize("source", ["PROBE", "FULL_STEP", "ATTENTION"])
async def test_explicit_plan_computes_a_region_from_each_source(
    scheduler: Any, stack: Stack, source: str
) -> None:
    await run_to_end(scheduler, stack, DONOR, seed=11)
    plan = pb.ExplicitReuse(
        reuse_steps=1,
        region_end=3,
        region=plan_pb2.RegionPlan(
            source=plan_pb2.RegionSource.Value(f"REGION_SOURCE_{source}"),
            threshold=0.6 if source == "ATTENTION" else 0.3,
            dilation=1,
            budget=1,
            context=plan_pb2.REGION_CONTEXT_NONE,
        ),
        amplification=plan_pb2.Amplification(form=plan_pb2.AMPLIFICATION_FORM_CONTRAST, strength=0.5),
        min_score=0.5,
    )
    hit, events = await run_to_end(scheduler, stack, TARGET, seed=12, no_store=True, explicit_reuse=plan)
    assert [warning.metadata["field"] for warning in hit.warnings] == ["spec.seed"]  # 12, the donor's is 11
    assert (hit.plan.reuse_steps, hit.plan.region_end) == (1, 3)
    assert [r.code for r in hit.plan.reasons] == [plan_pb2.PLAN_REASON_CODE_EXPLICIT]
    steps = [event.step_completed for event in events if event.HasField("step_completed")]
    assert [step.step.index for step in steps] == [2, 3, 4]
    assert list(steps[0].token_grid) == [4, 16, 16]
    active = [sum(byte.bit_count() for byte in step.active_tokens) for step in steps]
    assert 0 < active[1] < 1024
    assert active[2] == 0, "the last step computes every token"
    assert not steps[2].active_tokens
    assert steps[2].computed_share == 1


async def test_explicit_plan_out_of_bounds_names_its_field(scheduler: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=r"explicit_reuse") as caught:
        await submit(scheduler, TARGET, explicit_reuse=pb.ExplicitReuse(reuse_steps=4))
    error = from_rpc_error(caught.value, "scheduler")
    assert error.reason == INVALID_FIELD
    assert [v.field for v in error.violations] == ["spec.explicit_reuse.reuse_steps"]


async def test_explicit_plan_starts_from_a_draft(scheduler: Any, stack: Stack) -> None:
    await run_to_end(scheduler, stack, DONOR, seed=11)
    plan = pb.ExplicitReuse(reuse_steps=3, min_score=0.5, draft_step=3)
    hit, _ = await run_to_end(scheduler, stack, TARGET, seed=12, no_store=True, explicit_reuse=plan)
    assert not hit.warnings, "the noise of the requested seed is added to the draft"
    assert hit.donor.prompt == DONOR
    assert (hit.plan.reuse_steps, hit.plan.draft_step, hit.steps_run) == (3, 3, 2)


async def test_explicit_plan_reuses_renoised_clean_latents(scheduler: Any, stack: Stack) -> None:
    await run_to_end(scheduler, stack, DONOR, seed=11)
    plan = pb.ExplicitReuse(reuse_steps=2, min_score=0.5, renoised=True)
    hit, _ = await run_to_end(scheduler, stack, TARGET, seed=12, no_store=True, explicit_reuse=plan)
    assert not hit.warnings
    assert hit.donor.prompt == DONOR
    assert hit.plan.renoised
    assert (hit.plan.reuse_steps, hit.steps_run) == (2, 2)
