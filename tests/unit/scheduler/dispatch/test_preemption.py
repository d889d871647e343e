"""Verifies which runs give way to waiting jobs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.dispatch.preemption import choose_runs_to_pause
from services.scheduler.jobs.ordering import Priority
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import QueuedJob

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


def job(name: str, priority: Priority, order_key: float) -> QueuedJob:
    return QueuedJob(name, State.QUEUED, 0.0, 0, priority, order_key)


def lists(prefix: str) -> st.SearchStrategy[list[QueuedJob]]:
    jobs = st.builds(
        lambda number, priority, key: job(f"{prefix}{number}", priority, key),
        st.integers(0, 99),
        st.sampled_from(list(Priority)),
        st.integers(0, 20).map(float),
    )
    return st.lists(jobs, unique_by=lambda each: each.job_id, max_size=8)


@given(lists("w"), lists("r"), st.data())
def test_each_run_gives_way_to_a_job_of_a_higher_class_that_comes_first(
    waiting: list[QueuedJob], running: list[QueuedJob], data: st.DataObject
) -> None:
    waiting.sort(key=lambda each: each.order_key)
    pausing = (
        set(data.draw(st.lists(st.sampled_from([each.job_id for each in running])))) if running else set()
    )
    chosen = choose_runs_to_pause(waiting, running, pausing)
    assert len(chosen) == len(set(chosen))
    assert not pausing & set(chosen)
    assert len(pausing) + len(chosen) <= max(len(waiting), len(pausing))
    by_id = {each.job_id: each for each in running}
    for urgent, victim in zip(waiting[len(pausing) :], (by_id[each] for each in chosen), strict=False):
        assert victim.priority < urgent.priority
        assert victim.order_key > urgent.order_key


@given(lists("w"), lists("r"))
def test_what_was_chosen_is_not_chosen_again(waiting: list[QueuedJob], running: list[QueuedJob]) -> None:
    waiting.sort(key=lambda each: each.order_key)
    first = choose_runs_to_pause(waiting, running, ())
    assert choose_runs_to_pause(waiting, running, first) == []


def test_run_that_comes_last_gives_way_first() -> None:
    running = [job("a", NORMAL, 5.0), job("b", LOW, 9.0), job("c", NORMAL, 7.0)]
    urgent = [job("u", HIGH, 1.0), job("v", HIGH, 2.0)]
    assert choose_runs_to_pause(urgent[:1], running, ()) == ["b"]
    assert choose_runs_to_pause(urgent, running, ()) == ["b", "c"]


def test_run_that_has_waited_long_enough_is_not_interrupted() -> None:
    assert choose_runs_to_pause([job("u", HIGH, 10.0)], [job("old", LOW, 9.0)], ()) == []
