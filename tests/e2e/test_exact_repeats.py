"""Tests that the same request gives the same video, without a step, and that another seed does not."""

from __future__ import annotations

from typing import Any

from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

from tests.e2e.calls import get, kinds, submit, video, watch_to_end
from tests.stack import Stack

PROMPT = "a large green triangle moving down on a white background"


async def test_same_request_is_answered_by_its_earlier_result(scheduler: Any, stack: Stack) -> None:
    async def run(**spec: Any) -> tuple[pb.Generation, bytes]:
        job = await submit(scheduler, PROMPT, **spec)
        events = await watch_to_end(scheduler, job.generation_id)
        assert kinds(events)[-1] == "succeeded", stack.logs()
        _, data = await video(scheduler, job.generation_id)
        return await get(scheduler, job.generation_id), data

    first, original = await run(seed=41)
    assert first.steps_run == 4
    again, repeated = await run(seed=41)
    assert [reason.code for reason in again.plan.reasons] == [plan_pb2.PLAN_REASON_CODE_EXACT]
    assert (again.steps_run, again.plan.reuse_steps) == (0, 4)
    assert again.donor.generation_id == first.generation_id
    assert not again.warnings
    assert repeated == original

    off, computed = await run(seed=41, reuse=plan_pb2.REUSE_POLICY_OFF, no_store=True)
    assert (off.steps_run, computed) == (4, original)
    for spec in ({"seed": 42}, {}):
        other, _ = await run(**spec, no_store=True)
        assert other.steps_run > 0
