"""Verifies the public API of the real process over sockets, for valid and for invalid requests."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from chorus.common.v1 import errors_pb2, latents_pb2, plan_pb2, video_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.errors import ChorusError, from_rpc_error
from google.protobuf.timestamp_pb2 import Timestamp

from tests.integration.scheduler.fakes import STEPS, VIDEO, video_info
from tests.integration.scheduler.world import World, check_sequence, kinds

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with World(tmp_path_factory.mktemp("scheduler")) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(running: World) -> World:
    await running.refresh()
    return running


async def rejected(call: Any) -> tuple[grpc.StatusCode, ChorusError]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), from_rpc_error(caught.value, "scheduler")


async def test_miss_runs_every_step_from_prompt_to_video(world: World) -> None:
    accepted = await world.submit("  a red car ", seed=5)
    spec = accepted.spec
    assert (spec.prompt, spec.model_id, spec.seed) == ("a red car", "small", 5)
    assert len(spec.schedule.sigmas) == STEPS + 1
    assert spec.shape.frames == 8
    assert spec.reuse == plan_pb2.REUSE_POLICY_BALANCED
    assert spec.deadline.seconds > time.time()

    events = await world.events(accepted)
    check_sequence(events)
    assert kinds(events) == ["queued", "planned", "started", *["step_completed"] * STEPS, "succeeded"]
    steps = [e.step_completed for e in events if e.HasField("step_completed")]
    assert [s.step.index for s in steps] == [1, 2, 3, 4]
    assert [round(s.eta_seconds, 3) for s in steps] == [0.6, 0.4, 0.2, 0.0]

    ended = await world.get(accepted)
    assert ended.state == pb.GENERATION_STATE_SUCCEEDED
    assert (ended.steps_run, ended.steps_completed, ended.attempts) == (STEPS, STEPS, 1)
    assert [r.code for r in ended.plan.reasons] == [plan_pb2.PLAN_REASON_CODE_NO_DONOR]
    assert not ended.HasField("donor")
    assert not ended.warnings
    assert ended.timings.denoise_seconds == pytest.approx(0.8)
    assert ended.timings.total_seconds > 0
    assert ended.last_sequence == len(events)
    assert events[-1].succeeded.seconds_saved == 0
    header, data = await world.video(accepted)
    assert data == VIDEO
    assert header == video_info() == ended.video


async def test_hit_runs_fewer_steps_and_reports_the_seconds_saved(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    accepted = await world.submit()
    events = await world.events(accepted)
    assert kinds(events).count("step_completed") == 1
    [planned] = [e.planned.plan for e in events if e.HasField("planned")]
    assert (planned.total_steps, planned.reuse_steps) == (4, 3)
    assert planned.predicted_seconds_saved > 0
    assert "0.999" in planned.reasons[0].text
    # Three steps at this run's 0.2 s each, minus 0.1 s for the fetch.
    assert events[-1].succeeded.seconds_saved == pytest.approx(0.5)
    ended = await world.get(accepted)
    assert ended.donor.generation_id == "donor-generation"
    assert ended.donor.score == pytest.approx(0.9992)
    assert (ended.steps_run, ended.steps_completed) == (1, 4)


async def test_requests_to_the_services_follow_from_the_spec(world: World) -> None:
    accepted = await world.submit("a red car", seed=9, steps=2)
    await world.events(accepted)
    [lookup] = world.cache.lookups
    [request] = world.denoiser.requests
    assert list(lookup.identity.latent_shape) == [12, 8, 16, 16]
    assert lookup.identity.schedule == request.schedule == accepted.spec.schedule
    assert lookup.identity.weights_digest == "ab" * 32
    assert lookup.retrieval_encoder_id == request.retrieval_encoder_id == "ret@1"
    assert (request.seed, request.vector_dim) == (9, 2)
    assert request.conditioning_encoder_id == "enc@1"
    assert list(request.token_states.shape) == [3, 4]
    assert request.admission.prompt == "a red car"
    assert 3_500 < world.denoiser.time_remaining[0] <= 3_600
    for fake in (world.embedder, world.cache, world.denoiser):
        assert fake.metadata[0]["chorus-tenant"] == "acme"


async def test_reuse_off_makes_no_lookup_and_no_store_requests_no_admission(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    accepted = await world.submit(reuse=plan_pb2.REUSE_POLICY_OFF, no_store=True)
    await world.events(accepted)
    assert not world.cache.lookups
    assert not world.denoiser.requests[0].HasField("admission")
    ended = await world.get(accepted)
    assert [r.code for r in ended.plan.reasons] == [plan_pb2.PLAN_REASON_CODE_REUSE_OFF]


async def test_donor_that_could_not_be_used_is_a_warning(world: World) -> None:
    world.cache.hold(0.9992, 1, 2, 3)
    world.denoiser.degraded = True
    world.embedder.truncated = True
    ended = await world.get(await _ended(world))
    assert [w.metadata["service"] for w in ended.warnings] == ["embedder", "cache"]
    assert (ended.steps_run, ended.HasField("donor")) == (STEPS, False)


@pytest.mark.fault("swallowed-errors")
@pytest.mark.parametrize("early", [False, True])
async def test_refused_admission_is_a_warning(world: World, early: bool) -> None:
    world.denoiser.refusal = errors_pb2.JobError(
        reason=errors_pb2.ERROR_REASON_DISK_FULL, message="the disk is full", metadata={"service": "cache"}
    )
    world.denoiser.refuses_early = early
    job = await _ended(world)
    end = time.monotonic() + 20
    # The outcome of the admission may come after the end of the job.
    while not (ended := await world.get(job)).warnings:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    [warning] = ended.warnings
    assert warning.reason == errors_pb2.ERROR_REASON_DISK_FULL
    assert warning.message == "the latents were not stored for later requests: the disk is full"
    assert warning.metadata["service"] == "cache"
    assert ended.state == pb.GENERATION_STATE_SUCCEEDED
    events = await world.events(job)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert kinds(events)[-2:] == (["warning", "succeeded"] if early else ["succeeded", "warning"])
    assert ended.last_sequence == events[-1].sequence
    assert ended.end_time == next(event.time for event in events if event.HasField("succeeded"))


@pytest.mark.fault("swallowed-errors")
async def test_unknown_outcome_of_the_admission_is_a_warning(world: World) -> None:
    world.denoiser.ends_before_admission = True
    job = await _ended(world)
    end = time.monotonic() + 20
    while not (ended := await world.get(job)).warnings:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    [warning] = ended.warnings
    assert warning.message.startswith("it is not known whether the latents were stored for later requests: ")
    assert "deadline" not in warning.message
    assert ended.state == pb.GENERATION_STATE_SUCCEEDED


@pytest.mark.fault("silent-dependency")
async def test_next_job_does_not_wait_for_the_admission_of_the_latents(world: World) -> None:
    world.denoiser.pause_before = -1
    async with asyncio.timeout(20):
        for prompt in ("one", "two", "three"):
            job = await world.submit(prompt)
            assert kinds(await world.events(job))[-1] == "succeeded"
    assert world.denoiser.running == 3, "no admission has ended yet"
    assert len(world.cache.lookups) == 3
    world.denoiser.go.set()


async def test_queue_is_first_come_first_served_and_reports_positions(world: World) -> None:
    world.denoiser.pause_before = 1
    jobs = [await world.submit(f"prompt {n}") for n in range(4)]
    await world.events(jobs[0], until="step_completed")
    assert [(await world.get(job)).queue_position for job in jobs] == [0, 1, 2, 3]
    world.denoiser.go.set()
    for job in jobs:
        events = await world.events(job)
        check_sequence(events)
    assert [r.generation_id for r in world.denoiser.requests] == [job.generation_id for job in jobs]
    positions = [e.queued.queue_position for e in events if e.HasField("queued")]
    assert positions == sorted(positions, reverse=True)
    assert positions[-1] == 1


async def test_submitting_again_returns_the_first_answer(world: World) -> None:
    request = pb.SubmitGenerationRequest(request_id="once", spec=pb.GenerationSpec(prompt="a red car"))
    first = await world.api.SubmitGeneration(request, timeout=20)
    again = await world.api.SubmitGeneration(request, timeout=20)
    assert (first.created, again.created) == (True, False)
    assert first.generation.generation_id == again.generation.generation_id
    assert first.generation.spec == again.generation.spec, "the seed that was chosen stays"
    request.spec.prompt = "a blue car"
    code, error = await rejected(world.api.SubmitGeneration(request, timeout=20))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == errors_pb2.ERROR_REASON_REQUEST_ID_REUSED
    assert [v.field for v in error.violations] == ["request_id"]
    await world.events(first.generation)
    assert len(world.denoiser.requests) == 1


async def test_invalid_requests_are_rejected_by_field_and_store_nothing(world: World) -> None:
    def request(request_id: str = "ok", **spec: Any) -> pb.SubmitGenerationRequest:
        return pb.SubmitGenerationRequest(
            request_id=request_id, spec=pb.GenerationSpec(**{"prompt": "x", **spec})
        )

    past = Timestamp(seconds=int(time.time()) - 60)
    big = video_pb2.VideoShape(frames=9999, height=31, width=32)
    rising = latents_pb2.Schedule(sigmas=[1.0, 0.5, 0.7, 0.0])
    before = rows(world)
    cases = [
        (pb.SubmitGenerationRequest(request_id="ok"), {"spec"}),
        (pb.SubmitGenerationRequest(), {"request_id", "spec"}),
        (request(prompt=" "), {"spec.prompt"}),
        (request(prompt="x" * 8193), {"spec.prompt"}),
        (request("not ok", prompt=""), {"request_id", "spec.prompt"}),
        (request(model_id="huge"), {"spec.model_id"}),
        (request(shape=big), {"spec.shape.frames", "spec.shape.height"}),
        (request(steps=100_000), {"spec.steps"}),
        (request(schedule=rising), {"spec.schedule.sigmas"}),
        (request(deadline=past), {"spec.deadline"}),
        (request("not ok", model_id="huge", prompt=""), {"request_id", "spec.prompt", "spec.model_id"}),
    ]
    for sent, fields in cases:
        code, error = await rejected(world.api.SubmitGeneration(sent, timeout=20))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert {v.field for v in error.violations} == fields
        assert all(v.description for v in error.violations)
        if "spec.model_id" in fields:
            assert error.reason == errors_pb2.ERROR_REASON_UNKNOWN_MODEL
            assert error.metadata["available"] == "small"
    assert rows(world) == before


async def test_unknown_ids_and_invalid_tokens_are_rejected(world: World) -> None:
    api = world.api
    missing = "no-such-generation"
    calls: list[Callable[[str], Awaitable[Any]]] = [
        lambda name: api.GetGeneration(pb.GetGenerationRequest(generation_id=name), timeout=20),
        lambda name: api.CancelGeneration(pb.CancelGenerationRequest(generation_id=name), timeout=20),
        lambda name: api.GetVideo(pb.GetVideoRequest(generation_id=name), timeout=20).read(),
        lambda name: api.WatchGeneration(pb.WatchGenerationRequest(generation_id=name), timeout=20).read(),
    ]
    for call in calls:
        code, error = await rejected(call(missing))
        assert (code, error.metadata) == (grpc.StatusCode.NOT_FOUND, {"generation": missing})
        code, error = await rejected(call(""))
        assert [v.field for v in error.violations] == ["generation_id"]
    for request, field in (
        (pb.ListGenerationsRequest(page_size=201), "page_size"),
        (pb.ListGenerationsRequest(page_token="nonsense"), "page_token"),
        (pb.ListGenerationsRequest(state=77), "state"),  # type: ignore[arg-type]
    ):
        code, error = await rejected(api.ListGenerations(request, timeout=20))
        assert (code, [v.field for v in error.violations]) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    ended = await _ended(world)
    beyond = pb.WatchGenerationRequest(generation_id=ended.generation_id, after_sequence=10_000)
    code, error = await rejected(api.WatchGeneration(beyond, timeout=20).read())
    assert [v.field for v in error.violations] == ["after_sequence"]


async def test_watching_resumes_at_any_event_without_gaps_or_repetitions(world: World) -> None:
    world.denoiser.pause_before = 2
    job = await world.submit()
    seen = await world.events(job, until="started")
    seen += await world.events(job, after=seen[-1].sequence, until="step_completed")
    others = [asyncio.create_task(world.events(job)) for _ in range(5)]
    world.denoiser.go.set()
    seen += await world.events(job, after=seen[-1].sequence)
    check_sequence(seen)
    assert [await other for other in others] == [seen] * 5
    for after in range(len(seen) + 1):
        assert await world.events(job, after=after) == seen[after:]


async def test_pages_list_every_generation_once(world: World) -> None:
    jobs = [await world.submit(f"prompt {n}") for n in range(5)]
    for job in jobs:
        await world.events(job)
    everything = await world.api.ListGenerations(pb.ListGenerationsRequest(page_size=200), timeout=20)
    assert everything.next_page_token == ""
    listed: list[str] = []
    token = "first"
    while token:
        reply = await world.api.ListGenerations(
            pb.ListGenerationsRequest(page_size=2, page_token=token if listed else ""), timeout=20
        )
        token = reply.next_page_token
        assert len(reply.generations) == 2 or not token
        listed += [g.generation_id for g in reply.generations]
    assert listed == [g.generation_id for g in everything.generations]
    assert listed[:5] == [job.generation_id for job in reversed(jobs)]
    running = pb.ListGenerationsRequest(state=pb.GENERATION_STATE_RUNNING)
    assert not (await world.api.ListGenerations(running, timeout=20)).generations


async def test_list_starts_after_a_generation_in_either_order(world: World) -> None:
    jobs = [await world.submit(f"prompt {n}", labels={"test": "order"}) for n in range(4)]
    for job in jobs:
        await world.events(job)
    ids = [job.generation_id for job in jobs]

    async def list_all(after: str, oldest_first: bool) -> list[str]:
        request = pb.ListGenerationsRequest(
            page_size=1, labels={"test": "order"}, oldest_first=oldest_first, after_generation_id=after
        )
        listed: list[str] = []
        while True:
            reply = await world.api.ListGenerations(request, timeout=20)
            listed += [generation.generation_id for generation in reply.generations]
            request.page_token, request.after_generation_id = reply.next_page_token, ""
            if not request.page_token:
                return listed

    assert await list_all("", oldest_first=True) == ids
    assert await list_all(ids[1], oldest_first=True) == ids[2:]
    assert await list_all(ids[2], oldest_first=False) == ids[1::-1]
    assert await list_all(ids[0], oldest_first=False) == []
    unknown = pb.ListGenerationsRequest(after_generation_id="0" * 32)
    code, _ = await rejected(world.api.ListGenerations(unknown, timeout=20))
    assert code == grpc.StatusCode.NOT_FOUND
    both = pb.ListGenerationsRequest(after_generation_id=ids[0], page_token="x")
    code, error = await rejected(world.api.ListGenerations(both, timeout=20))
    assert "after_generation_id" in [violation.field for violation in error.violations]


async def test_missing_or_altered_video_is_rejected(world: World) -> None:
    world.denoiser.pause_before = 1
    job = await world.submit()
    call = world.api.GetVideo(pb.GetVideoRequest(generation_id=job.generation_id), timeout=20)
    code, error = await rejected(call.read())
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == errors_pb2.ERROR_REASON_WRONG_STATE
    world.denoiser.go.set()
    await world.events(job)
    file = world.directory / "videos" / job.generation_id / "1.mp4"
    file.write_bytes(VIDEO[:-1] + b"!")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.video(job)
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    file.unlink()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.video(job)
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS


def rows(world: World) -> tuple[int, int]:
    """Returns the numbers of jobs and events in the database."""
    with closing(sqlite3.connect(f"file:{world.directory}/jobs.db?mode=ro", uri=True)) as db:
        jobs, events = db.execute(
            "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM events)"
        ).fetchone()
    return jobs, events


async def _ended(world: World) -> pb.Generation:
    job = await world.submit()
    await world.events(job)
    return job


async def test_concurrency_bounds_the_number_of_running_jobs(tmp_path: Path) -> None:
    settings = {"CHORUS_SCHEDULER_CONCURRENCY": "2", "CHORUS_SCHEDULER_WAIT_FOR_DONORS": "false"}
    async with World(tmp_path, settings) as world:
        world.denoiser.pause_before = 1
        jobs = [await world.submit(f"prompt {n}") for n in range(3)]
        for job in jobs[:2]:
            await world.events(job, until="step_completed")
        assert (await world.get(jobs[2])).queue_position == 1
        world.denoiser.go.set()
        for job in jobs:
            check_sequence(await world.events(job))
        assert world.denoiser.max_running == 2
