"""Verifies the asyncio and the sync client against a scripted scheduler over sockets."""

from __future__ import annotations

import asyncio
import runpy
import socket
from collections.abc import AsyncIterator
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from chorus.scheduler.v1 import scheduler_pb2
from chorus_client import (
    AsyncChorusClient,
    CacheClient,
    ChorusClient,
    ChorusError,
    ClientClosed,
    Event,
    Generation,
    GenerationCancelled,
    GenerationFailed,
    Range,
    explicit_reuse,
)
from chorus_rpc import errors

from tests.integration.client.fakes import PREVIEW, VIDEO, FakeDeployment, deployment_in_thread
from tests.processes import ROOT


@pytest.fixture
async def client(deployment: FakeDeployment) -> AsyncIterator[AsyncChorusClient]:
    async with AsyncChorusClient(deployment.target) as running:
        yield running


def unused_target() -> str:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{holder.getsockname()[1]}"


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_generate_returns_the_video_and_every_event_in_order(client: AsyncChorusClient) -> None:
    seen: list[Event] = []
    accepted: list[Generation] = []
    video = await client.generate("a red circle", seed=7, on_event=seen.append, on_accepted=accepted.append)
    assert video.data == VIDEO
    assert video.generation.id == accepted[0].id
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].kind == "succeeded"


async def test_result_reports_an_exact_repeat(client: AsyncChorusClient) -> None:
    repeated, hit = [
        (await client.generate(prompt, seed=7)).generation for prompt in ("repeat it", "another")
    ]
    assert (repeated.exact, repeated.hit, repeated.steps_run) == (True, True, 0)
    assert (hit.exact, hit.hit) == (False, True)


async def test_result_reports_the_reuse(client: AsyncChorusClient) -> None:
    handle = await client.submit("warn me", seed=7)
    assert handle.accepted is not None
    assert (handle.id, handle.accepted.seed, handle.accepted.model) == ("gen-1", 7, "")
    result = await handle.result()
    assert result.hit
    assert result.seconds_saved == 0.7
    assert result.donor is not None
    assert (result.donor.prompt, result.donor.score) == ("a [red] circle", 0.91)
    assert [(warning.reason, warning.message) for warning in result.warnings] == [
        ("DEPENDENCY_UNAVAILABLE", "the cache did not answer")
    ]
    generation = result.generation
    assert (generation.state, generation.steps_run, generation.timings.total_seconds) == ("succeeded", 2, 1.5)
    assert generation.done
    assert generation.plan is not None
    assert (generation.plan.total_steps, generation.plan.reuse_steps) == (4, 2)
    assert generation.plan.reasons == ("score 0.910 allows 2 steps",)
    assert generation.video is not None
    assert (generation.video.frames, generation.video.height) == (8, 256)
    with pytest.raises(FrozenInstanceError):
        generation.seed = 8  # type: ignore[misc]


async def test_handle_by_id_waits_saves_and_reads_the_state(
    client: AsyncChorusClient, tmp_path: Path
) -> None:
    await client.submit("x")
    handle = client.handle("gen-1")
    assert handle.accepted is None
    assert (await handle.save(tmp_path / "x.mp4")).read_bytes() == VIDEO
    assert (await handle.result()).save(tmp_path / "y.mp4").read_bytes() == VIDEO
    assert (await handle.status()).state == "succeeded"
    assert sorted(path.name for path in files_in(tmp_path)) == ["x.mp4", "y.mp4"]


async def test_events_are_typed(client: AsyncChorusClient) -> None:
    handle = await client.submit("warn me without a GPU")
    events = [event async for event in handle.events()]
    assert [event.kind for event in events] == [
        "queued", "planned", "started", "step_completed", "step_completed", "warning", "succeeded"
    ]  # fmt: skip
    queued, planned, started, step, _, warning, last = events
    assert (queued.queue_position, started.attempt, last.seconds_saved) == (1, 1, 0.7)
    assert planned.plan is not None
    assert planned.plan.donor is not None
    assert step.step is not None
    assert (step.step.number, step.step.total_steps, step.step.computed_share) == (3, 4, 1.0)
    assert (step.step.backend, step.step.fallback) == ("torch", "needs a CUDA device")
    assert warning.problem is not None
    assert warning.problem.message == "the cache did not answer"
    assert [event.last for event in events] == [False] * 6 + [True]


