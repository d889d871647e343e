"""Verifies the order in which queued jobs are started."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.dispatch.dispatcher import select_jobs, sort_queue
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import QueuedJob

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
