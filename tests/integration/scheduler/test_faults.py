"""Verifies that no job is lost and none ends twice while services stop, restart or fail."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from chorus.common.v1 import errors_pb2, plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, from_rpc_error
from google.protobuf.timestamp_pb2 import Timestamp

from tests.integration.scheduler.fakes import STEPS, Fake
from tests.integration.scheduler.world import World, check_sequence, kinds
from tests.processes import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    settings = {"CHORUS_SCHEDULER_LOOKUP_SECONDS": "0.5"}
    async with World(tmp_path_factory.mktemp("faults"), settings) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A scheduler with small limits that has never reached the denoiser."""
    settings = {
        "CHORUS_SCHEDULER_QUEUE_LIMIT": "2",
        "CHORUS_SCHEDULER_KEEP_GENERATIONS": "2",
        "CHORUS_SCHEDULER_MAX_CRASHES": "2",
    }
    async with World(tmp_path_factory.mktemp("small"), settings, absent={"denoiser"}) as world:
        yield world


def ahead(seconds: float) -> Timestamp:
    deadline = Timestamp()
    deadline.FromNanoseconds(int((time.time() + seconds) * 1e9))
    return deadline


def causes(events: list[pb.GenerationEvent]) -> list[errors_pb2.JobError]:
    return [event.waiting.cause for event in events if event.HasField("waiting")]


async def rejected(call: Any) -> tuple[grpc.StatusCode, ChorusError]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), from_rpc_error(caught.value, "scheduler")


async def wait_for_cache(world: World) -> None:
    """Returns once the scheduler has noticed that the cache is available."""
    while True:
        job = await world.submit("probe")
        await world.events(job)
        if not (await world.get(job)).warnings:
            return


async def test_submission_before_any_model_is_known_names_the_denoiser(small: World) -> None:
    code, error = await rejected(small.submit())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert error.reason == errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert error.metadata["service"] == "denoiser"
    await small.denoiser.start()
    check_sequence(await small.events(await submit_when_available(small)))


