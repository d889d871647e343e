"""The order of jobs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.dispatch.queue import choose, in_order
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import QueuedJob

tickets = st.lists(
    st.builds(
        lambda number, state: QueuedJob(f"job-{number}", number, state, 0.0, 0),
        st.integers(1, 1000),
        st.sampled_from([State.QUEUED, State.WAITING]),
    ),
    unique_by=lambda ticket: ticket.number,
    max_size=20,
)


@given(tickets, st.integers(-1, 5), st.data())
def test_first_come_first_served(queue: list[QueuedJob], free: int, data: st.DataObject) -> None:
    held = set(data.draw(st.lists(st.sampled_from([t.job_id for t in queue])))) if queue else set()
    ordered = in_order(queue)
    chosen = choose(ordered, held, free)
    assert [t.number for t in ordered] == sorted(t.number for t in queue)
    assert len(chosen) == min(max(free, 0), len(queue) - len(held))
    assert not {t.job_id for t in chosen} & held
    left = [t.number for t in ordered if t not in chosen and t.job_id not in held]
    assert all(c.number < n for c in chosen for n in left)