async def test_result_waits_for_a_generation_under_way(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    handle = await client.submit("slow circle")
    waiting = asyncio.create_task(handle.result())
    await asyncio.to_thread(deployment.scheduler.watching.wait, 10)
    assert not waiting.done()
    assert (await handle.cancel()).state == "cancelled"
    with pytest.raises(GenerationCancelled):
        await waiting


async def test_close_ends_what_waits_with_an_error(deployment: FakeDeployment) -> None:
    client = AsyncChorusClient(deployment.target)
    handle = await client.submit("slow circle")
    waiting = [
        asyncio.create_task(work)
        for work in (handle.result(), client.generate("slow square"), anext(handle.events(4)))
    ]
    await asyncio.to_thread(deployment.scheduler.watching.wait, 10)
    await client.close()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, ClientClosed), repr(outcome)
    with pytest.raises(ClientClosed, match="this client is closed"):
        await handle.status()


async def test_options_reach_the_server_as_given(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    await client.submit(
        "x", model="m", frames=8, height=32, width=32, sigmas=[1, 0.5, 0], seed=3,
        reuse="safe", no_store=True, step_previews=True, deadline=90.5,
    )  # fmt: skip
    spec = deployment.scheduler.requests[0].spec
    assert (spec.model_id, spec.shape.frames, list(spec.schedule.sigmas)) == ("m", 8, [1, 0.5, 0])
    assert (spec.seed, spec.no_store, spec.HasField("deadline")) == (3, True, False)
    assert spec.step_previews
    assert spec.timeout.ToMilliseconds() == 90_500
    assert not spec.HasField("retention")
    await client.submit("x", pin=True, lifetime=0.25)
    retention = deployment.scheduler.requests[1].spec.retention
    assert (retention.pinned, retention.lifetime.ToMilliseconds()) == (True, 250)


async def test_steps_have_pictures_if_the_request_asks_for_them(client: AsyncChorusClient) -> None:
    for asked in (True, False):
        handle = await client.submit("x", step_previews=asked)
        steps = [event.step async for event in handle.events() if event.step is not None]
        assert steps
        assert all(step.preview == (PREVIEW if asked else b"") for step in steps)


async def test_explicit_plan_reaches_the_server(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    plan = explicit_reuse(1, region_end=3, region="probe", amplify="contrast:0.5")
    await client.submit("x", explicit_reuse=plan)
    assert deployment.scheduler.requests[0].spec.explicit_reuse == plan
    await client.submit("x", explicit_reuse=None)
    assert not deployment.scheduler.requests[1].spec.HasField("explicit_reuse")


async def test_each_submission_has_its_own_request_id_unless_given(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    await client.submit("x")
    await client.submit("x")
    first = await client.submit("x", request_id="same")
    again = await client.submit("x", request_id="same")
    ids = [request.request_id for request in deployment.scheduler.requests]
    assert ids[0] != ids[1]
    assert first.id == again.id


@pytest.mark.parametrize("drops", [[0, 1, 2, 1], [3], [5, 0, 0]])
async def test_events_survive_broken_streams_without_loss_or_repetition(
    client: AsyncChorusClient, deployment: FakeDeployment, drops: list[int]
) -> None:
    handle = await client.submit("a red circle")
    deployment.scheduler.drops = list(drops)
    seen = [event.sequence async for event in handle.events()]
    assert seen == list(range(1, 7))
    assert deployment.scheduler.watched_after[-1] > 0


async def test_events_continue_over_a_restart_of_the_server(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    handle = await client.submit("slow circle")
    scheduler = deployment.scheduler
    seen: list[int] = []

    async def follow() -> None:
        async for event in handle.events():
            seen.append(event.sequence)

    following = asyncio.create_task(follow())
    async with asyncio.timeout(20):
        await asyncio.to_thread(scheduler.watching.wait, 10)
        before = len(scheduler.events[handle.id])
        await deployment.stop()
        await deployment.start()
        await handle.cancel()
        await following
    assert seen == list(range(1, before + 2))


async def test_events_after_the_last_one_are_empty(
    client: AsyncChorusClient,
) -> None:
    handle = await client.submit("x")
    last = (await handle.status()).last_sequence
    rest = [event async for event in handle.events(last)]
    assert rest == []


async def test_events_end_at_their_timeout(client: AsyncChorusClient) -> None:
    handle = await client.submit("slow circle")
    with pytest.raises(ChorusError) as fault:
        async for _ in handle.events(timeout=0.3):
            pass
    assert fault.value.reason == errors.DEADLINE_EXCEEDED
    assert fault.value.message == f"{handle.id} had not ended after 0.3 s"


@pytest.mark.parametrize("number", [-1, 2**64])
async def test_events_after_an_impossible_number_are_refused(client: AsyncChorusClient, number: int) -> None:
    handle = await client.submit("x")
    with pytest.raises(ChorusError, match=r"after_sequence: must be 0 to 2\^64 − 1"):
        await anext(handle.events(number))


async def test_events_fail_if_the_server_does_not_return() -> None:
    async with AsyncChorusClient(unused_target()) as client:
        with pytest.raises(ChorusError) as fault:
            async for _ in client.handle("gen-1").events(patience=0.2):
                pass
    assert fault.value.reason == errors.DEPENDENCY_UNAVAILABLE
    assert fault.value.metadata["service"] == "scheduler"


async def test_bad_input_names_each_field(client: AsyncChorusClient, deployment: FakeDeployment) -> None:
    with pytest.raises(ChorusError) as fault:
        await client.submit(" ", frames=65, height=32, width=32)
    assert [v.field for v in fault.value.violations] == ["spec.prompt", "spec.shape.frames"]
    assert deployment.scheduler.generations == {}


async def test_values_that_protobuf_cannot_carry_are_refused_before_they_are_sent(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    with pytest.raises(ChorusError) as fault:
        await client.submit(
            "\udcff", steps=-1, sigmas=[1, 0], seed=2**64, reuse="some", deadline=float("nan")
        )
    assert {v.field for v in fault.value.violations} == {"prompt", "steps", "seed", "reuse", "deadline"}
    assert deployment.scheduler.requests == []


async def test_partial_size_is_refused(client: AsyncChorusClient) -> None:
    with pytest.raises(
        ChorusError, match="shape: give frames, height and width, or none of them, not only width"
    ):
        await client.submit("x", width=32)


async def test_failed_generation_raises_its_reason(client: AsyncChorusClient) -> None:
    with pytest.raises(GenerationFailed, match="NaN at step 3") as fault:
        await client.generate("fail please")
    assert fault.value.generation.id == "gen-1"


async def test_cancelling_the_caller_cancels_the_generation(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    task = asyncio.create_task(client.generate("slow circle"))
    await asyncio.to_thread(deployment.scheduler.watching.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError, match="gen-1 is cancelled"):
        await task
    assert deployment.scheduler.events["gen-1"][-1].HasField("cancelled")


async def test_cancelling_the_caller_after_the_end_reports_the_state(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    task = asyncio.create_task(client.generate("slow circle"))
    await asyncio.to_thread(deployment.scheduler.watching.wait, 10)
    # Ended at the server, but the client has received no event of it.
    deployment.scheduler.generations["gen-1"].state = scheduler_pb2.GENERATION_STATE_SUCCEEDED
    task.cancel()
    with pytest.raises(asyncio.CancelledError, match="interrupted; gen-1 had already succeeded"):
        await task


@pytest.mark.parametrize("callback", ["on_accepted", "on_event"])
async def test_an_exception_in_a_callback_ends_the_wait_but_not_the_generation(
    client: AsyncChorusClient, callback: str
) -> None:
    def refuse(_: Event | Generation) -> None:
        raise ZeroDivisionError

    callbacks: dict[str, Any] = {callback: refuse}
    with pytest.raises(ZeroDivisionError):
        await client.generate("slow circle", **callbacks)
    assert (await client.handle("gen-1").status()).state == "running"


async def test_generate_gives_up_on_a_server_that_stays_away(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    task = asyncio.create_task(client.generate("slow circle", patience=0.2))
    await asyncio.to_thread(deployment.scheduler.watching.wait, 10)
    await deployment.stop()
    async with asyncio.timeout(20):
        with pytest.raises(ChorusError) as fault:
            await task
    assert fault.value.reason == errors.DEPENDENCY_UNAVAILABLE


async def test_a_generation_cancelled_elsewhere_raises_generation_cancelled(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    task = asyncio.create_task(client.generate("slow circle"))
    await asyncio.to_thread(deployment.scheduler.watching.wait, 10)
    await client.handle("gen-1").cancel()
    with pytest.raises(GenerationCancelled, match="gen-1 was cancelled") as fault:
        await task
    assert fault.value.generation.state == "cancelled"
    assert fault.value.reason == errors.CANCELLED


async def test_list_requests_pages_up_to_the_limit(client: AsyncChorusClient) -> None:
    for number in range(5):
        await client.submit(f"x {number}")
    await client.submit("fail please")
    assert [g.id for g in await client.list(limit=5)] == [f"gen-{n}" for n in (6, 5, 4, 3, 2)]
    assert [g.id for g in await client.list("failed")] == ["gen-6"]
    with pytest.raises(ChorusError, match="state: must be one of"):
        await client.list("sleeping")
    with pytest.raises(ChorusError, match="limit: must be at least 1, not 0"):
        await client.list(limit=0)


async def test_list_states_every_filter(client: AsyncChorusClient, deployment: FakeDeployment) -> None:
    handle = await client.submit("repeat a circle", model="large")
    await client.submit("a circle", model="small")
    await handle.report("other")
    found = await client.list(model="large", decision="exact", reported=True)
    assert [each.id for each in found] == [handle.id]
    await client.list(edit="colour", donor="gen-1")
    request = deployment.scheduler.lists[-1]
    assert (request.edit_kind, request.donor_generation_id) == ("colour", "gen-1")
    assert (request.model_id, request.decision, request.reported) == ("", 0, False)
    with pytest.raises(ChorusError, match="decision: must be one of hit, miss, exact, not 'maybe'"):
        await client.list(decision="maybe")
    with pytest.raises(ChorusError, match="reported: must be True or False"):
        await client.list(reported="yes")  # type: ignore[arg-type]


async def test_report_is_part_of_the_generation_until_it_is_withdrawn(client: AsyncChorusClient) -> None:
    handle = await client.submit("a blue circle")
    assert (await handle.status()).report is None
    reported = await handle.report("donor_visible", "a square is left")
    assert reported.report is not None
    assert (reported.report.problem, reported.report.comment) == ("donor_visible", "a square is left")
    assert reported.report.time.tzinfo is UTC
    assert (await handle.status()).report == reported.report
    for _ in range(2):
        assert (await handle.withdraw_report()).report is None
    with pytest.raises(ChorusError, match=r"problem: must be one of donor_visible, .*, not 'ugly'"):
        await handle.report("ugly")
    slow = await client.submit("slow circle")
    with pytest.raises(ChorusError) as caught:
        await slow.report("other")
    assert caught.value.reason == errors.WRONG_STATE


async def test_class_of_a_generation_that_waits_is_changed(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    handle = await client.submit("slow circle")
    with pytest.raises(ChorusError) as caught:
        await handle.change_priority("high")
    assert caught.value.reason == errors.WRONG_STATE
    waiting = deployment.scheduler.generations[handle.id]
    waiting.state = scheduler_pb2.GENERATION_STATE_QUEUED
    waiting.predicted_start_time.FromSeconds(1_800_000_000)
    before = await handle.status()
    assert (before.priority, before.predicted_start) == ("normal", datetime.fromtimestamp(1_800_000_000, UTC))
    assert (await handle.change_priority("high")).priority == "high"
    with pytest.raises(ChorusError, match="priority: must be one of low, normal, high, not ''"):
        await handle.change_priority("")


async def test_models_are_listed_with_their_bounds(client: AsyncChorusClient) -> None:
    small, large = await client.models()
    assert (small.id, large.id) == ("small", "large")
    assert small.frames == Range(8, 64, 8)
    assert small.default_shape == (16, 64, 64)
    assert small.default_sigmas[0] == 1.0
    assert small.seconds_per_step == 0.25


async def test_preview_plans_and_submits_nothing(
    client: AsyncChorusClient, deployment: FakeDeployment
) -> None:
    preview = await client.preview("a blue circle", model="small", seed=7)
    assert (preview.plan.reuse_steps, preview.model, preview.seed) == (2, "small", 7)
    assert (preview.run_seconds, preview.queue_seconds) == (0.75, 3.0)
    assert preview.plan.donor is not None
    assert not deployment.scheduler.requests


async def test_deleted_generation_is_not_found(client: AsyncChorusClient) -> None:
    handle = await client.submit("a blue circle")
    await handle.delete()
    for use in (handle.delete, handle.status):
        with pytest.raises(ChorusError) as caught:
            await use()
        assert caught.value.reason == errors.NOT_FOUND


async def test_damaged_video_is_rejected(
    client: AsyncChorusClient, deployment: FakeDeployment, tmp_path: Path
) -> None:
    handle = await client.submit("x")
    deployment.scheduler.damage_video = True
    with pytest.raises(ChorusError) as fault:
        await handle.save(tmp_path / "x.mp4")
    assert fault.value.reason == errors.BLOB_CORRUPT
    assert files_in(tmp_path) == []


async def test_unknown_id_is_not_found(client: AsyncChorusClient) -> None:
    with pytest.raises(ChorusError) as fault:
        await client.handle("gen-9").status()
    assert fault.value.reason == errors.NOT_FOUND


@pytest.mark.parametrize("blocking", [False, True])
async def test_server_info_names_the_services(deployment: FakeDeployment, blocking: bool) -> None:
    if blocking:
        with ChorusClient(deployment.target) as client:
            info = await asyncio.to_thread(client.server_info)
    else:
        async with AsyncChorusClient(deployment.target) as client_:
            info = await client_.server_info()
    assert (info.tenant, info.denoisers_left_out) == ("", 0)
    assert [(each.name, each.state, each.version, each.address) for each in info.services] == [
        ("scheduler", "serving", "0.9", ""),
        ("cache", "serving", "0.8", "cache:7402"),
        ("denoiser", "not serving", "", "gpu-1:7403"),
        ("denoiser", "unknown", "", "gpu-2:7403"),
    ]


def test_sync_client_returns_the_same_results(tmp_path: Path) -> None:
    with deployment_in_thread(FakeDeployment) as deployment, ChorusClient(deployment.target) as client:
        video = client.generate("a red circle")
        identifier = video.generation.id
        assert video.data == VIDEO
        handle = client.handle(identifier)
        assert handle.status().id == identifier
        assert [g.id for g in client.list()] == [identifier]
        assert handle.save(tmp_path / "x.mp4").read_bytes() == VIDEO
        assert handle.result().data == VIDEO
        assert [e.sequence for e in handle.events()] == list(range(1, 7))
        slow = client.submit("slow circle")
        events = slow.events()
        assert next(events).kind == "queued"
        slow.cancel()
        assert [e.kind for e in events][-1] == "cancelled"
        with pytest.raises(GenerationCancelled):
            slow.result()
        with pytest.raises(GenerationFailed):
            client.generate("fail please")
        with CacheClient(deployment.target, "team-b") as cache:
            assert cache.stats().entries == 7
            assert cache.purge(everything=True).entries == 3
            assert cache.adopt(validate_only=True).broken_entries == 5
    assert deployment.cache.tenants == ["team-b"]


def test_reuse_report_example_prints_what_reuse_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = runpy.run_path(str(ROOT / "examples/reuse_report.py"))
    with deployment_in_thread(FakeDeployment) as deployment:
        monkeypatch.setenv("CHORUS_TARGET", deployment.target)
        example["main"](["warn me", "fail please", "a red circle"])
    assert capsys.readouterr().out.splitlines() == [
        "warn me: from 'a [red] circle', 2 steps, 1.50 s",
        "  warning: the cache did not answer",
        "fail please: gen-2 failed: the model produced NaN at step 3",
        "a red circle: from 'a [red] circle', 2 steps, 1.50 s",
        "1.40 s saved",
    ]


def test_sync_client_closed_twice_refuses_calls() -> None:
    client = ChorusClient(unused_target())
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.list()
