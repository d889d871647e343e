"""Tests that the same request gives the same video, without a step, and that another seed does not."""

from __future__ import annotations

from typing import Any

from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb

from tests.e2e.calls import get, kinds, submit, video, watch_to_end
from tests.stack import Stack

PROMPT = "a large green triangle moving down on a white background"


async def test_same_request_is_answered_by_its_earlier_result(scheduler: Any, stack: Stack) -> None:
    async def run(prompt: str = PROMPT, **spec: Any) -> tuple[pb.Generation, bytes]:
        job = await submit(scheduler, prompt, **spec)
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
    edited = PROMPT.replace("green", "red")
    hit, shown = await run(edited, seed=41)
    assert 0 < hit.steps_run < 4, hit.plan
    repeat, same = await run(edited, seed=41)
    assert (repeat.steps_run, same, repeat.donor.generation_id) == (0, shown, hit.generation_id)
    assert "by reusing another donor" in repeat.plan.reasons[0].text
    full, exact = await run(edited, seed=41, reuse=plan_pb2.REUSE_POLICY_OFF)
    assert (full.steps_run, exact == shown) == (4, False)
    better, best = await run(edited, seed=41)
    assert (better.steps_run, best) == (0, exact), "the full computation comes before the approximation"

    recoloured = PROMPT.replace("green", "yellow")
    named, _ = await run(recoloured, donor_generation_id=first.generation_id)
    assert (named.plan.donor.generation_id, named.spec.seed) == (first.generation_id, 41)
    assert 0 < named.steps_run < 4
    hit_named, _ = await run(recoloured, donor_generation_id=named.generation_id)
    assert hit_named.steps_run == 4
    assert "name that one" in hit_named.warnings[0].message

    other_seeds: list[dict[str, Any]] = [{"seed": 42}, {}]
    for spec in other_seeds:
        other, _ = await run(**spec, no_store=True)
        assert other.steps_run > 0
