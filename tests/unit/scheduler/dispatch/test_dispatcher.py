"""Verifies which queued jobs start, what becomes of interrupted ones, and the end with a damaged store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.dispatch.dispatcher import Dispatcher
from services.scheduler.dispatch.pauses import select_jobs
from services.scheduler.jobs.passing_faults import PassingFault
from services.scheduler.jobs.sql_store import SqlStore, open_store
from services.scheduler.jobs.states import IN_QUEUE, State
from services.scheduler.jobs.store import Job, NewJob, QueuedJob, QueueLook, StoreError

# Denoisers without a free slot.
NO_DENOISER = cast(Any, SimpleNamespace(slots=0, free_slots=0, rest_seconds=lambda: 0.0))

queues = st.lists(
    st.builds(
        lambda number, state: QueuedJob(f"job-{number}", state, 0.0, 0),
        st.integers(1, 1000),
        st.sampled_from([State.QUEUED, State.WAITING]),
    ),
    unique_by=lambda job: job.job_id,
    max_size=20,
)


@given(queues, st.integers(-1, 5), st.data())
def test_jobs_start_in_the_order_of_the_queue(queue: list[QueuedJob], free: int, data: st.DataObject) -> None:
    paused = set(data.draw(st.lists(st.sampled_from([job.job_id for job in queue])))) if queue else set()
    selected = select_jobs(queue, paused, free)
    assert len(selected) == min(max(free, 0), len(queue) - len(paused))
    assert not {job.job_id for job in selected} & paused
    ready = [job for job in queue if job.job_id not in paused]
    assert selected == ready[: len(selected)]


class _FailingStore:
    """Store whose every read of the queue fails, first in a way that passes."""

    def __init__(self) -> None:
        self.faults: list[Exception] = [PassingFault("the job database", "", "locked"), StoreError("damaged")]

    async def look(self, *_: float) -> QueueLook:
        raise self.faults.pop(0)


@pytest.mark.fault("logging")
async def test_dispatcher_ends_with_a_store_that_is_damaged() -> None:
    """Its end ends the process, so that no accepted job waits unnoticed."""
    unused = cast(Any, None)
    settings = cast(Any, SimpleNamespace(max_crashes=5, tenant_concurrency=0, resume_bytes=0))
    dispatcher = Dispatcher(unused, cast(Any, _FailingStore()), unused, unused, (), NO_DENOISER, settings)
    with pytest.raises(StoreError, match="damaged"):
        await asyncio.wait_for(dispatcher.run(), 20)


class _StuckVideos:
    async def discard(self, _: str, __: int) -> None:
        raise PermissionError("not permitted")


async def interrupt_job(path: Path, deadline: float, *, planned: bool) -> None:
    """Leaves a database with a job whose scheduler died: while it planned, or while the denoiser ran."""
    store = await open_store(str(path), lambda _: None)
    spec = pb.GenerationSpec(deadline=Timestamp(seconds=int(deadline)))
    await store.submit(NewJob("job", "default", "r", "d", spec, deadline, "", ""), 10)
    await store.claim("job")
    if planned:
        event = pb.GenerationEvent(planned=pb.PlannedEvent(plan=plan_pb2.Plan(total_steps=4)))
        await store.advance("job", IN_QUEUE, [event])
    await store.close()


async def dispatch_until(store: SqlStore, reached: Callable[[Job], bool]) -> Job:
    """Runs a dispatcher that starts no job until the job is as expected."""
    settings = cast(Any, SimpleNamespace(max_crashes=5, tenant_concurrency=0, resume_bytes=0))
    forecast = cast(Any, SimpleNamespace(wake=lambda: None))
    dispatcher = Dispatcher(
        cast(Any, None), store, cast(Any, _StuckVideos()), forecast, (), NO_DENOISER, settings
    )
    running = asyncio.create_task(dispatcher.run())
    try:
        async with asyncio.timeout(20):
            while True:
                job = await store.get("job")
                assert job is not None
                if reached(job):
                    return job
    finally:
        running.cancel()


@pytest.mark.fault("scheduler-resources")
async def test_video_that_cannot_be_removed_does_not_stop_the_queue(tmp_path: Path) -> None:
    await interrupt_job(tmp_path / "jobs.db", time.time() + 3600, planned=True)
    store = await open_store(str(tmp_path / "jobs.db"), lambda _: None)
    try:
        job = await dispatch_until(store, lambda job: job.state is State.QUEUED)
        assert job.crashes == 1
        assert [queued.job_id for queued in await store.queue(10)] == ["job"]
    finally:
        await store.close()


async def test_job_that_was_being_planned_waits_again_without_a_crash(tmp_path: Path) -> None:
    await interrupt_job(tmp_path / "jobs.db", time.time() + 3600, planned=False)
    store = await open_store(str(tmp_path / "jobs.db"), lambda _: None)
    try:
        assert await store.queue(10) == []
        running = asyncio.create_task(dispatch_until(store, lambda _: False))
        async with asyncio.timeout(20):
            while not await store.queue(10):
                pass
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        job = await store.get("job")
        assert job is not None
        assert (job.crashes, job.state) == (0, State.QUEUED)
    finally:
        await store.close()


@pytest.mark.fault("scheduler-resources")
@pytest.mark.parametrize("planned", [True, False])
async def test_run_that_outlived_its_deadline_is_no_crash(tmp_path: Path, planned: bool) -> None:
    await interrupt_job(tmp_path / "jobs.db", time.time() - 1, planned=planned)
    store = await open_store(str(tmp_path / "jobs.db"), lambda _: None)
    try:
        job = await dispatch_until(store, lambda job: job.state is State.FAILED)
        assert job.generation.error.reason == errors.DEADLINE_EXCEEDED
        assert job.crashes == 0
    finally:
        await store.close()