async def submit_when_available(world: World) -> pb.Generation:
    """Submits as a client does: retries after the delay that an UNAVAILABLE answer states."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await world.submit()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(from_rpc_error(error, "scheduler").retry_after or 0.1)


async def test_full_queue_rejects_with_a_retry_delay(small: World) -> None:
    await small.refresh()
    small.denoiser.pause_before = 1
    jobs = [await small.submit("runs")]
    await small.events(jobs[0], until="step_completed")
    jobs += [await small.submit(f"waits {n}") for n in range(2)]
    code, error = await rejected(small.submit("one too many"))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == errors_pb2.ERROR_REASON_QUEUE_FULL
    assert error.retry_after is not None
    assert error.retry_after > 0
    small.denoiser.go.set()
    for job in jobs:
        assert kinds(await small.events(job))[-1] == "succeeded"


async def test_only_the_newest_ended_generations_are_kept(small: World) -> None:
    await small.refresh()
    jobs = []
    for n in range(4):
        jobs.append(await small.submit(f"prompt {n}"))
        await small.events(jobs[-1])
    async with asyncio.timeout(20):  # the surplus is removed at most once a second
        while True:
            listed = await small.api.ListGenerations(pb.ListGenerationsRequest(), timeout=20)
            kept = [g.generation_id for g in listed.generations]
            if jobs[0].generation_id not in kept:
                break
    assert jobs[-1].generation_id in kept
    code, _ = await rejected(small.get(jobs[0]))
    assert code is grpc.StatusCode.NOT_FOUND
    videos = {path.name for path in (small.directory / "videos").iterdir()}
    assert jobs[0].generation_id not in videos
    assert jobs[-1].generation_id in videos


async def test_job_during_which_services_keep_dying_fails(small: World) -> None:
    await small.refresh()
    small.denoiser.pause_before = 1
    job = await small.submit("poison")
    seen = 0
    for step in (2, 3):
        seen = (await small.events(job, after=seen, until="step_completed"))[-1].sequence
        small.denoiser.pause_before = step  # the next run continues after the step before
        await small.denoiser.die()
        await small.denoiser.start()
    events = await small.events(job)
    check_sequence(events)
    assert kinds(events)[-1] == "failed"
    assert events[-1].failed.error.reason == errors_pb2.ERROR_REASON_INTERNAL
    assert "2 times" in events[-1].failed.error.message
    small.denoiser.go.set()
    check_sequence(await small.events(await small.submit("healthy")))


async def test_job_without_the_cache_runs_in_full_with_a_warning(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    await world.cache.die()
    job = await world.submit()
    events = await world.events(job)
    check_sequence(events)
    assert kinds(events)[-1] == "succeeded"
    [warning] = [e.warning.warning for e in events if e.HasField("warning")]
    assert warning.metadata["service"] == "cache"
    ended = await world.get(job)
    assert [r.code for r in ended.plan.reasons] == [plan_pb2.PLAN_REASON_CODE_CACHE_UNAVAILABLE]
    assert list(ended.warnings) == [warning]
    assert ended.steps_run == STEPS
    await world.cache.start()
    await wait_for_cache(world)
    hit = await world.submit()
    await world.events(hit)
    assert (await world.get(hit)).steps_run == 1


async def test_cache_that_does_not_answer_delays_no_job(world: World) -> None:
    await wait_for_cache(world)
    world.cache.answering.clear()
    job = await world.submit()
    assert kinds(await world.events(job))[-1] == "succeeded"
    [reason] = (await world.get(job)).plan.reasons
    assert reason.code == plan_pb2.PLAN_REASON_CODE_CACHE_UNAVAILABLE
    assert "0.5 s" in reason.text


@pytest.mark.parametrize("name", ["embedder", "denoiser"])
async def test_jobs_wait_for_a_service_and_keep_their_order(world: World, name: str) -> None:
    service: Fake = getattr(world, name)
    await service.die()
    jobs = [await world.submit(f"{name} {n}") for n in range(3)]
    seen = await world.events(jobs[0], until="waiting")
    [cause] = causes(seen)
    assert cause.reason == errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert cause.metadata["service"] == name
    assert (await world.get(jobs[0])).state == pb.GENERATION_STATE_WAITING
    assert [(await world.get(job)).queue_position for job in jobs] == [1, 2, 3]
    await service.start()
    for job in jobs:
        events = await world.events(job)
        check_sequence(events)
        assert kinds(events)[-1] == "succeeded"
    assert [r.generation_id for r in world.denoiser.requests] == [job.generation_id for job in jobs]


async def test_job_is_retried_after_its_denoiser_died(world: World) -> None:
    world.denoiser.pause_before = 2
    job, following = await world.submit("one"), await world.submit("two")
    await world.events(job, until="step_completed")
    await world.denoiser.die()
    await world.events(job, until="waiting")
    world.denoiser.go.set()
    await world.denoiser.start()
    events = await world.events(job)
    check_sequence(events)
    assert kinds(events)[-1] == "succeeded"
    assert [e.started.attempt for e in events if e.HasField("started")] == [1, 2]
    ended = await world.get(job)
    assert (ended.attempts, ended.steps_run, ended.steps_completed) == (2, STEPS, STEPS)
    check_sequence(await world.events(following))
    started = [r.generation_id for r in world.denoiser.requests]
    assert started == [job.generation_id, job.generation_id, following.generation_id], (
        "the retried job keeps its place"
    )


async def test_busy_denoiser_is_retried(world: World) -> None:
    world.denoiser.fault = ChorusError(errors.QUEUE_FULL, "the queue is full", retry_after=0.2)
    events = await world.events(await world.submit())
    check_sequence(events)
    assert [cause.metadata["service"] for cause in causes(events)] == ["denoiser"]
    assert kinds(events)[-1] == "succeeded"


@pytest.mark.fault("named-limit")
async def test_time_limit_of_the_denoiser_is_not_reported_as_the_deadline(world: World) -> None:
    world.denoiser.fault = errors.time_limit_exceeded("CHORUS_DENOISER_RUN_SECONDS", "the run was too long")
    events = await world.events(await world.submit())
    check_sequence(events)
    error = events[-1].failed.error
    assert error.reason == errors_pb2.ERROR_REASON_TIME_LIMIT_EXCEEDED
    assert error.message == "the run was too long (CHORUS_DENOISER_RUN_SECONDS)"
    assert "waiting" not in kinds(events), "another attempt would take as long"


async def test_fault_of_the_denoiser_fails_the_job_not_the_service(world: World) -> None:
    world.denoiser.fault = RuntimeError("out of luck")
    events = await world.events(await world.submit())
    check_sequence(events)
    assert events[-1].failed.error.reason == errors_pb2.ERROR_REASON_INTERNAL
    world.denoiser.damage = True
    job = await world.submit()
    events = await world.events(job)
    check_sequence(events)
    assert "SHA-256" in events[-1].failed.error.message
    assert not (world.directory / "videos" / f"{job.generation_id}.mp4").exists()
    world.denoiser.damage = False
    assert kinds(await world.events(await world.submit()))[-1] == "succeeded"


async def test_generation_can_be_cancelled_in_every_state(world: World) -> None:
    world.denoiser.pause_before = 1
    running, queued = await world.submit("one"), await world.submit("two")
    await world.events(running, until="step_completed")
    assert (await world.cancel(queued)).state == pb.GENERATION_STATE_CANCELLED
    assert kinds(await world.events(queued))[-1] == "cancelled"
    assert (await world.cancel(running)).state == pb.GENERATION_STATE_CANCELLED
    events = await world.events(running)
    check_sequence(events)
    assert kinds(events).count("step_completed") == 1
    assert await asyncio.wait_for(world.denoiser.stopped.get(), 20) == running.generation_id
    again = await world.cancel(running)
    assert again.last_sequence == len(events), "cancelling twice changes nothing"

    world.denoiser.pause_before = None
    done = await world.submit("three")
    await world.events(done)
    assert (await world.cancel(done)).state == pb.GENERATION_STATE_SUCCEEDED
    assert [r.generation_id for r in world.denoiser.requests] == [
        running.generation_id,
        done.generation_id,
    ], "the job that was cancelled in the queue never ran"

    await world.denoiser.die()
    waiting = await world.submit("four")
    await world.events(waiting, until="waiting")
    assert (await world.cancel(waiting)).state == pb.GENERATION_STATE_CANCELLED
    await world.denoiser.start()
    check_sequence(await world.events(waiting))


async def test_cancelling_at_the_very_end_results_in_one_end(world: World) -> None:
    for _ in range(10):
        job = await world.submit()
        await world.events(job, until="started")
        cancelled = await world.cancel(job)
        events = await world.events(job)
        check_sequence(events)
        ended = await world.get(job)
        assert ended.state == cancelled.state
        video = world.directory / "videos" / f"{job.generation_id}.mp4"
        assert video.exists() == (ended.state == pb.GENERATION_STATE_SUCCEEDED)


async def test_deadlines_end_running_queued_and_waiting_jobs(world: World) -> None:
    world.denoiser.pause_before = 1
    running = await world.submit("one", deadline=ahead(3))
    queued = await world.submit("two", deadline=ahead(3))
    for job in (running, queued):
        events = await world.events(job)
        check_sequence(events)
        assert events[-1].failed.error.reason == errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    assert await asyncio.wait_for(world.denoiser.stopped.get(), 20) == running.generation_id
    await world.denoiser.die()
    waiting = await world.submit("three", deadline=ahead(3))
    events = await world.events(waiting)
    check_sequence(events)
    assert events[-1].failed.error.reason == errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    assert [cause.metadata["service"] for cause in causes(events)] == ["denoiser"]


async def test_kill_9_loses_no_job_and_ends_none_twice(world: World) -> None:
    world.denoiser.pause_before = 2
    jobs = [await world.submit(f"prompt {n}", request_id=f"killed-{n}") for n in range(3)]
    before = await world.events(jobs[0], until="step_completed")
    world.process.kill()
    world.denoiser.go.set()
    await world.boot()
    again = await world.submit("prompt 1", request_id="killed-1")
    assert again.generation_id == jobs[1].generation_id
    for job in jobs:
        events = await world.events(job)
        check_sequence(events)
        assert kinds(events)[-1] == "succeeded"
        assert (await world.video(job))[0].size_bytes > 0
    events = await world.events(jobs[0])
    assert events[: len(before)] == before, "events that were sent stay unchanged"
    assert [(await world.get(job)).attempts for job in jobs] == [2, 1, 1]


async def test_known_models_persist_across_a_restart_without_the_denoiser(world: World) -> None:
    await world.denoiser.die()
    world.process.kill()
    await world.boot()
    job = await world.submit()
    await world.events(job, until="waiting")
    await world.denoiser.start()
    check_sequence(await world.events(job))


async def test_sigterm_requeues_the_running_job_and_ends_its_watchers_calls(world: World) -> None:
    world.denoiser.pause_before = 2
    job = await world.submit()
    await world.events(job, until="step_completed")
    watching = asyncio.create_task(world.events(job))
    assert await asyncio.to_thread(world.process.terminate) == 0
    code, error = await rejected(watching)
    assert (code, error.reason) == (grpc.StatusCode.UNAVAILABLE, errors_pb2.ERROR_REASON_SHUTTING_DOWN)
    assert await asyncio.wait_for(world.denoiser.stopped.get(), 20) == job.generation_id
    world.denoiser.go.set()
    await world.boot()
    events = await world.events(job)
    check_sequence(events)
    assert kinds(events)[-1] == "succeeded"
    assert kinds(events).count("queued") == 2


async def test_second_scheduler_on_one_database_exits_with_a_reason(world: World) -> None:
    def second() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "services.scheduler"],
            cwd=ROOT,
            env={**world.process.env, "PATH": "", "CHORUS_SCHEDULER_PORT": "0"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = await asyncio.to_thread(second)
    assert done.returncode == 1
    assert "in use by another scheduler" in done.stderr
    assert "Traceback" not in done.stderr
    check_sequence(await world.events(await world.submit()))
