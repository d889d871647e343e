"""Verifies the order in which queued jobs are started, and the end of the dispatcher with its store."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import errors
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.dispatch.dispatcher import Dispatcher, select_jobs, sort_queue
from services.scheduler.jobs.deadline import Deadline
from services.scheduler.jobs.passing_faults import PassingFault
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import QueuedJob, StoreError

queues = st.lists(
    st.builds(
        lambda number, state: QueuedJob(f"job-{number}", number, state, 0.0, 0),
        st.integers(1, 1000),
        st.sampled_from([State.QUEUED, State.WAITING]),
    ),
    unique_by=lambda job: job.number,
    max_size=20,
)


@given(queues, st.integers(-1, 5), st.data())
def test_jobs_start_in_the_order_of_their_acceptance(
    queue: list[QueuedJob], free: int, data: st.DataObject
) -> None:
    paused = set(data.draw(st.lists(st.sampled_from([job.job_id for job in queue])))) if queue else set()
    ordered = sort_queue(queue)
    selected = select_jobs(ordered, paused, free)
    assert [job.number for job in ordered] == sorted(job.number for job in queue)
    assert len(selected) == min(max(free, 0), len(queue) - len(paused))
    assert not {job.job_id for job in selected} & paused
    remaining = [job.number for job in ordered if job not in selected and job.job_id not in paused]
    assert all(job.number < number for job in selected for number in remaining)


class _FailingStore:
    """Store whose every read of the queue fails, first in a way that passes."""

    def __init__(self) -> None:
        self.faults: list[Exception] = [PassingFault("the job database", "", "locked"), StoreError("damaged")]

    async def unfinished(self) -> list[QueuedJob]:
        raise self.faults.pop(0)


@pytest.mark.fault("logging")
async def test_dispatcher_ends_with_a_store_that_is_damaged() -> None:
    """Its end ends the process, so that no accepted job waits unnoticed."""
    unused = cast(Any, None)
    dispatcher = Dispatcher(unused, cast(Any, _FailingStore()), unused, (), unused)
    with pytest.raises(StoreError, match="damaged"):
        await asyncio.wait_for(dispatcher.run(), 20)


class _OneRunningJob:
    """Store with one job that was running when its process died."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.recorded: asyncio.Queue[tuple[list[pb.GenerationEvent], bool]] = asyncio.Queue()

    async def unfinished(self) -> list[QueuedJob]:
        return [QueuedJob("job", 1, State.RUNNING, self.deadline, 0)] if self.recorded.empty() else []

    async def get(self, _: str) -> Any:
        deadline = Deadline(Timestamp(seconds=int(self.deadline)))
        return SimpleNamespace(state=State.RUNNING, crashes=0, generation=pb.Generation(), deadline=deadline)

    async def advance(
        self, _: str, __: object, events: list[pb.GenerationEvent], crashed: bool = False
    ) -> bool:
        await self.recorded.put((events, crashed))
        return True


class _StuckVideos:
    async def remove(self, _: list[str]) -> None:
        raise PermissionError("not permitted")


async def start_dispatcher(store: _OneRunningJob) -> asyncio.Task[None]:
    settings = cast(Any, SimpleNamespace(max_crashes=5, concurrency=0))
    dispatcher = Dispatcher(cast(Any, None), cast(Any, store), cast(Any, _StuckVideos()), (), settings)
    return asyncio.create_task(dispatcher.run())


@pytest.mark.fault("scheduler-resources")
async def test_video_that_cannot_be_removed_does_not_stop_the_queue() -> None:
    store = _OneRunningJob(time.time() + 3600)
    running = await start_dispatcher(store)
    events, crashed = await asyncio.wait_for(store.recorded.get(), 20)
    running.cancel()
    assert events[0].WhichOneof("event") == "queued"
    assert crashed


@pytest.mark.fault("scheduler-resources")
async def test_run_that_outlived_its_deadline_is_no_crash() -> None:
    store = _OneRunningJob(time.time() - 1)
    running = await start_dispatcher(store)
    events, crashed = await asyncio.wait_for(store.recorded.get(), 20)
    running.cancel()
    assert events[0].failed.error.reason == errors.DEADLINE_EXCEEDED
    assert not crashed
