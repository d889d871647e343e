"""Verifies reports, filters by what was reused, changed classes and predicted starts, over sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.limits import MAX_REPORT_COMMENT_BYTES

from tests.integration.scheduler.fakes import MODEL, STEPS
from tests.integration.scheduler.test_labels import rejected, search
from tests.integration.scheduler.test_order import occupy, until_positions
from tests.integration.scheduler.world import World
from tests.processes import free_port
from tests.scraping import scrape

pytestmark = pytest.mark.asyncio(loop_scope="module")
METRICS_PORT = free_port()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    settings = {"CHORUS_SCHEDULER_METRICS_PORT": str(METRICS_PORT)}
    async with World(tmp_path_factory.mktemp("changes"), settings) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


async def report(
    world: World,
    generation: pb.Generation,
    problem: Any = pb.REPORTED_PROBLEM_DONOR_VISIBLE,
    comment: str = "",
) -> pb.Generation:
    request = pb.ReportGenerationRequest(
        generation_id=generation.generation_id,
        problem=problem,
        comment=comment,
    )
    answer: pb.Generation = (await world.api.ReportGeneration(request, timeout=20)).generation
    return answer


async def prioritize(world: World, generation: pb.Generation, priority: Any) -> pb.Generation:
    request = pb.ChangePriorityRequest(generation_id=generation.generation_id, priority=priority)
    answer: pb.Generation = (await world.api.ChangePriority(request, timeout=20)).generation
    return answer


async def test_report_is_stored_replaced_and_withdrawn(world: World) -> None:
    made = await world.submit("a red car", labels={"test": "report"})
    await world.events(made)
    comment = "é" * (MAX_REPORT_COMMENT_BYTES // 2)
    before = time.time()
    reported = await report(world, made, comment=comment)
    assert reported.report.comment == comment
    assert before - 1 < reported.report.report_time.ToNanoseconds() / 1e9 < time.time() + 1
    await report(world, made, pb.REPORTED_PROBLEM_BROKEN_MOTION)
    stored = (await world.get(made)).report
    assert (stored.problem, stored.comment) == (pb.REPORTED_PROBLEM_BROKEN_MOTION, "")
    assert await search(world, reported=True, labels={"test": "report"}) == [made.generation_id]
    counted = await asyncio.to_thread(scrape, METRICS_PORT)
    for problem in ("donor_visible", "broken_motion"):
        assert counted.value("chorus_reports_total", decision="miss", problem=problem) == 1
    for _ in range(2):
        answer = await world.api.WithdrawReport(
            pb.WithdrawReportRequest(generation_id=made.generation_id), timeout=20
        )
        assert not answer.generation.HasField("report")
    assert await search(world, reported=True, labels={"test": "report"}) == []


async def test_report_must_say_something_about_a_video(world: World) -> None:
    made = await world.submit("a red car")
    await world.events(made)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"problem": pb.REPORTED_PROBLEM_UNSPECIFIED}, "problem"),
        ({"problem": 77}, "problem"),
        ({"comment": "x" * (MAX_REPORT_COMMENT_BYTES + 1)}, "comment"),
        ({"comment": "two\nlines"}, "comment"),
    ]
    for fields, field in wrong:
        error = await rejected(report(world, made, **fields))
        assert error.reason == errors.INVALID_FIELD
        assert [violation.field for violation in error.violations] == [field]
    unknown = pb.Generation(generation_id="0" * 32)
    assert (await rejected(report(world, unknown))).reason == errors.NOT_FOUND
    cancelled = await occupy(world)
    await world.cancel(cancelled)
    error = await rejected(report(world, cancelled))
    assert (error.reason, error.metadata["state"]) == (errors.WRONG_STATE, "CANCELLED")


async def test_generations_are_found_by_model_decision_and_edit(world: World) -> None:
    labels = {"test": "decision"}
    miss = await world.submit("a blue square", reuse=plan_pb2.REUSE_POLICY_OFF, labels=labels)
    await world.events(miss)
    world.cache.hold(0.9995, 1, 2, 3)
    hit = await world.submit("a red car", labels=labels)
    await world.events(hit)
    plan = (await world.get(hit)).plan
    assert plan.reuse_steps, "the premise"
    assert await search(world, labels=labels, decision=pb.CACHE_DECISION_HIT) == [hit.generation_id]
    assert await search(world, labels=labels, decision=pb.CACHE_DECISION_MISS) == [miss.generation_id]
    assert await search(world, labels=labels, decision=pb.CACHE_DECISION_EXACT) == []
    both = [hit.generation_id, miss.generation_id]
    assert await search(world, labels=labels, model_id=MODEL.model_id) == both
    assert await search(world, labels=labels, model_id="gone") == []
    donor = (await world.get(hit)).donor.generation_id
    assert donor, "the premise"
    assert await search(world, donor_generation_id=donor) == [hit.generation_id]
    assert await search(world, donor_generation_id=miss.generation_id) == []
    if plan.edit:
        assert await search(world, labels=labels, edit_kind=plan.edit) == [hit.generation_id]
    for filters, field in (
        ({"model_id": "x" * 129}, "model_id"),
        ({"model_id": "a\0"}, "model_id"),
        ({"donor_generation_id": "x" * 129}, "donor_generation_id"),
        ({"decision": 9}, "decision"),
        ({"edit_kind": "colr"}, "edit_kind"),
    ):
        error = await rejected(search(world, **filters))
        assert [violation.field for violation in error.violations] == [field]


async def test_changed_class_decides_the_order_and_survives_a_restart(world: World) -> None:
    first = await occupy(world)
    waiting = [await world.submit(name, steps=1) for name in ("a", "b", "c")]
    await until_positions(world, waiting, [1, 2, 3])
    moved = await prioritize(world, waiting[2], pb.PRIORITY_HIGH)
    assert (moved.spec.priority, moved.queue_position) == (pb.PRIORITY_HIGH, 1)
    again = await prioritize(world, waiting[2], pb.PRIORITY_HIGH)
    assert (again.spec.priority, again.queue_position) == (pb.PRIORITY_HIGH, 1)
    await prioritize(world, waiting[0], pb.PRIORITY_LOW)
    await until_positions(world, waiting, [3, 2, 1])
    for wrong in (pb.PRIORITY_UNSPECIFIED, 9):
        error = await rejected(prioritize(world, waiting[1], wrong))
        assert [violation.field for violation in error.violations] == ["priority"]
    # The request is still the one that was sent.
    repeated = await world.submit("c", request_id=waiting[2].request_id, steps=1)
    assert repeated.generation_id == waiting[2].generation_id
    await asyncio.to_thread(world.process.kill)
    world.denoiser.go.set()
    await world.boot()
    for job in (first, *waiting):
        await world.events(job)
    ids = [job.generation_id for job in waiting]
    started = [request.generation_id for request in world.denoiser.requests]
    assert [each for each in started if each in ids] == ids[::-1]
    kept = [(await world.get(job)).spec.priority for job in waiting]
    assert kept == [pb.PRIORITY_LOW, pb.PRIORITY_NORMAL, pb.PRIORITY_HIGH]
    error = await rejected(prioritize(world, first, pb.PRIORITY_HIGH))
    assert (error.reason, error.metadata["state"]) == (errors.WRONG_STATE, "SUCCEEDED")


async def test_class_of_a_run_is_not_changed(world: World) -> None:
    first = await occupy(world)
    error = await rejected(prioritize(world, first, pb.PRIORITY_LOW))
    assert (error.reason, error.metadata["state"]) == (errors.WRONG_STATE, "RUNNING")
    assert (await prioritize(world, first, pb.PRIORITY_HIGH)).state == pb.GENERATION_STATE_RUNNING
    world.denoiser.go.set()
    await world.events(first)


async def test_start_is_predicted_from_the_runs_before(world: World) -> None:
    # A run whose duration the scheduler has measured.
    await world.events(await world.submit("measured", reuse=plan_pb2.REUSE_POLICY_OFF))
    first = await occupy(world)
    assert not (await world.get(first)).HasField("predicted_start_time")
    waiting = [
        await world.submit(name, reuse=plan_pb2.REUSE_POLICY_OFF, steps=STEPS) for name in ("a", "b", "c")
    ]
    await until_positions(world, waiting, [1, 2, 3])
    async with asyncio.timeout(20):
        while True:
            seen = [await world.get(job) for job in waiting]
            starts = [each.predicted_start_time.ToNanoseconds() for each in seen]
            if all(starts) and starts[0] < starts[1] < starts[2]:
                break
    listed = await world.api.ListGenerations(
        pb.ListGenerationsRequest(state=pb.GENERATION_STATE_QUEUED), timeout=20
    )
    assert all(each.HasField("predicted_start_time") for each in listed.generations)
    await prioritize(world, waiting[2], pb.PRIORITY_HIGH)
    moved = [(await world.get(job)).predicted_start_time.ToNanoseconds() for job in waiting]
    assert moved[2] < moved[0] < moved[1], "the change is seen at once"
    world.denoiser.go.set()
    for job in (first, *waiting):
        await world.events(job)
        assert not (await world.get(job)).HasField("predicted_start_time")
